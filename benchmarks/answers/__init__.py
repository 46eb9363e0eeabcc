"""Measure how often the answers are right, and how fast they are; each file runs by itself."""
