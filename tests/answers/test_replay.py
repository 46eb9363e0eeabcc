"""`stagetrace replay` sends a stored breach to a real service again: alone, under its load, and without a route."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from inspect import getsource
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from answers.loaded import worker
from answers.made import MS, NOON, Made, store
from backend.running import run_up
from cli.running import answered, cli, printed, refused
from services import recorded, run_service
from stagetrace.analysis.replay_breach import One, Sent, Situation, outcome
from stagetrace.cli.replay import view
from stagetrace.cli.replay.runs import Result
from stagetrace.cli.replay.view import About
from stagetrace.store.base import Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from services import Service

PAGE = Path(__file__).parents[2] / "docs/answers/replay.md"
NOWHERE = "http://127.0.0.1:9"
BODIES = ("--body", "/embed=[]", "--body", "/rank=[1]", "--body", "[1, 2]")

SEEN = {"OTEL_BSP_SCHEDULE_DELAY": "200", "STAGETRACE_SOCKET_WAIT": "1"}  # how long a request waits to be read


def trace(number: int) -> str:
    return f"{number:032x}"


def made(number: int, at_ms: float, **more: Any) -> Made:
    """Return a request of `/predict` unless told otherwise, that began so many ms after noon."""
    route = more.get("route", "/predict")
    given = {"name": f"POST {route}", "attributes": {"url.path": route, **more.pop("attributes", {})}, **more}
    return Made(number, NOON + round(at_ms * MS), **given)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a store of a breach of 500 ms, number 1, with what was around it, and of requests that cannot be sent."""
    return str(store(tmp_path_factory.mktemp("replay") / "store", _requests()))


def _requests() -> Iterator[Made]:
    sized = {"http.request.body.size": 12}
    yield made(1, 0, stages={"queue": 500.0}, within_ms=100, attributes=sized)
    yield made(2, -100, stages={"handler": 200.0}, route="/embed", attributes={"http.request.body.size": 1024})
    yield made(3, -1_500, stages={"handler": 1_600.0}, route="/long")  # in flight while it was
    yield made(4, -1_500, stages={"handler": 10.0}, route="/gone")
    yield made(5, 600, route="/later")
    yield made(6, 10, route="/elsewhere", service="search")
    yield made(7, 20, route="/socket", attributes={"url.scheme": "ws"})
    yield made(8, 30, route="/other", resource={"service.instance.id": "b"})
    yield made(20, 60_000)  # which no objective judged
    stream = {"sla.breach.promise": "first_chunk", "sla.breach.missed": "first_chunk: 163 ms, 100 ms allowed"}
    yield made(21, 70_000, stages={"network.send": 300.0}, within_ms=100, attributes=stream)
    yield made(22, 80_000, within_ms=5, attributes={"http.request.method": None, "rpc.method": "pkg.Scorer/Predict"})


def test_what_has_no_body_is_named_with_what_to_give(folder: str) -> None:
    said = refused("replay", trace(1), "--against", NOWHERE, "--store", folder)
    assert said == (
        "stagetrace: no bodies are recorded, and these routes had one: POST /embed (1,024 bytes), "
        "POST /predict (12 bytes)\n"
        "give --body 'POST /embed=@embed.json' --body 'POST /predict=@predict.json'\n"
        "or --filler for zeros of that size, which a service may refuse before it works\n"
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((trace(99), "--against", NOWHERE), f"no trace {trace(99)}"),
        ((trace(1), "--against", "http://192.0.2.1:80"), "add --i-own-this"),
        ((trace(1), "--against", "http://localhost:9/predict"), "give --against http://localhost:9\n"),
        ((trace(1), "--against", "grpc://localhost:9/pkg.Scorer/Predict"), "replay sends HTTP alone, and not gRPC"),
        ((trace(20), "--against", NOWHERE), "no objective judged it\ngive it: --objective 50ms"),
        ((trace(21), "--against", NOWHERE), "missed its first_chunk, and replay measures whole responses"),
        ((trace(22), "--against", NOWHERE), "cannot be sent again: they are no HTTP requests"),
        ((trace(1), "--against", NOWHERE, "--service", "search"), "has no request of search"),
        ((trace(1), "--against", NOWHERE, "--body", "/nowhere=1"), "names /nowhere, which is not replayed\nreplayed"),
        ((trace(1), "--against", NOWHERE, "--body", "@/nowhere"), "cannot read /nowhere: No such file"),
        ((trace(1), "--against", NOWHERE, "--filler"), "cannot connect to 127.0.0.1 port 9"),
        ((trace(1), "--against", NOWHERE, "--repeat", "2"), "4 at least"),
    ],
)
def test_what_cannot_be_replayed_is_refused_with_a_remedy(
    folder: str, arguments: tuple[str, ...], expected: str
) -> None:
    assert expected in refused("replay", *arguments, "--store", folder)


@pytest.mark.usefixtures("services")
def test_a_request_that_is_late_by_itself_needs_no_load(folder: str) -> None:
    """A service that takes 200 ms for each request, of which one is within 100 ms."""
    with worker(0.2) as url:
        found = replayed(folder, url, "--repeat", "4", "--filler", "--before", "1s")
    assert (found["late_under_load"], found["in_the_way"]) == (False, [])
    assert (found["alone"]["late"], found["alone"]["requests"]) == (4, 4)
    assert found["sentence"].startswith(
        "Alone 4 of 4 late, under the load around it 4 of 4 late; it is late by itself."
    )
    assert "Zeros for a body went to POST /embed, POST /predict." in found["sentence"]
    assert found["routes"] == ["POST /long", "POST /embed"]
    assert found["under_load"]["others"] == 8
    assert [note.partition(" ")[2] for note in found["notes"] if "not sent" in note] == [
        "requests around it were not sent: another instance served them",
        "requests around it were not sent: they are WebSockets",
    ]


@pytest.mark.usefixtures("services")
def test_a_request_that_is_refused_shows_nothing_and_no_load_is_sent(folder: str) -> None:
    with worker(status=422) as url:
        base = url.removesuffix("/predict")
        done = cli("replay", trace(1), "--against", base, "--store", folder, "--body", "[1]", "--filler", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 2
    assert (found["alone"]["failures"], found["under_load"]) == ({"status 422": 10}, None)
    assert found["late_under_load"] is None
    assert found["sentence"].startswith("Cannot tell: alone 10 of 10 failed (10 x status 422). Check the body")


def replayed(folder: str, url: str, *options: str) -> Any:
    return answered("replay", trace(1), "--against", url.removesuffix("/predict"), "--store", folder, *options)


@pytest.mark.thorough
@pytest.mark.usefixtures("services")
def test_a_breach_behind_a_route_that_blocks_the_loop_names_that_route(tmp_path: Path) -> None:
    """Recorded by `stagetrace up`, and sent again to the same service, started anew and not recorded."""
    with run_up(tmp_path) as up:
        env = recorded(up.url("grpc_port"), "POST /predict within 100ms", **SEEN)
        with run_service(tmp_path, app="blocking_embed", env=env) as service:
            service.call("POST", "/predict", json=[1.0])
            trace_id = _behind_embed(service)
        options = ("--store", up.ready["data"], "--repeat", "4", "--before", "1s", *BODIES)
        deadline = time.monotonic() + 30
        while cli("trace", trace_id, "--store", up.ready["data"]).returncode and time.monotonic() < deadline:
            time.sleep(0.2)
        with run_service(tmp_path, app="blocking_embed") as test:
            found = answered("replay", trace_id, "--against", test.url, *options)
            shown = printed("replay", "latest", "--against", test.url, *options, COLUMNS="100")
    assert found["sentence"].startswith(
        "Alone 0 of 4 late, under the load around it 4 of 4 late; POST /embed is in the way"
    )
    assert (found["late_under_load"], found["in_the_way"]) == (True, ["POST /embed"])
    assert (found["threshold_ms"], found["alone"]["late"], found["under_load"]["late"]) == (100, 0, 4)
    assert {one["route"]: one["late"] for one in found["without"]}["POST /embed"] == 0
    assert found["under_load"]["others_failed"] == 0
    assert len(shown.splitlines()) <= 20
    assert "POST /embed is in the way" in " ".join(shown.split())


def _behind_embed(service: Service) -> str:
    """Ask for a prediction while an embedding blocks the loop, beside another request; return its trace."""
    beside = [
        threading.Thread(target=service.call, args=("POST", path), kwargs={"json": body})
        for path, body in (("/rank", [1.0]), ("/embed", ["a", "b"]))
    ]
    for one in beside:
        one.start()
        time.sleep(0.1)
    trace_id, response = service.call("POST", "/predict", json=[1.0, 2.0])
    for one in beside:
        one.join()
    assert response.json() == 3
    return trace_id


SLOW, WELL = One(900.0, 0.0, None), One(1.0, 0.0, None)
REFUSED = "status 422"


def sentence(result: Result, *routes: str) -> str:
    """Return the first sentence on a request of `POST /a` that was among requests of these routes."""
    sent = tuple(Sent(one, "POST", "/", "", 0, 0, 1.0) for one in ("POST /a", *routes))
    situation = Situation(sent, 0, Counter(), is_sampled=False, is_of_process=True, has_queries=True)
    entry = Entry("1", "1", "shop", "POST /a", "/a", 0, 300 * MS, 100.0, 200.0, None, None, None)
    about = About(entry, situation, 100.0, NOWHERE, 5.0, {}, filled=False)
    found = view.answer(result, about)
    assert found.is_undecided == (found.keys["late_under_load"] is None)
    return found.sentence.partition(" Late: ")[0]


def test_the_sentence_has_what_the_runs_show() -> None:
    alone, load, half = (outcome([one] * 10, 100.0, [None]) for one in (WELL, SLOW, WELL))
    wrong = outcome([SLOW] * 10, 100.0, [REFUSED])
    begin = "Alone 0 of 10 late, under the load around it 10 of 10 late; "
    assert sentence(Result(alone)) == "Alone 0 of 10 late; the store has nothing that was around it."
    assert sentence(Result(alone, load), "POST /b") == f"{begin}POST /b is in the way (nothing else was around it)."
    assert sentence(Result(alone, load, {"POST /a": half, "POST /b": load}), "POST /a", "POST /b") == (
        f"{begin}other POST /a are in the way (without other POST /a 0 of 10 late)."
    )
    assert sentence(Result(alone, load, {"POST /b": load, "POST /c": load}), "POST /b", "POST /c") == (
        f"{begin}none of 2 routes left out one by one makes that surely better."
    )
    assert sentence(Result(alone, wrong), "POST /b") == (
        f"{begin}POST /b is in the way (nothing else was around it), though 1 of 1 others failed (1 x status 422)."
    )
    assert sentence(Result(alone, outcome([WELL] * 10, 100.0, [REFUSED])), "POST /b") == (
        "Alone 0 of 10 late, under the load around it 0 of 10 late; "
        "cannot tell, for it is not the same load: 1 of 1 others failed (1 x status 422)."
    )
    assert sentence(Result(alone, half), "POST /b") == (
        "Alone 0 of 10 late, under the load around it 0 of 10 late; here it is not surely late more often under load."
    )
    assert sentence(Result(alone, outcome([One(inf, 0.0, "status 503")] * 10, 100.0)), "POST /b") == (
        "Alone 0 of 10 late; cannot tell under load: 10 of 10 failed (10 x status 503)."
    )


def test_its_page_names_each_key() -> None:
    page = re.sub(r"^```.*?^```$", "", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    words = set(re.findall(r"\w+", " ".join(re.findall(r"`[^`]+`", page))))
    keys = set(re.findall(r'^ +"(\w+)":', getsource(view), re.MULTILINE))
    assert len(keys) > 20
    assert not keys - words
