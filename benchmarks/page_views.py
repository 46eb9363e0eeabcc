"""Measure the page over a day of realistic traffic: each view by itself, and a hundred viewers beside ingest.

A copy of the store is served by `stagetrace up`. Of each view: the shell, which is what is painted first; then all of
its parts at once, as a browser asks for them: for the first time after the start, with no answer kept from before
("cold", with the CPU that the back end spent), and again ("warm"). Then viewers spread over the views of the menu, in
waves, while spans are received. With `--browser`, Chromium tells when it painted.
"""

from __future__ import annotations

import http.client
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from html import unescape
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(1, str(Path(__file__).resolve().parent.parent / "tests"))

from benchmarks import queries
from benchmarks.load import cpu_seconds
from benchmarks.measure import BIN, Table, clean_environment, parser, progress, quantile, show, status_kb
from benchmarks.traffic import Traffic

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_PART = re.compile(r'hx-get="([^"]+)"[^>]*hx-trigger="load')
_ID = re.compile("/[0-9a-f]{32}")
_ANSWER = re.compile(r'href="(/answers/[^"?]+)')
_INGEST_EVERY_S = 0.25  # 495 spans each time: 2,000 spans a second
_WAVES = 3


class Got(NamedTuple):
    """One response."""

    status: int
    ms: float
    body: str


@dataclass(frozen=True)
class View:
    """Milliseconds of one view; `slowest` names the part that took longest when cold."""

    path: str
    shell: float
    first: float
    cold: float
    cpu: float
    slowest: str
    warm: float
    painted: float | None = None
    failed: int = 0


@dataclass(frozen=True)
class Measured:
    """All figures. Waits of viewers are in ms, until their view was complete."""

    spans: int
    views: list[View]
    viewers: int
    waits: list[float] = field(default_factory=list)
    failed: int = 0
    acknowledged_alone: list[float] = field(default_factory=list)
    acknowledged_beside: list[float] = field(default_factory=list)
    idle_mb: float = 0
    peak_mb: float = 0


@dataclass(frozen=True)
class Site:
    """The back end that serves the page."""

    pid: int
    receiver: int
    port: int
    spans: int
    since_ns: int
    until_ns: int

    def get(self, url: str) -> Got:
        """Ask for a path."""
        return _ask(self.port, "GET", url)

    def url(self, path: str, number: int = 0) -> str:
        """Return the address of a view over the whole store; with another number nothing of its answers is kept."""
        return f"{path}?since={queries.iso(self.since_ns)}&until={queries.iso(self.until_ns + number * 10**9)}"

    def memory_mb(self, name: str) -> float:
        """Return a figure of /proc."""
        return status_kb(Path(f"/proc/{self.pid}/status").read_text(), name) / 1024


def _ask(port: int, method: str, url: str, body: bytes | None = None) -> Got:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    began = time.perf_counter()
    try:
        connection.request(method, url, body, {"content-type": "application/x-protobuf"} if body else {})
        response = connection.getresponse()
        text = response.read().decode("utf-8", "replace")
    finally:
        connection.close()
    return Got(response.status, 1000 * (time.perf_counter() - began), text)


@contextmanager
def serve(folder: Path) -> Iterator[Site]:
    """Run `stagetrace up` on a folder whose spans are all of one day."""
    from stagetrace.store.base import Selection
    from stagetrace.store.local import LocalReader

    with LocalReader.open(folder) as reader, reader.relations(Selection(0, 2**62)) as all_time:
        ((spans, first, last),) = all_time.select(
            "SELECT count(*), min(start_unix_nano), max(start_unix_nano) FROM spans"
        )[1]
    ports = [f"--{name}port=0" for name in ("grpc-", "http-", "query-grpc-", "query-http-")]
    argv = [str(BIN / "stagetrace"), "up", "--data", str(folder), "--json", "--retention", "3650d", *ports]
    process = subprocess.Popen(argv, env=clean_environment(), stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        ready = json.loads(process.stdout.readline())
        yield Site(process.pid, ready["http_port"], ready["query_http_port"], spans, first, last + 10**9)
    finally:
        process.terminate()
        process.wait(60)


def paths(folder: Path) -> list[str]:
    """Return the address of each view: of a trace one with a breach."""
    from stagetrace.page.views import VIEWS
    from stagetrace.store.base import Selection
    from stagetrace.store.local import LocalReader

    with LocalReader.open(folder) as reader:
        breach = reader.breaches(Selection(0, 2**62, limit=1)).breaches[0]
    known = {"/trace/{trace_id}": f"/trace/{breach.trace_id}"}
    views = [known.get(view.path, view.path) for view in VIEWS]
    return [path for path in views if "{" not in path]


def answer_paths(site: Site) -> list[str]:
    """Return the address of each answer."""
    return list(map(unescape, dict.fromkeys(_ANSWER.findall(site.get(site.url("/answers")).body))))


def look(site: Site, path: str, number: int) -> View:
    """Open a view, and all of its parts at once: three times, of which the last finds kept answers."""
    shells = [site.get(site.url(path, number)) for _ in range(5)]
    first, _ = _parts(site, path, number + 1)
    before = cpu_seconds(site.pid)
    cold, parts = _parts(site, path, number)
    cpu = 1000 * (cpu_seconds(site.pid) - before)
    warm, _ = _parts(site, path, number)
    slowest = max(parts, key=lambda url: parts[url].ms, default="")
    return View(
        path=_ID.sub("/ID", path),
        shell=statistics.median(one.ms for one in shells),
        first=first,
        cold=cold,
        cpu=cpu,
        slowest=slowest.partition("?")[0].rpartition("/")[2],
        warm=warm,
        failed=sum(one.status != http.client.OK for one in (*shells, *parts.values())),
    )


def _parts(site: Site, path: str, number: int) -> tuple[float, dict[str, Got]]:
    """Ask for all parts of a view at once; return the ms until the last was there, and the responses by address."""
    urls = part_urls(site.get(site.url(path, number)).body)
    with ThreadPoolExecutor(max(1, len(urls))) as pool:
        began = time.perf_counter()
        found = list(pool.map(site.get, urls))
        return 1000 * (time.perf_counter() - began), dict(zip(urls, found, strict=True))


def part_urls(shell: str) -> list[str]:
    """Return the addresses of the parts that a view asks for when it is loaded."""
    return [unescape(url) for url in _PART.findall(shell)]


def painted(site: Site, urls: Sequence[str]) -> dict[str, float]:
    """Return when a real Chromium painted the first content of each view, in ms from the start of its navigation."""
    from playwright.sync_api import sync_playwright

    from page import chromium

    installed = chromium.installed()
    found: dict[str, float] = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=installed.executable, args=list(chromium.FLAGS), env={**installed.environment}
        )
        page = browser.new_page()
        for url in (urls[0], *urls):  # the first once more: it loads what all views share
            page.goto(f"http://127.0.0.1:{site.port}{site.url(url)}", wait_until="load")
            script = "() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
            page.wait_for_function(script)
            found[_ID.sub("/ID", url)] = page.evaluate(script)
        browser.close()
    return found


@contextmanager
def ingest(site: Site) -> Iterator[list[float]]:
    """Send spans until the block ends; yield the times that requests took until they were acknowledged, in ms."""
    over, took = threading.Event(), list[float]()
    sender = threading.Thread(target=_send, args=(site, over, took))
    sender.start()
    try:
        yield took
    finally:
        over.set()
        sender.join()


def _send(site: Site, over: threading.Event, into: list[float]) -> None:
    """Send a request each _INGEST_EVERY_S, whether or not the one before was late."""
    requests = Traffic(time.time_ns()).requests(10_000_000, 55)
    due = time.perf_counter()
    while not over.wait(max(0.0, due - time.perf_counter())):
        got = _ask(site.receiver, "POST", "/v1/traces", next(requests))
        assert got.status == http.client.OK, got
        into.append(1000 * (time.perf_counter() - due))
        due += _INGEST_EVERY_S


def visit(site: Site, url: str) -> tuple[float, int]:
    """Open a view as a browser does; return the ms until it was complete, and how many responses were errors."""
    began = time.perf_counter()
    shell = site.get(url)
    parts = [site.get(part) for part in part_urls(shell.body)]
    return 1000 * (time.perf_counter() - began), sum(one.status != http.client.OK for one in (shell, *parts))


def measure(folder: Path, viewers: int, *, answers: bool, browser: bool) -> Measured:
    """Measure each view, then all at once."""
    with serve(folder) as site:
        idle_mb = site.memory_mb("VmRSS")
        menu = paths(folder)
        addresses = [*menu, *answer_paths(site)] if answers else menu
        times = painted(site, addresses) if browser else {}
        views = []
        for number, path in enumerate(addresses):
            progress(path)
            view = look(site, path, 2 * number)
            views.append(replace(view, painted=times.get(view.path)))
        progress("ingest alone")
        with ingest(site) as alone:
            time.sleep(10)
        visits: list[tuple[float, int]] = []
        with ingest(site) as beside, ThreadPoolExecutor(viewers) as pool:
            for wave in range(_WAVES):
                progress(f"{viewers} viewers, wave {wave + 1} of {_WAVES}")
                urls = [site.url(menu[n % len(menu)], 1000 + wave) for n in range(viewers)]
                visits += pool.map(partial(visit, site), urls)
        waits, failed = [wait for wait, _ in visits], sum(errors for _, errors in visits)
        return Measured(site.spans, views, viewers, waits, failed, alone, beside, idle_mb, site.memory_mb("VmHWM"))


def tables(result: Measured) -> Sequence[Table]:
    """Return the figures."""
    rows = [
        (
            view.path,
            f"{view.shell:.0f}",
            "" if view.painted is None else f"{view.painted:.0f}",
            f"{view.first:,.0f}",
            f"{view.cold:,.0f}",
            f"{view.cpu:,.0f}",
            view.slowest,
            f"{view.warm:,.0f}",
            f"{view.failed}",
        )
        for view in result.views
    ]
    columns = (
        "view",
        "shell, ms",
        "first paint, ms",
        "all parts, first",
        "cold",
        "CPU",
        "slowest part",
        "warm",
        "errors",
    )
    return [Table(f"The page over {result.spans:,} spans, the whole time of the store, in ms", columns, rows)]


def reading(result: Measured) -> Sequence[str]:
    """Return what the figures mean."""
    waits, alone, beside = (
        sorted(one) for one in (result.waits, result.acknowledged_alone, result.acknowledged_beside)
    )

    def spread(ordered: Sequence[float]) -> str:
        return f"p50 {quantile(ordered, 0.5):,.0f} ms, p99 {quantile(ordered, 0.99):,.0f} ms"

    viewers = f"{result.viewers} viewers at once over the views of the menu, each view asked for anew, {_WAVES} times"
    spans = f"495 spans each {_INGEST_EVERY_S} s were acknowledged after"
    return [
        f"{viewers}: complete after {spread(waits)}; {result.failed} responses were errors.",
        f"{spans} {spread(alone)} alone ({len(alone)} requests), {spread(beside)} beside viewers ({len(beside)}).",
        f"The back end had {result.idle_mb:,.0f} MB before and {result.peak_mb:,.0f} MB at most.",
    ]


def main() -> None:
    """Measure and print."""
    arguments = parser(__doc__, "python benchmarks/page_views.py --spans 10000000 --browser")
    arguments.add_argument("--spans", type=int, default=1_000_000, help="spans in the store (1000000)")
    arguments.add_argument("--folder", type=Path, help="measure a copy of the store here, in place of a new one")
    arguments.add_argument("--viewers", type=int, default=100, help="how many ask at once (100)")
    arguments.add_argument("--answers", action="store_true", help="measure each of the ten answers, too")
    arguments.add_argument("--browser", action="store_true", help="measure the first paint in Chromium, too")
    args = arguments.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "store"
        if args.folder is None:
            queries.fill(folder, args.spans)
        else:
            shutil.copytree(args.folder, folder)
        show(measure(folder, args.viewers, answers=args.answers, browser=args.browser), tables, reading, args.json)


if __name__ == "__main__":
    main()
