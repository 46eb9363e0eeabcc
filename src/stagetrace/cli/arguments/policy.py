"""The option `--policy` of the commands that need objectives."""

from __future__ import annotations

import argparse

from stagetrace import config
from stagetrace.cli.base import UsageError
from stagetrace.sla.policy import Policy


def add_policy(parser: argparse.ArgumentParser) -> None:
    """Add the option."""
    about = "the objectives: an inline policy, or a policy file such as sla.yaml; default: $STAGETRACE_SLA"
    parser.add_argument("--policy", metavar="TEXT|FILE", help=about)


def policy_of(args: argparse.Namespace) -> Policy:
    """Return the policy that a command line names. Raise UsageError without one, PolicyError for an unreadable one."""
    text: str = args.policy if args.policy is not None else config.SLA.read()
    if not text.strip():
        raise UsageError(
            'no objectives are given\nadd --policy sla.yaml or --policy "* within 1s", or set STAGETRACE_SLA'
        )
    return Policy.load(text)
