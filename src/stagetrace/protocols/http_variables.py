"""What OpenTelemetry's variables for HTTP mean: URLs to exclude, headers to capture, methods to name; and robots.

A test compares all of it with `opentelemetry.util.http`, which a service may have in any version, or not at all.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from stagetrace import settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

# Of RFC 9110, and PATCH and QUERY, which have their own.
METHODS: Final = frozenset(
    ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"),
)
SYNTHETIC: Final = {"alwayson": "test", "googlebot": "bot", "bingbot": "bot"}  # by a text in the user agent
SANITIZED: Final = "[REDACTED]"


def sanitize_method(method: str) -> str:
    """Return a method as the attribute has it: `_OTHER` for one that is not known, unless a variable asks for all."""
    upper = method.upper()
    return upper if upper in METHODS or settings.ALL_METHODS.raw() else "_OTHER"


def synthetic_type(agent: str) -> str | None:
    """Return the kind of a user agent that is no person's; None for others."""
    lower = agent.lower()
    return next((kind for text, kind in SYNTHETIC.items() if text in lower), None)


def listed(text: str | None) -> list[str]:
    """Return the regular expressions in the text of a variable; an empty one counts, and matches like any other."""
    return [part.strip() for part in text.split(",")] if text else []


class ExcludedUrls:
    """The URLs that one of some regular expressions is found in. Raises re.error where one is none."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._found = re.compile("|".join(patterns)).search

    def url_disabled(self, url: str) -> bool:
        """Return whether a URL is excluded; named as in `opentelemetry.util.http`, whose lists are asked likewise."""
        return self._found(url) is not None


def names(patterns: Iterable[str]) -> re.Pattern[str]:
    """Return what finds the names of headers that match one of some regular expressions; raise re.error."""
    return re.compile("|".join(patterns), re.IGNORECASE)


def captured(
    headers: Mapping[str, list[str]], wanted: re.Pattern[str], is_secret: Callable[[str], bool], prefix: str
) -> dict[str, list[str]]:
    """Return the attributes of the headers whose whole names are wanted; the values of secret ones are replaced."""
    return {
        prefix + name.lower().replace("-", "_"): [SANITIZED] * len(values) if is_secret(name) else values
        for name, values in headers.items()
        if wanted.fullmatch(name)
    }
