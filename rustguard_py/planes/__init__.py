"""The data planes: one contract (`contract`), several implementations."""
