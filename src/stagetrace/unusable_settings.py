"""Which of the user's OTEL_* variables OpenTelemetry cannot use: what it raises then is no fault of ours."""

from __future__ import annotations

import re

from stagetrace import config


def unusable(error: BaseException) -> str | None:
    """Return the variable, as `NAME=value`, for which OpenTelemetry raised this; None if it is about something else.

    Its own code has raised it, and the message has the variable's name, or a part of its value. Headers, which may be
    secret, are but named.
    """
    if not isinstance(error, ValueError) or not _raised_in(error).startswith("opentelemetry."):
        return None
    message = str(error)
    variables = {name: text for name, text in config.otel_variables().items() if text.strip()}
    for name in sorted(variables, key=len, reverse=True):
        if name in message:
            return _shown(name, variables[name])
    parts = [(part.strip(), name) for name, text in variables.items() for part in text.split(",") if part.strip()]
    found = [(len(part), name) for part, name in parts if _is_in(message, part)]
    return _shown(name := max(found)[1], variables[name]) if found else None


def _is_in(message: str, part: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(part)}(?!\w)", message) is not None


def _shown(name: str, value: str) -> str:
    return name if name.endswith("_HEADERS") else f"{name}={value}"


def _raised_in(error: BaseException) -> str:
    """Return the module whose code raised it."""
    traceback, module = error.__traceback__, ""
    while traceback is not None:
        module = str(traceback.tb_frame.f_globals.get("__name__"))
        traceback = traceback.tb_next
    return module
