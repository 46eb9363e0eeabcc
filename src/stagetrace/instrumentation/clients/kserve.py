"""Calls by the Open Inference Protocol (KServe v2): Triton, MLServer, KServe and others, over HTTP and gRPC."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from stagetrace.guard import guarded
from stagetrace.semconv import ML_BATCH_SIZE, ML_MODEL_NAME, ML_MODEL_VERSION

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping

_ENDS: Final = ("/infer", "/generate", "/generate_stream")
_PATH: Final = re.compile("/v2/models/([^/]+)(?:/versions/([^/]+))?/(?:infer|generate|generate_stream)$")
_SHAPE: Final = re.compile(rb'"shape"\s*:\s*\[\s*(\d*)')  # of the first input; outputs have none in a request
_SHAPE_WITHIN: Final = 4096  # bytes; it may come after the data
_SERVICE: Final = "inference.GRPCInferenceService/"
UNARY: Final = f"{_SERVICE}ModelInfer"
STREAM: Final = f"{_SERVICE}ModelStreamInfer"


def attributes_of_http(path: str, body: Any) -> Mapping[str, Any] | None:
    """Return the model, and the rows of the first input, of a POST request; None if it is none to a model."""
    if not path.endswith(_ENDS):
        return None
    found = _PATH.search(path)
    if found is None:
        return None
    attributes: dict[str, Any] = {ML_MODEL_NAME: unquote(found[1])}
    if found[2]:
        attributes[ML_MODEL_VERSION] = unquote(found[2])
    rows = _rows(body)
    if rows is not None:
        attributes[ML_BATCH_SIZE] = rows
    return attributes


def _rows(body: Any) -> int | None:
    if isinstance(body, str):
        body = body[:_SHAPE_WITHIN].encode()
    if isinstance(body, (bytes, bytearray)):  # that of tritonclient begins with JSON, even if tensors follow
        shape = _SHAPE.search(body, 0, _SHAPE_WITHIN)
        return int(shape[1]) if shape and shape[1] else None
    try:
        return int(body["inputs"][0]["shape"][0])  # not yet encoded
    except (LookupError, TypeError, ValueError):
        return None


def attributes_of_message(request: Any) -> Mapping[str, Any]:
    """Return the model, and the rows of the first input, of a `ModelInferRequest`."""
    attributes: dict[str, Any] = {ML_MODEL_NAME: request.model_name}
    if request.model_version:
        attributes[ML_MODEL_VERSION] = request.model_version
    if request.inputs and request.inputs[0].shape:
        attributes[ML_BATCH_SIZE] = request.inputs[0].shape[0]
    return attributes


class StreamedModel:
    """The attributes that all requests of a stream have in common."""

    def __init__(self) -> None:
        self._common: dict[str, Any] | None = None

    @guarded
    def note(self, request: Any) -> None:
        """Note a `ModelInferRequest` that is being sent."""
        found, common = attributes_of_message(request), self._common
        if common is None:
            self._common = dict(found)
        elif found != common:
            self._common = {key: value for key, value in common.items() if found.get(key) == value}

    def attributes(self) -> Mapping[str, Any]:
        """Return them."""
        return self._common or {}


def noting(requests: Any, note: Callable[[Any], None]) -> Any:
    """Return an iterator over the requests of a stream, synchronous or not, that notes each as it is sent."""
    if hasattr(requests, "__aiter__"):
        return _noting_async(requests, note)
    return _noting(requests, note) if hasattr(requests, "__next__") else requests


def _noting(requests: Any, note: Callable[[Any], None]) -> Iterator[Any]:
    for request in requests:
        note(request)
        yield request


async def _noting_async(requests: Any, note: Callable[[Any], None]) -> AsyncIterator[Any]:
    async for request in requests:
        note(request)
        yield request
