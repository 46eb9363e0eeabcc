"""`stagetrace mcp`: the questions as tools for agents, on stdin and stdout."""

from __future__ import annotations

import argparse
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from stagetrace.cli.arguments import STORE, store_url
from stagetrace.cli.registry import ANSWERED, Option, UsageError
from stagetrace.store import open_store
from stagetrace.system.packages import requirement

DESCRIPTION: Final = """Answer the questions of an agent, or of an editor, by the Model Context Protocol, on stdin and
stdout: one tool a question. It only reads. `stagetrace up` serves the same tools at /mcp, behind its token."""
EXAMPLE: Final = "stagetrace mcp --store local:///data"
OPTIONS: Final = (
    STORE,
    Option(
        "--source DIR",
        "where the code of services is, of which a tool shows the lines at which requests stood; may be repeated; "
        "default: the working directory",
        Path,
        repeats=True,
    ),
)


def run(args: argparse.Namespace) -> int:
    """Serve until stdin ends."""
    if find_spec("mcp") is None:
        raise UsageError(f"agents need the package mcp\npip install {requirement('mcp')}")
    from stagetrace.cli.agents import Agents
    from stagetrace.mcp.server import serve_stdio

    url = store_url(args)
    open_store(url).close()  # a URL that is wrong is reported now, not to the agent
    agents = Agents(url, partial(open_store, url), args.source or [Path.cwd()])
    serve_stdio(agents.tools())
    agents.close()
    return ANSWERED
