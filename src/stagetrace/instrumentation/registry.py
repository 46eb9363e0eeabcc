"""Which module of ours hooks which module of theirs. A new library is one file and one line here."""

from __future__ import annotations

from stagetrace.instrumentation.hooks import PostImportFinder

HOOKS = {
    # their module, imported ... -> our module, whose `hook(module)` is called
    "opentelemetry.sdk.trace": "stagetrace.instrumentation.otel_sdk",
    "opentelemetry.exporter.otlp.proto.grpc.trace_exporter": "stagetrace.instrumentation.otlp_exporter",
    "opentelemetry.exporter.otlp.proto.http.trace_exporter": "stagetrace.instrumentation.otlp_exporter",
    "fastapi.applications": "stagetrace.instrumentation.fastapi",
    "uvicorn.server": "stagetrace.instrumentation.uvicorn",
    "anyio.to_thread": "stagetrace.instrumentation.anyio",
    "sklearn.base": "stagetrace.instrumentation.sklearn",
    "onnxruntime.capi.onnxruntime_inference_collection": "stagetrace.instrumentation.onnxruntime",
}

_finder = PostImportFinder(HOOKS)


def install() -> None:
    """Install all hooks once; hook at once what is already imported."""
    _finder.install()
