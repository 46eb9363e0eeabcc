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
    "litestar._asgi.asgi_router": "stagetrace.instrumentation.frameworks.litestar:patch_router",
    "litestar.background_tasks": "stagetrace.instrumentation.frameworks.litestar:patch_background_tasks",
    "quart.ctx": "stagetrace.instrumentation.frameworks.quart:patch_ctx",
    "quart.app": "stagetrace.instrumentation.frameworks.quart:patch_app",
    "blacksheep.server.application": "stagetrace.instrumentation.frameworks.blacksheep:patch_application",
    "blacksheep.server.routing": "stagetrace.instrumentation.frameworks.blacksheep:patch_routing",
    "falcon.app": "stagetrace.instrumentation.frameworks.falcon:patch_app",
    "bottle": "stagetrace.instrumentation.frameworks.bottle:patch_bottle",
    "grpc._server": "stagetrace.instrumentation.grpc_server.grpc:patch_server",
    "grpc.aio._server": "stagetrace.instrumentation.grpc_server.grpc:patch_aio_server",
    "flask.app": "stagetrace.instrumentation.frameworks.flask:patch_app",
    "django.core.handlers.base": "stagetrace.instrumentation.frameworks.django:patch_base_handler",
    "django.core.handlers.wsgi": "stagetrace.instrumentation.frameworks.django:patch_wsgi_handler",
    "gunicorn.workers.sync": "stagetrace.instrumentation.wsgi_servers.gunicorn:patch_sync",
    "gunicorn.workers.gthread": "stagetrace.instrumentation.wsgi_servers.gunicorn:patch_gthread",
    "gunicorn.workers.ggevent": "stagetrace.instrumentation.wsgi_servers.gunicorn:patch_ggevent",
    "gunicorn.workers.geventlet": "stagetrace.instrumentation.wsgi_servers.gunicorn:patch_geventlet",
    "waitress.channel": "stagetrace.instrumentation.wsgi_servers.waitress:patch_channel",
    "waitress.parser": "stagetrace.instrumentation.wsgi_servers.waitress:patch_parser",
    "waitress.server": "stagetrace.instrumentation.wsgi_servers.waitress:patch_server",
    "waitress.task": "stagetrace.instrumentation.wsgi_servers.waitress:patch_task",
    "werkzeug.serving": "stagetrace.instrumentation.wsgi_servers.generic:patch_werkzeug",
    "wsgiref.handlers": "stagetrace.instrumentation.wsgi_servers.generic:patch_wsgiref_handlers",
    "wsgiref.simple_server": "stagetrace.instrumentation.wsgi_servers.generic:patch_wsgiref_server",
    "cheroot.wsgi": "stagetrace.instrumentation.wsgi_servers.generic:patch_cheroot",
    "gevent.pywsgi": "stagetrace.instrumentation.wsgi_servers.generic:patch_gevent",
    "uvicorn.config": "stagetrace.instrumentation.asgi_servers.uvicorn:patch_config",
    "uvicorn.lifespan.off": "stagetrace.instrumentation.asgi_servers.uvicorn:patch_lifespan_off",
    "uvicorn.lifespan.on": "stagetrace.instrumentation.asgi_servers.uvicorn:patch_lifespan_on",
    "uvicorn.server": "stagetrace.instrumentation.asgi_servers.uvicorn:patch_server",
    "httpx._transports.default": "stagetrace.instrumentation.clients.httpx:patch_transports",
    "httpx2._transports.default": "stagetrace.instrumentation.clients.httpx:patch_transports",
    "tritonclient.http._client": "stagetrace.instrumentation.clients.tritonclient:patch_client",
    "urllib3.connectionpool": "stagetrace.instrumentation.clients.urllib3:patch_connectionpool",
    "urllib3.response": "stagetrace.instrumentation.clients.urllib3:patch_response",
    "geventhttpclient.client": "stagetrace.instrumentation.clients.geventhttpclient:patch_client",
    "aiohttp.client": "stagetrace.instrumentation.clients.aiohttp:patch_client",
    "grpc._channel": "stagetrace.instrumentation.clients.grpc:patch_channel",
    "grpc.aio._channel": "stagetrace.instrumentation.clients.grpc:patch_aio_channel",
    "signal": "stagetrace.instrumentation.signal:patch_signal",
    "concurrent.futures.thread": "stagetrace.instrumentation.thread_pools.executors:patch_thread",
    "litserve.server": "stagetrace.instrumentation.model_servers.litserve:patch_server",
    "litserve.loops.loops": "stagetrace.instrumentation.model_servers.litserve_worker:patch_loops",
    "litserve.loops.simple_loops": "stagetrace.instrumentation.model_servers.litserve_worker:patch_loop_classes",
    "litserve.loops.streaming_loops": "stagetrace.instrumentation.model_servers.litserve_worker:patch_loop_classes",
    "mlserver.model": "stagetrace.instrumentation.model_servers.mlserver_model:patch_model",
    "mlserver.codecs.decorator": "stagetrace.instrumentation.model_servers.mlserver_model:patch_decorator",
    "mlserver.parallel.dispatcher": "stagetrace.instrumentation.model_servers.mlserver:patch_dispatcher",
    "mlserver.parallel.worker": "stagetrace.instrumentation.model_servers.mlserver:patch_worker",
    "mlserver.batching.adaptive": "stagetrace.instrumentation.model_servers.mlserver:patch_adaptive",
    "bentoml._internal.marshal.dispatcher": "stagetrace.instrumentation.model_servers.bentoml:patch_dispatcher",
    "_bentoml_impl.server.app": "stagetrace.instrumentation.model_servers.bentoml:patch_app",
    "ray.serve._private.proxy": "stagetrace.instrumentation.model_servers.ray_serve_proxy:patch_proxy",
    "ray.serve._private.router": "stagetrace.instrumentation.model_servers.ray_serve_handle:patch_router",
    "ray.serve._private.replica": "stagetrace.instrumentation.model_servers.ray_serve_replica:patch_replica",
    "ray.serve.batching": "stagetrace.instrumentation.model_servers.ray_serve_batching:patch_batching",
    "cog.predictor": "stagetrace.instrumentation.model_servers.cog:patch_predictor",
    "gradio.queueing": "stagetrace.instrumentation.model_servers.gradio:patch_queueing",
    "mosec.coordinator": "stagetrace.instrumentation.model_servers.mosec:patch_coordinator",
    "mosec.protocol": "stagetrace.instrumentation.model_servers.mosec:patch_protocol",
    "hypercorn.app_wrappers": "stagetrace.instrumentation.asgi_servers.hypercorn:patch_app_wrappers",
    "hypercorn.asyncio.lifespan": "stagetrace.instrumentation.asgi_servers.hypercorn:patch_lifespan",
    "daphne.server": "stagetrace.instrumentation.asgi_servers.daphne:patch_server",
    "granian.asgi": "stagetrace.instrumentation.asgi_servers.granian:patch_asgi",
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
    "mlflow.pyfunc": "stagetrace.instrumentation.models.mlflow:patch_pyfunc",
    "tokenizers": "stagetrace.instrumentation.preprocessing.tokenizers:patch_tokenizers",
    "transformers.tokenization_utils_base": "stagetrace.instrumentation.preprocessing.tokenizers:patch_transformers",
    "transformers.image_processing_utils": "stagetrace.instrumentation.preprocessing.images:patch_transformers",
    "PIL.Image": "stagetrace.instrumentation.preprocessing.images:patch_pillow_image",
    "PIL.ImageFile": "stagetrace.instrumentation.preprocessing.images:patch_pillow_files",
    "PIL.AvifImagePlugin": "stagetrace.instrumentation.preprocessing.images:patch_pillow_files",
    "PIL.TiffImagePlugin": "stagetrace.instrumentation.preprocessing.images:patch_pillow_files",
    "PIL.WebPImagePlugin": "stagetrace.instrumentation.preprocessing.images:patch_pillow_files",
    "cv2": "stagetrace.instrumentation.preprocessing.images:patch_opencv",
    "torchvision.io.image": "stagetrace.instrumentation.preprocessing.images:patch_torchvision_io",
    "torchvision.transforms.transforms": "stagetrace.instrumentation.preprocessing.images:patch_torchvision_v1",
    "torchvision.transforms.v2._transform": "stagetrace.instrumentation.preprocessing.images:patch_torchvision_v2",
    "torchvision.transforms.v2._container": "stagetrace.instrumentation.preprocessing.images:patch_torchvision_v2",
    "feast.feature_store": "stagetrace.instrumentation.preprocessing.feast:patch_feature_store",
    "asyncpg": "stagetrace.instrumentation.opentelemetry.database_instrumentations:patch_client",
    "psycopg": "stagetrace.instrumentation.opentelemetry.database_instrumentations:patch_client",
    "psycopg2": "stagetrace.instrumentation.opentelemetry.database_instrumentations:patch_client",
    "pymemcache": "stagetrace.instrumentation.opentelemetry.database_instrumentations:patch_client",
    "pymongo": "stagetrace.instrumentation.opentelemetry.database_instrumentations:patch_client",
    "redis": "stagetrace.instrumentation.opentelemetry.database_instrumentations:patch_client",
    "sqlalchemy": "stagetrace.instrumentation.opentelemetry.database_instrumentations:patch_sqlalchemy",
    "sqlalchemy.engine.create": "stagetrace.instrumentation.opentelemetry.database_instrumentations:patch_engines",
    "llama_cpp.llama": "stagetrace.instrumentation.models.llama_cpp:patch_llama",
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
    "psycopg2",
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
