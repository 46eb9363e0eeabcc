"""Which of several names for the same requests a person knows: ranks of attribute keys, one table for all answers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

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
