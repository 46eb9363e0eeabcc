"""The kinds of values that keys of a policy file have: how each is read, written, and described in a JSON Schema."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from stagetrace import semconv
from stagetrace.policy import quantities
from stagetrace.policy.objective import BAGGAGE, CALENDAR, HEADER, Calendar, Condition
from stagetrace.policy.yaml_nodes import At, Mapping, Node, Problem, Problems, Scalar, Sequence, WrongError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from collections.abc import Mapping as AnyMapping

T = TypeVar("T")
LONGEST: Final = 1_000  # characters of a text
MOST_FACTOR: Final = 1_000_000
NEVER: Final = "never"
_AMOUNT: Final = r"^(?=[0-9.]*[1-9])[0-9]+(\.[0-9]+)? *"  # above zero
_KEY: Final = rf"(?!({HEADER[:-1]}|{BAGGAGE[:-1]}):$)\S+"
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


class Kind(NamedTuple):
    """A kind of value: `read` returns one or raises WrongError, `words` name it in docs, `write` is the way back."""

    read: Callable[[Node, Problems], Any]
    schema: dict[str, Any]
    words: str
    write: Callable[..., Any] = lambda value: value


class Key(NamedTuple):
    """A key: what it says, its default as a file would have it, which fields of an objective or of alerts it sets."""

    kind: Kind
    sentence: str = ""
    default: Any = None
    sets: tuple[str, ...] = ()


Keys = dict[str, Key]
DEFS: Final[dict[str, Any]] = {}  # the kinds to which the schema refers by name


def named(name: str, kind: Kind) -> Kind:
    """Return a kind to which the schema refers by this name."""
    DEFS[name] = kind.schema
    return kind._replace(schema={"$ref": f"#/$defs/{name}"})


def changes(keys: Keys, found: AnyMapping[str, Any]) -> dict[str, Any]:
    """Return the fields that the values of a file set."""
    made: dict[str, Any] = {}
    for key, value in found.items():
        names = keys[key].sets
        made.update(zip(names, value, strict=True) if len(names) > 1 else dict.fromkeys(names, value))
    return made


def nearest(word: str, words: Iterable[str]) -> str:
    """Return what fixes a word that is not known: the nearest one that is, or all of them."""
    import difflib

    known = list(words)
    meant = _MEANT.get(word.lower())
    close = [meant] if meant in known else difflib.get_close_matches(word.lower(), known, 1)
    return f"write {close[0]}" if close else f"write one of {', '.join(known)}"


def place(node: Node, key: str) -> At:
    """Return the place of a key of a mapping, or that of the mapping."""
    return node.places.get(key, node.at) if isinstance(node, Mapping) else node.at


def fields(node: Node, of: str, keys: Keys, problems: Problems) -> dict[str, Any]:
    """Return the values of a mapping that can be read; `of` names what it describes."""
    if not isinstance(node, Mapping):
        raise WrongError(node.at, f"{of} is {node.kind}", f"write a mapping with keys such as {next(iter(keys))}:")
    found: dict[str, Any] = {}
    for name, value in node.entries.items():
        if name not in keys:
            fix = "" if problems.is_full else nearest(name, keys)  # takes a while
            problems.add(Problem(node.places[name], f"{name[:80]!r} is no key of {of}", fix))
            continue
        try:
            found[name] = keys[name].kind.read(value, problems)
        except WrongError as error:
            problems.add(error.problem._replace(what=f"{name}: {error.problem.what}"))
    return found


def record(of: str, keys: Keys, make: Callable[..., Any], needs: str = "", example: str = "", **schema: Any) -> Kind:
    """Return a mapping with these keys, of which it `needs` some; `make` makes its value of what is found in a node."""
    needed = needs.split()

    def read(node: Node, problems: Problems) -> Any:
        found = fields(node, of, keys, problems)
        missing = [key for key in needed if key not in node.entries] if isinstance(node, Mapping) else []
        if missing:
            raise WrongError(node.at, f"{missing[0]} is missing", f"write {example}")
        return make(found, node) if found.keys() >= set(needed) else None  # there is a problem, then

    properties = {name: _property(key) for name, key in keys.items()}
    required = {"required": needed} if needed else {}
    whole = {"type": "object", "properties": properties, **required, "additionalProperties": False, **schema}
    return Kind(read, whole, "mapping")


def described(key: Key) -> str:
    """Return what a key says, with its default, for people."""
    return key.sentence if key.default is None else f"{key.sentence}; default: {key.default}"


def _property(key: Key) -> dict[str, Any]:
    default = {} if key.default is None else {"default": key.default}
    return {**key.kind.schema, **({"description": f"{described(key)}."} if key.sentence else {}), **default}


def entries(of_key: Callable[[str, At], str], names: dict[str, Any], of: Kind, example: str, words: str) -> Kind:
    """Return a mapping whose keys are the user's own, with `names` as their schema; its value is a tuple of pairs."""

    def read(node: Node, problems: Problems) -> tuple[tuple[str, Any], ...]:
        if not isinstance(node, Mapping) or not node.entries:
            raise WrongError(node.at, f"there stands {_empty(node)}", f"write keys and values: {example}")
        return _each((partial(pair, *one, node.places[one[0]], problems) for one in node.entries.items()), problems)

    def pair(key: str, value: Node, at: At, problems: Problems) -> tuple[str, Any]:
        return of_key(key, at), of.read(value, problems)

    schema = {"type": "object", "minProperties": 1, "propertyNames": names, "additionalProperties": of.schema}
    return Kind(read, schema, words, lambda pairs: {key: of.write(value) for key, value in pairs})


def several(of: Kind, example: str, least: int = 1, **schema: Any) -> Kind:
    """Return a list; its value is a tuple."""

    def read(node: Node, problems: Problems) -> tuple[Any, ...]:
        if not isinstance(node, Sequence) or len(node.items) < least:
            raise WrongError(node.at, f"there stands {_empty(node)}", f"write a list: {example}")
        return _each((partial(of.read, one, problems) for one in node.items), problems)

    items = {"minItems": least, "items": of.schema} if least else {"items": of.schema}
    return Kind(read, {"type": "array", **items, **schema}, f"list of {of.words}s", list)


def one_or_several(of: Kind, example: str, what: str, fix: str, most: int) -> Kind:
    """Return a scalar, or a list of up to `most` different ones; its value is a tuple."""
    many = several(of, example, maxItems=most, uniqueItems=True)

    def read(node: Node, problems: Problems) -> tuple[Any, ...]:
        if isinstance(node, Scalar) and node.value is not None:
            return (of.read(node, problems),)
        found: tuple[Any, ...] = many.read(node, problems)
        if len(set(found)) < len(found) or len(found) > most:
            raise WrongError(node.at, what, fix)
        return found

    return Kind(read, {"anyOf": [of.schema, many.schema]}, f"{of.words}, or a list", list)


def _empty(node: Node) -> str:
    within = node.items if isinstance(node, Sequence) else node.entries if isinstance(node, Mapping) else node
    return node.kind if within else f"{node.kind} without anything"


def _each(reads: Iterable[Callable[[], T]], problems: Problems) -> tuple[T, ...]:
    found = []
    for read in reads:
        try:
            found.append(read())
        except WrongError as error:  # noqa: PERF203 -- the next one is read all the same
            problems.add(error.problem)
    return tuple(found)


def scalar(
    accepts: Callable[[Any], bool], fix: Callable[[str], str], make: Callable[[Any], Any], words: str, **schema: Any
) -> Kind:
    """Return a number, a truth value, or one of some words: what `accepts` its value as YAML resolves it."""

    def read(node: Node, _: Problems) -> Any:
        if not isinstance(node, Scalar) or not accepts(node.value):
            text = node.text[:80] if isinstance(node, Scalar) else ""
            raise WrongError(node.at, f"there stands {node.kind}", fix(text))
        return make(node.value)

    return Kind(read, schema, words)


def one_of(*words: str) -> Kind:
    """Return one of these words."""
    fix = partial(nearest, words=words)
    return scalar(lambda value: value in words, fix, str, " or ".join(f"`{word}`" for word in words), enum=list(words))


def is_number(value: Any) -> bool:
    """Return whether a value, as YAML resolves it, is a number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def whole(low: int, high: int) -> Kind:
    """Return a whole number."""
    words = str(low) if low == high else f"a whole number from {low} to {high}"
    schema = {"const": low} if low == high else {"type": "integer", "minimum": low, "maximum": high}

    def accepts(value: Any) -> bool:
        return is_number(value) and low <= value <= high and not value % 1

    return scalar(accepts, lambda _: f"write {words}", int, words.removeprefix("a "), **schema)


def text(node: Node, _: Problems | None = None) -> str:
    """Read a text that is not empty."""
    if not isinstance(node, Scalar) or node.value is None:
        raise WrongError(node.at, f"there stands {node.kind}", "write a text")
    if not isinstance(node.value, str):
        raise WrongError(node.at, f"there stands {node.kind}", f'write it in quotes: "{node.text[:80]}"')
    if not node.value.strip():
        raise WrongError(node.at, "the text is empty", "write it, or remove the key")
    if len(node.value) > LONGEST:
        raise WrongError(node.at, f"the text has {len(node.value)} characters", f"use at most {LONGEST}")
    return node.value


def check(pattern: str, what: str, fix: str, given: str, at: At) -> str:
    """Return a text that matches a pattern."""
    if re.fullmatch(pattern, given) is None:
        raise WrongError(at, f"{given[:80]!r} {what}", fix)
    return given


def matching(pattern: str, what: str, fix: str, make: Callable[[str], Any] = str, **schema: Any) -> Kind:
    """Return a text that matches a pattern."""

    def read(node: Node, _: Problems) -> Any:
        return make(check(pattern, what, fix, text(node), node.at))

    return Kind(read, {"type": "string", "maxLength": LONGEST, "pattern": f"^{pattern}$", **schema}, "text")


def quantity(
    read: Callable[[str], Any], write: Callable[..., str], example: str, words: str, pattern: str, **schema: Any
) -> Kind:
    """Return a number with a unit, such as `example`; a space may stand between the two."""

    def of_node(node: Node, _: Problems) -> Any:
        if not isinstance(node, Scalar) or node.value is None or isinstance(node.value, bool):
            raise WrongError(node.at, f"there stands {node.kind}", f"write it like {example}")
        try:
            spaced = " " in node.text
            return read(re.sub(r"(?<=\d) +(?=[a-zA-Zµ%])", "", node.text) if spaced else node.text)
        except ValueError as error:
            what, *fix = str(error).split(": ", 1)
            raise WrongError(node.at, what, "".join(fix) or f"write it like {example}") from None

    return Kind(of_node, {"type": "string", "pattern": f"{pattern}$", "examples": [example], **schema}, words, write)


def _in_any_case(*words: str) -> str:
    return "|".join("".join(f"[{letter}{letter.upper()}]" for letter in word) for word in words)


def _share(given: str) -> float:
    try:
        return quantities.share(given)
    except ValueError as error:
        missing = quantities.NUMBER.fullmatch(given) is not None and 1 < float(given) <= 100  # noqa: PLR2004
        raise ValueError(f"{error}: write {given}%" if missing else str(error)) from None


def _span(given: str) -> int:
    """Return a window of an alert, or how long it waits, in whole seconds."""
    if given.partition("@")[0].lower() in CALENDAR:
        raise ValueError(f"{given!r} is a calendar window, and alerts look back over a length of time")
    found = quantities.window(given)
    if found.length_s != int(found.length_s):
        raise ValueError(f"{given!r} is no whole number of seconds")
    return int(found.length_s)


def _no_data(node: Node, problems: Problems) -> int:
    if isinstance(node, Scalar) and node.value == NEVER:
        return 0
    try:
        return int(SPAN.read(node, problems))
    except WrongError as error:
        raise WrongError(node.at, error.problem.what, f"{error.problem.fix}, or {NEVER}") from None


def _window(node: Node, problems: Problems) -> Any:
    return (_CALENDAR if isinstance(node, Mapping) else _LENGTH).read(node, problems)


def _calendar(found: dict[str, str], node: Mapping) -> Any:
    given = "@".join(found[key] for key in ("calendar", "timezone") if key in found)
    return _LENGTH.read(Scalar(node.entries.get("timezone", node).at, given, ""), Problems())


def _window_text(length_s: float, calendar: Calendar | None) -> str:
    return quantities.window_text(length_s) if calendar is None else calendar.text


def _glob(node: Node, _: Problems) -> str:
    return node.text if isinstance(node, Scalar) and is_number(node.value) else text(node)


def _url(node: Node, _: Problems) -> str:
    from urllib.parse import urlsplit

    found = text(node)
    try:
        parts = urlsplit(found)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or re.search(r"\s", found):
        raise WrongError(node.at, "this is no URL", "write it like https://host/path")  # which may hold a password
    return found


def _key(node: Node, problems: Problems) -> str:
    return _key_of(WORD.read(node, problems), node.at)


def _key_of(given: str, at: At) -> str:
    """Return the key of a condition or a segment; the name of a header in lower case."""
    fix = f"write the name of an attribute, {HEADER}NAME or {BAGGAGE}NAME"
    found = check(rf"(?=.{{1,{LONGEST}}}$){_KEY}", "is no key", fix, given, at)
    return found.lower() if found.startswith(HEADER) else found


def _conditions(node: Node, problems: Problems) -> tuple[Condition, ...]:
    return tuple(Condition(*pair) for pair in _PAIRS.read(node, problems))


def _stage_of(given: str, at: At) -> str:
    if given not in semconv.STAGES:
        raise WrongError(at, f"{given[:80]!r} is no stage", nearest(given, semconv.STAGES))
    return given


def _label_of(given: str, at: At) -> str:
    return check(_LABEL, "is no name of a label", "use letters, digits and _", given, at)


# fmt: off
_TEXT: Final = {"type": "string", "minLength": 1, "maxLength": LONGEST}
_LABEL: Final = "(?!__)[a-zA-Z_][a-zA-Z0-9_]*"
_LENGTHS: Final = f"{_AMOUNT}[sSmMhHdDwW]"
_URLS: Final = r"^[hH][tT][tT][pP][sS]?://([^\s/?#@]*@)?(\[[0-9a-fA-F:.]+\]|[^\s/?#@:\[\]]+)(:[0-9]{1,5})?([/?#]\S*)?$"
TEXT: Final = named("text", Kind(text, {**_TEXT, "pattern": r"\S"}, "text"))
NAME: Final = matching(r"(?=.*\S)[^;()\x00-\x1f\x7f]+", "is no name", "use no semicolon, parenthesis or line break")
WORD: Final = matching(r"\S+", "holds white space", "write it without")
METHOD: Final = matching("[A-Za-z]+", "is no method", "write it like POST", str.upper)
RPC: Final = matching(r"[^\s/]\S*", "is no full method of an RPC", "write pkg.Service/Method", examples=["pkg.Service/Method"])
ROUTE: Final = Kind(text, {**_TEXT, "pattern": r"^\s*([^\W\d_]+\s+)?\S*[/*]\S*\s*$", "examples": ["POST /predict"]}, "text")
URL: Final = named("url", Kind(_url, {**_TEXT, "pattern": _URLS}, "URL"))
BOOLEAN: Final = scalar(lambda one: isinstance(one, bool), lambda _: "write true or false", bool, "`true` or `false`", type="boolean")
DURATION: Final = named("duration", quantity(quantities.duration_ns, quantities.duration_text, "250ms", "duration", f"{_AMOUNT}({_in_any_case('us', 'ms', 's', 'm')})", description="A number with a unit: us, ms, s or m."))
SECONDS: Final = DURATION._replace(read=lambda node, problems: DURATION.read(node, problems) / 1e9, write=lambda seconds: quantities.duration_text(round(seconds * 1e9)))
SPAN: Final = named("span", quantity(_span, quantities.window_text, "5m", "length of time", _LENGTHS, description="A whole number of seconds, with a unit: s, m, h, d or w."))
NO_DATA: Final = Kind(_no_data, {"anyOf": [SPAN.schema, {"const": NEVER}]}, f"length of time, or `{NEVER}`", lambda seconds: quantities.window_text(seconds) if seconds else NEVER)
SHARE: Final = quantity(_share, quantities.share_text, "99.9%", "percentage", r"^(?=[0-9.]*[1-9])0*(100(\.0+)?|[0-9]{1,2}(\.[0-9]+)?) *%")
FACTOR: Final = scalar(lambda one: is_number(one) and 0 < one <= MOST_FACTOR, lambda _: "write a number above 0, such as 14.4", float, "number above 0", type="number", exclusiveMinimum=0, maximum=MOST_FACTOR)
GLOB: Final = named("glob", Kind(_glob, {"anyOf": [TEXT.schema, {"type": "number"}], "description": "What the value has to be; * stands for any text."}, "text or number"))
KEY: Final = named("key", Kind(_key, {**_TEXT, "pattern": f"^{_KEY}$", "description": f"The name of an attribute of the request, {HEADER}NAME or {BAGGAGE}NAME."}, "key"))
_PAIRS: Final = entries(_key_of, KEY.schema, GLOB, "{tenant.tier: gold}", "keys and texts")
CONDITIONS: Final = named("conditions", _PAIRS._replace(read=_conditions))
STAGES: Final = entries(_stage_of, {"enum": list(semconv.STAGES)}, DURATION, "{inference: 150ms}", "stages and durations")
LABELS: Final = entries(_label_of, {"pattern": f"^{_LABEL}$"}, TEXT, "{team: ml}", "names and texts")
_LENGTH: Final = quantity(quantities.window, _window_text, "28d, or month@Europe/Berlin", "length of time", _LENGTHS)
_PERIOD: Final = {"type": "string", "pattern": rf"^({_in_any_case(*CALENDAR)})(@\S*)?$"}
_CALENDAR: Final = record("a window", {"calendar": Key(one_of(*CALENDAR)), "timezone": Key(WORD)}, _calendar, "calendar", f"one of {', '.join(CALENDAR)}")
WINDOW: Final = Kind(_window, {"anyOf": [{"type": "string", "pattern": f"{_LENGTHS}$"}, _PERIOD, _CALENDAR.schema], "examples": ["28d", "month@Europe/Berlin"]}, "length of time, or period of a calendar", _window_text)
