"""One request: marks in, stages out; its entry span, and what other threads and processes do for it."""
