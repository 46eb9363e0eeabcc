"""`stagetrace sla explain`: why a request has its verdict."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING, Final

from stagetrace import config
from stagetrace.cli.arguments.options import add_json, add_store, add_zone, store_url
from stagetrace.cli.arguments.policy import add_policy, policy_of
from stagetrace.cli.arguments.trace_id import LATEST, add_trace_id, whole_id
from stagetrace.cli.base import ANSWERED, UsageError
from stagetrace.cli.output.lines import show, show_json, warn
from stagetrace.store import open_store
from stagetrace.store.base import SERVER, SpanRow, Trace
from stagetrace.store.entries import segment

if TYPE_CHECKING:
    from stagetrace.cli.sla.explain_view import Request
    from stagetrace.sla.policy import Policy

DESCRIPTION: Final = (
    "Explain the verdicts of a trace: of each request what was recorded, and with a policy which of its objectives\n"
    "are about it, which are not and why, what their bounds are and where these come from, and what the request took."
)
EXAMPLE: Final = "stagetrace sla explain 4bf92f35 --policy sla.yaml"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_trace_id(parser)
    add_policy(parser)
    add_store(parser)
    parser.add_argument("--breached", action="store_true", help="with latest: the newest breach")
    add_zone(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print the explanation and return the exit code."""
    from stagetrace.cli.sla import explain_view

    if args.id != LATEST and args.breached:
        raise UsageError("--breached chooses the latest, and an id is given\nleave it out")
    has_policy = args.policy is not None or bool(config.SLA.read().strip())
    policy = policy_of(args) if has_policy else None
    with open_store(store_url(args)) as reader:
        trace = reader.trace(whole_id(reader, args.id, None, breached=args.breached).trace_id)
    found = [_request(one, trace, policy) for one in trace.spans if one.kind == SERVER]
    if not found:
        raise UsageError(f"trace {trace.trace_id} holds no request: no span of kind SERVER\nname another trace")
    if args.json:
        show_json(explain_view.as_json(trace, policy, found))
    else:
        show(*explain_view.parts(policy, found, args.tz))
    warn(trace.reason)
    return ANSWERED


def _request(span: SpanRow, trace: Trace, policy: Policy | None) -> Request:
    """Return one request, with what the policy says of it."""
    from stagetrace.analysis import explain
    from stagetrace.analysis.replay import stored
    from stagetrace.cli.sla.explain_view import Request
    from stagetrace.output.verdicts import verdict_of

    verdict = verdict_of(span, trace.spans)
    request = stored(span, () if policy is None else policy.keys, partial(segment, span))
    found = None if policy is None else explain.explain(policy, request, verdict.entry.stages)
    return Request(span, verdict, request, found)
