"""YAML as people write it: keys in the given order, longer expressions as blocks of lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from stagetrace.sla.yaml_nodes import resolved

if TYPE_CHECKING:
    from collections.abc import Sequence

_STRING: Final = "tag:yaml.org,2002:str"
WIDTH: Final = 1_000  # PromQL and sentences stay on their line


def yaml_of(document: Any, comment: str = "") -> str:
    """Return a document of dicts, lists and scalars as YAML, behind a comment of any number of lines."""
    return yaml_of_all([document], comment)


def yaml_of_all(documents: Sequence[Any], comment: str = "") -> str:
    """Return documents as one text of YAML, behind a comment of any number of lines."""
    import yaml

    base: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # ten times as fast, where PyYAML was built with libyaml

    class _Dumper(base):  # type: ignore[misc]
        def ignore_aliases(self, data: Any) -> bool:
            del data
            return True

    def text(dumper: Any, value: str) -> yaml.ScalarNode:
        quotes = None if isinstance(resolved(value), str) else '"'  # YAML 1.2 takes more for numbers than PyYAML does
        node: yaml.ScalarNode = dumper.represent_scalar(_STRING, value, style="|" if "\n" in value else quotes)
        return node

    _Dumper.add_representer(str, text)
    lines = "".join(f"# {' '.join(line.split())}".rstrip() + "\n" for line in comment.splitlines())
    written = (yaml.dump(one, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=WIDTH) for one in documents)
    return lines + "---\n".join(written)
