"""OTLP requests to columns of spans, and back."""
