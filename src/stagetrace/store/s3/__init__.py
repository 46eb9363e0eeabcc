"""The archive of a local store: its files in a bucket of S3, which `stagetrace up --archive` fills."""
