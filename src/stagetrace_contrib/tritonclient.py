"""tritonclient over HTTP: `async_infer` calls in a greenlet, which has no context of its caller.

Its requests are recorded by the patches of geventhttpclient, aiohttp and gRPC, by which it sends them.
"""

from __future__ import annotations

import functools
import inspect
from contextvars import copy_context
from typing import Any

from stagetrace.guard import guarded, guarded_end
from stagetrace.instrumentation.base import patching, with_argument
from stagetrace.request.current import recording


class _Headers(dict[str, Any]):
    """The headers of a request, with the context of the code that makes it."""

    def __init__(self, headers: dict[str, Any]) -> None:
        super().__init__(headers)
        self.context = copy_context()


def _handing_on(original: Any) -> Any:
    position = list(inspect.signature(original).parameters).index("headers") - 1  # among the arguments after `self`

    @functools.wraps(original)
    def async_infer(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = None if recording() is None else _with_context(position, args, kwargs)
        if given is None:
            return original(self, *args, **kwargs)
        headers, own, new_args, new_kwargs = given
        try:
            return original(self, *new_args, **new_kwargs)
        finally:
            _give_back(headers, own)

    return async_infer


@guarded
def _with_context(
    position: int, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[_Headers, Any, tuple[Any, ...], dict[str, Any]]:
    """Return headers with the context, those of the caller, and the arguments with the former."""
    own = args[position] if len(args) > position else kwargs.get("headers")
    headers = _Headers(own or {})
    return headers, own, *with_argument(args, kwargs, position, "headers", headers)


@guarded_end
def _give_back(headers: _Headers, own: Any) -> None:
    """Let the caller's headers have what tritonclient has added, as without us."""
    if own is not None:
        own.update(headers)


def _in_context(original: Any) -> Any:
    @functools.wraps(original)
    def _post(self: Any, request_uri: Any, request_body: Any, headers: Any, query_params: Any) -> Any:
        if type(headers) is not _Headers:
            return original(self, request_uri, request_body, headers, query_params)
        return headers.context.run(original, self, request_uri, request_body, headers, query_params)

    return _post


# The greenlet of `async_infer` calls `_post`, with the same headers.
patch_client = patching({"InferenceServerClient.async_infer": _handing_on, "InferenceServerClient._post": _in_context})
