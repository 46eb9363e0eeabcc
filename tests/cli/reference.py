"""The reference part of docs/cli.md, out of the parsers: `PYTHONPATH=src python tests/cli/reference.py` writes it."""

from __future__ import annotations

import argparse
from pathlib import Path

from stagetrace.cli.main import parser_for
from stagetrace.cli.registry import VERBS, load

PAGE = Path(__file__).parent.parent.parent / "docs" / "cli.md"
BEGIN = "<!-- begin of what tests/cli/reference.py writes -->\n"
END = "<!-- end of what tests/cli/reference.py writes -->\n"


def reference() -> str:
    """Return a section for each verb: description, arguments, example."""
    return "\n".join(_section(verb) for verb in VERBS)


def page(text: str) -> str:
    """Return the page with the reference in its place."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{reference()}\n{END}{after}"


def arguments(verb: str) -> list[argparse.Action]:
    """Return what a verb takes, without --help."""
    commands = next(one for one in parser_for(verb)._actions if isinstance(one, argparse._SubParsersAction))
    parser: argparse.ArgumentParser = commands.choices[verb]
    return [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]


def _section(verb: str) -> str:
    module = load(verb)
    rows = [f"| {_name(action)} | {action.help} |" for action in arguments(verb)]
    table = ["| argument | meaning |", "|---|---|", *rows]
    example = ["```", module.EXAMPLE, "```", ""]
    return "\n".join([f"## `stagetrace {verb}`", "", module.DESCRIPTION.strip(), "", *table, "", *example])


def _name(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{action.metavar or action.dest}`"
    value = "" if action.nargs == 0 else f" {action.metavar or action.dest.upper()}"
    return f"`{action.option_strings[-1]}{value}`"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
