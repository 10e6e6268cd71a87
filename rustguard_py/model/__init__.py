"""Value types that all packages share. They import nothing else of the project."""
