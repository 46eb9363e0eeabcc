"""`stagetrace drift`: which latencies have changed."""
