"""What users call by name: stages and batches by hand, and requests carried where no context goes."""
