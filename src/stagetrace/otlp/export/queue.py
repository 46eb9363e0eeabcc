"""The queue of encoded spans: bounded, breaches first, and nothing that the garbage collector looks at."""

from __future__ import annotations

import time
from collections import deque
from itertools import count
from struct import Struct
from typing import Any, Final, NamedTuple

from stagetrace.otlp.encode import resource_spans
from stagetrace.system.bounded import BoundedCache
from stagetrace.system.threads import allocate_lock

# Stands before each item: group, spans, whether it is of a breach. One bytes object, so that one append queues it.
_HEAD: Final = Struct("<II?")
_WHOLE: Final = 0  # the group of items that are complete ResourceSpans
_GROUP_SIZE: Final = 4
_WHOLE_GROUP: Final = bytes(_GROUP_SIZE)
MAX_BATCH_BYTES: Final = 1 << 20  # receivers take four times as much by default
_MOST_GROUPS: Final = 4096
_MOST_KNOWN: Final = 1024


class Batch(NamedTuple):
    """Items of one class, as they were queued."""

    items: list[bytes]
    spans: int
    breach: bool
    taken_ns: int  # since 1970


class SpanQueue:
    """A queue of at most `max_spans` spans and `max_bytes` bytes. When full, the oldest goes, breaches last of all.

    `add` waits for nothing and may be interrupted by itself (a span that ends in a finalizer): it only appends. The
    sending thread sorts what was added into the two classes, or a caller does where that thread is late.
    """

    def __init__(self, max_spans: int, max_bytes: int) -> None:
        self._max_spans = max_spans
        self._max_bytes = max_bytes
        self._incoming: deque[bytes] = deque()
        self._lock = allocate_lock()  # guards all below as far as `dropped_breaches`; `add` never waits for it
        self._good: deque[bytes] = deque()
        self._breaches: deque[bytes] = deque()
        self.spans = 0
        self.bytes = 0
        self.received = 0
        self.dropped = 0
        self.dropped_breaches = 0
        # A resource and scope with their number. By identity, since comparing them costs more than all the rest; the
        # values hold both, so that their identities stay theirs.
        self._known: BoundedCache[tuple[int, int], tuple[int, Any, Any]]
        self._known = BoundedCache(_MOST_KNOWN)
        self._by_value: dict[tuple[int, Any], int] = {}
        self._groups: dict[int, tuple[Any, Any]] = {}
        self._numbers = count(_WHOLE + 1)

    def add(self, resource: Any, scope: Any, encoded: bytes, spans: int, *, breach: bool) -> int:
        """Take one item, of a resource and scope of ours or of an SDK; return how many items are not sorted in yet."""
        known = self._known.get((id(resource), id(scope)))
        group = known[0] if known is not None else self._group(resource, scope)
        if group == _WHOLE:
            encoded = resource_spans(resource, {scope: [encoded]})
        self._incoming.append(_HEAD.pack(group, spans, breach) + encoded)
        return len(self._incoming)

    def _group(self, resource: Any, scope: Any) -> int:
        """Return the number of a resource and scope; equal scopes share one: each `get_tracer` makes a new one."""
        scope = scope or None
        group = self._by_value.get((id(resource), scope))
        if group is None:
            if len(self._groups) >= _MOST_GROUPS:  # a service makes scopes without end; they are not kept
                return _WHOLE
            group = next(self._numbers)
            self._groups[group] = (resource, scope)
            self._by_value[id(resource), scope] = group
        self._known[id(resource), id(scope)] = (group, resource, scope)
        return group

    def sort_in(self, *, wait: bool = True) -> bool:
        """Put what was added into its class and drop what is too much; return False if another thread is doing so."""
        if not self._lock.acquire(blocking=wait):
            return False
        try:
            self._sort_in()
        finally:
            self._lock.release()
        return True

    def _sort_in(self) -> None:
        incoming = self._incoming
        for _ in range(len(incoming)):
            item = incoming.popleft()
            _, spans, breach = _HEAD.unpack_from(item)
            (self._breaches if breach else self._good).append(item)
            self.received += spans
            self.spans += spans
            self.bytes += len(item)
        self._trim()

    def _trim(self) -> None:
        while self.spans > self._max_spans or self.bytes > self._max_bytes:
            if self._good:
                self.dropped += self._remove(self._good)[1]
            else:
                self.dropped_breaches += self._remove(self._breaches)[1]

    def _remove(self, items: deque[bytes]) -> tuple[bytes, int]:
        item = items.popleft()
        spans: int = _HEAD.unpack_from(item)[1]
        self.spans -= spans
        self.bytes -= len(item)
        return item, spans

    def take(self, most: int, *, good_first: bool = False) -> Batch | None:
        """Return the oldest breaches, or else the oldest others; None if empty.

        They are of at most `most` spans and MAX_BATCH_BYTES, or one item.
        """
        with self._lock:
            self._sort_in()
            source = (self._good if good_first else self._breaches) or self._breaches or self._good
            items: list[bytes] = []
            total = size = 0
            unpack = _HEAD.unpack_from
            while source:
                item = source[0]
                spans, longer = total + unpack(item)[1], size + len(item)
                if items and (spans > most or longer > MAX_BATCH_BYTES):
                    break
                items.append(source.popleft())
                total, size = spans, longer
            self.spans -= total
            self.bytes -= size
            return Batch(items, total, source is self._breaches, time.time_ns()) if items else None

    def holds(self, batch: int) -> bool:
        """Return whether that many spans, or as many bytes as a batch may have, are sorted in."""
        return self.spans >= batch or self.bytes >= MAX_BATCH_BYTES

    def empty(self) -> bool:
        """Return whether nothing is queued."""
        return not self._incoming and not self.spans

    def crowded(self) -> bool:
        """Return whether more than half of the room is taken."""
        self.sort_in()
        return self.spans * 2 > self._max_spans or self.bytes * 2 > self._max_bytes

    def discard(self) -> int:
        """Empty the queue for good: from now on everything is dropped. Return how many spans that were."""
        with self._lock:
            self._sort_in()
            spans = self.spans
            self._good.clear()
            self._breaches.clear()
            self.spans = self.bytes = self._max_spans = self._max_bytes = 0
            return spans

    def put_back(self, batch: Batch, *, behind: bool = False) -> None:
        """Queue again what could not be sent, as the oldest of its class, or `behind` the others of it."""
        with self._lock:
            source = self._breaches if batch.breach else self._good
            if behind:
                source.extend(batch.items)
            else:
                source.extendleft(reversed(batch.items))
            self.spans += batch.spans
            self.bytes += sum(map(len, batch.items))
            self._trim()

    def request(self, batch: Batch) -> bytes:
        """Return a batch as a serialized ExportTraceServiceRequest."""
        items = batch.items
        groups = {item[:_GROUP_SIZE] for item in items}
        if len(groups) == 1 and _WHOLE_GROUP not in groups:  # as in most services
            resource, scope = self._groups[_HEAD.unpack_from(items[0])[0]]
            return resource_spans(resource, {scope: [item[_HEAD.size :] for item in items]})
        return self._request(items)

    def _request(self, items: list[bytes]) -> bytes:
        resources: dict[int, tuple[Any, dict[Any, list[bytes]]]] = {}
        whole: list[bytes] = []
        for item in items:
            group, _, _ = _HEAD.unpack_from(item)
            encoded = item[_HEAD.size :]
            if group == _WHOLE:
                whole.append(encoded)
                continue
            resource, scope = self._groups[group]
            resources.setdefault(id(resource), (resource, {}))[1].setdefault(scope, []).append(encoded)
        return b"".join([*(resource_spans(resource, scopes) for resource, scopes in resources.values()), *whole])
