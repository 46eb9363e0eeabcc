"""The key under which an ASGI scope, or a WSGI environ, carries the request that it belongs to."""

from __future__ import annotations

from typing import Final

# The value is the request's record, which a mounted application shares with the application around it. It is None
# where nothing is to be recorded, and a text where the scope comes out of a pickle (pickled_scope.py).
SCOPE_KEY: Final = "stagetrace.request"
