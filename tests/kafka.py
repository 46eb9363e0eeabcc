"""Run a real Kafka broker in KRaft mode, and Kafka's own tools, from jars of Maven; needs `mvn` and `java`."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backends import BUILT, CONFIG, LOOPBACK, _process, free_port
from missing import missing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

POM = CONFIG / "build/kafka/pom.xml"
COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
GROUP = "stagetrace"  # of gateway.yaml
PROPERTIES = """
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
controller.listener.names=CONTROLLER
log.dirs={logs}
num.partitions=3
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
share.coordinator.state.topic.replication.factor=1
group.initial.rebalance.delay.ms=0
# One that is back after a kill waits until the controller has given up the one before.
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
"""


@dataclass(frozen=True)
class Broker:
    """The address of a running broker."""

    port: int
    controller: int
    pid: int

    @property
    def address(self) -> str:
        return f"{LOOPBACK}:{self.port}"

    def set_back(self, messages: int) -> bool:
        """Let the gateways' group read so many messages of each partition again; report whether none of them runs."""
        done = _java(
            *("org.apache.kafka.tools.consumer.group.ConsumerGroupCommand", f"--bootstrap-server={self.address}"),
            *(f"--group={GROUP}", "--topic=otlp_spans", "--reset-offsets", f"--shift-by=-{messages}", "--execute"),
        )
        return "otlp_spans" in done.stdout and "inactive" not in done.stdout


def jars() -> Path:
    """Return the folder of Kafka's jars, copied there once; skip without Maven and Java, but not under CI."""
    lacking = [name for name in ("mvn", "java") if shutil.which(name) is None]
    if lacking:
        missing(f"the real Kafka needs {' and '.join(lacking)}")
    folder = BUILT / f"kafka-{hashlib.sha256(POM.read_bytes()).hexdigest()[:16]}"
    if not folder.is_dir():
        made = folder.with_suffix(".new")
        subprocess.run(["mvn", "-q", "-B", "-f", POM, COPY, f"-DoutputDirectory={made}"], check=True)
        made.rename(folder)
    return folder


def _command(*arguments: str) -> list[str]:
    return ["java", "-Xmx384m", "-cp", f"{jars()}/*", *arguments]


def _java(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(_command(*arguments), capture_output=True, text=True, check=True)


@contextmanager
def run_kafka(folder: Path, again: Broker | None = None) -> Iterator[Broker]:
    """Run a broker until the block ends; its topics stay in `folder` for the next run there, `again` on its ports."""
    port, controller = (again.port, again.controller) if again else (free_port(), free_port())
    folder.mkdir(parents=True, exist_ok=True)
    properties = folder / "kafka.properties"
    if not properties.exists():
        properties.write_text(PROPERTIES.format(port=port, controller=controller, logs=folder / "topics"))
        _java("kafka.tools.StorageTool", "format", "--cluster-id=MkU3OEVBNTcwNTJENDM2Qk", f"--config={properties}")
    command = _command("kafka.Kafka", str(properties))
    with _process("kafka", command, {}, folder, (port, "")) as process:
        yield Broker(port, controller, process.pid)
