"""Status files: one for each recording process, which writes it; `stagetrace doctor` reads it.

Files are 0600 in a folder of 0700. A file is replaced as a whole, removed when its process ends, and cleared by
any process that finds that its process is gone.
"""

from __future__ import annotations

import json
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace import settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from stagetrace.policy.objective import Objective

_NAME: Final = "stagetrace"
_SUFFIX: Final = ".json"
_MOST_BYTES: Final = 1 << 20
_MOST_OBJECTIVES: Final = 50


class Identity(NamedTuple):
    """Identifies a process among all that had its number; 0 and "" where the system does not report it."""

    pid: int
    ticks: int  # of the kernel's clock, when it started
    namespace: str  # in which the number holds: containers have their own

    @property
    def name(self) -> str:
        """The name of its file."""
        return f"{self.pid}-{self.ticks}{_SUFFIX}"


class Found(NamedTuple):
    """One file: its content (None if it cannot be read), and whether its process lives (None if that is unknown)."""

    path: Path
    status: dict[str, Any] | None
    alive: bool | None


def myself() -> Identity:
    """Return this process's identity."""
    pid = os.getpid()
    return Identity(pid, _ticks(pid) or 0, _namespace())


def folder() -> Path | None:
    """Return the folder for this process's file; None where none is wanted, or the system has no user ids."""
    if not hasattr(os, "geteuid"):
        return None
    given = settings.STATUS.read()
    if given:
        try:
            return None if given.lower() in settings.OFF else Path(given).expanduser().absolute()
        except RuntimeError:  # there is no such home folder
            return None
    runtime = settings.RUNTIME_DIR.read()
    with suppress(OSError):
        # Under `sudo` it may belong to another user.
        if runtime and Path(runtime).stat().st_uid == os.geteuid():
            return Path(runtime, _NAME)
    return _temporary(settings.TMPDIR.read())  # in a folder of its own, whose owner is checked


def _temporary(parent: str) -> Path:
    return Path(parent, f"{_NAME}-{os.geteuid()}")


def folders() -> list[Path]:
    """Return where files of this user's processes may be; for root, those of all users."""
    own = folder()
    if own is None or settings.STATUS.read():
        return [] if own is None else [own]
    runtime = settings.RUNTIME_DIR.read() or f"/run/user/{os.geteuid()}"
    found = [own, Path(runtime, _NAME), _temporary("/tmp")]  # noqa: S108
    if os.geteuid() == 0:
        found += [*Path("/run/user").glob(f"*/{_NAME}"), *Path("/tmp").glob(f"{_NAME}-*")]  # noqa: S108
    return [path for path in dict.fromkeys(found) if not path.is_symlink()]


def write(into: Path, me: Identity, text: str) -> None:
    """Replace this process's file. Raise OSError where that cannot be, or the folder is not ours alone."""
    into.mkdir(mode=0o700, parents=True, exist_ok=True)
    about = into.lstat()
    if not settings.STATUS.read() and (
        not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid() or about.st_mode & 0o077
    ):
        raise PermissionError(f"{into} belongs to others, or is open to them")
    new = into / f".{me.name}.tmp"
    with suppress(FileNotFoundError):
        new.unlink()
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        new.rename(into / me.name)
    except OSError:
        with suppress(OSError):
            new.unlink()
        raise


def remove(out_of: Path, me: Identity) -> None:
    """Remove this process's file, if it is there."""
    with suppress(OSError):
        (out_of / me.name).unlink()


def read(out_of: Path) -> Iterator[Found]:
    """Yield the files in a folder; none where there is no such folder. Raise OSError if it cannot be read."""
    try:
        paths = sorted(out_of.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return
    namespace = _namespace()
    for path in paths:
        pid, _, ticks = path.stem.partition("-")
        if path.suffix != _SUFFIX or not (pid.isdigit() and ticks.isdigit()):
            continue
        status = _content(path)
        is_foreign = status is not None and status.get("namespace") != namespace
        yield Found(path, status, None if is_foreign else _alive(int(pid), int(ticks)))


def clear(out_of: Path) -> int:
    """Remove the files of processes that are gone; return how many that were."""
    gone = [found.path for found in read(out_of) if found.alive is False]
    for path in gone:
        with suppress(OSError):
            path.unlink()
    return len(gone)


def objective_text(objective: Objective) -> str:
    """Return an objective as a policy would write it, with what it leaves to the defaults."""
    return f"{objective.name} for {objective.target_text}"


def objective_texts(objectives: Sequence[Objective]) -> list[str]:
    """Return the first ones of a policy, and how many more there are."""
    shown = [objective_text(one) for one in objectives[:_MOST_OBJECTIVES]]
    more = len(objectives) - len(shown)
    return [*shown, f"{more} more"] if more else shown


def samples_all(sampler: str | None) -> bool:
    """Return whether a head sampler, as OpenTelemetry describes it, keeps all requests that no caller decided on."""
    return sampler is None or sampler.startswith(("AlwaysOnSampler", "ParentBased{root:AlwaysOnSampler"))


def _content(path: Path) -> dict[str, Any] | None:
    try:
        # Root reads the folders of other users: it follows none of their links and waits for none of their pipes.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            content = json.loads(file.read(_MOST_BYTES), parse_constant=_no_number)
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


def _alive(pid: int, ticks: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    now = _ticks(pid)
    return now is None or now == ticks or not ticks


def _ticks(pid: int) -> int | None:
    """Return when a process started, 0 if it has ended and is not waited for; None where that is not reported."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].split()
        return 0 if fields[0] == b"Z" else int(fields[19])
    except (OSError, ValueError, IndexError):
        return None


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")  # noqa: PTH115 -- no path, a name
    except OSError:
        return ""
