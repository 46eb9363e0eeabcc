"""OpenTelemetry as the service has it: joined where the service imports it. Nothing else of the recording side does."""
