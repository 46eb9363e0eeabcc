"""Kafka between agent and gateway: the real broker, Collectors and exporter, and a double of ClickHouse's server."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from backend.processes import until
from clickhouse import ClickHouse, run_clickhouse
from kafka import Broker, run_kafka
from pipeline import AGENT, GATEWAY, answers_agree, count, counted, into, run_part, send, tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from backends import Collector

pytestmark = [pytest.mark.usefixtures("backends"), pytest.mark.heavy, pytest.mark.timeout(900)]
STAGES = 3
UNSAMPLED = "[memory_limiter]"
SAMPLED = "[memory_limiter, tail_sampling]"
WAITING = 2000  # traces in memory of the gateway


class Load:
    """Send traces to an agent until told to stop, each until it is acknowledged; every second one has a breach."""

    def __init__(self, agent: Collector) -> None:
        self._agent = agent
        self._end = threading.Event()
        self.acknowledged: list[int] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def more(self, traces: int) -> None:
        """Wait until so many more traces are acknowledged."""
        wanted = len(self.acknowledged) + traces
        until(lambda: len(self.acknowledged) >= wanted)

    def stop(self) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        trace = 0
        while not self._end.wait(0.005):
            trace += 1
            attributes: dict[str, Any] = {"sla.breached": trace % 2 == 0}
            message = tree(trace, stages=STAGES, **attributes)
            while not (is_acknowledged := self._is_acknowledged(message)) and not self._end.wait(0.1):
                pass
            if is_acknowledged:
                self.acknowledged.append(trace)

    def _is_acknowledged(self, message: Any) -> bool:
        with suppress(httpx.HTTPError):
            send(self._agent, message)
            return True
        return False


def stored(server: ClickHouse) -> dict[int, int]:
    """Return the number of different spans of each trace."""
    rows = server.rows("SELECT TraceId AS trace, uniqExact(SpanId) AS spans FROM otel_traces GROUP BY TraceId")
    return {int(row["trace"], 16): row["spans"] for row in rows}


@contextmanager
def run_killable(start: Callable[[Any], AbstractContextManager[Any]], again: Any = None) -> Iterator[Any]:
    """Run what `start` starts until the block ends; then kill it at once."""
    with start(again) as running:
        yield running
        os.kill(running.pid, signal.SIGKILL)


def test_metrics_travel_too(tmp_path: Path) -> None:
    """Counters arrive by a topic of their own."""
    with run_clickhouse(tmp_path / "server") as server, run_kafka(tmp_path / "kafka") as kafka:
        brokers = {"KAFKA_BROKERS": kafka.address}
        behind = run_part(tmp_path / "gateway", GATEWAY, into(server) | brokers | {"GATEWAY_RECEIVER": "kafka"})
        with behind, run_part(tmp_path / "agent", AGENT, brokers | {"AGENT_EXPORTER": "kafka"}) as agent:
            count(agent, "counted", 7)
            until(lambda: counted(server, "counted") == [7])


def test_answers_are_those_of_the_local_store(tmp_path: Path) -> None:
    """By agent, Kafka and gateway."""
    with run_clickhouse(tmp_path / "server") as server, run_kafka(tmp_path / "kafka") as kafka:
        brokers = {"KAFKA_BROKERS": kafka.address}
        kept = into(server) | brokers | {"GATEWAY_RECEIVER": "kafka", "GATEWAY_PROCESSORS": UNSAMPLED}
        with (
            run_part(tmp_path / "gateway", GATEWAY, kept),
            run_part(tmp_path / "agent", AGENT, brokers | {"AGENT_EXPORTER": "kafka"}) as agent,
        ):
            answers_agree(agent, server, tmp_path / "store")


@pytest.mark.parametrize("processors", [UNSAMPLED, SAMPLED])
def test_kills_lose_nothing_acknowledged(processors: str, tmp_path: Path) -> None:
    """Under load the agent, the broker and the gateway are killed in turn; each acknowledged span is stored.

    Some are stored twice, and count once. Tail sampling waits in memory: after the kill of the gateway the group is set
    back by what may have waited.
    """

    def broker(again: Broker | None) -> AbstractContextManager[Broker]:
        return run_kafka(tmp_path / "kafka", again)

    def agent(again: Collector | None) -> AbstractContextManager[Collector]:
        settings = {"AGENT_EXPORTER": "kafka", "KAFKA_BROKERS": kafka.address}
        return run_part(tmp_path / "agent", AGENT, settings, again=again)

    def gateway(again: Collector | None) -> AbstractContextManager[Collector]:
        settings = {"GATEWAY_RECEIVER": "kafka", "KAFKA_BROKERS": kafka.address, "GATEWAY_PROCESSORS": processors}
        settings |= {"GATEWAY_DECISION_WAIT": "4s", "GATEWAY_SHARE_PERCENT": "0", "GATEWAY_TRACES": str(WAITING)}
        return run_part(tmp_path / "gateway", GATEWAY, settings | into(server), again=again)

    with ExitStack() as running:
        server = running.enter_context(run_clickhouse(tmp_path / "server"))
        parts = {name: ExitStack() for name in ("kafka", "agent", "gateway")}
        for part in parts.values():
            running.push(part)
        kafka = parts["kafka"].enter_context(run_killable(broker))
        front = parts["agent"].enter_context(run_killable(agent))
        behind = parts["gateway"].enter_context(run_killable(gateway))
        load = Load(front)
        running.callback(load.stop)

        load.more(200)
        until(lambda: stored(server))
        parts["agent"].close()
        front = parts["agent"].enter_context(run_killable(agent, front))
        load.more(200)
        parts["kafka"].close()
        load.more(200)
        kafka = parts["kafka"].enter_context(run_killable(broker, kafka))
        load.more(200)
        parts["gateway"].close()
        load.more(200)
        if processors == SAMPLED:
            until(lambda: kafka.set_back(WAITING))
        parts["gateway"].enter_context(run_killable(gateway, behind))
        load.more(200)
        load.stop()

        kept = {trace: STAGES + 1 for trace in load.acknowledged if processors == UNSAMPLED or trace % 2 == 0}
        until(lambda: stored(server).keys() >= kept.keys(), within_s=120)
        assert {trace: spans for trace, spans in stored(server).items() if trace in kept} == kept
        # One that was sent when the load ended may have arrived.
        assert stored(server).keys() - kept.keys() <= {max(load.acknowledged) + 1}
        if processors == SAMPLED:  # what was read again had been decided before, for the most part
            until(lambda: server.rows("SELECT count() AS n FROM otel_traces")[0]["n"] > sum(stored(server).values()))
