"""What the gRPC services share: the model, messages without a .proto of their own, and how they end."""

import gc
import json
import logging
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import breaking
import grpc
from google.protobuf.struct_pb2 import Struct
from opentelemetry import baggage, trace
from sleepy import SleepyModel

SERVICE = "ml.Scorer"
logging.basicConfig()  # gRPC logs the exceptions of handlers


class OddError(Exception):
    """A person's own error."""


model = SleepyModel()


def load(data: bytes) -> Struct:
    message = Struct.FromString(data)
    time.sleep(get(message, "load_s"))
    if get(message, "load_fails"):
        raise ValueError("cannot load this")
    return message


def dump(message: Struct) -> bytes:
    time.sleep(get(message, "dump_s"))
    if get(message, "dump_fails"):
        raise ValueError("cannot dump this")
    return message.SerializeToString()


def get(message: Struct, name: str, default: Any = 0.0) -> Any:
    return message[name] if name in message.fields else default


def struct(**values: Any) -> Struct:
    message = Struct()
    message.update(values)
    return message


def result(request: Struct) -> Struct:
    return struct(
        **{name: get(request, name) for name in ("dump_s", "dump_fails")},
        value=model.predict([get(request, "inference_s")])[0],
    )


def seen() -> Struct:
    """What the handler's code sees of its own request."""
    span = trace.get_current_span()
    span.set_attribute("set.by.handler", "yes")
    with trace.get_tracer("handler").start_as_current_span("child"):
        context = span.get_span_context()
        return struct(trace_id=f"{context.trace_id:032x}", tenant=str(baggage.get_baggage("tenant")))


def handlers(of: Any, names: dict[str, str]) -> list[grpc.GenericRpcHandler]:
    """Methods of `of` by their names, each with its kind."""
    kinds = {
        kind: getattr(grpc, f"{kind}_rpc_method_handler")
        for kind in ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
    }
    made = {name: kinds[kind](getattr(of, name), load, dump) for name, kind in names.items()}
    raw = {"Bytes": grpc.unary_unary_rpc_method_handler(of.Bytes)}
    health = {"Check": grpc.unary_unary_rpc_method_handler(of.Bytes)}
    control = {name: grpc.unary_unary_rpc_method_handler(getattr(of, name)) for name in ("Break", "Count_left")}
    return [
        grpc.method_handlers_generic_handler(SERVICE, made | raw),
        grpc.method_handlers_generic_handler("grpc.health.v1.Health", health),
        grpc.method_handlers_generic_handler("ray.serve.RayServeAPIService", health),
        grpc.method_handlers_generic_handler("left.Out", health | control),
    ]


def pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(int(os.environ.get("WORKERS", "4")))


def reflect(server: Any) -> None:
    """Let callers ask which services there are, if REFLECTION says so."""
    if os.environ.get("REFLECTION"):
        from grpc_reflection.v1alpha import reflection

        reflection.enable_server_reflection([SERVICE], server)


def address() -> str:
    return os.environ.get("ADDRESS") or f"127.0.0.1:{os.environ['PORT']}"


def most() -> int | None:
    """How many RPCs may run at once."""
    return int(os.environ["MOST"]) if "MOST" in os.environ else None


def telemetry_of_its_own(interceptor: str) -> list[Any]:
    """What the author of a service has set up, as OWN says; return interceptors to be given to its server."""
    own = os.environ.get("OWN", "")
    if "silent interceptor" in own:
        from opentelemetry.instrumentation import grpc as instrumentation
        from opentelemetry.sdk.trace import TracerProvider

        return [getattr(instrumentation, interceptor)(TracerProvider())]
    if "provider" in own:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        provider = TracerProvider(resource=Resource.create({"service.name": "own-provider"}))
        if "silent" not in own:
            exporter = OTLPSpanExporter(endpoint=os.environ["SINK"], insecure=True)
            provider.add_span_processor(BatchSpanProcessor(exporter))
        trace.set_tracer_provider(provider)
    if "instrumentor" in own:
        from opentelemetry.instrumentation.grpc import GrpcAioInstrumentorServer, GrpcInstrumentorServer

        GrpcInstrumentorServer().instrument()
        GrpcAioInstrumentorServer().instrument()
    if "interceptor" in own:
        from opentelemetry.instrumentation import grpc as instrumentation

        return [getattr(instrumentation, interceptor)()]
    return []


def sabotage(where: str) -> bytes:
    """Make the part of stagetrace fail that is named as `module:attribute.path`, the one before work again.

    Return which places failed since the last time, as JSON.
    """
    from stagetrace import guard

    failed = dict(guard.failures)
    breaking.restore()
    breaking.forget_failures()
    forget()
    if where:
        breaking.replace(where)
    return json.dumps(failed).encode()


def forget() -> None:
    """Let stagetrace work out anew what it remembers of RPCs."""
    rpc = sys.modules.get("stagetrace.protocols.grpc_request")
    if rpc is not None:
        for cached in (rpc.peer_block, rpc.status_block):
            cached.cache_clear()
        for server in (one for one in gc.get_objects() if isinstance(one, rpc.Server)):
            server.blocks.clear()


def count_left() -> bytes:
    """How many objects of stagetrace's are alive that belong to RPCs, and how many only a collector could free."""

    def ours(objects: list[Any]) -> list[str]:
        names = (type(one).__qualname__ for one in objects if str(type(one).__module__).startswith("stagetrace."))
        kinds = ("Rpc", "Requests", "Answers", "Handler", "PooledContext", "Request", "OwnSpan", "RequestSpan")
        return [name for name in names if name.endswith(kinds)]

    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    gc.set_debug(0)
    left = {"garbage": ours(gc.garbage)}
    gc.garbage.clear()
    left["alive"] = ours(gc.get_objects())
    gc.disable()  # until the next time
    return json.dumps(left).encode()


if os.environ.get("BREAK"):
    breaking.replace(os.environ["BREAK"])
for part in filter(None, os.environ.get("HANG", "").split(",")):
    breaking.replace(part, breaking.hangs)
    breaking.broken.clear()  # for good
