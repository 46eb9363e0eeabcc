"""Which function of ours patches which module of a library. A new library is one file, and one line here."""

from __future__ import annotations

import os

from stagetrace.import_hooks import finder
from stagetrace.instrumentation import entry_points

DISABLED = "STAGETRACE_DISABLED_INSTRUMENTATIONS"
PATCHES = {
    # a library's module, as it is imported -> our patch of it, `module:function`
    "opentelemetry.sdk.trace": "stagetrace.instrumentation.opentelemetry.sdk:patch_trace",
    "opentelemetry.exporter.otlp.proto.common.trace_encoder": "stagetrace.instrumentation.opentelemetry.exporter:patch_trace_encoder",
    "opentelemetry.instrumentation.utils": "stagetrace.instrumentation.opentelemetry.server_instrumentations:patch_utils",
    "opentelemetry.instrumentation.asgi": "stagetrace.instrumentation.opentelemetry.server_instrumentations:patch_asgi",
    "fastapi.applications": "stagetrace.instrumentation.frameworks.fastapi:patch_applications",
    "fastapi.routing": "stagetrace.instrumentation.frameworks.starlette:patch_routing",
    "starlette.applications": "stagetrace.instrumentation.frameworks.starlette:patch_applications",
    "starlette.background": "stagetrace.instrumentation.frameworks.starlette:patch_background",
    "starlette.routing": "stagetrace.instrumentation.frameworks.starlette:patch_routing",
    "grpc._server": "stagetrace.instrumentation.grpc_server.grpc:patch_server",
    "grpc.aio._server": "stagetrace.instrumentation.grpc_server.grpc:patch_aio_server",
    "flask.app": "stagetrace.instrumentation.frameworks.flask:patch_app",
    "django.core.handlers.base": "stagetrace.instrumentation.frameworks.django:patch_base_handler",
    "django.core.handlers.wsgi": "stagetrace.instrumentation.frameworks.django:patch_wsgi_handler",
    "gunicorn.workers.sync": "stagetrace.instrumentation.wsgi_servers.gunicorn:patch_sync",
    "gunicorn.workers.gthread": "stagetrace.instrumentation.wsgi_servers.gunicorn:patch_gthread",
    "gunicorn.workers.ggevent": "stagetrace.instrumentation.wsgi_servers.gunicorn:patch_ggevent",
    "gunicorn.workers.geventlet": "stagetrace.instrumentation.wsgi_servers.gunicorn:patch_geventlet",
    "uvicorn.config": "stagetrace.instrumentation.asgi_servers.uvicorn:patch_config",
    "uvicorn.lifespan.off": "stagetrace.instrumentation.asgi_servers.uvicorn:patch_lifespan_off",
    "uvicorn.lifespan.on": "stagetrace.instrumentation.asgi_servers.uvicorn:patch_lifespan_on",
    "uvicorn.server": "stagetrace.instrumentation.asgi_servers.uvicorn:patch_server",
    "httpx._transports.default": "stagetrace.instrumentation.clients.httpx:patch_transports",
    "httpx2._transports.default": "stagetrace.instrumentation.clients.httpx:patch_transports",
    "urllib3.connectionpool": "stagetrace.instrumentation.clients.urllib3:patch_connectionpool",
    "urllib3.response": "stagetrace.instrumentation.clients.urllib3:patch_response",
    "aiohttp.client": "stagetrace.instrumentation.clients.aiohttp:patch_client",
    "grpc._channel": "stagetrace.instrumentation.clients.grpc:patch_channel",
    "grpc.aio._channel": "stagetrace.instrumentation.clients.grpc:patch_aio_channel",
    "signal": "stagetrace.instrumentation.signal:patch_signal",
    "concurrent.futures.thread": "stagetrace.instrumentation.thread_pools.executors:patch_thread",
    "hypercorn.app_wrappers": "stagetrace.instrumentation.asgi_servers.hypercorn:patch_app_wrappers",
    "hypercorn.asyncio.lifespan": "stagetrace.instrumentation.asgi_servers.hypercorn:patch_lifespan",
    "anyio._backends._asyncio": "stagetrace.instrumentation.frameworks.anyio:patch_backend",
    "anyio._backends._trio": "stagetrace.instrumentation.frameworks.anyio:patch_backend",
    "anyio.to_thread": "stagetrace.instrumentation.thread_pools.anyio:patch_to_thread",
    "sklearn.base": "stagetrace.instrumentation.models.sklearn:patch_base",
    "onnxruntime.capi.onnxruntime_inference_collection": "stagetrace.instrumentation.models.onnxruntime:patch_sessions",
    "xgboost.core": "stagetrace.instrumentation.models.boosting:patch_xgboost",
    "lightgbm.basic": "stagetrace.instrumentation.models.boosting:patch_lightgbm",
    "catboost.core": "stagetrace.instrumentation.models.boosting:patch_catboost",
    "torch": "stagetrace.instrumentation.models.torch:patch_torch",
    "torch.cuda.graphs": "stagetrace.instrumentation.models.torch:patch_graphs",
    "torch.export.pt2_archive._package": "stagetrace.instrumentation.models.torch:patch_packages",
    "torch._inductor.package.package": "stagetrace.instrumentation.models.torch:patch_loading",
    "transformers.generation.utils": "stagetrace.instrumentation.models.transformers:patch_generation",
    "transformers.generation.streamers": "stagetrace.instrumentation.models.transformers:patch_streamers",
    "transformers.cli.serving.utils": "stagetrace.instrumentation.models.transformers:patch_serving",
    "transformers.generation.continuous_batching.continuous_api": "stagetrace.instrumentation.models.transformers:patch_continuous_batching",
    "transformers.pipelines.base": "stagetrace.instrumentation.models.transformers:patch_pipelines",
    "sentence_transformers.base.model": "stagetrace.instrumentation.models.sentence_transformers:patch_base",
    "sentence_transformers.sentence_transformer.model": "stagetrace.instrumentation.models.sentence_transformers:patch_model",
    "sentence_transformers.cross_encoder.model": "stagetrace.instrumentation.models.sentence_transformers:patch_model",
    "sentence_transformers.sparse_encoder.model": "stagetrace.instrumentation.models.sentence_transformers:patch_model",
    "sentence_transformers.multi_vector_encoder.model": "stagetrace.instrumentation.models.sentence_transformers:patch_model",
    "keras": "stagetrace.instrumentation.models.keras:patch_keras",
    "tf_keras": "stagetrace.instrumentation.models.keras:patch_keras",
    "tensorflow.python.saved_model.function_deserialization": "stagetrace.instrumentation.models.tensorflow:patch_function_deserialization",
    "tensorflow.python.saved_model.load": "stagetrace.instrumentation.models.tensorflow:patch_load",
    "tensorflow.lite.python.interpreter": "stagetrace.instrumentation.models.tensorflow:patch_interpreter",
    "ai_edge_litert.interpreter": "stagetrace.instrumentation.models.tensorflow:patch_interpreter",
    "transformers.tokenization_utils_base": "stagetrace.instrumentation.models.transformers:patch_tokenizers",
    "transformers.image_processing_utils": "stagetrace.instrumentation.models.transformers:patch_image_processors",
    "asyncpg": "stagetrace.instrumentation.opentelemetry.database_instrumentations:patch_client",
    "psycopg": "stagetrace.instrumentation.opentelemetry.database_instrumentations:patch_client",
    "pymemcache": "stagetrace.instrumentation.opentelemetry.database_instrumentations:patch_client",
    "pymongo": "stagetrace.instrumentation.opentelemetry.database_instrumentations:patch_client",
    "redis": "stagetrace.instrumentation.opentelemetry.database_instrumentations:patch_client",
    "sqlalchemy": "stagetrace.instrumentation.opentelemetry.database_instrumentations:patch_sqlalchemy",
    "sqlalchemy.engine.create": "stagetrace.instrumentation.opentelemetry.database_instrumentations:patch_engines",
    "vllm.entrypoints.llm": "stagetrace.instrumentation.models.vllm:patch_llm",
    "vllm.entrypoints.pooling.offline": "stagetrace.instrumentation.models.vllm:patch_pooling",
    "vllm.v1.engine.async_llm": "stagetrace.instrumentation.models.vllm:patch_async_llm",
    "sglang.srt.entrypoints.engine": "stagetrace.instrumentation.models.sglang:patch_engine",
    "sglang.srt.managers.tokenizer_manager": "stagetrace.instrumentation.models.sglang:patch_manager",
    "asyncio.queues": "stagetrace.instrumentation.batching.queues:patch_queues",
    "queue": "stagetrace.instrumentation.batching.queues:patch_queues",
}
# Patched only in processes that serve: modules of the standard library that most programs use, and those for which
# OpenTelemetry is imported.
_WHERE_SERVED = {
    "asyncio.queues",
    "queue",
    "asyncpg",
    "psycopg",
    "pymemcache",
    "pymongo",
    "redis",
    "sqlalchemy",
}


def wanted() -> dict[str, str]:
    """Return all patches, those of other distributions too, but of packages that DISABLED names by their import names."""
    patches = {**PATCHES, **entry_points.found(PATCHES)}
    names = {name.strip() for name in os.environ.get(DISABLED, "").split(",")} - {""}
    if not names:
        return patches
    packages = {name.partition(".")[0] for name in patches} - {"opentelemetry"}  # without which nothing is recorded
    if names - packages:
        from stagetrace import log

        log.once(
            DISABLED,
            f"{DISABLED} names {', '.join(sorted(names - packages))}, for which there is no patch; the rest is done.\n"
            f"Use names out of: {', '.join(sorted(packages))}.",
        )
    return {name: patch for name, patch in patches.items() if name.partition(".")[0] not in names & packages}


def install() -> None:
    """Patch what is imported already, now, and all else when it is imported. Calling it again changes nothing."""
    patches = wanted()
    for_serving = {name: patches.pop(name) for name in _WHERE_SERVED & set(patches)}
    finder.install(patches, for_serving)
