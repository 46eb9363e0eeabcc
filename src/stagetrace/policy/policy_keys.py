"""The keys of a policy file, each declared once: the kind of its value, what it says, its default, what it sets.

`policy_file` reads and writes by them; the JSON Schema, and the tables of docs/objectives.md, are made of them.
"""

from __future__ import annotations

from typing import Any, Final

from stagetrace.policy import objective, quantities
from stagetrace.policy import policy_kinds as kinds
from stagetrace.policy.alert_options import PAGE, TICKET, AlertOptions, BurnAlert, changed
from stagetrace.policy.policy_kinds import DURATION, URL, Key, one_of, one_or_several, place, record, several, whole
from stagetrace.policy.yaml_nodes import Mapping, Node, Problems, WrongError

MOST_KEYS: Final = 8  # of segments
MOST_SEGMENTS: Final = 1_000
PERCENTILES: Final = ("p50", "p75", "p90", "p95", "p99", "p99.5", "p99.9", "p99.99")  # a bound and its target in one
SHORT_KEYS: Final = {"service": objective.SERVICE_KEY, "model": objective.MODEL_KEY}
OF_EXCLUDED: Final = ("name", "description", "match", "excluded", "when")  # the keys that say something of it
_PAIR: Final = "{factor: 14.4, long: 1h, short: 5m}"


def _match(found: dict[str, Any], node: Mapping) -> tuple[str | None, str, tuple[objective.Condition, ...]]:
    """Return method, route and conditions."""
    short = {key: name for name, key in SHORT_KEYS.items() if name in found}
    for one in found.get("attributes", ()):
        if one.key in short:
            raise WrongError(place(node, "attributes"), f"{one.key} stands beside {short[one.key]}", "remove one")
    conditions = [objective.Condition(key, found[name]) for key, name in short.items()]
    conditions += found.get("attributes", ())
    if "rpc" in found:
        beside = next((key for key in ("route", "method") if key in found), None)
        if beside is not None:
            raise WrongError(place(node, beside), f"{beside} stands beside rpc", "remove one of the two")
        return None, found["rpc"], tuple(conditions)
    *words, route = found.get("route", "*").split()
    if not objective.is_route(route) or len(words) > 1 or not all(word.isalpha() for word in words):
        fix = "write [METHOD] ROUTE, such as POST /predict; a route begins with / or *, or is pkg.Service/Method"
        raise WrongError(node.entries["route"].at, f"{found['route'][:80]!r} is no route", fix)
    if words and "method" in found:
        raise WrongError(place(node, "method"), "the route has a method, too", "remove one of the two")
    method = found.get("method") or (words[0].upper() if words else None)
    return method, route, tuple(conditions)


def _percentile(name: str) -> Key:
    share = f"{name.removeprefix('p')}%"
    both = DURATION._replace(read=lambda node, problems: (DURATION.read(node, problems), quantities.share(share)))
    return Key(both, f"within and target: {share} in one", sets=("within_ns", "target"))


def _burn(found: dict[str, Any], node: Mapping) -> BurnAlert:
    if found["short"] > found["long"]:  # equal ones are one window
        raise WrongError(place(node, "short"), "the short window is longer than the long one", "swap the two")
    return BurnAlert(found["factor"], found["long"], found["short"], found.get("severity", PAGE))


def burns(alerts: tuple[BurnAlert, ...]) -> list[dict[str, Any]]:
    """Return burn alerts as a file has them."""
    keys = {"factor": "factor", "long": "long_s", "short": "short_s", "severity": "severity"}
    return [{key: BURN[key].kind.write(getattr(one, field)) for key, field in keys.items()} for one in alerts]


def _own_alerts(node: Node, problems: Problems) -> Any:
    """Return what an objective, or an override, has otherwise, as `alert_options.changed` takes it."""
    for key in ALERTS:
        if isinstance(node, Mapping) and key in node.entries and key not in OWN_ALERTS:
            fix = "write it into alerts: at the top of the file"
            raise WrongError(node.places[key], f"{key} is one for all objectives", fix)
    return _OWN_ALERTS.read(node, problems)


def _itself(node: Any, _: Any) -> Any:
    return node


def _together(match: str, *, may_lack_bound: bool) -> dict[str, Any]:
    """Return the schema of which keys of an objective, or an override, cannot stand together."""
    bounds = [{"required": [key]} for key in ("within", *PERCENTILES)]
    lacking = [{"not": {"anyOf": bounds}}] if may_lack_bound else []
    target = {"if": {"anyOf": bounds[1:]}, "then": {"not": {"required": ["target"]}}}
    return {
        "if": {"required": ["excluded"], "properties": {"excluded": {"const": True}}},
        "then": {"propertyNames": {"enum": [key for key in OF_EXCLUDED if key not in {"match", "when"} - {match}]}},
        "else": {"allOf": [{"oneOf": [*bounds, *lacking]}, target]},
    }


# fmt: off
MATCH: Final = {
    "route": Key(kinds.ROUTE, "A route, with or without a method in front; * stands for any text"),
    "rpc": Key(kinds.RPC, "A full method of gRPC"),
    "method": Key(kinds.METHOD, "A method of HTTP, or WEBSOCKET"),
    "service": Key(kinds.GLOB, "The name of the service"),
    "model": Key(kinds.GLOB, "The name of the model"),
    "attributes": Key(kinds.CONDITIONS, "Attributes, headers (header:NAME) and baggage (baggage:NAME) that the request must have, and what their values have to be"),
}
SEGMENTS: Final = {
    "by": Key(one_or_several(kinds.KEY, "[tenant.tier]", "the list repeats a key or is long", f"write up to {MOST_KEYS} keys, each once", MOST_KEYS), "Attributes, headers and baggage whose values make a segment"),
    "max": Key(whole(1, MOST_SEGMENTS), "How many segments; more are counted as other", objective.DEFAULT_MAX_SEGMENTS),
}
DEADLINE: Final = {
    "from": Key(one_or_several(one_of(*objective.DEADLINES), f"[{objective.DEADLINES[0]}]", "a source stands twice", "remove one", len(objective.DEADLINES)), "Where it may stand, the first wins"),
    "mode": Key(one_of(objective.TIGHTEN, objective.REPLACE), "tighten: the shorter one counts; replace: the request's own", objective.TIGHTEN),
}
BURN: Final = {
    "factor": Key(kinds.FACTOR, "Alert where the error budget burns so many times too fast"),
    "long": Key(kinds.SPAN, "Over this window"),
    "short": Key(kinds.SPAN, "And over this shorter one"),
    "severity": Key(one_of(PAGE, TICKET), "Which kind of alert", PAGE),
}
ALERTS: Final = {
    "burn": Key(several(record("a burn alert", BURN, _burn, "factor long short", _PAIR), f"[{_PAIR}]", 0)._replace(write=burns), "The alerts, each over two windows; [] for none", sets=("burns",)),
    "min_requests": Key(whole(0, 10**9), "With fewer judged requests in the long window there is no alert", AlertOptions().min_requests, ("min_requests",)),
    "no_data": Key(kinds.NO_DATA, "After how long without a judged request there is an alert", kinds.NEVER, ("no_data_s",)),
    "labels": Key(kinds.LABELS, "Labels of each alert", sets=("labels",)),
    "runbook": Key(URL, "What to do", sets=("runbook",)),
    "webhook": Key(URL, "Where stagetrace up posts alerts", sets=("webhook",)),
    "alertmanager": Key(URL, "The Alertmanager to which stagetrace up sends alerts", sets=("alertmanager",)),
    "traces": Key(URL, "stagetrace's page or Jaeger's UI, for links to breaches", sets=("traces",)),
}
OWN_ALERTS: Final = {key: ALERTS[key] for key in ("burn", "min_requests", "no_data", "labels", "runbook")}
_OWN_ALERTS: Final = kinds.named("own_alerts", record("alerts", OWN_ALERTS, lambda found, _: kinds.changes(ALERTS, found)))
_OF_BOTH: Final = {
    "name": Key(kinds.NAME, "A name, unique in the file; default: what the inline policy would have"),
    "description": Key(kinds.TEXT, "What it is for", sets=("description",)),
    "within": Key(DURATION, "Within which time the response has to be complete", sets=("within_ns",)),
    "first_chunk": Key(DURATION, "Within which time the first chunk of a streamed response has to be sent", sets=("first_chunk_ns",)),
    "per_chunk": Key(DURATION, "The longest gap between two chunks", sets=("per_chunk_ns",)),
    "first_token": Key(DURATION, "Within which time a generative model has to have its first token", sets=("first_token_ns",)),
    "per_token": Key(DURATION, "The mean time of each token after the first", sets=("per_token_ns",)),
    **{name: _percentile(name) for name in PERCENTILES},
    "target": Key(kinds.SHARE, "The share of the requests that has to keep to it", quantities.share_text(objective.DEFAULT_TARGET), ("target",)),
    "window": Key(kinds.WINDOW, "Over how long the share counts: a length, or a calendar period", quantities.window_text(objective.DEFAULT_WINDOW_S), ("window_s", "calendar")),
    "errors": Key(one_of(*objective.ERRORS), "What becomes of a request with a server's error: a breach, excluded, or judged as others", objective.IGNORED, ("errors",)),
    "disconnect": Key(one_of(objective.EXCLUDED, objective.BREACH), "What becomes of a request whose client disconnects", sets=("disconnect",)),
    "stages": Key(kinds.STAGES, "Budgets of stages: they name the culprit of a breach, and are no bounds", sets=("stages",)),
    "segments": Key(record("segments", SEGMENTS, lambda found, _: (found["by"], found.get("max", objective.DEFAULT_MAX_SEGMENTS)), "by", "by: [tenant.tier]")._replace(write=lambda by, most: {"by": list(by), "max": most}), "By what requests are counted apart", sets=("segment_by", "max_segments")),
    "deadline": Key(record("a deadline", DEADLINE, lambda found, _: objective.Deadline(found["from"], found.get("mode", objective.TIGHTEN)), "from", f"from: [{', '.join(objective.DEADLINES[:2])}]")._replace(write=lambda one: {"from": list(one.sources), "mode": one.mode}), "That requests bring their own bound along", sets=("deadline",)),
    "warmup": Key(kinds.SECONDS, "How long after the start of a process requests are excluded", sets=("warmup_s",)),
    "excluded": Key(kinds.BOOLEAN, "true: these requests are not judged"),
    "alerts": Key(_OWN_ALERTS._replace(read=_own_alerts), "Alerts of these requests, in place of those of all; labels are added to those"),
}
OVERRIDE: Final = {"when": Key(kinds.CONDITIONS, "Attributes, headers (header:NAME) and baggage (baggage:NAME) that the request must have, and what their values have to be"), **_OF_BOTH}
_OVERRIDE: Final = kinds.named("override", record("an override", OVERRIDE, _itself, "when", description="What is otherwise for requests with these attributes.", **_together("when", may_lack_bound=True)))
_RPC_ALONE: Final = {"if": {"required": ["rpc"]}, "then": {"not": {"anyOf": [{"required": ["route"]}, {"required": ["method"]}]}}}
_ONE_METHOD: Final = {"if": {"required": ["method"]}, "then": {"properties": {"route": {"pattern": r"^\s*\S+\s*$"}}}}
OBJECTIVE: Final = {
    **_OF_BOTH,
    "match": Key(record("a match", MATCH, _match, allOf=[_RPC_ALONE, _ONE_METHOD]), "Which requests; default: all"),
    "overrides": Key(several(_OVERRIDE._replace(read=_itself), "- when: {tenant.tier: gold}"), "Other values for some of the requests; the first that matches wins"),
    "continue": Key(kinds.BOOLEAN, "true: requests that it judges are judged by later objectives, too"),
}
_OBJECTIVE: Final = kinds.named("objective", record("an objective", OBJECTIVE, _itself, description="One objective.", **_together("match", may_lack_bound=False)))
_ALERTS: Final = kinds.named("alerts", record("alerts", ALERTS, lambda found, _: changed(AlertOptions(), kinds.changes(ALERTS, found))))
POLICY: Final = {
    "objectives": Key(several(_OBJECTIVE, "")._replace(read=_itself), "In order: the first that matches a request judges it"),
    "version": Key(whole(1, 1), "The version of the format"),
    "service": Key(kinds.TEXT, "All objectives are about this service"),
    "alerts": Key(_ALERTS, "When to alert; default: burn rates 14.4, 6 and 1 as in Google's SRE workbook"),
}
# fmt: on


def schema() -> dict[str, Any]:
    """Return the JSON Schema of policy files, for editors."""
    version = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "stagetrace policy"}
    about = "Objectives of services that stagetrace records: docs/objectives.md."
    policy = record("a policy", POLICY, _itself, "objectives", description=about).schema
    return {**version, **policy, "$defs": kinds.DEFS}
