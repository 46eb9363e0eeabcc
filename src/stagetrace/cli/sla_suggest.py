"""`stagetrace sla suggest`: a policy that observed traffic could keep."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from stagetrace.cli.arguments import next_command, selection_options
from stagetrace.cli.ask import PRINTED
from stagetrace.cli.registry import Option, UsageError
from stagetrace.output import objectives
from stagetrace.output.answer import Answer, keys_of, no_requests
from stagetrace.output.table import COMMON, Column, Table, numbers, numeric
from stagetrace.output.units import milliseconds, threshold
from stagetrace.policy import quantities
from stagetrace.policy.objective import DEFAULT_TARGET, DEFAULT_WINDOW_S
from stagetrace.policy.quantities import duration_text

if TYPE_CHECKING:
    from stagetrace.analysis.suggest import Suggested, Suggestion
    from stagetrace.policy.objective import Objective
    from stagetrace.policy.policy import Policy
    from stagetrace.store.base import Reader, Selection

TITLE: Final = "Suggested objectives"
DESCRIPTION: Final = (
    "Suggest a policy from observed traffic, for each service, method and route: the threshold that --target of the\n"
    "requests are surely within (the lower end of the 95 % interval), or with --within the target that is attained;\n"
    "what other thresholds would have found; and budgets of stages that add up to the threshold. With --output, the\n"
    "policy goes to a file, for STAGETRACE_SLA."
)
EXAMPLE: Final = "stagetrace sla suggest --since 7d --target 99.5% --output sla.yaml"

OPTIONS: Final = (
    Option(
        "--target PERCENT",
        f"the share of requests that is to be good; default: {100 * DEFAULT_TARGET:g}%",
        quantities.share,
    ),
    Option("--within DURATION", "the threshold, as 250ms; asks for its target", quantities.duration_ns),
    Option(
        "--window WINDOW",
        "the window of the objectives; default: 28d",
        quantities.window,
        quantities.Window(DEFAULT_WINDOW_S),
    ),
    Option("--output FILE", "write the policy to this file, which must not exist", Path),
    *selection_options(cause=False),
    *PRINTED,
)


def answer(reader: Reader, wanted: Selection, args: argparse.Namespace) -> Answer:
    """Return what is suggested for the selected requests; write it to a file if one is named."""
    from stagetrace.analysis import suggest
    from stagetrace.policy import policy_file

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
        return Answer(
            TITLE, no_requests(wanted, args.tz), {"suggestions": [], "policy": None}, is_undecided=True, reason=reason
        )
    return Answer(
        TITLE,
        sentence_of(found, args.output if text else None),
        {"suggestions": [as_json(one) for one in found.suggestions], "policy": text or None},
        list(parts(found, policy if args.output is None else None)),
        is_undecided=not text,
        reason=reason or reason_of(found),
        steps=[next_command(args, "sla replay", "--policy", str(args.output))] if text and args.output else (),
    )


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


# --- The output of `stagetrace sla suggest`: a sentence, tables, the policy, and the keys of `--json`.

_DAY_S: Final = 86_400
_STEPS: Final = 6  # of one suggestion, around what is suggested
_SHOWN: Final = 10  # suggestions whose steps are shown


def sentence_of(found: Suggested, output: Path | None) -> str:
    """Return the answer: how many objectives there are, and the first of them."""
    usable = found.usable
    if not usable:
        first = found.suggestions[0]
        return f"No objective can be suggested: {_why_not(first)}."
    first, many = usable[0], len(usable)
    where = f"; {output} has the policy" if output is not None else ""
    rest = f", and {many - 1} more" if many > 1 else ""
    wanted = f"{objectives.wanted(first.target or 0)} within {threshold(first.within_ms or 0)}"
    return f"{first.name}: {wanted}{rest}{where}."


def _why_not(one: Suggestion) -> str:
    if one.sample.is_unknown:
        return f"it is not known how the requests of {one.name} were sampled"
    few = f"{objectives.requests(one.effective)} of {one.name}"
    if one.effective < one.needed:
        return f"there {'is' if round(one.effective) == 1 else 'are'} {few}, and {one.needed:,} would be enough"
    return f"of the {few} too few are within that to keep any usual target"


def reason_of(found: Suggested) -> str | None:
    """Return what is missing from the answer."""
    if found.is_cut:
        return "there are more kinds of requests than are read: select fewer, as by --service"
    if found.left:
        return f"{found.left:,} less frequent kinds of requests are not looked at: select some, as by --route"
    return None


def as_json(one: Suggestion) -> dict[str, Any]:
    """Return one suggestion as `--json` prints it."""
    return keys_of(
        one,
        "sample",
        stored=one.sample.rows,
        estimated=one.sample.is_estimate,
        sampling_known=not one.sample.is_unknown,
        steps=[step._asdict() for step in one.steps],
        budgets=None
        if one.budgets is None
        else keys_of(one.budgets, stages=[budget._asdict() for budget in one.budgets.stages]),
    )


def parts(found: Suggested, policy: Policy | None) -> Iterator[str | Table]:
    """Yield the tables, lines, and the policy, as far as it fits into one line."""
    heads = (
        *(Column(name, kind=COMMON) for name in ("service", "requests of")),
        *numbers("requests", "observed for", "within", "target"),
    )
    yield Table(heads, [_cells(one) for one in found.suggestions])
    for one in found.suggestions[:_SHOWN]:
        if one.within_ms is None:
            yield f"{one.name} of {one.service}: {_why_not(one)}."
        if one.steps and one.effective >= one.needed:
            yield _steps(one)
        yield from _budgets(one)
    if policy is not None and policy.objectives:
        rules = "; ".join(_rule(one) for one in policy.objectives[:_SHOWN])
        yield f"STAGETRACE_SLA='{rules}'; --output FILE writes a policy with the budgets."


def _rule(one: Objective) -> str:
    route = f"{one.method} {one.route}" if one.method else one.route
    return f"{route} within {duration_text(one.within_ns)} for {one.target_text}"


def _cells(one: Suggestion) -> tuple[str, ...]:
    return (
        one.service,
        one.name,
        f"{'~' if one.sample.is_estimate else ''}{one.requests:,.0f}",
        objectives.length(one.days * _DAY_S),
        threshold(one.within_ms),
        "-" if one.target is None else objectives.wanted(one.target),
    )


def _steps(one: Suggestion) -> Table:
    """Return what thresholds around the suggested one would have found."""
    chosen = next(
        (place for place, step in enumerate(one.steps) if step.within_ms == one.within_ms), len(one.steps) - 1
    )
    first = max(0, min(chosen - _STEPS // 2, len(one.steps) - _STEPS))
    heads = [numeric(f"{one.name} within"), *numbers("good", "95 %", "keeps", "breaches a day")]
    rows = []
    for step in one.steps[first : first + _STEPS]:
        low, high = (objectives.percent(share).removesuffix(" %") for share in (step.low, step.high))
        rows.append(
            (
                f"{threshold(step.within_ms)}{' *' if step.within_ms == one.within_ms else ''}",
                objectives.percent(step.share),
                f"[{low}, {high}]",
                "-" if step.target is None else objectives.wanted(step.target),
                "-" if step.breaches_per_day is None else f"{step.breaches_per_day:,.3g}",
            )
        )
    return Table(heads, rows)


def _budgets(one: Suggestion) -> Iterator[str]:
    found = one.budgets
    if found is None or not found.stages:
        return
    stages = ", ".join(
        f"{part.stage} {threshold(part.budget_ms)} (kept by {objectives.percent(part.kept)})" for part in found.stages
    )
    yield f"Budgets of {one.name}: {stages}."
    alone = "beyond twice the threshold" if found.convolved_ms is None else milliseconds(found.convolved_ms)
    yield (
        f"The p{100 * (one.target or 0):.12g} is {milliseconds(found.observed_ms)}; if stages were slow independently "
        f"of each other it would be {alone}; those of the stages add up to {milliseconds(found.added_ms)}."
    )
