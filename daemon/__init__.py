"""Parts that every running tunnel uses, whether `serve`, `join`, `up` or `rustguard-wg` made it."""
