"""Which module of ours hooks which module of theirs. A new library is one file and one line here."""

from __future__ import annotations

import os

from stagetrace.instrumentation.hooks import PostImportFinder

DISABLED = "STAGETRACE_DISABLED_INSTRUMENTATIONS"
_ALL = {
    # their module, imported ... -> our module, whose `hook(module)` is called
    "opentelemetry.sdk.trace": "stagetrace.instrumentation.otel_sdk",
    "opentelemetry.exporter.otlp.proto.grpc.trace_exporter": "stagetrace.instrumentation.otlp_exporter",
    "opentelemetry.exporter.otlp.proto.http.trace_exporter": "stagetrace.instrumentation.otlp_exporter",
    "opentelemetry.instrumentation.utils": "stagetrace.instrumentation.otel_server",
    "opentelemetry.instrumentation.asgi": "stagetrace.instrumentation.otel_server",
    "fastapi.applications": "stagetrace.instrumentation.fastapi",
    "fastapi.routing": "stagetrace.instrumentation.starlette",
    "starlette.applications": "stagetrace.instrumentation.starlette",
    "starlette.background": "stagetrace.instrumentation.starlette",
    "starlette.routing": "stagetrace.instrumentation.starlette",
    "litestar._asgi.asgi_router": "stagetrace.instrumentation.litestar",
    "litestar.background_tasks": "stagetrace.instrumentation.litestar",
    "quart.ctx": "stagetrace.instrumentation.quart",
    "quart.app": "stagetrace.instrumentation.quart",
    "blacksheep.server.application": "stagetrace.instrumentation.blacksheep",
    "blacksheep.server.routing": "stagetrace.instrumentation.blacksheep",
    "falcon.app": "stagetrace.instrumentation.falcon",
    "bottle": "stagetrace.instrumentation.bottle",
    "grpc._server": "stagetrace.instrumentation.grpc",
    "grpc.aio._server": "stagetrace.instrumentation.grpc",
    "flask.app": "stagetrace.instrumentation.flask",
    "django.core.handlers.base": "stagetrace.instrumentation.django",
    "django.core.handlers.wsgi": "stagetrace.instrumentation.django",
    "gunicorn.workers.sync": "stagetrace.instrumentation.gunicorn",
    "gunicorn.workers.gthread": "stagetrace.instrumentation.gunicorn",
    "gunicorn.workers.ggevent": "stagetrace.instrumentation.gunicorn",
    "gunicorn.workers.geventlet": "stagetrace.instrumentation.gunicorn",
    "waitress.channel": "stagetrace.instrumentation.waitress",
    "waitress.parser": "stagetrace.instrumentation.waitress",
    "waitress.task": "stagetrace.instrumentation.waitress",
    "waitress.server": "stagetrace.instrumentation.wsgi_servers",
    "werkzeug.serving": "stagetrace.instrumentation.wsgi_servers",
    "wsgiref.handlers": "stagetrace.instrumentation.wsgi_servers",
    "wsgiref.simple_server": "stagetrace.instrumentation.wsgi_servers",
    "cheroot.wsgi": "stagetrace.instrumentation.wsgi_servers",
    "gevent.pywsgi": "stagetrace.instrumentation.wsgi_servers",
    "uvicorn.config": "stagetrace.instrumentation.uvicorn",
    "uvicorn.lifespan.off": "stagetrace.instrumentation.uvicorn",
    "uvicorn.lifespan.on": "stagetrace.instrumentation.uvicorn",
    "uvicorn.server": "stagetrace.instrumentation.uvicorn",
    "httpx._transports.default": "stagetrace.instrumentation.httpx",
    "urllib3.connectionpool": "stagetrace.instrumentation.urllib3",
    "urllib3.response": "stagetrace.instrumentation.urllib3",
    "aiohttp.client": "stagetrace.instrumentation.aiohttp",
    "grpc._channel": "stagetrace.instrumentation.grpc_client",
    "grpc.aio._channel": "stagetrace.instrumentation.grpc_client",
    "signal": "stagetrace.instrumentation.signal",
    "concurrent.futures.thread": "stagetrace.instrumentation.executors",
    "litserve.server": "stagetrace.instrumentation.litserve",
    "litserve.loops.loops": "stagetrace.instrumentation.litserve_worker",
    "litserve.loops.simple_loops": "stagetrace.instrumentation.litserve_worker",
    "litserve.loops.streaming_loops": "stagetrace.instrumentation.litserve_worker",
    "mlserver.model": "stagetrace.instrumentation.mlserver_model",
    "mlserver.codecs.decorator": "stagetrace.instrumentation.mlserver_model",
    "mlserver.parallel.dispatcher": "stagetrace.instrumentation.mlserver",
    "mlserver.parallel.worker": "stagetrace.instrumentation.mlserver",
    "mlserver.batching.adaptive": "stagetrace.instrumentation.mlserver",
    "bentoml._internal.marshal.dispatcher": "stagetrace.instrumentation.bentoml",
    "_bentoml_impl.server.app": "stagetrace.instrumentation.bentoml",
    "ray.serve._private.proxy": "stagetrace.instrumentation.ray_serve_proxy",
    "ray.serve._private.router": "stagetrace.instrumentation.ray_serve_handle",
    "ray.serve._private.replica": "stagetrace.instrumentation.ray_serve_replica",
    "ray.serve.batching": "stagetrace.instrumentation.ray_serve_batching",
    "hypercorn.app_wrappers": "stagetrace.instrumentation.hypercorn",
    "hypercorn.asyncio.lifespan": "stagetrace.instrumentation.hypercorn",
    "daphne.server": "stagetrace.instrumentation.daphne",
    "granian.asgi": "stagetrace.instrumentation.granian",
    "anyio.to_thread": "stagetrace.instrumentation.anyio",
    "sklearn.base": "stagetrace.instrumentation.sklearn",
    "onnxruntime.capi.onnxruntime_inference_collection": "stagetrace.instrumentation.onnxruntime",
    "xgboost.core": "stagetrace.instrumentation.boosting",
    "lightgbm.basic": "stagetrace.instrumentation.boosting",
    "catboost.core": "stagetrace.instrumentation.boosting",
    "torch": "stagetrace.instrumentation.torch",
    "transformers.generation.utils": "stagetrace.instrumentation.transformers",
    "keras": "stagetrace.instrumentation.keras",
    "tf_keras": "stagetrace.instrumentation.keras",
    "tensorflow.python.saved_model.function_deserialization": "stagetrace.instrumentation.tensorflow",
    "tensorflow.python.saved_model.load": "stagetrace.instrumentation.tensorflow",
    "tensorflow.lite.python.interpreter": "stagetrace.instrumentation.tensorflow",
    "ai_edge_litert.interpreter": "stagetrace.instrumentation.tensorflow",
    "asyncio.queues": "stagetrace.instrumentation.queues",
    "queue": "stagetrace.instrumentation.queues",
}
# Of the standard library, in use everywhere: hooked only where something is served.
_WHERE_SERVED = {"asyncio.queues", "queue"}


def _wanted() -> dict[str, str]:
    """Return the hooks but those of the packages that DISABLED names, as they are imported."""
    names = {name.strip() for name in os.environ.get(DISABLED, "").split(",")} - {""}
    if not names:
        return _ALL
    packages = {name.partition(".")[0] for name in _ALL} - {"opentelemetry"}  # without which nothing is recorded
    if names - packages:
        from stagetrace import log

        log.once(
            DISABLED,
            f"{DISABLED} names {', '.join(sorted(names - packages))}, for which there is no hook; the rest is done.\n"
            f"Use names out of: {', '.join(sorted(packages))}.",
        )
    return {name: hook for name, hook in _ALL.items() if name.partition(".")[0] not in names & packages}


HOOKS = _wanted()
_finder = PostImportFinder({name: hook for name, hook in HOOKS.items() if name not in _WHERE_SERVED})


def install() -> None:
    """Install all hooks once; hook at once what is already imported."""
    _finder.install()


def install_for_serving() -> None:
    """Hook once what only a process that serves needs."""
    _finder.add({name: HOOKS[name] for name in _WHERE_SERVED & set(HOOKS)})


def state() -> tuple[list[str], dict[str, str]]:
    """Return which of their modules are hooked, and why others could not be."""
    return list(_finder.hooked), dict(_finder.failed)
