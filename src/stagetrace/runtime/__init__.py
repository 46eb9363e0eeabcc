"""The life of recording in a process: activation, tracer provider, shutdown."""
