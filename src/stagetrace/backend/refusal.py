"""Why a request is refused, in the words of both transports: HTTP status, gRPC code, `google.rpc.Status`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from stagetrace.text import bounded

if TYPE_CHECKING:
    from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]


@dataclass(frozen=True)
class Kind:
    """One reason. `code` is google.rpc's number; with `retry_after_s` OTLP clients send the same request again."""

    name: str
    status: int
    code: int
    retry_after_s: int | None = None


MALFORMED: Final = Kind("malformed", 400, 3)
UNAUTHENTICATED: Final = Kind("unauthenticated", 401, 16)
FORBIDDEN: Final = Kind("forbidden", 403, 7)
NOT_FOUND: Final = Kind("not_found", 404, 5)
METHOD: Final = Kind("method", 405, 12)
SLOW: Final = Kind("slow", 408, 4)
TOO_LARGE: Final = Kind("too_large", 413, 8)  # without RetryInfo RESOURCE_EXHAUSTED means: do not send it again
UNSUPPORTED: Final = Kind("unsupported", 415, 3)
INTERNAL: Final = Kind("internal", 500, 13)
# UNAVAILABLE and not RESOURCE_EXHAUSTED: each OTLP client retries it, whether it reads RetryInfo or not.
BUSY: Final = Kind("busy", 429, 14, retry_after_s=1)
STORE: Final = Kind("store", 503, 14, retry_after_s=5)
ABANDONED: Final = Kind("abandoned", 503, 14, retry_after_s=1)
_MOST: Final = 400  # characters of a message; clients refuse trailers of 8 KiB, in which each can take 18 bytes
KINDS: Final = (
    MALFORMED, UNAUTHENTICATED, FORBIDDEN, NOT_FOUND, METHOD, SLOW, TOO_LARGE, UNSUPPORTED, INTERNAL, BUSY, STORE,
    ABANDONED,
)  # fmt: skip


def short(message: str) -> str:
    """Return a message that may quote its request, printable and short enough for the trailers of gRPC."""
    return bounded(message, _MOST)


class Refused(Exception):  # noqa: N818 -- a response, not a fault of ours
    """Carry a refusal to the code that responds."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = short(message)


def too_many(what: str) -> Refused:
    """Return the refusal of a request that has more parts than are read."""
    return Refused(TOO_LARGE, f"{what}; send smaller batches")


def status(refused: Refused) -> Status:
    """Return the message that OTLP wants in the body (HTTP) or in the trailers (gRPC) of a refusal."""
    from google.protobuf.any_pb2 import Any
    from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]
    from google.rpc.status_pb2 import Status

    found = Status(code=refused.kind.code, message=refused.message)
    if refused.kind.retry_after_s is not None:
        info = RetryInfo()
        info.retry_delay.seconds = refused.kind.retry_after_s
        packed = Any()
        packed.Pack(info)
        found.details.append(packed)
    return found
