"""Spans out of files."""
