"""Links from a line of code to an editor or a repository. Path and version are of spans, so they are anybody's text."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote, urlsplit

from stagetrace.process_status import files

EDITOR: Final = "vscode://file/{path}:{line}"
_WEB: Final = ("http", "https")
_EDITORS: Final = ("vscode", "vscode-insiders", "vscodium", "cursor", "windsurf", "zed", "idea", "pycharm", "txmt")
_NAMES: Final = ("path", "line", "version")
_PLACE: Final = re.compile(r"(?P<path>[^\x00-\x1f\x7f\\]{1,400}):(?P<line>\d{1,7})(?: in .*)?", re.DOTALL)
_KNOWN_S: Final = 10.0  # for how long the folders of processes are not looked up anew


class Source(NamedTuple):
    """A template of URLs, and the folders in which files are looked for where an editor is to open them."""

    template: str
    folders: Callable[[], Sequence[Path]] = lambda: ()

    def url(self, code: str | None, version: str | None = None) -> str | None:
        """Return the URL of `app.py:41 in predict` in a release; None where there is none that is well-formed."""
        place = _PLACE.fullmatch(code or "")
        if place is None or not self.template:
            return None
        path: str | None = place["path"]
        if not _is_within(place["path"]):
            return None
        if urlsplit(self.template).scheme not in _WEB:
            path = self._on_this_machine(place["path"])
        if path is None or ("{version}" in self.template and not _is_name(version)):
            return None
        values = {
            "path": quote(path.removeprefix("/")),
            "line": place["line"],
            "version": quote(version or "", safe=""),
        }
        return re.sub(r"\{(\w+)\}", lambda found: values[found[1]], self.template)

    def _on_this_machine(self, path: str) -> str | None:
        """Return where a file is, by the working directories in which services may run."""
        return next((str(folder / path) for folder in self.folders() if (folder / path).is_file()), None)


NO_SOURCE: Final = Source("")


def template(text: str) -> str:
    """Return a template of URLs as it is. Raise ValueError with what to write."""
    try:
        parts = urlsplit(text)
    except ValueError:
        parts = urlsplit("")
    is_web = parts.scheme in _WEB and bool(parts.netloc) and "{" not in parts.netloc
    names = re.findall(r"\{(.*?)\}", text)
    if not (is_web or parts.scheme in _EDITORS) or not {"path"} <= set(names) <= set(_NAMES):
        wanted = "write https://HOST/ORG/REPO/blob/{version}/{path}#L{line}, or that of an editor"
        raise ValueError(f"{text!r} is no URL of a line of code: {wanted}, such as {EDITOR}")
    if not re.fullmatch(r"[!-~]+", text) or any(character in text for character in "<>\"'`\\"):
        raise ValueError(f"{text!r} has characters that a URL has not")
    return text


class Folders:
    """The working directories of this process and of the traced ones of this machine, as far as they may be seen."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: tuple[float, Sequence[Path]] = (0.0, ())  # until when; replaced as a whole

    def __call__(self) -> Sequence[Path]:
        """Return them, looked up a few seconds ago at most."""
        until, found = self._known
        if self._clock() >= until:
            found = tuple(dict.fromkeys([Path.cwd(), *_of_processes()]))
            self._known = (self._clock() + _KNOWN_S, found)
        return found


def _of_processes() -> list[Path]:
    found: list[Path] = []
    for folder in files.folders():
        with suppress(OSError, ValueError):  # of another user, or gone
            living = [one.path.name.partition("-")[0] for one in files.read(folder) if one.alive]
            found += [Path(f"/proc/{int(pid)}/cwd").readlink() for pid in living]
    return found


def _is_within(path: str) -> bool:
    """Return whether a path leads down from where it begins."""
    return not path.startswith(("<", "~")) and not {"", ".", ".."} & set(path.split("/"))


def _is_name(version: str | None) -> bool:
    return bool(version) and len(version or "") <= 200 and version not in (".", "..") and str(version).isprintable()  # noqa: PLR2004
