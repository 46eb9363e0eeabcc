"""Join every TracerProvider of the process: ours, opentelemetry-instrument's, the user's own."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from stagetrace import config, log
from stagetrace.errors import PolicyError
from stagetrace.guard import guarded

if TYPE_CHECKING:
    from types import ModuleType

    from stagetrace.sla.policy import Policy
    from stagetrace.sla.processor import SLASpanProcessor, VerdictCounter


def hook(module: ModuleType) -> None:
    """Wrap the processors and the sampler of each provider as soon as it is made, before any tracer copies them."""
    provider = module.TracerProvider
    original = provider.__init__

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        _join(self)

    provider.__init__ = __init__


@guarded
def _join(provider: Any) -> None:
    from stagetrace.sla.processor import SLASpanProcessor
    from stagetrace.sla.sampling import KeepBreaches

    # Private, and the only place at which a processor can stand before those that export (docs/decisions/003).
    provider._active_span_processor = SLASpanProcessor(policy(), provider._active_span_processor, counter=counter())
    provider.sampler = KeepBreaches(provider.sampler)


def joined(provider: Any) -> SLASpanProcessor | None:
    """Return our processor of a provider; None if it could not be joined, or OTEL_SDK_DISABLED silences it."""
    from stagetrace.sla.processor import SLASpanProcessor

    processor = getattr(provider, "_active_span_processor", None)
    return processor if isinstance(processor, SLASpanProcessor) and not provider._disabled else None


def is_silent(tracer: Any) -> bool:
    """Return whether the spans of a tracer are sent nowhere, as far as that can be told.

    Those of the process's provider, whoever has set it, are sent: else by us, from when a server starts.
    """
    from opentelemetry import trace

    from stagetrace.sla.processor import SLASpanProcessor, exports

    if isinstance(tracer, trace.ProxyTracer):
        return False
    if isinstance(tracer, trace.NoOpTracer):
        return True
    processor = getattr(tracer, "span_processor", None)  # of the SDK's
    if processor is getattr(trace.get_tracer_provider(), "_active_span_processor", None):
        return False
    if isinstance(processor, SLASpanProcessor):
        return not processor.sends
    return processor is not None and not exports(processor)


@functools.cache
def counter() -> VerdictCounter:
    """Return the one counter of this process."""
    from stagetrace.sla.processor import VerdictCounter

    return VerdictCounter()


def policy() -> Policy | None:
    """Return the policy of STAGETRACE_SLA; None if there is none, or no rule of it can be read."""
    return _policy()[0]


def policy_problems() -> tuple[str, ...]:
    """Return what cannot be read in STAGETRACE_SLA, and why."""
    return _policy()[1]


def judging() -> str:
    """Return the objectives in words, and which rules of STAGETRACE_SLA cannot be read; why has been said by then."""
    used, problems = _policy()
    if used is None and not problems:
        return "no objective given (STAGETRACE_SLA)"
    names = "; ".join(rule.name for rule in used.objectives) if used else "no objective"
    return "; ".join([names, *(problem.partition(": ")[0] for problem in problems)])


@functools.cache
def _policy() -> tuple[Policy | None, tuple[str, ...]]:
    """Read STAGETRACE_SLA, and say once what of it cannot be read."""
    from stagetrace.sla.policy import HOW, Policy

    text = config.policy_text()
    if text is None:
        return None, ()
    try:
        found = Policy.readable(text)
    except PolicyError as error:
        log.once("policy", f"STAGETRACE_SLA is ignored, requests are traced without a verdict: {error}")
        return None, (error.problem,)
    if found.problems:
        what = "; ".join(found.problems)
        log.once("policy", f"STAGETRACE_SLA is used in part, what these rules are about is not judged: {what}.\n{HOW}")
    return found, found.problems
