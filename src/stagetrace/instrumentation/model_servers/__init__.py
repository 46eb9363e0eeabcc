"""Model servers with processes and batches of their own."""
