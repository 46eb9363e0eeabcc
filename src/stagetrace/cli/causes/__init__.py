"""`stagetrace causes`: what distinguishes breaches from good requests."""
