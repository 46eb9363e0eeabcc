"""The connection of a request: its socket, its wait in the kernel, its network."""
