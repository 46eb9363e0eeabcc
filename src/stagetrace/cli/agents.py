"""What agents ask: the tools of `stagetrace mcp` and of `/mcp`, each the question of a command."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

from stagetrace import semconv
from stagetrace.cli.arguments import LATEST, count, selection, selection_options, trace_id, whole_id
from stagetrace.cli.ask import judged
from stagetrace.cli.keywords import answer_to, command, keyword, parsed
from stagetrace.cli.registry import Option, UsageError, load
from stagetrace.errors import StagetraceError
from stagetrace.mcp import source
from stagetrace.mcp.base import Found, Tool
from stagetrace.output.answer import as_json
from stagetrace.output.breaches import groups_as_json, summary
from stagetrace.output.processes import FAIL, WARN
from stagetrace.output.trace import stalls_of
from stagetrace.page.queries import Readers, limited
from stagetrace.semconv import json_value
from stagetrace.store.base import SERVER, Reader, Trace

_LIMIT_S: Final = 60.0
_SELECTED: Final = ("since", "until", "service", "route", "model", "segment")
_GROUPS: Final = 10
_ROWS: Final = 50
_MOST_ROWS: Final = 1000
_EVIDENCE: Final = 3
_MOST_EVIDENCE: Final = 8
_ENDS: Final = ("complete", "reason", "sentence", "next")  # of JSON, which stand elsewhere in a result
_TRACE: Final = {
    "id": {"type": "string", "description": "trace id, or its first digits (4 or more), or latest: the newest breach"},
}
_DOCTOR: Final = ("-c", "import sys; from stagetrace.cli.main import main; sys.exit(main(sys.argv[1:]))")


class _Question(NamedTuple):
    verb: str
    about: str
    takes: Sequence[str] = _SELECTED  # options, by their keywords
    required: Sequence[str] = ()


_OF_VERBS: Final = {
    "why": _Question(
        "why",
        "What is wrong now: the largest groups of requests that missed their objective, each with stage, cause, line "
        "of code, who is hit, since when, and how much time is lost. Begin here.",
    ),
    "explain_request": _Question(
        "why",
        "Why one request was late: its verdict, stage, cause, evidence and line of code, what its stages usually "
        "take, and how many breaches are like it. Takes a trace id, or `latest`.",
        ("id",),
        ("id",),
    ),
    "where_does_time_go": _Question(
        "bottleneck",
        "Which stage and cause takes the time of requests, at the median and in the tail, with intervals, and what an "
        "improvement of a stage would give.",
        (*_SELECTED, "by"),
    ),
    "causes": _Question(
        "causes",
        "What distinguishes the late requests from the good ones of the same route: attributes, stages, causes, a "
        "moment since when, services downstream. Names nothing where nothing distinguishes them.",
        (*_SELECTED, "against"),
    ),
    "compare": _Question(
        "compare",
        "Whether one version, model, route, period or attribute is slower than another, by how much and how sure "
        "that is. Without `a` and `b`: the two newest versions of the model.",
        (*_SELECTED, "a", "b", "quantiles"),
    ),
    "slo": _Question(
        "slo",
        "Whether each objective is kept, with the interval of its attainment, and how long its error budget lasts.",
        ("service", "route", "model", "segment", "since", "until", "by"),
    ),
    "capacity": _Question(
        "capacity",
        "How much load a service takes, how much is left, and when to scale.",
        (*_SELECTED, "rate", "objective"),
    ),
    "what_if": _Question(
        "what-if",
        "How requests of a service would fare with other workers, threads, batches, load or stages, by simulating "
        "those recorded: percentiles and breaches with intervals, what is then most in use, or why it cannot tell.",
        ("service", "since", "until", "workers", "threads", "batch_size", "batch_wait", "rate", "stage", "find"),
    ),
}


class Agents:
    """The tools over one store. Each question has a reader of its own, and a limit of time."""

    def __init__(self, url: str, open_reader: Callable[[], Reader], roots: Sequence[Path] = ()) -> None:
        """Ask the store at `url`; code is looked for below `roots`."""
        self.url = url
        self._readers = Readers(open_reader)
        self._roots = roots

    def close(self) -> None:
        """Close what reads."""
        self._readers.close()

    def tools(self) -> list[Tool]:
        """Return all tools."""
        return [
            *(self._of_verb(name, one) for name, one in _OF_VERBS.items()),
            Tool(
                "breaches",
                "The requests that missed their objective, in groups of those that are alike, the largest first.",
                _properties(selection_options(), (*_SELECTED, "cause", "code", "judged_by")),
                self._asked(self._breaches),
            ),
            Tool("services", "The services that have spans in the store.", {}, self._asked(self._services)),
            Tool(
                "code_at",
                "The source around the line at which a late request stood, where the file is on this machine. Takes "
                "a trace id; only lines that its stored spans name can be read.",
                _code_properties(),
                self._asked(self._code_at),
                ("id",),
            ),
            Tool(
                "sql",
                f"The rows of one SELECT in DuckDB's SQL over the relations `requests` and `spans`, {_ROWS} at most "
                f"unless `rows` asks for more (up to {_MOST_ROWS}). `DESCRIBE requests` lists the columns.",
                {
                    **_properties(load("query").OPTIONS, (*_SELECTED, "rows")),
                    "sql": {"type": "string", "description": "one SELECT, DESCRIBE or SUMMARIZE statement"},
                },
                self._asked(self._sql),
                ("sql",),
            ),
            Tool(
                "doctor",
                "Whether recording works on this machine: installation, settings, delivery of spans, running services.",
                {},
                lambda given: _doctor(_none_of("doctor", given)),
            ),
        ]

    def _asked(self, ask: Callable[[Reader, Mapping[str, Any]], Found]) -> Callable[[Mapping[str, Any]], Found]:
        def answer(given: Mapping[str, Any]) -> Found:
            with self._readers.one() as reader, limited(reader, _LIMIT_S):
                return ask(reader, given)

        return answer

    def _of_verb(self, name: str, one: _Question) -> Tool:
        options = load(one.verb).OPTIONS

        def ask(reader: Reader, given: Mapping[str, Any]) -> Found:
            _check(name, given, one.takes, one.required)
            _check_sides(name, given)
            if given.get("id") == LATEST:  # of a late one: why is asked of no other
                given = {**given, "id": whole_id(reader, LATEST, None, breached=True).trace_id}
            answer, _ = answer_to(reader, self.url, one.verb, given)
            figures = {key: value for key, value in as_json(answer).items() if key not in _ENDS}
            evidence = list(islice(dict.fromkeys(_trace_ids(figures)), _MOST_EVIDENCE))
            if not evidence and name != "compare":  # whose sides are other requests than those selected
                evidence = self._slowest(reader, given)
            asked = {**given, "id": figures["trace_id"]} if "id" in given else given  # the whole of it
            return Found(
                answer.sentence,
                command(one.verb, options, asked, self.url),
                figures,
                evidence,
                answer.steps,
                answer.reason,
            )

        properties = _TRACE if one.takes == tuple(_TRACE) else _properties(options, one.takes)
        return Tool(name, one.about, properties, self._asked(ask), one.required)

    def _slowest(self, reader: Reader, given: Mapping[str, Any]) -> list[str]:
        """Return the ids of the longest requests of a selection, where its answer has none of its own."""
        from stagetrace.store import answers

        chosen = {name: value for name, value in given.items() if name in _SELECTED}
        args = parsed("requests", selection_options(), chosen)
        with reader.relations(selection(args, self.url)) as relations:
            return [row["trace_id"] for row in answers.requests(relations, "duration", _EVIDENCE)]

    def _breaches(self, reader: Reader, given: Mapping[str, Any]) -> Found:
        from stagetrace.analysis import breach_details

        options = selection_options()
        _check("breaches", given, (*_SELECTED, "cause", "code", "judged_by"))
        args = parsed("breaches", options, given)
        wanted = judged(reader, selection(args, self.url), args)
        tally = reader.breaches(replace(wanted, limit=1)).tally
        with reader.relations(replace(wanted, breached=True)) as relations:
            found = breach_details.ask(relations, _GROUPS)
        answer = groups_as_json(found, tally, relations.reason, _GROUPS)
        return Found(
            " ".join(summary(reader, tally, wanted, args.tz)),
            command("breaches", options, given, self.url),
            {key: value for key, value in answer.items() if key not in _ENDS},
            [one.worst_trace_id for one in found.groups][:_MOST_EVIDENCE],
            reason=answer.get("reason"),
        )

    def _services(self, reader: Reader, given: Mapping[str, Any]) -> Found:
        found = reader.services()
        names = f"Services with spans: {', '.join(found)}." if found else "No service has spans here."
        return Found(names, command("services", (), _none_of("services", given), self.url), {"services": list(found)})

    def _sql(self, reader: Reader, given: Mapping[str, Any]) -> Found:
        options = load("query").OPTIONS
        _check("sql", given, ("sql", *_SELECTED, "rows"), ("sql",))
        args = parsed("sql", options, {"rows": _ROWS, **given})
        if args.rows > _MOST_ROWS:
            raise UsageError(f"sql: rows is at most {_MOST_ROWS}, and {args.rows:,} were asked for")
        with reader.relations(selection(args, self.url)) as relations:
            names, rows = relations.select(args.sql)
            kept = [[_plain(value) for value in row] for row in islice(rows, args.rows + 1)]
        cut = f"there are more than {args.rows} rows" if len(kept) > args.rows else None
        told = f"{'more than ' if cut else ''}{min(len(kept), args.rows)} rows"
        reason = "; ".join(filter(None, (relations.reason, cut))) or None
        shown = {"columns": names, "rows": kept[: args.rows]}
        return Found(f"The statement gave {told}.", command("query", options, given, self.url), shown, reason=reason)

    def _code_at(self, reader: Reader, given: Mapping[str, Any]) -> Found:
        _check("code_at", given, ("id", "line"), ("id",))
        meant = whole_id(reader, _id(given["id"]), None, breached=given["id"] == "latest")
        trace = reader.trace(meant.trace_id)
        places = list(dict.fromkeys(_places(trace)))
        if isinstance(given.get("line"), int):
            places = [one for one in places if one.line == given["line"]]
        elif given.get("line") is not None:
            raise UsageError("code_at: line is the number of a line that this request stood at")
        made = command("why", load("why").OPTIONS, {"id": trace.trace_id}, self.url)
        if not places:
            told = "No stack of this request is stored: it was not late, or was so too shortly to be sampled."
            return Found(told, made, {"places": []}, [trace.trace_id], reason=trace.reason)
        shown = [self._shown(one) for one in places]
        first = places[0]
        there = next((one for one in shown if "lines" in one), None)
        text = f"{first.path}:{first.line} in {first.function or '?'}"
        told = (
            f"It stood at {text}; the source of {'it' if there is shown[0] else 'another place'} is here."
            if there
            else f"It stood at {text}, and the source is not below {', '.join(map(str, self._roots))}."
        )
        return Found(told, made, {"places": shown}, [trace.trace_id], reason=trace.reason)

    def _shown(self, place: source.Place) -> dict[str, Any]:
        """Return a place, with the lines around it where they are here."""
        found: dict[str, Any] = place._asdict()
        files = source.files_of(place, self._roots)
        if len(files) > 1:
            return {**found, "several_files": [str(one) for one in files[:_MOST_EVIDENCE]]}
        if not files:
            return found
        read = source.around(files[0], place.line)
        numbered = [f"{'>' if at == place.line else ' '}{at} {text}" for at, text in enumerate(read.lines, read.first)]
        return {**found, "file": str(read.file), "lines": numbered}


# --- What tools take and give.


def _properties(options: Sequence[Option], takes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the JSON Schema of options of a command."""
    named = {keyword(one): one for one in options}
    return {name: _schema(named[name]) for name in takes if name in named}


def _schema(option: Option) -> dict[str, Any]:
    about = {"description": option.about}
    if keyword(option) == "segment":
        return {"type": "object", "additionalProperties": {"type": "string"}, **about}
    if not option.takes_value:
        return {"type": "boolean", **about}
    if option.repeats:
        return {"type": "array", "items": {"type": "string"}, **about}
    return {"type": "integer" if option.read is count else "string", **about}


def _code_properties() -> dict[str, dict[str, Any]]:
    number = {"type": "integer", "description": "only the place at this line, of those that the request stood at"}
    return {**_TRACE, "line": number}


def _check(name: str, given: Mapping[str, Any], takes: Sequence[str], required: Sequence[str] = ()) -> None:
    """Raise UsageError for arguments that a tool does not take, or lacks."""
    for one in given:
        if one not in takes:
            raise UsageError(f"{name} takes no {one!r}\nthere are {', '.join(takes)}")
    for one in required:
        if not given.get(one):
            raise UsageError(f"{name} needs {one!r}")


def _none_of(name: str, given: Mapping[str, Any]) -> Mapping[str, Any]:
    if given:
        raise UsageError(f"{name} takes no arguments, and these are {', '.join(given)}")
    return given


def _check_sides(name: str, given: Mapping[str, Any]) -> None:
    """Raise UsageError for a side of a comparison in another store or a file: an agent asks this one alone."""
    for side in ("a", "b") if name == "compare" else ():
        parts = given.get(side) or []
        for part in [parts] if isinstance(parts, str) else parts:
            if str(part).partition("=")[0].strip() in ("store", "file"):
                raise UsageError(f"compare: {side} is of this store\ncompare two stores in a shell: stagetrace compare")


def _id(given: object) -> str:
    try:
        return trace_id(str(given))
    except ValueError as error:
        raise UsageError(str(error)) from None


def _trace_ids(figures: Any) -> Iterator[str]:
    """Yield the ids of traces in figures."""
    if isinstance(figures, Mapping):
        for name, value in figures.items():
            if name.endswith("trace_id") and isinstance(value, str):
                yield value
            elif name.endswith("trace_ids") and isinstance(value, (list, tuple)):
                yield from value
            else:
                yield from _trace_ids(value)
    elif isinstance(figures, (list, tuple)):
        for one in figures:
            yield from _trace_ids(one)


def _places(trace: Trace) -> Iterator[source.Place]:
    """Yield the lines of code of a trace's requests: those of the request itself first, the most frequent before."""
    for span in trace.spans:
        if span.kind == SERVER:
            blamed = semconv.text(span.attributes, semconv.SLA_BREACH_CODE)
            found = [place for one in stalls_of(span) if (place := _place(one.line)) is not None]
            first = None if blamed is None else _place(blamed)
            yield from found if first is None else (first, *found)


def _place(line: str) -> source.Place | None:
    """Return the place of `app.py:41 in predict`."""
    where, _, function = line.partition(" in ")
    path, _, number = where.rpartition(":")
    if not path or not number.isascii() or not number.isdigit() or len(number) > 7:  # noqa: PLR2004 -- digits of a line
        return None
    return source.Place(path, int(number), function or None)


def _plain(value: Any) -> Any:
    """Return a value of the database as JSON has it; others, as times, as text."""
    if isinstance(value, (str, int, float, bytes, type(None))):
        return json_value(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else str(value)


def _doctor(_given: Mapping[str, Any]) -> Found:
    """Return what `stagetrace doctor` finds, in a process of its own, which probes the settings of this one."""
    argv = [sys.executable, *_DOCTOR, "doctor", "--json"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_LIMIT_S, check=False)  # noqa: S603 -- ours
        found: dict[str, Any] = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise StagetraceError(
            f"doctor gave no answer: {type(error).__name__}\nrun it in a shell: stagetrace doctor"
        ) from None
    states = Counter(one["state"] for one in found["checks"])
    told = f"{states[FAIL]} of {len(found['checks'])} checks fail, {states[WARN]} warn."
    figures = {key: value for key, value in found.items() if key not in _ENDS}
    return Found(told, "stagetrace doctor", figures, reason=found.get("reason"))
