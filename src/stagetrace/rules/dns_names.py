"""Names of objects as Kubernetes and OpenSLO allow them (RFC 1123 labels): `POST /predict` becomes `post-predict`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

LONGEST: Final = 63
_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_OTHERS: Final = re.compile(r"[^a-z0-9]+")


def is_label(text: str) -> bool:
    """Return whether a text is such a name."""
    return _LABEL.fullmatch(text) is not None


def label(text: str, default: str, ending: str = "") -> str:
    """Return a name that resembles a text, or `default` where no character of it is allowed.

    `default` stands in front of a single character.
    """
    found = _OTHERS.sub("-", text.lower()).strip("-")
    found = f"{default}-{found}".strip("-") if len(found) <= 1 else found
    return f"{found[: LONGEST - len(ending)].rstrip('-')}{ending}"


def labels(texts: Iterable[str], default: str) -> dict[str, str]:
    """Return a name for each of different texts; those that would be equal are numbered."""
    found: dict[str, str] = {}
    taken: set[str] = set()
    for text in texts:
        name, number = label(text, default), 2
        while name in taken:
            name, number = label(text, default, f"-{number}"), number + 1
        taken.add(name)
        found[text] = name
    return found
