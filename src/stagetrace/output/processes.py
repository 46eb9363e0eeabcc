"""What traced processes report in their status files, in words: their activity, losses and faults. Pure.

What they wrote may be of another version, and root reads what others wrote: nothing in it is taken for granted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

from stagetrace.output.table import Column, Table
from stagetrace.output.units import utc
from stagetrace.process_status import files
from stagetrace.system import unrecognised_models

# In `spans`: counts of lost spans -> the reason.
_LOST: Final = {
    "rejected": "rejected by the receiver out of good batches",
    "refused": "refused by the receiver for good",
    "refused_from_spool": "refused by the receiver, out of the spool",
    "spool_full": "not spooled, since the spool was full",
    "lost": "not delivered before the end",
}
# In `spans`: what became of them.
_BECAME: Final = {
    "received": "recorded here",
    "waiting": "wait to be sent",
    "in_hand": "being sent",
    "delivered": "accepted by the receiver",
    "spooled": "on disk, to be sent later",
    "from_spool": "sent out of the spool",
    "dropped": "dropped for want of room",
    "dropped_breaches": "dropped for want of room, of breaches",
    **_LOST,
}
_GONE: Final = ("dropped", "dropped_breaches", *_LOST)
# In `without_code`: why breaches have no line of code.
_NO_CODE: Final = {
    "off": "while no stacks are sampled",
    "not_late": "never late by a bound that is known before they end",
    "skipped": "left out by the sampler",
    "not_reached": "over before the sampler had a CPU and the GIL",
    "libraries": "with nothing but libraries on their stacks",
    "after_wait": "sampled only after the wait",
    "elsewhere": "sampled only before or after their cause",
}
_NOT_SAMPLED: Final = ("skipped", "not_reached")
_FEWER_LATE: Final = (
    "give the process more CPU, or its slow routes objectives that they can meet: the sampler looks at late requests"
)
_LONGEST: Final = 80
# In `waits`: why requests wait for others, and the remedy.
_CROWDED: Final = {
    "socket": (
        "lay in their socket while the event loop, or each worker, was busy with others",
        "take what blocks out of `async def`, or start more workers; `queue.blocked_by` on such a request names it",
    ),
    "thread_pool": (
        "found all threads of anyio's pool taken, and others waiting",
        "raise its limiter's total_tokens (40 unless set), or make handlers that only wait `async def`",
    ),
    "executor": ("found others waiting for a ThreadPoolExecutor's threads", "raise its max_workers"),
    "grpc_pool": (
        "found all threads of the gRPC server taken, and others waiting",
        "raise max_workers of the pool that the server was given, or start more processes",
    ),
}
_MORE_WORKERS: Final = "start more workers or threads; `queue.blocked_by` on such a request names what was in the way"
_ON_A_LOOP: Final = (
    *("aiohttp.web", "daphne", "granian", "grpc.aio._server", "hypercorn", "sanic", "tornado", "uvicorn"),
)
_SELDOM: Final = 0.01  # of all requests: rarer waits need no fix


def checks(one: files.Found) -> Iterator[Check]:
    """Yield the activity of one process, then its faults."""
    name = f"process {one.path.name.partition('-')[0]}"
    status = one.status
    if status is None:
        yield Check(name, WARN, f"{one.path} cannot be read", "run the same version of stagetrace as it does")
        return
    container = "" if one.alive else ", of another container: whether it still runs is unknown"
    command, judged = str(status.get("command")), count_verdicts(status)
    short = command if len(command) <= _LONGEST else f"{command[: _LONGEST - 3]}..."
    about = f"{status.get('service')} ({short}), since {time_text(status.get('started_unix'))}"
    counts = f"{judged.requests} requests judged, {judged.breaches} breaches, {judged.unmatched} not in the policy"
    yield Check(name, OK, f"{about}; {counts}; {_spans(status)}{container}")
    silent = ", ".join(f"{title} ({why})" for title, why in _dict(status, "silent_sources").items())
    if silent:
        yield Check(name, OK, f"not measured for some requests: {silent}")
    for state, what, fix in [
        *_delivery(status),
        *_patches(status),
        *_models(status),
        *_policy(status),
        *_headers(status),
        *_costs(status),
    ]:
        yield Check(name, state, what, fix)
    yield from _without_code(name, status)


def _without_code(name: str, status: dict[str, Any]) -> Iterator[Check]:
    """Yield how many late requests have no line of code, and why."""
    without = _dict(status, "without_code")
    counts = {word: number for word in without if (number := _number(without, word))}
    if counts:
        missed = any(word in counts for word in _NOT_SAMPLED)
        reasons = ", ".join(f"{number} {_NO_CODE.get(word, word)}" for word, number in counts.items())
        found = (
            f"without a line of code: {sum(counts.values())} of {count_verdicts(status).breaches} breaches ({reasons})"
        )
        yield Check(name, WARN if missed else OK, found, _FEWER_LATE if missed else "")
    if skipped := _number(status, "skipped_stalls"):
        why = "the sampler had used its share of a CPU, could not run, or watched 200 requests already"
        yield Check(name, WARN, f"stacks of late requests that were not sampled: {skipped}; {why}", _FEWER_LATE)


def table(status: dict[str, Any]) -> Iterable[Table | str]:
    """Return everything that a process reports, for `--pid`."""
    causes = [(cause, str(count)) for cause, count in _dict(status, "causes").items()]
    numbers = [(key, str(value)) for key, value in _dict(status, "spans").items()]
    judged = [
        (objective, verdict, str(count))
        for objective, counts in _dict(status, "judged").items()
        if isinstance(counts, dict)
        for verdict, count in counts.items()
    ]
    facts = [
        ("service", str(status.get("service"))),
        ("command", str(status.get("command"))),
        ("started", time_text(status.get("started_unix"))),
        ("versions", ", ".join(f"{name} {number}" for name, number in _dict(status, "versions").items())),
        ("python", str(status.get("python"))),
        ("spans go to", str(status.get("target"))),
        ("policy", "; ".join(map(str, _list(status, "policy"))) or "none"),
        ("sampler", str(status.get("sampler"))),
        ("native", str(status.get("native"))),
        ("spool", str(status.get("spool"))),
        ("patched", ", ".join(map(str, _list(_dict(status, "patches"), "patched")))),
        ("reported at", time_text(status.get("updated_unix"))),
    ]
    yield ""
    yield Table([Column("fact"), Column("value")], facts)
    yield ""
    yield Table([Column("objective"), Column("verdict"), Column("requests", is_number=True)], judged, "Judged")
    yield ""
    yield Table([Column("cause"), Column("breaches", is_number=True)], causes, "Causes of the breaches")
    yield ""
    yield Table([Column("what became of them"), Column("spans", is_number=True)], numbers, "Spans")


class Spans(NamedTuple):
    """How many spans of a process had one fate."""

    name: str
    number: int
    meaning: str
    is_loss: bool


def spans(status: dict[str, Any]) -> list[Spans]:
    """Return what became of the spans of a process; nothing where others send them."""
    found = _dict(status, "spans")
    return [
        Spans(key, _number(found, key), _BECAME.get(key, ""), key in _GONE and _number(found, key) > 0) for key in found
    ]


class Judged(NamedTuple):
    """How many requests of a process were judged."""

    requests: int
    breaches: int
    excluded: int
    unmatched: int  # by no objective


def count_verdicts(status: dict[str, Any]) -> Judged:
    """Return the verdicts of a process."""
    counts = [counts for counts in _dict(status, "judged").values() if isinstance(counts, dict)]
    return Judged(
        sum(_number(one, verdict) for one in counts for verdict in one if verdict != "excluded"),
        sum(_number(one, "breach") for one in counts),
        sum(_number(one, "excluded") for one in counts),
        _number(status, "unmatched"),
    )


def _spans(status: dict[str, Any]) -> str:
    spans = _dict(status, "spans")
    if not spans:
        return f"its spans go to {status.get('target')} and are not counted by us"
    return (
        f"spans: {_number(spans, 'received')} recorded, {_number(spans, 'delivered')} delivered, "
        f"{_number(spans, 'waiting') + _number(spans, 'in_hand')} waiting, {_number(spans, 'spooled')} spooled"
    )


def _delivery(status: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    if str(status.get("target")).startswith("nowhere"):
        yield FAIL, f"records nothing, spans go {status.get('target')}", "unset it for the service, and restart"
    trouble = _dict(status, "trouble")
    if trouble:
        since = time_text(trouble.get("since_unix"))
        what = f"cannot deliver to {status.get('target')} since {since}: {trouble.get('reason')}"
        yield FAIL, what, "start the receiver there, or correct OTEL_EXPORTER_OTLP_*; spans wait meanwhile"
    spans = _dict(status, "spans")
    dropped, breaches = _number(spans, "dropped"), _number(spans, "dropped_breaches")
    if dropped or breaches:
        what = f"{dropped + breaches} spans dropped for want of room, {breaches} of them of breaches"
        yield WARN, what, "set STAGETRACE_SPOOL to a folder, or raise OTEL_BSP_MAX_QUEUE_SIZE"
    lost = [f"{_number(spans, key)} {why}" for key, why in _LOST.items() if _number(spans, key)]
    if lost:
        yield WARN, f"spans lost: {', '.join(lost)}", "see the receiver's log; the service's own has the times"


def _patches(status: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    patches = _dict(status, "patches")
    off, failures = _list(patches, "switched_off"), _dict(patches, "failures")
    for module, why in _dict(patches, "failed").items():
        yield FAIL, f"{module} could not be patched and is not traced: {why}", "upgrade stagetrace, or report it"
    if off:
        fix = "report it with the lines of the service's log; a restart switches it on again"
        yield FAIL, f"patches switched off after 10 failures each: {', '.join(map(str, off))}", fix
    faults = {place: count for place, count in failures.items() if place not in _dict(patches, "failed")}
    if faults:
        shown = ", ".join(f"{place} {count} times" for place, count in faults.items())
        yield WARN, f"faults of stagetrace itself, without harm to requests: {shown}", "please report it"


def _models(status: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    names = _list(status, "unpatched_models")
    if names:
        yield OK, unrecognised_models.message(map(str, names)), unrecognised_models.REMEDY
    counts = [f"{count} of {framework}" for framework, count in _dict(status, "unrecorded_calls").items()]
    if counts:
        fix = "if they served requests, as in a batcher of your own, add the two lines of docs/servers.md"
        yield WARN, f"calls of models that were in no request: {', '.join(counts)}", fix


def _policy(status: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    problem = status.get("policy_problem")
    if problem:
        what, _, fix = str(problem).partition("\n")
        used = "used in part" if _list(status, "policy") else "not used"
        if status.get("policy_file") and _list(status, "policy"):
            used = "used as it was before its file changed"
        yield FAIL, f"its STAGETRACE_SLA is {used}: {what}", fix.replace("\n", " ")
    elif _list(status, "policy") and not _dict(status, "judged") and _number(status, "unmatched"):
        rules = "; ".join(map(str, _list(status, "policy")))
        what = f"its policy matched none of {_number(status, 'unmatched')} requests: {rules}"
        yield WARN, what, "name method and route as the service does, or `*` for all"


def _headers(status: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    ignored = [f"{count} {why}" for why, count in _dict(status, "ignored_headers").items()]
    if ignored:
        what = f"times of X-Request-Start or X-Queue-Start that were not plausible, and ignored: {', '.join(ignored)}"
        yield WARN, what, "set the clock of the load balancer and of this machine, or correct what it puts there"


def _costs(status: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield waits that add to the latency of requests in this process, besides their own work."""
    counts = [counts for counts in _dict(status, "judged").values() if isinstance(counts, dict)]
    total = sum(_number(one, verdict) for one in counts for verdict in one) + _number(status, "unmatched")
    waits = _dict(status, "waits")
    for reason, (what, fix) in _CROWDED.items():
        number = _number(waits, reason)
        if number:
            seldom = number < total * _SELDOM
            mend = _MORE_WORKERS if reason == "socket" and not _has_event_loop(status) else fix
            found = f"{number} waits: requests {what}" + (f" ({total} requests in all)" if total else "")
            yield (OK, f"{found}, which is seldom", "") if seldom else (WARN, found, mend)
    sampler = status.get("sampler")
    if isinstance(sampler, str) and not files.samples_all(sampler):
        yield OK, f"its head sampler is {sampler}: dropped requests are judged and counted, breaches are delivered", ""


def _has_event_loop(status: dict[str, Any]) -> bool:
    """Return whether a server of the process runs its handlers on an event loop."""
    return any(str(name).startswith(_ON_A_LOOP) for name in _list(_dict(status, "patches"), "patched"))


def time_text(seconds: Any) -> str:
    """Return a time of a status file, in UTC."""
    if not isinstance(seconds, int | float) or not 0 <= seconds < 1e11:  # noqa: PLR2004 -- the year 5138
        return "an unknown time"
    return f"{utc(int(seconds * 1e9), 0)} UTC"


def _dict(status: dict[str, Any], key: str) -> dict[str, Any]:
    value = status.get(key)
    return value if isinstance(value, dict) else {}


def _list(status: dict[str, Any], key: str) -> list[Any]:
    value = status.get(key)
    return value if isinstance(value, list) else []


def _number(status: dict[str, Any], key: str) -> int:
    value = status.get(key)
    return value if isinstance(value, int) else 0


OK: Final = "ok"
WARN: Final = "warn"  # works, but perhaps not as intended
FAIL: Final = "fail"


class Check(NamedTuple):
    """`found` is the state in one line; `fix` the remedy, empty where none is needed."""

    name: str
    state: str
    found: str
    fix: str = ""
