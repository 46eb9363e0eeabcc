"""Which runs of a request that is sent again differ, and what of its surroundings is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from answers.made import NOON
from stagetrace.analysis.replay_breach import One, Outcome, Situation, ask, in_the_way, is_more_often_late, outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

S = 10**9
SLOW = "POST /slow"


def run(late: int, requests: int, failed: int = 0) -> Outcome:
    each = [One(20.0, 0.0, None)] * late + [One(1.0, 0.0, None)] * (requests - late - failed)
    return outcome([*each, *[One(float("inf"), 0.0, "status 500")] * failed], 10.0)


@pytest.mark.parametrize(
    ("load", "alone", "expected"),
    [
        ((10, 10), (0, 10), True),
        ((9, 10), (0, 10), True),
        ((5, 10), (0, 10), True),  # by chance in 1.6 % of cases
        ((4, 10), (0, 10), True),  # 4.3 %
        ((3, 10), (0, 10), False),  # 10.5 %
        ((4, 4), (0, 4), True),
        ((10, 10), (10, 10), False),
        ((0, 10), (0, 10), False),
        ((0, 10), (9, 10), False),
        ((0, 0), (0, 0), False),
    ],
)
def test_more_often_late_is_what_chance_gives_in_less_than_one_of_twenty(
    load: tuple[int, int], alone: tuple[int, int], expected: bool
) -> None:
    assert is_more_often_late(run(*load), run(*alone)) is expected


def test_the_route_without_which_most_is_in_time_is_in_the_way() -> None:
    without = {"a": run(5, 5), "b": run(1, 5), "c": run(0, 5), "d": run(0, 5, failed=5)}
    assert in_the_way(run(10, 10), without) == ["c", "b"]
    assert in_the_way(run(10, 10), {"a": run(5, 5)}) == []


def test_a_failure_is_neither_late_nor_in_time_and_a_timeout_is_late() -> None:
    each = [One(1.0, 0.0, None), One(float("inf"), 0.0, None), One(float("inf"), 0.0, "status 503")]
    found = outcome(each, 10.0, [None, "status 422", "status 422"])
    assert (found.requests, found.answered, found.late, found.failures) == (3, 2, 1, {"status 503": 1})
    assert (found.median_ms, found.max_ms, found.is_usable) == (None, None, True)
    assert (found.others, found.others_failed, found.is_same_load) == (3, 2, False)
    assert not run(0, 4, failed=3).is_usable


def test_what_is_late_by_the_client_alone_is_counted() -> None:
    assert outcome([One(20.0, 15.0, None), One(20.0, 5.0, None)], 10.0).late_by_client == 1


class Rows:
    """A source that has these rows."""

    def __init__(self, *rows: dict[str, Any]) -> None:
        self.rows = rows

    def reduce(self, name: str, by: Sequence[str] = (), **values: object) -> list[dict[str, Any]]:
        assert (name, values) == ("around", {"since": NOON - S, "began": NOON, "most": 5001})
        return [{**dict.fromkeys(by), **row} for row in self.rows]


def row(number: int, at_s: float, path: str | None, **more: Any) -> dict[str, Any]:
    start = NOON + int(at_s * S)
    return {
        "trace_id": f"{number}",
        "span_id": f"{number}",
        "name": f"POST {path}",
        "route": path,
        "method": "POST",
        "url_path": path,
        "request_bytes": None,
        "start_unix_nano": start,
        "end_unix_nano": start + S,
        "weight": 1.0,
        **more,
    }


def asked(*rows: dict[str, Any]) -> Situation:
    found = ask(Rows(*rows), "1", "1", NOON, S)
    assert isinstance(found, Situation)
    return found


def test_the_others_of_its_process_are_sent_in_their_order() -> None:
    here, other = {"service.instance.id": "a"}, {"service.instance.id": "b"}
    found = asked(
        row(4, 0.5, "/b", **other),
        row(1, 0, "/a", request_bytes=5, **here),
        row(3, -0.5, "/slow", **here, end_unix_nano=NOON + 5 * S),
        row(2, -0.7, "/a", **here, weight=4.0),
    )
    assert [one.path for one in found.requests] == ["/a", "/slow", "/a"]
    assert (found.place, found.request.body_bytes, found.is_sampled, found.is_of_process) == (2, 5, True, True)
    assert found.left == {"another instance served them": 1}
    assert found.routes() == [SLOW, "POST /a"]
    assert [one.path for one in found.without(SLOW).requests] == ["/a", "/a"]
    assert found.without("POST /a").place == 1  # the request itself stays
    assert found.alone.requests == (found.request,)
    assert found.alone.routes() == []


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"method": None}, "they are no HTTP requests"),
        ({"url.scheme": "wss"}, "they are WebSockets"),
        ({"method": "HEAD"}, "HEAD is not sent"),
        ({"method": "A\r\nb"}, "A\r\nb is not sent"),
        ({"url_path": None, "route": "/items/{id}"}, "their path was not recorded"),
        ({"url_path": "/u/REDACTED"}, "a secret in their path or query was not recorded"),
    ],
)
def test_what_cannot_be_sent_is_counted_with_its_reason(more: dict[str, Any], expected: str) -> None:
    assert asked(row(2, 0.5, "/b", **more), row(1, 0, "/a")).left == {expected: 1}
    assert ask(Rows(row(1, 0, "/a", **more)), "1", "1", NOON, S) == expected


def test_a_request_that_is_not_among_the_rows_is_gone_or_has_too_much_behind_it() -> None:
    assert ask(Rows(row(2, 0, "/a")), "1", "1", NOON, S) == "it is not there any more"
    rows = [row(2, 1, "/b")] * 5001
    assert ask(Rows(*rows), "1", "1", NOON, S) == "more than 5,000 began while it was in flight"


def test_of_too_many_the_earliest_are_left() -> None:
    rows = [row(number, -number / 10_000, "/b") for number in range(2, 5002)]
    found = asked(row(1, 0, "/a"), *rows)
    assert (len(found.requests), sum(found.left.values())) == (5000, 1)
    assert found.request.path == "/a"
    assert found.requests[0].start_unix_nano == NOON - S // 2
