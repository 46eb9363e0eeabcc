"""Our hand-built messages against the descriptor that the real Jaeger carries in itself."""

from __future__ import annotations

import re
import zlib
from typing import TYPE_CHECKING

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from backends import binary
from conftest import need
from stagetrace.store.jaeger import api_v3

if TYPE_CHECKING:
    from backends import Jaeger

# --- The descriptors that the real Jaeger carries in itself: what our hand-built messages are compared with.

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


# --- Our hand-built messages against the descriptor that the real Jaeger carries in itself.


@pytest.fixture(scope="module")
def theirs() -> descriptor_pb2.FileDescriptorProto:
    """Return the file of `jaeger.api_v3` out of Jaeger's binary (its gRPC reflection knows the name alone)."""
    return jaegers_file(api_v3.PACKAGE)


def _fields(message: descriptor_pb2.DescriptorProto) -> dict[str, tuple[int, int, int, str]]:
    return {field.name: (field.number, field.type, field.label, field.type_name) for field in message.field}


def test_each_message_has_jaegers_fields_numbers_and_types(theirs: descriptor_pb2.FileDescriptorProto) -> None:
    expected = {message.name: message for message in theirs.message_type if not message.name.startswith("GRPCGateway")}
    ours = {message.name: message for message in api_v3.file_descriptor().message_type}
    assert {name: _fields(message) for name, message in ours.items()} == {
        name: _fields(message) for name, message in expected.items()
    }
    nested = {name: [(one.name, _fields(one)) for one in message.nested_type] for name, message in ours.items()}
    assert nested == {
        name: [(one.name, _fields(one)) for one in message.nested_type] for name, message in expected.items()
    }


def test_each_method_has_jaegers_messages(theirs: descriptor_pb2.FileDescriptorProto) -> None:
    def methods(file: descriptor_pb2.FileDescriptorProto) -> list[tuple[str, str, str, bool, bool]]:
        (service,) = file.service
        assert f"{file.package}.{service.name}" == api_v3.SERVICE
        return [
            (one.name, one.input_type, one.output_type, one.client_streaming, one.server_streaming)
            for one in service.method
        ]

    assert methods(api_v3.file_descriptor()) == methods(theirs)


def test_a_running_jaeger_offers_the_service(jaeger: Jaeger) -> None:
    with grpc.insecure_channel(jaeger.query_grpc) as channel:
        assert api_v3.SERVICE in ProtoReflectionDescriptorDatabase(channel).get_services()
