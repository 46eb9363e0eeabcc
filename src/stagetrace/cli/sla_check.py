"""`stagetrace sla check`: what a policy says, and what is wrong in it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, NamedTuple

from stagetrace.cli.registry import ANSWERED, NO_ANSWER, Option, UsageError
from stagetrace.output import objectives as policy_text
from stagetrace.output.answer import completeness
from stagetrace.policy import policy_keys
from stagetrace.policy.alert_options import AlertOptions
from stagetrace.policy.policy import Policy, file_named
from stagetrace.policy.policy_file import Document, PolicyFileError, content, decoded, document, is_openslo
from stagetrace.policy.policy_lint import ERROR, WARNING, Finding, inline_places, lint
from stagetrace.rules import openslo_read
from stagetrace.text import printable

if TYPE_CHECKING:
    from stagetrace.policy.objective import Objective
    from stagetrace.policy.yaml_nodes import Problem

DESCRIPTION: Final = (
    "Check a policy: whether it can be read, and what is probably not meant as it stands there. "
    "The exit code is 2 if there is an error; warnings do not count."
)
EXAMPLE: Final = "stagetrace sla check sla.yaml"
OPTIONS: Final = (
    Option("FILE", "a policy file, an OpenSLO file, or an inline policy", many="?", key="policy"),
    Option("--schema", "print the JSON Schema of policy files, for editors"),
    Option("--json", "print one JSON object, on one line"),
)
_INLINE: Final = "policy"  # stands for the file of an inline policy


class _Check(NamedTuple):
    where: str
    objectives: tuple[Objective, ...]
    alerts: AlertOptions
    findings: list[Finding]
    more: int  # findings beyond those


def run(args: argparse.Namespace) -> int:
    """Print what the policy says on stdout, what is wrong on stderr; return the exit code."""
    if args.schema:
        print(json.dumps(policy_keys.schema(), indent=2))
        return ANSWERED
    if args.policy is None:
        raise UsageError("no policy is given\nname a file, as in: stagetrace sla check sla.yaml")
    found = _check(args.policy.strip())
    is_wrong = any(one.level == ERROR for one in found.findings)
    if args.json:
        keys = {
            "ok": not is_wrong,
            "file": found.where,
            "objectives": [{"name": one.name, "says": list(policy_text.lines(one))} for one in found.objectives],
            "alerts": policy_text.alerts(found.alerts) if found.objectives else None,
            "findings": [
                {**one.at._asdict(), "level": one.level, "what": one.what, "fix": one.fix} for one in found.findings
            ],
        }
        reason = f"{found.more} more findings are left off" if found.more else None
        print(json.dumps({**completeness(reason), **keys}))
    else:
        for one in found.objectives:
            first, *others = policy_text.lines(one)
            print(printable(f"{one.name}: {first}"), *(printable(f"    {line}") for line in others), sep="\n")
        if any(not one.excludes for one in found.objectives):
            print(policy_text.alerts(found.alerts))
        for finding in found.findings:
            print(printable(finding.text(found.where)), file=sys.stderr)
        if found.more:
            print(f"{found.where}: and {found.more} more", file=sys.stderr)
    return NO_ANSWER if is_wrong else ANSWERED


def _check(text: str) -> _Check:
    """Return what a policy says and what is wrong. Raise PolicyError where there is no text to point at."""
    path = file_named(text)
    if path is None:
        policy = Policy.parse(text)
        rules, alerts = policy.objectives, policy.alerts
        return _Check(_INLINE, rules, alerts, *lint(rules, alerts, inline_places(text)))
    data = content(path)
    try:
        found, notes = _document(decoded(data, path), path)
    except PolicyFileError as error:
        problems = [Finding(one.at, ERROR, one.what, one.fix) for one in error.problems]
        return _Check(path, (), AlertOptions(), problems, error.more)
    findings, more = lint(*found)
    noted = [Finding(one.at, WARNING, one.what, one.fix) for one in notes]
    return _Check(path, found.objectives, found.alerts, [*findings, *noted], more)


def _document(text: str, path: str) -> tuple[Document, Iterable[Problem]]:
    """Return what a file says, and what of an OpenSLO file a policy does not express."""
    return openslo_read.documents(text, path) if is_openslo(text) else (document(text, path), ())
