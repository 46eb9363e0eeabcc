"""The functions that users call: stages and batches marked by hand, requests carried where no context goes."""
