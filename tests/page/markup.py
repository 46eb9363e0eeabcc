"""What a page consists of: nothing in it may come from data but text, and values of attributes."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Final

# Characters that must not be there as they are: they do not show, or turn the direction of text.
_UNSEEN: Final = ("\u202e", "\u2066", "\u200b", "\x1b", "\x9b", "\x07")
_ADDRESSES: Final = ("href", "src", "action", "formaction", "hx-get", "hx-push-url", "data")
_STYLES: Final = ("style",)


class Markup(HTMLParser):
    """Collects what is wrong with HTML that shows hostile text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.wrong: list[str] = []
        self.text = ""
        self._script: str | None = None  # its type
        self.feed(html)
        self.close()
        self.wrong += [f"{one!r} as it is" for one in _UNSEEN if one in html]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        values = dict(attrs)
        self._script = (values.get("type") or "") if tag == "script" else None
        if "evil" in tag or any(name.startswith("on") or "evil" in name or name in _STYLES for name in names):
            self.wrong.append(f"<{tag} {names}>")
        if any("hx-on" in name or name.startswith("js:") for name in names):
            self.wrong.append(f"<{tag} {names}> runs a script")
        if tag in ("iframe", "object", "embed", "base", "style") or (tag == "img" and values.get("src") == "x"):
            self.wrong.append(f"<{tag}>")
        for name in _ADDRESSES:
            address = values.get(name) or ""
            if (address and not address.startswith(("/", "?", "#", "data-"))) or address.startswith(("//", "/\\")):
                self.wrong.append(f"{tag} {name}={address!r} leads elsewhere")

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._script = None

    def handle_data(self, data: str) -> None:
        if self._script is None:
            self.text += data
        elif self._script == "application/json":
            try:
                json.loads(data)
            except ValueError as error:
                self.wrong.append(f"data that is no JSON: {error}")
        elif data.strip():
            self.wrong.append(f"a script in the page: {data[:80]!r}")
