"""The reference part of docs/cli.md, out of the parsers: `PYTHONPATH=src python tests/cli/reference.py` writes it."""

from __future__ import annotations

import argparse
from pathlib import Path

from stagetrace import semconv
from stagetrace.cli.main import parser_for
from stagetrace.cli.registry import VERBS, load
from stagetrace.store.relations import OLDER, REQUESTS, SPANS, STAGE_COLUMNS, TYPED

PAGE = Path(__file__).parent.parent.parent / "docs" / "cli.md"
BEGIN = "<!-- begin of what tests/cli/reference.py writes -->\n"
END = "<!-- end of what tests/cli/reference.py writes -->\n"
BEGIN_RELATIONS = "<!-- begin of the relations -->\n"
END_RELATIONS = "<!-- end of the relations -->\n"
MEANING = {
    "trace_id": "lower-case hex, 32 digits",
    "span_id": "lower-case hex, 16 digits",
    "parent_span_id": "NULL at a root",
    "service": "the resource's `service.name`",
    "name": "as recorded",
    "kind": "`SERVER`, `CLIENT`, `INTERNAL`, `PRODUCER`, `CONSUMER` or `UNSPECIFIED`",
    "status": "`UNSET`, `OK` or `ERROR`",
    "start_unix_nano": "nanoseconds since 1970 UTC",
    "end_unix_nano": "likewise",
    "duration_ms": "computed from the integer times",
    "is_entry": "whether it is a request: its kind is `SERVER`",
    "attributes": "all of them, in text form: `attributes['tenant']`",
    "resource": "the resource's attributes likewise",
    "weight": "requests it stands for: 1, or 1 / `sampling_probability` where that is known and it is no breach",
    "other_ms": "sum of all other `ml.stage.<name>.ms`",
    "start_time": "`start_unix_nano` in UTC, to the microsecond",
    "url_path": "`url.path`, else `http.target` without its query",
    "stages": "stage to its total in ms, of every `ml.stage.<name>.ms`: `stages['tokenize']`",
}


def reference() -> str:
    """Return a section for each verb: description, arguments, example."""
    return "\n".join(_section(verb) for verb in VERBS)


def relations() -> str:
    """Return a table for each relation: columns, types, and the attribute that a column holds."""
    parts = []
    for name, columns in (("requests", REQUESTS), ("spans", SPANS)):
        rows = [f"| `{column}` | {kind} | {_source(name, column)} |" for column, kind in columns.items()]
        parts += [f"`{name}`:", "", "| column | type | holds |", "|---|---|---|", *rows, ""]
    return "\n".join(parts)


def _source(relation: str, column: str) -> str:
    """Return what a column holds: an attribute, or what MEANING says."""
    if relation == "requests" and column == "stage":
        column = "breach_stage"
    stages = {total: stage for stage, total in STAGE_COLUMNS.items()}
    if column in stages:
        return f"`{semconv.stage_total_ms(stages[column])}`"
    older = f", else `{OLDER[column]}`" if column in OLDER else ""
    return f"`{TYPED[column][0]}`{older}" if column in TYPED else MEANING[column]


def page(text: str) -> str:
    """Return the page with the reference and the relations in their places."""
    text = _replaced(text, BEGIN, END, reference())
    return _replaced(text, BEGIN_RELATIONS, END_RELATIONS, relations())


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
