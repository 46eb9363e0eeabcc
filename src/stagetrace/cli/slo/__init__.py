"""`stagetrace slo`: whether each objective is kept, and how long its error budget lasts."""
