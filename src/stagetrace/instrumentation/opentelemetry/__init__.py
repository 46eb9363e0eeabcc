"""OpenTelemetry itself: its SDK, its exporters, its instrumentations of servers."""
