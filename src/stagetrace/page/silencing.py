"""The board's button by which the alerts of an objective are silent for a time."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import anyio.to_thread
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from stagetrace.backend.refusal import MALFORMED, Refused
from stagetrace.errors import StagetraceError
from stagetrace.page.login import check_origin, own_path, read_form
from stagetrace.page.templates import HEADERS, document

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

PATH: Final = "/board/silence"
CHOICES: Final = {3600: "1 h", 8 * 3600: "8 h", 86_400: "1 day", 7 * 86_400: "7 days"}  # by seconds


def route(silence: Callable[[str, str, float], object], changed: Callable[[], None]) -> Route:
    """Return the route that takes the form; `changed` is called once it is done. A page of ours must have sent it."""

    async def respond(request: Request) -> Response:
        try:
            check_origin(request.headers)
            fields = await read_form(request)
            seconds = fields.get("seconds", "")
            if not (seconds.isascii() and seconds.isdigit() and len(seconds) < 10):  # noqa: PLR2004
                raise Refused(MALFORMED, "this form says not for how long\nuse the button of the board")  # noqa: TRY301
            objective, service = fields.get("objective", ""), fields.get("service", "")
            await anyio.to_thread.run_sync(silence, objective, service, float(seconds))
        except Refused as refused:
            return _fault(refused.kind.status, refused.message)
        except StagetraceError as error:
            return _fault(MALFORMED.status, str(error))
        changed()
        return RedirectResponse(own_path(fields.get("next", "/board")), 303, headers=HEADERS)

    return Route(PATH, respond, methods=["POST"])


def _fault(status: int, message: str) -> Response:
    return document("fault.html", status, title=HTTPStatus(status).phrase, message=message, has_way=True)
