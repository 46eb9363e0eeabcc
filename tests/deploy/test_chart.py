"""The chart and deploy/kustomize/: valid for Kubernetes, the same, and what they start receives spans.

No cluster is needed: Helm and Kustomize render, kubeconform validates against the schemas of Kubernetes and of the
OpenTelemetry Operator, and the commands of the containers run here, with folders and ports of this machine.
"""

from __future__ import annotations

import json
import re
import subprocess
from importlib import resources
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import pytest
import tomllib  # type: ignore[import-not-found]  # there from 3.11 on, which the tests need
import yaml

from backend.processes import until
from backend.running import COMMAND, FREE_PORTS, PROTOBUF, Up, request, serving
from backends import BUILT, _process, binary, free_port
from deploy.rendered import CHART, DEPLOY, INSTRUMENTATION, documents, helm, kustomize_files, render
from stagetrace import __version__
from stagetrace.cli.inject import IMAGE
from stagetrace.cli.inject.pods import KINDS, Agent, inject

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("kubernetes")
NEWEST, OLDEST = "1.37.0", "1.27.0"
SLA = "POST /predict within 50ms for 99%; * within 1s"


def write_schemas(folder: Path, version: str) -> None:
    """Write schemas as kubeconform reads them: those of Kubernetes each with its definitions, that of the operator."""
    package = resources.files("kubernetes_validate")
    source = package / "kubernetes-json-schema" / f"v{version}-local-strict"
    definitions = json.loads((source / "_definitions.json").read_text("utf-8"))["$defs"]
    group = {kind: "-".join(filter(None, (kind, group, "v1"))) for kind, (group, _) in KINDS.items()}
    for name in (*group.values(), "ConfigMap-v1", "Secret-v1", "Service-v1"):
        text = (source / f"{name.lower()}.json").read_text("utf-8").replace('"/api/_definitions.json#', '"#')
        schema = {key: value for key, value in json.loads(text).items() if key != "$id"}
        (folder / f"{name.lower()}.json").write_text(json.dumps({**schema, "$defs": definitions}), "utf-8")
    crd = yaml.safe_load((BUILT / "instrumentation-crd.yaml").read_text("utf-8"))
    (found,) = (one for one in crd["spec"]["versions"] if one["name"] == "v1alpha1")
    written = json.dumps(closed(found["schema"]["openAPIV3Schema"]))
    (folder / "instrumentation-opentelemetry-v1alpha1.json").write_text(written, "utf-8")


def closed(schema: Any) -> Any:
    """Return a schema of a CRD in which no object has other keys than those that it names, as the API server has it."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(value) for key, value in schema.items()}
    if "properties" in schema and "type" in schema:
        found.setdefault("additionalProperties", False)
    return found


@pytest.fixture(scope="module", params=[NEWEST, OLDEST])
def schemas(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, kubernetes: None) -> Path:  # noqa: ARG001
    """Return a folder of schemas of a version of Kubernetes."""
    folder = tmp_path_factory.mktemp("schemas")
    write_schemas(folder, request.param)
    return folder


def problems(schemas: Path, text: str) -> list[str]:
    """Return what kubeconform has to say against manifests."""
    options = (
        "-strict",
        "-output",
        "json",
        "-schema-location",
        f"{schemas}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json",
    )
    done = subprocess.run([binary("kubeconform"), *options], input=text, capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)["resources"]
    assert bool(found) == bool(done.returncode), done
    return [f"{one['kind']} {one['name']}: {one['msg']}" for one in found]


VALUES = [
    *product(("", "collector.enabled=true"), ("", f"sla={SLA}"), ("", "storage.className=fast,tokenSecret=mine")),
    ("instrumentation.enabled=false",),
    ("clickhouse.enabled=true",),
]


@pytest.mark.parametrize("values", VALUES, ids=lambda one: " ".join(filter(None, one)) or "none")
def test_what_helm_renders_is_valid(schemas: Path, values: tuple[str, ...]) -> None:
    text = render(*filter(None, values))
    assert problems(schemas, text) == []
    kinds = [one["kind"] for one in documents(text)]
    assert ("Instrumentation" in kinds) == ("instrumentation.enabled=false" not in values)
    assert ("Secret" in kinds) == ("storage.className=fast,tokenSecret=mine" not in values)
    assert kinds.count("StatefulSet") == 1 + ("collector.enabled=true" in values)
    assert ("Deployment" in kinds) == ("clickhouse.enabled=true" in values)


@pytest.mark.parametrize(
    ("right", "wrong", "expected"),
    [
        ("containerPort: 4317", "containrPort: 4317", "additional properties 'containrPort' not allowed"),
        ("replicas: 1", "replicas: one", "got string, want"),
        ("port: 4317, ", "", "missing property 'port'"),
        ("python:", "pyton:", "additional properties 'pyton' not allowed"),
        ("propagators: [tracecontext, ", "propagators: [trace, ", "must be one of"),
    ],
)
def test_what_is_wrong_is_found(schemas: Path, right: str, wrong: str, expected: str) -> None:
    """The schemas are those that count."""
    (found,) = problems(schemas, render().replace(right, wrong, 1))
    assert expected in found


def test_injected_workloads_are_valid(schemas: Path) -> None:
    """Of each kind, with all that injection can add."""
    agent = Agent(IMAGE, SLA, "http://stagetrace.ml:4318", "stagetrace", is_musl=True)
    for kind, (group, path) in KINDS.items():
        labels = {"app": "api"}
        pod: Any = {"spec": {"containers": [{"name": "api", "image": "api:1"}], "restartPolicy": "Never"}}
        more: dict[str, Any] = {} if "Job" in kind or not path else {"selector": {"matchLabels": labels}}
        template: Any = {**pod, "metadata": {"labels": labels}} if path else pod
        for key in reversed(path):
            template = {key: template}
        template["spec"] |= more | ({"schedule": "* * * * *"} if kind == "CronJob" else {})
        template["spec"] |= {"serviceName": "api"} if kind == "StatefulSet" else {}
        made = {"apiVersion": f"{group}/v1".lstrip("/"), "kind": kind, "metadata": {"name": "api"}, **template}
        assert problems(schemas, yaml.safe_dump(made)) == []
        changed, changes = inject(made, agent)
        assert len(changes) == 1
        assert problems(schemas, yaml.safe_dump(changed)) == []


def test_kustomize_has_what_the_chart_renders(schemas: Path, tmp_path: Path) -> None:
    for name, text in kustomize_files().items():
        written = (DEPLOY / "kustomize" / name).read_text("utf-8")
        assert written == text, "run: PYTHONPATH=src python tests/deploy/rendered.py"
    alone = kustomized(DEPLOY / "kustomize")
    assert problems(schemas, alone) == []
    assert [one["kind"] for one in documents(alone)] == ["Service", "StatefulSet"]
    at = Path(*[".."] * len(tmp_path.parts[1:]), *DEPLOY.parts[1:]) / "kustomize"  # Kustomize takes no absolute path
    own: dict[str, Any] = {"namespace": "ml", "resources": [f"{at}"]}
    own["components"] = [f"{at}/instrumentation", f"{at}/collector"]
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(own))
    text = kustomized(tmp_path)
    assert problems(schemas, text) == []
    made = {(one["kind"], one["metadata"]["name"]): one for one in documents(text)}
    assert {one["metadata"]["namespace"] for one in made.values()} == {"ml"}
    endpoint = made["Instrumentation", "stagetrace"]["spec"]["exporter"]["endpoint"]
    assert endpoint == "http://stagetrace-collector:4318"
    assert ("StatefulSet", "stagetrace-collector") in made


def kustomized(folder: Path) -> str:
    done = subprocess.run([binary("kustomize"), "build", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_misspelt_value_is_refused() -> None:
    assert helm("lint", "--strict", str(CHART)).returncode == 0
    done = helm("template", "stagetrace", str(CHART), "--set", "colector.enabled=true")
    assert done.returncode != 0
    assert "additional properties 'colector' not allowed" in done.stderr


def test_names_and_versions_are_those_of_the_package() -> None:
    project = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text("utf-8"))["project"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))
    assert chart["version"] == chart["appVersion"] == project["version"] == __version__
    made = {one["kind"]: one for one in documents(render(name="traces"))}
    assert made["Instrumentation"]["spec"]["python"]["image"] == IMAGE
    assert made["Instrumentation"]["spec"]["exporter"]["endpoint"] == "http://traces.ml:4318"
    (container,) = made["StatefulSet"]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"ghcr.io/stagetrace/stagetrace:{__version__}"
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
    assert compose["services"]["stagetrace"]["image"] == container["image"]


def test_what_the_operator_is_asked_for() -> None:
    """An Instrumentation without a cluster that knows it would fail the installation."""
    assert "Instrumentation" not in {one["kind"] for one in documents(render(has_operator=False))}
    (made,) = (one for one in documents(render(f"sla={SLA}")) if one["kind"] == "Instrumentation")
    env = {one["name"]: one for one in made["spec"]["python"]["env"]}
    assert (env["STAGETRACE"]["value"], env["STAGETRACE_SLA"]["value"]) == ("1", SLA)
    key = {"name": "stagetrace", "key": "headers", "optional": True}
    assert env["OTEL_EXPORTER_OTLP_HEADERS"]["valueFrom"] == {"secretKeyRef": key}
    assert f"{made['apiVersion']}/{made['kind']}" == INSTRUMENTATION


def back_end(*values: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the container of the back end, and the data of its Secret."""
    made = documents(render(*values))
    (secret,) = (one["stringData"] for one in made if one["kind"] == "Secret")
    (found,) = (one for one in made if one["kind"] == "StatefulSet" and one["metadata"]["name"] == "stagetrace")
    return found["spec"]["template"]["spec"]["containers"][0], secret


def run_back_end(folder: Path, container: dict[str, Any], secret: dict[str, str]) -> Any:
    """Run the command of a container, on loopback, with the variables that it gets."""
    program, verb, *flags = container["args"]
    assert (program, verb) == ("stagetrace", "up")
    here = {"--data=/data/store": f"--data={folder / 'store'}", "--host=0.0.0.0": "--host=127.0.0.1"}
    assert here.keys() <= set(flags)
    env = {
        one["name"]: secret[one["valueFrom"]["secretKeyRef"]["key"]] if "valueFrom" in one else one["value"]
        for one in container["env"]
    }
    return serving([*COMMAND, *(here.get(one, one) for one in flags), *FREE_PORTS, "--json"], folder / "log", env)


@pytest.fixture(scope="module")
def chart_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Up, dict[str, str], dict[str, Any]]]:
    """Run the back end of the chart; yield it with its Secret and its container."""
    container, secret = back_end(f"sla={SLA}")
    with run_back_end(tmp_path_factory.mktemp("chart"), container, secret) as (ready, process):
        yield Up(ready, process), secret, container


def test_the_back_end_takes_spans_with_the_headers_of_the_secret(
    chart_up: tuple[Up, dict[str, str], dict[str, Any]],
) -> None:
    up, secret, _ = chart_up
    assert up.ready["objectives"] == 2
    name, _, value = secret["headers"].partition("=")
    body = request("a", service="chart").SerializeToString()
    sent = {"content": body, "headers": {"content-type": PROTOBUF, name: value}}
    assert httpx.post(up.traces, **sent).status_code == 200
    assert httpx.post(up.traces, content=body, headers={"content-type": PROTOBUF}).status_code == 401
    services = httpx.get(f"{up.query}/services", headers={"authorization": f"Bearer {secret['token']}"})
    assert "chart" in services.text


def test_the_probes_are_answered(chart_up: tuple[Up, dict[str, str], dict[str, Any]]) -> None:
    up, _, container = chart_up
    ports = {one["name"]: one["containerPort"] for one in container["ports"]}
    assert ports == {"otlp-grpc": 4317, "otlp-http": 4318, "query-grpc": 16685, "page": 16686}
    assert container["readinessProbe"]["httpGet"] == {"path": "/health", "port": "otlp-http"}
    assert httpx.get(f"{up.url('http_port')}/health").status_code == 200
    for probe in ("startupProbe", "livenessProbe"):
        assert container[probe]["grpc"] == {"port": 16685}
    with grpc.insecure_channel(up.target("query_grpc_port")) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check", bytes, bytes)
        assert check(b"", timeout=10) == b"\x08\x01"  # SERVING


def test_the_collector_takes_spans_without_a_token_and_passes_them_on(tmp_path: Path) -> None:
    """The real Collector, with the chart's configuration and other ports and folders."""
    made = {(one["kind"], one["metadata"]["name"]): one for one in documents(render("collector.enabled=true"))}
    container, secret = back_end()
    with run_back_end(tmp_path, container, secret) as (ready, process):
        up = Up(ready, process)
        text = made["ConfigMap", "stagetrace-collector"]["data"]["collector.yaml"]
        ports = {number: str(free_port()) for number in ("4317", "4318", "13133")}
        for number, port in ports.items():
            text = text.replace(f"0.0.0.0:{number}", f"127.0.0.1:{port}")
        text = text.replace("stagetrace:4317", up.target()).replace("/var/lib/collector", str(tmp_path))
        assert "0.0.0.0" not in text  # noqa: S104
        config = tmp_path / "collector.yaml"
        config.write_text(text, "utf-8")
        command = [str(binary("otelcol")), f"--config={config}"]
        env = {"STAGETRACE_TOKEN": secret["token"]}
        with _process("otelcol", command, env, tmp_path, (int(ports["13133"]), "/")):
            body = request("a", service="through").SerializeToString()
            sent = httpx.post(
                f"http://127.0.0.1:{ports['4318']}/v1/traces", content=body, headers={"content-type": PROTOBUF}
            )
            assert sent.status_code == 200
            bearer = {"authorization": f"Bearer {secret['token']}"}
            until(lambda: "through" in httpx.get(f"{up.query}/services", headers=bearer).text)


def test_each_container_runs_in_a_namespace_with_the_restricted_policy() -> None:
    """What the policy demands, which the API server applied to these pods accepts (docs/kubernetes.md)."""
    made = documents(render("collector.enabled=true")) + documents(render("clickhouse.enabled=true"))
    workloads = [one for one in made if one["kind"] in ("Deployment", "StatefulSet")]
    assert len(workloads) == 4
    for one in workloads:
        spec = one["spec"]["template"]["spec"]
        assert (
            spec["securityContext"].items()
            >= {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}.items()
        )
        for container in spec["containers"]:
            security = container["securityContext"]
            assert (security["allowPrivilegeEscalation"], security["capabilities"]) == (False, {"drop": ["ALL"]})
            assert security["readOnlyRootFilesystem"]


def test_selectors_find_the_pods_of_one_service_alone() -> None:
    made = documents(render("collector.enabled=true"))
    pods = {
        one["metadata"]["name"]: one["spec"]["template"]["metadata"]["labels"]
        for one in made
        if "template" in one.get("spec", {})
    }
    for service in (one for one in made if one["kind"] == "Service"):
        chosen = [name for name, labels in pods.items() if service["spec"]["selector"].items() <= labels.items()]
        assert chosen == [service["metadata"]["name"]]


def test_the_token_is_random() -> None:
    tokens = {back_end()[1]["token"] for _ in range(2)}
    assert len(tokens) == 2
    assert all(re.fullmatch(r"[A-Za-z0-9]{32}", token) for token in tokens)
