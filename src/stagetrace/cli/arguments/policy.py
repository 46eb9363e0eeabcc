"""The option `--policy` of the commands that need objectives."""

from __future__ import annotations

import argparse
import sys

from stagetrace import settings
from stagetrace.cli.arguments.options import local_folder
from stagetrace.cli.registry import UsageError
from stagetrace.errors import PolicyError
from stagetrace.policy.policy import Policy, file_named
from stagetrace.policy.policy_file import content, decoded, is_openslo
from stagetrace.rules import openslo_read


def add_policy(parser: argparse.ArgumentParser) -> None:
    """Add the option."""
    about = "the objectives: an inline policy, or a file (sla.yaml, or OpenSLO v1); default: $STAGETRACE_SLA"
    parser.add_argument("--policy", metavar="TEXT|FILE", help=about)


def policy_of(args: argparse.Namespace) -> Policy:
    """Return the policy that a command line names. Raise UsageError without one, PolicyError for an unreadable one."""
    if isinstance(args.policy, Policy):  # that of `up`, whose page asks
        return args.policy
    text: str = args.policy if args.policy is not None else settings.SLA.read()
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
    """Return the policy of a command line, of the `up` that serves the store, or of STAGETRACE_SLA; None without one.

    And what is wrong where one that the command line does not name cannot be read: a command that does without it goes
    on. Raise PolicyError for an unreadable one of the command line.
    """
    if args.policy is None:
        evaluated, unread = _in_force(args)
        if evaluated or unread or not settings.SLA.read().strip():
            return evaluated, unread
    try:
        return policy_of(args), None
    except PolicyError as error:
        if args.policy is not None:
            raise
        return None, f"{settings.SLA.name} is not used: {str(error).splitlines()[0]}"


def _in_force(args: argparse.Namespace) -> tuple[Policy | None, str | None]:
    """Return the policy whose alerts `up` evaluates over the local store that is meant, and what is wrong with it."""
    try:
        folder = local_folder(args)
    except UsageError:  # a store of another kind
        return None, None
    from stagetrace.backend.alerts import saved

    try:
        return saved.read_policy(folder), None
    except PolicyError as error:
        return None, f"the policy that `up` evaluates is not used: {str(error).splitlines()[0]}"
