"""The tables of the docs that follow from the code: docs/cli.md, docs/attributes.md and docs/causes.md.

`PYTHONPATH=src python tests/cli/reference.py` writes them.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from pathlib import Path
from typing import Final, NamedTuple

from stagetrace import semconv
from stagetrace.causes.cause import CAUSES as WORDS
from stagetrace.cli.main import parser_for
from stagetrace.cli.registry import GROUPS, VERBS, load
from stagetrace.columns import REQUESTS, SCHEMA, SPANS, Column

PAGE = Path(__file__).parent.parent.parent / "docs" / "cli.md"
BEGIN = "<!-- begin of what tests/cli/reference.py writes -->\n"
END = "<!-- end of what tests/cli/reference.py writes -->\n"
BEGIN_SHARED = "<!-- begin of the shared options -->\n"
END_SHARED = "<!-- end of the shared options -->\n"
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


class Shared(NamedTuple):
    """Options that several verbs have in one meaning: their name on the page, and their flags."""

    name: str
    flags: tuple[str, ...]


SHARED: Final = (
    Shared(
        "selection",
        ("--store", "--service", "--route", "--model", "--segment", "--since", "--until", "--tz", "--limit", "--json"),
    ),
    Shared("breaches", ("--judged-by", "--cause", "--code")),
    Shared("judging", ("--sla",)),
    Shared("format", ("--format", "--long")),
    Shared("policy", ("--policy",)),
    Shared(
        "listening",
        ("--host", "--allow-host", "--jaeger-ui", "--token", "--token-file", "--insecure", "--tls-cert", "--tls-key"),
    ),
)
_OF: Final = {flag: shared for shared in SHARED for flag in shared.flags}
_DEFAULT: Final = "; default: "


def reference() -> str:
    """Return a section for each verb, by group: description, its own arguments, which shared ones, example."""
    usual = _usual()
    parts = (f"## {name}\n\n" + "\n".join(_section(verb, usual) for verb in verbs) for name, verbs in GROUPS.items())
    return "\n".join(parts)


def shared() -> str:
    """Return a table of the options that several verbs share, each in its usual meaning."""
    usual = _usual()
    rows = [
        f"| {one.name if flag == one.flags[0] else ''} | {_cell(usual[flag][0])} | {_cell(usual[flag][1])} |"
        for one in SHARED
        for flag in one.flags
    ]
    return "\n".join(["| shared | option | meaning |", "|---|---|---|", *rows, ""])


def _usual() -> dict[str, tuple[str, str]]:
    """Return name and meaning of each shared option, as most verbs have it."""
    found: dict[str, Counter[tuple[str, str]]] = {flag: Counter() for flag in _OF}
    for verb in VERBS:
        for action in arguments(verb):
            if action.option_strings and action.option_strings[-1] in found:
                found[action.option_strings[-1]][_name(action), _meaning(action)] += 1
    return {flag: counted.most_common(1)[0][0] for flag, counted in found.items()}


def relations() -> str:
    """Return a table of the columns of both relations: in which one, type, and the attribute that a column holds."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for name in (REQUESTS, SPANS):
        for one in (one for one in SCHEMA if name in one.relations):
            rows.setdefault((_name_in(name, one), one.type, _source(one)), []).append(f"`{name}`")
    lines = [f"| `{name}` | {', '.join(of)} | {kind} | {holds} |" for (name, kind, holds), of in rows.items()]
    return "\n".join(["| column | of | type | holds |", "|---|---|---|---|", *lines, ""])


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
    """Return the page with the reference, the shared options and the relations in their places."""
    text = _replaced(text, BEGIN, END, reference())
    text = _replaced(text, BEGIN_SHARED, END_SHARED, shared())
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


def _section(verb: str, usual: dict[str, tuple[str, str]]) -> str:
    """Return what the page says of a verb."""
    module = load(verb)
    rows, of_shared, defaults = [], set(), []
    for action in arguments(verb):
        flag = action.option_strings[-1] if action.option_strings else ""
        if flag in _OF and _split(_meaning(action))[0] == _split(usual[flag][1])[0]:
            of_shared.add(flag)
            if _meaning(action) != usual[flag][1]:
                defaults.append(f"`{flag}` by default: {_split(_meaning(action))[1]}")
        else:
            rows.append(f"| {_cell(_name(action))} | {_cell(_meaning(action))} |")
    parts = [f"### `stagetrace {verb}`", "", _joined_lines(module.DESCRIPTION.strip()), ""]
    if rows:
        parts += ["| argument | meaning |", "|---|---|", *rows, ""]
    options = f"Shared options: {'; '.join([_listed(of_shared), *defaults])}. " if of_shared else ""
    ticks = "``" if "`" in module.EXAMPLE else "`"
    return "\n".join([*parts, f"{options}Example: {ticks}{module.EXAMPLE}{ticks}", ""])


def _joined_lines(text: str) -> str:
    """Return each paragraph as one line, as on the rest of the page; lines of a table stay, those of a list are one."""
    made = []
    for paragraph in text.split("\n\n"):
        lines = paragraph.splitlines()
        if any(line.startswith(" ") for line in lines):
            made.append(paragraph)
        elif len(lines) > 1 and all(re.match(r"\w+:\s", line) for line in lines):
            made.append("\n".join(f"- {' '.join(line.split())}" for line in lines))
        else:
            made.append(" ".join(paragraph.split()))
    return "\n\n".join(made)


def _listed(flags: set[str]) -> str:
    """Return groups of shared options by their name, and what of a group a verb lacks; a part of a group one by one."""
    parts = []
    for one in SHARED:
        there = [flag for flag in one.flags if flag in flags]
        lacking = [flag for flag in one.flags if flag not in flags]
        if len(there) > len(lacking):
            parts.append(one.name + (f" without {_joined(lacking)}" if lacking else ""))
        elif there:
            parts.append(_joined(there))
    return ", ".join(parts)


def _joined(flags: list[str]) -> str:
    *first, last = (f"`{flag}`" for flag in flags)
    return f"{', '.join(first)} and {last}" if first else last


def _split(meaning: str) -> tuple[str, str]:
    """Return a meaning without its default, and the default."""
    text, _, default = meaning.partition(_DEFAULT)
    return text, default


def _meaning(action: argparse.Action) -> str:
    """Return a help text as `--help` prints it: argparse formats it with `%`, so it has `%%` for a percent sign."""
    return (action.help or "") % {**vars(action), "prog": "stagetrace"}


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def _name(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{action.metavar or action.dest}`"
    value = "" if action.nargs == 0 else f" {action.metavar or action.dest.upper()}"
    return f"`{action.option_strings[-1]}{value}`"


if __name__ == "__main__":
    for path, written in PAGES.items():
        path.write_text(written(path.read_text(encoding="utf-8")), encoding="utf-8")
