"""OTLP: spans to bytes (encode), bytes to a receiver with losses counted (export), bytes to columns (decode)."""
