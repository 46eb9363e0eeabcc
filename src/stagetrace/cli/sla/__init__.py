"""`stagetrace sla ...`: commands about the policy itself."""
