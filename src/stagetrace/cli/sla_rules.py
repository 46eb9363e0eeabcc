"""`stagetrace sla rules`: what follows from a policy for Prometheus and other programs."""

from __future__ import annotations

import argparse
import math
import re
import sys
from pathlib import Path
from typing import Final

from stagetrace.cli.arguments import POLICY, policy_of
from stagetrace.cli.registry import ANSWERED, Option, UsageError
from stagetrace.rules.base import REQUESTS, RulesOptions
from stagetrace.rules.formats import FORMATS

DESCRIPTION: Final = "Print what follows from a policy for another program:\n\n" + "\n".join(
    f"  {one.name:<16} {one.summary}" for one in FORMATS.values()
)
_METRIC: Final = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
EXAMPLE: Final = "stagetrace sla rules --policy sla.yaml --format prometheus --output rules.yaml"

OPTIONS: Final = (
    POLICY,
    Option("--format", "what to print (above); default: prometheus", default="prometheus", choices=FORMATS),
    Option("--output FILE", "write to FILE in place of stdout", Path),
    Option(
        "--service NAME",
        "the objectives are those of this service alone; default: of each service whose requests have them",
        default="",
    ),
    Option(
        "--requests-metric NAME",
        f"the counter of judged requests, as Prometheus has it; default: {REQUESTS}",
        default=REQUESTS,
    ),
    Option(
        "--scale FACTOR",
        "multiply all windows by FACTOR, for a trial in minutes (0.001 makes 1h 3.6s); default: 1",
        float,
        1.0,
    ),
)


def run(args: argparse.Namespace) -> int:
    """Write the text and return the exit code."""
    if not (math.isfinite(args.scale) and args.scale > 0):
        raise UsageError(f"--scale is {args.scale:g}, and has to be more than 0\nwrite 1, or leave it out")
    if not _METRIC.fullmatch(args.requests_metric):
        raise UsageError(
            f"--requests-metric is {args.requests_metric!r}, which is no name of a metric in Prometheus\n"
            f"write letters, digits, _ and :, as in {REQUESTS}"
        )
    options = RulesOptions(scale=args.scale, requests=args.requests_metric, service=args.service)
    text = FORMATS[args.format].render(policy_of(args), options)
    if args.output is None:
        sys.stdout.write(text)
        return ANSWERED
    try:
        args.output.write_text(text, "utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {args.output}: {error.strerror}\nname a file in a folder that exists") from None
    return ANSWERED
