"""Checks of `stagetrace doctor`: what the traced processes of this user say of themselves, and what is wrong there.

What they wrote may be of another version, and root reads what others wrote: nothing in it is taken for granted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from stagetrace import unrecognised_models
from stagetrace.cli.arguments.times import utc
from stagetrace.cli.doctor.check import FAIL, OK, WARN, Check
from stagetrace.cli.output.lines import Column, Table
from stagetrace.process_status import files

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# In `spans`: what never arrives, and why.
_LOST: Final = {
    "rejected": "rejected by the receiver out of good batches",
    "refused": "refused by the receiver for good",
    "refused_from_spool": "refused by the receiver, out of the spool",
    "spool_full": "not spooled, since the spool was full",
    "lost": "not delivered before the end",
}
_LONGEST: Final = 80
# In `waits`: what requests wait for because of others, and what makes that less.
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
_SELDOM: Final = 0.01  # of all requests: such a wait now and then is nothing to mend


def found(pid: int | None) -> tuple[list[files.Found], list[Check]]:
    """Return the processes that live, all or that one, and checks of the rest; clear away what dead ones left."""
    living: list[files.Found] = []
    checks: list[Check] = []
    for folder in files.folders():
        try:
            gone = files.clear(folder)
            living += [one for one in files.read(folder) if pid is None or one.path.name.startswith(f"{pid}-")]
        except OSError as error:
            mend = "run this as the user of the service, or as root"
            checks.append(Check("processes", WARN, f"{folder} cannot be read: {error.strerror}", mend))
            continue
        if gone:
            said = f"{gone} of a process that ended without a word" if gone == 1 else f"{gone} of ended processes"
            checks.append(Check("processes", OK, f"left files cleared away: {said}"))
    if not living:
        checks.append(_none(pid))
    return living, checks


def _none(pid: int | None) -> Check:
    if pid is None:
        shown = ", ".join(map(str, files.folders())) or "STAGETRACE_STATUS=0"
        return Check("processes", OK, f"no traced process of this user serves here (looked in {shown})")
    mend = (
        "without --pid all are shown; a process says something once it serves with STAGETRACE=1, to its own user and "
        "to root"
    )
    return Check("processes", FAIL, f"there is no traced process {pid}", mend)


def checks(one: files.Found) -> Iterator[Check]:
    """Yield what one process does, then what is wrong with it."""
    name = f"process {one.path.name.partition('-')[0]}"
    said = one.status
    if said is None:
        yield Check(name, WARN, f"{one.path} cannot be read", "run the same version of stagetrace as it does")
        return
    elsewhere = "" if one.alive else ", of another container: whether it still runs is unknown"
    yield Check(name, OK, f"{_about(said)}; {_judged(said)}; {_spans(said)}{elsewhere}")
    silent = ", ".join(f"{title} ({why})" for title, why in _dict(said, "silent_sources").items())
    if silent:
        yield Check(name, OK, f"of some requests it is not told: {silent}")
    for state, what, mend in [
        *_delivery(said),
        *_patches(said),
        *_models(said),
        *_policy(said),
        *_headers(said),
        *_costs(said),
    ]:
        yield Check(name, state, what, mend)


def table(said: dict[str, Any]) -> Iterable[Table | str]:
    """Return everything that a process says, for `--pid`."""
    causes = [(cause, str(count)) for cause, count in _dict(said, "causes").items()]
    numbers = [(key, str(value)) for key, value in _dict(said, "spans").items()]
    judged = [
        (objective, verdict, str(count))
        for objective, counts in _dict(said, "judged").items()
        if isinstance(counts, dict)
        for verdict, count in counts.items()
    ]
    facts = [
        ("service", str(said.get("service"))),
        ("command", str(said.get("command"))),
        ("started", _time(said.get("started_unix"))),
        ("versions", ", ".join(f"{name} {number}" for name, number in _dict(said, "versions").items())),
        ("python", str(said.get("python"))),
        ("spans go to", str(said.get("target"))),
        ("policy", "; ".join(map(str, _list(said, "policy"))) or "none"),
        ("sampler", str(said.get("sampler"))),
        ("native", str(said.get("native"))),
        ("spool", str(said.get("spool"))),
        ("patched", ", ".join(map(str, _list(_dict(said, "patches"), "patched")))),
        ("said at", _time(said.get("updated_unix"))),
    ]
    yield ""
    yield Table([Column("fact"), Column("value")], facts)
    yield ""
    yield Table([Column("objective"), Column("verdict"), Column("requests", is_number=True)], judged, "Judged")
    yield ""
    yield Table([Column("cause"), Column("breaches", is_number=True)], causes, "Causes of the breaches")
    yield ""
    yield Table([Column("what became of them"), Column("spans", is_number=True)], numbers, "Spans")


def _about(said: dict[str, Any]) -> str:
    command = str(said.get("command"))
    short = command if len(command) <= _LONGEST else f"{command[: _LONGEST - 3]}..."
    return f"{said.get('service')} ({short}), since {_time(said.get('started_unix'))}"


def _judged(said: dict[str, Any]) -> str:
    counts = [counts for counts in _dict(said, "judged").values() if isinstance(counts, dict)]
    breaches = sum(_number(one, "breach") for one in counts)
    total = sum(_number(one, verdict) for one in counts for verdict in one if verdict != "excluded")
    return f"{total} requests judged, {breaches} breaches, {_number(said, 'unmatched')} not in the policy"


def _spans(said: dict[str, Any]) -> str:
    spans = _dict(said, "spans")
    if not spans:
        return f"its spans go to {said.get('target')} and are not counted by us"
    return (
        f"spans: {_number(spans, 'received')} recorded, {_number(spans, 'delivered')} delivered, "
        f"{_number(spans, 'waiting') + _number(spans, 'in_hand')} waiting, {_number(spans, 'spooled')} spooled"
    )


def _delivery(said: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    trouble = _dict(said, "trouble")
    if trouble:
        since = _time(trouble.get("since_unix"))
        what = f"cannot deliver to {said.get('target')} since {since}: {trouble.get('reason')}"
        yield FAIL, what, "start the receiver there, or correct OTEL_EXPORTER_OTLP_*; spans wait meanwhile"
    spans = _dict(said, "spans")
    dropped, breaches = _number(spans, "dropped"), _number(spans, "dropped_breaches")
    if dropped or breaches:
        what = f"{dropped + breaches} spans dropped for want of room, {breaches} of them of breaches"
        yield WARN, what, "set STAGETRACE_SPOOL to a folder, or raise OTEL_BSP_MAX_QUEUE_SIZE"
    lost = [f"{_number(spans, key)} {why}" for key, why in _LOST.items() if _number(spans, key)]
    if lost:
        yield WARN, f"spans lost: {', '.join(lost)}", "see the receiver's log; the service's own says when"


def _patches(said: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    patches = _dict(said, "patches")
    off, failures = _list(patches, "switched_off"), _dict(patches, "failures")
    for module, why in _dict(patches, "failed").items():
        yield FAIL, f"{module} could not be patched and is not traced: {why}", "upgrade stagetrace, or report it"
    if off:
        mend = "report it with what the service's log says; a restart switches it on again"
        yield FAIL, f"patches switched off after 10 failures each: {', '.join(map(str, off))}", mend
    faults = {place: count for place, count in failures.items() if place not in _dict(patches, "failed")}
    if faults:
        shown = ", ".join(f"{place} {count} times" for place, count in faults.items())
        yield WARN, f"faults of stagetrace itself, without harm to requests: {shown}", "please report it"


def _models(said: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    names = _list(said, "unpatched_models")
    if names:
        yield OK, unrecognised_models.message(map(str, names)), unrecognised_models.REMEDY


def _policy(said: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    problem = said.get("policy_problem")
    if problem:
        what, _, mend = str(problem).partition("\n")
        used = "used in part" if _list(said, "policy") else "not used"
        yield FAIL, f"its STAGETRACE_SLA is {used}: {what}", mend.replace("\n", " ")
    elif _list(said, "policy") and not _dict(said, "judged") and _number(said, "unmatched"):
        rules = "; ".join(map(str, _list(said, "policy")))
        what = f"its policy matched none of {_number(said, 'unmatched')} requests: {rules}"
        yield WARN, what, "name method and route as the service does, or `*` for all"


def _headers(said: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    ignored = [f"{count} {why}" for why, count in _dict(said, "ignored_headers").items()]
    if ignored:
        what = f"times of X-Request-Start or X-Queue-Start that were not plausible, and ignored: {', '.join(ignored)}"
        yield WARN, what, "set the clock of the load balancer and of this machine, or correct what it puts there"


def _costs(said: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield what adds to the latency of requests in this process, besides their own work."""
    counts = [counts for counts in _dict(said, "judged").values() if isinstance(counts, dict)]
    total = sum(_number(one, verdict) for one in counts for verdict in one) + _number(said, "unmatched")
    waits = _dict(said, "waits")
    for reason, (what, mend) in _CROWDED.items():
        number = _number(waits, reason)
        if number:
            seldom = number < total * _SELDOM
            found = f"{number} waits: requests {what}" + (f" ({total} requests in all)" if total else "")
            yield (OK, f"{found}, which is seldom", "") if seldom else (WARN, found, mend)
    sampler = said.get("sampler")
    if isinstance(sampler, str) and not files.samples_all(sampler):
        yield OK, f"its head sampler is {sampler}: what that drops is judged and counted, breaches arrive", ""


def _time(seconds: Any) -> str:
    if not isinstance(seconds, int | float) or not 0 <= seconds < 1e11:  # noqa: PLR2004 -- the year 5138
        return "an unknown time"
    return f"{utc(int(seconds * 1e9), 0)} UTC"


def _dict(said: dict[str, Any], key: str) -> dict[str, Any]:
    value = said.get(key)
    return value if isinstance(value, dict) else {}


def _list(said: dict[str, Any], key: str) -> list[Any]:
    value = said.get(key)
    return value if isinstance(value, list) else []


def _number(said: dict[str, Any], key: str) -> int:
    value = said.get(key)
    return value if isinstance(value, int) else 0
