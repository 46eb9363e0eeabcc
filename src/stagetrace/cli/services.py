"""`stagetrace services`: the services that have spans in the store."""

from __future__ import annotations

import argparse
from typing import Final

from stagetrace.cli.arguments import JSON, STORE, store_url
from stagetrace.cli.output import show_result
from stagetrace.store import open_store

DESCRIPTION: Final = "List the services that have spans in the store, whatever their age."
EXAMPLE: Final = "stagetrace services --store jaeger://localhost:16685"
OPTIONS: Final = (STORE, JSON)


def run(args: argparse.Namespace) -> int:
    """Print the services and return the exit code."""
    with open_store(store_url(args)) as reader:
        services = reader.services()
    nothing = "The store holds no spans of any service yet."
    return show_result(args, {"services": list(services)}, services or (nothing,))
