"""Everything that Jaeger holds of a time window, by `store.search_windows`: its search returns whole traces."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Final, NamedTuple

from stagetrace.store.base import Selection
from stagetrace.store.search_windows import Found, Search, Walker, Window

if TYPE_CHECKING:
    from stagetrace.store.jaeger.client import JaegerClient

# Traces of one search. Whole traces are returned, so this bounds a result; storages clamp silently from 10,000 on.
DEPTH: Final = 1000
# Never more: Jaeger's badger storage allocates room for that many, and 2**31 - 1 kills it.
MAX_DEPTH: Final = 10_000


class Picked(NamedTuple):
    """The finds in one result, each once, and its number of traces."""

    found: list[Found]
    traces: int


@dataclass(frozen=True, kw_only=True)
class JaegerSearch(Search):
    """A search: traces with a span of `service` that has all `attributes`.

    `pick` returns the finds of a result for a selection: `selection` with a narrowed window.
    """

    service: str
    pick: Callable[[Iterator[bytes], Selection], Picked]
    attributes: Mapping[str, str] = field(default_factory=dict)


class JaegerWalker(Walker[JaegerSearch]):
    """Searches one Jaeger window by window, of whole microseconds: some storages keep no finer index."""

    grain_ns = 1000
    grain = "microsecond"

    def __init__(self, client: JaegerClient, depth: int = DEPTH, max_depth: int = MAX_DEPTH) -> None:
        """Search for `depth` traces at once, and for up to `max_depth` where a window cannot be halved any more."""
        super().__init__(client.url, depth, max_depth)
        self._client = client

    def walk(self, search: JaegerSearch, depth: int | None = None) -> Iterator[Found]:
        """Yield the finds, newest first."""
        return chain.from_iterable(self.windows(search, depth))

    def read(self, search: JaegerSearch, within: Selection, window: tuple[int, int], depth: int) -> Window:
        """Search once. Memory is bounded by the finds that `pick` keeps of `depth` traces."""
        result = self._client.find(search.service, search.attributes, window, depth)
        return Window(*search.pick(result, within), depth)
