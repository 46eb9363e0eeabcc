"""kill -9 under load, again and again on one folder: every acknowledged span is readable, each exactly once."""

from __future__ import annotations

import secrets
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import httpx
import pytest

from backend.running import PROTOBUF, Up, export, request, run_up, stored_spans
from heavy import scaled
from messages import leaves

pytestmark = pytest.mark.usefixtures("services")

ROUNDS = scaled(3, 8, 50)
SENDERS = 4
BATCH = 50


@dataclass
class Sender:
    """Sends batches of one trace as fast as they are taken, and remembers what was acknowledged."""

    up: Up
    over_http: bool
    trace: bytes = field(default_factory=lambda: secrets.token_bytes(16))
    acknowledged: set[str] = field(default_factory=set)

    def run(self) -> None:
        with grpc.insecure_channel(self.up.target()) as channel, httpx.Client(timeout=30) as client:
            while True:
                sent = request(*["s"] * BATCH, service="crash", trace=self.trace)
                body = sent.SerializeToString()
                try:
                    if self.over_http:
                        kind = {"content-type": PROTOBUF}
                        client.post(self.up.traces, content=body, headers=kind).raise_for_status()
                    else:
                        export(channel, body)
                except (grpc.RpcError, httpx.HTTPError):
                    return
                self.acknowledged |= {span.span_id.hex() for _, _, span in leaves(sent)}


@pytest.mark.sample
@pytest.mark.heavier(f"{ROUNDS} kills")
def test_no_acknowledged_span_is_lost(tmp_path: Path) -> None:
    before: list[Sender] = []
    left: list[Path] = []
    for number in range(ROUNDS + 1):
        with run_up(tmp_path) as up:
            control = Path((tmp_path / "data" / "lock").read_text().splitlines()[1])
            assert not any(path.exists() for path in left), "what was killed is cleared away"
            left = [control, control.parent]
            for sender in before:
                found = [span["spanId"] for span in stored_spans(up, sender.trace.hex())]
                assert sender.acknowledged <= set(found)
                assert len(found) == len(set(found))
            if number == ROUNDS:
                return
            before = [Sender(up, over_http=index % 2 == 1) for index in range(SENDERS)]
            threads = [threading.Thread(target=sender.run) for sender in before]
            for thread in threads:
                thread.start()
            deadline = time.monotonic() + 60
            while not all(sender.acknowledged for sender in before):
                assert time.monotonic() < deadline, "nothing was acknowledged"
                time.sleep(0.01)
            time.sleep(number % 5 * 0.2)
            up.process.kill()
            for thread in threads:
                thread.join(60)
