"""`stagetrace bench`: load on a service, and the latency that it keeps under it."""
