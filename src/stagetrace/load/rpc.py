"""gRPC for the load generator: unary calls on one channel. Messages are bytes; responses are discarded."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from stagetrace.load.base import LoadError

if TYPE_CHECKING:
    import grpc

    from stagetrace.load.base import Target

_OPENS_WITHIN_S: Final = 5.0
_OPTIONS: Final = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
)


class Place:
    """The address to connect to, not a name, and the settings of TLS."""

    def __init__(self, target: Target, address: str, ca: bytes | None = None) -> None:
        """Take the address of a target; `ca`: certificates in PEM to trust in place of the system's."""
        kind, host = ("ipv6", f"[{address}]") if ":" in address else ("ipv4", address)
        self.name = f"{kind}:{host}:{target.port}"
        self.shown = f"{target.host} port {target.port}"
        self._ca = ca
        self._is_tls = target.is_tls
        self._options: list[tuple[str, Any]] = [*_OPTIONS, ("grpc.default_authority", target.authority)]
        if target.is_tls:
            self._options.append(("grpc.ssl_target_name_override", target.host))

    def channel(self, of: Any) -> Any:
        """Return a channel of the module `grpc` or `grpc.aio`."""
        import grpc

        if self._is_tls:
            return of.secure_channel(self.name, grpc.ssl_channel_credentials(self._ca), options=self._options)
        return of.insecure_channel(self.name, options=self._options)


class RpcSender:
    """Sends messages in turn to one unary method."""

    def __init__(
        self, place: Place, method: str, messages: Sequence[bytes], metadata: Sequence[tuple[str, str]] = ()
    ) -> None:
        """Send to `/pkg.Service/Method`; keys of metadata are lower case."""
        self._place = place
        self._method = method
        self._messages = messages
        self._metadata = tuple(metadata)
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Connect."""
        from grpc import aio

        self._loop = asyncio.get_running_loop()
        self._channel = self._place.channel(aio)
        try:
            await asyncio.wait_for(self._channel.channel_ready(), _OPENS_WITHIN_S)
        except asyncio.TimeoutError:
            await self._channel.close()
            raise LoadError(f"cannot connect to {self._place.shown}: no gRPC server answers there") from None
        self._call = self._channel.unary_unary(self._method)

    async def close(self) -> None:
        """Close the channel."""
        for task in self._tasks:
            task.cancel()
        await self._channel.close()

    def send(self, number: int, traceparent: str, done: Callable[[str | None], None]) -> _Exchange:
        """Call the method with the next message."""
        exchange = _Exchange(self._loop.time())
        call = self._call(
            self._messages[number % len(self._messages)], metadata=(*self._metadata, ("traceparent", traceparent))
        )
        exchange.task = self._loop.create_task(_await(call, done))
        self._tasks.add(exchange.task)
        exchange.task.add_done_callback(self._tasks.discard)
        return exchange


async def _await(call: Any, done: Callable[[str | None], None]) -> None:
    import grpc

    failure = None
    try:
        await call
    except grpc.RpcError as error:
        failure = f"status {error.code().name}"
    except asyncio.CancelledError:
        call.cancel()
        raise
    done(failure)


class _Exchange:
    """A call on its way."""

    __slots__ = ("sent_s", "task")

    def __init__(self, sent_s: float) -> None:
        self.sent_s: float | None = sent_s
        self.task: asyncio.Task[None] | None = None

    def cancel(self) -> None:
        if self.task is not None:
            self.task.cancel()


def serialise(place: Place, method: str, texts: Sequence[str]) -> list[bytes]:
    """Return messages, given as JSON, in bytes: of the type that the server's reflection service reports.

    Raises:
        LoadError: if the server has no reflection or no such method, or a text is no such message.
    """
    import grpc

    with place.channel(grpc) as channel:
        return _serialise(channel, method.strip("/"), texts)


def _serialise(channel: grpc.Channel, method: str, texts: Sequence[str]) -> list[bytes]:
    import grpc
    from google.protobuf import json_format
    from google.protobuf.descriptor_pool import DescriptorPool
    from google.protobuf.message_factory import GetMessageClass
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

    service, _, name = method.partition("/")
    try:
        found = DescriptorPool(ProtoReflectionDescriptorDatabase(channel)).FindServiceByName(service)
        kind = found.methods_by_name[name]
    except grpc.RpcError as error:
        detail = getattr(error, "code", lambda: "")()
        raise LoadError(
            f"the server's reflection service does not answer ({detail})\n"
            "give the serialised message: --message-file FILE"
        ) from None
    except KeyError:
        raise LoadError(f"the server has no method {method}, by its reflection service") from None
    if kind.client_streaming or kind.server_streaming:
        raise LoadError(f"{method} streams, and bench calls unary methods only")
    made = []
    for text in texts:
        try:
            made.append(json_format.Parse(text, GetMessageClass(kind.input_type)()).SerializeToString())
        except (json_format.ParseError, json.JSONDecodeError) as error:  # noqa: PERF203 -- the error names the message
            raise LoadError(f"{text[:60]!r} is no {kind.input_type.full_name}: {error}") from None
    return made
