"""hypercorn, on asyncio and uvloop: the application that it loads is wrapped, so that requests have entry spans."""

from __future__ import annotations

from typing import Any

from stagetrace.instrumentation.base import patching, then
from stagetrace.instrumentation.servers import flushing, preparing, wrap_asgi
from stagetrace.runtime.sigterm_python import begin


def _wrap_application(wrapper: Any) -> None:
    wrap_asgi(wrapper, "app")


def _catch_sigterm(_lifespan: Any) -> None:
    begin()


def _starting(original: Any) -> Any:
    """Prepare once the application has started, or was found to have no lifespan.

    From then on SIGTERM waits for the delivery, in C or not: hypercorn sends it to its other workers as soon as one has
    ended, and they do not handle it.
    """
    return then(_catch_sigterm)(preparing(original))


patch_app_wrappers = patching({"ASGIWrapper.__init__": then(_wrap_application)})
patch_lifespan = patching({"Lifespan.wait_for_startup": _starting, "Lifespan.wait_for_shutdown": flushing})
