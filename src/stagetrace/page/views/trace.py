"""One trace: its spans, stages, unseen time, critical path and evidence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stagetrace.page.base import Part, View

if TYPE_CHECKING:
    from stagetrace.page.asked import Asked
    from stagetrace.page.base import Site
    from stagetrace.store.base import Reader


def body(asked: Asked, reader: Reader, site: Site) -> Part:
    """Return the services of the store."""
    del asked, site
    return Part("trace_body.html", {"services": reader.services()})


VIEW: Final = View("trace", "Trace", "/trace/{trace_id}", "trace.html", {"body": body}, in_menu=False)
