"""Requests without a verdict as a policy judges them (`analysis.judging`), in SQL: more columns of their relation."""

# ruff: noqa: S608 -- names in queries are constants of ours; every value is bound

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace.columns import ATTRIBUTE
from stagetrace.policy.verdict import CRITICAL_FROM, MAJOR_FROM

if TYPE_CHECKING:
    from stagetrace.analysis.judging import Judging

_BETWEEN: Final = "\x1f"  # parts of a kind
_NONE: Final = "\x1e"  # stands for a value that is not there
FAILED: Final = "(status = 'ERROR' OR coalesce(http_status >= 500, false))"
_TOOK_NS: Final = "(end_unix_nano - start_unix_nano)"


class Dialect(NamedTuple):
    """How an engine writes what is needed: a list that is bound, the place in it of a text, and columns."""

    bound: Callable[[str, str], str]  # of a list's name and the type of what is in it
    place: Callable[[str, str], str]  # of a list and a text: from 1 on, 0 where it is not in it
    without: str  # the word for columns that `*` leaves out
    stage: str  # the column with the stage of a breach


def kind(attribute: Callable[[str], str], keys: Sequence[str]) -> str:
    """Return the expression of all that a verdict depends on beside durations, as one text, in either dialect."""

    def flag(condition: str) -> str:
        return f"CASE WHEN {condition} THEN '1' ELSE '0' END"

    def text(value: str) -> str:
        return f"coalesce({value}, '{_NONE}')"

    parts = [
        "service",
        text("method"),
        text("route"),
        text(attribute("rpc.service")),
        flag(FAILED),
        flag(f"{attribute('stagetrace.network.disconnect')} IS NOT NULL"),
        flag(is_websocket(attribute)),
        *(text(attribute(key.removeprefix(ATTRIBUTE))) for key in keys),
    ]
    return f" || '{_BETWEEN}' || ".join(parts)


def is_websocket(attribute: Callable[[str], str]) -> str:
    """Return the condition that a request is a websocket's."""
    return f"coalesce(coalesce({attribute('url.scheme')}, {attribute('http.scheme')}) IN ('ws', 'wss'), false)"


def overlaid(source: str, dialect: Dialect, kind: str, entry: str, stages: Mapping[str, str]) -> str:
    """Return the query `source` with verdicts for those of its rows that are an `entry` and have none.

    `stages`: stage to the column of its total.
    """
    at = f"CASE WHEN {entry} AND breached IS NULL AND verdict IS NULL THEN {{}} ELSE 0 END AS judged_at"
    kinds = dialect.bound("kinds", "String")
    placed = f"SELECT *, {at.format(dialect.place(kinds, kind))} FROM ({source})"

    def of(name: str, type_: str = "String") -> str:
        return f"{dialect.bound(name, type_)}[judged_at]"

    threshold = of("thresholds_ns", "Int64")
    late = f"CASE WHEN {_TOOK_NS} > {threshold} THEN {of('late')} ELSE {of('in_time')} END"
    worded = f"SELECT *, CASE WHEN judged_at = 0 THEN '' ELSE {late} END AS judged_word FROM ({placed})"
    is_late = "judged_word = 'breach'"

    def replace(column: str, value: str, where: str = "judged_at > 0") -> str:
        return f"CASE WHEN {where} THEN {value} ELSE {column} END"

    judged = "judged_word IN ('good', 'breach')"
    ratio = f"({_TOOK_NS} / {threshold})"
    severity = (
        f"CASE WHEN {ratio} < {MAJOR_FROM} THEN 'minor' WHEN {ratio} < {CRITICAL_FROM} THEN 'major' ELSE 'critical' END"
    )
    longest = f"greatest({', '.join(f'coalesce({column}, -1.0)' for column in stages.values())})"
    which = " ".join(f"WHEN coalesce({column}, -1.0) = {longest} THEN '{stage}'" for stage, column in stages.items())
    columns = {
        "verdict": replace("verdict", "judged_word"),
        "breached": replace("breached", is_late, judged),
        "objective": replace("objective", of("objectives")),
        "target": replace("target", f"nullif({of('targets')}, '')"),
        "threshold_ms": replace("threshold_ms", f"{threshold} / 1e6", judged),
        "overrun_ms": replace("overrun_ms", f"greatest({_TOOK_NS} - {threshold}, 0) / 1e6", is_late),
        "severity": replace("severity", severity, is_late),
        dialect.stage: replace(dialect.stage, f"CASE WHEN {longest} < 0 THEN NULL {which} END", is_late),
    }
    replaced = ", ".join(f"{how} AS {name}" for name, how in columns.items())
    return f"SELECT * {dialect.without} (judged_at, judged_word) REPLACE ({replaced}) FROM ({worded})"


def values(judging: Judging, prefix: str) -> dict[str, Any]:
    """Return what the query is bound to, by names with a prefix."""
    names = ("kinds", "in_time", "late", "thresholds_ns", "objectives", "targets")
    return {f"{prefix}{name}": list(getattr(judging, name)) for name in names}
