"""`stagetrace compare`: whether one version of a model is slower than another."""
