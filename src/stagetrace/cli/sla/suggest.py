"""`stagetrace sla suggest`: a policy that observed traffic could keep."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from stagetrace.cli.arguments.options import add_selection
from stagetrace.cli.base import UsageError
from stagetrace.cli.output.formats import add_format
from stagetrace.output.answer import Answer
from stagetrace.output.times import window
from stagetrace.sla import quantities
from stagetrace.sla.objective import DEFAULT_TARGET, DEFAULT_WINDOW_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from stagetrace.store.base import Reader, Selection

TITLE: Final = "Suggested objectives"
DESCRIPTION: Final = (
    "Suggest a policy from observed traffic, for each service, method and route: the threshold that --target of the\n"
    "requests are surely within (the lower end of the 95 % interval), or with --within the target that is attained;\n"
    "what other thresholds would have found; and budgets of stages that add up to the threshold. With --output, the\n"
    "policy goes to a file, for STAGETRACE_SLA."
)
EXAMPLE: Final = "stagetrace sla suggest --since 7d --target 99.5% --output sla.yaml"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "--target",
        metavar="PERCENT",
        type=_read(quantities.share),
        help=f"the share of requests that is to be good; default: {100 * DEFAULT_TARGET:g}%%",
    )
    parser.add_argument(
        "--within",
        metavar="DURATION",
        type=_read(quantities.duration_ns),
        help="the threshold, as 250ms; asks for its target",
    )
    parser.add_argument(
        "--window",
        metavar="WINDOW",
        type=_read(quantities.window),
        default=quantities.Window(DEFAULT_WINDOW_S),
        help="the window of the objectives; default: 28d",
    )
    parser.add_argument(
        "--output", metavar="FILE", type=Path, help="write the policy to this file, which must not exist"
    )
    add_selection(parser, cause=False)
    add_format(parser)


def answer(reader: Reader, wanted: Selection, args: argparse.Namespace) -> Answer:
    """Return what is suggested for the selected requests; write it to a file if one is named."""
    from stagetrace.analysis import suggest
    from stagetrace.cli.sla import suggest_view
    from stagetrace.sla import policy_file

    if args.target is not None and args.within is not None:
        raise UsageError("--target asks for a threshold, and --within for a target\ngive one of them")
    target = DEFAULT_TARGET if args.target is None else args.target
    if target >= 1:
        raise UsageError("no traffic can show that all requests will be good\ngive --target below 100%, as 99.9%")
    within_ms = None if args.within is None else args.within / 1e6
    with reader.relations(wanted) as relations:
        found = suggest.ask(relations, target, within_ms)
        reason = relations.reason
    policy = suggest.policy_of(found, args.window)
    text = policy_file.write(policy) if policy.objectives else ""
    if args.output is not None and text:
        _write(args.output, text)
    if not found.suggestions:
        sentence = f"No requests{window(wanted.since_ns, wanted.until_ns, args.tz)}."
        return Answer(TITLE, sentence, {"suggestions": [], "policy": None}, is_undecided=True, reason=reason)
    return Answer(
        TITLE,
        suggest_view.sentence(found, args.output if text else None),
        {"suggestions": [suggest_view.as_json(one) for one in found.suggestions], "policy": text or None},
        list(suggest_view.parts(found, policy if args.output is None else None)),
        is_undecided=not text,
        reason=reason or suggest_view.reason(found),
    )


def _read(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a reader of an option: argparse shows what is wrong."""

    def value(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return value


def _write(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{path} exists, and is not overwritten\nname another file, or remove it") from None
    except OSError as error:
        raise UsageError(
            f"cannot write {path}: {error.strerror}\nname a file in a folder that can be written"
        ) from None
