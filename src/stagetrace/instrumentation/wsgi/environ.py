"""Headers and texts of a WSGI environ."""

from __future__ import annotations

from typing import Any

OTHERS = ("CONTENT_TYPE", "CONTENT_LENGTH")  # the headers that go without a prefix


def key_of(name: str) -> str:
    """Return under which key of an environ the header of that name is."""
    key = name.upper().replace("-", "_")
    return key if key in OTHERS else f"HTTP_{key}"


def decoded(text: str) -> str:
    """Return what WSGI hands over as if its bytes were latin-1."""
    return text if text.isascii() else text.encode("latin-1").decode(errors="replace")


def header_in(environ: Any, name: str) -> str | None:
    """Return the value of a header of a request, its name in lower case; None if there is no such header."""
    value = environ.get(key_of(name))
    return decoded(value) if value else None
