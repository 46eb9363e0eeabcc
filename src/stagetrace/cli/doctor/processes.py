"""Checks of `stagetrace doctor`: the traced processes of this user."""

from __future__ import annotations

from stagetrace.output.check import FAIL, OK, WARN, Check
from stagetrace.process_status import files


def living(pid: int | None) -> tuple[list[files.Found], list[Check]]:
    """Return the living processes, all or that one, and checks of the rest; delete the files of dead ones."""
    alive: list[files.Found] = []
    checks: list[Check] = []
    for folder in files.folders():
        try:
            gone = files.clear(folder)
            alive += [one for one in files.read(folder) if pid is None or one.path.name.startswith(f"{pid}-")]
        except OSError as error:
            fix = "run this as the user of the service, or as root"
            checks.append(Check("processes", WARN, f"{folder} cannot be read: {error.strerror}", fix))
            continue
        if gone:
            status = f"{gone} of a process that was killed" if gone == 1 else f"{gone} of ended processes"
            checks.append(Check("processes", OK, f"deleted files: {status}"))
    if not alive:
        checks.append(_none(pid))
    return alive, checks


def _none(pid: int | None) -> Check:
    if pid is None:
        shown = ", ".join(map(str, files.folders())) or "STAGETRACE_STATUS=0"
        return Check("processes", OK, f"no traced process of this user serves here (looked in {shown})")
    fix = "without --pid all are shown; a process reports once it serves with STAGETRACE=1, to its own user and to root"
    return Check("processes", FAIL, f"there is no traced process {pid}", fix)
