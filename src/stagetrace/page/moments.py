"""Releases and marks within the time of a selection: the lines that `moments.js` draws across pictures over time."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from stagetrace.analysis import onset
from stagetrace.page.base import File
from stagetrace.store import answers
from stagetrace.store.base import Selection
from stagetrace.text import printable

if TYPE_CHECKING:
    from stagetrace.analysis.onset import Release
    from stagetrace.page.base import Asked, Site
    from stagetrace.store.base import Reader

MOST: Final = 20  # lines in a picture


def moments(asked: Asked, reader: Reader, _site: Site) -> File:
    """Return the newest of them as JSON, how many there are, and what was not looked for."""
    wanted = asked.selection
    with reader.relations(Selection(wanted.since_ns, wanted.until_ns, service=wanted.service)) as relations:
        stored = answers.count(relations)
        every = [one for one in onset.ask(relations, stored) if one.key != onset.INSTANCE]
    limit = onset.MOST_STORED
    note = None if stored <= limit else f"releases are not looked for among more than {limit:,} requests; marks are"
    services = {one.service for one in every if one.service}
    found = [_moment(one, asked, named=len(services) > 1) for one in every[-MOST:]]
    text = json.dumps({"moments": found, "all": len(every), "note": note})
    return File(text.encode(), "application/json", None)


def _moment(one: Release, asked: Asked, *, named: bool) -> dict[str, Any]:
    text = one.value if one.key == onset.MARK else f"{one.model or (one.service if named else 'release')} {one.value}"
    return {
        "at_ms": one.at_unix_nano / 1e6,
        "time": f"{asked.time(one.at_unix_nano, 0)} {asked.zone.name}",
        "text": printable(text),
        "kind": "mark" if one.key == onset.MARK else "release",
    }
