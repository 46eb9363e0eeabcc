"""The stand-ins of generative engines (`tests/apps/stand_ins`), patched, with a clock that only they move."""

from __future__ import annotations

import importlib
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from services import APPS
from stagetrace import guard
from stagetrace.instrumentation.models import generation, marked
from stagetrace.patches import sglang, vllm
from stagetrace.policy.policy import Policy
from stagetrace.request.current import current
from stagetrace.request.request import Request
from stagetrace.sla.decision import decided
from stagetrace.sla.processor import _conclude_generation
from stagetrace_contrib import llama_cpp

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

    from stagetrace.sla.decision import Decided

STAND_INS = APPS / "stand_ins"
MS = 1_000_000
START = 2**62  # ns since the epoch, of each request
# Three tokens after 100, 20 and 30 ms, then the mark of the end.
SCRIPT = ((0.1, 97), (0.02, 98), (0.03, 99), (0.01, 2))
PATCHES = {
    "llama_cpp.llama": llama_cpp.patch_llama,
    "vllm.entrypoints.pooling.offline": vllm.patch_pooling,
    "vllm.entrypoints.llm": vllm.patch_llm,
    "vllm.v1.engine.async_llm": vllm.patch_async_llm,
    "sglang.srt.entrypoints.engine": sglang.patch_engine,
    "sglang.srt.managers.tokenizer_manager": sglang.patch_manager,
}


@contextmanager
def stand_ins() -> Iterator[Any]:
    """Import the stand-ins and patch them; yield their modules by the last part of their names."""
    sys.path.insert(0, str(STAND_INS))
    try:
        modules = {name: importlib.import_module(name) for name in PATCHES}
        more = {"outputs": importlib.import_module("vllm.outputs")}
        for name, patch in PATCHES.items():
            patch(modules[name])
        yield SimpleNamespace(**{name.rpartition(".")[2]: one for name, one in (modules | more).items()})
    finally:
        sys.path.remove(str(STAND_INS))
        for name in [one for one in sys.modules if one.partition(".")[0] in {"llama_cpp", "vllm", "sglang"}]:
            del sys.modules[name]


class Clock:
    """The time of a request, in nanoseconds since the epoch; the monotonic clock is 1,000 s behind."""

    def __init__(self) -> None:
        self.now = START

    def pause(self, seconds: float) -> None:
        self.now += round(seconds * 1e9)

    def time_ns(self) -> int:
        return self.now

    def monotonic_ns(self) -> int:
        return self.now - START + 1_000 * 1_000 * MS

    def monotonic(self) -> float:
        return self.monotonic_ns() / 1e9


def use(clock: Clock, engines: Any, patch: pytest.MonkeyPatch) -> None:
    """Let the stand-ins and what watches them read this clock."""
    for module in (generation, llama_cpp, vllm):
        patch.setattr(module, "time_ns", clock.time_ns)
    patch.setattr(vllm, "monotonic_ns", clock.monotonic_ns)
    patch.setattr(generation, "sample", lambda _: None)
    for module in (engines.llama, engines.llm, engines.tokenizer_manager):
        patch.setattr(module, "pause", clock.pause)
    patch.setattr(engines.llm, "monotonic", clock.monotonic)
    patch.setattr(engines.tokenizer_manager, "wall", lambda: clock.now / 1e9)


def fresh(engines: Any, patch: pytest.MonkeyPatch) -> Clock:
    """Return a new clock that is used, and let no model be new and no fault known."""
    clock = Clock()
    use(clock, engines, patch)
    patch.setattr(marked, "_called", {"tiny.gguf", "org/model", "model"})
    patch.setattr(guard, "failures", {})
    return clock


def llama(engines: Any, script: Any = SCRIPT, **how: Any) -> Any:
    """Return a `Llama` that answers by this script."""
    return engines.llama.Llama("/models/tiny.gguf", script, **how)


@dataclass
class Ran:
    """What became of a request."""

    clock: Clock
    record: Request
    stages: list[tuple[str, float, dict[str, Any]]] = field(default_factory=list)  # with their length in ms
    details: list[tuple[str, float, float]] = field(default_factory=list)  # from, to, in ms from its start
    entry: dict[str, Any] = field(default_factory=dict)
    judged: Decided | None = None

    @property
    def inferences(self) -> list[dict[str, Any]]:
        return [attributes for stage, _, attributes in self.stages if stage == "inference"]


@contextmanager
def request(clock: Clock, rule: str = "* within 10s") -> Iterator[Ran]:
    """Be within a request; what is yielded is filled as it ends."""
    record = Request(start=clock.now)
    record.clock = clock.time_ns
    record.bound = True
    ran = Ran(clock, record)
    token = current.set(record)
    try:
        yield ran
    finally:
        current.reset(token)
        end(ran, rule)


def end(ran: Ran, rule: str) -> None:
    """End the request as its entry span's recorder does."""
    record, now = ran.record, ran.clock.now
    record.end, record.method, record.route = now, "POST", "/generate"
    if record.generation is not None:
        _conclude_generation(record)
    ran.judged = decided(Policy.parse(rule), record)
    stages = record.close(record.started, now)
    ran.stages = [(one.stage, (one.end - one.start) / MS, dict(one.attributes or {})) for one in stages.segments()]
    ran.entry = dict(stages.model)
    if record.details is not None:
        found, _ = record.details.grouped([segment.start for segment in stages.segments()])
        since = record.started
        ran.details = sorted(
            ((name, (calls[0] - since) / MS, (calls[1] - since) / MS) for _, ((name, _), calls, _) in found),
            key=lambda one: one[1],
        )
