"""The policy in one line, rules separated by `;`: GRAMMAR, or EXCLUDING for what is not to be judged."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache

from stagetrace.bounded_cache import BoundedCache
from stagetrace.errors import PolicyError

GRAMMAR = (
    "[METHOD] ROUTE within DURATION [first_chunk DURATION] [per_chunk DURATION] [first_token DURATION]"
    " [per_token DURATION] [disconnect excluded|breach] [for PERCENT] [over WINDOW]"
)
EXCLUDING = "[METHOD] ROUTE excluded"
EXAMPLE = "POST /predict within 50ms for 99.9% over 28d; * within 1s"
HOW = f"Write {GRAMMAR}, or {EXCLUDING}; for example: {EXAMPLE}"
DEFAULT_TARGET = 0.99
DEFAULT_WINDOW_S = 28 * 86_400
MAX_REMEMBERED = 16_384  # routes that are no templates, or made up by clients, are without end
NEVER_NS = 2**63 - 1  # longer than any request

_DURATION_NS = {"us": 1_000, "ms": 1_000_000, "s": 1_000_000_000, "m": 60_000_000_000}
_WINDOW_S = {"m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_UNITS = (("d", 86_400), ("h", 3_600), ("m", 60))  # in which windows are shown
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)([a-zµ]*)")
_BARE_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_DEFAULT_UNITS = {"duration": "ms", "window": "d"}
# What people write instead, without a plural's s.
_MEANT = {
    **dict.fromkeys(("microsecond", "usec", "µ", "micro"), "us"),
    **dict.fromkeys(("millisecond", "msec", "milli", "mil"), "ms"),
    **dict.fromkeys(("second", "sec"), "s"),
    **dict.fromkeys(("minute", "min"), "m"),
    **dict.fromkeys(("hour", "hr"), "h"),
    "day": "d",
    **dict.fromkeys(("week", "wk"), "w"),
}
_BOUNDS = ("within", "first_chunk", "per_chunk", "first_token", "per_token")
_IN_NAME = (*_BOUNDS, "disconnect")  # what of a rule is about one request
_KEYWORDS = (*_IN_NAME, "for", "over")
_KEYWORDS_MEANT = {"ttft": "first_token", "tpot": "per_token", "itl": "per_token"}

WEBSOCKET = "WEBSOCKET"  # stands for the method of a websocket, which has none
EXCLUDED = "excluded"
BREACH = "breach"


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

    @property
    def has_default_target(self) -> bool:
        """Return whether share and window are those of a rule that does not name them."""
        return (self.target, self.window_s) == (DEFAULT_TARGET, DEFAULT_WINDOW_S)

    @property
    def target_text(self) -> str:
        """Return share and window as a rule has them: `99.9% over 28d`."""
        sizes = ((unit, size) for unit, size in _UNITS if self.window_s % size == 0)
        unit, size = next(sizes, ("m", _WINDOW_S["m"]))
        return f"{100 * self.target:.12g}% over {self.window_s / size:.12g}{unit}"

    def matches(self, method: str | None, route: str) -> bool:
        """Return whether the rule is about this request; `route` is empty where the server found none.

        How long a websocket is open is no latency, so a rule must name it: by the method, or by its route.
        """
        if self.method is not None:
            if self.method != method:
                return False
        elif method == WEBSOCKET and "*" in self.route:
            return False
        return _glob(self.route).fullmatch(route) is not None


@lru_cache(maxsize=256)
def _glob(pattern: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in pattern.split("*")), re.DOTALL)


@dataclass(frozen=True, slots=True)
class Policy:
    """Objectives in order; the first that matches a request judges it. `problems`: the rules that cannot be read."""

    objectives: tuple[Objective, ...]
    problems: tuple[str, ...] = ()
    # `objectives`, and the rules that cannot be read, as far as it is known which requests they match.
    _rules: tuple[Objective, ...] = field(default=(), repr=False, compare=False)
    _found: BoundedCache[tuple[str | None, str], Objective | None] = field(
        default_factory=lambda: BoundedCache(MAX_REMEMBERED), init=False, repr=False, compare=False
    )

    @classmethod
    def parse(cls, text: str) -> Policy:
        """Read an inline policy of which every rule can be read.

        Raises:
            PolicyError: with the first rule that cannot, what is wrong in it, and how to write it.
        """
        rules = tuple(map(_rule, _split(text)))
        return cls(rules, _rules=rules)

    @classmethod
    def readable(cls, text: str) -> Policy:
        """Read of an inline policy what can be read.

        Raises:
            PolicyError: where no rule can, as `parse` does.
        """
        read = [_rule_or_error(rule) for rule in _split(text)]
        objectives = tuple(one for one in read if isinstance(one, Objective))
        errors = [one for one in read if isinstance(one, PolicyError)]
        if not objectives:
            raise errors[0]
        rules = (one if isinstance(one, Objective) else _unreadable(one) for one in read)
        return cls(objectives, tuple(one.problem for one in errors), tuple(one for one in rules if one is not None))

    def objective(self, method: str | None, route: str) -> Objective | None:
        """Return the first objective that matches, or None; also where it is a rule that cannot be read."""
        key = (method, route)
        try:
            return self._found[key]
        except KeyError:
            pass
        found = next((rule for rule in self._rules or self.objectives if rule.matches(method, route)), None)
        if found is not None and found.problem is not None:
            found = None
        self._found[key] = found
        return found


def _split(text: str) -> list[str]:
    """Return the rules of a policy. Raise PolicyError if there is none."""
    rules = [rule for part in text.split(";") if (rule := part.strip())]
    if not rules:
        raise _error(text, "it holds no rule")
    return rules


def _rule_or_error(rule: str) -> Objective | PolicyError:
    try:
        return _rule(rule)
    except PolicyError as error:
        return error


def _unreadable(error: PolicyError) -> Objective | None:
    """Return a placeholder for a rule that cannot be read; None if it is unknown which requests it matches."""
    words = error.rule.split()
    ends = (place for place, word in enumerate(words) if word.lower() in (*_KEYWORDS, EXCLUDED))
    try:
        method, route = _target(error.rule, words[: next(ends, len(words))])
    except PolicyError:
        return None
    return Objective(error.rule, method, route, NEVER_NS, problem=error.problem)


def _error(rule: str, problem: str) -> PolicyError:
    problem = f"cannot read the SLA rule {rule!r}: {problem}"
    return PolicyError(f"{problem}.\n{HOW}", rule, problem)


def _rule(rule: str) -> Objective:
    words = rule.split()
    lower = [word.lower() for word in words]
    if lower[-1] == EXCLUDED and "within" not in lower:
        method, route = _target(rule, words[:-1])
        return Objective(f"{_named(method, route)} {EXCLUDED}", method, route, NEVER_NS, excludes=True)
    if "within" not in lower:
        looks_like_file = len(words) == 1 and words[0].endswith((".yaml", ".yml", ".txt", ".toml"))
        hint = "; policy files are not read by this version, put the rules into STAGETRACE_SLA itself"
        raise _error(rule, "the word `within` is missing" + (hint if looks_like_file else ""))
    split = lower.index("within")
    clauses = _clauses(rule, words[split:])
    durations = {name: _duration_ns(rule, clauses[name]) for name in _BOUNDS if name in clauses}
    method, route = _target(rule, words[:split])
    disconnect = clauses.get("disconnect", "").lower() or None
    if disconnect not in (None, EXCLUDED, BREACH):
        raise _error(rule, f"after `disconnect` stands {EXCLUDED} or {BREACH}, not {disconnect!r}")
    window_s = _quantity(rule, "window", clauses["over"], _WINDOW_S) if "over" in clauses else DEFAULT_WINDOW_S
    if window_s <= 0:
        raise _error(rule, "the window must be more than zero")
    return Objective(
        name=" ".join([_named(method, route), *(f"{name} {clauses[name]}" for name in _IN_NAME if name in clauses)]),
        method=method,
        route=route,
        within_ns=durations["within"],
        first_chunk_ns=durations.get("first_chunk"),
        per_chunk_ns=durations.get("per_chunk"),
        first_token_ns=durations.get("first_token"),
        per_token_ns=durations.get("per_token"),
        disconnect=disconnect,
        target=_share(rule, clauses["for"]) if "for" in clauses else DEFAULT_TARGET,
        window_s=window_s,
    )


def _named(method: str | None, route: str) -> str:
    return f"{method} {route}" if method else route


def _duration_ns(rule: str, text: str) -> int:
    duration_ns = _quantity(rule, "duration", text, _DURATION_NS)
    if duration_ns < 1:
        raise _error(rule, "the duration must be more than zero")
    return round(duration_ns)


def _target(rule: str, words: list[str]) -> tuple[str | None, str]:
    if len(words) == 1:
        return None, words[0]
    if len(words) == 2 and words[0].isalpha():  # noqa: PLR2004
        return words[0].upper(), words[1]
    if not words:
        raise _error(rule, "it names no route: write it in front, or `*` for every one")
    raise _error(rule, "before that stand one route, or a method and a route")


def _clauses(rule: str, words: list[str]) -> dict[str, str]:
    clauses: dict[str, str] = {}
    words = _joined(words)
    for keyword, value in zip(words[::2], [*words[1::2], ""], strict=False):
        name = keyword.lower()
        if name not in _KEYWORDS:
            write = f": write {_KEYWORDS_MEANT[name]}" if name in _KEYWORDS_MEANT else ""
            raise _error(rule, f"{keyword!r} is not one of {', '.join(_KEYWORDS)}{write}")
        if name in clauses:
            raise _error(rule, f"`{name}` stands twice")
        if not value:
            raise _error(rule, f"nothing follows `{name}`")
        clauses[name] = value
    return clauses


def _joined(words: list[str]) -> list[str]:
    """Return the words with each number and the unit that stands apart from it as one: `50 ms`, `99.9 %`."""
    joined: list[str] = []
    for word in words:
        if joined and _BARE_NUMBER.fullmatch(joined[-1]) and word.lower() not in _KEYWORDS:
            joined[-1] += word
        else:
            joined.append(word)
    return joined


def _quantity(rule: str, what: str, text: str, units: dict[str, int]) -> float:
    match = _NUMBER.fullmatch(text.lower())
    if match is None:
        raise _error(rule, f"the {what} {text!r} is not a number with a unit ({', '.join(units)})")
    number, unit = match.groups()
    if not unit:
        raise _error(
            rule, f"the {what} {text!r} has no unit ({', '.join(units)}): write {number}{_DEFAULT_UNITS[what]}"
        )
    if unit not in units:
        meant = _MEANT.get(unit.rstrip("s"))
        write = f": write {number}{meant}" if meant in units else ""
        raise _error(rule, f"the {what} {text!r} has the unit {unit!r}, which is none of {', '.join(units)}{write}")
    found = float(number) * units[unit]
    if found == float("inf"):
        raise _error(rule, f"the {what} is too large")
    return found


def _share(rule: str, text: str) -> float:
    match = _NUMBER.fullmatch(text.removesuffix("%"))
    if not text.endswith("%") or match is None or match.group(2) or not 0 < float(match.group(1)) <= 100:  # noqa: PLR2004
        raise _error(rule, f"{text!r} is not a percentage above 0% and up to 100%")
    return float(Decimal(match.group(1)) / 100)
