"""The Grafana board, and Jaeger's page Monitor, on a real service, Collector, Prometheus and Jaeger.

No Grafana runs here. Its variables are replaced, and each query is put to Prometheus.
"""

from __future__ import annotations

import json
import re
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, urlsplit

import httpx
import pytest
import yaml

from backend.processes import until
from backends import CONFIG, Jaeger, free_port, run_collector, run_jaeger, run_prometheus
from conftest import need
from services import recorded, run_service
from stagetrace.page.base import SHARED, Asked
from stagetrace.page.views import VIEWS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from services import Service

BOARD: Final[dict[str, Any]] = json.loads((CONFIG / "grafana/stagetrace.json").read_text("utf-8"))
SOURCES: Final[list[dict[str, Any]]] = yaml.safe_load((CONFIG / "grafana/datasources.yaml").read_text("utf-8"))[
    "datasources"
]
PANELS: Final[list[dict[str, Any]]] = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
QUERIES: Final = [
    pytest.param(target, id=f"{panel['title']} {target['refId']}")
    for panel in PANELS
    for target in panel["targets"]
    if "expr" in target
]
SERVICE: Final = "shop"
VARIABLES: Final = {"$service": SERVICE, "$__rate_interval": "15s", "$__range": "5m", "$window": "7d"}
NAMES: Final = {"prometheus": "metrics", "jaeger": "traces"}
WITHIN_S: Final = 60.0


@dataclass(frozen=True)
class Monitored:
    """A service under load, and those that show it."""

    prometheus: str
    jaeger: Jaeger

    def ask(self, query: str) -> list[dict[str, Any]]:
        """Return the series that a query gives now."""
        response = httpx.get(f"{self.prometheus}/api/v1/query", params={"query": query})
        answer = response.json()
        assert answer["status"] == "success", answer
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result


@pytest.fixture(scope="module")
def monitored(services: None, backends: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Monitored]:
    """Run a service that breaks one of two objectives at times, and is called all the while."""
    del services, backends
    need("prometheus")
    folder = tmp_path_factory.mktemp("monitored")
    port = free_port()
    with (
        run_jaeger(folder / "jaeger", prometheus=f"http://127.0.0.1:{port}") as jaeger,
        run_collector(folder / "collector", jaeger) as collector,
        run_prometheus(folder / "prometheus", collector, port) as prometheus,
        run_service(folder, env=environment(collector.otlp_grpc)) as service,
    ):
        over = threading.Event()
        caller = threading.Thread(target=call, args=(service, over))
        caller.start()
        try:
            yield Monitored(prometheus, jaeger)
        finally:
            over.set()
            caller.join()


def environment(endpoint: str) -> dict[str, str]:
    policy = "POST /predict within 50ms for 99.9%; * within 1s"
    more = {"OTEL_METRICS_EXPORTER": "otlp", "OTEL_METRIC_EXPORT_INTERVAL": "500", "OTEL_SERVICE_NAME": SERVICE}
    return recorded(endpoint, policy, OTEL_BSP_SCHEDULE_DELAY="200", **more)


def call(service: Service, over: threading.Event) -> None:
    while not over.wait(0.05):
        for inference_s in (0.0, 0.08):
            service.call("POST", "/predict", json={"inference_s": inference_s}, timeout=60)


def replaced(text: str) -> str:
    """Return a query as Grafana sends it; no variable is left."""
    for name, value in VARIABLES.items():
        text = text.replace(name, value)
    assert "$" not in text
    return text


@pytest.mark.parametrize("target", QUERIES)
def test_a_query_has_an_answer(target: dict[str, Any], monitored: Monitored) -> None:
    """Each metric and label is one that is exported; what names a series is a label of it."""
    query = replaced(target["expr"])
    until(lambda: numbers(monitored.ask(query)), within_s=WITHIN_S)
    for series in monitored.ask(query):
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= series["metric"].keys()


def numbers(series: list[dict[str, Any]]) -> bool:
    return any(one["value"][1] not in ("NaN", "+Inf", "-Inf") for one in series)  # no request of a route: NaN


def test_the_figures_are_those_of_the_service(monitored: Monitored) -> None:
    """Every second request of one objective is late, and one in a thousand may be: 500 times too many."""
    expressions = {panel["title"]: panel["targets"][0]["expr"] for panel in PANELS if "expr" in panel["targets"][0]}
    late = "POST /predict within 50ms"

    def value(title: str) -> float:
        found = [one for one in monitored.ask(replaced(expressions[title])) if one["metric"]["sla_objective"] == late]
        return float(found[0]["value"][1]) if found else -1

    until(lambda: 0.3 < value("Attainment") < 0.7, within_s=WITHIN_S)
    assert value("Objectives") == 0.999
    until(lambda: 300 < value("Burn rate") < 700, within_s=WITHIN_S)
    assert value("Error budget left") < 0
    causes = monitored.ask(replaced(expressions["Breaches by cause"]))
    assert {one["metric"]["sla_breach_cause"] for one in causes if float(one["value"][1]) > 0}
    (shares,) = monitored.ask(f"sum({replaced(expressions['Shares of time'])})")
    assert float(shares["value"][1]) == pytest.approx(1)


def test_a_chart_has_traces(monitored: Monitored) -> None:
    """The exemplars of a histogram are traces that Jaeger has, by the label that the data source follows."""
    (source,) = [one for one in SOURCES if one["type"] == "prometheus"]
    labels = {one["name"] for one in source["jsonData"]["exemplarTraceIdDestinations"]}
    assert labels == {"trace_id"}
    query = f'traces_span_metrics_duration_milliseconds_bucket{{job="{SERVICE}"}}'
    params = {"query": query, "start": "0", "end": "9999999999"}

    def exemplars() -> list[dict[str, Any]]:
        answer = httpx.get(f"{monitored.prometheus}/api/v1/query_exemplars", params=params).json()
        return [exemplar for series in answer["data"] for exemplar in series["exemplars"]]

    until(exemplars, within_s=WITHIN_S)
    trace_id = exemplars()[0]["labels"]["trace_id"]
    until(lambda: httpx.get(f"{monitored.jaeger.query_http}/api/traces/{trace_id}").status_code == httpx.codes.OK)


@pytest.mark.parametrize("kind", ["calls", "latencies", "errors"])
def test_the_page_monitor_has_metrics(kind: str, monitored: Monitored) -> None:
    """Jaeger gets them from Prometheus by the names of the Collector; it asks as its page does."""
    params = {"service": SERVICE, "groupByOperation": "true", "spanKind": "server", "quantile": "0.95"}
    params |= {"lookback": "60000", "step": "5000", "ratePer": "60000"}

    def operations() -> set[str]:
        answer = httpx.get(f"{monitored.jaeger.query_http}/api/metrics/{kind}", params=params).raise_for_status()
        labels = (label for metric in answer.json()["metrics"] for label in metric["labels"])
        return {label["value"] for label in labels if label["name"] == "operation"}

    until(lambda: "POST /predict" in operations(), within_s=WITHIN_S)


def test_panels_have_ids_and_places_of_their_own() -> None:
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & taken
        taken |= cells
    for panel in PANELS:
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references)


def test_data_sources_are_variables_of_their_kind() -> None:
    """The board can be imported anywhere; beside docker-compose.yml it finds the two that are made there."""
    kinds = {one["name"]: one["query"] for one in BOARD["templating"]["list"] if one["type"] == "datasource"}
    used = re.findall(r'"type": "(\w+)", "uid": "\$\{(\w+)\}"', json.dumps(BOARD))
    assert used
    assert {(kind, kinds[name]) for kind, name in used} == {(kind, kind) for kind in kinds.values()}
    defaults = {one["current"]["value"] for one in BOARD["templating"]["list"] if one["type"] == "datasource"}
    assert {(one["type"], one["uid"]) for one in SOURCES} == {
        (kind, uid) for kind in kinds.values() for uid in defaults if uid == f"stagetrace-{NAMES[kind]}"
    }
    (metrics,) = [one for one in SOURCES if one["type"] == "prometheus"]
    destinations = metrics["jsonData"]["exemplarTraceIdDestinations"]
    assert {one["datasourceUid"] for one in destinations if "datasourceUid" in one} <= defaults


def test_variables_are_defined() -> None:
    """Each variable of a query or link is one of the board, or one of Grafana's own."""
    defined = {one["name"] for one in BOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(BOARD)))
    assert {name for name in used if not name.startswith("__")} == defined


def links(part: object) -> Iterator[str]:
    """Yield the address of every link below a part of the board."""
    if isinstance(part, dict):
        if "url" in part and "title" in part:
            yield part["url"]
        for value in part.values():
            yield from links(value)
    elif isinstance(part, list):
        for value in part:
            yield from links(value)


FIELDS: Final = {
    "${service}": SERVICE,
    "${__from:date:iso}": "2026-03-01T12:00:00.000Z",
    "${__to:date:iso}": "2026-03-01T13:00:00.000Z",
    "${__value.raw}": "0" * 32,
    "${__data.fields.route}": "/predict",
    "${__data.fields.cause}": "lock_wait",
    "${__field.labels.sla_breach_cause}": "lock_wait",
}


@pytest.mark.parametrize("link", sorted({link for link in links(BOARD) if link.startswith("${page}")}))
def test_a_link_leads_to_a_view(link: str) -> None:
    url = link.removeprefix("${page}")
    for name, value in FIELDS.items():
        url = url.replace(name, value)
    assert "$" not in url
    path, query = urlsplit(url).path, urlsplit(url).query
    (view,) = [view for view in VIEWS if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", view.path), path)]
    asked = Asked.of(parse_qsl(query, strict_parsing=bool(query)), {}, "1h")
    assert asked.params.keys() <= {*SHARED, *view.keeps}
    assert asked.selection.service in (None, SERVICE)
