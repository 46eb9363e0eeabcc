"""The recorded requests of one service as arrays, and how many of them were at work at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from stagetrace.analysis.arrays import Floats

# Stages in which a request is at work; `other` has the time in no stage, too.
WORK: Final = ("preprocess", "handler", "inference", "postprocess", "other")
_NS: Final = 1e9
_ENGINES: Final = ("vllm", "sglang")
_CPU: Final = "process_cpu_ms"


@dataclass(frozen=True)
class Recorded:
    """Requests in the order of their arrival, one element each; times in seconds, the first arrival at 0."""

    start_s: Floats
    duration_s: Floats
    receive_s: Floats
    wait_s: Floats  # in stage `queue`
    send_s: Floats
    work_s: Mapping[str, Floats]  # by stages of WORK
    process: np.ndarray[Any, np.dtype[np.intp]]  # number of the process that served it
    path: np.ndarray[Any, np.dtype[np.str_]]  # as `POST /predict`
    batch: Floats  # requests in its batch; NaN where none is known
    within_s: Floats  # what its objective allows; NaN where it has none
    cpus: float | None  # that the processes may use together
    cpu_s: float | None  # CPU time of all processes for each request
    is_engine: bool = False  # whether a language-model engine serves them, which takes all a step further together

    @property
    def total_work_s(self) -> Floats:
        """Return how long each request was at work: from the end of its wait until its response."""
        return np.asarray(np.sum([*self.work_s.values()], axis=0))

    @property
    def processes(self) -> int:
        """Return how many processes served the requests."""
        return int(self.process.max()) + 1

    @property
    def per_s(self) -> float:
        """Return the rate of arrivals."""
        return (len(self.start_s) - 1) / max(float(self.start_s[-1]), 1e-9)


def have_stages(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether it is known of any request how long it waited, or was at work."""
    return any(row[f"{stage}_ms"] is not None for row in rows for stage in ("queue", *WORK))


def since_last_start(rows: Sequence[Mapping[str, Any]], least: int) -> Sequence[Mapping[str, Any]]:
    """Return the rows, newest first, since when the processes are those of now; all of them where these are too few.

    A deploy or a restart begins new processes: those before it were not at work beside them.
    """
    last: dict[str | None, int] = {}  # the oldest row of each process
    for place, row in enumerate(rows):
        last[row["instance"]] = place
    for begun in sorted(last.values()):
        if begun + 1 >= least:
            return rows[: begun + 1]
    return rows


def read(rows: Sequence[Mapping[str, Any]]) -> Recorded:
    """Return requests from rows of the reduction `recorded_requests`, newest first, by `path` and `method`."""
    rows = rows[::-1]
    first = rows[0]["start_unix_nano"]

    def column(name: str, missing: float = 0.0, scale: float = 1e-3) -> Floats:
        return np.array([missing if row[name] is None else row[name] * scale for row in rows], dtype=np.float64)

    names = [row["instance"] or "" for row in rows]
    number = {name: place for place, name in enumerate(dict.fromkeys(names))}
    duration = np.array([(row["end_unix_nano"] - row["start_unix_nano"]) / _NS for row in rows])
    receive, wait, send = (column(f"{stage}_ms") for stage in ("network_receive", "queue", "network_send"))
    work = {stage: column(f"{stage}_ms") for stage in WORK}
    work["other"] += np.maximum(0.0, duration - receive - wait - send - np.sum([*work.values()], axis=0))
    cpus = [row["cpus"] for row in rows if row["cpus"]]
    return Recorded(
        start_s=np.array([(row["start_unix_nano"] - first) / _NS for row in rows]),
        duration_s=duration,
        receive_s=receive,
        wait_s=wait,
        send_s=send,
        work_s=work,
        process=np.array([number[name] for name in names], dtype=np.intp),
        path=np.array([" ".join(filter(None, (row["method"], row["path"]))) for row in rows]),
        batch=column("batch_size", np.nan, 1.0),
        within_s=column("threshold_ms", np.nan),
        cpus=max(cpus) if cpus else None,
        cpu_s=_cpu_of(rows),
        is_engine=2 * sum(row["framework"] in _ENGINES for row in rows) > len(rows),
    )


def _cpu_of(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the CPU time a request, from the readings that the processes carry: each counts since the one before."""
    spent = served = 0.0
    for instance in {row["instance"] for row in rows}:
        own = [row for row in rows if row["instance"] == instance]
        read = [place for place, row in enumerate(own) if row[_CPU] is not None]
        if len(read) > 1:  # what the first one counts began before these requests
            spent += sum(own[place][_CPU] for place in read[1:]) / 1e3
            served += read[-1] - read[0]
    return spent / served if served else None


def at_work(recorded: Recorded) -> tuple[Floats, Floats]:
    """Return when each request began its work, and when it ended it."""
    begin = recorded.start_s + recorded.receive_s + recorded.wait_s
    return begin, np.maximum(begin, recorded.start_s + recorded.duration_s - recorded.send_s)


def profile(begin: Floats, end: Floats, which: np.ndarray[Any, Any], count: int) -> tuple[Floats, Floats]:
    """Return the times at which work begins or ends anywhere, and how many are at work from then on, by process."""
    times = np.concatenate([begin, end])
    change = np.concatenate([np.ones(len(begin)), -np.ones(len(end))])
    order = np.lexsort((change, times))
    busy = np.zeros((count, len(times)))
    busy[np.concatenate([which, which])[order], np.arange(len(times))] = change[order]
    return times[order], np.cumsum(busy, axis=1)
