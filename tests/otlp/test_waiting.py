"""What waits to be sent: bounded, the oldest good ones dropped first, breaches last, in batches that receivers take."""

from __future__ import annotations

import gc

from otlp.sending import ENCODED, RESOURCE, names_in, span_named
from stagetrace.otlp.export.queue import MAX_BATCH_BYTES, Batch, Waiting


def taken(waiting: Waiting, most: int) -> Batch:
    batch = waiting.take(most)
    assert batch is not None
    return batch


def test_good_ones_are_dropped_before_breaches_and_the_oldest_first() -> None:
    waiting = Waiting(max_spans=10, max_bytes=1 << 20)
    for number in range(8):
        waiting.add(RESOURCE, None, span_named(f"good {number}"), 1, breach=False)
    for number in range(6):
        waiting.add(RESOURCE, None, span_named(f"breach {number}"), 1, breach=True)
    assert names_in(waiting.request(taken(waiting, 100))) == [f"breach {number}" for number in range(6)]
    assert names_in(waiting.request(taken(waiting, 100))) == [f"good {number}" for number in range(4, 8)]
    assert (waiting.dropped, waiting.dropped_breaches) == (4, 0)
    for number in range(13):
        waiting.add(RESOURCE, None, span_named(f"breach {number}"), 1, breach=True)
    assert names_in(waiting.request(taken(waiting, 100))) == [f"breach {number}" for number in range(3, 13)]
    assert (waiting.dropped, waiting.dropped_breaches) == (4, 3)


def test_what_is_put_back_goes_first_and_is_the_first_to_be_dropped() -> None:
    waiting = Waiting(max_spans=4, max_bytes=1 << 20)
    for number in range(3):
        waiting.add(RESOURCE, None, span_named(str(number)), 1, breach=False)
    batch = taken(waiting, 2)
    waiting.put_back(batch)
    assert names_in(waiting.request(taken(waiting, 100))) == ["0", "1", "2"]
    for number in range(3, 6):
        waiting.add(RESOURCE, None, span_named(str(number)), 1, breach=False)
    waiting.sort_in()
    waiting.put_back(batch)
    assert names_in(waiting.request(taken(waiting, 100))) == ["1", "3", "4", "5"]
    assert waiting.dropped == 1


def test_a_batch_is_no_larger_than_receivers_take() -> None:
    waiting = Waiting(max_spans=1000, max_bytes=64 << 20)
    big = bytes(MAX_BATCH_BYTES // 3)
    for size in (big, big, big, bytes(2 * MAX_BATCH_BYTES), b""):
        assert not waiting.holds(100)
        waiting.add(RESOURCE, None, size, 1, breach=False)
    waiting.sort_in()
    assert waiting.holds(100)
    batches = [taken(waiting, 100) for _ in range(4)]
    assert [(len(batch.items), batch.spans) for batch in batches] == [(2, 2), (1, 1), (1, 1), (1, 1)]
    assert waiting.empty()
    assert waiting.bytes == 0


def test_waiting_items_are_nothing_to_the_garbage_collector() -> None:
    waiting = Waiting(100_000, 1 << 30)
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(10_000):
        waiting.add(RESOURCE, None, ENCODED, 1, breach=False)
    waiting.sort_in()
    assert len(gc.get_objects()) - before < 100
