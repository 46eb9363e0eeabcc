"""What all analyses share: the source of their rows, and the names of groups of requests."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, Protocol

from stagetrace.analysis.estimates import Sample

# --- The source of an analysis's rows: named reductions, which a store runs where its data is.


class Source(Protocol):
    """Runs reductions: the relations of a selection, of any store."""

    def reduce(self, name: str, by: Sequence[str] = (), **values: object) -> list[dict[str, Any]]:
        """Return the rows of a reduction, column -> value.

        `by`: the keys of their groups: columns of `requests`, `path` (route or name), or keys of attributes, which
        are read of the entry span or else of its resource, in text form; `attribute:KEY` is one also where a column
        has its name. `values` are the reduction's parameters.
        """
        ...


def by_keys(rows: Iterable[dict[str, Any]], keys: Sequence[str]) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """Return rows by their values of `keys`, in the order in which these come."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return found


def sample_of(rows: Sequence[Mapping[str, Any]]) -> Sample:
    """Return the sample that rows with `stored`, `sampled` and `unknown` stand for."""
    is_sampled, is_unknown = (any(row[name] for row in rows) for name in ("sampled", "unknown"))
    return Sample(sum(row["stored"] for row in rows), is_sampled, is_unknown)


def missing_first(keys: Sequence[str]) -> Callable[[Mapping[str, Any]], list[tuple[bool, str]]]:
    """Return the sort key of rows by some columns, missing values first."""
    return lambda row: [(row[key] is not None, row[key] or "") for key in keys]


# --- Which of several names for the same requests a person knows: ranks of attribute keys, one table for all answers.

# The least rank is known best. A key is what the first row says of which one word, or a run of words, is in it; all
# others are attributes that an application recorded on purpose.
_APPLICATION: Final = 3
SIZES: Final = range(5, 7)
RESPONSE: Final = 7  # from here on, what follows from a request or happened to serve it, which nobody chose
_WORDS: Final = (
    (12, "port"),
    (11, "pid process thread executable command"),
    (10, "host os node"),
    (9, "instance pod container uid k8s replica worker"),
    (13, "telemetry sdk scope"),
    (8, "network peer address ip protocol server client.address user_agent"),
    (RESPONSE, "response status_code"),
    (6, "request.body request.size content_length"),
    (5, "batch.size size length tokens bytes rows count"),
    (4, "route http url rpc method path scheme"),
    (0, "version release deployment build commit image"),
    (1, "tenant enduser customer organization org account plan tier team user region country segment"),
    (2, "model framework"),
    (3, "language lang locale"),
)
# A header is what its own name says, not of HTTP; k8s names what a person gave a name to, too.
_PREFIX: Final = re.compile(r"^(http\.request\.header|rpc\.grpc\.request\.metadata|rpc\.request\.metadata)\.")
_KNOWN: Final = {
    "service.version": 0,
    "container.image.tags": 0,
    "service.name": 2,
    "k8s.deployment.name": 2,
    "k8s.namespace.name": 2,
    "deployment.environment.name": 1,
    "host.type": 4,
    "cloud.region": 1,
    "cloud.availability_zone": 4,
    "user_agent.original": 4,
}
_ABSENT: Final = 6  # at least: what is missing is known less well than what is there
_SPLIT: Final = re.compile(r"[^a-z0-9]+")


@lru_cache(4096)
def rank(key: str) -> int:
    """Return how well a person knows an attribute: 0 for a release, greater for sizes, instances, hosts, ports."""
    if key in _KNOWN:
        return _KNOWN[key]
    words = f".{'.'.join(_SPLIT.split(_PREFIX.sub('', key).lower()))}."
    for found, names in _WORDS:
        if any(f".{'.'.join(_SPLIT.split(name))}." in words for name in names.split()):
            return found
    return _APPLICATION


def rank_of(values: Mapping[str, str | None]) -> tuple[int, int, int]:
    """Return the rank of a name of several values: of the one known least, then by how many there are."""
    ranks = [max(rank(key), _ABSENT if value is None else 0) for key, value in values.items()]
    return max(ranks, default=0), len(ranks), sum(ranks)
