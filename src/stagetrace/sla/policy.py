"""The promise in one line, rules separated by `;`: GRAMMAR, or EXCLUDING for what is not to be judged."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache

from stagetrace.errors import PolicyError

GRAMMAR = (
    "[METHOD] ROUTE within DURATION [first_chunk DURATION] [per_chunk DURATION] [disconnect excluded|breach]"
    " [for PERCENT] [over WINDOW]"
)
EXCLUDING = "[METHOD] ROUTE excluded"
EXAMPLE = "POST /predict within 50ms for 99.9% over 28d; * within 1s"
DEFAULT_TARGET = 0.99
DEFAULT_WINDOW_S = 28 * 86_400
MAX_REMEMBERED = 16_384
NEVER_NS = 2**63 - 1  # longer than any request

_DURATION_NS = {"us": 1_000, "ms": 1_000_000, "s": 1_000_000_000, "m": 60_000_000_000}
_WINDOW_S = {"m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)([a-z]*)")
_KEYWORDS = ("within", "first_chunk", "per_chunk", "disconnect", "for", "over")
_IN_NAME = _KEYWORDS[:4]  # what of a rule is about one request

WEBSOCKET = "WEBSOCKET"  # stands for the method of a websocket, which has none
EXCLUDED = "excluded"
BREACH = "breach"


@dataclass(frozen=True, slots=True)
class Objective:
    """One rule. What ends with `_ns` is in nanoseconds, `target` a share in (0, 1], `window_s` in seconds.

    `method` is None where any method matches. `route` is a route template, a gRPC full method or a glob, in which
    `*` stands for any text, slashes and nothing included. `first_chunk_ns` and `per_chunk_ns` are about answers that
    are sent in several pieces. `disconnect` is the verdict on a request whose client did not wait for the end of the
    answer: EXCLUDED, BREACH, or None for EXCLUDED unless it had broken its promise by then. What `excludes` is not
    judged at all, and has no bound.
    """

    name: str
    method: str | None
    route: str
    within_ns: int
    target: float = DEFAULT_TARGET
    window_s: float = DEFAULT_WINDOW_S
    first_chunk_ns: int | None = None
    per_chunk_ns: int | None = None
    disconnect: str | None = None
    excludes: bool = False

    def matches(self, method: str | None, route: str) -> bool:
        """Return whether the rule is about this request; `route` is empty where the server found none.

        How long a websocket is open says nothing about latency, so a rule must name it: by the method, or by its route.
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
    """Objectives in order; the first that matches a request judges it."""

    objectives: tuple[Objective, ...]
    _found: dict[tuple[str | None, str], Objective | None] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @classmethod
    def parse(cls, text: str) -> Policy:
        """Read an inline policy.

        Raises:
            PolicyError: with the rule, what is wrong in it, and how to write it.
        """
        rules = [rule for part in text.split(";") if (rule := part.strip())]
        if not rules:
            raise PolicyError(_message(text, "it holds no rule"))
        return cls(tuple(_rule(rule) for rule in rules))

    def objective(self, method: str | None, route: str) -> Objective | None:
        """Return the first objective that matches, or None."""
        key = (method, route)
        try:
            return self._found[key]
        except KeyError:
            pass
        found = next((objective for objective in self.objectives if objective.matches(method, route)), None)
        if len(self._found) >= MAX_REMEMBERED:  # routes that are no templates, or made up by the clients
            self._found.clear()
        self._found[key] = found
        return found


def _message(rule: str, problem: str) -> str:
    return f"cannot read the SLA rule {rule!r}: {problem}.\nWrite {GRAMMAR}, or {EXCLUDING}; for example: {EXAMPLE}"


def _rule(rule: str) -> Objective:
    words = rule.split()
    lower = [word.lower() for word in words]
    if lower[-1] == EXCLUDED and "within" not in lower:
        method, route = _target(rule, words[:-1])
        return Objective(f"{_named(method, route)} {EXCLUDED}", method, route, NEVER_NS, excludes=True)
    if "within" not in lower:
        looks_like_file = len(words) == 1 and words[0].endswith((".yaml", ".yml", ".txt", ".toml"))
        hint = "; policy files are not read by this version, put the rules into STAGETRACE_SLA itself"
        raise PolicyError(_message(rule, "the word `within` is missing" + (hint if looks_like_file else "")))
    split = lower.index("within")
    method, route = _target(rule, words[:split])
    clauses = _clauses(rule, words[split:])
    durations = {name: _duration_ns(rule, clauses[name]) for name in _KEYWORDS[:3] if name in clauses}
    disconnect = clauses.get("disconnect", "").lower() or None
    if disconnect not in (None, EXCLUDED, BREACH):
        raise PolicyError(_message(rule, f"after `disconnect` stands {EXCLUDED} or {BREACH}, not {disconnect!r}"))
    window_s = _quantity(rule, "window", clauses["over"], _WINDOW_S) if "over" in clauses else DEFAULT_WINDOW_S
    if window_s <= 0:
        raise PolicyError(_message(rule, "the window must be more than zero"))
    return Objective(
        name=" ".join([_named(method, route), *(f"{name} {clauses[name]}" for name in _IN_NAME if name in clauses)]),
        method=method,
        route=route,
        within_ns=durations["within"],
        first_chunk_ns=durations.get("first_chunk"),
        per_chunk_ns=durations.get("per_chunk"),
        disconnect=disconnect,
        target=_share(rule, clauses["for"]) if "for" in clauses else DEFAULT_TARGET,
        window_s=window_s,
    )


def _named(method: str | None, route: str) -> str:
    return f"{method} {route}" if method else route


def _duration_ns(rule: str, text: str) -> int:
    duration_ns = _quantity(rule, "duration", text, _DURATION_NS)
    if duration_ns < 1:
        raise PolicyError(_message(rule, "the duration must be more than zero"))
    return round(duration_ns)


def _target(rule: str, words: list[str]) -> tuple[str | None, str]:
    if len(words) == 1:
        return None, words[0]
    if len(words) == 2 and words[0].isalpha():  # noqa: PLR2004
        return words[0].upper(), words[1]
    raise PolicyError(_message(rule, "before that stand one route, or a method and a route"))


def _clauses(rule: str, words: list[str]) -> dict[str, str]:
    clauses: dict[str, str] = {}
    for keyword, value in zip(words[::2], [*words[1::2], ""], strict=False):
        name = keyword.lower()
        if name not in _KEYWORDS:
            raise PolicyError(_message(rule, f"{keyword!r} is not one of {', '.join(_KEYWORDS)}"))
        if name in clauses:
            raise PolicyError(_message(rule, f"`{name}` stands twice"))
        if not value:
            raise PolicyError(_message(rule, f"nothing follows `{name}`"))
        clauses[name] = value
    return clauses


def _quantity(rule: str, what: str, text: str, units: dict[str, int]) -> float:
    match = _NUMBER.fullmatch(text.lower())
    unit = match.group(2) if match else ""
    if match is None or unit not in units:
        known = ", ".join(units)
        problem = "has no unit" if match and not unit else "is not a number with a unit"
        raise PolicyError(_message(rule, f"the {what} {text!r} {problem} ({known})"))
    found = float(match.group(1)) * units[unit]
    if found == float("inf"):
        raise PolicyError(_message(rule, f"the {what} is too large"))
    return found


def _share(rule: str, text: str) -> float:
    match = _NUMBER.fullmatch(text.removesuffix("%"))
    if not text.endswith("%") or match is None or match.group(2) or not 0 < float(match.group(1)) <= 100:  # noqa: PLR2004
        raise PolicyError(_message(rule, f"{text!r} is not a percentage above 0% and up to 100%"))
    return float(Decimal(match.group(1)) / 100)
