"""What runs here, what is traced on this machine, what was lost and what is not recognised. It only reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace.output import processes
from stagetrace.output.processes import OK, Check
from stagetrace.page.base import Part, View
from stagetrace.process_status import files
from stagetrace.store.base import RELATIONS, Selection

if TYPE_CHECKING:
    from pathlib import Path

    from stagetrace.output.processes import Judged, Spans
    from stagetrace.page.base import Asked, Site
    from stagetrace.store.base import Reader

_MOST: Final = 50  # processes
_FOLDERS: Final = 3  # that are named where there is none
_EVER_NS: Final = 2**62
_HOUR_S: Final = 3600
_DAY_S: Final = 86_400


class Process(NamedTuple):
    """A traced process as it is shown: the text of its status file may be anything."""

    pid: str
    service: str
    command: str
    about: Sequence[tuple[str, str]]
    judged: Judged
    spans: Sequence[Spans]
    checks: Sequence[Check]  # what is worth to know, and what is wrong with it

    @property
    def worst(self) -> str:
        """Return the worst state of its checks."""
        states = {check.state for check in self.checks}
        return next((state for state in ("fail", "warn") if state in states), OK)


def traced(asked: Asked, reader: Reader, site: Site) -> Part:
    """Return the traced processes of this machine, out of their status files."""
    found: list[files.Found] = []
    reasons: list[str] = []
    folders = files.folders()
    for folder in folders:
        _add(folder, found, reasons)
    if len(found) > _MOST:
        reasons.append(f"{_MOST} of {len(found)} processes are shown; stagetrace doctor shows all")
    shown = [_process(one, asked.now_ns / 1e9) for one in found[:_MOST]]
    looked = [str(one) for one in folders[:_FOLDERS]]
    values = {"processes": shown, "folders": looked, "more_folders": len(folders) - len(looked)}
    return Part("doctor_traced.html", values, "; ".join(reasons) or None)


def _add(folder: Path, found: list[files.Found], reasons: list[str]) -> None:
    """Add the living processes of a folder, or why it cannot be read."""
    try:
        found += [one for one in files.read(folder) if one.alive is not False]
    except OSError as error:
        reasons.append(f"{folder} cannot be read: {error.strerror}")


def _process(one: files.Found, now_s: float) -> Process:
    status = one.status or {}
    checks = list(processes.checks(one))
    return Process(
        one.path.name.partition("-")[0],
        str(status.get("service") or "(unknown service)"),
        str(status.get("command", "")),
        [
            (
                "started",
                f"{processes.time_text(status.get('started_unix'))}, {_ago(status.get('started_unix'), now_s)} ago",
            ),
            ("spans go to", str(status.get("target"))),
            ("policy", "; ".join(map(str, _listed(status.get("policy")))) or "none: requests are not judged"),
            ("sampler", str(status.get("sampler"))),
            ("spool", str(status.get("spool") or "none: what does not fit into memory is dropped")),
            ("reported", f"{_ago(status.get('updated_unix'), now_s)} ago; counts that do not change are not reported"),
        ],
        processes.count_verdicts(status),
        processes.spans(status),
        checks if one.status is None else checks[1:],  # the first one is its activity, which is shown as numbers
    )


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else ()


def _ago(seconds: Any, now_s: float) -> str:
    """Return how long ago a time was, in words."""
    if not isinstance(seconds, (int, float)) or not 0 <= now_s - seconds < 1e10:  # noqa: PLR2004
        return "an unknown time"
    age = now_s - seconds
    if age < _HOUR_S:
        return f"{age / 60:.0f} min" if age >= 60 else f"{age:.0f} s"  # noqa: PLR2004
    return f"{age / _HOUR_S:.1f} h" if age < 2 * _DAY_S else f"{age / _DAY_S:.1f} days"


def stored(asked: Asked, reader: Reader, site: Site) -> Part:
    """Return what the store holds of each service, of any time."""
    if RELATIONS not in reader.capabilities:
        return Part("doctor_stored.html", {"services": [], "names": reader.services()})
    window = Selection(0, _EVER_NS) if asked.one("since") is None else asked.selection
    with reader.relations(window) as relations:
        rows = relations.reduce("extent", ("service",))
    services = sorted(rows, key=lambda row: (-row["last_unix_nano"], row["service"]))
    return Part("doctor_stored.html", {"services": services, "names": ()}, relations.reason)


class Family(NamedTuple):
    """Numbers of one meaning."""

    name: str
    meaning: str
    values: Sequence[tuple[str, int]]
    is_bad: bool


# Families of which each number but 0 is worth a look.
_BAD: Final = ("rejected_spans", "refused_requests", "failed_queries", "closed_connections", "store_spans_rejected")


def counted(asked: Asked, reader: Reader, site: Site) -> Part:
    """Return what the back end has counted since it was started."""
    made: dict[str, Family] = {}
    for one in site.figures():
        known = made.get(one.name, Family(one.name, one.meaning, (), is_bad=False))
        is_bad = known.is_bad or (one.name in _BAD and one.value > 0)
        made[one.name] = known._replace(values=[*known.values, (one.label, one.value)], is_bad=is_bad)
    families = sorted(made.values(), key=lambda one: not one.is_bad)
    return Part("doctor_counted.html", {"families": families})


def _shell(_asked: Asked, site: Site) -> Mapping[str, Any]:
    return {"commands": site.commands or (f"stagetrace breaches --store {site.store}",)}


VIEW: Final = View(
    "doctor", "Doctor", "/doctor", "doctor.html", {"traced": traced, "stored": stored, "counted": counted}, shell=_shell
)
