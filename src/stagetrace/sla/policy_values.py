"""Read the single values of a policy file. Each function takes a node, and raises WrongError where it is wrong."""

from __future__ import annotations

import difflib
import re
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlsplit

from stagetrace import semconv
from stagetrace.sla import quantities
from stagetrace.sla.objective import BAGGAGE, CALENDAR, HEADER
from stagetrace.sla.policy_problem import Problem, WrongError
from stagetrace.sla.yaml_nodes import Mapping, Node, Scalar, Sequence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from collections.abc import Mapping as AnyMapping

    from stagetrace.sla.policy_problem import At, Problems

T = TypeVar("T")
LONGEST: Final = 1_000  # characters of a text
MOST_KEYS: Final = 8  # of segments
_NAME: Final = re.compile(r"[^;()\x00-\x1f\x7f]+")
_WORD: Final = re.compile(r"\S+")
_GAP: Final = re.compile(r"(?<=\d) +(?=[a-zA-Zµ%])")
_LABEL: Final = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")
# What people write for a key, where its spelling is not near.
_MEANT: Final = {
    **dict.fromkeys(("threshold", "latency", "max_latency", "timeout"), "within"),
    **dict.fromkeys(("objective", "goal", "percent"), "target"),
    **dict.fromkeys(("period", "over"), "window"),
    **dict.fromkeys(("path", "endpoint", "url"), "route"),
    **dict.fromkeys(("ttft", "time_to_first_token"), "first_token"),
    **dict.fromkeys(("tpot", "itl"), "per_token"),
    **dict.fromkeys(("slos", "rules", "spec"), "objectives"),
    **dict.fromkeys(("budgets", "stage"), "stages"),
}


def nearest(word: str, words: Iterable[str]) -> str:
    """Return what fixes a word that is not known: the nearest one that is, or all of them."""
    known = list(words)
    meant = _MEANT.get(word.lower())
    close = [meant] if meant in known else difflib.get_close_matches(word.lower(), known, 1)
    return f"write {close[0]}" if close else f"write one of {', '.join(known)}"


def fields(node: Node, of: str, readers: AnyMapping[str, Any], problems: Problems) -> dict[str, Any]:
    """Return the values of a mapping that can be read, each by the reader of its key; `of` names what it describes."""
    if not isinstance(node, Mapping):
        raise WrongError(node.at, f"{of} is {node.kind}", f"write a mapping with keys such as {next(iter(readers))}:")
    found: dict[str, Any] = {}
    for key, value in node.entries.items():
        reader = readers.get(key)
        if reader is None:
            fix = "" if problems.is_full else nearest(key, readers)  # takes a while
            problems.add(Problem(node.places[key], f"{key[:80]!r} is no key of {of}", fix))
            continue
        try:
            found[key] = reader(value, problems)
        except WrongError as error:
            one = error.problem
            problems.add(one._replace(what=f"{key}: {one.what}"))
    return found


def mapping(node: Node, read: Callable[[str, At, Node], T], problems: Problems, example: str) -> tuple[T, ...]:
    """Return what `read` makes of each entry of a mapping whose keys are the user's own."""
    if not isinstance(node, Mapping) or not node.entries:
        raise WrongError(node.at, f"there stands {_empty(node)}", f"write keys and values: {example}")
    return _each((partial(read, key, node.places[key], one) for key, one in node.entries.items()), problems)


def several(node: Node, read: Callable[[Node], T], problems: Problems, example: str) -> tuple[T, ...]:
    """Return what `read` makes of each item of a list that is not empty."""
    if not isinstance(node, Sequence) or not node.items:
        raise WrongError(node.at, f"there stands {_empty(node)}", f"write a list: {example}")
    return _each((partial(read, one) for one in node.items), problems)


def one_or_several(node: Node, read: Callable[[Node], T], problems: Problems, example: str) -> tuple[T, ...]:
    """Return what `read` makes of a scalar, or of each item of a list."""
    is_one = isinstance(node, Scalar) and node.value is not None
    return (read(node),) if is_one else several(node, read, problems, example)


def _empty(node: Node) -> str:
    return node.kind if isinstance(node, Scalar) else f"{node.kind}{'' if _has_items(node) else ' without anything'}"


def _has_items(node: Node) -> bool:
    return bool(node.items if isinstance(node, Sequence) else isinstance(node, Mapping) and node.entries)


def _each(reads: Iterable[Callable[[], T]], problems: Problems) -> tuple[T, ...]:
    found = []
    for read in reads:
        try:
            found.append(read())
        except WrongError as error:  # noqa: PERF203 -- the next one is read all the same
            problems.add(error.problem)
    return tuple(found)


def text(node: Node, problems: Problems | None = None) -> str:  # noqa: ARG001 -- a reader
    """Return a text that is not empty."""
    if not isinstance(node, Scalar) or node.value is None:
        raise WrongError(node.at, f"there stands {node.kind}", "write a text")
    if not isinstance(node.value, str):
        raise WrongError(node.at, f"there stands {node.kind}", f'write it in quotes: "{node.text[:80]}"')
    if not node.value.strip():
        raise WrongError(node.at, "the text is empty", "write it, or remove the key")
    if len(node.value) > LONGEST:
        raise WrongError(node.at, f"the text has {len(node.value)} characters", f"use at most {LONGEST}")
    return node.value


def _matching(pattern: re.Pattern[str], what: str, fix: str) -> Callable[..., str]:
    """Return a reader of texts that match a pattern."""

    def read(node: Node, problems: Problems | None = None) -> str:
        found = text(node, problems)
        if pattern.fullmatch(found) is None:
            raise WrongError(node.at, f"{found[:80]!r} {what}", fix)
        return found

    return read


name = _matching(_NAME, "is no name", "use no semicolon, parenthesis or line break")
word = _matching(_WORD, "holds white space", "write it without")
_method = _matching(re.compile("[A-Za-z]+"), "is no method", "write it like POST")
rpc = _matching(re.compile(r"[^\s/]\S*"), "is no full method of an RPC", "write pkg.Service/Method")


def method(node: Node, problems: Problems | None = None) -> str:
    """Return a method of HTTP."""
    return _method(node, problems).upper()


def boolean(node: Node, problems: Problems | None = None) -> bool:  # noqa: ARG001 -- a reader
    """Return true or false."""
    if not isinstance(node, Scalar) or not isinstance(node.value, bool):
        raise WrongError(node.at, f"there stands {node.kind}", "write true or false")
    return node.value


def one_of(*words: str) -> Callable[..., str]:
    """Return a reader of one of these words."""

    def read(node: Node, problems: Problems | None = None) -> str:  # noqa: ARG001 -- a reader
        if not isinstance(node, Scalar) or node.value not in words:
            shown = node.text[:80] if isinstance(node, Scalar) else ""
            raise WrongError(node.at, f"there stands {node.kind}", nearest(shown, words))
        return node.text

    return read


def whole(low: int, high: int) -> Callable[..., int]:
    """Return a reader of whole numbers."""
    wanted = str(low) if low == high else f"a whole number from {low} to {high}"

    def read(node: Node, problems: Problems | None = None) -> int:  # noqa: ARG001 -- a reader
        value = node.value if isinstance(node, Scalar) else None
        if isinstance(value, (bool, str)) or value is None or value % 1 or not low <= value <= high:
            raise WrongError(node.at, f"there stands {node.kind}", f"write {wanted}")
        return int(value)

    return read


def factor(node: Node, problems: Problems | None = None) -> float:  # noqa: ARG001 -- a reader
    """Return a burn rate."""
    value = node.value if isinstance(node, Scalar) else None
    if isinstance(value, (bool, str)) or value is None or not 0 < value <= 1e6:  # noqa: PLR2004
        raise WrongError(node.at, f"there stands {node.kind}", "write a number above 0, such as 14.4")
    return float(value)


def _quantity(read: Callable[[str], T], example: str) -> Callable[..., T]:
    def quantity(node: Node, problems: Problems | None = None) -> T:  # noqa: ARG001 -- a reader
        if not isinstance(node, Scalar) or node.value is None or isinstance(node.value, bool):
            raise WrongError(node.at, f"there stands {node.kind}", f"write it like {example}")
        try:
            return read(_GAP.sub("", node.text))
        except ValueError as error:
            what, _, write = str(error).partition(": ")
            raise WrongError(node.at, what, write or f"write it like {example}") from None

    return quantity


def _share(given: str) -> float:
    try:
        return quantities.share(given)
    except ValueError as error:
        missing = quantities.NUMBER.fullmatch(given) is not None and 1 < float(given) <= 100  # noqa: PLR2004
        raise ValueError(f"{error}: write {given}%" if missing else str(error)) from None


def _span_s(given: str) -> int:
    """Return a window of an alert, or how long it waits, in whole seconds."""
    if given.partition("@")[0].lower() in CALENDAR:
        raise ValueError(f"{given!r} is a calendar window, and alerts look back over a length of time")
    found = quantities.window(given)
    if found.length_s != int(found.length_s):
        raise ValueError(f"{given!r} is no whole number of seconds")
    return int(found.length_s)


duration = _quantity(quantities.duration_ns, "250ms")
share = _quantity(_share, "99.9%")
span = _quantity(_span_s, "5m")
_window = _quantity(quantities.window, "28d, or month@Europe/Berlin")


def seconds(node: Node, problems: Problems | None = None) -> float:
    """Return a duration in seconds."""
    return duration(node, problems) / 1e9


def window(node: Node, problems: Problems) -> quantities.Window:
    """Return a window: a text, or `{calendar: month, timezone: Europe/Berlin}`."""
    if not isinstance(node, Mapping):
        return _window(node, problems)
    found = fields(node, "a window", {"calendar": one_of(*CALENDAR), "timezone": word}, problems)
    if "calendar" not in node.entries:
        raise WrongError(node.at, "calendar is missing", f"write one of {', '.join(CALENDAR)}")
    given = Scalar(node.entries.get("timezone", node).at, "@".join(found.values()), "")
    return _window(given, problems)


def key(node: Node, problems: Problems | None = None) -> str:
    """Return the key of a condition or a segment."""
    return key_of(word(node, problems), node.at)


def key_of(given: str, at: At) -> str:
    """Return it in the form that conditions have: the name of a header in lower case."""
    if not given or _WORD.fullmatch(given) is None or given in (HEADER, BAGGAGE) or len(given) > LONGEST:
        fix = f"write the name of an attribute, {HEADER}NAME or {BAGGAGE}NAME"
        raise WrongError(at, f"{given[:80]!r} is no key", fix)
    return given.lower() if given.startswith(HEADER) else given


def glob(node: Node, problems: Problems | None = None) -> str:
    """Return the text that a value is compared with."""
    if isinstance(node, Scalar) and isinstance(node.value, (int, float)) and not isinstance(node.value, bool):
        return node.text
    return text(node, problems)


def stage(given: str, at: At, node: Node) -> tuple[str, int]:
    """Return the budget of a stage."""
    if given not in semconv.STAGES:
        raise WrongError(at, f"{given[:80]!r} is no stage", nearest(given, semconv.STAGES))
    return given, duration(node)


def label(given: str, at: At, node: Node) -> tuple[str, str]:
    """Return a label of alerts."""
    if _LABEL.fullmatch(given) is None:
        raise WrongError(at, f"{given[:80]!r} is no name of a label", "use letters, digits and _")
    return given, text(node)


def url(node: Node, problems: Problems | None = None) -> str:
    """Return a URL of HTTP."""
    found = text(node, problems)
    try:
        parts = urlsplit(found)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and _WORD.fullmatch(found) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise WrongError(node.at, "this is no URL", "write it like https://host/path")  # which may hold a password
    return found
