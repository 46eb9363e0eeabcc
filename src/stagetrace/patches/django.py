"""Django, with WSGI and with ASGI: the route of a request, and the exception behind a 500.

Under a WSGI server without a patch, the request itself is recorded here.
"""

from __future__ import annotations

import functools
import re
import sys
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded
from stagetrace.instrumentation.base import after, patching
from stagetrace.protocols.wsgi import outermost

if TYPE_CHECKING:
    from types import ModuleType

_OF_REGEX = re.compile(r"[\^$?*+\\(]")
_METACHARACTERS = re.compile(r"[\^$?*+]|\\[bBAZ]")


patch_wsgi_handler = patching({"WSGIHandler.__call__": outermost})


def patch_base_handler(module: ModuleType) -> None:
    """Wrap the method that finds the route, and connect to Django's own signal of exceptions."""
    from django.core.signals import got_request_exception

    patching({"BaseHandler.resolve_request": after(_note_match)})(module)
    got_request_exception.connect(_on_exception, weak=False, dispatch_uid="stagetrace")


def _note_match(match: Any, _handler: Any, request: Any) -> None:
    from stagetrace.protocols.wsgi_request import note_route

    note_route(template(match.route), getattr(request, "environ", None))


@functools.lru_cache(4_096)
def template(route: str) -> str:
    """Return a Django route as a template that begins with a slash, as templates of other frameworks do.

    A regular expression becomes what its author would write for it: `^items/(?P<item>[0-9]+)/$` is `/items/<item>/`.
    """
    text = _simple(route) if _OF_REGEX.search(route) else route
    return text if text.startswith("/") else f"/{text}"


def _simple(route: str) -> str:
    from django.contrib.admindocs import utils  # before 4.1 it lacks the first and the last of these four

    for name in ("remove_non_capturing_groups", "replace_named_groups", "replace_unnamed_groups"):
        step = getattr(utils, name, None)
        route = route if step is None else step(route)
    clean = getattr(utils, "replace_metacharacters", None)
    return clean(route) if clean is not None else _METACHARACTERS.sub("", route)


@guarded
def _on_exception(**_: Any) -> None:
    from stagetrace.protocols.wsgi_request import note_failure

    error = sys.exc_info()[1]
    if error is not None:
        note_failure(error)
