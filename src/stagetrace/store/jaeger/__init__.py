"""Spans out of a Jaeger."""
