"""The tables of the docs that follow from the code: docs/cli.md, docs/attributes.md and docs/causes.md.

`PYTHONPATH=src python tests/cli/reference.py` writes them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from stagetrace import semconv
from stagetrace.cli.main import parser_for
from stagetrace.cli.registry import VERBS, load
from stagetrace.columns import REQUESTS, SCHEMA, SPANS, Column
from stagetrace.sla.cause import CAUSES as WORDS

PAGE = Path(__file__).parent.parent.parent / "docs" / "cli.md"
BEGIN = "<!-- begin of what tests/cli/reference.py writes -->\n"
END = "<!-- end of what tests/cli/reference.py writes -->\n"
BEGIN_RELATIONS = "<!-- begin of the relations -->\n"
END_RELATIONS = "<!-- end of the relations -->\n"
ATTRIBUTES = PAGE.parent / "attributes.md"
BEGIN_ATTRIBUTES = "<!-- begin of the attributes -->\n"
END_ATTRIBUTES = "<!-- end of the attributes -->\n"
BEGIN_COLUMNS = "<!-- begin of the columns -->\n"
END_COLUMNS = "<!-- end of the columns -->\n"
CAUSES = PAGE.parent / "causes.md"
BEGIN_CAUSES = "<!-- begin of the causes -->\n"
END_CAUSES = "<!-- end of the causes -->\n"


def reference() -> str:
    """Return a section for each verb: description, arguments, example."""
    return "\n".join(_section(verb) for verb in VERBS)


def relations() -> str:
    """Return a table for each relation: columns, types, and the attribute that a column holds."""
    parts = []
    for name in (REQUESTS, SPANS):
        shown = [one for one in SCHEMA if name in one.relations]
        rows = [f"| `{_name_in(name, one)}` | {one.type} | {_source(one)} |" for one in shown]
        parts += [f"`{name}`:", "", "| column | type | holds |", "|---|---|---|", *rows, ""]
    return "\n".join(parts)


def columns() -> str:
    """Return a table of the attributes that have a column."""
    rows = []
    for one in SCHEMA:
        if one.attribute is not None and one.relations:
            names = {f"`{_name_in(relation, one)}`": None for relation in one.relations}
            where = " and ".join(f"`{relation}`" for relation in one.relations)
            rows.append(f"| {_source(one)} | {', '.join(names)} | {one.type} | {where} |")
    return "\n".join(["| attribute | column | type | of |", "|---|---|---|---|", *rows, ""])


def _name_in(relation: str, column: Column) -> str:
    return column.in_requests or column.name if relation == REQUESTS else column.name


def _source(column: Column) -> str:
    """Return what a column holds: an attribute, or what the schema says."""
    if column.attribute is None:
        return column.holds
    older = column.holds or (f"else `{column.older}`" if column.older else "")
    return f"`{column.attribute}`{older and ', '}{older}"


def page(text: str) -> str:
    """Return the page with the reference and the relations in their places."""
    text = _replaced(text, BEGIN, END, reference())
    return _replaced(text, BEGIN_RELATIONS, END_RELATIONS, relations())


def attributes(text: str) -> str:
    """Return the page of the attributes with both its tables in their place."""
    rows = [f"| `{one.name}` | {one.kind} | {one.description} |" for one in semconv.ATTRIBUTES.values()]
    table = "\n".join(["| attribute | type | on |", "|---|---|---|", *rows, ""])
    text = _replaced(text, BEGIN_ATTRIBUTES, END_ATTRIBUTES, table)
    return _replaced(text, BEGIN_COLUMNS, END_COLUMNS, columns())


def causes(text: str) -> str:
    """Return the page of the causes with its table in its place."""
    rows = [f"| `{one.word}` | {one.meaning} | {one.source or '-'} |" for one in WORDS.values()]
    head = ["| cause | the part of the request's time behind it | source |", "|---|---|---|"]
    return _replaced(text, BEGIN_CAUSES, END_CAUSES, "\n".join([*head, *rows, ""]))


PAGES = {PAGE: page, ATTRIBUTES: attributes, CAUSES: causes}


def _replaced(text: str, begin: str, end: str, content: str) -> str:
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{content}\n{end}{after}"


def arguments(verb: str) -> list[argparse.Action]:
    """Return what a verb takes, without --help."""
    commands = next(one for one in parser_for(verb)._actions if isinstance(one, argparse._SubParsersAction))
    parser: argparse.ArgumentParser = commands.choices[verb]
    return [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]


def _section(verb: str) -> str:
    module = load(verb)
    rows = [f"| {_name(action)} | {_meaning(action)} |" for action in arguments(verb)]
    table = ["| argument | meaning |", "|---|---|", *rows]
    example = ["```", module.EXAMPLE, "```", ""]
    return "\n".join([f"## `stagetrace {verb}`", "", module.DESCRIPTION.strip(), "", *table, "", *example])


def _meaning(action: argparse.Action) -> str:
    """Return a help text as `--help` prints it: argparse formats it with `%`, so it has `%%` for a percent sign."""
    return (action.help or "") % {**vars(action), "prog": "stagetrace"}


def _name(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{action.metavar or action.dest}`"
    value = "" if action.nargs == 0 else f" {action.metavar or action.dest.upper()}"
    return f"`{action.option_strings[-1]}{value}`"


if __name__ == "__main__":
    for path, written in PAGES.items():
        path.write_text(written(path.read_text(encoding="utf-8")), encoding="utf-8")
