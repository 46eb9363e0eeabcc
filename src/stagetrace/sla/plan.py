"""The short way to the end of a plain good request: what all requests of its kind share is worked out once.

The full way, in `sla.entry_recorder`, is the definition of what is right, and makes the plans: a request leaves the
same bytes and the same counts by either (tests/sla/test_plan.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace.guard import guarded, report
from stagetrace.otlp.encode import encode_request, entry_rest
from stagetrace.policy.verdict import GOOD
from stagetrace.request.in_flight import in_flight
from stagetrace.request.request import NO_STAGES
from stagetrace.request.spans import SCOPE
from stagetrace.semconv import SLA_SAMPLING_PROBABILITY
from stagetrace.sources.process_cpu import INTERVAL_NS, process_cpu
from stagetrace.system.bounded import BoundedCache
from stagetrace.tracing.span import SpanKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stagetrace.otlp.export.batch_processor import EncodingSpanProcessor
    from stagetrace.policy.objective import Objective
    from stagetrace.policy.policy import Policy
    from stagetrace.request.request import Request
    from stagetrace.sla.decision import Decided
    from stagetrace.sla.head_sampler import HeadSampler
    from stagetrace.sla.processor import Judge
    from stagetrace.sla.provider import Provider
    from stagetrace.tracing.span_context import SpanContext

MAX_PLANS: Final = 4_096
# What the full way looks at, and this one does not: a request that has any of these of its own, and not of its class,
# is not plain.
UNUSUAL: Final = frozenset(
    [
        *("adopted", "added", "backend", "batch", "besides", "caller", "details", "disconnect", "generation", "late"),
        *("notes", "remote_stages", "stages", "_tentative"),
    ]
)


class Plan(NamedTuple):
    """What all plain good requests of one kind share."""

    policy: Policy | None  # that it is by: a file may replace that
    objectives: tuple[str, ...]  # the names of those that judge them
    within_ns: int  # a request that takes longer may be no good one; -1: each is judged by itself
    rest: bytes  # of the entry span: name, kind, the attributes that all have, status


class Plans:
    """The plans of a recorder, by kind: name, method, route, and the blocks of attributes."""

    def __init__(
        self,
        provider: Provider,
        processor: Judge,
        senders: Sequence[EncodingSpanProcessor],
        head: HeadSampler,
    ) -> None:
        self._provider = provider
        self._processor = processor
        self._senders = senders
        self._head = head
        self._plans: BoundedCache[tuple[Any, ...], Plan] = BoundedCache(MAX_PLANS)

    def end(self, request: Request) -> bool:  # noqa: C901, PLR0912 -- one way, without calls that hand on
        """End a request if it is plain, good and of a known kind; return whether it was.

        A plain request of an unknown kind gets that as its `kind`, so that the full way can make the plan.
        """
        processor, head, start, end = self._processor, self._head, request.started, request.end
        if processor.has_others or not head.draws or not UNUSUAL.isdisjoint(request.__dict__) or request.failed:
            return False
        try:
            learned, route = processor.learned, (request.method, request.route)
            if learned.wants(route, end):
                return False
            blocks, client, attributes = request.description = request.describe()
            kind = (request.name, *route, *blocks)
            plan = self._plans.get(kind)
            if plan is None or plan.policy is not processor.policy:
                request.kind = kind
                return False
            if end - start > plan.within_ns:
                return False
            identity = request.ids
            if identity is None and request.parent_context:
                identity = request.identity
            elif identity is None and head.draw(request, keep=False):
                identity = request.ids
            if identity is None or not identity.is_sampled:
                if request.held:
                    processor.release(request.identity.context.trace_id, keep=False)
                request.is_over = True
                trace = None
            else:
                if learned.is_slow(route, end - start):
                    attributes.update(request.connection_attributes())
                if request.probability is not None:
                    attributes[SLA_SAMPLING_PROBABILITY] = request.probability
                if not 0 <= end - process_cpu.at_ns < INTERVAL_NS:
                    process_cpu.add_to(attributes, end)
                request.is_over = True
                request.stages = stages = request.tile(start, end)
                spans, count = encode_request(
                    stages, identity, (start, end), b"", plan.rest + client.encoded, attributes, stages.model, ()
                )
                resource = self._provider.resource  # another one after a fork
                trace = identity.context
                for sender in self._senders:
                    sender.put(resource, SCOPE, spans, count, breach=False)
        except Exception as error:  # noqa: BLE001 -- the full way is left
            report("stagetrace.sla.plan.Plans.end", error)
            return False
        self._conclude(request, plan, trace)
        return True

    def _conclude(self, request: Request, plan: Plan, trace: SpanContext | None) -> None:
        """Count a request, which is kept if it has a `trace`, and let it go. Never raises."""
        try:
            took, stages = request.end - request.started, request.stages
            for objective in plan.objectives:
                self._processor.counter.add(objective, GOOD, request.route, None, None, took, stages, trace)
            if trace is not None:
                self._processor.learned.add((request.method, request.route), request.end, None)
        except Exception as error:  # noqa: BLE001 -- it is sent, or dropped
            report("stagetrace.sla.plan.Plans.end", error)
        request.drop()
        request.work = request.greenlet = request.description = None
        request.pools, request.stages = (), NO_STAGES
        if in_flight.is_watched:
            in_flight.end(request)

    @guarded
    def make(self, request: Request, judged: Decided) -> None:
        """Make the plan for the kind of a request that has gone the full way, if it was good."""
        if request.kind is None or any(one.word != GOOD for one in judged.all):
            return
        policy, chain = self._processor.policy, [one.objective for one in judged.all]
        block = judged.block()
        if policy is None or policy.reads or block is None or not all(map(_is_simple, chain)):
            self._plans[request.kind] = Plan(policy, (), -1, b"")
            return
        rest = entry_rest(request.name, SpanKind.SERVER.value, [*request.entry_attributes()[0], block], failed=False)
        within_ns = min(one.within_ns for one in chain)
        self._plans[request.kind] = Plan(policy, tuple(one.name for one in chain), within_ns, rest)


def _is_simple(objective: Objective) -> bool:
    """Return whether the verdict on a complete response without an error follows from its duration alone."""
    return not (
        objective.excludes
        or objective.problem
        or objective.deadline
        or objective.warmup_s
        or objective.segment_by
        or objective.stages
        or objective.first_token_ns is not None
        or objective.per_token_ns is not None
    )
