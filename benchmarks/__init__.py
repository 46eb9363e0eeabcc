"""Measure what recording costs, without thresholds: `python benchmarks/run.py` writes dist/performance.md."""
