"""Plant stalls whose line of code is known, in real services, and compare the recorded line with it."""
