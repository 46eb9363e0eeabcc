"""`signal.pause()`, in which a main thread may wait while others serve: our handler of SIGTERM does not end it.

Other calls that a signal interrupts are restarted, by the kernel or by Python; after this one a script would go on.
Processes that serve nothing import this too, so as good as nothing is imported here.
"""

from __future__ import annotations

import functools
import sys

TYPE_CHECKING = False  # as in import_hooks.py
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType


def patch_signal(module: ModuleType) -> None:
    """Wrap `pause`, where the system has it."""
    if hasattr(module, "pause"):
        module.pause = _pausing(module.pause)  # type: ignore[attr-defined]


def _pausing(original: Callable[[], None]) -> Callable[[], None]:
    @functools.wraps(original)
    def pause() -> None:
        original()
        while _is_ending():
            original()

    return pause


def _is_ending() -> bool:
    try:
        return bool(sys.modules["stagetrace.system.sigterm"].is_asked())
    except Exception:  # noqa: BLE001 -- as a rule: this process serves nothing, and it is not loaded
        return False
