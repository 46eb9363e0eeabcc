"""A stand-in for vLLM 0.33.0, which needs a GPU: modules, signatures and results of what stagetrace patches."""
