"""`stagetrace bottleneck`: where the time of requests goes."""
