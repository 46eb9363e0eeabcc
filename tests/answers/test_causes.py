"""`stagetrace causes` over made requests and traces: what was planted is named, with its evidence."""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from analysis.microservices import Fault, System, window
from answers.made import EVER, MS, NOON, Made, kept, lines, store
from cli.running import answered, printed, refused
from messages import of_rows
from stagetrace.cli import causes
from stagetrace.otlp.decode.json import encode

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from stagetrace.store.base import SpanRow

LINE = "app.py:41 in predict"
asked = partial(answered, "causes", "--store")


def requests(count: int = 2500, *, gold_is_slow: bool = True, judged: bool = True, **more: Any) -> Iterator[Made]:
    """Yield requests of two versions and three tenants; version 3 is slow for gold from the second half on."""
    chance = random.Random(count)
    for number in range(1, count + 1):
        version, tenant = chance.choice("223"), chance.choice(["gold", "silver", "free"])
        slow = gold_is_slow and version == "3" and tenant == "gold" and number > count // 2
        stages = {"preprocess": chance.uniform(1, 4), "inference": chance.lognormvariate(3, 0.3) * (2.4 if slow else 1)}
        ids = {"tenant.id": tenant, "request.id": f"{number:032x}", "sla.breach.code": LINE if slow else None}
        yield Made(
            number,
            NOON + number * 500 * MS,
            stages,
            version=version,
            within_ms=45 if judged else None,
            cause="cpu_wait",
            attributes={**ids, "stagetrace.gc.pause_ms": stages["inference"]},
            resource={"host.name": f"h-{version}", "k8s.pod.name": f"p-{version}"},
            **more,
        )


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store(tmp_path_factory.mktemp("causes") / "store", requests())


def test_what_was_planted_is_named_with_its_evidence(planted: Path) -> None:
    found = asked(planted, *EVER)
    (one,) = found["attributes"]
    assert one["values"] == {"ml.model.version": "3", "tenant.id": "gold"}
    assert {"host.name": "h-3", "tenant.id": "gold"} in one["also"]
    matching = [each for each in requests() if each.version == "3" and each.attributes["tenant.id"] == "gold"]
    breaches = [each for each in matching if each.word == "breach"]
    assert (one["breached"], one["good"]) == (len(breaches), pytest.approx(len(matching) - len(breaches)))
    assert one["q_value"] < 1e-6
    assert one["first_unix_nano"] == min(each.start_unix_nano for each in breaches)
    assert one["trace_ids"][0] == f"{max(breaches, key=lambda each: each.took_ms).number:032x}"
    assert one["excess_ms"] > 20
    assert found["stages"][0]["stage"] == "inference"
    named = found["causes"][0]
    slow = [each for each in requests() if each.word == "breach" and each.attributes["sla.breach.code"]]
    assert (named["cause"], named["code"], named["at_code"]) == ("cpu_wait", LINE, len(slow))
    assert found["skipped"] == ["request.id"]
    (change,) = found["changes"]
    assert abs(change["at_unix_nano"] - NOON - 1250 * 500 * MS) < 60 * 10**9
    assert "tenant.id gold" in found["sentence"]


def test_people_see_a_table_and_a_picture(planted: Path) -> None:
    shown = printed("causes", "--long", "--store", planted, *EVER)
    assert shown.startswith("Requests with ml.model.version 3 and tenant.id gold miss their objective ")
    assert "explains" in shown
    assert f"{LINE} (" in shown
    assert "Not compared, since almost each request has its own value: request.id." in shown
    assert "<svg" in printed("causes", "--long", "--store", planted, *EVER, "--format", "html")


def test_nothing_is_named_where_nothing_distinguishes_them(tmp_path: Path) -> None:
    found = asked(store(tmp_path / "store", requests(gold_is_slow=False)), *EVER)
    assert found["sentence"].startswith(f"Nothing distinguishes the {found['breaches']:.0f} breaches from the ")
    assert (found["attributes"], found["services"], found["changes"]) == ([], [], [])


def test_random_verdicts_leave_everything_empty(tmp_path: Path) -> None:
    chance = random.Random(3)
    made = (
        Made(number, NOON + number * MS, within_ms=50, verdict="breach" if chance.random() < 0.1 else "good", stage="x")
        for number in range(1, 800)
    )
    found = asked(lines(tmp_path / "spans.jsonl", made))
    assert (found["attributes"], found["services"], found["stages"], found["changes"]) == ([], [], [], [])
    assert found["sentence"].endswith(" good requests.")


def test_a_file_without_verdicts_gets_the_remedy(tmp_path: Path) -> None:
    path = lines(tmp_path / "spans.jsonl", requests(200, judged=False))
    assert "give --against SINCE..UNTIL" in asked(path)["sentence"]
    assert "SINCE..UNTIL" in refused("causes", "--store", path, "--against", "noon")


def test_without_verdicts_slow_is_what_is_slower_than_normal(tmp_path: Path) -> None:
    folder = store(tmp_path / "store", requests(judged=False))
    middle = "2026-03-01T12:10:25"
    found = asked(folder, "--since", middle, "--against", f"2026-03-01..{middle}")
    assert found["by_time"]
    assert found["attributes"][0]["values"] == {"ml.model.version": "3", "tenant.id": "gold"}


def test_sampled_requests_count_for_all_they_stand_for(tmp_path: Path) -> None:
    found = asked(store(tmp_path / "store", kept(requests(4000, probability=0.25))), *EVER)
    whole = [one for one in requests(4000) if one.version == "3" and one.attributes["tenant.id"] == "gold"]
    share = sum(one.word == "breach" for one in whole) / len(whole)
    first = found["attributes"][0]
    assert found["estimated"]
    assert first["breached"] / (first["breached"] + first["good"]) == pytest.approx(share, rel=0.2)


def otlp(path: Path, traces: Sequence[Sequence[SpanRow]], start: int) -> Path:
    """Write traces as OTLP JSON, from a start on, a second apart."""
    shifts = [start + at * 10**9 - min(one.start_unix_nano for one in spans) for at, spans in enumerate(traces)]
    path.write_text("".join(encode(of_rows(*one)) + "\n" for one in zip(traces, shifts, strict=True)))
    return path


@pytest.mark.parametrize("with_kinds", [True, False], ids=["kinds", "no kinds"])
@pytest.mark.parametrize("kind", ["cpu", "delay"])
def test_others_traces_without_any_verdict_show_the_service_to_blame(
    kind: str, with_kinds: bool, tmp_path: Path
) -> None:
    rng = np.random.default_rng(2)
    system = System(2, with_kinds=with_kinds)
    target = system.reached()[2]
    traces = [*system.traces(80, rng), *system.traces(80, rng, Fault(kind, target))]
    path = otlp(tmp_path / "spans.jsonl", traces, NOON)
    fault = "2026-03-01T12:01:20"
    found = asked(f"file://{path}", "--since", fault, "--against", f"2026-03-01T12:00..{fault}")
    first = found["services"][0]
    assert first["service"] == target
    assert first["excess_ms"] > 0
    assert first["score"] > 0
    assert target in found["sentence"]


def test_calls_that_stopped_are_in_the_sentence(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    shares = {"stock": 1.0, "prices": 1.0}
    traces = [*window(rng, 0, shares), *window(rng, 1000, shares | {"prices": 0.0})]
    path = otlp(tmp_path / "spans.jsonl", traces, NOON)
    fault = "2026-03-01T12:03:20"
    found = asked(f"file://{path}", "--since", fault, "--against", f"2026-03-01T12:00..{fault}")
    stopped = "Calls to prices stopped (0 % of POST /graphql of shop make them, normally 100 %)."
    assert found["sentence"].startswith(stopped[:-1])
    assert found["services"] == []
    assert found["stopped"][0]["callee"] == "prices"
    assert stopped in printed(
        "causes", "--long", "--store", path, "--since", fault, "--against", f"2026-03-01T12:00..{fault}"
    )


def test_an_empty_normal_window_is_no_answer(planted: Path) -> None:
    found = asked(planted, "--since", "2026-03-01T12:10", "--against", "2026-01-01..2026-01-02")
    assert found["services"] == []


def test_a_sentence_names_what_is_there_before_what_is_missing() -> None:
    assert causes.having({"a": None, "b": "1"}) == "with b 1 and without a"
    assert causes.having({"a": None}) == "without a"
