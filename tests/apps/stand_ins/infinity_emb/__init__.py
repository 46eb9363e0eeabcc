"""A stand-in of infinity-emb 0.0.78: its batches, without its server and its models."""
