"""Headers of a request that its entry span carries: of HTTP, and the metadata of an RPC, which are headers too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

# The attribute for the value of a header, by the header's name in lower case.
RECORDED: Final[dict[str, str]] = {}


def header_attributes(header: Callable[[str], str | None]) -> dict[str, str]:
    """Return the attributes of RECORDED that a request has; `header` returns its header of that name, if any."""
    values = ((attribute, header(name)) for name, attribute in RECORDED.items())
    return {attribute: value for attribute, value in values if value is not None}
