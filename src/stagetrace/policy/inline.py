"""The policy in one line, rules separated by `;`: GRAMMAR, or EXCLUDING for what is not to be judged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from stagetrace.errors import PolicyError
from stagetrace.policy import quantities
from stagetrace.policy.objective import (
    BOUNDS,
    BREACH,
    DEFAULT_TARGET,
    DEFAULT_WINDOW_S,
    EXCLUDED,
    IN_NAME,
    NEVER_NS,
    Objective,
    is_route,
)

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

GRAMMAR = (
    "[METHOD] ROUTE within DURATION [first_chunk DURATION] [per_chunk DURATION] [first_token DURATION]"
    " [per_token DURATION] [disconnect excluded|breach] [for PERCENT] [over WINDOW]"
)
EXCLUDING = "[METHOD] ROUTE excluded"
EXAMPLE = "POST /predict within 50ms for 99.9% over 28d; * within 1s"
HOW = f"Write {GRAMMAR}, or {EXCLUDING}; for example: {EXAMPLE}"

_KEYWORDS = (*IN_NAME, "for", "over")
_KEYWORDS_MEANT = {"ttft": "first_token", "tpot": "per_token", "itl": "per_token"}


class Readable(NamedTuple):
    """What can be read of a policy: objectives; `rules` has those too that cannot be read, with their `problem`."""

    objectives: tuple[Objective, ...]
    problems: tuple[str, ...]
    rules: tuple[Objective, ...]


def parse(text: str) -> tuple[Objective, ...]:
    """Read a policy of which every rule can be read.

    Raises:
        PolicyError: with the first rule that cannot, what is wrong in it, and how to write it.
    """
    return tuple(map(_rule, _split(text)))


def readable(text: str) -> Readable:
    """Read of a policy what can be read.

    Raises:
        PolicyError: where no rule can, as `parse` does.
    """
    read = [_rule_or_error(rule) for rule in _split(text)]
    objectives = tuple(one for one in read if isinstance(one, Objective))
    errors = [one for one in read if isinstance(one, PolicyError)]
    if not objectives:
        raise errors[0]
    rules = (one if isinstance(one, Objective) else _unreadable(one) for one in read)
    return Readable(objectives, tuple(one.problem for one in errors), tuple(one for one in rules if one is not None))


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
        return Objective(f"{_rule_name(method, route)} {EXCLUDED}", method, route, NEVER_NS, excludes=True)
    if "within" not in lower:
        raise _error(rule, "the word `within` is missing")
    split = lower.index("within")
    clauses = _clauses(rule, words[split:])
    bounds: Any = {
        f"{name}_ns": _read(rule, quantities.duration_ns, clauses[name]) for name in BOUNDS if name in clauses
    }
    method, route = _target(rule, words[:split])
    disconnect = clauses.get("disconnect", "").lower() or None
    if disconnect not in (None, EXCLUDED, BREACH):
        raise _error(rule, f"after `disconnect` stands {EXCLUDED} or {BREACH}, not {disconnect!r}")
    window = (
        _read(rule, quantities.window, clauses["over"]) if "over" in clauses else quantities.Window(DEFAULT_WINDOW_S)
    )
    return Objective(
        name=" ".join([_rule_name(method, route), *(f"{name} {clauses[name]}" for name in IN_NAME if name in clauses)]),
        method=method,
        route=route,
        **bounds,
        disconnect=disconnect,
        target=_read(rule, quantities.share, clauses["for"]) if "for" in clauses else DEFAULT_TARGET,
        window_s=window.length_s,
        calendar=window.calendar,
    )


def _rule_name(method: str | None, route: str) -> str:
    return f"{method} {route}" if method else route


def _read(rule: str, read: Callable[[str], T], text: str) -> T:
    try:
        return read(text)
    except ValueError as error:
        raise _error(rule, str(error)) from None


def _target(rule: str, words: list[str]) -> tuple[str | None, str]:
    if len(words) == 2 and words[0].isalpha():  # noqa: PLR2004
        return words[0].upper(), _route(rule, words[1])
    if len(words) == 1:
        return None, _route(rule, words[0])
    if not words:
        raise _error(rule, "it names no route: write it in front, or `*` for every one")
    raise _error(rule, "before that stand one route, or a method and a route")


def _route(rule: str, word: str) -> str:
    if is_route(word):
        return word
    raise _error(rule, f"{word!r} is no route: it begins with `/` or `*`, or is pkg.Service/Method")


def _clauses(rule: str, words: list[str]) -> dict[str, str]:
    clauses: dict[str, str] = {}
    words = _join_units(words)
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


def _join_units(words: list[str]) -> list[str]:
    """Return the words with each number and the unit that stands apart from it as one: `50 ms`, `99.9 %`."""
    joined: list[str] = []
    for word in words:
        if joined and quantities.NUMBER.fullmatch(joined[-1]) and word.lower() not in _KEYWORDS:
            joined[-1] += word
        else:
            joined.append(word)
    return joined
