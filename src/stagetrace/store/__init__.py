"""Where recorded spans are read back from."""
