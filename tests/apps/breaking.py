"""Make one part of stagetrace raise, in the process of a service, and mend it."""

import importlib
import sys
from typing import Any

broken: list[tuple[Any, str, Any]] = []
raised: list[int] = []  # by the part that is broken


def fails(*_: Any, **__: Any) -> Any:
    raised.append(1)
    raise RuntimeError("injected fault")


def make_broken(name: str) -> None:
    """Break what `module:attribute.path` names."""
    module, _, path = name.partition(":")
    *owners, last = path.split(".")
    owner: Any = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    original = vars(owner)[last]
    forget()
    raised.clear()
    broken.append((owner, last, original))
    setattr(owner, last, property(fails) if isinstance(original, property) else fails)


def mend() -> None:
    """Mend everything."""
    while broken:
        setattr(*broken.pop())
    forget()


class Seen(dict[object, int]):
    """All routes have been learned: requests go the usual way."""

    def get(self, *_: object) -> int:
        return 41


def forget() -> None:
    """Let stagetrace work out anew what it remembers, and say anew what it has said."""
    from stagetrace import guard, log

    guard.failures.clear()
    log._logged.clear()
    for switch in guard._switches.values():
        switch.off = False
    loaded = sys.modules.get("stagetrace.runtime.runtime")
    if loaded is None or loaded.runtime.recorder is None:
        return
    recorder = loaded.runtime.recorder
    from stagetrace.instrumentation.http import attributes as http
    from stagetrace.instrumentation.http import metrics as http_metrics

    known = (http.shared, http.request_block, http.route_block, http.span_name)
    for cached in (http.excluded, http.asked_for, http._fields, http_metrics.wanted, *known):
        cached.cache_clear()
    wsgi = sys.modules.get("stagetrace.instrumentation.wsgi.request")
    if wsgi is not None:
        wsgi._fields.cache_clear()
    wsgi_serve = sys.modules.get("stagetrace.instrumentation.wsgi.serve")
    if wsgi_serve is not None:
        wsgi_serve._excluded.cache_clear()
    recorder._rests.clear()
    sys.modules["stagetrace.sla.finish"]._blocks.clear()
    recorder._processor.learned._seen = Seen()
