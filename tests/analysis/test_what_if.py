"""What if: the simulation against ciw's queues, the model against services whose shares are known, what it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ciw
import numpy as np
import pytest

from stagetrace.analysis.what_if.changes import Change, Goal, together
from stagetrace.analysis.what_if.model import GIL, Model, Shares, fit
from stagetrace.analysis.what_if.prediction import LEAST, WhatIf, ask, predict
from stagetrace.analysis.what_if.recorded import WORK, Recorded, since_last_start
from stagetrace.analysis.what_if.simulation import Batches, Station, batch, serve
from stagetrace.errors import StagetraceError

if TYPE_CHECKING:
    from collections.abc import Sequence

MEAN_S = 0.01
RUNS = 6


def simulated(node: Any, servers: float, load: float) -> tuple[Any, Any, Any, Any]:
    """Return arrivals, work, begins and ends of customers of ciw, in the order of their arrival."""
    network = ciw.create_network(
        arrival_distributions=[ciw.dists.Exponential(load / MEAN_S)],
        service_distributions=[ciw.dists.Gamma(4, MEAN_S / 4)],
        number_of_servers=[servers],
    )
    ciw.seed(1)
    simulation = ciw.Simulation(network, node_class=node)
    simulation.simulate_until_max_time(20)
    records = sorted(simulation.get_all_records(), key=lambda one: one.arrival_date)
    fields = ("arrival_date", "service_time", "service_start_date", "service_end_date")
    arrive, work, begin, end = (np.array([getattr(one, name) for one in records]) for name in fields)
    return arrive, work, begin, end


@pytest.mark.parametrize(("servers", "load"), [(1, 0.9), (4, 3.6)])
def test_waits_are_those_of_ciw(servers: int, load: float) -> None:
    """First come, first served, by so many at once."""
    arrive, work, begin, _ = simulated(ciw.Node, servers, load)
    found = serve(Station(1, servers, [1.0] * 100, 0.0, 2.0), arrive, work, [0] * len(arrive))
    # The last ones of ciw's records lack those who were not done.
    some = slice(0, len(arrive) - 100)
    np.testing.assert_allclose(found.wait_s[some], (begin - arrive)[some], atol=1e-9)
    np.testing.assert_allclose(found.work_s, work)


def test_times_are_those_of_ciw_s_processor_sharing() -> None:
    """All go equally fast: as requests of threads that share the GIL."""
    network = ciw.create_network(
        arrival_distributions=[ciw.dists.Sequential([0.001, 0.002, 0.001, 0.3] * 50)],
        service_distributions=[ciw.dists.Sequential([0.01, 0.02, 0.03, 0.04, 0.05])],
        number_of_servers=[float("inf")],
    )
    simulation = ciw.Simulation(network, node_class=ciw.PSNode)
    simulation.simulate_until_max_time(15)
    records = sorted(simulation.get_all_records(), key=lambda one: one.arrival_date)[:100]
    arrive = np.array([one.arrival_date for one in records])
    work = np.resize([0.01, 0.02, 0.03, 0.04, 0.05], len(records))
    found = serve(Station(1, None, Shares(1, 0).speeds(2).tolist(), 1.0, 2.0), arrive, work, [0] * len(arrive))
    took = np.array([one.exit_date - one.arrival_date for one in records])
    np.testing.assert_allclose(found.work_s[:90], took[:90], atol=1e-6)  # ciw's last ones had others beside them


@pytest.mark.parametrize("shares", [Shares(1, 0), Shares(0.3, 0.7), Shares(0, 1), Shares(0.1, 0.2)])
def test_no_more_cpus_are_used_than_there_are(shares: Shares) -> None:
    """In one process and in several, and all work is done."""
    chance = np.random.default_rng(0)
    arrive, work = np.cumsum(chance.exponential(0.004, 500)), chance.exponential(MEAN_S, 500)
    speeds = shares.speeds(2)
    assert speeds[1] == 1
    assert (np.diff(speeds[1:]) <= 1e-12).all()
    on_cpu = shares.serial + shares.parallel
    assert (np.arange(len(speeds)) * speeds * on_cpu <= 2 + 1e-9).all()
    for processes in (1, 3):
        station = Station(processes, None, speeds.tolist(), on_cpu, 2.0)
        found = serve(station, arrive, work, chance.integers(0, processes, 500).tolist())
        assert found.used_cpus <= 2 + 1e-9
        length = (arrive + found.wait_s + found.work_s).max()
        assert found.used_cpus * length == pytest.approx(on_cpu * work.sum())
        assert (found.work_s >= work - 1e-9).all()


def test_a_worker_rests_between_two_requests_and_refuses_beyond_its_limit() -> None:
    arrive, work = np.array([0.0, 0.001, 0.002, 0.003]), np.full(4, 0.01)
    plain = Station(1, 1, [1.0, 1.0], 0.0, 2.0, after_s=0.005)
    np.testing.assert_allclose(serve(plain, arrive, work, [0] * 4).wait_s, [0, 0.014, 0.028, 0.042])
    found = serve(replace(plain, most=2), arrive, work, [0] * 4)
    np.testing.assert_array_equal(np.isnan(found.wait_s), [False, False, True, True])
    # One that no longer holds the loop begins at once.
    np.testing.assert_allclose(serve(plain, arrive, work, [0] * 4, free=[False, True, False, False]).wait_s[1], 0)


def test_batches() -> None:
    """They wait for more requests until the time is over, or they are full, or their model is free."""
    ready = np.array([0.0, 0.001, 0.020, 0.0205, 0.021, 0.022])
    batches = Batches(3, 0.005, from_first=False, gather_s=0.0, fixed_s=0.01, each_s=0.001)
    found = batch(batches, ready, np.ones(1))
    np.testing.assert_allclose(found.wait_s, [0.005, 0.004, 0.001, 0.0005, 0.0, 0.017])
    np.testing.assert_allclose(found.work_s, [0.012, 0.012, 0.013, 0.013, 0.013, 0.011])
    # From the arrival of the first one: the last batch need not wait again.
    last = batch(replace(batches, from_first=True), ready, np.ones(1))
    assert last.wait_s[-1] == pytest.approx(0.012)


# --- The model, from requests of a service that is known.


def requests(
    shares: Shares, per_s: float, processes: int = 1, *, limit: int | None = None, count: int = 6000
) -> Recorded:
    """Return what would be recorded of a service with these shares on two CPUs."""
    chance = np.random.default_rng(0)
    arrive = np.cumsum(chance.exponential(1 / per_s, count))
    arrive -= arrive[0]
    work, process = chance.gamma(4, MEAN_S / 4, count), chance.integers(0, processes, count)
    on_cpu = shares.serial + shares.parallel
    sync = limit == 1 and on_cpu < 0.5  # no event loop takes one at a time although that waits for others
    station = Station(processes, limit, shares.speeds(2).tolist(), on_cpu, 2.0, shared=sync and processes > 1)
    found = serve(station, arrive, work, process.tolist())
    none = np.zeros(count)
    stages = dict.fromkeys(WORK, none) | {"preprocess": 0.25 * found.work_s, "inference": 0.75 * found.work_s}
    return Recorded(
        start_s=arrive,
        duration_s=found.wait_s + found.work_s,
        receive_s=none,
        wait_s=found.wait_s,
        send_s=none,
        work_s=stages,
        process=process,
        path=np.full(count, "POST /predict"),
        batch=np.full(count, np.nan),
        within_s=np.full(count, 0.05),
        cpus=2.0,
        cpu_s=float(work.mean() * on_cpu),
    )


def model_of(recorded: Recorded, pools: Sequence[dict[str, Any]] = ()) -> Model:
    return fit(recorded, pools, 2.0)


def only(found: WhatIf) -> dict[str, float]:
    assert found.refusal is None
    ((_, outcome),) = found.changes
    return {name: value.value for name, value in outcome.percentiles_ms.items()}


def measured(recorded: Recorded) -> Any:
    took = {f"p{rank}": float(np.percentile(recorded.duration_s, rank)) * 1e3 for rank in (50, 95, 99)}
    return pytest.approx(took, rel=0.15)


@pytest.mark.parametrize("shares", [Shares(1, 0), Shares(0.3, 0.7), Shares(0, 0.9), Shares(0.4, 0.2)])
def test_more_workers(shares: Shares) -> None:
    """Predicted from one worker, and then simulated with two."""
    found = predict("it", model_of(requests(shares, 80)), [Change(workers=2)], runs=RUNS)
    assert only(found) == measured(requests(shares, 80, 2))
    assert found.waits_reproduced is None


@pytest.mark.parametrize("shares", [Shares(1, 0), Shares(0.2, 0)])
def test_one_request_at_a_time(shares: Shares) -> None:
    """What waits in front of a worker goes to two: by the CPU that requests use, also where they wait for others."""
    recorded = requests(shares, 80, limit=1)
    model = model_of(recorded)
    assert model.limit == 1
    assert model.shares.serial == pytest.approx(shares.serial, abs=0.01)
    found = predict("it", model, [Change(workers=2)], runs=RUNS)
    assert only(found) == measured(requests(shares, 80, 2, limit=1))
    assert found.waits_reproduced == pytest.approx(1, abs=0.1)
    bottleneck = found.changes[0][1].bottleneck
    assert bottleneck is not None
    assert bottleneck[0] == "each worker"


def test_threads_load_and_a_faster_stage() -> None:
    shares, pool = Shares(0.02, 0), {"reason": "thread_pool", "pool_size": 2, "waits": 9}
    recorded = requests(shares, 170, limit=2)
    model = model_of(recorded, [pool])
    assert model.limit == 2
    threads, load, stage = (
        only(predict("it", model, [one], runs=RUNS))
        for one in (Change(threads=4), Change(rate=0.8), Change(stages={"inference": 0.8}))
    )
    assert threads == measured(requests(shares, 170, limit=4))
    slower = requests(shares, 136, limit=2)
    assert load["p95"] == pytest.approx(np.percentile(slower.duration_s, 95) * 1e3, rel=0.2)  # few are so late
    assert stage["p95"] < 0.7 * np.percentile(recorded.duration_s, 95) * 1e3


def test_a_language_model_engine_at_twice_its_load() -> None:
    """All its requests go a step further together: each other one makes them slower by the same part."""
    together = Shares(0, 0, together=0.02)
    engine = replace(requests(together, 600), is_engine=True, cpu_s=None)
    found = predict("it", model_of(engine), [Change(rate=2)], runs=RUNS)
    assert only(found) == measured(requests(together, 1200))


def test_a_handler_that_is_moved_off_the_loop_holds_the_others_no_more() -> None:
    recorded = requests(Shares(1, 0), 60, limit=1)
    long = np.arange(6000) % 20 == 0
    path = np.where(long, "POST /embed", "POST /predict")
    slow = served_again(replace(recorded, path=path), np.where(long, 0.06, 0.004))
    model = model_of(slow)
    found = predict("it", model, [Change(off_loop=("POST /embed",)), Change(most_in_process=2)], runs=RUNS)
    assert found.refusal is None
    (_, moved), (_, limited) = found.changes
    others = np.percentile(slow.duration_s[~long], 90) * 1e3
    assert moved.percentiles_ms["p50"].value < others / 2
    assert moved.waited_ms < slow.wait_s.mean() * 1e3 / 2
    assert 0 < limited.refused < 0.5
    assert limited.waited_ms < slow.wait_s.mean() * 1e3


def served_again(recorded: Recorded, work: Any) -> Recorded:
    """Return requests of processes that take one at a time, with other work."""
    station = Station(recorded.processes, 1, [1.0, 1.0], 1.0, 2.0)
    found = serve(station, recorded.start_s, work, recorded.process.tolist())
    none = np.zeros(len(work))
    stages = dict.fromkeys(WORK, none) | {"handler": found.work_s}
    took = found.wait_s + found.work_s
    return replace(recorded, wait_s=found.wait_s, duration_s=took, work_s=stages, cpu_s=float(work.mean()))


@pytest.mark.parametrize(("load", "workers"), [(200, 2), (140, 2), (200, 3)])
def test_requests_that_nobody_interrupts_go_one_after_another(load: int, workers: int) -> None:
    """They compute for less than the GIL's switch interval, and wait for it before their work, and after it."""
    model = model_of(waiting_for_the_gil(load))
    assert model.pool == GIL
    found = predict("it", model, [Change(workers=workers)], runs=RUNS)
    assert only(found) == measured(waiting_for_the_gil(load, workers))
    assert found.waits_reproduced == pytest.approx(1, abs=0.1)
    with pytest.raises(StagetraceError, match="no request waited for a thread"):
        predict("it", model, [Change(threads=80)], runs=RUNS)


def waiting_for_the_gil(per_s: float, processes: int = 1) -> Recorded:
    """Return requests of 3.5 ms that wait for each other, half of that in no queue."""
    recorded = requests(Shares(0, 0), per_s, processes)
    found = served_again(recorded, 0.35 * recorded.total_work_s)
    half = found.wait_s / 2
    return replace(found, wait_s=half, work_s={**found.work_s, "postprocess": half})


def test_requests_that_do_nothing_are_no_error() -> None:
    """As those that no route takes."""
    recorded = requests(Shares(1, 0), 60)
    nothing = np.arange(6000) % 10 == 0
    stages = {stage: np.where(nothing, 0.0, took) for stage, took in recorded.work_s.items()}
    odd = replace(recorded, work_s=stages, duration_s=np.where(nothing, 0.0, recorded.duration_s))
    found = predict("it", model_of(odd), [Change(workers=2)], runs=RUNS)
    assert found.recorded is not None
    assert found.modelled is not None


def test_the_least_change_that_reaches_a_goal() -> None:
    model = model_of(requests(Shares(1, 0), 90, limit=1))
    found = predict("it", model, [], Goal("breaches", 0.05, "breaches < 5 %"), runs=RUNS)
    changes = {next(iter(change.keys())): outcome for change, outcome in found.changes}
    assert set(changes) == {"workers", "rate", "stages"}
    for outcome in changes.values():
        assert outcome.breaches is not None
        assert outcome.breaches.value < 0.05
    assert found.changes[0][0].workers == 2


def test_what_cannot_be_told_is_refused() -> None:
    never = predict("it", model_of(requests(Shares(0.1, 0), 5)), [Change(workers=2)], runs=RUNS)
    assert never.refusal is not None
    assert "of their time only" in never.refusal
    # Requests that took three times as long in the middle, when there were no more of them.
    recorded = requests(Shares(1, 0), 60, limit=1)
    waits = recorded.wait_s + np.where(np.arange(6000) // 300 == 10, 1.0, 0.0)
    odd = replace(recorded, wait_s=waits, duration_s=recorded.duration_s + waits - recorded.wait_s)
    unlike = predict("it", model_of(odd), [Change(workers=2)], runs=RUNS)
    assert unlike.refusal is not None
    assert "were recorded" in unlike.refusal
    assert unlike.changes == ()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (Change(threads=9), "no request waited for a thread"),
        (Change(batch_size=9), "no request waited for a batch"),
        (Change(stages={"tokenize": 0.5}), "no request has stage 'tokenize'\nthere are inference, preprocess"),
        (Change(off_loop=("POST /embed",)), "there is no request 'POST /embed'\nthere are POST /predict"),
    ],
)
def test_a_change_of_what_is_not_there(change: Change, why: str) -> None:
    with pytest.raises(StagetraceError, match=why.replace("\n", "\\n")):
        predict("it", model_of(requests(Shares(1, 0), 60, limit=1)), [change], runs=RUNS)


class Rows:
    """A source with so many requests, each of some weight."""

    def __init__(self, count: int, weight: float) -> None:
        stages = ("network_receive", "queue", *WORK, "network_send")
        self.rows = [{"weight": weight, **{f"{stage}_ms": None for stage in stages}}] * count

    def reduce(self, name: str, by: Sequence[str] = (), **values: Any) -> list[dict[str, Any]]:
        del name, by, values
        return self.rows


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        (Rows(LEAST - 1, 1.0), "499 requests are stored"),
        (Rows(LEAST, 2.0), "a sample"),
        (Rows(LEAST, 1.0), "its spans have no stages"),
    ],
)
def test_few_requests_samples_and_spans_without_stages_are_refused(rows: Rows, why: str) -> None:
    found = ask(rows, "it", [Change(workers=2)])
    assert why in str(found.refusal)
    assert found.would_help


def test_processes_of_before_a_deploy_are_left_out() -> None:
    """Where those of after it have served enough."""
    names = ["new"] * 300 + ["new", "other"] * 200 + ["old"] * 600
    rows = [{"instance": name} for name in names]
    assert len(since_last_start(rows, 500)) == 699
    assert len(since_last_start(rows, 800)) == 1300
    assert len(since_last_start(rows, 5000)) == 1300


def test_changes_together() -> None:
    both = together([Change(workers=2), Change(stages={"inference": 0.8}), Change(stages={"preprocess": 0.0})])
    assert both is not None
    assert both.text == "2 workers, inference -20 %, no preprocess"
    assert together([Change(workers=2)]) is None
    assert together([Change(workers=2), Change(workers=3)]) is None
