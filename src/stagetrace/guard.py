"""Keep our own errors away from the application: logged once, counted, swallowed; a hook that keeps failing ends."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

from stagetrace import log

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
R = TypeVar("R")

LIMIT: Final = 10
_HOOKS: Final = "stagetrace.instrumentation."

failures: dict[str, int] = {}
_switches: dict[str, Switch] = {}


class Switch:
    """Whether a hook is out of use. Its wrappers look at `off` first and then only call the original."""

    __slots__ = ("hook", "off")

    def __init__(self, hook: str) -> None:
        self.hook = hook
        self.off = False


def switch(hook: str) -> Switch:
    """Return the one switch of a hook, named as its module."""
    found = _switches.get(hook)
    if found is None:
        found = _switches.setdefault(hook, Switch(hook))
    return found


def switched_off() -> list[str]:
    """Return the hooks that are out of use since one place of theirs failed LIMIT times."""
    return sorted(name for name, one in list(_switches.items()) if one.off)


def report(where: str, error: BaseException, hook: Switch | None = None) -> None:
    """Count an error of ours and say it once for each place; never raises.

    At a place that fails LIMIT times its hook is switched off: `hook`, else the one that `where` names, if it is one.
    """
    count = failures[where] = failures.get(where, 0) + 1
    if count > LIMIT:  # said often enough, and a traceback costs more than all the rest
        return
    ends = count == LIMIT and _switch_off(hook or _switches.get(where))
    try:
        _say(where, error)
        log.debug(_traceback(error))
        if ends:
            log.error(f"{where} failed {LIMIT} times: its hook is switched off in this process, all else goes on.")
    except Exception:  # noqa: BLE001, S110 -- a closed stderr must not become the service's problem
        pass


def _say(where: str, error: BaseException) -> None:
    if say_unusable(error):
        return
    log.once(
        where,
        f"{where} failed ({_what(error)}); the request goes on without it.\n"
        "This is a fault of stagetrace, not of your service: please report it. STAGETRACE=0 switches it off.",
    )


def _what(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"


def say_unusable(error: BaseException) -> bool:
    """Return whether an error is that OpenTelemetry cannot use a variable, which is said once."""
    try:
        from stagetrace.unusable_settings import unusable
    except Exception:  # noqa: BLE001 -- what is to be said is said
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


def _switch_off(hook: Switch | None) -> bool:
    """Return whether that was a hook in use."""
    if hook is None or hook.off:
        return False
    hook.off = True
    return True


def _traceback(error: BaseException) -> str:
    import traceback

    return "".join(traceback.format_exception(error))


def guarded(function: Callable[P, R]) -> Callable[P, R | None]:
    """Return `function` made harmless: any Exception is reported and None is returned.

    A function of a hook also returns None, uncalled, once its hook is switched off.
    """
    if not function.__module__.startswith(_HOOKS):
        return guarded_end(function)
    where, hook = _place(function), switch(function.__module__)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R | None:
        if hook.off:
            return None
        try:
            return function(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 -- the point of this function
            report(where, error, hook)
            return None

    return call


def guarded_end(function: Callable[P, R]) -> Callable[P, R | None]:
    """Do as `guarded`, for what ends or gives back what a hook began: it is called even when that is switched off."""
    where = _place(function)
    hook = switch(function.__module__) if function.__module__.startswith(_HOOKS) else None

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R | None:
        try:
            return function(*args, **kwargs)
        except Exception as error:  # noqa: BLE001
            report(where, error, hook)
            return None

    return call


def _place(function: Callable[..., object]) -> str:
    return f"{function.__module__}.{function.__qualname__}"
