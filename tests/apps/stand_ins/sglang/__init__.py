"""A stand-in for SGLang 0.5.23, which needs a GPU: modules, signatures and results of what stagetrace patches."""
