"""What is read of a stored or foreign entry span: its method and route, and its verdicts on several objectives."""

from __future__ import annotations

import re
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace.policy.objective import WEBSOCKET

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# --- The text of several verdicts on one request, which `sla.verdicts` has: written as it ends, read of stored spans.

MOST_WRITTEN: Final = 64  # verdicts; the rest is a number
_ONE: Final = r"(?s)(?P<word>good|breach|excluded): (?P<objective>.+) \((?P<target>[^()]+)\)"
_MORE: Final = r"and (\d{1,9}) more"


class Listed(NamedTuple):
    """The verdict of one objective, as the text has it."""

    word: str
    objective: str
    target: str  # share and window, as `Objective.target_text`


def write(verdicts: Iterable[tuple[str, str, str]]) -> str:
    """Return the text of verdicts: word, name of the objective, share and window of each."""
    each = iter(verdicts)
    texts = [f"{word}: {objective} ({target})" for word, objective, target in islice(each, MOST_WRITTEN)]
    more = sum(1 for _ in each)
    return "; ".join([*texts, *([f"and {more} more"] if more else [])])


def read(text: str) -> tuple[list[Listed], int]:
    """Return the verdicts of such a text, and how many more there were; what is no verdict is one of those."""
    found, more = [], 0
    for part in text.split("; "):
        one, rest = re.fullmatch(_ONE, part), re.fullmatch(_MORE, part)
        if one is not None:
            found.append(Listed(**one.groupdict()))
        else:
            more += 1 if rest is None else int(rest[1])
    return found, more


def _is_websocket(attributes: Any) -> bool:
    return (attributes.get("url.scheme") or attributes.get("http.scheme")) in ("ws", "wss")


def request_of(attributes: Mapping[str, Any]) -> tuple[str | None, str]:
    """Return method and route as the policy names them, from HTTP (stable or old names) or RPC attributes."""
    if "rpc.method" in attributes:
        rpc = str(attributes["rpc.method"])
        return None, rpc if "/" in rpc else f"{attributes.get('rpc.service', '')}/{rpc}"
    if _is_websocket(attributes):
        return WEBSOCKET, str(attributes.get("http.route", ""))
    method = attributes.get("http.request.method") or attributes.get("http.method")
    route = str(attributes.get("http.route", ""))
    if route and not route.startswith("/"):  # Django's, by OpenTelemetry's instrumentation
        route = f"/{route}"
    return (str(method).upper() if method else None), route
