"""An RPC whose messages fit into the least buffer between two sides has waited for no caller to take or send them."""

from __future__ import annotations

import pytest

from stagetrace.protocols.grpc_request import LEAST_BUFFER, Rpc
from stagetrace.request.chunk_times import Stream
from stagetrace.request.request import Request


class Served(Rpc):
    def __init__(self, sent: int, received: int, messages: int = 0, streamed: int = 0) -> None:
        Request.__init__(self)
        self.sent_bytes, self.received_bytes, self.received = sent, received, messages
        if streamed:
            self.stream = Stream()
            self.stream.add(1, streamed)


@pytest.mark.parametrize(
    ("rpc", "sends", "receives"),
    [
        (Served(15, 15), True, True),
        (Served(LEAST_BUFFER, 15), False, True),
        (Served(15, LEAST_BUFFER), True, False),
        (Served(0, 15, messages=3), True, False),  # a stream may come as slowly as it likes
        (Served(0, 15, streamed=LEAST_BUFFER), False, True),
        (Served(0, 0), True, False),
    ],
)
def test_only_more_than_a_buffer_may_have_waited(rpc: Rpc, sends: bool, receives: bool) -> None:
    assert (rpc.fits_buffer("network.send"), rpc.fits_buffer("network.receive")) == (sends, receives)
    assert not rpc.fits_buffer("queue")
