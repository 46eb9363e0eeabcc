"""Bottle: the rule of a request. Under a server without a patch, the request itself is recorded here."""

from __future__ import annotations

import functools
from typing import Any

from stagetrace.guard import guarded
from stagetrace.instrumentation.base import patching
from stagetrace.protocols.wsgi import outermost

METHOD_NOT_ALLOWED = 405


def _noting(original: Any) -> Any:
    @functools.wraps(original)
    def match(self: Any, environ: Any) -> Any:
        try:
            found = original(self, environ)
        except Exception as error:
            if getattr(error, "status_code", None) == METHOD_NOT_ALLOWED:
                _note_other_method(original, self, environ, error)
            raise
        _note(found, environ)
        return found

    return match


@guarded
def _note(found: Any, environ: Any) -> None:
    from stagetrace.protocols.wsgi_request import note_route

    route = found[0]
    # The rule of a mount matches any rest of the path: the mounted application notes that.
    mount = route.config.get("mountpoint.prefix")
    note_route(route.rule if mount is None else mount.rstrip("/"), environ)


@guarded
def _note_other_method(original: Any, router: Any, environ: Any, refusal: Any) -> None:
    method = str(refusal.headers["Allow"]).partition(",")[0]
    _note(original(router, {**environ, "REQUEST_METHOD": method}), environ)


patch_bottle = patching({"Router.match": _noting, "Bottle.__call__": outermost})
