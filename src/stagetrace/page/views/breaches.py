"""The list of breaches, with facets."""

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
    return Part("breaches_body.html", {"services": reader.services()})


VIEW: Final = View("breaches", "Breaches", "/breaches", "breaches.html", {"body": body})
