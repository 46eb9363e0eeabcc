"""The load generator of `stagetrace bench`: arrivals planned ahead, sent when they are due, over HTTP or gRPC."""
