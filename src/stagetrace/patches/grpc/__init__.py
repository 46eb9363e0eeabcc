"""gRPC: its servers and clients, those of threads and those of asyncio."""
