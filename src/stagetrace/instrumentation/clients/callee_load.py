"""ORCA: the load that a callee reports with a response, in `endpoint-load-metrics`, as text, JSON or protobuf.

https://github.com/cncf/xds/blob/main/xds/data/orca/v3/orca_load_report.proto; vLLM and Triton send text or JSON, gRPC
servers the trailing metadata `endpoint-load-metrics-bin`. It tells how busy the callee is, and no times.
"""

from __future__ import annotations

import binascii
import functools
import json
import re
from base64 import b64decode
from typing import Any, Final

MAX_CHARACTERS: Final = 4_096
MAX_VALUES: Final = 64
MOST: Final = 1e300
HEADER: Final = "endpoint-load-metrics"
BINARY, JSON = f"{HEADER}-bin", f"{HEADER}-json"
HEADERS: Final = (HEADER, BINARY, JSON)
CPU, APPLICATION = "cpu_utilization", "application_utilization"
FIELDS: Final = {
    "cpu_utilization": 1,
    "mem_utilization": 2,
    "rps_fractional": 6,
    "eps": 7,
    "application_utilization": 9,
}
MAPS: Final = {"request_cost": 4, "utilization": 5, "named_metrics": 8}
_NAME: Final = re.compile(r"[A-Za-z0-9_.\-/]{1,64}")
_NUMBER: Final = re.compile(r"-?[0-9]{1,15}(?:\.[0-9]{1,18})?(?:[eE][+\-]?[0-9]{1,3})?")


def load_in(name: str, value: str | bytes) -> dict[str, float]:
    """Return the values of one of HEADERS, those of maps with their map as prefix; empty where it cannot be read."""
    if len(value) > MAX_CHARACTERS:
        return {}  # a part of it would be no report
    if name == BINARY:
        return _of_message(value if isinstance(value, bytes) else _decoded(value))
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    if name == JSON:
        return _of_json(text)
    kind, _, rest = text.partition(" ")
    if kind == "BIN":
        return _of_message(_decoded(rest))
    return _of_json(rest) if kind == "JSON" else _of_text(rest if kind == "TEXT" else text)


def _of_text(text: str) -> dict[str, float]:
    """Read `cpu_utilization=0.3, named_metrics.waiting=4`, in which older servers write a colon."""
    found: dict[str, float] = {}
    for pair in text.split(",", MAX_VALUES)[:MAX_VALUES]:
        name, _, value = pair.replace(":", "=", 1).partition("=")
        if _NUMBER.fullmatch(value.strip()):
            _add(found, name.strip(), float(value))
    return found


def _of_json(text: str) -> dict[str, float]:
    try:
        report = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    found: dict[str, float] = {}
    for name, value in (report if isinstance(report, dict) else {}).items():
        known = _snake(name)
        if known in MAPS and isinstance(value, dict):
            for key, one in value.items():
                _add(found, f"{known}.{key}", one)
        else:
            _add(found, known, value)
    return found


def _snake(name: str) -> str:
    """Return the name of a field in the message's own spelling: in JSON `cpuUtilization` may stand."""
    return re.sub(r"(?<=[a-z])[A-Z]", lambda match: f"_{match[0].lower()}", name[:MAX_CHARACTERS])


def _of_message(message: bytes) -> dict[str, float]:
    from google.protobuf.message import DecodeError

    report = _class()()
    try:
        report.ParseFromString(message)
    except DecodeError:
        return {}
    found: dict[str, float] = {}
    for name in FIELDS:
        if report.HasField(name):
            _add(found, name, getattr(report, name))
    for name in MAPS:
        for key, value in getattr(report, name).items():
            _add(found, f"{name}.{key}", value)
    return found


def _decoded(text: str) -> bytes:
    try:
        return b64decode(text.strip() + "=" * (-len(text.strip()) % 4), validate=True)
    except (binascii.Error, ValueError):
        return b""


def _add(found: dict[str, float], name: str, value: Any) -> None:
    """Add a value that is a number of a plausible name and size."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if len(found) < MAX_VALUES and is_number and _NAME.fullmatch(name) and abs(value) < MOST:
        found[name] = float(value)


@functools.cache
def _class() -> Any:
    """Return the message's class, in a pool of its own: the service may have the class itself."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="orca_load_report.proto", package="orca", syntax="proto3")
    report = file.message_type.add(name="OrcaLoadReport")
    for number, (name, place) in enumerate(FIELDS.items()):
        report.oneof_decl.add(name=f"_{name}")
        report.field.add(
            name=name,
            number=place,
            type=kinds.TYPE_DOUBLE,
            label=kinds.LABEL_OPTIONAL,
            proto3_optional=True,
            oneof_index=number,
        )
    for name, place in MAPS.items():
        entry = report.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
        entry.field.add(name="value", number=2, type=kinds.TYPE_DOUBLE, label=kinds.LABEL_OPTIONAL)
        kind = f".orca.OrcaLoadReport.{entry.name}"
        report.field.add(name=name, number=place, type=kinds.TYPE_MESSAGE, label=kinds.LABEL_REPEATED, type_name=kind)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("orca.OrcaLoadReport"))
