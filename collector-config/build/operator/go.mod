module stagetrace.dev/collector-config/operator

go 1.25.0

require github.com/open-telemetry/opentelemetry-operator v0.148.0
