"""Make parts of stagetrace raise or hang, in the process of a service, and mend them."""

import importlib
import sys
import time
from typing import Any

broken: list[tuple[Any, str, Any]] = []
raised: list[int] = []  # by the part that is broken


def fails(*_: Any, **__: Any) -> Any:
    raised.append(1)
    raise RuntimeError("injected fault")


def hangs(*_: Any, **__: Any) -> Any:
    time.sleep(3600)


def replace(name: str, instead: Any = fails) -> None:
    """Put `instead` in the place of what `module:attribute.path` names, until `mend`."""
    module, _, path = name.partition(":")
    *owners, last = path.split(".")
    owner: Any = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    original = vars(owner)[last] if last in vars(owner) else getattr(owner, last)
    broken.append((owner, last, original))
    setattr(owner, last, property(instead) if isinstance(original, property) else instead)


def make_broken(name: str) -> None:
    """Break what `module:attribute.path` names, besides what is broken already."""
    forget()
    raised.clear()
    replace(name)


def mend() -> None:
    """Mend everything."""
    restore()
    forget()


def restore() -> None:
    while broken:
        setattr(*broken.pop())


class Seen(dict[object, int]):
    """All routes have been learned: requests go the usual way."""

    def get(self, *_: object) -> int:
        return 41


def forget() -> None:
    """Let stagetrace work out anew what it remembers, and log anew what it has logged."""
    from stagetrace import log

    log._logged.clear()
    forget_failures()
    http = sys.modules.get("stagetrace.protocols.http")
    if http is not None:
        known = (http.shared, http.request_block, http.route_block, http.span_name)
        for cached in (http.excluded, http.asked_for, http._fields, *known):
            cached.cache_clear()
    metrics = sys.modules.get("stagetrace.protocols.http")
    if metrics is not None:
        metrics.wanted.cache_clear()
    wsgi = sys.modules.get("stagetrace.protocols.wsgi_request")
    if wsgi is not None:
        wsgi._fields.cache_clear()
        wsgi._known.cache_clear()
    wsgi_serve = sys.modules.get("stagetrace.protocols.wsgi_request")
    if wsgi_serve is not None:
        wsgi_serve._excluded.cache_clear()


def forget_verdicts(processor: Any) -> None:
    """Let the processor work out anew which objectives judge a request, and what spans carry of a verdict."""
    decision = sys.modules["stagetrace.sla.decision"]
    decision._blocks.clear()
    decision._blocks_of_several.clear()
    sys.modules["stagetrace.sla.decision"]._is_readable.cache_clear()
    processor.segments = type(processor.segments)()
    if processor.policy is not None:
        processor.policy._found.clear()


def forget_failures() -> None:
    """Switch on again what failures have switched off, and let the recorder work out anew what it remembers."""
    from stagetrace import guard

    guard.failures.clear()
    for switch in guard._switches.values():
        switch.off = False
    loaded = sys.modules.get("stagetrace.request.context")
    recorder = loaded.here.recorder if loaded is not None else None
    if recorder is not None:
        recorder._rests.clear()
        recorder._plans._plans.clear()
        forget_verdicts(recorder.processor)
        recorder.processor.learned._seen = Seen()
        sampler, processor = sys.modules["stagetrace.causes.stall_sampler"].stall_sampler, recorder.processor
        sampler.remove(processor.learned)
        if processor.policy is not None:
            sampler.add(processor.policy, processor.learned)
