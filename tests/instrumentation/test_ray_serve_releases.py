"""Releases of Ray change private functions: an unknown release is not patched at all."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from stagetrace_contrib import ray_serve


class OldQueue:
    """As up to Ray 2.44: it fetches a batch itself."""

    def put(self, request: Any) -> None: ...
    async def _process_batches(self, func: Any) -> None: ...
    async def _process_batch(self, func: Any) -> None: ...


class Wrapper:
    """One that is called with something more."""

    def _run_user_code(function: Any) -> Any:  # noqa: N805 -- as Ray has it
        async def wrapped(*args: Any) -> Any:
            return await function(*args)

        wrapped.__wrapped__ = function  # type: ignore[attr-defined]
        return wrapped

    @_run_user_code
    async def _call_http_entrypoint(
        self, user_method_info: Any, scope: Any, receive: Any, send: Any, more: Any
    ) -> Any: ...

    @_run_user_code
    async def call_user_method(self, request_metadata: Any) -> Any: ...

    @_run_user_code
    async def _call_user_generator(self, request_metadata: Any) -> Any: ...


class Replica:
    """A replica."""

    async def initialize(self) -> None: ...
    async def perform_graceful_shutdown(self) -> None: ...


class Nothing:
    """A class without what we look for."""


@pytest.mark.parametrize(
    ("patch", "classes"),
    [
        (ray_serve.patch_batching, {"_BatchQueue": OldQueue}),
        (ray_serve.patch_batching, {"_BatchQueue": Nothing}),
        (ray_serve.patch_batching, {}),
        (ray_serve.patch_replica, {"UserCallableWrapper": Wrapper, "Replica": Replica}),
        (ray_serve.patch_replica, {"UserCallableWrapper": Wrapper}),
        (ray_serve.patch_replica, {"UserCallableWrapper": Nothing, "Replica": Replica}),
        (ray_serve.patch_router, {"AsyncioRouter": Nothing}),
        (ray_serve.patch_proxy, {"GenericProxy": Nothing, "HTTPProxy": Nothing}),
    ],
)
def test_an_unknown_release_is_not_patched(patch: Any, classes: dict[str, type]) -> None:
    before = {name: dict(vars(one)) for name, one in classes.items()}
    with pytest.raises((AttributeError, KeyError, TypeError)):
        patch(SimpleNamespace(__name__="ray", **classes))
    assert {name: dict(vars(one)) for name, one in classes.items()} == before
