"""One-line messages to stderr, under the logger `stagetrace` and as STAGETRACE_LOG sets (default `info`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stagetrace import settings
from stagetrace.text import (
    TRACEBACK,  # here and not later: an import that fails is logged by these
    bounded,  # here and not later: an import that fails is logged by these
    redacted,
)

if TYPE_CHECKING:
    import logging

LEVELS = ("off", "error", "warning", "info", "debug")
_logged: set[str] = set()
_logger: logging.Logger | None = None


def _get() -> logging.Logger:
    # `logging` costs 5-10 ms to import: not before there is something to log.
    global _logger  # noqa: PLW0603
    if _logger is None:
        import logging

        logger = logging.getLogger("stagetrace")
        asked = settings.LOG.read().lower()
        level = asked if asked in LEVELS else "info"
        if not logger.handlers:
            logger.addHandler(_stderr_handler())
            logger.propagate = False
        logger.setLevel(logging.CRITICAL + 1 if level == "off" else level.upper())
        _logger = logger
        if level != asked:
            logger.warning("STAGETRACE_LOG=%s is not a level; using info. Use one of: %s.", asked, ", ".join(LEVELS))
    return _logger


class _Redacted:
    """A message whose credentials are redacted if it is written: those in the URL of a receiver, or in an error."""

    def __init__(self, message: str) -> None:
        self._message = message

    def __str__(self) -> str:
        return redacted(self._message)


def _stderr_handler() -> logging.Handler:
    import contextlib
    import logging
    import sys

    class ToStderr(logging.Handler):
        """Writes to what is stderr at that moment: a service may replace or close it."""

        def emit(self, record: logging.LogRecord) -> None:
            with contextlib.suppress(Exception):  # nowhere is left to log it
                limits = TRACEBACK if record.levelno == logging.DEBUG else ()
                sys.stderr.write(f"stagetrace: {bounded(record.getMessage(), *limits)}\n")

    return ToStderr()


def debug(message: str) -> None:
    """Log what only a person who looks for a fault wants to know."""
    _get().debug("%s", _Redacted(message))


def info(message: str) -> None:
    """Log what works as it should."""
    _get().info("%s", _Redacted(message))


def warning(message: str) -> None:
    """Log what is probably not as the person meant it."""
    _get().warning("%s", _Redacted(message))


def error(message: str) -> None:
    """Log what failed, why, and what fixes it."""
    _get().error("%s", _Redacted(message))


def once(key: str, message: str) -> None:
    """Log `message` as an error the first time that this process uses `key`."""
    if key not in _logged:
        _logged.add(key)
        error(message)
