"""Out of the process: the official OTLP exporter, with its losses counted and said."""
