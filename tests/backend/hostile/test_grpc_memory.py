"""What large messages over gRPC may take: the bound of docs/cli.md."""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING

import grpc
import pytest

from backend.running import export, request, run_up
from stagetrace.backend.options import MIB, Limits

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.usefixtures("services"), pytest.mark.heavy]

IDLE_MIB = 250
SENDERS = 12
SIZE = 62 * MIB


def test_twelve_large_messages_stay_below_the_documented_bound(tmp_path: Path) -> None:
    one = request(*(f"span {number}" for number in range(20_000))).SerializeToString()
    body = one * (SIZE // len(one))
    codes: Counter[grpc.StatusCode] = Counter()
    with run_up(tmp_path) as up:

        def send() -> None:
            own = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
            with grpc.insecure_channel(up.target(), own) as channel:
                try:
                    export(channel, body)
                    codes[grpc.StatusCode.OK] += 1
                except grpc.RpcError as error:
                    codes[error.code()] += 1

        senders = [threading.Thread(target=send) for _ in range(SENDERS)]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
        limits = Limits()
        bound = IDLE_MIB * MIB + 8 * limits.request + 5 * limits.in_flight
        assert up.peak_kib() * 1024 < bound
        # Those beyond the limits may come again.
        retried = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED}
        assert codes[grpc.StatusCode.OK] > 0
        assert set(codes) <= {grpc.StatusCode.OK, *retried}
