"""`stagetrace clickhouse init`: a table of requests beside `otel_traces`, by consent, and its removal."""

from __future__ import annotations

import argparse
from typing import Final

from stagetrace.cli.arguments import JSON, store_option, store_url
from stagetrace.cli.output import Progress, show_result
from stagetrace.cli.registry import Option, UsageError

DESCRIPTION: Final = """Make a table of requests in ClickHouse, which answers then read in place of all spans.

It is `stagetrace_requests`, beside the table of spans; a materialised view fills it, and what is stored already is
filled in, day by day. Nothing else is changed. A second run does what is left to do, and brings a table of an older
version up. The user of the URL needs the rights to create, insert and drop there; all other commands only read."""
EXAMPLE: Final = "stagetrace clickhouse init --store clickhouse://localhost/otel --dry-run"
OPTIONS: Final = (
    store_option("the table of spans: clickhouse://[USER:PASSWORD@]HOST[:PORT]/DATABASE?table=otel_traces"),
    Option("--dry-run", "print the SQL, and change nothing"),
    Option("--remove", "take table and view away again"),
    JSON,
)


def run(args: argparse.Namespace) -> int:
    """Make or remove it, and return the exit code."""
    from stagetrace.store.clickhouse import requests_table
    from stagetrace.store.clickhouse.client import Client, parse
    from stagetrace.store.clickhouse.reader import describe

    url = store_url(args)
    if not url.lower().startswith(("clickhouse://", "clickhouses://")):
        raise UsageError(
            f"clickhouse init needs a table in ClickHouse, and {url} is none\ngive --store clickhouse://..."
        )
    client = Client(parse(url))
    progress = Progress("steps")
    try:
        table = describe(client)
        found = requests_table.removal(table) if args.remove else list(requests_table.steps(client, table))
        if not args.dry_run:
            requests_table.run(client, found, progress)
    finally:
        progress.end()
        client.close()
    keys = {"store": client.address.name, "statements": [step.sql for step in found], "changed": not args.dry_run}
    if args.dry_run:
        return show_result(args, keys, [f"{step.sql};" for step in found])
    if args.remove:
        text = f"{table.database}.{table.requests} and its view are gone."
    else:
        days = sum(step.is_fill for step in found)
        text = f"{table.database}.{table.requests} is filled, of {days} days." if found else "Nothing is left to do."
    return show_result(args, keys, [text])
