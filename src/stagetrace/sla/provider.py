"""What entry spans are recorded for: a resource, a head sampler and a generator of ids."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Protocol

from stagetrace.guard import guarded
from stagetrace.sla.head_sampler import HeadSampler, RandomIds

if TYPE_CHECKING:
    from collections.abc import Callable

    from stagetrace.tracing.sampler import Sampler
    from stagetrace.tracing.span import Resource


class Provider(Protocol):
    """As an SDK's tracer provider has them."""

    @property
    def resource(self) -> Any:
        """What spans come from; another one after a fork."""

    sampler: Any
    id_generator: Any


class OwnProvider:
    """That of a process in which no SDK is."""

    def __init__(self, sampler: Sampler, resource: Callable[[], Resource]) -> None:
        self.sampler = sampler
        self.id_generator = RandomIds()
        self._make_resource = resource
        self.resource = resource()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)

    @guarded
    def _renew(self) -> None:
        """Have another resource in a forked child: that names the instance."""
        self.resource = self._make_resource()


def head_sampler_of(provider: Provider) -> HeadSampler:
    """Return the head sampler of a provider, ours or an SDK's."""
    if isinstance(provider, OwnProvider):
        return HeadSampler(provider.sampler, provider.id_generator)
    from importlib import import_module

    made: HeadSampler = import_module("stagetrace.bridge.tracer").head_sampler_of(provider)
    return made
