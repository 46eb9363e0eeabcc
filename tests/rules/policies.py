"""Policies that the tests of the formats share, and generated ones that have all that a policy file can say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from hypothesis import strategies as st

from stagetrace import semconv
from stagetrace.policy.alert_options import PAGE, TICKET, AlertOptions, BurnAlert, can_fire, changed
from stagetrace.policy.objective import (
    BREACH,
    CALENDAR,
    DEADLINES,
    ERRORS,
    EXCLUDED,
    MODEL_KEY,
    NEVER_NS,
    SERVICE_KEY,
    Calendar,
    Condition,
    Deadline,
    Objective,
)
from stagetrace.policy.policy import Policy

PREDICT: Final = Objective(
    "predict", "POST", "/predict", 250_000_000, 0.99, 30 * 86_400, conditions=(Condition(SERVICE_KEY, "churn-api"),)
)
OTHERS: Final = Objective("every request", None, "*", 10**9, 0.95, 30 * 86_400)


def policy(*objectives: Objective, **alerts: Any) -> Policy:
    """Return a policy with these objectives; by default `predict` and `every request`."""
    return Policy(objectives or (PREDICT, OTHERS), alerts=AlertOptions(**alerts))


_TEXT: Final = st.text("aZ09 -_./:*[]{}=,#&!|>'\"%@`\\äЖ漢", min_size=1, max_size=90).filter(str.strip)
_NAMES: Final = st.one_of(_TEXT, st.sampled_from(["predict", "Predict", "predict-2", "1e3", "yes", "null", "~", "- a"]))
_WORDS: Final = st.sampled_from(["*", "churn-api", "Churn API 2", "any-service", "1", "1e3", "true", "a*b", "x" * 70])
_DURATIONS: Final = st.integers(1, 10**12)
_SPANS: Final = st.one_of(st.integers(1, 10**6), st.sampled_from([60, 300, 3_600, 86_400, 7 * 86_400]))
_TARGETS: Final = st.one_of(
    st.integers(1, 10**5).map(lambda share: share / 10**5), st.sampled_from([0.9999999999, 0.99, 1e-9])
)
_KEYS: Final = st.sampled_from(
    ["tenant.tier", "header:x-plan", "baggage:region", "http.request.method", "a b".replace(" ", "_")]
)
_CONDITIONS: Final = st.dictionaries(_KEYS, _WORDS, max_size=3).map(
    lambda found: tuple(Condition(key, glob) for key, glob in found.items())
)
_BOUNDS: Final = ("first_chunk_ns", "per_chunk_ns", "first_token_ns", "per_token_ns")
_ZONES: Final = st.sampled_from(["UTC", "Europe/Berlin", "America/New_York"])


@st.composite
def _changes(draw: st.DrawFn) -> dict[str, Any]:
    """Draw what an objective, or an override, may say."""
    calendar = draw(st.none() | st.builds(Calendar, st.sampled_from(list(CALENDAR)), _ZONES))
    window_s = CALENDAR[calendar.unit] if calendar is not None else draw(_SPANS.map(float))
    found: dict[str, Any] = {
        "within_ns": draw(_DURATIONS),
        "target": draw(_TARGETS),
        "window_s": window_s,
        "calendar": calendar,
        "errors": draw(st.sampled_from(ERRORS)),
        "stages": tuple(
            draw(st.dictionaries(st.sampled_from(semconv.STAGES), _DURATIONS, min_size=1, max_size=3)).items()
        ),
        "segment_by": tuple(draw(st.lists(_KEYS, min_size=1, max_size=3, unique=True))),
        "max_segments": draw(st.integers(1, 1_000)),
        "deadline": draw(
            st.builds(
                Deadline,
                st.lists(st.sampled_from(DEADLINES), min_size=1, unique=True).map(tuple),
                st.sampled_from(["tighten", "replace"]),
            )
        ),
        "warmup_s": draw(st.integers(1, 3_600_000)) / 1_000,
        "disconnect": draw(st.sampled_from([EXCLUDED, BREACH])),
        **{bound: draw(_DURATIONS) for bound in _BOUNDS},
    }
    kept = {"window_s", "calendar", "within_ns", *(key for key in found if draw(st.booleans()))}
    return {
        key: value for key, value in found.items() if key in kept and (key != "max_segments" or "segment_by" in kept)
    }


@st.composite
def _objectives(draw: st.DrawFn, names: list[str]) -> list[Objective]:
    """Draw an objective, in front of it its overrides: as many rules as there are names."""
    conditions = [Condition(SERVICE_KEY, draw(_WORDS))] if draw(st.booleans()) else []
    conditions += [Condition(MODEL_KEY, draw(_WORDS))] if draw(st.booleans()) else []
    method = draw(st.sampled_from([None, "POST", "WEBSOCKET"]))
    route = draw(st.sampled_from(["*", "/predict", "/a/{b}", "pkg.Service/Method", "/x*"]))
    base = Objective(names[-1], method, route, NEVER_NS, conditions=(*conditions, *draw(_CONDITIONS)))
    about = draw(st.one_of(st.just(""), _TEXT, st.just("two\nlines")))
    if draw(st.integers(0, 9)) == 0:
        return [replace(base, excludes=True, description=about)]
    base = replace(base, continues=draw(st.booleans()), description=about, **draw(_changes()))
    return [*(draw(_overrides(base, name)) for name in names[:-1]), base]


@st.composite
def _overrides(draw: st.DrawFn, base: Objective, name: str) -> Objective:
    when = draw(_CONDITIONS.filter(bool))
    about = draw(st.one_of(st.just(""), _TEXT))
    common: dict[str, Any] = {"conditions": (*base.conditions, *when), "base": base.name}
    if draw(st.integers(0, 9)) == 0:
        bare = Objective(name, base.method, base.route, NEVER_NS, continues=base.continues, excludes=True)
        return replace(bare, **common)
    return replace(base, name=name, description=about, **common, **draw(_changes()))


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """Draw a policy of all that a file can say; its alerts can fire."""
    names = draw(st.lists(_NAMES, min_size=1, max_size=6, unique=True))
    objectives: list[Objective] = []
    while names:
        count = draw(st.integers(1, len(names)))
        objectives += draw(_objectives(names[:count]))
        names = names[count:]
    least = min((one.target for one in objectives if not one.excludes), default=0.99)
    most = min(1e5, 1 / (1 - least) if least < 1 else 1e5)
    urls = {key: draw(st.sampled_from(["", f"https://host:1/{key}?a=b#c"])) for key in ("runbook", "traces")}
    urls |= {key: draw(st.sampled_from(["", f"http://{key}/"])) for key in ("webhook", "alertmanager")}
    burns = draw(st.lists(_burns(most), min_size=1, max_size=5))
    alerts = AlertOptions(
        burns=tuple(one for one in burns if all(can_fire(one.factor, of.target) for of in objectives if of.target < 1))
        or (BurnAlert(most / 2, 60, 60),),
        min_requests=draw(st.integers(0, 10**6)),
        no_data_s=draw(st.just(0) | _SPANS),
        labels=tuple(draw(st.dictionaries(st.sampled_from(["team", "_x", "a1"]), _TEXT, max_size=2)).items()),
        **urls,
    )
    alerts = draw(st.sampled_from([alerts, alerts, AlertOptions()])) if most > 14.5 else alerts
    return Policy(tuple(draw(_with_own_alerts(objectives, alerts, most))), alerts=alerts)


@st.composite
def _with_own_alerts(
    draw: st.DrawFn, objectives: list[Objective], alerts: AlertOptions, most: float
) -> list[Objective]:
    """Give some objectives alerts of their own; an override has those of its base, or others."""
    found: list[Objective] = []
    of_base = alerts
    for one in reversed(objectives):
        own = alerts if one.base is None else of_base
        if draw(st.integers(0, 3)) == 0:
            own = changed(own, draw(_own_alerts(most)))
        of_base = own if one.base is None else of_base
        found.insert(0, one if one.excludes or own == alerts else replace(one, alerts=own))
    return found


@st.composite
def _own_alerts(draw: st.DrawFn, most: float) -> dict[str, Any]:
    found: dict[str, Any] = {
        "burns": tuple(draw(st.lists(_burns(most), max_size=3))),
        "min_requests": draw(st.integers(0, 10**6)),
        "no_data_s": draw(st.just(0) | _SPANS),
        "labels": tuple(draw(st.dictionaries(st.sampled_from(["team", "b2"]), _TEXT, min_size=1)).items()),
        "runbook": "https://other/",
    }
    return {key: value for key, value in found.items() if draw(st.booleans())}


@st.composite
def _burns(draw: st.DrawFn, most: float) -> BurnAlert:
    long_s, short_s = sorted((draw(_SPANS), draw(_SPANS)), reverse=True)
    return BurnAlert(draw(st.integers(1, 999)) / 1_000 * most, long_s, short_s, draw(st.sampled_from([PAGE, TICKET])))
