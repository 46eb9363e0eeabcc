"""`stagetrace demo`: a service with real faults, and what the commands report of them."""
