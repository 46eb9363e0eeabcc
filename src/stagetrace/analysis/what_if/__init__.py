"""What if a service had other workers, threads, batches or load? A model from recorded requests, simulated."""
