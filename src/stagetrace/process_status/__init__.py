"""Small files in which each recording process reports its state to `stagetrace doctor`."""
