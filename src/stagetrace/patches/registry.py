"""Which function of ours patches which module of a library. A new library is one file, and one line here."""

from __future__ import annotations

import os
import sys

from stagetrace.system.import_hooks import finder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

DISABLED = "STAGETRACE_DISABLED_INSTRUMENTATIONS"
PATCHES = {
    # a library's module, as it is imported -> our patch of it, `module:function`
    "opentelemetry.trace": "stagetrace.patches.opentelemetry:patch_api",
    "opentelemetry.metrics": "stagetrace.patches.opentelemetry:patch_metrics",
    "opentelemetry.sdk.trace": "stagetrace.patches.opentelemetry:patch_trace",
    "opentelemetry.exporter.otlp.proto.common.trace_encoder": "stagetrace.patches.opentelemetry:patch_trace_encoder",
    "opentelemetry.instrumentation.utils": "stagetrace.patches.opentelemetry:patch_utils",
    "opentelemetry.instrumentation.asgi": "stagetrace.patches.opentelemetry:patch_asgi",
    "fastapi.applications": "stagetrace.patches.fastapi:patch_applications",
    "fastapi.routing": "stagetrace.patches.starlette:patch_routing",
    "starlette.applications": "stagetrace.patches.starlette:patch_applications",
    "starlette.background": "stagetrace.patches.starlette:patch_background",
    "starlette.routing": "stagetrace.patches.starlette:patch_routing",
    "grpc._server": "stagetrace.patches.grpc.server:patch_server",
    "grpc.aio._server": "stagetrace.patches.grpc.server:patch_aio_server",
    "flask.app": "stagetrace.patches.flask:patch_app",
    "django.core.handlers.base": "stagetrace.patches.django:patch_base_handler",
    "django.core.handlers.wsgi": "stagetrace.patches.django:patch_wsgi_handler",
    "gunicorn.workers.sync": "stagetrace.patches.gunicorn:patch_sync",
    "gunicorn.workers.gthread": "stagetrace.patches.gunicorn:patch_gthread",
    "gunicorn.workers.ggevent": "stagetrace.patches.gunicorn:patch_ggevent",
    "gunicorn.workers.geventlet": "stagetrace.patches.gunicorn:patch_geventlet",
    "uvicorn.config": "stagetrace.patches.uvicorn:patch_config",
    "uvicorn.lifespan.off": "stagetrace.patches.uvicorn:patch_lifespan_off",
    "uvicorn.lifespan.on": "stagetrace.patches.uvicorn:patch_lifespan_on",
    "uvicorn.server": "stagetrace.patches.uvicorn:patch_server",
    "httpx._transports.default": "stagetrace.patches.httpx:patch_transports",
    "httpx2._transports.default": "stagetrace.patches.httpx:patch_transports",
    "urllib3.connectionpool": "stagetrace.patches.urllib3:patch_connectionpool",
    "urllib3.response": "stagetrace.patches.urllib3:patch_response",
    "aiohttp.client": "stagetrace.patches.aiohttp:patch_client",
    "grpc._channel": "stagetrace.patches.grpc.client:patch_channel",
    "grpc.aio._channel": "stagetrace.patches.grpc.client:patch_aio_channel",
    "signal": "stagetrace.patches.signal:patch_signal",
    "concurrent.futures.thread": "stagetrace.patches.concurrent_futures:patch_thread",
    "hypercorn.app_wrappers": "stagetrace.patches.hypercorn:patch_app_wrappers",
    "hypercorn.asyncio.lifespan": "stagetrace.patches.hypercorn:patch_lifespan",
    "anyio._backends._asyncio": "stagetrace.patches.anyio:patch_backend",
    "anyio._backends._trio": "stagetrace.patches.anyio:patch_backend",
    "anyio.to_thread": "stagetrace.patches.anyio:patch_to_thread",
    "sklearn.base": "stagetrace.patches.sklearn:patch_base",
    "onnxruntime.capi.onnxruntime_inference_collection": "stagetrace.patches.onnxruntime:patch_sessions",
    "xgboost.core": "stagetrace.patches.xgboost:patch_core",
    "lightgbm.basic": "stagetrace.patches.lightgbm:patch_basic",
    "catboost.core": "stagetrace.patches.catboost:patch_core",
    "torch": "stagetrace.patches.torch:patch_torch",
    "torch.cuda.graphs": "stagetrace.patches.torch:patch_graphs",
    "torch.export.pt2_archive._package": "stagetrace.patches.torch:patch_packages",
    "torch._inductor.package.package": "stagetrace.patches.torch:patch_loading",
    "transformers.generation.utils": "stagetrace.patches.transformers:patch_generation",
    "transformers.generation.streamers": "stagetrace.patches.transformers:patch_streamers",
    "transformers.cli.serving.utils": "stagetrace.patches.transformers:patch_serving",
    "transformers.generation.continuous_batching.continuous_api": "stagetrace.patches.transformers:patch_continuous_batching",
    "transformers.pipelines.base": "stagetrace.patches.transformers:patch_pipelines",
    "sentence_transformers.base.model": "stagetrace.patches.sentence_transformers:patch_base",
    "sentence_transformers.sentence_transformer.model": "stagetrace.patches.sentence_transformers:patch_model",
    "sentence_transformers.cross_encoder.model": "stagetrace.patches.sentence_transformers:patch_model",
    "sentence_transformers.sparse_encoder.model": "stagetrace.patches.sentence_transformers:patch_model",
    "sentence_transformers.multi_vector_encoder.model": "stagetrace.patches.sentence_transformers:patch_model",
    "keras": "stagetrace.patches.keras:patch_keras",
    "tf_keras": "stagetrace.patches.keras:patch_keras",
    "tensorflow.python.saved_model.function_deserialization": "stagetrace.patches.tensorflow:patch_function_deserialization",
    "tensorflow.python.saved_model.load": "stagetrace.patches.tensorflow:patch_load",
    "tensorflow.lite.python.interpreter": "stagetrace.patches.tensorflow:patch_interpreter",
    "ai_edge_litert.interpreter": "stagetrace.patches.tensorflow:patch_interpreter",
    "transformers.tokenization_utils_base": "stagetrace.patches.transformers:patch_tokenizers",
    "transformers.image_processing_utils": "stagetrace.patches.transformers:patch_image_processors",
    "asyncpg": "stagetrace.patches.databases:patch_client",
    "psycopg": "stagetrace.patches.databases:patch_client",
    "pymemcache": "stagetrace.patches.databases:patch_client",
    "pymongo": "stagetrace.patches.databases:patch_client",
    "redis": "stagetrace.patches.databases:patch_client",
    "sqlalchemy": "stagetrace.patches.databases:patch_sqlalchemy",
    "sqlalchemy.engine.create": "stagetrace.patches.databases:patch_engines",
    "vllm.entrypoints.llm": "stagetrace.patches.vllm:patch_llm",
    "vllm.entrypoints.pooling.offline": "stagetrace.patches.vllm:patch_pooling",
    "vllm.v1.engine.async_llm": "stagetrace.patches.vllm:patch_async_llm",
    "sglang.srt.entrypoints.engine": "stagetrace.patches.sglang:patch_engine",
    "sglang.srt.managers.tokenizer_manager": "stagetrace.patches.sglang:patch_manager",
    "asyncio.locks": "stagetrace.patches.queues:patch_locks",
    "asyncio.queues": "stagetrace.patches.queues:patch_queues",
    "queue": "stagetrace.patches.queues:patch_queues",
}
# Patched only in processes that serve: modules of the standard library that most programs use, and those for which much
# is imported.
_WHERE_SERVED = {
    "asyncio.locks",
    "asyncio.queues",
    "queue",
    "opentelemetry.trace",
    "opentelemetry.metrics",
    "asyncpg",
    "psycopg",
    "pymemcache",
    "pymongo",
    "redis",
    "sqlalchemy",
}


def wanted() -> dict[str, str]:
    """Return all patches, those of other distributions too, but of packages that DISABLED names by their import names."""
    patches = {**PATCHES, **of_distributions(PATCHES)}
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


# --- Patches that distributions bring, as entry points of the group `stagetrace.patches`; `stagetrace_contrib` is one.
#
# One is a line such as `"pinewood.model" = "pinewood_stagetrace:patch_model"` or `oakserve = "oakserve_stagetrace.registry"`.
# The first form names a module that is patched, and its `Patch` (`protocols/base.py`). The second names a table: a
# module with `PATCHES`, a mapping of such lines, in a package that consists of patches. What of these wraps the handler
# of a request is in its `ENTRY_PATCHES`, too, if there is any: there the work of a request begins on a thread's stack.

GROUP = "stagetrace.patches"
OWN = "stagetrace"  # our own distribution
_SECTION = f"[{GROUP}]".encode()


def of_distributions(known: Mapping[str, str]) -> dict[str, str]:
    """Return the patches by module; those of modules that are `known` are logged, and not done. Never raises.

    The files are read here: to load `importlib.metadata` takes longer than all else at start.
    """
    patches: dict[str, str] = {}
    for path in _files():
        _read(path, patches, known)
    return patches


def _read(path: str, patches: dict[str, str], known: Mapping[str, str]) -> None:
    try:
        for name, value in _entries(path):
            _add(patches, known, {name: value} if ":" in value else _table(value))
    except Exception as error:  # noqa: BLE001 -- as `guarded`, which would be loaded in each process
        from stagetrace.guard import report

        report(__name__, error)


def _add(patches: dict[str, str], known: Mapping[str, str], more: Mapping[str, str]) -> None:
    for name, patch in more.items():
        other = known.get(name) or patches.get(name)
        if other:
            from stagetrace import log

            log.once(f"{GROUP}:{patch}", f"{patch} is to patch {name}, which {other} does: it is not used.")
        else:
            patches[name] = patch


def _table(name: str) -> Mapping[str, str]:
    """Return the patches of a table; note which code is that of patches, and which of it begins requests."""
    table = __import__(name, fromlist=["PATCHES"])
    package, folder = name.rpartition(".")[0] + ".", str(table.__file__).rpartition(os.sep)[0] + os.sep
    if folder not in finder.folders:
        finder.folders += (folder,)
        entries = {patch.partition(":")[0] for patch in getattr(table, "ENTRY_PATCHES", {}).values()}
        files = sorted({one.removeprefix(package).partition(".")[0] for one in entries})
        finder.entries += tuple(f"{folder}{file}{end}" for file in files for end in (".py", os.sep))
    patches: Mapping[str, str] = table.PATCHES
    return patches


def _files() -> list[str]:
    """Return where distributions on the path may have their entry points: ours first, of each the one that is used."""
    files: dict[str, str] = {}
    for folder in sys.path:
        try:
            names = os.listdir(folder or ".")  # noqa: PTH208 -- pathlib is not loaded yet
        except OSError:
            continue
        for name in names:
            if name.endswith((".dist-info", ".egg-info")):
                distribution = name.rpartition(".")[0].partition("-")[0].lower()
                files.setdefault(distribution, os.path.join(folder, name, "entry_points.txt"))  # noqa: PTH118
    own = files.pop(OWN, None)
    return [*filter(None, [own]), *files.values()]


def _entries(path: str) -> Iterator[tuple[str, str]]:
    """Yield the names and values of the group in a file of entry points."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            content = file.read()
    except OSError:
        return
    if _SECTION in content:
        for line in content.partition(_SECTION)[2].partition(b"\n[")[0].decode().splitlines():
            name, is_entry, value = line.partition("=")
            if is_entry and not line.startswith(("#", ";")):
                yield name.strip(), value.partition("[")[0].strip()
