"""The load generator of `bench` and `replay`: arrivals planned ahead, sent when they are due, over HTTP or gRPC."""
