"""What happened in one request: marks in, stage spans out."""
