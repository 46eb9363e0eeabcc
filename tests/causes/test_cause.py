"""The cause is the part that accounts for most of the excess over what is usual; nothing is guessed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stagetrace.causes import baseline, cause
from stagetrace.causes.baseline import ENOUGH, LEARNED_FROM_EACH, MAX_ROUTES, MAX_SIZES, Baselines, connection_evidence
from stagetrace.causes.cause import Baseline, Breakdown, Cause, cause_of, evidence, stage_of
from stagetrace.policy.objective import BREACH, Objective
from stagetrace.policy.verdict import Missed, Verdict
from stagetrace.sources import machine, page_faults
from stagetrace.sources.machine import Rise

MS = 1_000_000


def parts(size: int | None = None, *, is_first: bool = False, **ms: float) -> Breakdown:
    return Breakdown({part: int(took * MS) for part, took in ms.items()}, size, is_first)


def usual(size: float | None = None, **ms: float) -> Baseline:
    return Baseline({part: took * MS for part, took in ms.items()}, size)


@pytest.mark.parametrize("part", cause.PHRASES)
def test_before_anything_is_known_it_is_what_took_most_of_the_overrun(part: str) -> None:
    slow = Breakdown({"compute": 10 * MS, "cpu_wait": 5 * MS, part: 100 * MS})
    assert cause_of(slow, 65 * MS) == Cause(part, part)


def test_where_no_part_takes_half_of_the_excess_it_is_mixed_with_their_shares() -> None:
    slow = parts(io_wait=20, cpu_wait=30, gc=30, slow_upload=20)
    found = cause_of(slow, 80 * MS)
    assert found.word == "mixed"
    assert evidence(slow, found) == (
        "30.0 ms waiting for a CPU (30% of the excess), 30.0 ms collecting garbage (30% of the excess), "
        "20.0 ms blocked in a socket, a file, a sleep or a subprocess (20% of the excess), "
        "20.0 ms waiting for the client to send the body (20% of the excess)"
    )


def test_where_nothing_was_read_it_is_unknown() -> None:
    assert cause_of(Breakdown({}), MS).word == "unknown"
    assert cause_of(parts(unknown=80, compute=20), 60 * MS).word == "unknown"


def test_before_anything_is_known_computing_that_keeps_the_promise_is_no_cause() -> None:
    """60 ms were promised: the 50 would have been in time, the 30 of waiting are why they were not."""
    assert cause_of(parts(compute=50, lock_wait=30), 20 * MS).word == "lock_wait"
    assert cause_of(parts(compute=70, lock_wait=30), 40 * MS).word == "compute"
    assert cause_of(parts(compute=50, cpu_wait=15, lock_wait=15), 20 * MS).word != "compute"
    assert cause_of(parts(is_first=True, compute=50, cpu_wait=30), 20 * MS).word == "cpu_wait"


def test_what_is_usual_is_no_cause() -> None:
    """The largest part is as long as ever; another has grown."""
    slow = parts(compute=100, cpu_wait=40)
    assert cause_of(slow, 20 * MS, usual(compute=99, cpu_wait=1)) == Cause("cpu_wait", "cpu_wait")


def test_a_breach_of_what_is_usual_is_measured_by_the_promise() -> None:
    assert cause_of(parts(compute=100, cpu_wait=5), 55 * MS, usual(compute=98, cpu_wait=4)).word == "compute"


@pytest.mark.parametrize(
    ("size", "took", "of_this_size", "word"),
    [
        (20, 200, None, "input_size"),  # it takes ten for each one, as usual
        (20, 900, None, "compute"),  # it takes more than its size explains
        (1, 200, None, "compute"),
        (20, 200, usual(20, compute=195), "input_size"),  # others of its size take as long
        (20, 400, usual(20, compute=195), "compute"),
        (None, 200, None, "compute"),
    ],
)
def test_a_large_input(size: int | None, took: float, of_this_size: Baseline | None, word: str) -> None:
    found = cause_of(parts(size, compute=took), int((took - 50) * MS), usual(1, compute=10), of_this_size)
    assert found == Cause(word, "compute")


def test_a_first_call_is_a_cold_start_unless_it_was_kept_from_computing() -> None:
    assert cause_of(parts(is_first=True, compute=90), 50 * MS).word == "cold_start"
    assert cause_of(parts(is_first=True, unknown=90), 50 * MS).word == "cold_start"
    assert cause_of(parts(is_first=True, io_wait=90), 50 * MS).word == "cold_start"
    assert cause_of(parts(is_first=True, compute=10, cpu_wait=90), 50 * MS).word == "cpu_wait"


def test_what_a_busy_machine_adds_to_the_loading_of_a_model_is_no_cause() -> None:
    """It would have missed its objective on a quiet machine, too: by what it computes this once."""
    assert cause_of(parts(is_first=True, compute=80, cpu_wait=200), 230 * MS) == Cause("cold_start", "compute")
    assert cause_of(parts(is_first=True, compute=80, cpu_wait=90, lock_wait=85), 205 * MS).word == "cold_start"
    assert cause_of(parts(compute=80, cpu_wait=200), 230 * MS).word == "cpu_wait"
    assert cause_of(parts(is_first=True, compute=80, pool_wait=200), 230 * MS).word == "pool_wait"
    later = usual(compute=78, cpu_wait=2)
    assert cause_of(parts(is_first=True, compute=80, cpu_wait=200), 230 * MS, later).word == "cpu_wait"


def test_a_request_in_which_modules_are_imported_is_a_cold_start() -> None:
    slow = replace(parts(io_wait=90, compute=5), imported=312, importing=80 * MS, stages={"preprocess": 95 * MS})
    found = cause_of(slow, 50 * MS)
    assert found == Cause("cold_start", "io_wait")
    assert evidence(slow, found).endswith(", 312 modules imported meanwhile")
    assert cause_of(replace(slow, imported=2), 50 * MS).word == "io_wait"
    assert cause_of(replace(slow, importing=20 * MS), 50 * MS).word == "io_wait"  # it waited for something else
    loaded = replace(slow, is_first=True)
    assert "before the first call of its model in this process" in evidence(loaded, cause_of(loaded, 50 * MS))


def test_a_wait_outside_the_first_call_of_a_model_is_no_cold_start() -> None:
    def waited(stage: str) -> Breakdown:
        return replace(parts(is_first=True, io_wait=90), by_stage={"io_wait": {"inference": 5.0, stage: 85.0}})

    assert cause_of(waited("preprocess"), 50 * MS).word == "io_wait"
    assert cause_of(waited("inference"), 50 * MS).word == "cold_start"


PLACES = {
    "io_wait": {"preprocess": 40.0 * MS, "inference": 50.0 * MS},
    "slow_upload": {"network.receive": 30.0 * MS},
    "compute": {"inference": 60.0 * MS},
}


@pytest.mark.parametrize(
    ("word", "usually", "stage"),
    [
        ("slow_upload", None, "network.receive"),
        ("io_wait", None, "inference"),
        ("io_wait", {"inference": 80.0 * MS}, "preprocess"),  # that of the model is as long as ever
        ("cold_start", None, "inference"),
        ("gc", None, None),
        ("unknown", None, "inference"),
        ("mixed", None, None),
    ],
)
def test_the_stage_of_a_breach_is_that_in_which_the_excess_of_its_cause_lies(
    word: str, usually: dict[str, float] | None, stage: str | None
) -> None:
    stages = {"network.receive": 30 * MS, "preprocess": 50 * MS, "inference": 80 * MS}
    slow = Breakdown({"io_wait": 90 * MS}, stages=stages, by_stage=PLACES)
    found = Cause(word, "io_wait" if word in ("cold_start", "unknown", "mixed") else word)
    assert stage_of(found, slow, Baseline({}, None, usually) if usually is not None else None) == stage


def test_a_breach_names_stage_and_cause_together() -> None:
    learned, objective = Baselines(), Objective("* within 50ms", None, "*", 50 * MS)
    stages = {"network.receive": 30 * MS, "inference": 60 * MS}
    slow = Breakdown({"slow_upload": 30 * MS, "compute": 60 * MS}, stages=stages, by_stage=PLACES)
    verdict = Verdict(objective, BREACH, Missed("within", 90 * MS, 65 * MS), "inference", 60 * MS)
    found = learned.explain(("POST", "/"), verdict, slow)
    assert (found["sla.breach.stage"], found["sla.breach.cause"]) == ("network.receive", "slow_upload")
    assert found["sla.breach.evidence"] == (
        "network.receive took 30.0 ms of 90.0 ms, 65 ms allowed: 30.0 ms waiting for the client to send the body"
    )


def test_several_causes_are_those_of_the_request_and_said_to_be() -> None:
    learned, objective = Baselines(), Objective("* within 50ms", None, "*", 50 * MS)
    by_stage = {"socket_wait": {"queue": 40.0 * MS}, "io_wait": {"handler": 30.0 * MS}, "gc": {"handler": 30.0 * MS}}
    slow = Breakdown(
        {"socket_wait": 40 * MS, "io_wait": 30 * MS, "gc": 30 * MS},
        stages={"queue": 40 * MS, "handler": 60 * MS},
        by_stage=by_stage,
    )
    verdict = Verdict(objective, BREACH, Missed("within", 100 * MS, 10 * MS), "handler", 60 * MS)
    found = learned.explain(("POST", "/"), verdict, slow)
    assert (found["sla.breach.stage"], found["sla.breach.cause"]) == ("handler", "mixed")
    assert found["sla.breach.evidence"].startswith(
        "handler took 60.0 ms of 100.0 ms, 10 ms allowed; of the request's 100.0 ms: 40.0 ms in the socket, "
        "until the server read it (40% of the excess), 30.0 ms "
    )


def test_the_evidence_has_the_numbers_and_that_of_the_cause_first() -> None:
    slow = parts(compute=50, cpu_wait=82, gc=0.1)
    found = cause_of(slow, 82 * MS)
    assert evidence(slow, found) == "82.0 ms waiting for a CPU, 50.0 ms computing"
    assert evidence(slow, found, usual(cpu_wait=1)).startswith("82.0 ms waiting for a CPU (usually 1.0 ms), 50.0 ms")
    large = parts(20, compute=200)
    assert evidence(large, Cause("input_size", "compute"), usual(1, compute=10)).endswith(
        "an input of 20 where 1 is usual"
    )


def test_what_is_usual_is_learned_by_route_and_by_size() -> None:
    learned, route = Baselines(), ("GET", "/predict")
    assert learned.of(route, 1) == (None, None)
    for _ in range(3 * ENOUGH):
        learned.add(route, 0, parts(1, compute=10))
    for _ in range(ENOUGH):
        learned.add(route, 0, parts(20, compute=200))
    overall, large = learned.of(route, 20)
    assert overall is not None
    assert large is not None
    assert large.times["compute"] == pytest.approx(200 * MS)
    assert 10 * MS < overall.times["compute"] < 200 * MS
    assert learned.of(("GET", "/other"), 1) == (None, None)


def test_the_evidence_says_what_is_known_of_the_wire_where_that_is_the_cause() -> None:
    known = {
        "stagetrace.network.rtt_ms": 81.26,
        "stagetrace.network.retransmits": 3,
        "stagetrace.network.unacked_bytes": 70_000,
    }
    assert connection_evidence(Cause("slow_download", "slow_download"), known) == (
        "; round trip to the client 81.3 ms, 3 segments retransmitted, 70000 bytes unacknowledged at the end"
    )
    upload = Cause("slow_upload", "slow_upload")
    assert connection_evidence(upload, known) == "; round trip to the client 81.3 ms, 3 segments retransmitted"
    assert connection_evidence(upload, {"stagetrace.network.rtt_ms": 0.02}) == "; round trip to the client 0.0 ms"
    assert connection_evidence(upload, {}) == connection_evidence(Cause("compute", "compute"), known) == ""


def test_the_evidence_says_what_the_machine_withheld_where_that_is_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    busy, throttled = Rise(3_200_000_000, 8_000_000_000), Rise(210 * MS, 8_000_000_000)
    assert baseline.of_cpus(busy, throttled) == (
        "; in 40% of the last 8 s something on this machine waited for a CPU"
        "; the CPU quota held this container for 210 ms in the last 8 s"
    )
    assert baseline.of_cpus(Rise(9_000_000_000, 8_000_000_000), None).startswith("; in 100% of")
    assert baseline.of_cpus(Rise(MS, 8_000_000_000), Rise(0, 1)) == baseline.of_cpus(None, None) == ""
    assert baseline.of_disks(Rise(312, 6_000_000_000)) == (
        "; 312 page faults of this process waited for a disk in the last 6 s"
    )
    assert baseline.of_disks(Rise(0, 1)) == baseline.of_disks(None) == ""
    monkeypatch.setattr(page_faults.major_faults, "rise", lambda: Rise(1, 10**9))
    monkeypatch.setattr(machine.pressure, "rise", lambda: busy)
    assert "disk" in baseline.host_evidence(Cause("cold_start", "compute"))
    assert "disk" in baseline.host_evidence(Cause("unknown", "unknown"))
    assert "waited for a CPU" in baseline.host_evidence(Cause("cpu_wait", "cpu_wait"))
    assert baseline.host_evidence(Cause("compute", "compute")) == ""


def test_each_part_that_took_time_is_an_attribute() -> None:
    learned, route = Baselines(), ("GET", "/predict")
    objective = Objective("GET /predict within 50ms", "GET", "/predict", 50 * MS)
    slow = parts(compute=30, cpu_wait=60.5)
    for peer in (None, "down:8001"):
        verdict = Verdict(objective, BREACH, Missed("within", 90 * MS, 50 * MS), "inference", 90 * MS, peer, 80 * MS)
        found = learned.explain(route, verdict, slow)
        assert {key: found[key] for key in found if ".part." in key} == {
            "sla.breach.part.compute_ms": 30.0,
            "sla.breach.part.cpu_wait_ms": 60.5,
        }
    broken = Missed("first_chunk", 90 * MS, 50 * MS, 0, 90 * MS)
    found = learned.explain(route, Verdict(objective, BREACH, broken, "inference", 90 * MS), slow)
    assert found["sla.breach.cause"] == "cpu_wait"
    assert "; of the time until then: 60.5 ms waiting for a CPU, 30.0 ms computing" in found["sla.breach.evidence"]
    gone = Missed("disconnect", 90 * MS, 50 * MS)
    assert learned.explain(route, Verdict(objective, BREACH, gone, "inference", 90 * MS), slow) == {}


def test_what_is_learned_takes_bounded_memory_and_few_requests() -> None:
    learned = Baselines()

    def wants(route: str, now: int) -> bool:
        wanted = learned.wants(("GET", route), now)
        learned.add(("GET", route), now, parts(compute=1) if wanted else None)
        return wanted

    wanted = [wants("/hot", number * MS) for number in range(10_000)]
    assert all(wanted[: 2 * ENOUGH])
    assert 10 < sum(wanted[2 * ENOUGH :]) <= 20  # two a second at most
    slowly = [wants("/slow", number * 20 * MS) for number in range(6_400)]
    assert sum(slowly) == 2 * ENOUGH + 6_400 // LEARNED_FROM_EACH - 1
    learned._seen["GET", "/slow"] = LEARNED_FROM_EACH * 1_000
    assert learned.wants(("GET", "/slow"), 0), "the wall clock stepped back"
    for number in range(2 * MAX_ROUTES):
        wants(f"/{number}", 0)
    for bits in range(4 * MAX_SIZES):
        learned.add(("GET", "/hot"), 0, parts(1 << bits, compute=1))
    assert len(learned._routes) <= MAX_ROUTES
    assert len(learned._routes["GET", "/hot"]) <= MAX_SIZES + 1


def test_the_evidence_of_a_lock_says_what_of_it_the_gil_explains() -> None:
    slow = Breakdown({"lock_wait": 60 * MS, "compute": 40 * MS}, for_gil=15 * MS)
    said = evidence(slow, Cause("lock_wait", "lock_wait"), usual(lock_wait=2))
    assert said.startswith(
        "60.0 ms blocked while other threads of the process computed (usually 2.0 ms), "
        "of which waiting for the GIL explains at most 15.0 ms, 40.0 ms computing"
    )
