"""Does the what-if model predict what a changed service then does? Services, and a grid of their recorded runs."""
