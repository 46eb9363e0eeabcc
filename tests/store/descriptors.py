"""The descriptors that the real Jaeger carries in itself: what our hand-built messages are compared with."""

from __future__ import annotations

import re
import zlib

from google.protobuf import descriptor_pb2

from backends import binary
from conftest import need

# Go's protobuf keeps each file's descriptor gzipped, always with this header: no name, no time, unknown OS.
_GZIP = re.compile(rb"\x1f\x8b\x08\x00\x00\x00\x00\x00[\x00\x02\x04]\xff")
_LARGEST = 1 << 20


def jaegers_file(package: str) -> descriptor_pb2.FileDescriptorProto:
    """Return the file of a service out of Jaeger's binary."""
    need("jaeger")
    content = binary("jaeger").read_bytes()
    for start in (match.start() for match in _GZIP.finditer(content)):
        try:
            raw = zlib.decompressobj(wbits=31).decompress(content[start : start + _LARGEST])
        except zlib.error:
            continue  # the same ten bytes by chance
        if package.encode() in raw:
            file = descriptor_pb2.FileDescriptorProto.FromString(raw)
            if file.package == package and file.service:
                return file
    raise AssertionError(f"no descriptor of {package} in Jaeger's binary")
