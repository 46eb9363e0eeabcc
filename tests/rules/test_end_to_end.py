"""Alerts of a real service: its metrics through the real Collector into Prometheus, and on to Alertmanager.

All windows are a hundredth of what the policy says: seconds. A service breaks its objective, keeps it again, and stops;
Alertmanager posts what it is told. Spans are sampled as the Collector's section has it, by the Collector in Jaeger,
whose parts include that.
"""

from __future__ import annotations

import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, urlsplit

import httpx
import pytest
import yaml

from backend.processes import until
from backends import free_port, run_alertmanager, run_collector, run_jaeger, run_prometheus
from cli.running import cli
from conftest import need
from services import recorded, run_service

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from services import Service

pytestmark = pytest.mark.xdist_group("alerts")  # one course for all tests
SERVICE: Final = "churn-api"
POLICY: Final = """
objectives:
  - name: predict
    description: what the shop waits for
    match: {route: POST /predict}
    within: 180ms
    target: 90%
  - name: rare
    match: {route: POST /async-predict}
    within: 200ms
    target: 90%
alerts:
  burn: [{factor: 3, long: 800s, short: 5m, severity: page}]
  min_requests: 10
  no_data: 10m
  labels: {team: ml}
  runbook: https://runbooks.example/latency
  traces: TRACES/search
"""
SCALE: Final = "0.01"
KEPT_PERCENT: Final = 30
SLOW_S: Final = 0.25
BURN: Final = "SlaErrorBudgetBurn"
NO_DATA: Final = "SlaNoData"
Alert = dict[str, Any]


@dataclass
class Course:
    """What happened, and those that can still be asked about it."""

    prometheus: str = ""
    board: str = ""
    jaeger: str = ""
    counted: str = ""  # metrics of spans of the Collector that samples
    alerts: list[Alert] = field(default_factory=list)  # as Alertmanager has posted them, in order
    slow: list[str] = field(default_factory=list)  # trace ids
    fast: list[str] = field(default_factory=list)

    def posted(self, name: str, status: str, objective: str = "predict", **labels: str) -> list[Alert]:
        """Return the alerts that were posted so far."""
        wanted = {"alertname": name, "sla_objective": objective, **labels}.items()
        return [one for one in list(self.alerts) if one["status"] == status and wanted <= one["labels"].items()]

    def ask(self, query: str) -> list[dict[str, Any]]:
        """Return the series that a query gives now."""
        answer = httpx.get(f"{self.prometheus}/api/v1/query", params={"query": query}).json()
        assert answer["status"] == "success", answer
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found


@pytest.fixture(scope="module")
def course(services: None, backends: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Course]:
    """Let a service break its objective until Alertmanager posts that, keep it until that is resolved, and stop."""
    del services, backends
    need("prometheus")
    need("alertmanager")
    folder, found = tmp_path_factory.mktemp("alerts"), Course()
    port, metrics_port = free_port(), free_port()
    with (
        receiver(found.alerts) as webhook,
        run_alertmanager(folder, webhook) as alertmanager,
        run_jaeger(folder, also=sampling(folder, metrics_port)) as jaeger,
        run_collector(folder, jaeger) as collector,
        run_prometheus(
            folder, collector, port, rules=rules(folder, jaeger.query_http, "prometheus"), alertmanager=alertmanager
        ) as found.prometheus,
    ):
        found.board = rules(folder, jaeger.query_http, "grafana")
        found.jaeger, found.counted = jaeger.query_http, f"http://127.0.0.1:{metrics_port}/metrics"
        with run_service(folder, env=environment(collector.otlp_grpc, folder)) as service:
            for inference_s in (0.0, SLOW_S):
                service.call("POST", "/async-predict", json={"inference_s": inference_s})
            found.slow += traces_until(lambda: found.posted(BURN, "firing"), service, SLOW_S)
            found.fast += traces_until(lambda: found.posted(BURN, "resolved"), service, 0)
            found.slow += traces_until(lambda: True, service, SLOW_S)  # what was received before is decided before
        until(lambda: found.posted(NO_DATA, "firing", job=SERVICE))
        yield found


def rules(folder: Path, traces: str, form: str) -> str:
    """Return what the command writes for the policy, which then lies in the folder."""
    policy = folder / "sla.yaml"
    policy.write_text(POLICY.replace("TRACES", traces), "utf-8")
    done = cli("sla", "rules", "--policy", str(policy), "--format", form, "--scale", SCALE)
    assert done.returncode == 0, done.stderr
    return done.stdout


def environment(endpoint: str, folder: Path) -> dict[str, str]:
    more = {"OTEL_METRIC_EXPORT_INTERVAL": "500", "OTEL_SERVICE_NAME": SERVICE}
    return recorded(endpoint, str(folder / "sla.yaml"), OTEL_BSP_SCHEDULE_DELAY="200", **more)


def sampling(folder: Path, metrics_port: int) -> str:
    """Return the Collector's section for Jaeger, which stores what it keeps, and shows what it has counted."""
    section = yaml.safe_load(rules(folder, "http://jaeger.example", "collector"))
    section["processors"]["tail_sampling"]["policies"][1]["probabilistic"]["sampling_percentage"] = KEPT_PERCENT
    section["processors"]["memory_limiter"] = {"check_interval": "1s", "limit_mib": 512}
    section["connectors"]["spanmetrics"]["metrics_flush_interval"] = "1s"
    section["exporters"] = {"prometheus": {"endpoint": f"127.0.0.1:{metrics_port}"}}
    pipelines = section["service"]["pipelines"]
    pipelines["traces"]["exporters"] = ["jaeger_storage_exporter"]
    pipelines["metrics"] = {"receivers": ["spanmetrics"], "exporters": ["prometheus"]}
    return yaml.safe_dump(section)


def traces_until(is_so: Callable[[], object], service: Service, inference_s: float) -> list[str]:
    """Make four requests at once, again and again until something is so; return their traces."""
    traces: list[str] = []

    def call() -> object:
        body = {"inference_s": inference_s}
        traces.extend(trace for trace, _ in service.call_at_once("/predict", [body] * 4))
        return is_so()

    until(call)
    return traces


@contextmanager
def receiver(alerts: list[Alert]) -> Iterator[str]:
    """Take what Alertmanager posts to the address; add the alerts to the list."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            alerts.extend(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["alerts"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def test_a_breach_is_paged_and_resolved(course: Course) -> None:
    """The alert names service, objective and windows, and leads to the traces; it ends as one and the same alert."""
    (fired, *_), (resolved, *_) = course.posted(BURN, "firing"), course.posted(BURN, "resolved")
    assert fired["labels"] == resolved["labels"]
    assert fired["fingerprint"] == resolved["fingerprint"]
    assert fired["startsAt"] < resolved["endsAt"]
    labels = {"job": SERVICE, "service": SERVICE, "sla_objective": "predict", "severity": "page", "team": "ml"}
    assert fired["labels"] == {**labels, "alertname": BURN, "burn_rate": "3", "long_window": "8s", "short_window": "3s"}
    annotations = fired["annotations"]
    assert annotations["summary"].startswith(f"{SERVICE}: ")
    assert "missed predict; 10% may (90% over 28d)" in annotations["summary"]
    assert annotations["objective_description"] == "what the shop waits for"
    assert annotations["runbook_url"] == "https://runbooks.example/latency"


def test_a_page_leads_to_the_traces_of_its_breaches(course: Course) -> None:
    """Its link is a search of Jaeger's page, which asks Jaeger the same; it finds breaches of that objective alone."""
    link = urlsplit(course.posted(BURN, "firing")[0]["annotations"]["traces"])
    assert f"{link.scheme}://{link.netloc}{link.path}" == f"{course.jaeger}/search"
    parameters = {**dict(parse_qsl(link.query)), "limit": "1000"}
    found = httpx.get(f"{course.jaeger}/api/traces", params=parameters).raise_for_status().json()["data"]
    traces = {one["traceID"] for one in found}
    assert traces
    assert traces <= set(course.slow)


def test_few_requests_are_no_alert(course: Course) -> None:
    """Half of two requests are breaches: five times the budget, of too little traffic."""
    ratio = 'max_over_time(job_objective:sla_breaches:ratio_increase8s{sla_objective="rare"}[5m])'
    (highest,) = course.ask(ratio)
    assert float(highest["value"][1]) >= 0.5  # 1 where a scrape was between the two, as the first leaves the window
    assert course.ask(f'last_over_time(ALERTS{{alertname="{BURN}", sla_objective="predict"}}[5m])')
    assert course.ask(f'last_over_time(ALERTS{{alertname="{BURN}", sla_objective="rare"}}[5m])') == []
    assert course.posted(BURN, "firing", "rare") == []


def test_silence_is_reported_as_such(course: Course) -> None:
    """A service that has stopped meets no objective: a ticket, and no page."""
    fired = course.posted(NO_DATA, "firing", job=SERVICE)[0]
    assert fired["labels"]["severity"] == "ticket"
    assert fired["annotations"]["summary"].startswith(f"{SERVICE}: no request was judged by predict for 6s")
    assert course.posted(BURN, "firing")[-1]["startsAt"] < fired["startsAt"]


def test_all_breaches_are_kept_and_of_others_the_share(course: Course) -> None:
    """By the Collector's section; verdicts are counted before that, and so are spans, by the bound of the objective."""
    parameters = {"service": SERVICE, "lookback": "1h", "limit": "100000"}

    def kept() -> set[str]:
        found = httpx.get(f"{course.jaeger}/api/traces", params=parameters, timeout=60).raise_for_status().json()
        return {one["traceID"] for one in found["data"]}

    until(lambda: set(course.slow) <= kept())
    share = len(kept() & set(course.fast)) / len(course.fast)
    assert 0.1 < share < 0.6, f"{len(course.fast)} good traces"

    judged = course.ask('sum by (sla_verdict) (sla_requests_total{sla_objective="predict"})')
    verdicts = {one["metric"]["sla_verdict"]: int(one["value"][1]) for one in judged}
    assert verdicts.keys() <= {"good", "breach"}
    assert sum(verdicts.values()) == len(course.slow) + len(course.fast)
    spans = [line for line in httpx.get(course.counted).text.splitlines() if 'http_route="/predict"' in line]
    assert sum(counts(spans, "_bucket{", 'le="180"')) == verdicts["good"]
    assert sum(counts(spans, "_count{")) == sum(verdicts.values())


def test_each_query_of_the_board_has_an_answer(course: Course) -> None:
    """What names a series is a label of it; of the time since the start, as a chart shows it."""
    board = json.loads(course.board)
    targets = [target for panel in board["panels"] for target in panel.get("targets", []) if "expr" in target]
    assert len(targets) > 10
    values = {"$service": SERVICE, "$objective": ".*", "$__rate_interval": "20s"}
    for target in targets:
        query = target["expr"]
        for name, value in values.items():
            query = query.replace(name, value)
        found = course.ask(f"last_over_time(({query})[5m:1s])")
        assert found, query
        for series in found:
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= series["metric"].keys(), query


def test_the_heat_map_leads_to_breaches(course: Course) -> None:
    """Its exemplars are traces of that verdict, which Jaeger has."""
    breaches = 'sla_duration_seconds{sla_objective="predict", sla_verdict="breach"}'
    parameters = {"query": breaches, "start": "0", "end": "9999999999"}
    answer = httpx.get(f"{course.prometheus}/api/v1/query_exemplars", params=parameters).json()
    traces = {one["labels"]["trace_id"] for series in answer["data"] for one in series["exemplars"]}
    assert traces
    assert traces <= set(course.slow)
    for trace in traces:
        assert httpx.get(f"{course.jaeger}/api/traces/{trace}").status_code == httpx.codes.OK


def counts(lines: list[str], *parts: str) -> list[int]:
    """Return the values of the metrics of entry spans that have these parts."""
    chosen = [line for line in lines if all(one in line for one in (*parts, 'span_kind="SPAN_KIND_SERVER"'))]
    assert chosen, parts
    return [int(float(line.split("} ")[1].split()[0])) for line in chosen]
