"""Files of the page that never change: scripts, styles, the libraries in `static/vendor`. Read once, compressed."""

from __future__ import annotations

import gzip
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from starlette.exceptions import HTTPException
from starlette.responses import Response

from stagetrace.sla.cause import CAUSES

if TYPE_CHECKING:
    from starlette.requests import Request

PATH: Final = "/static"
_FOLDER: Final = Path(__file__).parent / "static"
_SHEET: Final = "page.css"
_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}


class File(NamedTuple):
    """One file, its address with the hash of the files: it may be kept for ever."""

    body: bytes
    compressed: bytes
    type: str
    address: str


@cache
def files() -> dict[str, File]:
    """Return the files by their path below the folder.

    All have the hash of all: a module that imports another one by its name gets the same instance of it as everybody.
    """
    bodies = {
        path.relative_to(_FOLDER).as_posix(): path.read_bytes()
        for path in sorted(_FOLDER.rglob("*"))
        if path.suffix in _TYPES
    }
    bodies[_SHEET] += cause_colours().encode()
    made = sha256(b"".join(sha256(name.encode() + body).digest() for name, body in bodies.items())).hexdigest()[:12]
    return {
        name: File(body, gzip.compress(body, 9, mtime=0), _TYPES[Path(name).suffix], f"{PATH}/{made}/{name}")
        for name, body in bodies.items()
    }


def cause_colours() -> str:
    """Return what follows from `CAUSES` in the style sheet: a variable with the colour of each cause, and its class."""
    names = {word: f"--{word.replace('_', '-')}" for word in CAUSES}
    light = "; ".join(f"{name}: {CAUSES[word].light}" for word, name in names.items())
    dark = "; ".join(f"{name}: {CAUSES[word].dark}" for word, name in names.items())
    classes = "".join(f".cause-{word} {{ --stage: var({name}) }}\n" for word, name in names.items())
    return f""":root {{ {light} }}
@media (prefers-color-scheme: dark) {{ :root:not([data-theme="light"]) {{ {dark} }} }}
:root[data-theme="dark"] {{ {dark} }}
{classes}"""


def address(name: str) -> str:
    """Return the URL of a file."""
    return files()[name].address


async def respond(request: Request) -> Response:
    """Return a file; of another version of it, too: a page that is open refers to its own."""
    file = files().get(request.path_params["name"])
    if file is None:
        raise HTTPException(404, "there is no such file")
    headers = {"cache-control": "public, max-age=31536000, immutable", "vary": "accept-encoding"}
    if request.url.path != file.address:
        headers["cache-control"] = "no-store"
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(file.compressed, media_type=file.type, headers=headers | {"content-encoding": "gzip"})
    return Response(file.body, media_type=file.type, headers=headers)
