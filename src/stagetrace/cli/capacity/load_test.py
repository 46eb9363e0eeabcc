"""The command that would find a service's limit: `stagetrace bench --find`, of its own route and objective."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from stagetrace.analysis.attainment import target_of
from stagetrace.cli.capacity.utilisation import sampled_values
from stagetrace.output.units import threshold
from stagetrace.printable import printable

if TYPE_CHECKING:
    from stagetrace.analysis.capacity import Capacity
    from stagetrace.store.base import Relations

_KEYS: Final = ("path", "method", "objective", "target", "threshold_ms")
_WITHOUT_BODY: Final = ("GET", "HEAD", "DELETE")


def command(relations: Relations, one: Capacity) -> str:
    """Return the command, for the route with most requests in the busiest minute; unknown parts are in capitals."""
    rows = sampled_values(relations, one, *_KEYS)
    row: dict[str, Any] = max(rows, key=lambda row: row["requests"], default=dict.fromkeys(_KEYS))
    route, method = row["path"] or "", row["method"]
    if method or not route:  # of a request without a route, `path` is the name of its span
        url = f"http://HOST:PORT{route if route.startswith('/') else '/PATH'}"
    else:
        url = f"grpc://HOST:PORT/{route}"
    body = "" if method in _WITHOUT_BODY else " --body @request.json"
    named = f" --method {method}" if method not in (None, "GET", "POST") else ""
    share = target_of(row["objective"], row["target"]).share
    allowed = row["threshold_ms"]
    is_known = allowed is not None and share < 1
    limit = f"p{100 * share:.6g}:{threshold(allowed).replace(' ', '')}" if is_known else "p99:LIMIT"
    return printable(f"stagetrace bench {url}{named}{body} --find {limit}")
