"""Outgoing calls of a recorded request, as CLIENT spans."""
