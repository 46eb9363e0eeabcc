"""asyncio: its locks and semaphores."""

from __future__ import annotations

from stagetrace.instrumentation.locks import patch_locks

__all__ = ["patch_locks"]
