"""What a verb that answers cannot take: exit code 2, and up to three lines that say why."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import pytest

from answers.made import EVER, MS, NOON, Made, store
from cli.running import refused

if TYPE_CHECKING:
    from pathlib import Path

URL = "http://localhost:1/"
WRONG = {
    "bench http://192.0.2.1/x": "--i-own-this",
    "bench localhost:80": "supported: http://",
    f"bench {URL} --rate 0": "above 0",
    f"bench {URL} --objective p99=50": "write p99:50ms",
    f"bench {URL} --find p100:5ms": "between p0 and p100",
    f"bench {URL} --objective p99:50d": "write 50ms, 30s or 2m",
    f"bench {URL} --gate p99:+10%": "--gate goes with --against",
    f"bench {URL} --find p9:5ms --objective p9:5ms": "names the objective",
    f"bench {URL} --route /x": "add --replay",
    f"bench {URL} -H 'a b: c'": "is no header",
    f"bench {URL} -H 'a: b\r\nc: d'": "none may have",
    f"bench {URL} -H 'traceparent: x'": "set by bench itself",
    f"bench {URL} --method head": "not sent by bench",
    f"bench {URL} --against none": "there is no baseline 'none'",
    f"bench {URL} --save ../x": "no name of a baseline",
    "bottleneck --by tenant": "no request has tenant, which --by names",
    "bottleneck --by request.id": "--by request.id makes 101 groups, and 100 at most are supported",
    "bottleneck --by model --trace latest": "--trace asks for one request, and --by divides many",
    "bottleneck --trace abcd": "there is no trace whose id begins with abcd",
    "bottleneck --trace xyz": "argument --trace: 'xyz' is neither latest nor a trace id",
    **{f"capacity --rate {value}": value for value in ("0", "-5", "nan", "many")},
    **{f"capacity --objective {value}": value for value in ("p99", "p0:50ms", "p100:50ms", "p99:0ms", "p99:50")},
    "compare --a version=2": "--b is missing",
    "compare --a version=2 --b version=2": "are the same requests",
    "compare --a period=3000d..1h --b period=2h..1m": "have a part of their periods in common",
    "compare --a version --b version=2": "is not KEY=VALUE",
    "compare --a period=yesterday --b version=2": "is not SINCE..UNTIL",
    "compare --a version=2 --a version=3 --b version=1": "two values",
    "compare --a version=2 --b version=9": "ml.model.version is ",
    "compare --a store=/nowhere --b version=2": "no such file or folder",
    "compare --gate p99": "write p99:+5%",
    "compare --gate p100:5%": "is no percentile",
    "compare --quantiles p50,max": "is no percentile",
    "compare --resolution 0%": "is no share above 0",
    "drift --least much": "write 5%",
    "drift --webhook http://127.0.0.1:1/": "give --watch too",
    "drift --watch --webhook ftp://127.0.0.1/": "a webhook is http://",
    "drift --watch --webhook http://me:s3cret@127.0.0.1/": "without a user",
    "drift --watch --format html": "prints lines",
    "drift --watch --interval 0": "seconds from",
    "report --period 2026-13": "no period '2026-13'",
    "report --period 2026-03 --since 1h": "two periods",
    "report --until 2026-03-02": "names no period",
    "report --period 1960": "is empty",
    "report --exclude 2026-03-01..2026-03-02": "SINCE..UNTIL=REASON",
    "report --exclude 2026-03-01..2026-03-02=": "SINCE..UNTIL=REASON",
    "report --exclude 2026-03-02..2026-03-01=deploy": "ends before it begins",
    "report --exclude yesterday..today=deploy": "cannot read 'yesterday'",
    "cost --price per_hour": "is not KEY=VALUE",
    "cost --price per_hour=cheap": "no number",
    "cost --price bill=1 --price bill=2": "gives one key twice",
    "cost --price bill=1 --prices prices.toml": "two sets of prices",
    "report --credits 99.9": "BELOW:CREDIT",
    "report --credits 99.9:10%,101:5%": "'101:5%' is not",
    "report --credits 99:10,99:20": "twice",
    "report --credits 99:1/0": "BELOW:CREDIT",
    "report --credits 1e999999999:5": "BELOW:CREDIT",  # and is no work of minutes
    "report --incident-burn nan": "not a number above 0",
    "report --incident-gap 2026-03-01": "not a length of time",
    "report --with slo": "--all",
    "report --all --with 'watch --by x'": "none of the verbs",
    "report --all --with 'segments --bye x'": "try: stagetrace segments --help",
    """report --all --with "''" """: "none of the verbs",
    """report --all --with "segments --by 'x" """: "close its quotes",
    "report --all --bench /nowhere/at-all": "cannot read a benchmark",
    "report --all --bench /dev/null": "cannot read a benchmark",
    "report --all --json --format html": "two forms",
    "report --all --period 2026-03": "of the report alone",
    **{f"slo --by '{by}'": "cannot be grouped by" for by in ("", "band", "requests", "stages", "attributes")},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a store of 101 requests of three versions, each with an id of its own."""
    made = (
        Made(n, NOON + n * MS, model="churn", version="123"[n % 3], within_ms=50.0, attributes={"request.id": n})
        for n in range(1, 102)
    )
    return store(tmp_path_factory.mktemp("wrong") / "store", made)


@pytest.mark.parametrize("command", WRONG)
def test_what_is_wrong_is_reported(command: str, folder: Path) -> None:
    """A secret of a URL is not repeated."""
    verb, *options = shlex.split(command)
    since = EVER if verb in ("bottleneck", "compare") or "--all" in options else ()
    said = refused(verb, *options, *since, *(() if verb == "bench" else ("--store", folder)))
    assert WRONG[command] in said
    assert "s3cret" not in said
