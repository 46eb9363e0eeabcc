"""The files of collector-config/ in the real Collector and Jaeger, and docker-compose.yml, which runs the same.

What Prometheus, Grafana and Jaeger's page make of them is in test_grafana_board.py and test_jaeger_ui.py.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import yaml
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

from backend.processes import until
from backends import CONFIG, BackendFailed, Collector, Jaeger, binary, free_port, run_collector, run_jaeger
from stagetrace.cli.page import PORT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from opentelemetry.sdk.trace import ReadableSpan

ROOT = CONFIG.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
MANIFEST: dict[str, Any] = yaml.safe_load((CONFIG / "build/otelcol/manifest.yaml").read_text("utf-8"))
JAEGER_MODULE_OF_IMAGE = {"2.13.0": "v1.76.0"}  # the same commit: Jaeger's v2 tags are no Go module versions
CONFIG_OF_SERVICE = {"jaeger": "jaeger.yaml", "collector": "collector.yaml"}
TOWARDS_CLICKHOUSE = ["clickhouse.yaml", "agent.yaml", "gateway.yaml"]  # test_clickhouse_pipeline.py runs them
COMPONENTS = {"receivers", "processors", "exporters", "connectors", "extensions"}


class Acknowledged(SpanExporter):
    """Pass spans on and store the response of the receiver."""

    def __init__(self, exporter: SpanExporter) -> None:
        self.exporter = exporter
        self.results: list[SpanExportResult] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export, and store the result."""
        self.results.append(self.exporter.export(spans))
        return self.results[-1]

    def shutdown(self) -> None:
        """Shut the exporter down."""
        self.exporter.shutdown()


def send(exporter: SpanExporter, service: str, *names: str) -> None:
    """Send one trace of one span for each name; return once the receiver has acknowledged all of them."""
    acknowledged = Acknowledged(exporter)
    provider = TracerProvider(resource=Resource.create({"service.name": service}), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(acknowledged))
    for name in names:
        with provider.get_tracer("test").start_as_current_span(name, attributes={"sla.breached": True}):
            pass
    provider.shutdown()
    assert acknowledged.results == [SpanExportResult.SUCCESS] * len(names)


def over_grpc(to: Collector | Jaeger) -> SpanExporter:
    return GrpcExporter(endpoint=to.otlp_grpc, insecure=True)


def over_http(to: Collector | Jaeger) -> SpanExporter:
    return HttpExporter(endpoint=f"{to.otlp_http}/v1/traces")


def stored(jaeger: Jaeger, service: str) -> dict[str, Any]:
    """Return `service.name` and `sla.breached` of each breached span of a service that Jaeger finds, by span name."""
    query: dict[str, Any] = {"service": service, "tags": json.dumps({"sla.breached": "true"}), "limit": 1000}
    response = httpx.get(f"{jaeger.query_http}/api/traces", params=query).raise_for_status()
    return {
        span["operationName"]: (
            trace["processes"][span["processID"]]["serviceName"],
            next(tag["value"] for tag in span["tags"] if tag["key"] == "sla.breached"),
        )
        for trace in response.json()["data"]
        for span in trace["spans"]
    }


def arrives(jaeger: Jaeger, service: str, *names: str) -> None:
    """Wait until exactly these spans are stored, whole."""
    expected = dict.fromkeys(names, (service, True))
    until(lambda: stored(jaeger, service) == expected)


@pytest.mark.usefixtures("backends")
def test_collector_accepts_its_configuration(tmp_path: Path) -> None:
    """`otelcol validate` knows every component and every field."""
    argv = [str(binary("otelcol")), "validate", f"--config={CONFIG / 'collector.yaml'}"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.usefixtures("backends")
def test_collector_that_cannot_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that ends before it is ready is reported with the end of its log."""
    monkeypatch.setenv("COLLECTOR_MEMORY_MIB", "many")
    nowhere = Jaeger("", "", f"http://127.0.0.1:{free_port()}", "", 0)
    with pytest.raises(BackendFailed, match=r"(?s)otelcol ended with 1\..*limit_mib"), run_collector(tmp_path, nowhere):
        pass


@pytest.mark.parametrize("exporter", [over_grpc, over_http])
def test_span_travels_through_the_collector(
    exporter: Callable[[Collector], SpanExporter], collector: Collector, jaeger: Jaeger
) -> None:
    """A span that a service sends over either protocol can be found in Jaeger by its attribute."""
    service = f"travels-{exporter.__name__}"
    send(exporter(collector), service, "first", "second")
    arrives(jaeger, service, "first", "second")


@pytest.mark.parametrize("exporter", [over_grpc, over_http])
def test_span_sent_to_jaeger_directly(exporter: Callable[[Jaeger], SpanExporter], jaeger: Jaeger) -> None:
    """A service may also send to Jaeger without a Collector."""
    service = f"direct-{exporter.__name__}"
    send(exporter(jaeger), service, "only")
    arrives(jaeger, service, "only")


@pytest.mark.usefixtures("backends")
def test_badger_keeps_spans_over_a_restart(tmp_path: Path) -> None:
    """Through the Collector into badger; after a restart on the same folder they are still found."""
    with run_jaeger(tmp_path, "badger") as jaeger, run_collector(tmp_path, jaeger) as collector:
        send(over_grpc(collector), "kept", "before")
        arrives(jaeger, "kept", "before")
    with run_jaeger(tmp_path, "badger") as jaeger:
        arrives(jaeger, "kept", "before")


@pytest.mark.usefixtures("backends")
def test_memory_forgets_spans_over_a_restart(tmp_path: Path) -> None:
    """The overlay really replaces badger."""
    with run_jaeger(tmp_path, "memory") as jaeger:
        send(over_grpc(jaeger), "forgotten", "before")
        arrives(jaeger, "forgotten", "before")
    with run_jaeger(tmp_path, "memory") as jaeger:
        arrives(jaeger, "forgotten")
    assert not (tmp_path / "badger").exists()


@pytest.mark.usefixtures("backends")
def test_spans_outlive_an_outage_of_jaeger(tmp_path: Path) -> None:
    """Spans accepted while Jaeger is down reach it once it is back at the same address."""
    with run_jaeger(tmp_path) as gone:
        pass
    with run_collector(tmp_path, gone) as collector:
        send(over_grpc(collector), "outage", "first", "second")
        with run_jaeger(tmp_path, again=gone) as back:
            arrives(back, "outage", "first", "second")


@pytest.mark.usefixtures("backends")
@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_spans_outlive_the_collector(ending: signal.Signals, tmp_path: Path) -> None:
    """Spans accepted while Jaeger is down reach it by the next Collector, even if the first was killed at once."""
    with run_jaeger(tmp_path) as gone:
        pass
    with run_collector(tmp_path, gone) as collector:
        send(over_grpc(collector), "crash", "first", "second")
        os.kill(collector.pid, ending)
    with run_jaeger(tmp_path) as jaeger, run_collector(tmp_path, jaeger):
        arrives(jaeger, "crash", "first", "second")


VARIABLE = re.compile(r"\$\{env:(\w+)(:-[^}]*)?\}")


def variables(file: str) -> dict[str, bool]:
    """Return each variable of a file of collector-config/, and whether it has a default wherever it stands."""
    found: dict[str, bool] = {}
    for name, default in VARIABLE.findall((CONFIG / file).read_text("utf-8")):
        found[name] = found.get(name, True) and default != ""
    return found


MOUNTED = {
    "jaeger": {"jaeger.yaml", "jaeger-ui.json"},
    "collector": {"collector.yaml"},
    "prometheus": {"prometheus.yaml"},
    "alertmanager": {"alertmanager.yaml"},
    "alert-rules": {"sla.yaml"},
    "ticket-router": {"sla.yaml"},
    "grafana": {"grafana/datasources.yaml", "grafana/boards.yaml", "grafana/stagetrace.json"},
}


def mounts(service: str) -> dict[str, str]:
    """Return host path by container path, for mounts of single files."""
    volumes = [volume.split(":") for volume in SERVICES[service]["volumes"]]
    assert all(mode == ["ro"] for source, _, *mode in volumes if source.startswith("."))
    return {target: source for source, target, *_ in volumes if source.startswith(".")}


@pytest.mark.parametrize(("service", "files"), MOUNTED.items())
def test_compose_runs_the_files_that_the_tests_run(service: str, files: set[str]) -> None:
    """Each file is mounted from collector-config/; the command or a variable names it, or Grafana looks there."""
    mounted = mounts(service)
    assert set(mounted.values()) == {f"./collector-config/{file}" for file in files}
    assert all((ROOT / source).is_file() for source in mounted.values())
    named = " ".join(
        [*SERVICES[service].get("command", []), *map(str, SERVICES[service].get("environment", {}).values())]
    )
    for target, source in mounted.items():
        assert target in named or target.startswith("/etc/grafana/provisioning/"), source
    if service in CONFIG_OF_SERVICE:
        (config,) = [target for target, source in mounted.items() if source.endswith(CONFIG_OF_SERVICE[service])]
        assert SERVICES[service]["command"] == [f"--config={config}"]


def test_grafana_finds_what_it_is_given() -> None:
    """The folder of boards that it is told, and the services that its data sources name."""
    (provider,) = yaml.safe_load((CONFIG / "grafana/boards.yaml").read_text("utf-8"))["providers"]
    assert f"{provider['options']['path']}/stagetrace.json" in mounts("grafana")
    sources = yaml.safe_load((CONFIG / "grafana/datasources.yaml").read_text("utf-8"))["datasources"]
    addresses = {one["url"] for one in sources}
    assert addresses == {
        "http://prometheus:9090",
        SERVICES["jaeger"]["environment"]["JAEGER_PROMETHEUS_URL"].replace("prometheus:9090", "jaeger:16686"),
    }
    prometheus = yaml.safe_load((CONFIG / "prometheus.yaml").read_text("utf-8"))
    (scraped,) = prometheus["scrape_configs"]
    assert scraped["static_configs"] == [{"targets": ["collector:8889"]}]
    assert "COLLECTOR_METRICS_PORT:-8889" in (CONFIG / "collector.yaml").read_text("utf-8")


def test_prometheus_finds_the_rules_and_alertmanager() -> None:
    """It reads the file that another service writes into a volume, and sends alerts to where Alertmanager listens."""
    prometheus = yaml.safe_load((CONFIG / "prometheus.yaml").read_text("utf-8"))
    folders = {}
    for service in ("alert-rules", "prometheus"):
        (folders[service],) = [
            one.split(":")[1] for one in SERVICES[service]["volumes"] if one.startswith("alert-rules:")
        ]
    written = SERVICES["alert-rules"]["command"][-1]
    (read,) = prometheus["rule_files"]
    assert fnmatchcase(written.replace(folders["alert-rules"], folders["prometheus"], 1), read)
    (one,) = prometheus["alerting"]["alertmanagers"]
    assert one["static_configs"] == [{"targets": ["alertmanager:9093"]}]
    assert SERVICES["alertmanager"]["ports"] == ["127.0.0.1:9093:9093"]


def test_addresses_in_links_are_published() -> None:
    """Jaeger's page and Grafana link to each other, and to `stagetrace page` at its own default port."""
    texts = [
        (CONFIG / name).read_text("utf-8")
        for name in ("jaeger-ui.json", "grafana/stagetrace.json", "grafana/datasources.yaml", "sla.yaml")
    ]
    linked = {port for text in texts for port in re.findall(r"http://127\.0\.0\.1:(\d+)", text)}
    published = {str(port).split(":")[1] for service in SERVICES.values() for port in service.get("ports", [])}
    assert linked - published == {str(PORT)}


@pytest.mark.parametrize(("service", "file"), CONFIG_OF_SERVICE.items())
def test_compose_knows_the_variables(service: str, file: str) -> None:
    """Each variable of the file has a default or is set, and none is set that the file does not read."""
    known, environment = variables(file), SERVICES[service]["environment"]
    assert known
    assert {name for name, defaulted in known.items() if not defaulted} <= environment.keys()
    assert environment.keys() <= known.keys()


def test_readme_describes_the_variables() -> None:
    """collector-config/README.md names exactly the variables that the files read."""
    table = [line for line in (CONFIG / "README.md").read_text("utf-8").splitlines() if line.startswith("| `")]
    described = {name for line in table for name in re.findall(r"`([A-Z_]{8,})`", line.split("|")[1])}
    files = [*CONFIG_OF_SERVICE.values(), *TOWARDS_CLICKHOUSE]
    assert described == {name for file in files for name in variables(file)}


def test_each_variable_towards_clickhouse_has_a_default() -> None:
    """Compose runs none of these files; one start of them needs no setting."""
    assert all(all(variables(file).values()) for file in TOWARDS_CLICKHOUSE)


def test_every_listener_is_on_loopback_by_default() -> None:
    """Without variables nothing is reachable from outside; compose opens the hosts inside its own network."""
    hosts = dict.fromkeys(["collector.yaml", "clickhouse.yaml", "agent.yaml"], "COLLECTOR_LISTEN_HOST")
    for file, host in {"jaeger.yaml": "JAEGER_LISTEN_HOST", **hosts}.items():
        elsewhere = "JAEGER_OTLP_ENDPOINT|JAEGER_PROMETHEUS_URL|GATEWAY_OTLP_ENDPOINT|CLICKHOUSE_ENDPOINT"
        listeners = re.findall(rf"endpoint: (\$\{{env:(?!{elsewhere}).*)", (CONFIG / file).read_text("utf-8"))
        assert listeners
        assert all(listener.startswith(f"${{env:{host}:-127.0.0.1}}:") for listener in listeners)


def test_compose_publishes_on_loopback_only() -> None:
    """No published port is reachable from another machine."""
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports
    assert [port for port in ports if not re.fullmatch(r"127\.0\.0\.1:\d+:\d+", str(port))] == []


def test_compose_publishes_ports_that_something_listens_on() -> None:
    """Ports of Jaeger and the Collector are the defaults of their files, since compose sets none."""
    for service, file in CONFIG_OF_SERVICE.items():
        listening = set(re.findall(r"_PORT:-(\d+)\}", (CONFIG / file).read_text("utf-8")))
        assert {port.rpartition(":")[2] for port in SERVICES[service]["ports"]} <= listening
    (jaeger_otlp,) = re.findall(r"JAEGER_OTLP_GRPC_PORT:-(\d+)", (CONFIG / "jaeger.yaml").read_text("utf-8"))
    assert SERVICES["collector"]["environment"]["JAEGER_OTLP_ENDPOINT"] == f"jaeger:{jaeger_otlp}"


def test_compose_pins_images() -> None:
    """Each image has a full version, each build a Dockerfile that exists and pins its base."""
    for service in SERVICES.values():
        if "image" in service:
            assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", service["image"])
        else:
            dockerfile = (ROOT / service["build"]["context"] / service["build"]["dockerfile"]).read_text("utf-8")
            bases = re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE)
            assert bases
            assert all(re.fullmatch(r"[\w./-]+:\d+\.\d+\S*", base) for base in bases)


def test_compose_runs_the_versions_that_are_built() -> None:
    """The images are of the versions that the tests ran."""
    version = SERVICES["collector"]["image"].rpartition(":")[2]
    assert version == MANIFEST["dist"]["version"]
    parts = [entry for kind in COMPONENTS for entry in MANIFEST[kind]]
    assert {part["gomod"].split()[1] for part in parts} == {f"v{version}"}

    image = SERVICES["jaeger"]["image"].rpartition(":")[2]
    required = re.search(r"github\.com/jaegertracing/jaeger (\S+)", (CONFIG / "build/jaeger/go.mod").read_text("utf-8"))
    assert required
    assert required[1] == JAEGER_MODULE_OF_IMAGE[image]

    # Prometheus' module v0.313.2 is its release 3.13.2.
    major, rest = SERVICES["prometheus"]["image"].rpartition(":v")[2].split(".", 1)
    modules = (CONFIG / "build/prometheus/go.mod").read_text("utf-8")
    assert (
        f"\tgithub.com/prometheus/prometheus v0.{major}{rest.split('.')[0].zfill(2)}.{rest.split('.')[1]} " in modules
    )

    alertmanager = SERVICES["alertmanager"]["image"].rpartition(":")[2]
    modules = (CONFIG / "build/alertmanager/go.mod").read_text("utf-8")
    assert f"\tgithub.com/prometheus/alertmanager {alertmanager} " in modules


def test_go_modules_are_those_of_the_manifest() -> None:
    """go.mod requires each component of the manifest in the manifest's version."""
    required = dict(re.findall(r"^\t(\S+) (v\S+)", (CONFIG / "build/otelcol/go.mod").read_text("utf-8"), re.MULTILINE))
    wanted = dict(entry["gomod"].split() for kind in COMPONENTS | {"providers"} for entry in MANIFEST[kind])
    assert {module: required.get(module) for module in wanted} == wanted
    modules = (CONFIG / "build/otelcol/go.mod").read_text("utf-8")
    assert all(f"\nreplace {one}\n" in modules for one in MANIFEST["replaces"])


def test_compose_waits_for_what_can_be_waited_for() -> None:
    """`service_healthy` is only required of services with a health check, on a health port of their file."""
    for service in SERVICES.values():
        for name, dependency in service.get("depends_on", {}).items():
            assert ("healthcheck" in SERVICES[name]) == (dependency["condition"] == "service_healthy")
    assert SERVICES["jaeger"]["healthcheck"]["test"][-1] == "http://127.0.0.1:14133/status"
    assert "JAEGER_HEALTH_PORT:-14133" in (CONFIG / "jaeger.yaml").read_text("utf-8")
    (script,) = SERVICES["collector-ready"]["command"]
    assert "http://collector:13133/" in script
    assert "COLLECTOR_HEALTH_PORT:-13133" in (CONFIG / "collector.yaml").read_text("utf-8")


def test_compose_keeps_spans_in_volumes() -> None:
    """Jaeger's spans and the Collector's queue are in named volumes that the images' user owns."""
    places = {"jaeger": "JAEGER_BADGER_DIR", "collector": "COLLECTOR_QUEUE_DIR"}
    for service, variable in places.items():
        folder = SERVICES[service]["environment"][variable]
        (volume,) = [volume for volume in SERVICES[service]["volumes"] if volume.endswith(f":{folder}")]
        assert volume.split(":")[0] in COMPOSE["volumes"]
        assert volume in SERVICES["volumes-owner"]["volumes"]
        assert folder in SERVICES["volumes-owner"]["entrypoint"]
