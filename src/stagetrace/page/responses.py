"""Responses of the page: their headers, and documents that are no view."""

from __future__ import annotations

from typing import Any, Final

from starlette.responses import HTMLResponse

from stagetrace.page.templates import render

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
