"""Objectives, from one line or a file, and the verdict on a request: pure."""
