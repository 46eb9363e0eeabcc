"""Keep our own errors away from the application: logged once, counted, swallowed."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from stagetrace import log

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
R = TypeVar("R")

failures: dict[str, int] = {}


def report(where: str, error: BaseException) -> None:
    """Count an error of ours and say it once for each place; never raises."""
    failures[where] = failures.get(where, 0) + 1
    try:
        log.once(
            where,
            f"{where} failed ({type(error).__name__}: {str(error)[:200]}); the request goes on without it.\n"
            "This is a fault of stagetrace, not of your service: please report it. STAGETRACE=0 switches it off.",
        )
        log.debug(_traceback(error))
    except Exception:  # noqa: BLE001, S110 -- a closed stderr must not become the service's problem
        pass


def _traceback(error: BaseException) -> str:
    import traceback

    return "".join(traceback.format_exception(error))


def guarded(function: Callable[P, R]) -> Callable[P, R | None]:
    """Return `function` made harmless: any Exception is reported and None is returned."""
    where = f"{function.__module__}.{function.__qualname__}"

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R | None:
        try:
            return function(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 -- the point of this function
            report(where, error)
            return None

    return call
