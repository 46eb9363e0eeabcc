"""The option `--policy` of the commands that need objectives."""

from __future__ import annotations

import argparse
import sys

from stagetrace import config
from stagetrace.cli.base import UsageError
from stagetrace.errors import PolicyError
from stagetrace.rules import openslo_read
from stagetrace.sla.policy import Policy, file_named
from stagetrace.sla.policy_document import content, decoded, is_openslo


def add_policy(parser: argparse.ArgumentParser) -> None:
    """Add the option."""
    about = "the objectives: an inline policy, or a file (sla.yaml, or OpenSLO v1); default: $STAGETRACE_SLA"
    parser.add_argument("--policy", metavar="TEXT|FILE", help=about)


def policy_of(args: argparse.Namespace) -> Policy:
    """Return the policy that a command line names. Raise UsageError without one, PolicyError for an unreadable one."""
    if isinstance(args.policy, Policy):  # that of `up`, whose page asks
        return args.policy
    text: str = args.policy if args.policy is not None else config.SLA.read()
    if not text.strip():
        raise UsageError(
            'no objectives are given\nadd --policy sla.yaml or --policy "* within 1s", or set STAGETRACE_SLA'
        )
    path = file_named(text)
    return Policy.parse(text) if path is None else _of_file(path)


def _of_file(path: str) -> Policy:
    text = decoded(content(path), path)
    if not is_openslo(text):
        return Policy.read(text, path)
    found = openslo_read.read(text, path)
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
    return found.policy


def policy_if_any(args: argparse.Namespace) -> tuple[Policy | None, str | None]:
    """Return the policy that a command line or STAGETRACE_SLA names, or None without one.

    And what is wrong where that of STAGETRACE_SLA cannot be read: a command that does without it goes on. Raise
    PolicyError for an unreadable one of the command line.
    """
    if args.policy is None and not config.SLA.read().strip():
        return None, None
    try:
        return policy_of(args), None
    except PolicyError as error:
        if args.policy is not None:
            raise
        return None, f"{config.SLA.name} is not used: {str(error).splitlines()[0]}"
