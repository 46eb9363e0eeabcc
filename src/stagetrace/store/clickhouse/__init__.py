"""The store over ClickHouse: the table `otel_traces` that the Collector's exporter fills, as anybody has it."""
