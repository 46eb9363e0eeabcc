"""What kernel and interpreter tell of a request beyond what its own code can see."""
