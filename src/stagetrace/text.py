"""Text of unknown origin, made fit to be shown: bounded, printable, without credentials."""

from __future__ import annotations

import functools
import json
import re
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_plus

from stagetrace import settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def _compiled(pattern: str, flags: int = 0) -> Callable[[], re.Pattern[str]]:
    """Return what compiles a pattern when it is first asked: all of them take 3 ms, most services need few."""
    return functools.cache(lambda: re.compile(pattern, flags))


# --- Text of unknown origin, made fit to be shown: on a terminal, in JSON, in a spreadsheet, in an error message.
#
# Names and attributes of spans come from whoever sends requests. Characters that do not show (control characters, those
# that turn the direction of text, invisible ones, halves of surrogate pairs) are escaped, as Python or JSON writes
# them.

MESSAGE: Final = 1000  # characters of an error message, as a command, the back end or a log shows it
LINES: Final = 3
TRACEBACK: Final = (10_000, 100)  # likewise, and lines, of a traceback
_HIDDEN: Final = _compiled(r"[^ -~\u00a1-\u00ac\u00ae-\u02ff]")  # may be: the rest is looked at one by one
_END: Final = 3  # the part of a message that is cut which is kept of its end, where the remedy stands: a third
_FORMULA: Final = tuple("=+-@\t\r\n＝＋－＠")  # noqa: RUF001 -- full-width ones begin a formula, too
_NUMBER: Final = _compiled(r"[+-]?[0-9.,]+([eE][+-]?[0-9]+)?")


def printable(text: str) -> str:
    """Return text as one line, with every character escaped that does not show."""
    return text if text.isprintable() else _HIDDEN().sub(_escaped, text)


def printable_lines(text: str) -> str:
    """Return text as `printable` does, with its line breaks and tabs."""
    return _HIDDEN().sub(lambda found: found[0] if found[0] in "\n\t" else _escaped(found), text)


def printable_json(text: str) -> str:
    """Return JSON that means the same and has every character escaped that does not show."""
    return text if text.isprintable() else _HIDDEN().sub(_escaped_in_json, text)


def spreadsheet_cell(text: str) -> str:
    """Return text as a cell of CSV: printable, and behind a `'` where a spreadsheet would run it as a formula."""
    is_formula = text.startswith(_FORMULA) and not _NUMBER().fullmatch(text)
    return f"'{printable(text)}" if is_formula else printable(text)


def bounded(text: str, characters: int = MESSAGE, lines: int = LINES) -> str:
    """Return text as printable lines, bounded: what is cut is counted where it stood, begin and end are kept."""
    shown = printable_lines(text)
    parts = shown.split("\n")
    if len(parts) > lines:
        cut = f" ... [{len(parts) - lines:,} lines cut]"
        shown = "\n".join([*parts[: lines - 2], parts[lines - 2] + cut, parts[-1]])
    if len(shown) > characters:
        cut = f" ... [{len(shown) - characters:,} characters cut] ... "
        end = characters // _END
        shown = f"{shown[: characters - end]}{cut}{shown[-end:]}"
    return shown


def _escaped(found: re.Match[str]) -> str:
    character = found[0]
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def _escaped_in_json(found: re.Match[str]) -> str:
    character = found[0]
    if character.isprintable():
        return character
    return "\\u007f" if character == "\x7f" else json.dumps(character)[1:-1]


# --- Redact credentials: in query strings and headers by their names, in any text by names and by the forms of secrets.
#
# The words that make a name secret are `config.redacted()`. Each function takes time that is linear in its text.

REDACTED: Final = "REDACTED"
ONLY_AS_A_WHOLE: Final = "^(?:auth|code|key|sig)$"  # inside longer names these are harmless too often

# Linear: each alternative begins with a literal, or where a word begins, and has only bounded repeats or such as end
# where the next attempt may begin.
_FORMS: Final = _compiled(
    # user and password of a URL, of `user:password@host` without a scheme
    r"(?P<scheme>://)(?:[^\s/?\#\"'<>]*@|[^\s:/@?\#\[]{0,256}:(?!\d{1,5}(?:[/?\#\s\"']|$))[^\s@\"']{1,256}@)"
    r"|(?<![^\s\"'(=,])[^\s/:@\"'=,(]{1,128}:[^\s/@]{1,128}@(?=[\w.\[-])"
    # of HTTP's `Authorization`, wherever it stands; not of `Basic authentication`
    r"|\b(?P<kind>[Bb]earer|[Bb]asic)[ ]{1,3}(?![a-z]+(?:[\s.,;:!?)\"']|$))[\w.~+/=-]{6,}"
    # JSON Web Tokens; keys of AWS, OpenAI and Anthropic, Stripe, GitHub, GitLab, Slack, Hugging Face, Google
    r"|(?<![\w-])eyJ[\w-]{13,}(?:\.[\w-]*){1,4}"
    r"|(?<![A-Za-z0-9])A[KS]IA[A-Z0-9]{16}(?![A-Za-z0-9])"
    r"|(?<![\w-])(?:sk-|(?:sk|pk|rk)_(?:live|test)_|gh[pousr]_|github_pat_|glpat-|xox[a-z]-|hf_|AIza|ya29\.)[\w-]{16,}"
    # private keys; what SQLAlchemy writes of a statement's parameters: each once to its end, or to that of the text
    r"|-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----(?s:.*?-----END [A-Z ]{0,40}-----|.*)"
    r"|(?P<parameters>\[parameters: )(?s:.*?\](?=\n|$)|.*)"
)
# `name=`, `name: `, `"name": `, `('name', `, and `--name `, but for the value.
_NAME: Final = _compiled(
    r"(?<![\w.%-])(?:--?(?P<option>[A-Za-z][\w.-]*)\s"
    r"|(?P<name>[\w.%-]+)(?:\\?[\"']?[ \t]{0,3}(?:=>|:=|[=:]{1,2})[ \t]{0,3}|[\"'],[ \t]{0,3}(?=b?[\"'])))"
)
_WHOLE: Final = _compiled(  # a quoted value, also one within a quoted text; a list
    r"[bfru]?(?:\"(?:[^\"\\]|\\.)*(?:\"|\\?$)|'(?:[^'\\]|\\.)*(?:'|\\?$))"
    r"|\\\"(?:[^\"\\]|\\[^\"])*(?:\\?\"|\\?$)"
    r"|[\[({][^\])}]*[\])}]?",
    re.DOTALL,
)
_WORD: Final = _compiled(r"(?:[Bb]earer|[Bb]asic|[Dd]igest|[Tt]oken)[ ]+[^\s,;\"'})\]]+|[^\s,;&\"'})\]]+")
_REST_OF_LINE: Final = _compiled(r"[^\r\n\"']+")  # of `Cookie: a=1; b=2`, and `Authorization: Digest a=1, b=2`
_HEADERS: Final = _compiled("cookie|authoriz", re.IGNORECASE)
_NOT_SECRET: Final = ("unauthenticated",)  # a status of gRPC
_ONLY_IN_QUERIES: Final = ("code", "key", "sig")  # `code: 500` is no secret elsewhere
_IN_QUERY: Final = _compiled(r"[?&;]")
_LONG: Final = 16  # characters that each key and token of a known form has in a row, at least


@functools.cache
def _secret() -> re.Pattern[str]:
    """Return what a name contains that is secret, compiled once in a process."""
    return re.compile("|".join(name_patterns()), re.IGNORECASE)


def name_patterns() -> list[str]:
    """Return the regular expressions that find the name of a secret."""
    return [*map(re.escape, settings.redacted()), ONLY_AS_A_WHOLE]


def is_secret(name: str) -> bool:
    """Return whether the value of a header or a query parameter of this name is secret."""
    return _secret().search(name) is not None


def redacted_query(text: str) -> str:
    """Return a query string with its secrets redacted."""
    return "".join(map(_pair, re.split("([&;])", text)))


def _pair(pair: str) -> str:
    name, is_given, value = pair.partition("=")
    return f"{name}={REDACTED}" if is_given and is_secret(unquote_plus(name)) else f"{name}{is_given}{_formed(value)}"


def redacted(text: str) -> str:
    """Return a text with the credentials in it redacted, as far as their names or their forms show them."""
    return _named(_formed(text))


def redacted_arguments(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of a command line with the credentials in them redacted, as of `--token VALUE`."""
    before = ("", *arguments)
    values = [one.startswith("-") and "=" not in one and is_secret(one.lstrip("-")) for one in before]
    return [REDACTED if is_value else redacted(one) for is_value, one in zip(values, arguments, strict=False)]


def redacted_start(text: str, most: int) -> str:
    """Return the first `most` characters of a text, redacted, with a mark where more was cut.

    The text is redacted first, as far as twice that: a credential at the cut is then seen as a whole.
    """
    short = redacted(text[: 2 * most])
    if len(text) <= 2 * most and len(short) <= most:
        return short
    return f"{short[:most]}... (cut, of {len(text)} characters)"


def redacted_end(text: str, most: int) -> str:
    """Return the last characters of a text as `redacted_start` returns the first ones."""
    short = redacted(text[-2 * most :])
    if len(text) <= 2 * most and len(short) <= most:
        return short
    return f"(cut, of {len(text)} characters) ...{short[-most:]}"


def redacted_path(path: str) -> str:
    """Return the path of a URL with the credentials in it redacted; cheap where it holds none, as each request asks."""
    if "=" in path:
        return redacted(path)
    if "@" in path or (len(path) > _LONG and any(len(part) >= _LONG for part in path.split("/"))):
        return _formed(path)  # `name:` is no name of a value there: `/models/tokenizer:predict`
    return path


def _formed(text: str) -> str:
    return _FORMS().sub(_replaced, text)


def _replaced(found: re.Match[str]) -> str:
    if found["scheme"]:
        return f"://{REDACTED}@"
    if found["kind"]:
        return f"{found['kind']} {REDACTED}"
    if found["parameters"]:
        return f"{found['parameters']}{REDACTED}]"
    return f"{REDACTED}@" if found[0].endswith("@") else REDACTED


def _named(text: str) -> str:
    """Redact the values that follow secret names."""
    parts: list[str] = []
    kept = at = 0
    while found := _NAME().search(text, at):
        at = found.end()
        name = unquote_plus(found["option"] or found["name"])
        if (
            not is_secret(name)
            or name.lower() in _NOT_SECRET
            or (name.lower() in _ONLY_IN_QUERIES and not _in_query(text, found))
        ):
            continue
        value = _WHOLE().match(text, at) or (_REST_OF_LINE() if _HEADERS().search(name) else _WORD()).match(text, at)
        if value is not None:
            parts += text[kept:at], REDACTED
            kept = at = value.end()
    return "".join((*parts, text[kept:]))


def _in_query(text: str, found: re.Match[str]) -> bool:
    return _IN_QUERY().match(text, found.start() - 1) is not None if found.start() else False
