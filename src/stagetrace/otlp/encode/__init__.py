"""Spans to OTLP."""
