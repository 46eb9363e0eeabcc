"""RPCs of gRPC servers, on threads and on asyncio."""
