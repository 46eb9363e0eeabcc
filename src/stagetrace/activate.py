"""Switch recording on: called by the activation file at interpreter start, or by hand.

Imports nothing but what a bare interpreter has loaded anyway: a process that serves nothing pays for nothing.
"""

from __future__ import annotations


def from_environment() -> None:
    """Activate if STAGETRACE says so. Never raises: the interpreter that starts is not ours."""
    import os

    if os.environ.get("STAGETRACE", "").strip().lower() not in ("", "0", "false"):
        try:
            activate()
        except Exception as error:  # noqa: BLE001
            _report(error)


def _report(error: Exception) -> None:
    try:
        from stagetrace.guard import report
    except Exception:  # noqa: BLE001 -- a broken installation, in which nothing can be logged either
        return
    report("stagetrace.activate", error)


def activate() -> None:
    """Patch the servers and model libraries of the registry, now where imported, else when they are imported.

    Calling it again changes nothing.
    """
    import stagetrace.system.threads  # noqa: F401 -- before others patch what it takes
    from stagetrace.patches.registry import install

    install()
