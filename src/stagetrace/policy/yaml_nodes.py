"""A YAML text as nodes that know their place, and what is wrong at a place.

Of YAML it has what JSON has too: no anchors, aliases, tags, merges. Without aliases no text grows as it is read. Plain
scalars are resolved as in YAML 1.2: `yes` and `12:30` are texts. Without PyYAML the text has to be JSON.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_LEVELS: Final = 20
MOST_PROBLEMS: Final = 20  # that are kept; more are counted
_NUMBER: Final = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?", re.ASCII)
_CONSTANTS: Final = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_MERGE: Final = "<<"


class At(NamedTuple):
    """A place in a text; lines and columns count from 1, columns in characters."""

    line: int
    column: int


class Problem(NamedTuple):
    """One thing that is wrong, and what fixes it."""

    at: At
    what: str
    fix: str = ""

    def text(self, where: str) -> str:
        """Return it in a line: `sla.yaml:12:5: what is wrong: what fixes it`."""
        return f"{where}:{self.at.line}:{self.at.column}: {self.what}{': ' if self.fix else ''}{self.fix}"


class WrongError(Exception):
    """A value that cannot be read; its reader goes on with the next one."""

    def __init__(self, at: At, what: str, fix: str = "") -> None:
        super().__init__(what)
        self.problem = Problem(at, what, fix)


class Problems:
    """The problems of one file, in the order in which they were found."""

    def __init__(self) -> None:
        self.found: list[Problem] = []
        self.more = 0  # that were found beyond MOST_PROBLEMS

    @property
    def count(self) -> int:
        """Return how many there are."""
        return len(self.found) + self.more

    @property
    def is_full(self) -> bool:
        """Return whether more of them are only counted."""
        return len(self.found) >= MOST_PROBLEMS

    def add(self, problem: Problem) -> None:
        """Add one."""
        if self.is_full:
            self.more += 1
        else:
            self.found.append(problem)


class Scalar(NamedTuple):
    """A text, number, truth value or null."""

    at: At
    text: str
    value: str | float | bool | None

    @property
    def kind(self) -> str:
        """Return what it is, in words."""
        if self.value is None:
            return "nothing"
        if isinstance(self.value, bool):
            return self.text
        return f"the text {self.text[:80]!r}" if isinstance(self.value, str) else f"the number {self.text[:80]}"


class Sequence(NamedTuple):
    """A list."""

    at: At
    items: list[Node]
    kind: str = "a list"


class Mapping(NamedTuple):
    """Keys with values; `places` are those of the keys."""

    at: At
    entries: dict[str, Node]
    places: dict[str, At]
    kind: str = "a mapping"


Node: TypeAlias = "Scalar | Sequence | Mapping"


def mapping_of(at: At, entries: dict[str, Node]) -> Mapping:
    """Return a mapping that was made out of nodes of a text: its keys have the places of their values."""
    return Mapping(at, entries, {key: node.at for key, node in entries.items()})


def scalar_of(at: At, text: str, *, is_text: bool = False) -> Scalar:
    """Return a scalar that was made out of what stands at a place of a text."""
    return Scalar(at, text, text if is_text else resolved(text))


def parse(text: str, problems: Problems) -> Node | None:
    """Return the one document of a text; None for an empty one. Keys that stand twice are added to `problems`.

    Raises:
        WrongError: where the rest of the text cannot be read.
    """
    documents = parse_all(text, problems, most=1)
    return documents[0] if documents else None


def parse_all(text: str, problems: Problems, most: int = 1_000_000) -> list[Node]:
    """Return the documents of a text. Raise WrongError as `parse` does, and for more than `most`."""
    try:
        import yaml
    except ImportError:
        return [_of_json(text, problems)] if text.strip() else []
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        events = yaml.parse(text, Loader=loader)
        return _documents(iter(events), problems, most)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = At(1, 1) if mark is None else At(mark.line + 1, mark.column + 1)
        said = ", ".join(filter(None, (error.context, error.problem)))
        fix = "indent with spaces" if "\\t" in said or "tab" in said else ""
        raise WrongError(at, f"this is not YAML: {said}", fix) from None
    except yaml.YAMLError as error:  # a character that YAML does not allow
        raise WrongError(_first_unprintable(text), "this character is not allowed in YAML", "remove it") from error


def _first_unprintable(text: str) -> At:
    allowed = re.compile("[\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]*")
    found = allowed.match(text)
    return place_of(text, found.end() if found else 0)


def place_of(text: str, offset: int) -> At:
    """Return the place of a character of a text."""
    before = text[:offset]
    return At(before.count("\n") + 1, offset - before.rfind("\n"))


def _refuse(event: Any, at: At) -> None:
    """Refuse a node that has what JSON has not."""
    import yaml

    if isinstance(event, yaml.AliasEvent):
        raise WrongError(at, "an alias is not read", f"write in place of *{event.anchor} what it stands for")
    if event.anchor is not None:
        raise WrongError(at, "an anchor is not read", f"remove &{event.anchor}, and write out what repeats")
    raise WrongError(at, f"the tag {str(event.tag)[:80]!r} is not read", "remove it")


def _documents(events: Iterator[Any], problems: Problems, most: int) -> list[Node]:
    import yaml

    found: list[Node] = []
    begun = 0
    for event in events:
        if isinstance(event, yaml.DocumentStartEvent):
            begun += 1
            if begun > most:
                raise WrongError(_at(event), "a second document begins", "put one policy into one file")
        elif isinstance(event, yaml.NodeEvent):
            found.append(_node(event, events, problems, MOST_LEVELS))
    return found


def _at(event: Any) -> At:
    mark = event.start_mark
    return At(mark.line + 1, mark.column + 1)


def _node(event: Any, events: Iterator[Any], problems: Problems, levels: int) -> Node:
    import yaml

    one: Any
    at = _at(event)
    if event.anchor is not None or event.tag is not None:  # an alias has an anchor
        _refuse(event, at)
    if isinstance(event, yaml.ScalarEvent):
        return Scalar(at, event.value, resolved(event.value) if event.implicit[0] else event.value)
    _enter(at, levels)
    if isinstance(event, yaml.SequenceStartEvent):
        items = []
        while not isinstance(one := next(events), yaml.SequenceEndEvent):
            items.append(_node(one, events, problems, levels - 1))
        return Sequence(at, items)
    return _mapping(at, events, problems, levels)


def _enter(at: At, levels: int) -> None:
    """Refuse a list or mapping within too many others."""
    if not levels:
        raise WrongError(at, f"more than {MOST_LEVELS} levels lie within each other", "a policy needs fewer")


def _mapping(at: At, events: Iterator[Any], problems: Problems, levels: int) -> Mapping:
    import yaml

    one: Any
    mapping = Mapping(at, {}, {})
    while not isinstance(one := next(events), yaml.MappingEndEvent):
        key = _node(one, events, problems, levels - 1)
        if not isinstance(key, Scalar):
            raise WrongError(key.at, f"a key is {key.kind}", "write a word")
        _put(mapping, key.at, key.text, _node(next(events), events, problems, levels - 1), problems)
    return mapping


def _put(mapping: Mapping, at: At, key: str, value: Node, problems: Problems) -> None:
    """Add a key with its value to a mapping, unless that has it already."""
    if key == _MERGE:
        problems.add(Problem(at, "a merge key is not read", "write out what it would merge"))
    elif key in mapping.entries:
        problems.add(Problem(at, f"{key[:80]!r} stands twice", f"first in line {mapping.places[key].line}"))
    else:
        mapping.entries[key], mapping.places[key] = value, at


def resolved(text: str) -> str | float | bool | None:
    """Return what a plain scalar stands for."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _NUMBER.fullmatch(text) is None:
        return text
    try:
        return int(text)
    except ValueError:
        return float(text)


# --- JSON, which is read where PyYAML is missing. Python's own reader of it knows no places.

_STRING: Final = r'"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"'
_PLAIN: Final = r"(?:-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|true|false|null)(?![\w.+-])"
_TOKEN: Final = re.compile(rf"[ \t\n\r]*([{{}}\[\],:]|{_STRING}|{_PLAIN}|\Z|.[\w.+-]*)", re.DOTALL)


class _Token(NamedTuple):
    at: At
    text: str  # empty at the end


def _of_json(text: str, problems: Problems) -> Node:
    """Return the one value of a text in JSON; raise WrongError where that is none."""
    tokens = _tokens(text)
    node = _value(next(tokens), tokens, problems, MOST_LEVELS)
    _expect("", next(tokens))
    return node


def _tokens(text: str) -> Iterator[_Token]:
    """Yield the tokens of a text, the end included."""
    lines = [0, *(found.end() for found in re.finditer("\n", text))]
    for found in _TOKEN.finditer(text):
        start = found.start(1)
        line = bisect_right(lines, start)
        yield _Token(At(line, start - lines[line - 1] + 1), found[1])


def _expect(text: str, token: _Token) -> None:
    if token.text != text:
        raise _no_json(token.at)


def _no_json(at: At) -> WrongError:
    return WrongError(at, "this is not JSON, and YAML needs PyYAML", "`pip install pyyaml`, or write JSON")


def _value(token: _Token, tokens: Iterator[_Token], problems: Problems, levels: int) -> Node:
    at, text = token
    if text in ("[", "{"):
        _enter(at, levels)
    if text == "[":
        return Sequence(at, [_value(one, tokens, problems, levels - 1) for one in _members(tokens, "]")])
    if text == "{":
        mapping = Mapping(at, {}, {})
        for key in _members(tokens, "}"):
            name = _text(key)
            _expect(":", next(tokens))
            _put(mapping, key.at, name, _value(next(tokens), tokens, problems, levels - 1), problems)
        return mapping
    if re.fullmatch(_PLAIN, text):
        return Scalar(at, text, resolved(text))
    return scalar_of(at, _text(token), is_text=True)


def _members(tokens: Iterator[_Token], end: str) -> Iterator[_Token]:
    """Yield the first token of each member of an array or object."""
    token = next(tokens)
    while token.text != end:
        yield token
        token = next(tokens)
        if token.text != end:
            _expect(",", token)
            token = next(tokens)
            if token.text == end:
                raise _no_json(token.at)


def _text(token: _Token) -> str:
    """Return the text that a string stands for."""
    if not re.fullmatch(_STRING, token.text):
        raise _no_json(token.at)
    found: str = json.loads(token.text)
    return found
