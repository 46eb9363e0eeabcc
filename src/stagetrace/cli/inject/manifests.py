"""Kubernetes manifests as text: the documents of a YAML stream, of which only those that change are written anew.

Kubernetes resolves plain scalars by rules of its own: `1e3` and `y` are no texts there. So a scalar is neither
converted nor quoted otherwise: it is a `Scalar`, a text that is written as it was read.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

import yaml

from stagetrace.cli.registry import UsageError

_SEPARATOR: Final = "---"
_SEPARATORS: Final = re.compile(rf"^{_SEPARATOR}(?=\s|\Z)", re.MULTILINE)
_COMMENTS: Final = re.compile(r"(?:[^\S\n]*(?:#.*)?\n)*")  # before the content of a document
_TAG: Final = "tag:yaml.org,2002:"
_PLAIN: Final = re.compile(r"[A-Za-z][A-Za-z_./-]*")
_WORDS: Final = frozenset(("y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf"))


class Scalar(str):
    """A scalar that is no null: its text, its type in YAML, its quotes."""

    __slots__ = ("style", "tag")
    tag: str
    style: str | None


class _Loader(yaml.SafeLoader):
    """Reads mappings (with their merges), sequences, nulls, and all else as `Scalar`."""

    def scalar(self, node: yaml.Node) -> Scalar:
        """Return any other scalar."""
        if not isinstance(node, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(None, None, f"the tag {node.tag!r} is unknown", node.start_mark)
        found = Scalar(node.value)
        found.tag = node.tag
        # A folded text has its line breaks elsewhere when it is written again.
        found.style = "|" if node.style == ">" else node.style
        return found


_Loader.yaml_constructors = {
    f"{_TAG}{name}": yaml.SafeLoader.yaml_constructors[f"{_TAG}{name}"] for name in ("map", "seq", "null")
}
_Loader.add_constructor(None, _Loader.scalar)


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads; what was an alias is written out, since one use of it may have changed."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        """Return whether equal objects are written out."""
        return True

    def scalar(self, data: Scalar) -> yaml.ScalarNode:
        """Return a scalar as it was."""
        return self.represent_scalar(data.tag, data, data.style)

    def text(self, data: str) -> yaml.ScalarNode:
        """Return a text of ours, in quotes unless all parsers read a text in it."""
        is_plain = _PLAIN.fullmatch(data) and data.lower() not in _WORDS
        quotes = "'" if '"' in data else '"'
        return self.represent_scalar(f"{_TAG}str", data, None if is_plain else quotes)


_Dumper.add_representer(Scalar, _Dumper.scalar)
_Dumper.add_representer(str, _Dumper.text)


def rewrite(text: str, change: Callable[[Any], Any], where: str) -> str:
    """Return a text with each document changed; one that `change` returns as it was stays as it is, comments included.

    Of a document that changes, the comments above its content stay. `where` is what errors call the text.

    Raises:
        UsageError: where a document is no YAML.
    """
    written: list[str] = []
    for part in _SEPARATORS.split(text):
        found = _read(part, where, sum(one.count("\n") for one in written))
        changed = change(found)
        written.append(part if changed == found else _write(changed, part, is_first=not written))
    return _SEPARATOR.join(written)


def _read(part: str, where: str, lines_before: int) -> Any:
    try:
        return yaml.load(part, _Loader)  # noqa: S506 -- it constructs mappings, lists and texts alone
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f" in line {lines_before + mark.line + 1}" if mark else ""
        raise UsageError(f"{where} is no YAML{at}: {error.problem}\ngive a manifest of Kubernetes") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{where} is no YAML: {str(error).splitlines()[0]}\ngive a manifest of Kubernetes") from None
    except RecursionError:
        raise UsageError(f"{where} is nested too deeply\ngive a manifest of Kubernetes") from None


def _write(value: Any, part: str, *, is_first: bool) -> str:
    above = _COMMENTS.match(part)
    comments = above[0] if above else ""
    dumped: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**9)
    return f"{comments or ('' if is_first else chr(10))}{dumped}"
