"""daphne: the server gets its application wrapped, so that each request has an entry span. It knows no lifespan."""

from __future__ import annotations

from typing import Any

from stagetrace.instrumentation.base import before, patching
from stagetrace.instrumentation.servers import wrap_asgi
from stagetrace.runtime.runtime import runtime


def _prepare(server: Any) -> None:
    wrap_asgi(server, "application")
    runtime.prepare_now()


patch_server = patching({"Server.run": before(_prepare)})  # it has its application by then
