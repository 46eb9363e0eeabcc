"""The sentence of `stagetrace compare`: what got slower, and for which requests, before what got faster."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace.analysis.comparison_kinds import INPUT_SIZE, Kinds, SlowerKind
from stagetrace.output.units import milliseconds, percent

if TYPE_CHECKING:
    from stagetrace.analysis.comparison import Comparison, Part, Quantile
    from stagetrace.cli.compare.sides import Side

_WHOLE_PERCENT: Final = 0.1
_TIMES: Final = 1.0  # more than twice as slow is said as a multiple
_CLEARLY: Final = 0.1  # slower by the estimate, which is said though it is not certain


class _Scope(NamedTuple):
    """The requests of one route, or all that were compared."""

    path: str | None
    requests: tuple[float, float]
    whole: Part
    stages: Sequence[Part]
    kinds: Sequence[SlowerKind]

    @property
    def heavy(self) -> SlowerKind | None:
        """Return the kind that the scope's sentence begins with."""
        return next((one for one in self.kinds if one.is_heavy), None)

    @property
    def slower(self) -> list[Quantile]:
        return [one for one in self.whole.quantiles if one.is_sure and shift(one) > 0]

    @property
    def faster(self) -> list[Quantile]:
        return [one for one in self.whole.quantiles if one.is_sure and shift(one) < 0]

    @property
    def lost_ms(self) -> float:
        """Return about how much longer its requests took in all, where that is sure; else 0."""
        # Beyond the q-quantile lies a share of 1 - q, and about as much below it is as late.
        lost = [self.requests[1] * min(1.0, 2 - 2 * one.adjusted.q) * shift(one) for one in self.slower]
        return max([0.0, *lost, *(one.lost_ms for one in self.kinds)])

    @property
    def is_slower(self) -> bool:
        """Return whether it, or a kind of its requests, surely got slower."""
        return bool(self.slower or self.kinds)


def sentence(sides: tuple[Side, Side], found: Comparison, kinds: Kinds) -> str:
    """Return the answer, without its full stop: of several routes that of the one which got worse by most time."""
    fields = [one for one in ("model", "service", "route") if _common(sides, one)]
    common = [f"{one} {_common(sides, one)}" for one in fields]
    a, b = sides[0].name, sides[1].name
    if min(found.stored) == 0:
        empty = [name for name, stored in zip((a, b), found.stored, strict=True) if stored == 0]
        return f"No requests of {' or '.join(empty)}: there is nothing to compare"
    if not any(one.is_compared for one in found.strata):
        return (
            f"{a} and {b} have no requests alike: each side has only requests of routes or input sizes that the other "
            "side lacks"
        )
    scopes = _scopes(found, kinds)
    worst = max(scopes, key=lambda one: (one.lost_ms, sum(one.requests)))
    if worst.path is not None:
        fields, common = [*fields, "route"], [*common, f"route {worst.path}"]
    # A version is one of a model or of a service, not of a route.
    subject = ", ".join(common) + (", " if "route" in fields else " ") if common else ""
    text = _of(worst, subject, a, b, kinds)
    if worst.path is not None:
        text += _others([one for one in scopes if one is not worst])
    elif len(kinds.routes) > 1:
        text += f"; over all {len(kinds.routes)} routes together"
    text += _of_mix(found)
    is_key = "." in text.partition(" ")[0]  # of an attribute: as it is written
    return text if is_key else text[:1].upper() + text[1:]


def _scopes(found: Comparison, kinds: Kinds) -> list[_Scope]:
    if not found.routes:
        requests = tuple(sum(one.requests[side] for one in found.strata) for side in (0, 1))
        return [_Scope(None, (requests[0], requests[1]), found.whole, found.stages, kinds.slower)]
    return [
        _Scope(one.path, one.requests, one.whole, one.stages, [kind for kind in kinds.slower if kind.path == one.path])
        for one in found.routes
    ]


def _of(scope: _Scope, subject: str, a: str, b: str, kinds: Kinds) -> str:
    """Return how the requests of a scope differ: the slower ones first."""
    lacking = [one for one in scope.whole.quantiles if not one.enough_data]
    uncertain = _uncertain(scope)
    if scope.heavy is not None:
        return _of_kind(scope.heavy, f"{subject}{b}", a, kinds, scope) + _lacking(lacking)
    if scope.slower:
        most = scope.slower[-1]
        text = f"{subject}{b} is {faster(most)} at {percentile(most)} than {a}{_mostly(scope, most)}"
        if scope.faster:
            text += f"; it is {faster(scope.faster[-1])} at {percentile(scope.faster[-1])}"
    elif uncertain is not None:
        text = f"{subject}{b} is perhaps slower at {percentile(uncertain)} than {a}: {faster(uncertain)}, not certain"
        best = scope.faster[-1]
        text += f"; it is {faster(best)} at {percentile(best)}{_mostly(scope, best)}"
    elif scope.faster:
        best = scope.faster[-1]
        text = f"{subject}{b} is {faster(best)} at {percentile(best)} than {a}{_mostly(scope, best)}"
    elif lacking:
        text = f"Not enough requests to tell {subject}{b} from {a} at {_listed(lacking)}{_enough(lacking)}"
        return text + _of_a_stage(scope) + _light(scope, kinds)
    else:
        last = scope.whole.quantiles[-1]
        low, high = (f"{_number(abs(end))} % {'slower' if end > 0 else 'faster'}" for end in last.adjusted.interval)
        shown = f"at {percentile(last)} between {low} and {high}"
        text = f"{subject}{b} is as fast as {a}, as far as these requests show: {shown}"
    return text + _light(scope, kinds) + _lacking(lacking)


def _uncertain(scope: _Scope) -> Quantile | None:
    """Return the percentile that is clearly slower, but not surely, where a lower one is surely faster."""
    least = min((one.adjusted.q for one in scope.faster), default=1.0)
    found = [
        one
        for one in scope.whole.quantiles
        if one.adjusted.q > least and not one.is_sure and (one.adjusted.difference or 0) >= _CLEARLY
    ]
    return max(found, key=lambda one: one.adjusted.difference or 0, default=None)


def _of_kind(one: SlowerKind, name: str, a: str, kinds: Kinds, scope: _Scope) -> str:
    """Return that a kind of requests got slower, how many these are, and what became of the others."""
    mostly = f", mostly in {one.stage}" if one.stage else ""
    share = _share(one, kinds, scope)
    text = f"{name}: requests {kind_text(one, kinds)} are {_times(one)} than with {a}{mostly} ({share})"
    low, high = one.rest.shift
    if low <= 0 <= high:
        return f"{text}; the rest is not surely slower or faster"
    return (
        f"{text}; the rest is {_percents(one.rest.difference, one.rest.interval)} {'slower' if low > 0 else 'faster'}"
    )


def _light(scope: _Scope, kinds: Kinds) -> str:
    """Return the kind that got slower most, where the sentence does not begin with it."""
    if not scope.kinds:
        return ""
    one = scope.kinds[0]
    return f"; requests {kind_text(one, kinds)} are {_times(one)} ({_share(one, kinds, scope)})"


def kind_text(one: SlowerKind, kinds: Kinds) -> str:
    """Return which requests are meant: `of 64 to 255 bytes`, `with lang tr`."""
    if one.key != INPUT_SIZE:
        return f"without {one.key}" if one.value is None else f"with {one.key} {one.value}"
    if one.value is None:
        return "of unknown size"
    if kinds.in_bytes:
        return "without a body" if one.value == -1 else f"of {size_text(one.value)} bytes"
    return "with an empty batch" if one.value == -1 else f"with a batch of {size_text(one.value)}"


def size_text(value: Any) -> str:
    """Return a class of sizes: `64 to 255`."""
    return "0" if value < 0 else f"{4**value:,} to {4 ** (value + 1) - 1:,}"


def _share(one: SlowerKind, kinds: Kinds, scope: _Scope) -> str:
    if not kinds.is_part:
        return f"{round(one.requests[1]):,} of {round(one.route_requests[1]):,} requests"
    return f"about {percent(one.requests[1] / one.route_requests[1])} of {round(scope.requests[1]):,} requests"


def _times(one: SlowerKind) -> str:
    found = one.p50.difference or 0.0
    if found >= _TIMES:
        return f"{1 + found:.1f} times slower"
    return f"{_percents(found, one.p50.interval)} slower"


def _others(rest: Sequence[_Scope]) -> str:
    """Return what became of the other routes: those that got slower by name."""
    if not rest:
        return "; no other route has requests on both sides"
    slower = sorted((one for one in rest if one.is_slower), key=lambda one: -one.lost_ms)
    quicker = sum(1 for one in rest if one.faster)
    if len(rest) == 1:
        what = "slower, too" if slower else "surely faster at some percentile" if quicker else "not surely slower"
        return f"; the other route{f' ({rest[0].path})' if slower else ''} is {what}"
    if slower:
        more = ", ..." if len(slower) > 1 else ""
        verb = "is" if len(slower) == 1 else "are"
        return f"; of {len(rest)} other routes {len(slower)} {verb} slower, too ({slower[0].path}{more})"
    gained = f", {quicker} surely faster at some percentile" if quicker else ""
    return f"; of {len(rest)} other routes none is surely slower{gained}"


def _of_mix(found: Comparison) -> str:
    mixed = [one for one in found.whole.quantiles if one.is_of_mix]
    if not mixed:
        return ""
    seems = f"{faster(mixed[-1], raw=True)} at {percentile(mixed[-1])}"
    return f"; without weighting it would look {seems}, because both sides had different mixes of requests"


def _common(sides: tuple[Side, Side], field: str) -> str | None:
    first, second = (getattr(one.wanted, field) for one in sides)
    return first if first and first == second else None


def _mostly(scope: _Scope, at: Quantile) -> str:
    """Return the stage that has changed most, surely, in the same direction."""
    q, is_slower = at.adjusted.q, at.adjusted.shift[0] > 0
    changed = [
        (abs(shift(one)), part.stage)
        for part in scope.stages
        for one in part.quantiles
        if one.adjusted.q == q and one.is_sure and (one.adjusted.shift[0] > 0) == is_slower
    ]
    return f", mostly in {max(changed)[1]}" if changed else ""


def _of_a_stage(scope: _Scope) -> str:
    """Return how the stage differs that surely does by the most time, where the whole request does not."""
    sure = [(abs(shift(one)), part.stage, one) for part in scope.stages for one in part.quantiles if one.is_sure]
    if not sure:
        return ""
    _, stage, one = max(sure, key=lambda each: each[0])
    return f"; but {stage} is {faster(one)} at {percentile(one)}"


def shift(one: Quantile, *, raw: bool = False) -> float:
    """Return how much longer b takes at a percentile, ms."""
    found = one.raw if raw else one.adjusted
    return (found.b or 0) - (found.a or 0)


def percentile(one: Quantile) -> str:
    """Return `p99`."""
    return f"p{100 * one.adjusted.q:.10g}"


def _listed(some: Sequence[Quantile]) -> str:
    return " and ".join(filter(None, (", ".join(map(percentile, some[:-1])), percentile(some[-1]))))


def _lacking(some: Sequence[Quantile]) -> str:
    return f"; not enough requests for {_listed(some)}{_enough(some)}" if some else ""


def _enough(some: Iterable[Quantile]) -> str:
    return f" (each side needs about {max(one.needed or 0 for one in some):,})"


def faster(one: Quantile, *, raw: bool = False) -> str:
    """Return a difference in words: `41 % [35, 47] slower`."""
    found = one.raw if raw else one.adjusted
    word = "slower" if shift(one, raw=raw) > 0 else "faster"
    if found.difference is None or not all(map(isfinite, found.interval)):
        return f"{milliseconds(abs(shift(one, raw=raw)))} {word}"
    return f"{_percents(found.difference, found.interval)} {word}"


def _percents(difference: float | None, interval: tuple[float, float]) -> str:
    """Return `41 % [35, 47]`, the interval in the direction of the difference."""
    sign = -1 if (difference or 0) < 0 else 1
    low, high = sorted(sign * end for end in interval)
    return f"{_number(abs(difference or 0))} % [{_number(low)}, {_number(high)}]"


def _number(share: float) -> str:
    return f"{100 * share:.{0 if abs(share) >= _WHOLE_PERCENT else 1}f}"
