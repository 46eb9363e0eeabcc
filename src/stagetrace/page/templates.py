"""What the page is made of: templates, in which all is escaped, files that never change, headers of responses."""

from __future__ import annotations

import gzip
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, Response

from stagetrace import __version__, semconv
from stagetrace.causes.cause import CAUSES, UNKNOWN
from stagetrace.output.chart import Chart
from stagetrace.output.html import chart_table, svg, table
from stagetrace.output.table import Table
from stagetrace.output.units import UTC, Zone, milliseconds, percent, q_value, threshold
from stagetrace.text import printable

if TYPE_CHECKING:
    from starlette.requests import Request

# --- Files of the page that never change: scripts, styles, the libraries in `static/vendor`. Read once, compressed.

PATH: Final = "/static"
_STATIC: Final = Path(__file__).parent / "static"
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
        path.relative_to(_STATIC).as_posix(): path.read_bytes()
        for path in sorted(_STATIC.rglob("*"))
        if path.suffix in _TYPES
    }
    made = sha256(b"".join(sha256(name.encode() + body).digest() for name, body in bodies.items())).hexdigest()[:12]
    return {
        name: File(body, gzip.compress(body, 9, mtime=0), _TYPES[Path(name).suffix], f"{PATH}/{made}/{name}")
        for name, body in bodies.items()
    }


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


_TEMPLATES: Final = Path(__file__).parent / "templates"


# --- The templates of the page. Whatever they show is escaped: names and attributes of spans are anybody's text.


@cache
def environment() -> Environment:
    """Return the environment of all templates."""
    made = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        finalize=_finalized,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters |= {
        "ms": milliseconds,
        "threshold": threshold,
        "percent": percent,
        "q_value": q_value,
        "number": lambda value: f"{value:,.0f}",
    }
    made.globals |= {"static": address, "version": __version__, "drawn": drawn}
    made.globals |= {"stage_class": stage_class, "cause_icon": cause_icon}
    return made


def render(template: str, **values: Any) -> str:
    """Return a template filled in."""
    return environment().get_template(template).render(values)


def drawn(part: str | Table | Chart, zone: Zone = UTC) -> Markup:
    """Return a part of an answer as HTML: a line, a table, or a picture with its values."""
    if isinstance(part, str):
        return Markup("<p>{}</p>").format(printable(part)) if part else Markup()
    # Both escape what they show.
    if isinstance(part, Table):
        return Markup(table(part))  # noqa: S704
    values = table(chart_table(part, zone))
    return Markup(f"{svg(part, zone)}<details><summary>Values</summary>{values}</details>\n")  # noqa: S704


def stage_class(stage: str | None) -> str:
    """Return the class that gives an element the colour of a stage, as `--stage`."""
    return f"stage-{stage.replace('.', '-') if stage in semconv.STAGES else 'other'}"


def cause_icon(cause: str | None) -> Markup:
    """Return the icon of a cause, which stands before its word: colours are of stages alone."""
    name = cause if cause in CAUSES and f'id="{cause}"'.encode() in files()["causes.svg"].body else UNKNOWN
    return Markup('<svg class="icon" viewBox="0 0 16 16" aria-hidden="true"><use href="{}#{}"/></svg>').format(
        address("causes.svg"), name
    )


def _finalized(value: Any) -> Any:
    """Return a value as it is to be escaped: text with the characters written out that do not show."""
    if value is None:
        return "-"
    return printable(value) if type(value) is str else value


HEADERS: Final = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    "object-src 'none'",
    # With `no-referrer` browsers send `Origin: null` with the forms for logging in and out.
    "referrer-policy": "same-origin",
}


def document(template: str, status: int, **values: Any) -> HTMLResponse:
    """Return a document of its own."""
    return HTMLResponse(render(template, **values), status, headers=HEADERS)


def fragment(message: str, status: int, **values: Any) -> HTMLResponse:
    """Return an error in the place of a part."""
    return HTMLResponse(render("error.html", message=message, **values), status, headers=HEADERS)
