"""The contract of a hook, and what hooks share.

A hook is a module with `hook(module)`, called once, right after the library's module was executed. It wraps classes and
functions in place; its wrappers call the original exactly once and let nothing of ours reach the caller. Libraries are
also imported by programs that serve nothing, so a hook of a library that is no server imports no OpenTelemetry.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from stagetrace.guard import guarded

if TYPE_CHECKING:
    from stagetrace.recording.timeline import Timeline


@guarded
def recording() -> Timeline | None:
    """Return the timeline of the request that this code serves; None where no server is traced."""
    context = sys.modules.get("stagetrace.recording.context")
    return context.recording() if context is not None else None
