"""What any running tunnel needs, whether `serve`, `join`, `up` or `rustguard-wg` made it."""
