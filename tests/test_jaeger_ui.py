"""collector-config/jaeger-ui.json in the real Jaeger, and where its links lead.

The Jaeger that is built here has a placeholder for its page, with the lines into which it writes the configuration.
What the page makes of it follows the documentation of Jaeger 2.13, "Frontend/UI Configuration", and the page's sources.
"""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, quote, urlsplit

import httpx
import pytest

from backend.processes import until
from backends import CONFIG, Jaeger
from messages import leaves
from page.data import one
from stagetrace.page.base import Asked
from stagetrace.page.views import VIEWS

if TYPE_CHECKING:
    from collections.abc import Mapping

UI: Final[dict[str, Any]] = json.loads((CONFIG / "jaeger-ui.json").read_text("utf-8"))
# Of `Config` in packages/jaeger-ui/src/types/config.tsx.
KEYS: Final = {
    *("archiveEnabled", "criticalPathEnabled", "dependencies", "menu", "search", "scripts", "topTagPrefixes"),
    *("tracking", "linkPatterns", "monitor", "traceGraph", "traceIdDisplayLength", "disableFileUploadControl"),
    *("disableJsonView", "forbidNewPage", "themes", "useOpenTelemetryTerms"),
}
OF_TRACES: Final = {"traceID", "traceName", "startTime", "endTime", "duration"}
PARAMETER: Final = re.compile(r"#\{([^}]+)\}")


def test_jaeger_serves_the_configuration(jaeger: Jaeger) -> None:
    html = httpx.get(jaeger.query_http).raise_for_status().text
    (line,) = re.findall(r"JAEGER_CONFIG = (\{.*\});", html)
    assert json.loads(line) == UI


def test_keys_are_those_of_the_page() -> None:
    """A key that the page does not know has no effect."""
    assert UI.keys() <= KEYS
    assert UI["monitor"].keys() <= {"menuEnabled", "emptyState", "docsLink"}
    assert UI["monitor"]["emptyState"].keys() <= {"mainTitle", "subTitle", "description", "button", "info", "alert"}
    for pattern in UI["linkPatterns"]:
        assert pattern.keys() == {"type", "url", "text"} | ({"key"} if pattern["type"] != "traces" else set())


@pytest.mark.parametrize("pattern", UI["linkPatterns"], ids=lambda pattern: pattern["url"].partition("16688")[2])
def test_a_link_leads_to_a_view(pattern: dict[str, str], jaeger: Jaeger) -> None:
    """With the values of a breach as Jaeger returns it, and as its page fills them in."""
    trace = a_breach(jaeger)
    url = filled(pattern, trace)
    path, query = urlsplit(url).path, urlsplit(url).query
    (view,) = [view for view in VIEWS if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", view.path), path)]
    asked = Asked.of(parse_qsl(query), {}, "1h")
    assert view.name != "trace" or path.endswith(trace["traceID"])
    since_ns, until_ns = asked.window_ns
    assert since_ns < min(span["startTime"] for span in trace["spans"]) * 1000 < until_ns
    assert asked.selection.codes == (("ranker/model.py:12 in forward",) if "code=" in query else ())
    assert asked.selection.route in (None, "/predict", "/embed", "/rank", "Predict")


def test_first_tags_are_those_of_a_breach(jaeger: Jaeger) -> None:
    """Tags with the first prefixes stand first; each prefix is one of a real breach."""
    tags = {tag["key"] for span in a_breach(jaeger)["spans"] for tag in span["tags"]}
    prefixes = UI["topTagPrefixes"]
    assert prefixes[:4] == ["sla.breached", "sla.breach.cause", "sla.breach.stage", "sla.breach.code"]
    assert tags.issuperset(prefixes[:5])


def a_breach(jaeger: Jaeger) -> dict[str, Any]:
    """Return a trace as Jaeger's page gets it: one request that missed its objective, with an RPC's attribute too."""
    (message,) = one()
    spans = [span for *_, span in leaves(message)]
    for span in spans:
        span.attributes.add(key="rpc.method").value.string_value = "Predict"
    body, kind = message.SerializeToString(), {"content-type": "application/x-protobuf"}
    httpx.post(f"{jaeger.otlp_http}/v1/traces", content=body, headers=kind).raise_for_status()
    url = f"{jaeger.query_http}/api/traces/{spans[0].trace_id.hex()}"
    until(lambda: httpx.get(url).status_code == httpx.codes.OK)
    (trace,) = httpx.get(url).json()["data"]
    assert isinstance(trace, dict)
    return trace


def filled(pattern: Mapping[str, str], trace: Mapping[str, Any]) -> str:
    """Return the link that Jaeger's page makes of a pattern: `computeLinks` and `computeTraceLink` of its sources.

    A parameter of tags is a tag of the span, or `trace.` and a value of the trace, and is not formatted; one of traces
    is a value of the trace, through functions.
    """
    first = min(span["startTime"] for span in trace["spans"])
    last = max(span["startTime"] + span["duration"] for span in trace["spans"])
    of_trace = {"traceID": trace["traceID"], "startTime": first, "endTime": last}
    tags = next(
        {tag["key"]: tag["value"] for tag in span["tags"]}
        for span in trace["spans"]
        if pattern["type"] == "traces" or any(tag["key"] == pattern["key"] for tag in span["tags"])
    )

    def value(found: re.Match[str]) -> str:
        if pattern["type"] != "traces":
            return quote(str({**tags, **{f"trace.{key}": one for key, one in of_trace.items()}}[found[1]]), safe="")
        name, *functions = (part.strip() for part in found[1].split("|"))
        assert name in OF_TRACES
        one: Any = of_trace[name]
        for function in functions:
            one = FUNCTIONS[function.split()[0]](one, *function.split()[1:])
        return quote(str(one), safe="")

    assert PARAMETER.sub(value, pattern["text"])  # the same parameters
    return PARAMETER.sub(value, pattern["url"])


def _iso(micros: int) -> str:
    time = datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(microseconds=micros)
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


FUNCTIONS: Final[dict[str, Any]] = {
    "add": lambda micros, offset: micros + int(offset),
    "epoch_micros_to_date_iso": _iso,
}
