"""All views of the page, in the order of its menu. A new one is a module here and a line below."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stagetrace.page.views import answers, board, breaches, compare, doctor, heatmap, services, stages, tail, trace

if TYPE_CHECKING:
    from stagetrace.page.base import View

VIEWS: Final[tuple[View, ...]] = (
    board.VIEW,
    heatmap.VIEW,
    stages.VIEW,
    breaches.VIEW,
    trace.VIEW,
    compare.VIEW,
    answers.VIEW,
    answers.ONE,
    tail.VIEW,
    doctor.VIEW,
    services.VIEW,
)
