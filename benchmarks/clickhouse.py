"""Measure what answers over ClickHouse cost: each verb and part of the page, with and without its table of requests.

ClickHouse is chDB, the real engine, behind a double of the server's HTTP interface (`tests/chdb_server.py`). It makes
the requests itself (`benchmarks/clickhouse_traffic.py`), nine spans each, spread over seven days; one insert in twenty
arrives twice. Each question is about all of that. The CPU is the server's, and so is the memory: how far a question
takes it beyond what it has before. What it reads of its files is compressed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import httpx

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

from benchmarks import clickhouse_traffic as traffic  # noqa: E402
from benchmarks import page_views, queries  # noqa: E402
from benchmarks.load import cpu_seconds  # noqa: E402
from benchmarks.measure import BIN, Table, clean_environment, parser, progress, show, status_kb  # noqa: E402
from clickhouse import ClickHouse, run_clickhouse  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

PLAIN, MADE = "otel_traces", "with init"
_LIMIT_S = 400  # of a question
_FILL_S = 3600
_SEGMENT = ("--segment", "tenant.id=tenant-7")
_POLICY = "POST /predict within 40ms for 99%; * within 60ms for 99%"
VERBS: dict[str, Sequence[str]] = {
    "services": ["services"],
    "breaches --each --limit 100": ["breaches", "--each", "--limit", "100"],
    "breaches": ["breaches"],
    "requests --limit 100": ["requests", "--limit", "100"],
    "requests --slowest 10": ["requests", "--slowest", "10"],
    "requests --segment --limit 100": ["requests", *_SEGMENT, "--limit", "100"],
    "stages": ["stages"],
    "stages --segment": ["stages", *_SEGMENT],
    "slo": ["slo"],
    "report": ["report"],
    "bottleneck": ["bottleneck"],
    "causes": ["causes"],
    "compare": ["compare", "--a", "version=1.0.0", "--b", "version=1.1.0"],
    "segments": ["segments", "--by", "tenant.id"],
    "drift": ["drift"],
    "capacity": ["capacity"],
    "cost": ["cost", "--price", "per_hour=2.5"],
    "sla suggest": ["sla suggest"],
    "sla replay": ["sla replay", "--policy", _POLICY],
    "query": ["query", "SELECT route, quantile(0.99)(duration_ms) FROM requests GROUP BY route"],
    "trace": ["trace"],
}
_NO_WINDOW = ("services", "trace")


class Cost(NamedTuple):
    """What one question cost: of the server, all but the seconds. `failed`: the error that it ended with."""

    seconds: float
    cpu_s: float
    megabytes_read: float
    memory_mb: float
    failed: str = ""


@dataclass(frozen=True)
class Measured:
    """All figures; of each table its name, rows, bytes a row and parts."""

    requests: int
    sizes: list[tuple[str, int, float, int]] = field(default_factory=list)
    steps: dict[str, Cost] = field(default_factory=dict)
    verbs: dict[str, dict[str, Cost]] = field(default_factory=dict)
    page: dict[str, dict[str, Cost]] = field(default_factory=dict)


@dataclass(frozen=True)
class Bench:
    """A server with the spans."""

    server: ClickHouse
    requests: int

    @property
    def window(self) -> tuple[str, ...]:
        """Return the options for the time that holds all requests."""
        end = traffic.START_NS + traffic.DAYS * traffic.DAY_NS + 10**12
        return ("--since", queries.iso(traffic.START_NS), "--until", queries.iso(end))

    def run(self, sql: str) -> None:
        """Run a statement, however long it takes."""
        response = httpx.post(self.server.http, params={"database": "otel"}, content=sql, timeout=_FILL_S)
        if response.status_code != httpx.codes.OK:
            raise SystemExit(f"{response.text[:2000]}\n{sql[:500]}")

    def fill(self) -> str:
        """Make tables and spans, by two inserts at a time; what fails raises."""
        for table in traffic.TABLES:
            self.run(table)
        with ThreadPoolExecutor(2) as pool:
            for number, _ in enumerate(pool.map(self._insert, range(0, self.requests, traffic.PER_INSERT))):
                if number % 25 == 0:
                    progress(f"filled {number * traffic.PER_INSERT:,} of {self.requests:,} requests")
        return ""

    def _insert(self, first: int) -> None:
        sql = traffic.insert(first, min(traffic.PER_INSERT, self.requests - first), self.requests)
        for _ in range(2 if first // traffic.PER_INSERT % traffic.TWICE == traffic.TWICE // 2 else 1):
            self.run(sql)

    def merged(self) -> None:
        """Wait until the engine merges no parts, which would count as the CPU of a question."""
        while self.server.rows("SELECT count() AS merges FROM system.merges")[0]["merges"]:
            time.sleep(1)

    def sizes(self) -> list[tuple[str, int, float, int]]:
        """Return name, rows, bytes a row and parts of each table."""
        found = self.server.rows(
            "SELECT table, sum(rows) AS n, sum(bytes_on_disk) / n AS each, count() AS parts FROM system.parts "
            "WHERE active AND database = 'otel' GROUP BY table ORDER BY table"
        )
        return [(one["table"], one["n"], one["each"], one["parts"]) for one in found]

    def cost(self, question: Callable[[], str]) -> Cost:
        """Ask, and return what that cost; the question returns its error."""
        pid = self.server.pid
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # the greatest size so far is the present one
        cpu, read, memory = cpu_seconds(pid), _read_bytes(pid), _memory_mb(pid, "VmRSS")
        began = time.perf_counter()
        failed = question()
        return Cost(
            time.perf_counter() - began,
            cpu_seconds(pid) - cpu,
            (_read_bytes(pid) - read) / 1e6,
            max(0, _memory_mb(pid, "VmHWM") - memory),
            failed,
        )

    def command(self, *words: str) -> str:
        """Run a command; return the last line of what it says if it fails."""
        argv = [str(BIN / "stagetrace"), *words, "--store", f"{self.server.url}&max_execution_time={_LIMIT_S}"]
        done = subprocess.run(
            argv, env=clean_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False
        )
        if done.returncode in (0, 1):
            return ""
        return (done.stderr.decode().strip().splitlines() or [f"exit {done.returncode}"])[-1]

    def init(self, form: str) -> Cost:
        """Make the table of requests, or take it away."""
        return self.cost(lambda: self.command("clickhouse", "init", *(() if form == MADE else ("--remove",))))

    def verb(self, name: str, words: Sequence[str]) -> Cost:
        """Ask one verb over the whole time, the process's own start included."""
        if name == "trace":
            found = self.server.rows("SELECT TraceId FROM otel_traces WHERE SpanKind = 'Server' LIMIT 1")
            words = [*words, found[0]["TraceId"]]
        return self.cost(lambda: self.command(*words, *(() if name in _NO_WINDOW else self.window), "--json"))

    @contextmanager
    def page(self) -> Iterator[int]:
        """Serve the page; yield its port."""
        argv = [str(BIN / "stagetrace"), "page", "--port", "0", "--json", "--store", self.server.url]
        process = subprocess.Popen(argv, env=clean_environment(), stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout
            yield json.loads(process.stdout.readline())["port"]
        finally:
            process.terminate()
            process.wait(60)

    def parts(self, port: int) -> dict[str, Cost]:
        """Ask each part of each view by itself; return the cost by address without the window."""
        site = page_views.Site(0, 0, port, 0, traffic.START_NS, traffic.START_NS + traffic.DAYS * traffic.DAY_NS)
        found: dict[str, Cost] = {}
        for path in ("/board", "/heatmap", "/stages", "/breaches", "/compare", "/tail"):
            for url in page_views.part_urls(site.get(site.url(path)).body):
                progress(url.partition("?")[0])
                found[url.partition("?")[0]] = self.cost(partial(_of_page, site, url))
        return found


def _of_page(site: page_views.Site, url: str) -> str:
    got = site.get(url)
    return "" if got.status == httpx.codes.OK else f"{got.status} {' '.join(got.body.split())[:200]}"


def _read_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/io").read_text().split()[1])


def _memory_mb(pid: int, name: str) -> float:
    return status_kb(Path(f"/proc/{pid}/status").read_text(), name) / 1024


def measure(requests: int, folder: Path, forms: Sequence[str], only: str, *, page: bool) -> Measured:
    """Fill the tables if they are not there, and ask everything in each form."""
    is_new = not folder.exists()
    with run_clickhouse(folder) as server:
        bench = Bench(server, requests)
        result = Measured(requests)
        if is_new:
            result.steps["make and insert all spans"] = bench.cost(bench.fill)
        bench.merged()
        for form in forms:
            cost = bench.init(form)
            if form == MADE:
                result.steps["stagetrace clickhouse init"] = cost
            bench.merged()
            for name, words in VERBS.items():
                if only in name:
                    progress(f"{form}: {name}")
                    found = bench.verb(name, words)
                    progress(f"  {found}")
                    result.verbs.setdefault(name, {})[form] = found
            if page:
                with bench.page() as port:
                    for url, found in bench.parts(port).items():
                        progress(f"  {url} {found}")
                        result.page.setdefault(url, {})[form] = found
        result.sizes.extend(bench.sizes())
    return result


def tables(result: Measured) -> Sequence[Table]:
    """Return the figures."""
    columns = ["s", "CPU s", "MB read", "MB of memory"]
    made = [
        Table(
            f"{result.requests:,} requests, {result.requests * traffic.SPANS_PER_REQUEST:,} spans",
            ("table", "rows", "bytes a row", "parts"),
            [(name, f"{rows:,}", f"{each:.1f}", f"{parts}") for name, rows, each, parts in result.sizes],
        ),
        Table("What was done", ("step", *columns), [(name, *_cells(one)) for name, one in result.steps.items()]),
    ]
    for title, found in (("Verbs", result.verbs), ("Parts of the page", result.page)):
        forms = [form for form in (MADE, PLAIN) if any(form in one for one in found.values())]
        rows = [(name, *(cell for form in forms for cell in _cells(one.get(form)))) for name, one in found.items()]
        heads = [f"{form}: {column}" if column == "s" else column for form in forms for column in columns]
        made += [Table(title, (title.lower(), *heads), rows)] if rows else []
    return made


def _cells(cost: Cost | None) -> tuple[str, ...]:
    if cost is None:
        return ("", "", "", "")
    if cost.failed:
        return (f"failed after {cost.seconds:.1f}", f"{cost.cpu_s:.1f}", "", f"{cost.memory_mb:,.0f}")
    return (f"{cost.seconds:.1f}", f"{cost.cpu_s:.1f}", f"{cost.megabytes_read:,.0f}", f"{cost.memory_mb:,.0f}")


def reading(result: Measured) -> Sequence[str]:
    """Return what the figures mean."""
    asked = {**result.verbs, **result.page}
    lines = [f"{name}: {form}: {one[form].failed}" for name, one in asked.items() for form in one if one[form].failed]
    for form, limit in ((MADE, 2), (PLAIN, 20)):
        late = [name for name, one in asked.items() if form in one and one[form].seconds > limit]
        lines.append(f"{form}, above {limit} s: {', '.join(late) or 'none'}.")
    return [*lines, f"Load when it ended: {os.getloadavg()[0]:.1f}, on {os.cpu_count()} cores."]


def main() -> None:
    """Measure and print."""
    arguments = parser(__doc__, "python benchmarks/clickhouse.py --requests 1000000 --folder /tmp/ch --page")
    arguments.add_argument("--requests", type=int, default=200_000, help="requests of nine spans (200000)")
    arguments.add_argument("--folder", type=Path, help="keep the tables here, or use those that are here")
    arguments.add_argument(
        "--form", choices=("both", PLAIN, MADE), default="both", help="with the table of requests, or without"
    )
    arguments.add_argument("--only", default="", help="only verbs whose name has this")
    arguments.add_argument("--page", action="store_true", help="measure each part of the page, too")
    args = arguments.parse_args()
    with ExitStack() as stack:
        folder = args.folder or Path(stack.enter_context(tempfile.TemporaryDirectory())) / "clickhouse"
        forms = (PLAIN, MADE) if args.form == "both" else (args.form,)
        show(measure(args.requests, folder, forms, args.only, page=args.page), tables, reading, args.json)


if __name__ == "__main__":
    main()
