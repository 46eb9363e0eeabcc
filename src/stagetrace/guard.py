"""Keep our own errors away from the application: log once, count, swallow; switch off a patch that keeps failing."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

from stagetrace import log

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
R = TypeVar("R")

LIMIT: Final = 10
_OURS: Final = "stagetrace."
_PATCHES: Final = ("stagetrace.instrumentation.", "stagetrace.patches.", "stagetrace.protocols.")

failures: dict[str, int] = {}
_switches: dict[str, Switch] = {}


class Switch:
    """Whether a patch, named as its module, is switched off: then its wrappers do no more than call the original."""

    __slots__ = ("name", "off")

    def __init__(self, name: str) -> None:
        self.name = name
        self.off = False


def switch(name: str) -> Switch:
    """Return the one switch of a patch."""
    found = _switches.get(name)
    if found is None:
        found = _switches.setdefault(name, Switch(name))
    return found


def switched_off() -> list[str]:
    """Return the names of the patches that are switched off, since one place of theirs failed LIMIT times."""
    return sorted(name for name, one in list(_switches.items()) if one.off)


def report(where: str, error: BaseException, patch: Switch | None = None) -> None:
    """Count an error of ours and log it once for each place; never raises.

    After LIMIT failures at one place its patch is switched off: `patch`, else the one that `where` names, if any.
    """
    count = failures[where] = failures.get(where, 0) + 1
    if count > LIMIT:  # logged before, and a traceback costs more than all the rest
        return
    ends = count == LIMIT and _switch_off(patch or _switches.get(where))
    try:
        _log(where, error)
        log.debug(_traceback(error))
        if ends:
            log.error(f"{where} failed {LIMIT} times: its patch is switched off in this process, all else goes on.")
    except Exception:  # noqa: BLE001, S110 -- a closed stderr must not become the service's problem
        pass


def _log(where: str, error: BaseException) -> None:
    if log_unusable(error):
        return
    log.once(
        where,
        f"{where} failed ({_what(error)}); the request goes on without it.\n"
        "This is a fault of stagetrace, not of your service: please report it. STAGETRACE=0 switches it off.",
    )


def _what(error: BaseException) -> str:
    from stagetrace.text import printable, redacted_start

    return printable(f"{type(error).__name__}: {redacted_start(str(error), 200)}")


def log_unusable(error: BaseException) -> bool:
    """Return whether an error is that OpenTelemetry cannot use a variable; that is logged once."""
    try:
        from stagetrace.settings import unusable
    except Exception:  # noqa: BLE001 -- then the error itself is logged
        return False
    variable = unusable(error)
    if variable is None:
        return False
    log.once(
        variable,
        f"OpenTelemetry cannot use {variable[:200]} ({_what(error)}); requests are not recorded as they should be.\n"
        "Correct it, or install what it names; the service itself is not affected.",
    )
    return True


def _switch_off(patch: Switch | None) -> bool:
    """Switch a patch off; return whether it was on."""
    if patch is None or patch.off:
        return False
    patch.off = True
    return True


def _traceback(error: BaseException) -> str:
    import traceback

    return "".join(traceback.format_exception(error))


def guarded(function: Callable[P, R]) -> Callable[P, R | None]:
    """Return `function` made harmless: any Exception is reported and None is returned.

    A function of a patch also returns None, uncalled, once its patch is switched off.
    """
    if not _is_of_patch(function):
        return guarded_end(function)
    where, patch = _place(function), switch(function.__module__)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R | None:
        if patch.off:
            return None
        try:
            return function(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 -- the point of this function
            report(where, error, patch)
            return None

    return call


def guarded_end(function: Callable[P, R]) -> Callable[P, R | None]:
    """Do as `guarded`, for a function that ends what a patch began: called even when the patch is switched off."""
    where = _place(function)
    patch = switch(function.__module__) if _is_of_patch(function) else None

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R | None:
        try:
            return function(*args, **kwargs)
        except Exception as error:  # noqa: BLE001
            report(where, error, patch)
            return None

    return call


def _is_of_patch(function: Callable[..., object]) -> bool:
    """Return whether a function belongs to a patch: ours, or that of another package."""
    return function.__module__.startswith(_PATCHES) or not function.__module__.startswith(_OURS)


def _place(function: Callable[..., object]) -> str:
    return f"{function.__module__}.{function.__qualname__}"
