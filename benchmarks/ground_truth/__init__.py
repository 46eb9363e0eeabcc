"""Share between the benchmarks that plant a fault and compare with it what was recorded: services, client, spans."""
