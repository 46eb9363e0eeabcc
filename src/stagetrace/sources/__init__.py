"""What kernel and interpreter report of a request beyond what its own code can see."""
