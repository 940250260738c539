"""Reference pages from the code itself; not installed."""
