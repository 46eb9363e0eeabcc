"""The promise in one line: `[METHOD] ROUTE within DURATION [for PERCENT] [over WINDOW]`, rules separated by `;`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache

from stagetrace.errors import PolicyError

GRAMMAR = "[METHOD] ROUTE within DURATION [for PERCENT] [over WINDOW]"
EXAMPLE = "POST /predict within 50ms for 99.9% over 28d; * within 1s"
DEFAULT_TARGET = 0.99
DEFAULT_WINDOW_S = 28 * 86_400

_DURATION_NS = {"us": 1_000, "ms": 1_000_000, "s": 1_000_000_000, "m": 60_000_000_000}
_WINDOW_S = {"m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)([a-z]*)")
_KEYWORDS = ("within", "for", "over")


@dataclass(frozen=True, slots=True)
class Objective:
    """One rule. `within_ns` in nanoseconds, `target` a share in (0, 1], `window_s` in seconds.

    `method` is None where any method matches. `route` is a route template, a gRPC full method or a glob, in which
    `*` stands for any text, slashes and nothing included.
    """

    name: str
    method: str | None
    route: str
    within_ns: int
    target: float = DEFAULT_TARGET
    window_s: float = DEFAULT_WINDOW_S

    def matches(self, method: str | None, route: str) -> bool:
        """Return whether the rule is about this request; `route` is empty where the server found none."""
        if self.method is not None and self.method != method:
            return False
        return _glob(self.route).fullmatch(route) is not None


@lru_cache(maxsize=256)
def _glob(pattern: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in pattern.split("*")), re.DOTALL)


@dataclass(frozen=True, slots=True)
class Policy:
    """Objectives in order; the first that matches a request judges it."""

    objectives: tuple[Objective, ...]

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
        for objective in self.objectives:
            if objective.matches(method, route):
                return objective
        return None


def _message(rule: str, problem: str) -> str:
    return f"cannot read the SLA rule {rule!r}: {problem}.\nWrite {GRAMMAR}, for example: {EXAMPLE}"


def _rule(rule: str) -> Objective:
    words = rule.split()
    lower = [word.lower() for word in words]
    if "within" not in lower:
        looks_like_file = len(words) == 1 and words[0].endswith((".yaml", ".yml", ".txt", ".toml"))
        hint = "; policy files are not read by this version, put the rules into STAGETRACE_SLA itself"
        raise PolicyError(_message(rule, "the word `within` is missing" + (hint if looks_like_file else "")))
    split = lower.index("within")
    method, route = _target(rule, words[:split])
    clauses = _clauses(rule, words[split:])
    within_ns = _quantity(rule, "duration", clauses["within"], _DURATION_NS)
    if within_ns < 1:
        raise PolicyError(_message(rule, "the duration must be more than zero"))
    window_s = _quantity(rule, "window", clauses["over"], _WINDOW_S) if "over" in clauses else DEFAULT_WINDOW_S
    if window_s <= 0:
        raise PolicyError(_message(rule, "the window must be more than zero"))
    return Objective(
        name=f"{method + ' ' if method else ''}{route} within {clauses['within']}",
        method=method,
        route=route,
        within_ns=round(within_ns),
        target=_share(rule, clauses["for"]) if "for" in clauses else DEFAULT_TARGET,
        window_s=window_s,
    )


def _target(rule: str, words: list[str]) -> tuple[str | None, str]:
    if len(words) == 1:
        return None, words[0]
    if len(words) == 2 and words[0].isalpha():  # noqa: PLR2004
        return words[0].upper(), words[1]
    raise PolicyError(_message(rule, "before `within` stand one route, or a method and a route"))


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
    return float(match.group(1)) * units[unit]


def _share(rule: str, text: str) -> float:
    match = _NUMBER.fullmatch(text.removesuffix("%"))
    if not text.endswith("%") or match is None or match.group(2) or not 0 < float(match.group(1)) <= 100:  # noqa: PLR2004
        raise PolicyError(_message(rule, f"{text!r} is not a percentage above 0% and up to 100%"))
    return float(Decimal(match.group(1)) / 100)
