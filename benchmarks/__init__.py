"""What recording costs, in figures without thresholds: `python benchmarks/run.py` writes docs/performance.md."""
