"""One objective: which requests it is about, what it allows them, and which share of them is to keep to that."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

from stagetrace import semconv

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from stagetrace.policy.alert_options import AlertOptions

DEFAULT_TARGET: Final = 0.99
DEFAULT_WINDOW_S: Final = 28 * 86_400
NEVER_NS: Final = 2**63 - 1  # longer than any request

WEBSOCKET: Final = "WEBSOCKET"  # stands for the method of a websocket, which has none

BOUNDS: Final = ("within", "first_chunk", "per_chunk", "first_token", "per_token")  # keys of a policy; `..._ns` here
IN_NAME: Final = (*BOUNDS, "disconnect")  # what an objective that is given no name has in it

# Verdicts, besides `good`.
EXCLUDED: Final = "excluded"
BREACH: Final = "breach"

# What becomes of a request whose response is an error of the server: EXCLUDED, BAD (a breach), or judged as others.
BAD: Final = "bad"
IGNORED: Final = "ignored"
ERRORS: Final = (BAD, EXCLUDED, IGNORED)

# Keys of conditions and segments that have a short name in a policy file.
SERVICE_KEY: Final = "service.name"
MODEL_KEY: Final = semconv.ML_MODEL_NAME
HEADER: Final = "header:"  # in front of the lower-case name of a header, or of metadata of an RPC
BAGGAGE: Final = "baggage:"  # in front of the name of an entry of W3C baggage

MOST_CHARACTERS: Final = 256  # of a value; the rest is cut
# Attributes in which OpenTelemetry's instrumentations record headers, and metadata of an RPC, if asked to.
RECORDED_HEADERS: Final = ("http.request.header.", "rpc.request.metadata.", "rpc.grpc.request.metadata.")

# Names of the limit on segments of an objective.
DEFAULT_MAX_SEGMENTS: Final = 50
OTHER_SEGMENT: Final = "other"  # what comes beyond that limit
NO_SEGMENT: Final = "(none)"  # stands for a value that a request does not have

TIGHTEN: Final = "tighten"  # the shorter one of the request's deadline and the objective's bound
REPLACE: Final = "replace"  # the request's deadline, where it has one
# Where a request's deadline may come from; those of the first token bound that instead of the whole request.
GRPC_TIMEOUT: Final = "grpc-timeout"
DEADLINES: Final = (GRPC_TIMEOUT, "x-request-timeout-ms", "x-envoy-expected-rq-timeout-ms", "x-slo-ttft-ms")
OF_FIRST_TOKEN: Final = ("x-slo-ttft-ms",)

CALENDAR: Final[Mapping[str, int]] = {  # longest length in seconds
    "day": 86_400,
    "week": 7 * 86_400,
    "month": 31 * 86_400,
    "quarter": 92 * 86_400,
    "year": 366 * 86_400,
}
_UNITS = (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))  # in which windows are shown


class Condition(NamedTuple):
    """That a request has a value for `key`, which matches `glob`: `*` stands for any text.

    `key` is the name of an attribute of the entry span, or of a header or of baggage behind HEADER or BAGGAGE.
    """

    key: str
    glob: str

    def holds(self, value: str | None) -> bool:
        """Return whether a request with this value fulfils it; one without a value never does."""
        return value is not None and glob(self.glob).fullmatch(value) is not None


class Deadline(NamedTuple):
    """That requests bring their own bound along: in the first of `sources` that they have, and how it counts."""

    sources: tuple[str, ...]  # of DEADLINES
    mode: str = TIGHTEN


class Calendar(NamedTuple):
    """A window that begins with each day, week (on Monday), month, quarter or year of a time zone."""

    unit: str  # of CALENDAR
    timezone: str = "UTC"  # an IANA name

    @property
    def text(self) -> str:
        """Return it as a policy has it: `month@Europe/Berlin`."""
        return f"{self.unit}@{self.timezone}"


@dataclass(frozen=True, slots=True)
class Objective:
    """One rule. What ends with `_ns` is in nanoseconds, `target` a share in (0, 1], `window_s` in seconds.

    `method` is None where any method matches. `route` is a route template, a gRPC full method or a glob, in which `*`
    stands for any text, slashes and nothing included. `first_chunk_ns` and `per_chunk_ns` are bounds of responses in
    several chunks, `first_token_ns` and `per_token_ns` of what generative models produce: `verdict.decide` defines them
    all. `disconnect` is the verdict on a request whose client disconnected before the end of the response: EXCLUDED,
    BREACH, or None for EXCLUDED unless it had missed its objective by then. A rule that `excludes` has no bound, and
    its requests are not judged. For a rule that cannot be read, `problem` is the reason: its requests are not judged,
    since a later rule, which was not meant for them, might find them good.

    What only a policy file can say: `conditions`, all of which have to hold; `calendar`, beside which `window_s` is the
    longest length of the window; `errors`, one of ERRORS; `stages`, budgets of stages in nanoseconds, which name the
    culprit and are no bounds; `segment_by`, keys as conditions have them; `warmup_s`, during which after the start of
    the process requests are excluded; `continues`: what it judges is judged by later objectives too; `base`: the name
    of the objective of which this is an override, and stands in front: of both, one judges a request; `alerts`: its
    own, None for those of the policy.
    """

    name: str
    method: str | None
    route: str
    within_ns: int
    target: float = DEFAULT_TARGET
    window_s: float = DEFAULT_WINDOW_S
    first_chunk_ns: int | None = None
    per_chunk_ns: int | None = None
    first_token_ns: int | None = None
    per_token_ns: int | None = None
    disconnect: str | None = None
    excludes: bool = False
    problem: str | None = None
    conditions: tuple[Condition, ...] = ()
    calendar: Calendar | None = None
    errors: str = IGNORED
    stages: tuple[tuple[str, int], ...] = ()
    segment_by: tuple[str, ...] = ()
    max_segments: int = DEFAULT_MAX_SEGMENTS
    deadline: Deadline | None = None
    warmup_s: float = 0
    continues: bool = False
    base: str | None = None
    description: str = ""
    alerts: AlertOptions | None = None

    def __hash__(self) -> int:
        """Return the hash of the name: as good, and each request asks for it."""
        return hash(self.name)

    @property
    def has_default_target(self) -> bool:
        """Return whether share and window are those of a rule that does not name them."""
        return (self.target, self.window_s, self.calendar) == (DEFAULT_TARGET, DEFAULT_WINDOW_S, None)

    @property
    def target_text(self) -> str:
        """Return share and window as a rule has them: `99.9% over 28d`, `99.9% over month@Europe/Berlin`."""
        share = f"{100 * self.target:.12g}%"
        if self.calendar is not None:
            return f"{share} over {self.calendar.text}"
        sizes = ((unit, size) for unit, size in _UNITS if self.window_s % size == 0)
        unit, size = next(sizes, ("s", 1))
        return f"{share} over {self.window_s / size:.12g}{unit}"

    @property
    def keys(self) -> tuple[str, ...]:
        """Return the keys of whose values it depends whether it is about a request."""
        return tuple(one.key for one in self.conditions)

    def matches(self, method: str | None, route: str) -> bool:
        """Return whether it is about such a request, if all conditions hold; `route` is empty where there is none.

        How long a websocket is open is no latency, so a rule must name it: by the method, or by its route.
        """
        if self.method is not None:
            if self.method != method:
                return False
        elif method == WEBSOCKET and "*" in self.route:
            return False
        if "*" not in self.route:  # without a pattern: thousands of them are compared with a new route
            return self.route == route
        return glob(self.route).fullmatch(route) is not None

    def bounded_by(self, deadlines: Mapping[str, int]) -> Objective:
        """Return the objective for a request that has these deadlines, in nanoseconds by their source."""
        wanted = self.deadline
        if wanted is None:
            return self
        within = self._bound(self.within_ns, deadlines, [one for one in wanted.sources if one not in OF_FIRST_TOKEN])
        first = self._bound(self.first_token_ns, deadlines, [one for one in wanted.sources if one in OF_FIRST_TOKEN])
        if (within, first) == (self.within_ns, self.first_token_ns):
            return self
        return replace(self, within_ns=NEVER_NS if within is None else within, first_token_ns=first)

    def _bound(self, own: int | None, deadlines: Mapping[str, int], sources: Iterable[str]) -> int | None:
        given = next((deadlines[one] for one in sources if one in deadlines), None)
        if given is None:
            return own
        tightens = self.deadline is not None and self.deadline.mode == TIGHTEN
        return min(own, given) if tightens and own is not None else given


def is_route(text: str) -> bool:
    """Return whether a rule's route is one: it has a slash, as templates and gRPC's methods have, or a pattern."""
    return "/" in text or "*" in text


@lru_cache(maxsize=4096)
def glob(pattern: str) -> re.Pattern[str]:
    """Return the pattern in which `*` stands for any text, slashes and nothing included."""
    first, *middle = map(re.escape, pattern.split("*"))
    last = middle.pop() if middle else None
    # Each part at its first place, for good: to try others would find no more, and take long with many parts.
    parts = (rf"(?=(.*?{part}))\{number}" for number, part in enumerate(filter(None, middle), start=1))
    return re.compile("".join([first, *parts, "" if last is None else f".*{last}"]), re.DOTALL)
