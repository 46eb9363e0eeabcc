"""The contract of an output format: a file of this folder with a `FORMAT`, and its line in `formats.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from stagetrace.errors import StagetraceError

if TYPE_CHECKING:
    from collections.abc import Callable

    from stagetrace.sla.policy import Policy

REQUESTS: Final = "sla_requests_total"  # `sla.requests` as the Collector's exporter for Prometheus names it


class RulesError(StagetraceError):
    """Say what of a policy a format cannot express, and what to write instead."""


@dataclass(frozen=True, slots=True)
class RulesOptions:
    """What the output depends on besides the policy.

    `scale`: a factor of all windows and intervals; tests take one far below 1, and wait seconds for hours. `requests`:
    the counter of judged requests. `service`: the objectives are those of this service alone; empty for all whose
    requests have them. A condition of the policy on `service.name` does the same for its objective.
    """

    scale: float = 1.0
    requests: str = REQUESTS
    service: str = ""


class Format(NamedTuple):
    """One form of output. `render` returns the whole text of the file.

    It is pure: the same policy and options give the same text, on any machine at any time. It raises RulesError for
    what it cannot express and must not omit; what may be omitted is named in a comment of the output.
    """

    name: str
    summary: str  # one line for the help
    suffix: str  # of the file: `.yaml`
    render: Callable[[Policy, RulesOptions], str]
