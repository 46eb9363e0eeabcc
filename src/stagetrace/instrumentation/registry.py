"""Which module of ours hooks which module of theirs. A new library is one file and one line here."""

from __future__ import annotations

import os

from stagetrace.instrumentation.import_hooks import PostImportFinder

DISABLED = "STAGETRACE_DISABLED_INSTRUMENTATIONS"
_ALL = {
    # their module, imported ... -> our module, whose `hook(module)` is called
    "opentelemetry.sdk.trace": "stagetrace.instrumentation.opentelemetry.sdk",
    "opentelemetry.exporter.otlp.proto.grpc.trace_exporter": "stagetrace.instrumentation.opentelemetry.exporter",
    "opentelemetry.exporter.otlp.proto.http.trace_exporter": "stagetrace.instrumentation.opentelemetry.exporter",
    "opentelemetry.instrumentation.utils": "stagetrace.instrumentation.opentelemetry.server_instrumentations",
    "opentelemetry.instrumentation.asgi": "stagetrace.instrumentation.opentelemetry.server_instrumentations",
    "fastapi.applications": "stagetrace.instrumentation.frameworks.fastapi",
    "fastapi.routing": "stagetrace.instrumentation.frameworks.starlette",
    "starlette.applications": "stagetrace.instrumentation.frameworks.starlette",
    "starlette.background": "stagetrace.instrumentation.frameworks.starlette",
    "starlette.routing": "stagetrace.instrumentation.frameworks.starlette",
    "litestar._asgi.asgi_router": "stagetrace.instrumentation.frameworks.litestar",
    "litestar.background_tasks": "stagetrace.instrumentation.frameworks.litestar",
    "quart.ctx": "stagetrace.instrumentation.frameworks.quart",
    "quart.app": "stagetrace.instrumentation.frameworks.quart",
    "blacksheep.server.application": "stagetrace.instrumentation.frameworks.blacksheep",
    "blacksheep.server.routing": "stagetrace.instrumentation.frameworks.blacksheep",
    "falcon.app": "stagetrace.instrumentation.frameworks.falcon",
    "bottle": "stagetrace.instrumentation.frameworks.bottle",
    "grpc._server": "stagetrace.instrumentation.grpc_server.grpc",
    "grpc.aio._server": "stagetrace.instrumentation.grpc_server.grpc",
    "flask.app": "stagetrace.instrumentation.frameworks.flask",
    "django.core.handlers.base": "stagetrace.instrumentation.frameworks.django",
    "django.core.handlers.wsgi": "stagetrace.instrumentation.frameworks.django",
    "gunicorn.workers.sync": "stagetrace.instrumentation.wsgi_servers.gunicorn",
    "gunicorn.workers.gthread": "stagetrace.instrumentation.wsgi_servers.gunicorn",
    "gunicorn.workers.ggevent": "stagetrace.instrumentation.wsgi_servers.gunicorn",
    "gunicorn.workers.geventlet": "stagetrace.instrumentation.wsgi_servers.gunicorn",
    "waitress.channel": "stagetrace.instrumentation.wsgi_servers.waitress",
    "waitress.parser": "stagetrace.instrumentation.wsgi_servers.waitress",
    "waitress.task": "stagetrace.instrumentation.wsgi_servers.waitress",
    "waitress.server": "stagetrace.instrumentation.wsgi_servers.generic",
    "werkzeug.serving": "stagetrace.instrumentation.wsgi_servers.generic",
    "wsgiref.handlers": "stagetrace.instrumentation.wsgi_servers.generic",
    "wsgiref.simple_server": "stagetrace.instrumentation.wsgi_servers.generic",
    "cheroot.wsgi": "stagetrace.instrumentation.wsgi_servers.generic",
    "gevent.pywsgi": "stagetrace.instrumentation.wsgi_servers.generic",
    "uvicorn.config": "stagetrace.instrumentation.asgi_servers.uvicorn",
    "uvicorn.lifespan.off": "stagetrace.instrumentation.asgi_servers.uvicorn",
    "uvicorn.lifespan.on": "stagetrace.instrumentation.asgi_servers.uvicorn",
    "uvicorn.server": "stagetrace.instrumentation.asgi_servers.uvicorn",
    "httpx._transports.default": "stagetrace.instrumentation.clients.httpx",
    "urllib3.connectionpool": "stagetrace.instrumentation.clients.urllib3",
    "urllib3.response": "stagetrace.instrumentation.clients.urllib3",
    "aiohttp.client": "stagetrace.instrumentation.clients.aiohttp",
    "grpc._channel": "stagetrace.instrumentation.clients.grpc",
    "grpc.aio._channel": "stagetrace.instrumentation.clients.grpc",
    "signal": "stagetrace.instrumentation.signal",
    "concurrent.futures.thread": "stagetrace.instrumentation.thread_pools.executors",
    "litserve.server": "stagetrace.instrumentation.model_servers.litserve",
    "litserve.loops.loops": "stagetrace.instrumentation.model_servers.litserve_worker",
    "litserve.loops.simple_loops": "stagetrace.instrumentation.model_servers.litserve_worker",
    "litserve.loops.streaming_loops": "stagetrace.instrumentation.model_servers.litserve_worker",
    "mlserver.model": "stagetrace.instrumentation.model_servers.mlserver_model",
    "mlserver.codecs.decorator": "stagetrace.instrumentation.model_servers.mlserver_model",
    "mlserver.parallel.dispatcher": "stagetrace.instrumentation.model_servers.mlserver",
    "mlserver.parallel.worker": "stagetrace.instrumentation.model_servers.mlserver",
    "mlserver.batching.adaptive": "stagetrace.instrumentation.model_servers.mlserver",
    "bentoml._internal.marshal.dispatcher": "stagetrace.instrumentation.model_servers.bentoml",
    "_bentoml_impl.server.app": "stagetrace.instrumentation.model_servers.bentoml",
    "ray.serve._private.proxy": "stagetrace.instrumentation.model_servers.ray_serve_proxy",
    "ray.serve._private.router": "stagetrace.instrumentation.model_servers.ray_serve_handle",
    "ray.serve._private.replica": "stagetrace.instrumentation.model_servers.ray_serve_replica",
    "ray.serve.batching": "stagetrace.instrumentation.model_servers.ray_serve_batching",
    "hypercorn.app_wrappers": "stagetrace.instrumentation.asgi_servers.hypercorn",
    "hypercorn.asyncio.lifespan": "stagetrace.instrumentation.asgi_servers.hypercorn",
    "daphne.server": "stagetrace.instrumentation.asgi_servers.daphne",
    "granian.asgi": "stagetrace.instrumentation.asgi_servers.granian",
    "anyio.to_thread": "stagetrace.instrumentation.thread_pools.anyio",
    "sklearn.base": "stagetrace.instrumentation.models.sklearn",
    "onnxruntime.capi.onnxruntime_inference_collection": "stagetrace.instrumentation.models.onnxruntime",
    "xgboost.core": "stagetrace.instrumentation.models.boosting",
    "lightgbm.basic": "stagetrace.instrumentation.models.boosting",
    "catboost.core": "stagetrace.instrumentation.models.boosting",
    "torch": "stagetrace.instrumentation.models.torch",
    "transformers.generation.utils": "stagetrace.instrumentation.models.transformers",
    "keras": "stagetrace.instrumentation.models.keras",
    "tf_keras": "stagetrace.instrumentation.models.keras",
    "tensorflow.python.saved_model.function_deserialization": "stagetrace.instrumentation.models.tensorflow",
    "tensorflow.python.saved_model.load": "stagetrace.instrumentation.models.tensorflow",
    "tensorflow.lite.python.interpreter": "stagetrace.instrumentation.models.tensorflow",
    "ai_edge_litert.interpreter": "stagetrace.instrumentation.models.tensorflow",
    "asyncio.queues": "stagetrace.instrumentation.batching.queues",
    "queue": "stagetrace.instrumentation.batching.queues",
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
