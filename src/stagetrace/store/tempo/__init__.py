"""Spans out of a Tempo, or what speaks its API."""
