"""Produce each cause of a breach by real means, and compare the cause that is named with the one that was produced."""
