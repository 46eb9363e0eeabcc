"""The messages of a stream that comes in, each wait for one marked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stagetrace.instrumentation.grpc_server.request import Rpc


class _Messages:
    """In the place of gRPC's own iterator, whose other attributes it has."""

    def __init__(self, messages: Any, rpc: Rpc) -> None:
        self._messages = messages
        self._rpc = rpc

    def __getattr__(self, name: str) -> Any:
        return getattr(self._messages, name)


class Requests(_Messages):
    """For a handler in a thread."""

    def __iter__(self) -> Requests:
        return self

    def __next__(self) -> Any:
        self._rpc.begin_receiving()
        try:
            return next(self._messages)
        finally:
            self._rpc.end_receiving()

    def next(self) -> Any:
        """Return the next message."""
        return self.__next__()


class AioRequests(_Messages):
    """For a handler in a task."""

    def __aiter__(self) -> AioRequests:
        return self

    async def __anext__(self) -> Any:
        self._rpc.begin_receiving()
        try:
            return await self._messages.__anext__()
        finally:
            self._rpc.end_receiving()
