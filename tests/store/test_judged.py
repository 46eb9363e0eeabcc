"""Spans that carry no verdict are judged afterwards, over every store as their process would have judged them."""

from __future__ import annotations

import json
import random
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import pytest
from opentelemetry.trace import SpanKind
from opentelemetry.trace.status import StatusCode

from cli.running import answered, cli
from stagetrace.analysis.judging import AFTERWARDS, NO_OBJECTIVE
from store import members
from store.feed import MS, Made, entry, recent

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

POLICY: Final = "GET /cart within 80ms for 95%; POST /pay within 120ms; /health excluded"
NAMES: Final = ("GET /cart within 80ms", "POST /pay within 120ms")
BASE: Final = recent()
BOUNDS: Final = {"/cart": 80 * MS, "/pay": 120 * MS}
KINDS: Final = (
    *("local-stopped", "clickhouse-map", "clickhouse-table", "tempo", "file-json", "file-parquet", "jaeger-memory"),
)


def foreign() -> list[Made]:
    """Return requests as other senders record them, by names old and new, with a call inside; some take exactly as long
    as they may. One in ten is of ours, with a verdict.
    """
    chance = random.Random(11)
    found: list[Made] = []
    for number in range(200):
        route = chance.choice(["/cart", "/pay", "/health", None])
        bound = BOUNDS.get(route or "", 50 * MS)
        took = chance.choice([bound, bound + 1, bound - 1, chance.randrange(1, 3 * bound)])
        old = number % 2 == 0
        method = {"/cart": "GET", "/pay": "POST"}.get(route or "", "GET")
        attributes: dict[str, Any] = {"http.method" if old else "http.request.method": method}
        attributes["http.status_code" if old else "http.response.status_code"] = 200
        if route is not None:
            attributes["http.route"] = route
        start = BASE + number * 20 * MS
        made = Made(f"{method} {route}", "shop", start, start + took, attributes=attributes, status=StatusCode.UNSET)
        found += [made, made.child("SELECT", start, start + 3 * took // 4, kind=SpanKind.CLIENT)]
        if number % 10 == 0:
            found.append(entry("shop", start + 5 * MS, breached=number % 20 == 0))
    return found


SPANS: Final = foreign()
OTHERS: Final = [one for one in SPANS if one.kind is SpanKind.SERVER and "sla.verdict" not in one.attributes]
OURS: Final = [one for one in SPANS if "sla.verdict" in one.attributes]


@contextmanager
def stored(kind: str, folder: Path, spans: Sequence[Made]) -> Iterator[str]:
    with members.member(kind, folder, spans, spans[:20]) as url:
        yield url


@pytest.fixture(scope="module", params=[members.parameter(name) for name in KINDS])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with stored(request.param, tmp_path_factory.mktemp(request.param), SPANS) as found:
        yield found


def asked(*command: object) -> tuple[Any, str]:
    done = cli(*map(str, command), "--sla", POLICY, "--since", "1970-01-01", "--json")
    assert done.returncode in (0, 1), done.stderr
    return json.loads(done.stdout), done.stderr


def late(route: str) -> int:
    return sum(one.attributes.get("http.route") == route and one.end - one.start > BOUNDS[route] for one in OTHERS)


def of(route: str) -> int:
    return sum(one.attributes.get("http.route") == route for one in OTHERS)


def test_each_objective_counts_what_was_judged_afterwards_apart(url: str) -> None:
    found, said = asked("slo", "--service", "shop", "--store", url)
    counts = {one["objective"]: (one["judged"], one["breaches"]) for one in found["objectives"]}
    assert counts == {
        f"{NAMES[0]}{AFTERWARDS}": (of("/cart"), late("/cart")),
        f"{NAMES[1]}{AFTERWARDS}": (of("/pay"), late("/pay")),
        "POST /predict within 50ms": (len(OURS), len(OURS) // 2),
    }
    judged = of("/cart") + of("/pay") + of("/health")
    left = sum("http.route" not in one.attributes for one in OTHERS)
    assert f"note: {judged} requests are judged afterwards by --sla, {len(OURS)} were as they ended" in said
    assert f"{left} are not judged: {NO_OBJECTIVE}" in said
    targets = {one["objective"]: one["target"] for one in found["objectives"]}
    assert targets[f"{NAMES[0]}{AFTERWARDS}"] == 0.95


def test_a_breach_has_what_it_was_allowed(url: str) -> None:
    found, _ = asked("breaches", "--each", "--service", "shop", "--route", "/cart", "--store", url)
    carts = (one for one in OTHERS if one.attributes.get("http.route") == "/cart")
    expected = {one.span_id: one for one in carts if one.end - one.start > BOUNDS["/cart"]}
    assert {one["span_id"] for one in found["breaches"]} == set(expected)
    for one in found["breaches"]:
        made = expected[one["span_id"]]
        assert one["threshold_ms"] == 80.0
        assert one["overrun_ms"] == pytest.approx((made.end - made.start - 80 * MS) / 1e6)
        assert one["objective"] == f"{NAMES[0]}{AFTERWARDS}"
        assert one["cause"] is None
        assert (one["owner"]["service"], one["owner"]["stage"]) == ("shop", "SELECT")  # most of the critical path
    assert found["missed"] == len(expected)
    limited, _ = asked("breaches", "--each", "--service", "shop", "--route", "/cart", "--limit", "3", "--store", url)
    assert len(limited["breaches"]) == 3
    for verb in ("why", "breaches"):
        shown = cli(verb, "--sla", POLICY, "--since", "1970-01-01", "--route", "/cart", "--store", url).stdout
        assert "shop SELECT, " in shown


def test_one_request_is_judged_afterwards(url: str) -> None:
    """A late one is told with its bound and the breaches that are like it."""
    carts = [one for one in OTHERS if one.attributes.get("http.route") == "/cart"]
    slow = next(one for one in carts if one.end - one.start > 80 * MS)
    quick = next(one for one in carts if one.end - one.start <= 80 * MS)
    found, said = asked("why", slow.trace_id, "--store", url)
    assert (found["verdict"], found["threshold_ms"], found["stage"]) == ("BREACH", 80.0, None)
    assert found["overrun_ms"] == pytest.approx((slow.end - slow.start - 80 * MS) / 1e6)
    assert found["alike"]["breaches"] == late("/cart")
    assert said.count("are judged afterwards by --sla") == 1
    assert asked("why", quick.trace_id, "--store", url)[0]["verdict"] == "GOOD"
    assert answered("why", slow.trace_id, "--store", url)["verdict"] == "NOT JUDGED"


def test_answers_go_by_those_verdicts(url: str) -> None:
    report, _ = asked("report", "--service", "shop", "--store", url)
    assert sum(one["judged"] for one in report["objectives"]) == of("/cart") + of("/pay") + len(OURS)
    causes, _ = asked("causes", "--service", "shop", "--route", "/pay", "--store", url)
    assert causes["breaches"] == late("/pay")


def test_nothing_is_judged_without_the_option(url: str) -> None:
    assert (
        answered("breaches", "--each", "--service", "shop", "--since", "1970-01-01", "--store", url)["missed"]
        == len(OURS) // 2
    )


def test_a_wrong_policy_is_an_error(url: str) -> None:
    done = cli("slo", "--sla", "GET /cart witin 80ms", "--store", url)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) <= 3
