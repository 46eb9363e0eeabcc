"""Serve three applications with planted faults, and print the first sentence of each answer beside what was planted.

The services are as their authors wrote them; only this benchmark knows the faults. Half-way, new releases of two of
them are started. A sentence is right if it matches the pattern beside it, which names the planted fault.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import shlex
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from html import unescape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import httpx

from benchmarks.ground_truth.processes import service, start
from benchmarks.measure import Table, clean_environment, parser, progress
from stagetrace.cli.ask import answer_of
from stagetrace.page.base import Asked, Part, Site
from stagetrace.page.templates import render
from stagetrace.page.views import board
from stagetrace.store import open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

STAGETRACE: Final = (sys.executable, "-m", "stagetrace.cli.main")
POLICIES: Final = {
    "rank": "/chat within 5s first_chunk 100ms per_chunk 100ms; * within 100ms",
    "fraudgate": "* within 60ms",
    "shelf": "* within 60ms",
}
RELEASES: Final = (
    {"rank": "1.4.0", "fraudgate": "7.0", "shelf": "2.0.0"},
    {"rank": "1.5.0", "fraudgate": "7.0", "shelf": "2.1.0"},
)
TENANTS: Final = ("acme", "globex", "initech", "umbrella")
ASCII_TEXT, OTHER_TEXT = "where is my parcel today please", "çanta nerede bugün lütfen söyle"
LOAD: Final = {"rank": 16.0, "chat": 2.0, "fraudgate": 6.0, "shelf": 8.0}  # requests a second


class Planted(NamedTuple):
    """A command, what was planted, and the pattern that its first sentence matches if it says so."""

    command: str
    truth: str
    pattern: str


EXPECTED: Final = (
    Planted("breaches --service rank --route /rank", "the scan of globex, in client.py", r"client\.py|io_wait"),
    Planted("breaches --service rank --route /chat", "a sleep in rank.py's tokens", r"tokens|rank\.py|handler"),
    Planted(
        "breaches --service fraudgate",
        "predictions under a lock, and those that wait for it",
        r"fraudgate\.py|lock|inference",
    ),
    Planted(
        "breaches --service shelf",
        "the lock of the cache, or umbrella's long inputs",
        r"shelf\.py|features|client\.py|inference",
    ),
    Planted(
        "causes --service rank --route /rank", "tenant globex, or lang tr since release 1.5.0", r"tenant globex|lang tr"
    ),
    Planted("causes --service fraudgate", "v2 and tenant initech", r"version v2|tenant initech"),
    Planted("causes --service shelf", "tenant umbrella", r"tenant umbrella"),
    Planted("segments --service rank --route /rank --by tenant", "globex", r"globex"),
    Planted("segments --service shelf --by tenant", "umbrella", r"umbrella"),
    Planted("segments --service fraudgate --by version", "v2", r"v2"),
    Planted(
        "compare --service rank --route /rank --a service.version=1.4.0 --b service.version=1.5.0",
        "requests of lang tr are several times slower in 1.5.0",
        r"(tr\b|bytes).*slower",
    ),
    Planted(
        "compare --service shelf --a service.version=2.0.0 --b service.version=2.1.0",
        "inference is 20 % slower in 2.1.0",
        r"slower.*inference",
    ),
    Planted("board rank", "waits for the feature store", r"rank.*io_wait"),
    Planted("board shelf", "the lock of the cache, or long inputs", r"recommend.*(preprocess|inference)"),
    Planted("drift --service rank --route /rank", "lang tr since release 1.5.0", r"1\.5\.0"),
    Planted("drift --service shelf", "inference since release 2.1.0", r"2\.1\.0"),
    Planted("slo --service rank", "the objective of rank misses its target most", r"rank"),
    Planted("slo --service shelf", "shelf misses its target", r"shelf"),
    Planted(
        "capacity --service rank --route /rank",
        "one load only: the command to learn more",
        r"bench --find|stagetrace bench",
    ),
)


@contextmanager
def back_end(folder: Path) -> Iterator[dict[str, Any]]:
    """Run the embedded back end; yield its ports."""
    flags = [flag for port in ("grpc", "http", "query-grpc", "query-http") for flag in (f"--{port}-port", "0")]
    argv = [*STAGETRACE, "up", "--data", str(folder), *flags, "--json"]
    process = start(argv, env=clean_environment(), stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())
    finally:
        process.terminate()
        process.communicate()


def environment(name: str, release: str, grpc_port: int, **more: str) -> dict[str, str]:
    """Return the variables of a service that is recorded."""
    return {
        "STAGETRACE": "1",
        "STAGETRACE_SLA": POLICIES[name],
        "OTEL_SERVICE_NAME": name,
        "OTEL_RESOURCE_ATTRIBUTES": f"service.version={release}",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{grpc_port}",
        "RELEASE": release,
        **more,
    }


def call_rank(client: httpx.AsyncClient, draw: random.Random) -> Any:
    """R1: 5 % of the texts are no ASCII; R2: each fifth user of globex."""
    is_other = draw.random() < 0.05
    headers = {"x-tenant": draw.choice(TENANTS), "x-lang": "tr" if is_other else draw.choice(("en", "de"))}
    body = {"text": OTHER_TEXT if is_other else ASCII_TEXT, "user": draw.randrange(1000)}
    return client.post("/rank", json=body, headers=headers)


def call_chat(client: httpx.AsyncClient, draw: random.Random) -> Any:
    """R3: 5 % of the streams block the event loop."""
    return client.get("/chat", params={"slow": int(draw.random() < 0.05)})


def call_fraudgate(client: httpx.AsyncClient, draw: random.Random) -> Any:
    """F1: v2 for initech's each fifth user; F2: calls the ranker."""
    headers = {"x-tenant": draw.choice(TENANTS), "x-version": draw.choice(("v1", "v2"))}
    return client.post("/check", json={"user": draw.randrange(1000)}, headers=headers)


def call_shelf(client: httpx.AsyncClient, draw: random.Random) -> Any:
    """S2: umbrella's texts are long."""
    tenant = draw.choice(TENANTS)
    words = draw.randrange(300, 500) if tenant == "umbrella" else draw.randrange(10, 40)
    return client.post("/recommend", json={"text": "word " * words}, headers={"x-tenant": tenant})


# Servers close idle connections after two seconds and more: a request on one that closes just then would fail.
SHORT_LIVED: Final = httpx.Limits(keepalive_expiry=1)
CALLS: Final[dict[str, Callable[[httpx.AsyncClient, random.Random], Any]]] = {
    "rank": call_rank,
    "chat": call_chat,
    "fraudgate": call_fraudgate,
    "shelf": call_shelf,
}


async def send(ports: dict[str, int], seconds: float, seed: int) -> None:
    """Send requests of all kinds, at random moments, until so many seconds have passed."""

    async def kind(name: str) -> None:
        draw, until = random.Random(f"{seed} {name}"), time.monotonic() + seconds
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{ports[name]}", timeout=60, limits=SHORT_LIVED
        ) as client:
            sent = []
            while time.monotonic() < until:
                await asyncio.sleep(draw.expovariate(LOAD[name]))
                sent.append(asyncio.ensure_future(CALLS[name](client, draw)))
            await asyncio.gather(*sent)

    await asyncio.gather(*map(kind, CALLS))


def serve(releases: dict[str, str], seconds: float, grpc_port: int, features_port: int, seed: int) -> None:
    """Serve one release of each service, and send to it."""
    common = {"FEATURES_PORT": str(features_port)}
    uvicorn = ("-m", "uvicorn", "--no-access-log")
    with ExitStack() as running:
        rank, _ = running.enter_context(
            service(
                (*uvicorn, "benchmarks.planted.rank:app", "--port"),
                environment("rank", releases["rank"], grpc_port, **common),
            )
        )
        fraudgate, _ = running.enter_context(
            service(
                ("-m", "gunicorn", "benchmarks.planted.fraudgate:app", "-w", "2", "--threads", "4", "-b"),
                environment("fraudgate", releases["fraudgate"], grpc_port, RANK_URL=f"http://127.0.0.1:{rank}"),
            )
        )
        shelf, _ = running.enter_context(
            service(
                (*uvicorn, "benchmarks.planted.shelf:app", "--port"),
                environment("shelf", releases["shelf"], grpc_port, **common),
            )
        )
        ports = {"rank": rank, "chat": rank, "fraudgate": fraudgate, "shelf": shelf}
        asyncio.run(send(ports, seconds, seed))


@contextmanager
def feature_store(port: int) -> Iterator[None]:
    """Run it until the block ends."""
    process = start([sys.executable, "benchmarks/planted/features.py", str(port)], env=clean_environment())
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def first_sentence(command: str, store: str) -> str:
    """Return what a command says first."""
    verb, *options = shlex.split(command)
    as_json = [] if verb == "breaches" else ["--json"]
    argv = [*STAGETRACE, verb, *options, "--store", store, *as_json]
    done = subprocess.run(
        argv, capture_output=True, text=True, check=False, env=clean_environment() | {"COLUMNS": "200"}
    )
    if not as_json or not done.stdout.strip():
        return next(
            (line for line in [*done.stdout.splitlines(), *done.stderr.splitlines()] if line.strip()), "nothing"
        )
    return str(json.loads(done.stdout).get("sentence"))


def board_sentence(service_name: str, store: str) -> str:
    """Return what the page's board says first of a service."""
    site = Site(store, partial(open_store, store), partial(answer_of, store))
    asked = Asked.of((("service", service_name),), {}, "1h")
    with open_store(store) as reader:
        part = board.VIEW.parts["now"](asked, reader, site)
    assert isinstance(part, Part)
    html = render("part.html", asked=asked, site=site, part=part, took_s=0.0, **part.values)
    found = re.search(r'<p class="sentence">(.*?)</p>', html, re.DOTALL)
    return "nothing" if found is None else unescape(re.sub(r"<[^>]+>", "", found[1]))


def judged(store: str) -> Table:
    """Return each first sentence beside what was planted."""
    rows = []
    for planted in EXPECTED:
        verb, _, name = planted.command.partition(" ")
        sentence = board_sentence(name, store) if verb == "board" else first_sentence(planted.command, store)
        is_right = re.search(planted.pattern, sentence, re.IGNORECASE | re.DOTALL) is not None
        rows.append(
            (f"`{planted.command}`", planted.truth, sentence.replace("|", "\\|"), "right" if is_right else "**wrong**")
        )
    right = sum(row[-1] == "right" for row in rows)
    return Table(f"First sentences: {right} of {len(rows)} right", ("command", "planted", "first sentence", ""), rows)


def main() -> None:
    """Serve, send, ask."""
    arguments = parser(__doc__, "python benchmarks/planted/run.py --seconds 240")
    arguments.add_argument("--seconds", type=float, default=240, help="of traffic, half of them before the releases")
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--keep", type=Path, help="a folder for the store, which then stays")
    given = arguments.parse_args()
    with TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary)
        if not (folder / "_delta_log").exists() and not list(folder.glob("*")):
            features_port = 20_000 + os.getpid() % 10_000
            with back_end(folder) as ports, feature_store(features_port):
                for number, releases in enumerate(RELEASES):
                    progress(f"releases {releases} ...")
                    serve(releases, given.seconds / 2, ports["grpc_port"], features_port, given.seed + number)
                time.sleep(3)
        print(judged(str(folder)).text())


if __name__ == "__main__":
    main()
