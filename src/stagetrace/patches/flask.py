"""Flask: the route of a request and the exception behind a 500, from Flask's own signals.

Under a server without a patch, the request itself is recorded here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded
from stagetrace.protocols.wsgi import outermost

if TYPE_CHECKING:
    from types import ModuleType


def patch_app(module: ModuleType) -> None:
    """Wrap `__call__` on the class, which covers applications made before, and subclasses; connect to the signals."""
    from flask.signals import got_request_exception, request_started

    module.Flask.__call__ = outermost(module.Flask.__call__)
    request_started.connect(_note_rule, weak=False)
    got_request_exception.connect(_note_failure, weak=False)


@guarded
def _note_rule(_sender: Any, **_: Any) -> None:
    from flask import request as proxy

    from stagetrace.protocols.wsgi_request import note_route

    request = proxy._get_current_object()  # type: ignore[attr-defined]  # each read through the proxy costs as much
    rule = request.url_rule
    if rule is not None:
        note_route(rule.rule, request.environ)


@guarded
def _note_failure(_sender: Any, *, exception: BaseException, **_: Any) -> None:
    from stagetrace.protocols.wsgi_request import note_failure

    note_failure(exception)
