"""The option `--store`, alike in every verb that reads."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from stagetrace.cli.base import UsageError
from stagetrace.store.url import SCHEMES

if TYPE_CHECKING:
    import argparse

VARIABLE: Final = "STAGETRACE_STORE"


def add_store_option(parser: argparse.ArgumentParser) -> None:
    """Add `--store`."""
    forms = ", ".join(scheme.form for scheme in SCHEMES.values())
    parser.add_argument("--store", metavar="URL", help=f"where to read: {forms}; default: ${VARIABLE}")


def store_url(args: argparse.Namespace) -> str:
    """Return the URL from the option or the environment. Raise UsageError if neither has one."""
    url: str | None = args.store or os.environ.get(VARIABLE)
    if not url:
        raise UsageError(f"no store to read from\ngive --store jaeger://localhost:16685, or set {VARIABLE}")
    return url
