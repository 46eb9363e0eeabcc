"""The head samplers that OTEL_TRACES_SAMPLER names, as what they decide by: the parent, else a share of all traces."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

TRACE_ID_LIMIT: Final = (1 << 64) - 1  # the bits of a trace id that a share goes by
ROOTS: Final = {"always_on": 1.0, "always_off": 0.0}
RATIO: Final = "traceidratio"
PARENT: Final = "parentbased_"
NAMES: Final = (*ROOTS, RATIO, *(PARENT + name for name in (*ROOTS, RATIO)))
DEFAULT: Final = "parentbased_always_on"
_OF_PARENT: Final = (
    "ParentBased{{root:{},remoteParentSampled:AlwaysOnSampler,remoteParentNotSampled:AlwaysOffSampler,"
    "localParentSampled:AlwaysOnSampler,localParentNotSampled:AlwaysOffSampler}}"
)


class Sampler(NamedTuple):
    """A sampler: the share of traces that it keeps, and whether it does as the parent does where there is one."""

    rate: float = 1.0
    by_parent: bool = True
    is_ratio: bool = False  # a share by the trace id, even if that is all

    @property
    def bound(self) -> int:
        """Below which of a trace id's last 64 bits a trace is kept."""
        return round(self.rate * (TRACE_ID_LIMIT + 1))

    def get_description(self) -> str:
        """Return it in OpenTelemetry's words."""
        root = (
            f"TraceIdRatioBased{{{self.rate}}}"
            if self.is_ratio
            else "AlwaysOnSampler"
            if self.rate
            else "AlwaysOffSampler"
        )
        return _OF_PARENT.format(root) if self.by_parent else root


def named(name: str, argument: str) -> Sampler:
    """Return the sampler of a name, one of NAMES, and an argument.

    Raises:
        ValueError: if the argument is no share from 0 to 1.
    """
    by_parent = name.startswith(PARENT)
    root = name.removeprefix(PARENT)
    if root != RATIO:
        return Sampler(ROOTS[root], by_parent)
    rate = float(argument) if argument else 1.0
    if not 0 <= rate <= 1:
        raise ValueError(f"{argument} is not between 0 and 1")
    return Sampler(rate, by_parent, is_ratio=True)


def described(text: str) -> Sampler | None:
    """Return the sampler that OpenTelemetry's own describe in this way; None where it is another one."""
    found = re.search(r"TraceIdRatioBased\{([\d.e-]+)\}", text)
    for by_parent in (True, False):
        for one in (Sampler(1.0, by_parent), Sampler(0.0, by_parent)):
            if one.get_description() == text:
                return one
        if found is not None:
            one = Sampler(float(found[1]), by_parent, is_ratio=True)
            if one.get_description() == text:
                return one
    return None
