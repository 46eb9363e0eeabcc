"""The chart with ClickHouse: the Collector writes there, the page reads there, both as users of clickhouse-values.yaml.

The engine is real, its users are not: the double of the server has two of its own.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import yaml

from backend.processes import until
from backend.running import COMMAND, PROTOBUF, request, serving
from backends import LOOPBACK, _process, binary, free_port
from clickhouse import run_clickhouse
from deploy.rendered import CHART, CONFIG, DEPLOY, OF_CLICKHOUSE, documents, helm, render
from page.serving import AS_PART
from pipeline import AS_THE_DOUBLE_HAS_IT

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("kubernetes")
ENABLED = "clickhouse.enabled=true"
VALUES: dict[str, Any] = yaml.safe_load((DEPLOY / "helm/clickhouse-values.yaml").read_text("utf-8"))
PAGE = (DEPLOY.parent / "docs/kubernetes.md").read_text("utf-8")


def made(*values: str) -> dict[tuple[str, str], Any]:
    return {(one["kind"], one["metadata"]["name"]): one for one in documents(render(ENABLED, *values))}


def container_of(workload: Any) -> Any:
    (found,) = workload["spec"]["template"]["spec"]["containers"]
    return found


def variables(container: Any, secrets: dict[str, str]) -> dict[str, str]:
    """Return the variables of a container, given the values of each `SECRET/KEY`."""
    found = {}
    for one in container["env"]:
        ref = one.get("valueFrom", {}).get("secretKeyRef")
        found[one["name"]] = secrets[f"{ref['name']}/{ref['key']}"] if ref else one["value"]
    return found


def test_the_page_and_a_collector_take_the_place_of_the_back_end() -> None:
    found = made()
    workloads = {name: one for (kind, name), one in found.items() if kind in ("Deployment", "StatefulSet")}
    assert {name: one["kind"] for name, one in workloads.items()} == {
        "stagetrace": "Deployment",
        "stagetrace-collector": "StatefulSet",
    }
    exporter = found["Instrumentation", "stagetrace"]["spec"]["exporter"]
    assert exporter["endpoint"] == "http://stagetrace-collector.ml:4318"
    assert [one["name"] for one in found["Service", "stagetrace"]["spec"]["ports"]] == ["page"]
    labels = {name: one["spec"]["template"]["metadata"]["labels"].items() for name, one in workloads.items()}
    for service in labels:
        selector = found["Service", service]["spec"]["selector"].items()
        assert [name for name, its in labels.items() if selector <= its] == [service]


def test_its_configuration_is_that_of_the_repository() -> None:
    config = made()["ConfigMap", "stagetrace-collector"]["data"]
    assert tuple(config) == OF_CLICKHOUSE
    for name, text in config.items():
        assert (CHART / name).read_bytes() == (CONFIG / name).read_bytes(), "run: python tests/deploy/rendered.py"
        assert yaml.safe_load(text) == yaml.safe_load((CONFIG / name).read_text("utf-8"))


def test_each_variable_that_is_set_is_read() -> None:
    """One that no file of the Collector names would do nothing."""
    read = set(re.findall(r"\$\{env:(\w+)", "".join((CONFIG / name).read_text("utf-8") for name in OF_CLICKHOUSE)))
    collector = container_of(made("clickhouse.variables.CLICKHOUSE_TTL=72h")["StatefulSet", "stagetrace-collector"])
    names = [one["name"] for one in collector["env"]]
    assert {*names} <= read
    assert {"CLICKHOUSE_TTL", "GATEWAY_PROCESSORS"} <= {*names}


def test_spans_go_through_the_collector_to_the_page(tmp_path: Path) -> None:
    """The real Collector and the page, started as the chart starts them, with other ports and folders."""
    found = made("tokenSecret=mine")
    collector = container_of(found["StatefulSet", "stagetrace-collector"])
    page = container_of(found["Deployment", "stagetrace"])
    secrets = {"clickhouse-writer/password": "", "clickhouse-reader/password": "secret", "mine/token": "t" * 32}
    for name, text in found["ConfigMap", "stagetrace-collector"]["data"].items():
        (tmp_path / name).write_text(text, "utf-8")
    (tmp_path / "double.yaml").write_text(AS_THE_DOUBLE_HAS_IT, "utf-8")
    grpc, http, health, shown = (free_port() for _ in range(4))
    with run_clickhouse(tmp_path / "server") as server:
        env = variables(collector, secrets)
        assert (env["CLICKHOUSE_USER"], env["COLLECTOR_LISTEN_HOST"]) == ("writer", "0.0.0.0")  # noqa: S104
        env |= {"COLLECTOR_LISTEN_HOST": LOOPBACK, "COLLECTOR_QUEUE_DIR": str(tmp_path / "queue")}
        env |= {"COLLECTOR_OTLP_GRPC_PORT": f"{grpc}", "COLLECTOR_OTLP_HTTP_PORT": f"{http}"}
        env |= {"COLLECTOR_HEALTH_PORT": f"{health}", "CLICKHOUSE_FLUSH_TIMEOUT": "200ms"}
        env |= {"CLICKHOUSE_ENDPOINT": server.http, "CLICKHOUSE_USER": "default"}
        files = [one.replace("/etc/stagetrace", str(tmp_path)) for one in collector["args"]]
        command = [str(binary("otelcol")), *files, f"--config={tmp_path / 'double.yaml'}"]
        with _process("otelcol", command, env, tmp_path, (health, "/")):
            sent = httpx.post(
                f"http://{LOOPBACK}:{http}/v1/traces",
                content=request("a", service="through").SerializeToString(),
                headers={"content-type": PROTOBUF},
            )
            assert sent.status_code == 200
            until(lambda: server.run("SELECT 1 FROM otel_traces LIMIT 1").text == "1\n")
        program, *words = page["args"]
        assert program == "stagetrace"
        here = {"--host=0.0.0.0": f"--host={LOOPBACK}", "--port=16686": f"--port={shown}"}
        assert here.keys() <= {*words}
        env = variables(page, secrets)
        assert env["STAGETRACE_STORE"].partition("@")[2].startswith("clickhouse-clickhouse:8123/")
        env["STAGETRACE_STORE"] = env["STAGETRACE_STORE"].replace("clickhouse-clickhouse:8123", server.http[7:])
        argv = [*COMMAND[:-1], *(here.get(one, one) for one in words), "--json"]
        with serving(argv, tmp_path / "page.log", env):
            at = f"http://{LOOPBACK}:{shown}"
            for probe in ("readinessProbe", "livenessProbe"):
                assert httpx.get(f"{at}{page[probe]['httpGet']['path']}").status_code == 200
            assert httpx.get(f"{at}/tail/newest", headers=AS_PART).status_code == 401
            bearer = {"authorization": f"Bearer {secrets['mine/token']}"}
            until(lambda: "through" in httpx.get(f"{at}/tail/newest", headers=AS_PART | bearer).text)


def test_users_of_clickhouse_are_those_that_the_chart_names() -> None:
    """Each with its Secret, the reader with SELECT alone, and the port and name that the operator gives the Service."""
    values = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))["clickhouse"]
    users = {one["name"]: one for one in VALUES["clickhouse"]["users"]}
    assert users.keys() == {values["user"], "reader"}
    assert users[values["user"]]["password_secret_name"] == values["secret"]
    assert users["reader"]["password_secret_name"] == values["readerSecret"]
    assert users["reader"]["grants"] == ["GRANT SELECT ON otel.*"]
    host = f"clickhouse-{VALUES['fullnameOverride']}:8123"
    assert values["endpoint"] == f"http://{host}"
    assert values["store"] == f"clickhouse://reader@{host}/otel?table=otel_traces"
    for secret in (values["secret"], values["readerSecret"]):
        assert f"create secret generic {secret} " in PAGE
    assert values["endpoint"].partition("//")[2] in PAGE


@pytest.mark.parametrize("wrong", ["clickhouse.store=jaeger://x", "clickhouse.secret=", "clickhouse.enable=true"])
def test_a_wrong_value_is_refused(wrong: str) -> None:
    done = helm("template", "stagetrace", str(CHART), "--set", ENABLED, "--set", wrong)
    assert done.returncode != 0
    assert "clickhouse" in done.stderr


def test_the_command_of_the_page_renders() -> None:
    (command,) = re.findall(r"^helm (upgrade --install stagetrace .*clickhouse\.enabled.*)$", PAGE, re.MULTILINE)
    words = command.split()
    assert words[:4] == ["upgrade", "--install", "stagetrace", CHART.relative_to(DEPLOY.parent).as_posix()]
    done = helm("template", "stagetrace", str(CHART), *words[4:])
    assert done.returncode == 0, done.stderr
    assert "Deployment" in {one["kind"] for one in documents(done.stdout)}
