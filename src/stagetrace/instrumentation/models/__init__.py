"""Model libraries, whose outermost call in a request is the inference."""
