"""The answers of all verbs that give one, of one selection, for `stagetrace report --all`."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from stagetrace.cli.ask import arguments_of
from stagetrace.cli.base import ANSWERED, BAD, UsageError
from stagetrace.cli.output.formats import HTML, MARKDOWN, TEXT, show_answer
from stagetrace.cli.output.lines import show, show_json, warn
from stagetrace.cli.output.terminal import watched
from stagetrace.cli.registry import ANSWERS, load
from stagetrace.errors import StagetraceError
from stagetrace.output.answer import Answer, as_json
from stagetrace.output.chart import Bars
from stagetrace.output.keys import completeness
from stagetrace.output.table_layout import Column, Table
from stagetrace.output.times import Moment, shown
from stagetrace.output.units import milliseconds
from stagetrace.store import open_store
from stagetrace.store.base import Reader, Selection

BENCH: Final = "bench"
TITLE: Final = "Latency: the ten answers"


def add_all(parser: argparse.ArgumentParser) -> None:
    """Add the options that ask for all answers."""
    parser.add_argument(
        "--all",
        action="store_true",
        help="the answers of all ten verbs to this selection (default: the last hour), with --format html on one page",
    )
    parser.add_argument(
        "--with",
        dest="options",
        metavar="'VERB OPTIONS'",
        action="append",
        default=[],
        help="of --all: ask a verb with options, as 'segments --by tenant.id'; may be repeated",
    )
    parser.add_argument(
        "--bench", metavar="FILE", type=Path, help="of --all: the benchmark is what `bench --json` printed to a file"
    )


def run_all(args: argparse.Namespace, url: str, wanted: Selection) -> int:
    """Print all answers and return the exit code: bad if one of them is."""
    if args.json and args.format != TEXT:
        raise UsageError(f"--json and --format {args.format} are two forms\ngive one of them")
    if args.period or args.exclude or args.credits:
        raise UsageError("--period, --exclude and --credits are of the report alone\nleave them or --all out")
    asked, bench = _asked(args), _of_bench(args.bench)
    window = argparse.Namespace(**{**vars(args), "since": Moment(wanted.since_ns, ago=False)})
    if args.policy is None:  # that of `--with` counts
        del window.policy
    with open_store(url) as reader, watched(reader):
        answers = dict(_answers(reader, wanted, window, asked))
    answers[BENCH] = bench
    since = f"Requests since {shown(wanted.since_ns, args.tz, 0)} {args.tz.name}, of {url}"
    reason = "; ".join(f"{verb}: {one.reason}" for verb, one in answers.items() if not one.complete) or None
    if args.json:
        keys = {verb: as_json(one) for verb, one in answers.items()}
        first = next(iter(answers.values())).sentence
        show_json({**completeness(reason), "sentence": first, "answers": keys})
    elif args.format == HTML:
        from stagetrace.output.html_page import page

        sys.stdout.write(page(TITLE, list(answers.values()), args.tz, [since]))
    else:
        show(since)
        for one in answers.values():
            show("", *([] if args.format == MARKDOWN else [one.title.upper()]))
            show_answer(one, args.format, args.tz)
    warn(reason)
    return BAD if any(one.is_bad for one in answers.values()) else ANSWERED


def _asked(args: argparse.Namespace) -> dict[str, list[str]]:
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
    reader: Reader, wanted: Selection, args: argparse.Namespace, asked: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, Answer]]:
    """Yield each verb's answer; the error of one is its sentence."""
    for verb in ANSWERS:
        module: Any = load(verb)
        own = arguments_of(verb, module, asked.get(verb, ()), vars(args))
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
            (name, *(_ms(one.get(q)) for q in quantiles)) for name, one in {"(request)": quantiles, **stages}.items()
        ]
        bars = [(name, one.get("p99"), _ms(one.get("p99"))) for name, one in stages.items()]
        complete, reason = found.pop("complete"), found.pop("reason", None) or ""
        answer = Answer("Benchmark", found.pop("sentence"), found, reason=None if complete else reason)
        broken = (found.get("objective") or {}).get("verdict") == BROKEN
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        wrong = f"cannot read a benchmark in {path}: {error!r}"
        raise UsageError(f"{wrong}\nmake it: stagetrace bench URL --json > {path}") from None
    columns = (Column("stage"), *(Column(q, is_number=True) for q in quantiles))
    pictures = [Bars("p99 of the server's stages", bars)] if bars else []
    return replace(answer, parts=[Table(columns, rows), *pictures], is_bad=broken or found.get("valid") is False)


def _ms(value: float | None) -> str:
    return "-" if value is None else milliseconds(value)
