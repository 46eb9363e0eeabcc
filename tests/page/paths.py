"""The paths of all views and of their parts, of those too whose path has parameters."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from page.data import HOSTILE_TRACE
from stagetrace.page.views import VIEWS
from stagetrace.page.views.answers import QUESTIONS

if TYPE_CHECKING:
    from stagetrace.page.base import View

_VALUES: Final = {"trace_id": (HOSTILE_TRACE,), "verb": tuple(QUESTIONS)}


def paths(view: View, value: str = "") -> list[str]:
    """Return the paths of a view, with what its parameter may be, or with this value."""
    names = re.findall(r"{(\w+)}", view.path)
    if not names:
        return [view.path]
    (name,) = names
    return [view.path.replace(f"{{{name}}}", one) for one in ((value,) if value else _VALUES[name])]


# One path of each view, and all of them.
SHELLS: Final = ["/", *(paths(view)[0] for view in VIEWS)]
PARTS: Final = [f"{paths(view)[0]}/{name}" for view in VIEWS for name in view.parts]
ALL_SHELLS: Final = [path for view in VIEWS for path in paths(view)]
ALL_PARTS: Final = [f"{path}/{name}" for view in VIEWS for path in paths(view) for name in view.parts]
