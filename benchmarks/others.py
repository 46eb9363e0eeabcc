"""Compare other observability libraries: how each is installed, switched on, and what it sends where.

They are in a virtual environment of their own, outside the work tree, so they affect nothing else. Packages that both
environments have are held at the same versions.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
VENV = Path.home() / ".cache" / "stagetrace" / "bench-venv"
GROUP = "bench"  # of pyproject.toml
SAME = ("fastapi", "starlette", "pydantic", "pydantic-core", "anyio", "opentelemetry-api", "opentelemetry-sdk")
SHOWN = ("ddtrace", "logfire", "fastotel")
QUIET_DATADOG = {
    "DD_REMOTE_CONFIGURATION_ENABLED": "false",
    "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false",
    "DD_CRASHTRACKING_ENABLED": "false",
    "DD_SERVICE": "bench",
    "DD_TRACE_STARTUP_LOGS": "false",
}


def installed() -> Path:
    """Return the Python of the environment; make it if it does not exist."""
    python = VENV / "bin" / "python"
    if not all(_has(name) for name in SHOWN):
        print(f"installing {', '.join(SHOWN)} into {VENV} ...", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
        held = VENV / "held.txt"
        held.write_text("".join(f"{name}=={importlib.metadata.version(name)}\n" for name in SAME))
        pip = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "--upgrade", "pip>=25.1"], check=True)
        subprocess.run([*pip, "--constraint", str(held), "--group", GROUP], check=True, cwd=HERE.parent)
    return python


def _has(name: str) -> bool:
    return any(VENV.glob(f"lib/python*/site-packages/{name}-*.dist-info"))


def versions() -> dict[str, str]:
    """Return the versions of the libraries that are shown."""
    found = (next(VENV.glob(f"lib/python*/site-packages/{name}-*.dist-info")) for name in SHOWN)
    return {name: path.name.split("-")[1].removesuffix(".dist") for name, path in zip(SHOWN, found, strict=True)}


def environment(library: str, http_endpoint: str) -> dict[str, str]:
    """Return the variables with which a library sends to the receiver, by its own default protocol."""
    if library == "ddtrace":
        return {**QUIET_DATADOG, "DD_TRACE_AGENT_URL": http_endpoint}
    return {"BENCH_LIBRARY": library, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{http_endpoint}/v1/traces"}


def switch_on(library: str, app: Any) -> None:
    """Switch a library on as its documentation says; called in a process of that environment."""
    os.environ.pop("OTEL_EXPORTER_OTLP_ENDPOINT", None)  # gRPC's
    if library == "logfire":
        import logfire  # type: ignore[import-not-found]

        logfire.configure(send_to_logfire=False, console=False, service_name="bench", metrics=False)
        logfire.instrument_fastapi(app)
    elif library == "fastotel":
        from fastotel import OTLPSpanProcessor  # type: ignore[import-not-found]
        from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
        from opentelemetry.sdk.trace import TracerProvider

        provider = TracerProvider()
        provider.add_span_processor(OTLPSpanProcessor())
        FastAPIInstrumentor.instrument_app(app, tracer_provider=provider)
    else:
        raise SystemExit(f"nothing is known of {library!r}; known: {', '.join(SHOWN)}")
