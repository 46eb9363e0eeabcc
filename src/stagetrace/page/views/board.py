"""The board: objectives, breaches by cause over time, and what is wrong now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stagetrace.page.base import Part, View
from stagetrace.store.base import Selection

if TYPE_CHECKING:
    from stagetrace.page.asked import Asked
    from stagetrace.page.base import Site
    from stagetrace.store.base import Reader

_NAMES: Final = 1_000  # combinations of service, route and model that names are taken from


def body(asked: Asked, reader: Reader, site: Site) -> Part:
    """Return the services of the store."""
    del asked, site
    return Part("board_body.html", {"services": reader.services()})


def names(asked: Asked, reader: Reader, site: Site) -> Part:
    """Return names for the fields of the selection: those with most requests in its time, of its service."""
    del site
    wanted = asked.selection
    with reader.relations(Selection(wanted.since_ns, wanted.until_ns)) as relations:
        rows = relations.reduce("largest_groups", ("service", "path", "model"), most=_NAMES)
    own = [row for row in rows if wanted.service in (None, row["service"])]
    values = {
        "services": _distinct(rows, "service"),
        "routes": _distinct(own, "path"),
        "models": _distinct(own, "model"),
    }
    return Part("board_names.html", {"names": values})


def _distinct(rows: list[dict[str, str | None]], column: str) -> list[str]:
    return list(dict.fromkeys(value for row in rows if (value := row[column]) is not None))


VIEW: Final = View("board", "Board", "/board", "board.html", {"body": body, "names": names})
