"""`stagetrace segments`: how tenants, tiers, regions or input sizes fare."""
