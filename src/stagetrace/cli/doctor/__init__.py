"""`stagetrace doctor`: is everything as it has to be, here and in the services that run?"""

from __future__ import annotations

import argparse
import secrets
from typing import TYPE_CHECKING, Final

from stagetrace import settings
from stagetrace.cli.arguments import JSON, count
from stagetrace.cli.doctor import checks
from stagetrace.cli.doctor.checks import living_processes
from stagetrace.cli.output import show_result
from stagetrace.cli.registry import ANSWERED, BAD, Option
from stagetrace.output import processes
from stagetrace.output.processes import FAIL, OK, WARN, Check
from stagetrace.output.table import Column, Table
from stagetrace.store import open_store

if TYPE_CHECKING:
    from stagetrace.process_status import files

DESCRIPTION: Final = """Check the installation, the settings of this shell, the delivery of spans, and the running
traced processes: their state, what costs latency there, and the fix. Exits 1 if something fails.

The command makes one real export without a span, or with one span if --round-trip is given. It also removes the
status files that ended processes have left. It changes nothing else."""
EXAMPLE: Final = "stagetrace doctor"

OPTIONS: Final = (
    Option("--pid N", "check this traced process alone, and show everything that it reports", count),
    Option("--round-trip URL", "send one span as a service started from here would, and read it back from this store"),
    JSON,
)


def run(args: argparse.Namespace) -> int:
    """Make the checks, show them, and return the exit code."""
    found: list[Check] = []
    if args.pid is None:
        if args.round_trip is not None:
            open_store(args.round_trip).close()  # an invalid URL is wrong usage, and reported before anything is done
        sent = [secrets.token_hex(16)] if args.round_trip is not None else []
        probe = checks.Probe(*sent)
        running, about = living_processes(None)
        asked, why = probe.answer()
        installed = checks.installation_checks(asked)
        found += [_beside(one) if running else one for one in installed]
        found += [*checks.delivery_checks(asked, why), *spools(running)]
        found += [checks.arrival(one, args.round_trip, asked) for one in sent]
    else:
        running, about = living_processes(args.pid)
    found += about
    for one in running:
        found += processes.checks(one)
    fails = any(check.state == FAIL for check in found)
    keys = {
        "ok": not fails,
        "checks": [{"name": one.name, "state": one.state, "found": one.found, "mend": one.fix} for one in found],
        "processes": [one.status for one in running if one.status is not None],
    }
    parts: list[Table | str] = [table(found)]
    if args.pid is None:
        parts += ["", summary(found)]
    elif running and running[0].status:
        parts += processes.table(running[0].status)
    show_result(args, keys, parts)
    return BAD if fails else ANSWERED


def _beside(one: Check) -> Check:
    """Return a check of this shell where traced processes run, which have been given settings of their own."""
    if one.name not in ("switch", "policy") or one.state != WARN:
        return one
    return Check(one.name, OK, f"{one.found}; that is of this shell, the processes below have settings of their own")


def spools(running: list[files.Found]) -> list[Check]:
    """Return a check of each spool that a running process has, and this shell has not."""
    own = settings.SPOOL.read()
    folders = {one.status.get("spool") for one in running if one.status is not None}
    return [
        checks.spool_check(folder) for folder in sorted(folders - {own}, key=str) if isinstance(folder, str) and folder
    ]


def table(found: list[Check]) -> Table:
    """Return the checks, below each its fix."""
    rows: list[tuple[str, str, str]] = []
    last = ""
    for check in found:
        repeated = check.name == last
        rows.append((check.state, "" if repeated else check.name, check.found.replace("\n", " ")))
        if check.fix:
            rows.append(("", "", f"-> {check.fix}"))
        last = check.name
    return Table([Column(""), Column("check"), Column("found")], rows)


def summary(found: list[Check]) -> str:
    """Return the last line."""
    numbers = {state: sum(check.state == state for check in found) for state in (OK, WARN, FAIL)}
    if numbers[FAIL]:
        return f"{numbers[FAIL]} of {len(found)} checks fail, {numbers[WARN]} warn."
    return f"Nothing fails; {numbers[WARN]} of {len(found)} checks warn."
