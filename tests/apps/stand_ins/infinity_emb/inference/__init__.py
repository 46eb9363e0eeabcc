"""How it makes batches."""
