"""The queue of spans: bounded, the oldest good ones dropped first, breaches last, in batches that receivers take."""

from __future__ import annotations

import gc

from otlp.sending import ENCODED, RESOURCE, names_in, span_named
from stagetrace.otlp.export.queue import MAX_BATCH_BYTES, Batch, SpanQueue


def taken(queue: SpanQueue, most: int) -> Batch:
    batch = queue.take(most)
    assert batch is not None
    return batch


def test_good_ones_are_dropped_before_breaches_and_the_oldest_first() -> None:
    queue = SpanQueue(max_spans=10, max_bytes=1 << 20)
    for number in range(8):
        queue.add(RESOURCE, None, span_named(f"good {number}"), 1, breach=False)
    for number in range(6):
        queue.add(RESOURCE, None, span_named(f"breach {number}"), 1, breach=True)
    assert names_in(queue.request(taken(queue, 100))) == [f"breach {number}" for number in range(6)]
    assert names_in(queue.request(taken(queue, 100))) == [f"good {number}" for number in range(4, 8)]
    assert (queue.dropped, queue.dropped_breaches) == (4, 0)
    for number in range(13):
        queue.add(RESOURCE, None, span_named(f"breach {number}"), 1, breach=True)
    assert names_in(queue.request(taken(queue, 100))) == [f"breach {number}" for number in range(3, 13)]
    assert (queue.dropped, queue.dropped_breaches) == (4, 3)


def test_what_is_put_back_goes_first_and_is_the_first_to_be_dropped() -> None:
    queue = SpanQueue(max_spans=4, max_bytes=1 << 20)
    for number in range(3):
        queue.add(RESOURCE, None, span_named(str(number)), 1, breach=False)
    batch = taken(queue, 2)
    queue.put_back(batch)
    assert names_in(queue.request(taken(queue, 100))) == ["0", "1", "2"]
    for number in range(3, 6):
        queue.add(RESOURCE, None, span_named(str(number)), 1, breach=False)
    queue.sort_in()
    queue.put_back(batch)
    assert names_in(queue.request(taken(queue, 100))) == ["1", "3", "4", "5"]
    assert queue.dropped == 1


def test_a_batch_is_no_larger_than_receivers_take() -> None:
    queue = SpanQueue(max_spans=1000, max_bytes=64 << 20)
    big = bytes(MAX_BATCH_BYTES // 3)
    for size in (big, big, big, bytes(2 * MAX_BATCH_BYTES), b""):
        assert not queue.holds(100)
        queue.add(RESOURCE, None, size, 1, breach=False)
    queue.sort_in()
    assert queue.holds(100)
    batches = [taken(queue, 100) for _ in range(4)]
    assert [(len(batch.items), batch.spans) for batch in batches] == [(2, 2), (1, 1), (1, 1), (1, 1)]
    assert queue.empty()
    assert queue.bytes == 0


def test_queued_items_are_nothing_to_the_garbage_collector() -> None:
    queue = SpanQueue(100_000, 1 << 30)
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(10_000):
        queue.add(RESOURCE, None, ENCODED, 1, breach=False)
    queue.sort_in()
    assert len(gc.get_objects()) - before < 100
