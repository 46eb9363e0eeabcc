"""Run the query of a verb on the store that the command line names, or of all that answer, and print it in any form."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeAlias

from stagetrace.cli import output
from stagetrace.cli.arguments import POLICY, read_policy, selection, selection_options, store_url
from stagetrace.cli.output import show, show_json, show_progress, show_short, warn
from stagetrace.cli.registry import ANSWERED, ANSWERS, BAD, NO_ANSWER, Option, UsageError, add_options, load
from stagetrace.errors import StagetraceError
from stagetrace.output import chart
from stagetrace.output.answer import Answer, as_json, completeness, markdown
from stagetrace.output.chart import Bars, Chart
from stagetrace.output.html import page
from stagetrace.output.table import Column, Table, numbers
from stagetrace.output.units import UTC, Moment, Zone, milliseconds, shown
from stagetrace.store import open_store
from stagetrace.store.base import Reader, Selection

if TYPE_CHECKING:
    from stagetrace.page.base import Option as PageOption
    from stagetrace.policy.policy import Policy

    Question: TypeAlias = Callable[[Reader, Selection, argparse.Namespace], Answer]

# --- The forms in which an answer is printed: text with pictures, JSON, Markdown, a page of HTML.

TEXT: Final = "text"
MARKDOWN: Final = "markdown"
HTML: Final = "html"


def format_option(*more: str) -> Option:
    """Return `--format`, with the forms that every answer has and `more` of this verb's own."""
    forms = (TEXT, MARKDOWN, HTML, *more)
    about = f"how to print the answer: {', '.join(forms)}; default: {TEXT}"
    return Option("--format", about, default=TEXT, choices=forms)


LONG: Final = Option("--long", "print all tables, pictures and notes, not the first table alone")
PRINTED: Final = (format_option(), LONG)


def print_answer(args: argparse.Namespace, answer: Answer) -> int:
    """Print an answer in the form asked for and return the exit code. Raise UsageError if two forms are asked for."""
    check_form(args)
    zone = getattr(args, "tz", UTC)
    if args.json:
        show_json(as_json(answer))
    elif args.format == HTML:
        sys.stdout.write(page(answer.title, [answer], zone))
    else:
        show_answer(answer, args.format, zone, is_long=args.long)
    warn(answer.reason)
    return BAD if answer.is_bad else NO_ANSWER if answer.is_undecided else ANSWERED


def check_form(args: argparse.Namespace) -> None:
    """Raise UsageError if two forms are asked for."""
    if args.json and args.format != TEXT:
        raise UsageError(f"--json and --format {args.format} are two forms\ngive one of them")


def show_answer(answer: Answer, form: str, zone: Zone, *, is_long: bool) -> None:
    """Print one answer as text or Markdown; as text, unless it shall be long, no more than one table or picture."""
    if form == MARKDOWN:
        sys.stdout.write(markdown(answer, zone))
        return
    steps = [f"Next: {one}" for one in answer.steps]
    if is_long:
        parts = (one for part in answer.parts for one in ("", *_draw(part, zone)))
        show(answer.sentence, *parts, *(["", *steps] if steps else []))
        return
    first = next((part for part in answer.parts if not isinstance(part, str)), None)
    has_more = len(answer.parts) > (first is not None)
    show_short([answer.sentence], () if first is None else _draw(first, zone), steps, has_more=has_more)


def _draw(part: str | Table | Chart, zone: Zone) -> Sequence[str | Table]:
    """Return a part for a terminal: pictures as lines."""
    if isinstance(part, (str, Table)):
        return (part,)
    return chart.lines(part, output.terminal_width(), chart.BLOCKS if output.shows_blocks() else chart.ASCII, zone)


# --- Run the query of a verb: on the store that the command line names, to print the answer, or for another form of it.

# Options that all verbs with an answer share, by the names of their values.
_REASONS: Final = 3  # why requests are not judged, of which there may be many
_SHARED: Final = frozenset(one.flags[0][2:].replace("-", "_") for one in (*selection_options(), POLICY))


@contextmanager
def reading(
    args: argparse.Namespace, *, url: str | None = None, since: Moment | None = None, breached: bool | None = None
) -> Iterator[tuple[Reader, Selection]]:
    """Open the store that the command line names, unless it is at `url`; give its reader and what is selected.

    `since`: the verb's default of `--since`, where it is not an hour.
    """
    url = store_url(args) if url is None else url
    wanted = selection(args, url, since=since, breached=breached)
    with open_store(url) as reader, show_progress(reader):
        is_of_one = getattr(args, "id", None) is not None  # which is not among those that are selected
        yield reader, wanted if is_of_one else judged(reader, wanted, args)


def judged(reader: Reader, wanted: Selection, args: argparse.Namespace) -> Selection:
    """Return the selection in which requests without a verdict have that of `--sla`, and say how many there are."""
    given = getattr(args, "sla", None)
    if given is None:
        return wanted
    from stagetrace.analysis import judging

    with reader.relations(wanted.by_time) as relations:
        found = judging.ask(relations, read_policy(given))
    told = f"{found.afterwards:,} requests are judged afterwards by --sla, {found.inline:,} were as they ended"
    left = [f"{count:,} are not judged: {why}" for why, count in found.left.most_common(_REASONS)]
    sys.stderr.write(f"note: {'; '.join([told, *left])}\n")
    return replace(wanted, judging=found.judging)


def ask(args: argparse.Namespace, answer: Question, *, url: str | None = None, since: Moment | None = None) -> int:
    """Run `answer` on the selected requests of a store, as `reading` opens it; print it, and return the exit code."""
    with reading(args, url=url, since=since) as (reader, wanted):
        return print_answer(args, answer(reader, wanted, args))


class _Parser(argparse.ArgumentParser):
    """Parses the options of one verb, none of which must be given."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        raise UsageError(f"{self.prog}: {message}\ntry: stagetrace {self.prog} --help")


def answer_of(
    store: str,
    verb: str,
    reader: Reader,
    wanted: Selection,
    options: Sequence[str],
    zone: Zone,
    policy: Callable[[], Policy | None] = lambda: None,
) -> Answer:
    """Return the answer of a verb to a selection in a store; `options` as on a command line. Raise StagetraceError.

    `policy`: returns the objectives that are evaluated where this is asked.

    A selection from where the verb begins without `--since` (its `SINCE`) is one without it.
    """
    module: Any = load(verb)
    start = Moment(wanted.since_ns, ago=False)
    since = None if start == getattr(module, "SINCE", None) else start
    until = None if wanted.until_ns > time.time_ns() else Moment(wanted.until_ns, ago=False)  # no end is meant
    shared = {**vars(wanted), "segment": list(wanted.segments.items()), "since": since, "until": until}
    own = arguments_of(verb, options, {**shared, "tz": zone, "store": store, "policy": policy()})
    answer: Answer = module.answer(reader, judged(reader, wanted, own), own)
    return answer


def options_of(verb: str) -> list[PageOption]:
    """Return the options of a verb, as its help has them."""
    from stagetrace.page.base import Option as PageOption

    return [
        PageOption(
            one.flags[-1],
            (one.metavar or one.flags[-1][2:].upper()) if one.takes_value else None,
            one.about,
            repeats=one.repeats,
        )
        for one in load(verb).OPTIONS
        if one.flags
    ]


def arguments_of(verb: str, given: Sequence[str], shared: Mapping[str, Any]) -> argparse.Namespace:
    """Return a verb's options, as given or at their defaults, and those that all verbs share as `shared` has them."""
    parser = _Parser(prog=verb, add_help=False, allow_abbrev=False)
    # argparse gives defaults only where nothing is missing.
    add_options(parser, [one._replace(required=False, many=one.many or "?") for one in load(verb).OPTIONS])
    own = parser.parse_args(given)
    for name in _SHARED & vars(own).keys() & shared.keys():
        setattr(own, name, shared[name])
    return own


# --- The answers of all verbs that give one, of one selection, for `stagetrace report --all`.

BENCH: Final = "bench"
TITLE: Final = "Latency: the ten answers"


ALL: Final = (
    Option(
        "--all",
        "the answers of all ten verbs to this selection (default: the last hour), with --format html on one page",
    ),
    Option(
        "--with 'VERB OPTIONS'",
        "of --all: ask a verb with options, as 'segments --by tenant.id'; may be repeated",
        repeats=True,
        key="options",
    ),
    Option("--bench FILE", "of --all: the benchmark is what `bench --json` printed to a file", Path),
)


def run_all(args: argparse.Namespace) -> int:
    """Print all answers and return the exit code: bad if one of them is."""
    check_form(args)
    if args.period or args.exclude or args.credits:
        raise UsageError("--period, --exclude and --credits are of the report alone\nleave them or --all out")
    asked, bench = _options_by_verb(args), _of_bench(args.bench)
    with reading(args) as (reader, wanted):
        window = {**vars(args), "since": Moment(wanted.since_ns, ago=False)}
        if args.policy is None:  # that of `--with` counts
            del window["policy"]
        answers = dict(_answers(reader, wanted, window, asked))
    answers[BENCH] = bench
    since = f"Requests since {shown(wanted.since_ns, args.tz, 0)} {args.tz.name}, of {store_url(args)}"
    reason = "; ".join(f"{verb}: {one.reason}" for verb, one in answers.items() if not one.complete) or None
    if args.json:
        keys = {verb: as_json(one) for verb, one in answers.items()}
        first = next(iter(answers.values())).sentence
        show_json({**completeness(reason), "sentence": first, "answers": keys})
    elif args.format == HTML:
        sys.stdout.write(page(TITLE, list(answers.values()), args.tz, [since]))
    else:
        show(since)
        for one in answers.values():
            show("", *([] if args.format == MARKDOWN else [one.title.upper()]))
            show_answer(one, args.format, args.tz, is_long=args.long)
    warn(reason)
    return BAD if any(one.is_bad for one in answers.values()) else ANSWERED


def _options_by_verb(args: argparse.Namespace) -> dict[str, list[str]]:
    """Return verb -> its options, of those that `--with` names. Raise UsageError for an unknown verb."""
    asked: dict[str, list[str]] = {}
    for text in args.options:
        try:
            verb, *options = shlex.split(text) or [""]
        except ValueError as error:
            raise UsageError(f"--with {text!r} cannot be read: {error}\nclose its quotes") from None
        if verb not in ANSWERS:
            raise UsageError(f"--with {text!r} names none of the verbs\nthere are {', '.join(ANSWERS)}")
        asked.setdefault(verb, []).extend(options)
    return asked


def _answers(
    reader: Reader, wanted: Selection, shared: Mapping[str, Any], asked: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, Answer]]:
    """Yield each verb's answer; the error of one is its sentence."""
    for verb in ANSWERS:
        module: Any = load(verb)
        own = arguments_of(verb, asked.get(verb, ()), shared)
        try:
            yield verb, module.answer(reader, wanted, own)
        except StagetraceError as error:
            yield verb, Answer(verb.capitalize(), f"No answer: {'; '.join(str(error).splitlines())}.", {})


def _of_bench(path: Path | None) -> Answer:
    """Return the answer of a benchmark that was run before. Raise UsageError if the file holds none."""
    if path is None:
        remedy = "stagetrace bench URL --json > FILE, and then report --all --bench FILE"
        return Answer("Benchmark", f"No load was put on the service: {remedy}.", {})
    from stagetrace.analysis.bench import BROKEN

    try:
        found = json.loads(path.read_text("utf-8"))
        stages, quantiles = found["stages"], found["quantiles"]
        rows = [
            (name, *(milliseconds(one.get(q)) for q in quantiles))
            for name, one in {"(request)": quantiles, **stages}.items()
        ]
        bars = [(name, one.get("p99"), milliseconds(one.get("p99"))) for name, one in stages.items()]
        complete, reason = found.pop("complete"), found.pop("reason", None) or ""
        answer = Answer("Benchmark", found.pop("sentence"), found, reason=None if complete else reason)
        broken = (found.get("objective") or {}).get("verdict") == BROKEN
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        wrong = f"cannot read a benchmark in {path}: {error!r}"
        raise UsageError(f"{wrong}\nmake it: stagetrace bench URL --json > {path}") from None
    columns = (Column("stage"), *numbers(*quantiles))
    pictures = [Bars("p99 of the server's stages", bars)] if bars else []
    return replace(answer, parts=[Table(columns, rows), *pictures], is_bad=broken or found.get("valid") is False)
