"""Our hand-built messages against the descriptor that the real Jaeger carries in itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
import pytest
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from stagetrace.store.jaeger import api_v3
from store.descriptors import jaegers_file

if TYPE_CHECKING:
    from google.protobuf import descriptor_pb2

    from backends import Jaeger


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
