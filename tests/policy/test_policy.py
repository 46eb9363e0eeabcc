"""The inline policy: what can be written, and what is said of what cannot."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagetrace import PolicyError
from stagetrace.policy.inline import EXCLUDING, GRAMMAR
from stagetrace.policy.objective import NEVER_NS, WEBSOCKET, Objective
from stagetrace.policy.policy import Policy
from stagetrace.policy.verdict import Called, Streamed, Tokens, Verdict, decide, fallback, judge, peer_of
from stagetrace.request.chunk_times import Stream
from stagetrace.sla.decision import streamed_in
from stagetrace.store.entries import missed

MS = 1_000_000


def test_the_example_of_the_design() -> None:
    assert Policy.parse("POST /predict within 50ms for 99.9% over 28d; * within 1s").objectives == (
        Objective("POST /predict within 50ms", "POST", "/predict", 50 * MS, 0.999, 28 * 86_400),
        Objective("* within 1s", None, "*", 1000 * MS, 0.99, 28 * 86_400),
    )


@pytest.mark.parametrize(
    ("text", "within_ns"),
    [
        ("* within 250us", 250_000),
        ("* within 1.5ms", 1_500_000),
        ("* within 2s", 2 * 10**9),
        ("* within 1m", 60 * 10**9),
    ],
)
def test_durations(text: str, within_ns: int) -> None:
    assert Policy.parse(text).objectives[0].within_ns == within_ns


@pytest.mark.parametrize(
    ("rule", "method", "route", "matches"),
    [
        ("POST /predict", "POST", "/predict", True),
        ("POST /predict", "GET", "/predict", False),
        ("post /predict", "POST", "/predict", True),
        ("/predict", "GET", "/predict", True),
        ("/predict", "GET", "/predict/batch", False),
        ("/predict*", "GET", "/predict/batch", True),
        ("/items/{item_id}", "GET", "/items/{item_id}", True),
        ("/a+b", "GET", "/aab", False),
        ("*", "GET", "", True),
        ("*", None, "pkg.Service/Method", True),
        ("pkg.Service/*", None, "pkg.Service/Method", True),
        ("/*/predict", "GET", "/v1/models/x/predict", True),
        ("*", WEBSOCKET, "/chat", False),
        ("/c*", WEBSOCKET, "/chat", False),
        ("/chat", WEBSOCKET, "/chat", True),
        ("websocket *", WEBSOCKET, "/chat", True),
        ("WEBSOCKET /chat", "GET", "/chat", False),
    ],
)
def test_what_a_rule_matches(rule: str, method: str | None, route: str, *, matches: bool) -> None:
    assert (Policy.parse(f"{rule} within 1s").objective(method, route) is not None) is matches


def test_the_first_rule_that_matches_judges() -> None:
    policy = Policy.parse("/fast within 1ms; /f* within 1s; * within 9s")
    assert [
        objective.within_ns // MS
        for route in ("/fast", "/fine", "/other")
        if (objective := policy.objective("GET", route))
    ] == [1, 1000, 9000]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (" ; ", "it holds no rule"),
        ("POST /predict", "the word `within` is missing"),
        ("slo.yaml", "the word `within` is missing"),
        ("POST /predict within", "nothing follows `within`"),
        ("POST /predict within 50", "'50' has no unit (us, ms, s, m)"),
        ("POST /predict within fast", "'fast' is not a number with a unit"),
        ("POST /predict within 50 for 99%", "'50' has no unit (us, ms, s, m): write 50ms"),
        ("within 50", "'50' has no unit (us, ms, s, m): write 50ms"),
        ("within 50 ms", "it names no route: write it in front, or `*` for every one"),
        ("* within 1sec", "'1sec' has the unit 'sec', which is none of us, ms, s, m: write 1s"),
        ("* within 1.5 Minutes", "has the unit 'minutes', which is none of us, ms, s, m: write 1.5m"),
        ("* within 5 parsecs", "has the unit 'parsecs', which is none of us, ms, s, m"),
        ("* within 1h", "has the unit 'h', which is none of us, ms, s, m"),
        ("* within 1s over 28 days", "has the unit 'days', which is none of s, m, h, d, w: write 28d"),
        ("POST /predict within 50ms please", "'please' is not one of within, first_chunk, per_chunk, first_token"),
        ("* within 5s ttft 100ms", "'ttft' is not one of within, first_chunk"),
        ("* within 5s ttft 100ms", "over: write first_token"),
        ("* within 5s TPOT 10ms", "over: write per_token"),
        ("* within 5s first_token 0ms", "more than zero"),
        ("* within 5s per_token 10", "'10' has no unit"),
        ("* within 5s per_token 10ms per_token 9ms", "`per_token` stands twice"),
        ("POST /predict within 0ms", "more than zero"),
        ("POST /predict within -5ms", "not a number with a unit"),
        ("within 5ms", "it names no route"),
        ("99% within 250ms", "'99%' is no route: it begins with `/` or `*`, or is pkg.Service/Method"),
        ("POST predict within 250ms", "'predict' is no route"),
        ("POST GET /predict within 5ms", "stand one route"),
        ("* within 5ms for 99", "'99' is not a percentage"),
        ("* within 5ms for 101%", "'101%' is not a percentage"),
        ("* within 5ms for 0%", "'0%' is not a percentage"),
        ("* within 5ms within 6ms", "`within` stands twice"),
        ("* within 5ms over 28", "'28' has no unit"),
        ("* within 5ms over 0d", "window must be more than zero"),
        (f"* within {'9' * 400}s", "the duration is too large"),
        (f"* within 5ms over {'9' * 400}d", "the window is too large"),
        ("* within 5s first_chunk 0ms", "more than zero"),
        ("* within 5s per_chunk 10", "'10' has no unit"),
        ("* within 5s disconnect good", "after `disconnect` stands excluded or breach, not 'good'"),
        ("excluded", "it names no route"),
        ("GET /health excluded for 99%", "the word `within` is missing"),
    ],
)
def test_a_broken_policy_is_told_what_is_wrong_and_how_to_write_it(text: str, problem: str) -> None:
    with pytest.raises(PolicyError) as caught:
        Policy.parse(text)
    lines = str(caught.value).splitlines()
    assert problem in lines[0]
    assert GRAMMAR in lines[-1]
    assert EXCLUDING in lines[-1]
    assert len(lines) <= 3


NUMBERS = st.integers(1, 10_000).map(str) | st.floats(0.01, 99, allow_nan=False).map(lambda number: f"{number:.2f}")
UNITS = st.sampled_from(["us", "ms", "s", "m", "MS"])
GAPS = st.sampled_from(["", " ", "  ", "\t"])


@given(NUMBERS, UNITS, GAPS, GAPS, GAPS)
def test_a_unit_may_stand_apart_from_its_number(number: str, unit: str, gap: str, percent: str, window: str) -> None:
    """For each of the three quantities of a rule, and whatever stands around it."""
    apart = f"POST /a within {number}{gap}{unit} first_chunk {number}{gap}{unit} for 99.5{percent}% over 2{window}w"
    close = f"POST /a within {number}{unit} first_chunk {number}{unit} for 99.5% over 2w"
    assert Policy.parse(apart).objectives == Policy.parse(close).objectives


RULES = ["/a within 1ms", "GET /a within 2 s", "* within 3s for 99%", "POST /b* within 4m", "/b excluded"]
# With the method and the route that they are about, as far as that can be told.
BROKEN = {
    "/a within 1": (None, "/a"),
    "GET * within 1sec": ("GET", "*"),
    "/b": (None, "/b"),
    "POST /b within 1s for 101%": ("POST", "/b"),
    "within 50": None,
    "GET POST /a within 1ms": None,
}


@given(st.lists(st.sampled_from([*RULES, *BROKEN]), min_size=1, max_size=6))
def test_one_unreadable_rule_does_not_drop_the_readable_ones(rules: list[str]) -> None:
    """Nor lets a later one judge what it is about: a rule that was not meant for it might find it good."""
    text = "; ".join(rules)
    readable = [rule for rule in rules if rule in RULES]
    if not readable:
        with pytest.raises(PolicyError) as caught:
            Policy.readable(text)
        assert repr(rules[0]) in str(caught.value)
        return
    policy = Policy.readable(text)
    assert policy.objectives == tuple(map(one, readable))
    broken = [rule for rule in rules if rule in BROKEN]
    assert all(f"rule {rule!r}: " in problem for rule, problem in zip(broken, policy.problems, strict=True))
    for method, route in (("GET", "/a"), ("POST", "/b"), ("POST", "/bb"), ("PUT", "/c")):
        expected = None
        for rule in rules:
            about = BROKEN.get(rule)
            stands_for = one(rule) if rule in RULES else Objective("", about[0], about[1], 1) if about else None
            if stands_for is not None and stands_for.matches(method, route):
                expected = stands_for if rule in RULES else None
                break
        assert policy.objective(method, route) == expected


@given(st.text(max_size=60))
def test_what_is_read_of_any_text_is_what_can_be_read(text: str) -> None:
    try:
        policy = Policy.readable(text)
    except PolicyError:
        with pytest.raises(PolicyError):
            Policy.parse(text)
        return
    assert policy.objectives
    assert bool(policy.problems) == _is_unreadable(text)


def _is_unreadable(text: str) -> bool:
    try:
        Policy.parse(text)
    except PolicyError:
        return True
    return False


@given(st.text(max_size=60))
def test_any_text_is_a_policy_or_a_policy_error(text: str) -> None:
    try:
        Policy.parse(text)
    except PolicyError:
        return


def one(rule: str) -> Objective:
    return Policy.parse(rule).objectives[0]


def verdict_on(
    rule: str,
    duration_ns: int,
    stages: dict[str, int],
    streamed: Streamed | None = None,
    *,
    disconnected: bool = False,
) -> Verdict:
    objective = one(rule)
    return judge(objective, *decide(objective, duration_ns, streamed, disconnected=disconnected), stages)


@given(st.integers(1, 10**12), st.integers(0, 10**12))
def test_the_verdict_is_the_comparison_and_nothing_else(within_us: int, duration_ns: int) -> None:
    verdict = verdict_on(f"* within {within_us}us", duration_ns, {"inference": duration_ns})
    assert verdict.breached is (duration_ns > within_us * 1000)
    assert (verdict.stage == "inference") is verdict.breached


@pytest.mark.parametrize(
    ("duration_ms", "severity"),
    [(100.000001, "minor"), (124.9, "minor"), (125, "major"), (199.9, "major"), (200, "critical")],
)
def test_severity_is_a_class_of_the_overrun(duration_ms: float, severity: str) -> None:
    verdict = verdict_on("* within 100ms", round(duration_ms * MS), {})
    assert verdict.attributes()["sla.severity"] == severity


def test_what_a_breach_carries() -> None:
    stages = {"preprocess": 70 * MS, "inference": 40 * MS, "queue": 70 * MS}
    verdict = verdict_on("POST /predict within 50ms", 180 * MS, stages)
    assert verdict.attributes() == {
        "sla.breached": True,
        "sla.verdict": "breach",
        "sla.objective": "POST /predict within 50ms",
        "sla.threshold_ms": 50.0,
        "sla.overrun_ms": 130.0,
        "sla.severity": "critical",
        "sla.breach.cause": "unknown",
        "sla.breach.stage": "queue",  # of two equals, the one that comes first in a request
        "sla.breach.evidence": "queue took 70.0 ms of 180.0 ms, 50 ms allowed",
    }


def test_a_breach_whose_stage_waited_for_one_peer_names_it() -> None:
    stages = {"handler": 70 * MS, "network.send": 10 * MS}
    visits = [("handler", 0, 40 * MS), ("network.send", 40 * MS, 50 * MS), ("handler", 50 * MS, 80 * MS)]
    calls = [("a:1", 10 * MS, 30 * MS), ("b:2", 0, 5 * MS), ("a:1", 20 * MS, 60 * MS)]
    objective = one("* within 50ms")
    found = judge(objective, *decide(objective, 80 * MS), stages, Called(visits, calls)).attributes()
    assert found["sla.breach.peer"] == "a:1"
    assert found["sla.breach.cause"] == "downstream"
    assert found["sla.breach.evidence"] == ("handler took 70.0 ms of 80.0 ms, 50 ms allowed: 40.0 ms waiting for a:1")


@pytest.mark.parametrize(
    ("visits", "calls", "expected"),
    [
        ([(0, 100)], [("a", 0, 50)], ("a", 50)),
        ([(0, 100)], [("a", 0, 49)], (None, 0)),
        ([(0, 100)], [("a", -50, 20), ("a", 80, 200)], (None, 0)),  # only what lies within counts
        ([(0, 100)], [("a", -50, 30), ("a", 80, 200)], ("a", 50)),
        ([(0, 100)], [("a", 0, 40), ("a", 10, 40), ("a", 20, 45)], (None, 0)),  # at the same time: once
        ([(0, 50), (100, 150)], [("a", 20, 120)], ("a", 50)),
        ([(0, 100)], [("a", 0, 60), ("b", 0, 90)], ("b", 90)),
        ([(0, 100)], [], (None, 0)),
        ([], [("a", 0, 1)], (None, 0)),
        ([(5, 5)], [("a", 0, 10)], (None, 0)),
    ],
)
def test_a_peer_is_to_blame_from_half_of_the_time_on(
    visits: list[tuple[int, int]], calls: list[tuple[str, int, int]], expected: tuple[str | None, int]
) -> None:
    assert peer_of(visits, calls) == expected


def test_exactly_as_long_as_promised_is_good_and_no_match_is_no_verdict() -> None:
    policy = Policy.parse("/a within 1ms")
    assert policy.objective("GET", "/a") is not None
    assert verdict_on("/a within 1ms", MS, {"handler": MS}).attributes() == {
        "sla.breached": False,
        "sla.verdict": "good",
        "sla.objective": "/a within 1ms",
        "sla.threshold_ms": 1.0,
    }
    assert policy.objective("GET", "/b") is None


@pytest.mark.parametrize(
    ("clauses", "target"),
    [
        ("", None),
        (" for 99% over 4w", None),  # what is meant anyway
        (" for 99.9%", "99.9% over 28d"),
        (" over 36h", "99% over 36h"),
        (" for 99.9995% over 1w", "99.9995% over 7d"),
        (" for 100% over 90.5m", "100% over 5430s"),
        (" for 99% over 90s", "99% over 90s"),
        (" for 99% over 120s", "99% over 2m"),
        (" for 95% over 0.01m", "95% over 0.6s"),
    ],
)
@pytest.mark.parametrize("took", [MS, 60 * MS])
def test_a_verdict_says_the_target_of_its_objective(clauses: str, target: str | None, took: int) -> None:
    """As a rule would, so that it can be read back."""
    found = verdict_on(f"/a within 50ms{clauses}", took, {"handler": took}).attributes()
    assert (found["sla.objective"], found.get("sla.target")) == ("/a within 50ms", target)
    if target is not None:
        meant, read = one(f"/a within 50ms{clauses}"), one(f"/a within 50ms for {target}")
        assert (read.target, read.window_s) == (meant.target, meant.window_s)


def test_a_rule_may_bound_the_pieces_of_a_streamed_answer() -> None:
    rule = "POST /generate within 5s first_chunk 300ms per_chunk 100ms"
    assert one(f"{rule} for 99% over 1d") == Objective(
        rule, "POST", "/generate", 5000 * MS, 0.99, 86_400, first_chunk_ns=300 * MS, per_chunk_ns=100 * MS
    )


@pytest.mark.parametrize(
    ("duration", "streamed", "broken"),
    [
        (1000, None, None),  # not streamed: only the duration counts
        (1000, Streamed(300 * MS, (300 * MS, 400 * MS)), None),  # exactly as promised
        (1000, Streamed(300 * MS + 1, (300 * MS, 400 * MS)), ("first_chunk", 300.0, 1e-6)),
        (1000, Streamed(300 * MS, (300 * MS, 400 * MS + 1)), ("per_chunk", 100.0, 1e-6)),
        (1000, Streamed(301 * MS, (301 * MS, 900 * MS)), ("first_chunk", 300.0, 1.0)),
        (6000, Streamed(301 * MS, (301 * MS, 900 * MS)), (None, 5000.0, 1000.0)),
    ],
)
def test_a_streamed_answer_breaks_whichever_bound_comes_first(
    duration: int, streamed: Streamed | None, broken: tuple[str | None, float, float] | None
) -> None:
    rule = "POST /generate within 5s first_chunk 300ms per_chunk 100ms"
    attributes = verdict_on(rule, duration * MS, {"inference": 1}, streamed).attributes()
    assert attributes["sla.breached"] is (broken is not None)
    if broken is not None:
        promise, threshold_ms, overrun_ms = broken
        assert attributes.get("sla.breach.promise") == promise
        assert attributes["sla.threshold_ms"] == threshold_ms
        assert attributes["sla.overrun_ms"] == overrun_ms
        assert attributes["sla.breach.stage"] == "inference"


def test_a_rule_may_bound_the_tokens_of_a_generated_response() -> None:
    rule = "POST /generate within 5s first_token 300ms per_token 20ms"
    assert one(rule) == Objective(rule, "POST", "/generate", 5000 * MS, first_token_ns=300 * MS, per_token_ns=20 * MS)
    both = one("POST /generate within 5s first_chunk 400ms first_token 300ms")
    assert (both.first_chunk_ns, both.first_token_ns) == (400 * MS, 300 * MS)


BY_TOKENS = "POST /generate within 5s first_token 300ms per_token 20ms"
CHUNKS = Streamed(301 * MS, (301 * MS, 400 * MS))


@pytest.mark.parametrize(
    ("tokens", "streamed", "missed", "judged_as"),
    [
        # Known tokens decide alone, whatever the chunks are.
        (Tokens(300 * MS, 500 * MS, 10, 200 * MS), CHUNKS, None, None),
        (Tokens(300 * MS, 500 * MS, 10, 200 * MS), None, None, None),
        (Tokens(300 * MS + 1, 500 * MS, 10, 200 * MS), None, "first_token: 300.000001 ms, 300 ms allowed", None),
        (Tokens(100 * MS, 301 * MS, 10, 200 * MS + 1), None, "per_token: 20.000001 ms, 20 ms allowed", None),
        (Tokens(100 * MS, 100 * MS, 0, 0), CHUNKS, None, None),  # one token: none follows
        (
            Tokens(400 * MS, 1000 * MS, 2, 600 * MS),
            None,
            "first_token: 400 ms, 300 ms allowed; per_token: 300 ms, 20 ms allowed",
            None,
        ),
        # What is not known of the tokens is judged by the chunks, and the verdict reports it.
        (
            None,
            CHUNKS,
            "first_chunk: 301 ms, 300 ms allowed; per_chunk: 99 ms, 20 ms allowed",
            "first_token as first_chunk, per_token as per_chunk: tokens not known",
        ),
        (
            Tokens(100 * MS),
            CHUNKS,
            "per_chunk: 99 ms, 20 ms allowed",
            "per_token as per_chunk: tokens not known",
        ),
        (
            Tokens(None, 500 * MS, 10, 200 * MS),
            CHUNKS,
            "first_chunk: 301 ms, 300 ms allowed",
            "first_token as first_chunk: tokens not known",
        ),
        (None, None, None, "first_token not judged, per_token not judged: tokens not known"),
    ],
)
def test_tokens_are_judged_where_they_are_known_and_chunks_instead_where_not(
    tokens: Tokens | None, streamed: Streamed | None, missed: str | None, judged_as: str | None
) -> None:
    objective = one(BY_TOKENS)
    word, broken = decide(objective, 1000 * MS, streamed, tokens)
    found = judge(
        objective, word, broken, {"inference": 1}, fallback=fallback(objective, streamed, tokens)
    ).attributes()
    assert (word, found["sla.breached"]) == (("breach", True) if missed else ("good", False))
    assert found.get("sla.breach.missed") == missed
    assert found.get("sla.fallback") == judged_as
    if missed is not None:
        assert found["sla.breach.promise"] == missed.partition(":")[0]
        assert (judged_as or "") in found["sla.breach.evidence"]


def test_of_two_bounds_on_the_first_chunk_the_smaller_one_holds() -> None:
    """As where the tokens are not known."""
    objective = one("* within 5s first_chunk 200ms first_token 300ms")
    word, broken = decide(objective, 1000 * MS, Streamed(250 * MS, (250 * MS, 260 * MS)))
    assert (word, broken and broken.text) == ("breach", "first_chunk: 250 ms, 200 ms allowed")


def test_the_time_between_tokens_is_that_of_which_the_culprit_is_sought() -> None:
    _, broken = decide(one(BY_TOKENS), 1000 * MS, None, Tokens(100 * MS, 700 * MS, 2, 600 * MS))
    assert broken is not None
    assert (broken.start_ns, broken.end_ns) == (100 * MS, 700 * MS)


def test_each_bound_that_was_missed_is_exported_with_its_value() -> None:
    rule = "POST /generate within 5s first_chunk 300ms per_chunk 100ms"
    both = Streamed(301 * MS, (301 * MS, 901 * MS))
    found = verdict_on(rule, 1000 * MS, {"inference": 1}, both).attributes()
    assert found["sla.breach.missed"] == "first_chunk: 301 ms, 300 ms allowed; per_chunk: 600 ms, 100 ms allowed"
    found = verdict_on(rule, 6000 * MS, {"inference": 1}, both).attributes()
    assert found["sla.breach.missed"].startswith("within: 6000 ms, 5000 ms allowed; first_chunk: 301 ms")
    assert found["sla.threshold_ms"] == 5000.0
    plain = verdict_on(rule, 6000 * MS, {"inference": 1}, Streamed(MS, (MS, 2 * MS))).attributes()
    assert "sla.breach.missed" not in plain  # the duration and its threshold say it


@given(st.lists(st.integers(1, 10**9), min_size=2, max_size=30), st.integers(0, 10**9), st.data())
def test_a_streams_verdict_is_that_of_the_exported_numbers(gaps: list[int], first: int, data: st.DataObject) -> None:
    """Duration, first chunk and gap as exported, compared with the bounds, say what was missed."""
    stream, start = Stream(), 1_700_000_000 * 10**9
    now = start + first
    for gap in gaps:
        stream.add(now, 1)
        now += gap
    exported = stream.attributes(start)
    near = st.sampled_from([first, max(gaps[:-1]), now - start])
    within, first_chunk, per_chunk = (max(data.draw(near) + data.draw(st.integers(-2, 2)), 1) for _ in range(3))
    objective = Objective("rule", None, "*", within, first_chunk_ns=first_chunk, per_chunk_ns=per_chunk)
    word, broken = decide(objective, now - start, streamed_in(stream, start))
    values = {
        "within": ((now - start) / 1e6, within / 1e6),
        "first_chunk": (exported["stagetrace.network.first_byte_ms"], first_chunk / 1e6),
        "per_chunk": (exported["stagetrace.network.chunk_gap.max_ms"], per_chunk / 1e6),
    }
    expected = [(bound, *pair) for bound, pair in values.items() if pair[0] > pair[1]]
    assert (word == "breach") is bool(expected)
    assert list(missed(broken.text) if broken is not None else ()) == expected


def test_what_a_rule_excludes_has_a_verdict_and_no_bound() -> None:
    objective = one("GET /health excluded")
    assert objective == Objective("GET /health excluded", "GET", "/health", NEVER_NS, excludes=True)
    assert verdict_on("GET /health excluded", 10**15, {"handler": 1}).attributes() == {
        "sla.verdict": "excluded",
        "sla.objective": "GET /health excluded",
    }


@pytest.mark.parametrize(
    ("clause", "duration_ms", "word"),
    [
        ("", 5, "excluded"),
        ("", 50, "excluded"),
        ("", 51, "breach"),  # longer than promised before the client gave up
        (" disconnect excluded", 51, "excluded"),
        (" disconnect breach", 5, "breach"),
        (" disconnect breach", 51, "breach"),
    ],
)
def test_a_client_that_goes_away_is_never_good(clause: str, duration_ms: int, word: str) -> None:
    verdict = verdict_on(f"* within 50ms{clause}", duration_ms * MS, {"handler": 1}, disconnected=True)
    assert verdict.word == word
    attributes = verdict.attributes()
    assert attributes.get("sla.breached") is (True if word == "breach" else None)
    if duration_ms == 5 and word == "breach":
        assert attributes["sla.breach.promise"] == attributes["sla.breach.cause"] == "disconnect"
        assert attributes["sla.overrun_ms"] == 0
        assert attributes["sla.breach.evidence"] == (
            "client disconnected before the end of the response, after 5.0 ms, 50 ms allowed: 0.0 ms in handler"
        )
