"""The list of breaches that people work through, with facets: properties, their values and how many have each."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from stagetrace.analysis import breach_groups
from stagetrace.output.breaches import as_json, blamed, owners_of
from stagetrace.output.times import UTC, shown
from stagetrace.page.asked import REPEATED, SHARED, BadRequest
from stagetrace.page.base import File, Part, View
from stagetrace.page.breach_facets import MOST, Facet, chips, conditions, facets_of, other_segments, windowed
from stagetrace.page.breach_rows import rows_of
from stagetrace.semconv import SLA_BREACH_MISSED, SLA_BREACH_STAGE
from stagetrace.sla.cause import DOWNSTREAM
from stagetrace.store import answers
from stagetrace.store.answers import Place

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stagetrace.analysis.breach_groups import Group
    from stagetrace.page.asked import Asked
    from stagetrace.page.base import Site
    from stagetrace.store.base import Reader, Selection

ROWS: Final = 100  # of one page of the list
GROUPS: Final = 100
EXPORTED: Final = 10_000
SORTS: Final = {"start": "newest", "overrun": "most over", "duration": "slowest"}
# Parameters of this view: by what it is sorted, whether requests are listed that are no breach, and whether groups are.
OWN: Final = ("sort", "all", "groups")


def shell(asked: Asked, site: Site) -> Mapping[str, Any]:
    """Return the filters, the orders and what gives the same list elsewhere."""
    _sort(asked)
    return {
        "chips": chips(asked, _own(asked)),
        "sorts": [(word, _url(asked, sort=key), key == _sort(asked)) for key, word in SORTS.items()],
        "everything": _is_of_all(asked),
        "toggle": _url(asked, all=None if _is_of_all(asked) else "1", groups=None),
        "grouped": _is_grouped(asked),
        "toggle_groups": _url(asked, groups=None if _is_grouped(asked) else "1", all=None),
        "command": _command(asked, site),
        "exported": EXPORTED,
    }


def facets(asked: Asked, reader: Reader, site: Site) -> Part:
    """Return each property's values, with how many breaches have them: of all, and of those that the filters select."""
    del site
    window = windowed(asked.selection)
    with reader.relations(window) as relations:
        rows = relations.reduce("facets", most=MOST, **conditions(asked.selection))
    found: list[Facet] = facets_of(rows, asked, _own(asked))
    values = {"facets": found, "others": [f"{key}={text}" for key, text in window.segments.items()]}
    return Part("breaches_facets.html", values, relations.reason)


def listed(asked: Asked, reader: Reader, site: Site) -> Part:
    """Return a page of the list: the rows behind a place in it, and where the next ones are."""
    del site
    found, total, reason = _page(asked, reader)
    at = _at(asked)
    more = None
    if len(found) > ROWS:
        found = found[:ROWS]
        more = _fixed(asked, "list", _after(found[-1], _sort(asked)), at + ROWS)
    rows = rows_of(found, at, asked)
    followed = any(row.cause == DOWNSTREAM for row in rows)
    values = {
        "rows": rows,
        "at": at,
        "last": at + len(rows),
        "total": total,
        "more": more,
        "owners": _fixed(asked, "owners", asked.one("after"), at) if followed else None,
        "what": "stored requests" if _is_of_all(asked) else "breaches",
    }
    return Part("breaches_list.html", values, reason)


def groups(asked: Asked, reader: Reader, site: Site) -> Part:
    """Return the groups of breaches that are alike, the largest ones."""
    del site
    with reader.relations(replace(asked.selection, breached=True)) as relations:
        found = breach_groups.ask(relations, GROUPS)
        reason = relations.reason
    most = max((one.breaches for one in found.groups), default=1)
    rows = [(one, _group_url(asked, one), round(100 * one.breaches / most, 2)) for one in found.groups]
    values = {"rows": rows, "different": found.different, "services": len({one.service for one in found.groups})}
    return Part("breaches_groups.html", values, reason)


def _group_url(asked: Asked, group: Group) -> str:
    """Return the list of a group: of all that it has, since no URL selects what lacks something."""
    changes: dict[str, str | Sequence[str] | None] = {"service": group.service, "route": group.route}
    if group.cause is not None:
        changes["cause"] = group.cause
    if group.code is not None:
        changes["code"] = group.code
    if group.stage is not None:
        changes["segment"] = [*other_segments(SLA_BREACH_STAGE, asked), f"{SLA_BREACH_STAGE}={group.stage}"]
    return _url(asked, groups=None, **changes)


def owners(asked: Asked, reader: Reader, site: Site) -> Part:
    """Return who owns the time of the rows of a page that waited for another service."""
    del site
    found, _, _ = _page(asked, reader)
    entries = [answers.entry(row) for row in found[:ROWS]]
    known = list(enumerate(zip(entries, owners_of(reader, entries), strict=True), _at(asked) + 1))
    followed = [(at, blamed(entry, owner)) for at, (entry, owner) in known if entry.cause == DOWNSTREAM]
    reasons = sorted({owner.reason for _, (_, owner) in known if owner.reason})
    return Part("breaches_owners.html", {"owners": followed, "reasons": reasons})


def export(asked: Asked, reader: Reader, site: Site) -> File:
    """Return what `stagetrace breaches --json` prints, of at most `EXPORTED` breaches."""
    del site
    answer = reader.breaches(replace(asked.selection, limit=EXPORTED))
    text = json.dumps(as_json(answer, owners_of(reader, answer.breaches)), ensure_ascii=False, indent=1)
    return File(text.encode("utf-8", "backslashreplace"), "application/json", "breaches.json")


def _page(asked: Asked, reader: Reader) -> tuple[list[dict[str, Any]], int, str | None]:
    """Return the rows of a page and one more if there is one, how many there are in all, and what is missing."""
    sort, after = _sort(asked), _place(asked)
    with reader.relations(_selected(asked)) as relations:
        total = answers.count(relations)
        rows = answers.requests(relations, sort, ROWS + 1, after=after, attributes=[SLA_BREACH_MISSED])
        return rows, total, relations.reason


def _selected(asked: Asked) -> Selection:
    return replace(asked.selection, breached=None if _is_of_all(asked) else True)


def _is_of_all(asked: Asked) -> bool:
    return asked.one("all") is not None and not _is_grouped(asked)


def _is_grouped(asked: Asked) -> bool:
    return asked.one("groups") is not None


def _sort(asked: Asked) -> str:
    sort = asked.one("sort") or "start"
    if sort not in SORTS:
        raise BadRequest(f"sort={sort[:40]!r} is no order of this list\nwrite one of {', '.join(SORTS)}")
    return sort


def _at(asked: Asked) -> int:
    return asked.number("at", 0, 0, 10**12)


def _place(asked: Asked) -> Place | None:
    """Return the place that the list goes on behind. Raise BadRequest."""
    text = asked.one("after")
    if text is None:
        return None
    try:
        value, start, trace_id, span_id = text.split("~")
        number = None if not value else int(value) if _sort(asked) == "start" else float(value)
        return Place(number, int(start), trace_id, span_id)
    except ValueError:
        raise BadRequest(f"after={text[:80]!r} is no place in this list\nopen the list without it") from None


def _after(row: Mapping[str, Any], sort: str) -> str:
    value = row[answers.SORTS[sort]]
    return "~".join(
        ("" if value is None else repr(value), str(row["start_unix_nano"]), row["trace_id"], row["span_id"])
    )


def _own(asked: Asked) -> dict[str, str | Sequence[str] | None]:
    return {name: asked.one(name) for name in OWN}


def _url(asked: Asked, **changes: str | Sequence[str] | None) -> str:
    return asked.url("/breaches", **{**_own(asked), **changes})


def _fixed(asked: Asked, part: str, after: str | None, at: int) -> str:
    """Return the URL of a part that goes on with this list: in the window as it was when the list began."""
    first, last = (
        f"{shown(ns, UTC, 9).replace(' ', 'T')}Z" for ns in (asked.selection.since_ns, asked.selection.until_ns)
    )
    own = {**_own(asked), "since": first, "until": last, "after": after, "at": str(at)}
    return asked.url(f"/breaches/{part}", **own)


def _command(asked: Asked, site: Site) -> str:
    """Return the command that gives the same list."""
    words = ["stagetrace", "requests" if _is_of_all(asked) else "breaches", "--store", site.store]
    since = asked.one("since", site.since) or site.since
    for name in SHARED:
        values = (since,) if name == "since" else asked.params.get(name, ())
        for value in values if name in REPEATED else values[-1:]:
            words += [f"--{name}", value]
    if _is_of_all(asked) and _sort(asked) != "start":
        words += ["--sort", _sort(asked)]
    if _is_grouped(asked):
        words.append("--group")
    return shlex.join([*words, "--json"])


VIEW: Final = View(
    "breaches",
    "Breaches",
    "/breaches",
    "breaches.html",
    {"facets": facets, "list": listed, "groups": groups, "owners": owners, "breaches.json": export},
    shell,
    keeps=OWN,
)
