"""Under any head sampler a real service judges each request once, and its breaches arrive whole, and marked."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from services import run_service
from sink import SERVER, Received, assert_tiled, request_of, run_sink

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("services")

GOOD, BREACHES, ITEMS = 12, 6, 4
POLICY = "GET /plain within 60m; GET /child within 1us; GET /items/* within 60m"
# As a person would publish it: by the route, which is known only once the request is routed, or asked for.
OWN_SAMPLER = """
from opentelemetry import trace
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult

class ByRoute(Sampler):
    def should_sample(self, parent_context, trace_id, name, kind=None, attributes=None, links=None, trace_state=None):
        trace.get_current_span().get_span_context()
        if kind is trace.SpanKind.SERVER and (attributes or {}).get("http.route") == "/items/{item_id}":
            return SamplingResult(Decision.RECORD_AND_SAMPLE, {**attributes, "why": name})
        return SamplingResult(Decision.DROP)

    def get_description(self):
        return "ByRoute"

def make(_):
    return ByRoute()
"""


def publish(folder: Path) -> None:
    """Install the sampler into a folder, as pip would."""
    (folder / "own_sampler.py").write_text(OWN_SAMPLER)
    info = folder / "own_sampler-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-sampler\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[opentelemetry_traces_sampler]\nby_route = own_sampler:make\n")


def recorded(folder: Path, sampler: str, ratio: str) -> tuple[list[Received], str]:
    """Serve the requests under a sampler; return the spans that came, and what was said."""
    publish(folder)
    with run_sink() as sink:
        env = sink.environment(
            STAGETRACE_SLA=POLICY,
            OTEL_TRACES_SAMPLER=sampler,
            OTEL_TRACES_SAMPLER_ARG=ratio,
            OTEL_PYTHON_EXCLUDED_URLS="/health",
            PYTHONPATH=str(folder),
        )
        with run_service(folder, "semantics", env=env) as service:
            for path in ["/plain"] * GOOD + ["/child"] * BREACHES + ["/items/3"] * ITEMS:
                service.client.get(path).raise_for_status()
            service.stop()
            return sink.spans, service.log


@pytest.mark.parametrize(
    ("sampler", "ratio", "kept"),
    [
        ("traceidratio", "0", {}),
        ("traceidratio", "1", {"/plain": GOOD, "/child": BREACHES, "/items/{item_id}": ITEMS}),
        pytest.param("parentbased_traceidratio", "0.5", None, marks=pytest.mark.smoke),
        ("parentbased_always_off", "", {}),
        ("always_off", "", {}),
        ("by_route", "", {"/items/{item_id}": ITEMS}),
    ],
)
def test_each_request_is_judged_once_and_breaches_are_whole(
    sampler: str, ratio: str, kept: dict[str, int] | None, tmp_path: Path
) -> None:
    """`kept` are the entry spans that the head sampler keeps, by route; None where chance decides."""
    spans, log = recorded(tmp_path, sampler, ratio)
    assert f"judged {GOOD + BREACHES + ITEMS} requests, {BREACHES} missed their objective" in log
    (said,) = [line for line in log.splitlines() if "sampler" in line]  # nothing but the first line names it
    assert " recording in process " in said
    assert ", head sampler " in said
    entries = [span for span in spans if span.kind == SERVER]
    upgraded = [entry for entry in entries if "sla.upgraded" in entry.attributes]
    assert {entry.attributes["http.route"] for entry in upgraded} <= {"/child"}
    assert sum(entry.attributes["http.route"] == "/child" for entry in entries) == BREACHES
    if kept is not None:
        by_route = Counter(entry.attributes["http.route"] for entry in entries if entry not in upgraded)
        assert by_route == kept
    for entry in entries:
        trace = [span for span in spans if span.trace_id == entry.trace_id]
        request = request_of(trace)
        assert_tiled(request)
        children = ["child"] if entry.attributes["http.route"] == "/child" else []
        assert [span.name for span in request.others] == (
            children if sampler != "by_route" or entry in upgraded else []
        )
        assert {span.attributes.get("sla.upgraded") for span in trace} == {True if entry in upgraded else None}
        if sampler == "by_route" and entry not in upgraded:
            assert entry.attributes["why"] == "GET /items/{item_id}"


def test_a_sampler_or_id_generator_that_cannot_be_made_is_reported_and_the_default_is_used(tmp_path: Path) -> None:
    publish(tmp_path)
    (tmp_path / "own_sampler.py").write_text("def make(_): raise ValueError('no rules found')")
    env = {"STAGETRACE": "1", "OTEL_TRACES_SAMPLER": "by_route", "PYTHONPATH": str(tmp_path)}
    env |= {"OTEL_PYTHON_ID_GENERATOR": "missing"}
    with run_sink() as sink:
        with run_service(tmp_path, "semantics", env={**env, "OTEL_EXPORTER_OTLP_ENDPOINT": sink.endpoint}) as service:
            service.client.get("/plain").raise_for_status()
            service.stop()
        assert "/plain" in {span.attributes.get("http.route") for span in sink.spans}
    log = service.log
    assert log.count("cannot use the sampler 'by_route' (ValueError: no rules found); the default is used.") == 1
    assert log.count("cannot use OTEL_PYTHON_ID_GENERATOR=missing") == 1


OWN_IDS = """
from itertools import count
from opentelemetry.sdk.trace.id_generator import IdGenerator

numbers = count(0xABC000)

class Counted(IdGenerator):
    def generate_span_id(self): return next(numbers)
    def generate_trace_id(self): return next(numbers)
"""


def test_ids_come_from_the_generator_that_is_named(tmp_path: Path) -> None:
    (tmp_path / "own_ids.py").write_text(OWN_IDS)
    info = tmp_path / "own_ids-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-ids\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[opentelemetry_id_generator]\ncounted = own_ids:Counted\n")
    env = {"STAGETRACE": "1", "OTEL_PYTHON_ID_GENERATOR": "counted", "PYTHONPATH": str(tmp_path)}
    with run_sink() as sink:
        with run_service(tmp_path, "semantics", env={**env, "OTEL_EXPORTER_OTLP_ENDPOINT": sink.endpoint}) as service:
            service.client.get("/plain").raise_for_status()
            service.stop()
        (entry,) = [span for span in sink.spans if span.attributes.get("http.route") == "/plain"]
    ids = [int(entry.trace_id, 16), int(entry.span_id, 16)]
    assert all(0xABC000 <= one < 0xABD000 for one in ids)
    assert "cannot use OTEL_PYTHON_ID_GENERATOR" not in service.log
