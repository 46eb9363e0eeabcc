"""The embedded back end: OTLP in, the local store behind it, `jaeger.api_v3` out. One process, four ports."""
