"""The contract of an output format, a `Format` that `formats.py` lists; and the YAML and the names that they write."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace.errors import StagetraceError
from stagetrace.policy.yaml_nodes import resolved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from stagetrace.policy.policy import Policy

# --- The contract of an output format: a file of this folder with a `FORMAT`, and its line in `formats.py`.

REQUESTS: Final = "sla_requests_total"  # `sla.requests` as the Collector's exporter for Prometheus names it


class RulesError(StagetraceError):
    """Say what of a policy a format cannot express, and what to write instead."""


@dataclass(frozen=True, slots=True)
class RulesOptions:
    """What the output depends on besides the policy.

    `scale`: a factor of all windows and intervals; tests take one far below 1, and wait seconds for hours. `requests`:
    the counter of judged requests. `service`: the objectives are those of this service alone; empty for all whose
    requests have them. A condition of the policy on `service.name` does the same for its objective. `page`: the URL of
    stagetrace's page over the same spans, where that is known.
    """

    scale: float = 1.0
    requests: str = REQUESTS
    service: str = ""
    page: str = ""


class Format(NamedTuple):
    """One form of output. `render` returns the whole text of the file.

    It is pure: the same policy and options give the same text, on any machine at any time. It raises RulesError for
    what it cannot express and must not omit; what may be omitted is named in a comment of the output.
    """

    name: str
    summary: str  # one line for the help
    suffix: str  # of the file: `.yaml`
    render: Callable[[Policy, RulesOptions], str]


# --- YAML as people write it: keys in the given order, longer expressions as blocks of lines.

_STRING: Final = "tag:yaml.org,2002:str"
WIDTH: Final = 1_000  # PromQL and sentences stay on their line


def yaml_of(*documents: Any, comment: str = "") -> str:
    """Return documents of dicts, lists and scalars as one text of YAML, behind a comment of any number of lines."""
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


# --- Names of objects as Kubernetes and OpenSLO allow them (RFC 1123 labels): `POST /predict` becomes `post-predict`.

LONGEST: Final = 63
_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_OTHERS: Final = re.compile(r"[^a-z0-9]+")


def is_label(text: str) -> bool:
    """Return whether a text is such a name."""
    return _LABEL.fullmatch(text) is not None


def label(text: str, default: str, ending: str = "") -> str:
    """Return a name that resembles a text, or `default` where no character of it is allowed.

    `default` stands in front of a single character.
    """
    found = _OTHERS.sub("-", text.lower()).strip("-")
    found = f"{default}-{found}".strip("-") if len(found) <= 1 else found
    return f"{found[: LONGEST - len(ending)].rstrip('-')}{ending}"


def labels(texts: Iterable[str], default: str) -> dict[str, str]:
    """Return a name for each of different texts; those that would be equal are numbered."""
    found: dict[str, str] = {}
    taken: set[str] = set()
    for text in texts:
        name, number = label(text, default), 2
        while name in taken:
            name, number = label(text, default, f"-{number}"), number + 1
        taken.add(name)
        found[text] = name
    return found
