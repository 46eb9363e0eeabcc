"""Thread pools, in which a request waits for a thread."""
