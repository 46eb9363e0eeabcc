"""`stagetrace cost` over a real store: time is divided as brute force divides it, and amounts add up to the bill."""

from __future__ import annotations

import json
import random
import socket
from collections import defaultdict
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from answers.made import EVER, MS, NOON, Made, store
from backend.running import run_up
from cli.running import answered, printed, refused
from services import recorded, run_service, wsgi_command

if TYPE_CHECKING:
    from pathlib import Path


def made() -> list[Made]:
    chance = random.Random(4)
    return [
        Made(
            number,
            NOON + chance.randrange(600_000) * MS,
            {"preprocess": float(chance.randrange(1, 2000)), "inference": float(chance.randrange(1, 9000))},
            service=chance.choice(["shop", "search"]),
            model=chance.choice(["churn", "ranker"]),
            version=chance.choice(["1", "2"]),
            within_ms=8000,
            attributes={"tenant.id": chance.choice(["gold", "free"]), "gen_ai.usage.input_tokens": number % 50},
            resource={"service.instance.id": chance.choice("ab"), "host.type": "small"},
        )
        for number in range(1, 601)
    ]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Made]]:
    requests = made()
    return store(tmp_path_factory.mktemp("cost") / "store", requests), requests


def shared(requests: list[Made]) -> dict[int, Fraction]:
    """Return how much time of its instance each request has, in ns, moment by moment."""
    share: dict[int, Fraction] = defaultdict(Fraction)
    groups: dict[tuple[str, Any], list[tuple[int, int, int]]] = defaultdict(list)
    for one in requests:
        end = one.start_unix_nano + round(one.took_ms * MS)
        groups[one.service, one.resource["service.instance.id"]].append((one.start_unix_nano, end, one.number))
    for spans in groups.values():
        edges = sorted({edge for start, end, _ in spans for edge in (start, end)})
        for begin, stop in pairwise(edges):
            flying = [number for start, end, number in spans if start <= begin and end >= stop]
            for number in flying:
                share[number] += Fraction(stop - begin, len(flying))
    return share


def ask(folder: Path, *options: str, prices: Any = None) -> Any:
    path = folder.parent / "prices.json"
    if prices is not None:
        path.write_text(json.dumps(prices))
        options = (*options, "--prices", str(path))
    return answered("cost", "--store", folder, *EVER, *options)


def micros(amount: float) -> int:
    return round(amount * 10**6)


@pytest.mark.parametrize("by", ["model", "tenant.id", "stage", "service"])
@pytest.mark.parametrize(
    "prices",
    [
        {"currency": "EUR", "bill": 34.1},
        {"per_hour": 1.2, "per_1k_tokens": {"input": 0.3}},
        {"prices": [{"instance_type": "small", "gpu_per_hour": 0.77, "gpus": 2}]},
    ],
)
def test_all_parts_add_up_to_the_bill(by: str, prices: Any, filled: tuple[Path, list[Made]]) -> None:
    found = ask(filled[0], "--by", by, prices=prices)
    parts = [micros(line["amount"]) for line in found["lines"]]
    assert sum(parts) + micros(found["idle"]) + micros(found["breach"]) == micros(found["total"])
    assert sum(micros(line["breach_amount"]) for line in found["lines"]) == micros(found["breach"])
    assert found["total"] == prices.get("bill", found["total"])


def test_each_amount_is_that_of_brute_force(filled: tuple[Path, list[Made]]) -> None:
    folder, requests = filled
    found = ask(folder, prices={"per_hour": 3600, "per_token": {"input": 0.5}})
    share = shared(requests)
    assert len(found["lines"]) == 4
    for line in found["lines"]:
        key = (line["by"]["model"], line["by"]["model_version"])
        mine = [one for one in requests if (one.model, one.version) == key]
        for word, amount in (("good", line["amount"]), ("breach", line["breach_amount"])):
            wanted = sum(float(share[one.number]) / 1e9 + one.number % 50 * 0.5 for one in mine if one.word == word)
            assert amount == pytest.approx(wanted, abs=1e-5)
        assert (line["requests"], line["breaches"]) == (len(mine), sum(one.word == "breach" for one in mine))
        assert line["per_request"] == pytest.approx((line["amount"] + line["breach_amount"]) / len(mine))
    assert found["busy_s"] == pytest.approx(float(sum(share.values())) / 1e9)


def test_models_whose_requests_begin_and_end_at_the_same_times_cost_the_same(tmp_path: Path) -> None:
    models = ["churn", "ranker", "rank"]
    requests = [
        Made(
            3 * number + place,
            NOON + number // 12 * 1000 * MS,
            {"inference": 1000.0 * (1 + number % 7)},
            model=model,
            resource={"service.instance.id": "a"},
        )
        for number in range(3000)
        for place, model in enumerate(models, 1)
    ]
    found = ask(store(tmp_path / "store", requests), "--by", "model", prices={"bill": 300})
    assert {line["by"]["model"]: line["amount"] for line in found["lines"]} == dict.fromkeys(models, 100)


def test_many_requests_are_asked_for_part_by_part(
    filled: tuple[Path, list[Made]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pieces of time add up, though most requests here last longer than a piece."""
    whole = ask(filled[0], prices={"bill": 1000})
    monkeypatch.setattr("stagetrace.analysis.cost._PART", 8)
    pieces = ask(filled[0], prices={"bill": 1000})
    assert pieces["busy_s"] == pytest.approx(whole["busy_s"], rel=1e-9)
    for one, other in zip(pieces["lines"], whole["lines"], strict=True):
        assert one["amount"] == pytest.approx(other["amount"], abs=2e-6)
        assert (one["by"], one["requests"], one["breaches"]) == (other["by"], other["requests"], other["breaches"])


def test_the_sentence_and_the_tables(filled: tuple[Path, list[Made]]) -> None:
    path = filled[0].parent / "prices.toml"
    path.write_text('currency = "EUR"\nbill = 34.10\n')
    command = ("cost", "--long", "--store", filled[0], *EVER, "--prices", path)
    shown = printed(*command)
    first = shown.splitlines()[0]
    assert first.startswith("1,000 requests of model ")
    assert "of the 34.10 EUR bill was idle" in first
    assert "went into requests that missed their objective" in first
    assert "4 instances" in shown
    assert "<svg" in printed(*command, "--format", "html")


def test_without_prices_amounts_are_unknown(filled: tuple[Path, list[Made]]) -> None:
    found = ask(filled[0])
    assert (found["total"], found["idle"], found["breach"], found["currency"]) == (None, None, None, None)
    assert {line["amount"] for line in found["lines"]} == {None}
    assert sum(line["share"] for line in found["lines"]) == pytest.approx(1)
    assert "give --price or --prices" in found["sentence"]


def test_prices_on_the_command_line_are_those_of_a_file(filled: tuple[Path, list[Made]]) -> None:
    """A decimal number is exact, and a name is a name."""
    given = ("--price", "per_hour=1.20", "--price", "currency=EUR")
    assert ask(filled[0], *given) == ask(filled[0], prices={"per_hour": 1.2, "currency": "EUR"})


def test_stages_share_as_they_last(filled: tuple[Path, list[Made]]) -> None:
    found = ask(filled[0], "--by", "stage", prices={"bill": 1000})
    took = {stage: sum(one.stages[stage] for one in filled[1]) for stage in ("preprocess", "inference")}
    share = {line["by"]["stage"]: line["share"] for line in found["lines"]}
    assert share["inference"] == pytest.approx(took["inference"] / sum(took.values()), abs=0.02)
    assert set(share) == set(took)


def test_sampled_requests_stand_for_others(tmp_path: Path) -> None:
    requests = [
        Made(n, NOON + n * 1000 * MS, {"inference": 100.0}, probability=0.1, within_ms=200) for n in range(1, 50)
    ]
    folder = store(tmp_path / "store", requests)
    assert ask(folder)["lines"][0]["requests"] == 490
    assert "busy time is a guess" in printed("cost", "--long", "--store", folder, *EVER)


@pytest.mark.parametrize(
    ("name", "text", "wrong"),
    [
        ("p.toml", "per_hour = -1", "a price is not negative"),
        ("p.toml", "per_hour: 1", "is no TOML"),
        ("p.json", "{", "is no JSON"),
        ("p.json", "[1]", "no table of prices"),
        ("p.json", '{"per_hours": 1}', "'per_hours', which is no price"),
        ("p.json", '{"per_hour": NaN}', "which is no number"),
        ("p.json", '{"prices": [{"service": "no", "per_hour": 1}, {"service": "shop", "per_hour": 1}]}', "'search'"),
        ("p.toml", b"\xff\xfe", "is no TOML"),
        (None, "", "cannot be read: No such file"),
    ],
)
def test_a_bad_price_file_is_an_error_of_few_lines(
    name: str | None, text: str | bytes, wrong: str, filled: tuple[Path, list[Made]], tmp_path: Path
) -> None:
    path = tmp_path / (name or "nowhere.toml")
    if name is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert wrong in refused("cost", "--store", filled[0], *EVER, "--prices", path)


def test_workers_of_one_host_are_one_instance(tmp_path: Path) -> None:
    """Paid once; where the host is not known, each process is one, which is said."""

    def bill(name: str, **host: str) -> tuple[float, str]:
        requests = [
            Made(n, NOON + n * 1_000 * MS, resource={"service.instance.id": "ab"[n % 2], **host})
            for n in range(1, 3602)
        ]
        folder = store(tmp_path / name, requests)
        options = ("--store", folder, *EVER, "--price", "per_hour=1.00")
        return answered("cost", *options)["total"], printed("cost", "--long", *options)

    total, text = bill("known", **{"host.name": "web-1"})
    assert total == pytest.approx(1.0, rel=0.01)
    assert "1 instance, 1.00 hours" in text
    assert "2 processes: workers of one host are one instance of their service." in text
    total, text = bill("unknown")
    assert total == pytest.approx(2.0, rel=0.01)
    assert "2 processes carry no host.name, so each is an instance" in text


@pytest.mark.usefixtures("services")
def test_two_workers_of_a_server_are_one_instance(tmp_path: Path) -> None:
    """Each worker's spans name the host, so that the bill is that of one."""
    argv = [*wsgi_command("gunicorn", "flask_light"), "-w", "2"]
    with run_up(tmp_path) as up:
        with run_service(tmp_path, "flask_light", env=recorded(f"http://{up.target()}"), argv=argv) as service:
            service.call_at_once("/predict", [{"inference_s": 0.3}] * 4)  # each worker serves one at a time
        text = printed("cost", "--long", "--store", tmp_path / "data")
        lines = answered("cost", "--store", tmp_path / "data", "--by", "host.name")["lines"]
    assert "\n1 instance, " in text
    assert "2 processes: workers of one host are one instance of their service." in text
    assert [one["by"] for one in lines] == [{"host.name": socket.gethostname()}]
