"""The contract of a hook, and what hooks share.

A hook is a module with `hook(module)`, called once, right after the library's module was executed. It wraps classes and
functions in place; its wrappers call the original exactly once and let nothing of ours reach the caller. Libraries are
also imported by programs that serve nothing, so a hook of a library that is no server imports no OpenTelemetry.
"""

from __future__ import annotations

# In an ASGI scope: what records the request. A mounted app shares it with the app around it.
SCOPE_KEY = "stagetrace.request"
