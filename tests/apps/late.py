"""Everything is imported, made and trained before stagetrace is switched on by hand."""

from ml import app

from stagetrace.activate import activate

activate()

__all__ = ["app"]
