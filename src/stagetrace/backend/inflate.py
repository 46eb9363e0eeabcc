"""Decompression that stops at a limit: a sender chooses the size to which a body inflates."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Final, Protocol

from stagetrace.backend.refusal import MALFORMED, TOO_LARGE, UNSUPPORTED, Refused

ENCODINGS: Final = ("gzip", "deflate", "zstd", "identity")
_STEP: Final = 1 << 20
# zlib copies the rest of its input at each step, and behind each of gzip's members: 64 MiB may have millions of these.
_ZLIB_INPUT: Final = 1 << 14
_GZIP: Final = 16 + zlib.MAX_WBITS
_GZIP_MAGIC: Final = b"\x1f\x8b"
# A frame of known size may ask for that size as its window; others could ask for gigabytes.
_ZSTD_WINDOW: Final = 64 << 20
# A block of 4 bytes may stand for 128 KiB, so this many bytes for 8 MiB at most.
_ZSTD_STEP: Final = 256


class Limits(Protocol):
    """The part of `intake.RequestLimits` that this module needs: both raise Refused."""

    def check(self) -> None:
        """Return if the work may continue."""

    def grow(self, count: int) -> None:
        """Hold `count` more bytes."""


def inflate(body: bytes, encoding: str, most: int, limits: Limits) -> bytes:
    """Return `body` as it was before `encoding`. Each chunk counts against `limits` before it is kept.

    Raise Refused where it would have more than `most` bytes, is damaged or cut off, the encoding is unknown, or
    `limits` refuses.
    """
    if encoding == "identity":
        return body
    chunks: list[bytes] = []
    total = 0
    for chunk in _chunks(body, encoding):
        limits.check()
        total += len(chunk)
        if total > most:
            raise too_large(most)
        limits.grow(len(chunk))
        if chunk:
            chunks.append(chunk)
    return b"".join(chunks)


def inflate_unnamed(body: bytes, most: int, limits: Limits) -> bytes:
    """Return a gRPC message decompressed, if it was compressed: gRPC names the encoding only to itself.

    Every field of an export request is number 1 with a length, so it starts with 0x0a: neither with gzip's two bytes
    nor with zlib's, which could at most be a field that OTLP does not have.
    """
    if body[:2] == _GZIP_MAGIC:
        return inflate(body, "gzip", most, limits)
    if body[:1] == b"\x78" and int.from_bytes(body[:2], "big") % 31 == 0:
        return inflate(body, "deflate", most, limits)
    return body


def too_large(limit: int) -> Refused:
    """Return the refusal of a request beyond `limit`."""
    return Refused(TOO_LARGE, f"the request has more than {limit} bytes decompressed; send smaller batches")


def _chunks(body: bytes, encoding: str) -> Iterator[bytes]:
    """Yield what `body` inflates to; nothing, too, after a bounded step."""
    if encoding == "gzip":
        return _zlib(body, _GZIP)
    if encoding == "deflate":
        # HTTP's deflate is zlib's format; some clients send the bare stream.
        wrapped = len(body) > 1 and body[0] & 15 == 8 and int.from_bytes(body[:2], "big") % 31 == 0  # noqa: PLR2004
        return _zlib(body, zlib.MAX_WBITS if wrapped else -zlib.MAX_WBITS)
    if encoding == "zstd":
        return _zstd(body)
    raise Refused(UNSUPPORTED, f"content-encoding {encoding[:40]!r} is not one of {', '.join(ENCODINGS)}")


def _zlib(body: bytes, wbits: int) -> Iterator[bytes]:
    at = 0
    while at < len(body):  # gzip: members may follow each other
        stream = zlib.decompressobj(wbits)
        while not stream.eof:
            given = stream.unconsumed_tail
            if not given:
                given = body[at : at + _ZLIB_INPUT]
                at += len(given)
            try:
                chunk = stream.decompress(given, _STEP)
            except zlib.error as error:
                raise Refused(MALFORMED, f"the body cannot be decompressed: {error}") from None
            if not given and not chunk and not stream.eof:
                raise Refused(MALFORMED, "the compressed body is cut off")
            yield chunk
        if wbits != _GZIP:
            return
        at -= len(stream.unused_data)


def _zstd(body: bytes) -> Iterator[bytes]:
    try:
        import zstandard
    except ImportError:
        raise Refused(UNSUPPORTED, "zstd needs zstandard here: pip install 'stagetrace[backend]'") from None
    at = 0
    try:
        while at < len(body):  # frames may follow each other
            stream = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj()
            while not stream.eof:
                if at >= len(body):
                    raise Refused(MALFORMED, "the compressed body is cut off")
                # One input is inflated at once as a whole, so the input is passed in small steps.
                yield stream.decompress(body[at : at + _ZSTD_STEP])
                at += _ZSTD_STEP
            at = min(at, len(body)) - len(stream.unused_data)
    except zstandard.ZstdError as error:
        raise Refused(MALFORMED, f"the body cannot be decompressed: {error}") from None
