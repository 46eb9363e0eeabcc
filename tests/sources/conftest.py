"""What several files here need: readings of TCP_INFO in C and in Python."""

from __future__ import annotations

import pytest

from missing import unused
from stagetrace.sources import socket_wait, tcp_info


@pytest.fixture(params=["C", "Python"])
def each_tcp_info(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read TCP_INFO by both implementations."""
    if request.param == "Python":
        for module in (socket_wait, tcp_info):
            monkeypatch.setattr(module, "tcp_info", socket_wait._tcp_info)
    elif socket_wait.tcp_info is socket_wait._tcp_info:
        unused()
