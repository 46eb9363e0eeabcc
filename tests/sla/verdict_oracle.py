"""The verdict a second time, by what docs/objectives.md says of a policy file, without the code that it checks.

Policies are documents as YAML has them, requests are plain values.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import random
import re

MS = 1_000_000
TENANTS = ("gold", "silver-1", "silver-2", "bronze")
ROUTES = ("/predict", "/items/{id}", "/ab/c/b", "")
METHODS = ("GET", "POST")
_BOUNDS = ("first_chunk", "per_chunk", "first_token", "per_token")
_MATCHES = ("POST /predict", "/predict", "GET *", "/a*b", "/items/{id}", "*", "/other")
_HEADERS = ("x-request-timeout-ms", "x-envoy-expected-rq-timeout-ms", "x-slo-ttft-ms")
_GLOBS = ("gold", "silver-*", "*", "*-2", "platinum")


@dataclass
class Sent:
    """A request as it was; times in nanoseconds from its start."""

    method: str
    route: str
    tenant: str | None
    duration: int
    chunks: tuple[int, ...]  # when each chunk had been sent
    tokens: tuple[int, ...]  # when each token had been generated
    disconnected: bool
    failed: bool
    headers: dict[str, str]


def document(chance: random.Random) -> dict[str, Any]:
    """Return a policy of one to six objectives."""
    return {"version": 1, "objectives": [_objective(chance, number) for number in range(chance.randint(1, 6))]}


def _objective(chance: random.Random, number: int) -> dict[str, Any]:
    match: dict[str, Any] = {"route": chance.choice(_MATCHES)}
    if chance.random() < 0.4:
        match["attributes"] = {"tenant": chance.choice(_GLOBS)}
    if chance.random() < 0.1:
        return {"name": f"o{number}", "match": match, "excluded": True}
    made: dict[str, Any] = {"name": f"o{number}", "match": match, **_bounds(chance)}
    if chance.random() < 0.5:
        made["continue"] = True
    for key, words in (("errors", ("bad", "excluded", "ignored")), ("disconnect", ("excluded", "breach"))):
        if chance.random() < 0.4:
            made[key] = chance.choice(words)
    if chance.random() < 0.3:
        made["deadline"] = {
            "from": [*_HEADERS][:: chance.choice((1, -1))],
            "mode": chance.choice(("tighten", "replace")),
        }
    if chance.random() < 0.3:
        made["segments"] = {"by": ["tenant"], "max": chance.randint(1, 4)}
    if chance.random() < 0.3:
        made["overrides"] = [
            {"when": {"tenant": chance.choice(_GLOBS)}, "name": f"o{number} over {place}", "within": _duration(chance)}
            for place in range(chance.randint(1, 2))
        ]
    return made


def _bounds(chance: random.Random) -> dict[str, str]:
    found = {"within": _duration(chance)}
    for name in _BOUNDS:
        if chance.random() < 0.2:
            found[name] = _duration(chance)
    return found


def _duration(chance: random.Random) -> str:
    return chance.choice(("10ms", "20ms", "30ms", "40ms", "1500us", "1s"))


def sent(chance: random.Random) -> Sent:
    """Return a request, of which each other time is just a bound, or a nanosecond beside it."""
    duration = _time(chance)
    chunks = sorted(chance.randint(1, duration) for _ in range(chance.choice((0, 0, 0, 1, 2, 4))))
    tokens = sorted(chance.randint(1, duration) for _ in range(chance.choice((0, 0, 0, 1, 2, 5))))
    return Sent(
        chance.choice(METHODS),
        chance.choice(ROUTES),
        chance.choice((None, *TENANTS)),
        duration,
        tuple(chunks),
        tuple(tokens),
        disconnected=chance.random() < 0.1,
        failed=chance.random() < 0.1,
        headers={name: _header(chance) for name in _HEADERS if chance.random() < 0.3},
    )


def _header(chance: random.Random) -> str:
    return chance.choice(("10", "20", "30", "40", "1.5", " 1000 ", "0", "-5", "soon", "1e3", ""))


def _time(chance: random.Random) -> int:
    near = chance.choice((10, 20, 30, 40, 1.5)) * MS
    return chance.choice((round(near) + chance.randint(-1, 1), chance.randint(1, 60 * MS)))


def verdicts(policy: dict[str, Any], request: Sent) -> list[tuple[str, str, int]]:
    """Return name, verdict and allowed duration of each objective that judges a request."""
    found = []
    for objective in policy["objectives"]:
        if not _matches(objective["match"], request):
            continue
        rule = objective
        for override in objective.get("overrides", ()):
            if _holds(override["when"], request):
                rule = {**objective, **override}
                break
        bounds = _bounds_of(rule, request)
        found.append((rule["name"], _word(rule, bounds, request), bounds["within"]))
        if not objective.get("continue"):
            break
    return found


def shown(found: list[tuple[str, str, int]]) -> tuple[str, str, int]:
    """Return the verdict that the entry span is about."""
    for wanted in ("breach", "good"):
        for one in found:
            if one[1] == wanted:
                return one
    return found[0]


def _matches(match: dict[str, Any], request: Sent) -> bool:
    *method, route = match["route"].split()
    if method and method[0] != request.method:
        return False
    return _globs(route, request.route) and _holds(match.get("attributes", {}), request)


def _holds(attributes: dict[str, str], request: Sent) -> bool:
    return all(request.tenant is not None and _globs(glob, request.tenant) for glob in attributes.values())


def _globs(glob: str, text: str) -> bool:
    if not glob:
        return not text
    if glob[0] == "*":
        return any(_globs(glob[1:], text[place:]) for place in range(len(text) + 1))
    return bool(text) and text[0] == glob[0] and _globs(glob[1:], text[1:])


def _ns(text: str) -> int:
    for unit, size in (("us", 1_000), ("ms", MS), ("s", 1_000 * MS)):
        if text.endswith(unit):
            return int(text.removesuffix(unit)) * size
    raise ValueError(text)


def _bounds_of(rule: dict[str, Any], request: Sent) -> dict[str, int]:
    """Return the bounds of a rule in nanoseconds, those that the request has brought along included."""
    found = {
        "within": _ns(rule.get("within", "1000000s")),
        **{name: _ns(rule[name]) for name in _BOUNDS if name in rule},
    }
    brought: dict[str, int] = {}
    for name in rule.get("deadline", {}).get("from", ()):
        number = request.headers.get(name, "").strip(" ")
        if re.fullmatch(r"[0-9.]+", number) and float(number) > 0:
            brought.setdefault("first_token" if name == "x-slo-ttft-ms" else "within", round(float(number) * MS))
    for bound, given in brought.items():
        is_tighter = bound not in found or given < found[bound]
        if is_tighter or rule["deadline"]["mode"] == "replace":
            found[bound] = given
    return found


def segments(policy: dict[str, Any], requests: list[Sent]) -> dict[str, list[str | None]]:
    """Return by objective the segment of each request that it judges as good or as a breach, in their order."""
    known: dict[str, set[str]] = {}
    found: dict[str, list[str | None]] = {}
    for request in requests:
        for name, word, _ in verdicts(policy, request):
            (rule,) = [one for one in policy["objectives"] if name.startswith(one["name"])]
            segment = None
            if "segments" in rule and word != "excluded":
                segment = request.tenant or "(none)"
                of = known.setdefault(name, set())
                if segment not in of and len(of) >= rule["segments"]["max"]:
                    segment = "other"
                else:
                    of.add(segment)
            found.setdefault(name, []).append(segment)
    return found


def _word(rule: dict[str, Any], bounds: dict[str, int], request: Sent) -> str:
    if rule.get("excluded"):
        return "excluded"
    if request.failed and rule.get("errors") == "excluded":
        return "excluded"
    if request.disconnected and rule.get("disconnect") == "excluded":
        return "excluded"
    if _misses(bounds, request) or (request.failed and rule.get("errors") == "bad"):
        return "breach"
    if not request.disconnected:
        return "good"
    return "breach" if rule.get("disconnect") == "breach" else "excluded"


def _misses(bounds: dict[str, int], request: Sent) -> bool:
    if request.duration > bounds["within"]:
        return True
    of_chunks = [("first_chunk", "first"), ("per_chunk", "gap")]
    tokens, chunks = request.tokens, request.chunks
    if not tokens:  # then bounds on tokens are judged as those on chunks
        of_chunks += [("first_token", "first"), ("per_token", "gap")]
    else:
        if tokens[0] > bounds.get("first_token", request.duration):
            return True
        if tokens[-1] - tokens[0] > bounds.get("per_token", request.duration) * (len(tokens) - 1):
            return True
    if len(chunks) < 2:
        return False
    took = {"first": chunks[0], "gap": max(late - early for early, late in itertools.pairwise(chunks))}
    return any(took[what] > bounds[name] for name, what in of_chunks if name in bounds)
