"""Moments at which something was released: a version of a service or of a model, or an instance that started."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from stagetrace.analysis.cases import Cases
from stagetrace.analysis.source import Source

SERVICE_VERSION: Final = "service.version"
MODEL_VERSION: Final = "model_version"
INSTANCE: Final = "service.instance.id"
_KEYS: Final = (SERVICE_VERSION, MODEL_VERSION, INSTANCE)  # the one that a person knows best first
_BY: Final = ("service", "model", *_KEYS)
_S: Final = 10**9
_LATE: Final = 10.0  # mean times between two requests after which a value was not there before
_MOST: Final = 50  # of a service
MOST_STORED: Final = 300_000  # requests of which all are read


class Release(NamedTuple):
    """The first request of a version or instance that was not there at the beginning."""

    at_unix_nano: int
    service: str
    key: str
    value: str
    model: str | None = None  # of a model's version

    @property
    def order(self) -> int:
        """Return the place of its key: versions before instances."""
        return _KEYS.index(self.key)

    def keys(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {"key": self.key, "value": self.value, "model": self.model, "at_unix_nano": self.at_unix_nano}


def ask(source: Source, stored: int, cases: Cases | None = None) -> list[Release]:
    """Return the releases within a source of so many requests, by time.

    Attributes are too dear to read of very many: of those a sample does, if there is one, to its first request.
    """
    if stored <= MOST_STORED:
        return of_rows(source.reduce("versions", _BY))
    if cases is None:
        return []
    lacking: list[str | None] = [None] * len(cases.rows)
    versions, instances = (cases.attributes.get(key, lacking) for key in (SERVICE_VERSION, INSTANCE))
    return of_rows(
        [
            {
                **{key: row[key] for key in ("service", "model", MODEL_VERSION)},
                SERVICE_VERSION: version,
                INSTANCE: instance,
                "requests": 1.0,
                **dict.fromkeys(("first", "last"), row["start_unix_nano"]),
            }
            for row, version, instance in zip(cases.rows, versions, instances, strict=True)
        ]
    )


def of_rows(rows: Sequence[Mapping[str, Any]]) -> list[Release]:
    """Return the releases out of how many requests each version and instance had from when to when, by time."""
    found: list[Release] = []
    for service in dict.fromkeys(row["service"] for row in rows if row["service"]):
        own = [row for row in rows if row["service"] == service]
        of_service = [
            *_first_seen(own, SERVICE_VERSION, service),
            *(
                one
                for model in dict.fromkeys(row["model"] for row in own if row["model"])
                for one in _first_seen([row for row in own if row["model"] == model], MODEL_VERSION, service, model)
            ),
            *_first_seen(own, INSTANCE, service),
        ]
        found += sorted(of_service, key=lambda one: (one.order, one.at_unix_nano))[:_MOST]
    return sorted(found, key=lambda one: (one.at_unix_nano, one.order, one.service))


def _first_seen(
    rows: Iterable[Mapping[str, Any]], key: str, service: str, model: str | None = None
) -> Iterable[Release]:
    """Return the values of one key that came later than the others, by longer than chance would have them wait."""
    spans: dict[str, tuple[int, int, float]] = {}
    for row in rows:
        value = row[key]
        if value is not None:
            first, last, count = spans.get(value, (row["first"], row["last"], 0.0))
            spans[value] = (min(first, row["first"]), max(last, row["last"]), count + row["requests"])
    if len(spans) < 2:  # noqa: PLR2004 -- nothing was replaced
        return
    begins = min(first for first, _, _ in spans.values())
    for value, (first, last, count) in spans.items():
        if first - begins > max(_S, _LATE * (last - first) / max(count - 1, 1)):
            yield Release(first, service, key, value, model)


def near(releases: Iterable[Release], service: str, since_ns: int, until_ns: int) -> list[Release]:
    """Return the releases of a service within [since, until], those that a person knows best first."""
    inside = [one for one in releases if one.service == service and since_ns <= one.at_unix_nano <= until_ns]
    return sorted(inside, key=lambda one: (one.order, one.at_unix_nano))
