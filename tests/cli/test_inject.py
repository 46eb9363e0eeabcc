"""`stagetrace inject`: what is added to pods, that it goes again, and that nothing else changes.

Whether Kubernetes accepts it is tested in tests/deploy/.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from copy import deepcopy
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cli.running import cli, refused
from stagetrace.cli.inject import IMAGE
from stagetrace.cli.inject.pods import ANNOTATION, FOLDER, KINDS, Agent, inject, remove

if TYPE_CHECKING:
    from pathlib import Path

AGENT = Agent("agent:1")
SITE = f"{FOLDER}/opentelemetry/instrumentation/auto_instrumentation"
FIELDS = ("POD_NAME", "metadata.name"), ("NODE_NAME", "spec.nodeName"), ("NAMESPACE_NAME", "metadata.namespace")


def workload(kind: str, spec: dict[str, Any], name: str = "api") -> dict[str, Any]:
    """Return an object of Kubernetes with a pod."""
    group, path = KINDS[kind]
    template: dict[str, Any] = {"spec": spec}
    for key in reversed(path):
        template = {key: template}
    return {"apiVersion": f"{group}/v1".lstrip("/"), "kind": kind, "metadata": {"name": name}, **template}


def template_of(found: Any) -> Any:
    """Return the pod template of an object."""
    for key in KINDS[found["kind"]][1]:
        found = found[key]
    return found


def container(env: list[dict[str, Any]] | None = None, name: str = "api", **more: Any) -> dict[str, Any]:
    return {"name": name, "image": "service:1", **({} if env is None else {"env": env}), **more}


def added(env: list[dict[str, Any]], agent: Agent = AGENT, **more: Any) -> dict[str, Any]:
    """Return the variables of a container after injection, in order: a value, or the path of a field."""
    found, _ = inject(workload("Deployment", {"containers": [container(env, **more)]}), agent)
    (one,) = template_of(found)["spec"]["containers"]
    return {var["name"]: var.get("value") or var["valueFrom"]["fieldRef"]["fieldPath"] for var in one["env"]}


def on_stdin(text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    with patch("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode()))):
        return cli("inject", "-", *arguments)


def test_the_variables_are_set_and_the_service_is_named_after_its_workload() -> None:
    attributes = "k8s.container.name=api,k8s.pod.name=$(OTEL_RESOURCE_ATTRIBUTES_POD_NAME)"
    attributes += ",k8s.node.name=$(OTEL_RESOURCE_ATTRIBUTES_NODE_NAME)"
    attributes += ",k8s.namespace.name=$(OTEL_RESOURCE_ATTRIBUTES_NAMESPACE_NAME)"
    sla = "POST /predict within 50ms"
    found, changes = inject(
        workload("Deployment", {"containers": [container(name="api"), container(name="proxy")]}, name="ranker"),
        AGENT._replace(sla=sla, endpoint="http://stagetrace.ml:4318"),
    )
    variables: list[dict[str, Any]] = [
        *({"name": name, "value": value} for name, value in (("STAGETRACE", "1"), ("STAGETRACE_SLA", sla))),
        {"name": "OTEL_SERVICE_NAME", "value": "ranker"},
        {"name": "OTEL_EXPORTER_OTLP_ENDPOINT", "value": "http://stagetrace.ml:4318"},
        {"name": "OTEL_EXPORTER_OTLP_PROTOCOL", "value": "http/protobuf"},
        *(
            {"name": f"OTEL_RESOURCE_ATTRIBUTES_{name}", "valueFrom": {"fieldRef": {"fieldPath": path}}}
            for name, path in FIELDS
        ),
        {"name": "OTEL_RESOURCE_ATTRIBUTES", "value": attributes},
        {"name": "PYTHONPATH", "value": f"{SITE}:{FOLDER}"},
    ]
    mount = {"name": "stagetrace-agent", "mountPath": FOLDER}
    names = json.dumps({"api": [one["name"] for one in variables]})
    assert template_of(found) == {
        "metadata": {"annotations": {ANNOTATION: names}},
        "spec": {
            "containers": [container(variables, volumeMounts=[mount]), container(name="proxy")],
            "initContainers": [
                {
                    "name": "stagetrace-agent",
                    "image": "agent:1",
                    "command": ["cp", "-r", "/autoinstrumentation/.", FOLDER],
                    "resources": {
                        "requests": {"cpu": "50m", "memory": "64Mi"},
                        "limits": {"cpu": "500m", "memory": "128Mi"},
                    },
                    "volumeMounts": [mount],
                }
            ],
            "volumes": [{"name": "stagetrace-agent", "emptyDir": {"sizeLimit": "200Mi"}}],
        },
    }
    assert [one.containers for one in changes] == [("api",)]


# What a pod may have that injection touches. An empty list or object is the same as none to Kubernetes.
NAMES = st.sampled_from(["api", "proxy", "y", "1e3", "stagetrace"])
VARIABLES = st.lists(
    st.builds(
        lambda name, value: {"name": name, "value": value},
        st.sampled_from(["PYTHONPATH", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_SERVICE_NAME", "STAGETRACE", "A"]),
        st.text("a/:=,$ ", max_size=8),
    ),
    min_size=1,
    unique_by=lambda one: str(one["name"]),
)
CONTAINERS = st.lists(
    st.fixed_dictionaries(
        {"name": NAMES},
        optional={
            "env": VARIABLES,
            "volumeMounts": st.just([{"name": "data", "mountPath": "/data"}]),
            "securityContext": st.just({"runAsUser": 1000}),
        },
    ),
    min_size=1,
    unique_by=lambda one: str(one["name"]),
)
SPECS = st.fixed_dictionaries(
    {"containers": CONTAINERS},
    optional={
        "initContainers": st.just([container(name="migrate")]),
        "volumes": st.just([{"name": "data", "emptyDir": {}}]),
    },
)
AGENTS = st.builds(
    Agent,
    st.just("agent:1"),
    st.sampled_from(["", "* within 1s"]),
    st.sampled_from(["", "http://collector:4318"]),
    st.sampled_from(["", "stagetrace"]),
    st.booleans(),
    st.sampled_from([(), ("api",), ("proxy", "y")]),
)


@given(st.sampled_from(sorted(KINDS)), SPECS, AGENTS, AGENTS)
def test_injected_twice_is_once_and_removed_is_the_original(
    kind: str, spec: dict[str, Any], first: Agent, second: Agent
) -> None:
    original = workload(kind, spec)
    before = deepcopy(original)
    once, changes = inject(original, first)
    assert original == before, "what is given stays as it is"
    assert inject(once, first) == (once, changes)
    assert inject(inject(original, second)[0], first)[0] == once, "with other options, all of the earlier ones is gone"
    assert remove(once)[0] == original
    assert remove(original) == (original, [])
    assert (once == original) == (not changes)


def test_each_kind_alone_and_in_a_list_and_nothing_that_a_controller_made() -> None:
    every = [workload(kind, {"containers": [container()]}, name=kind.lower()) for kind in KINDS]
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"kind": "Deployment"}}
    made = deepcopy(every[-1])
    made["metadata"] |= {"name": "made", "ownerReferences": [{"kind": "ReplicaSet", "controller": True}]}
    other = {**every[0], "apiVersion": "example.com/v1"}
    found, changes = inject({"apiVersion": "v1", "kind": "List", "items": [*every, config, made, other]}, AGENT)
    assert [one.where for one in changes] == [f"{kind} {kind.lower()}" for kind in KINDS]
    assert found["items"] == [*(inject(one, AGENT)[0] for one in every), config, made, other]
    assert inject(config, AGENT) == (config, [])


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ("/app", f"{SITE}:/app:{FOLDER}"),
        ("/app:/lib", f"{SITE}:/app:/lib:{FOLDER}"),
        ("", f"{SITE}:{FOLDER}"),  # not `::`, which is the working directory
    ],
)
def test_a_path_of_the_container_stays_between_ours(own: str, expected: str) -> None:
    assert added([{"name": "PYTHONPATH", "value": own}])["PYTHONPATH"] == expected


def test_what_a_container_sets_counts() -> None:
    own = {"OTEL_SERVICE_NAME": "mine", "OTEL_RESOURCE_ATTRIBUTES": "k8s.pod.name=p", "STAGETRACE": "0"}
    own["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://collector:4317"
    found, changes = inject(
        workload("Deployment", {"containers": [container([{"name": k, "value": v} for k, v in own.items()])]}),
        AGENT._replace(endpoint="http://stagetrace:4318"),
    )
    (one,) = template_of(found)["spec"]["containers"]
    variables = {var["name"]: var.get("value") for var in one["env"]}
    assert {**variables, **own} | {"OTEL_RESOURCE_ATTRIBUTES": None} == variables | {"OTEL_RESOURCE_ATTRIBUTES": None}
    assert "OTEL_EXPORTER_OTLP_PROTOCOL" not in variables, "the endpoint is one for gRPC"
    assert variables["OTEL_RESOURCE_ATTRIBUTES"].endswith(",k8s.pod.name=p"), "of two the last one counts"
    assert changes[0].kept == ("STAGETRACE", "OTEL_SERVICE_NAME", "OTEL_EXPORTER_OTLP_ENDPOINT")


def test_a_variable_that_others_refer_to_stands_before_them() -> None:
    """Kubernetes replaces `$(NAME)` only by a variable that stands earlier in the list."""
    names = list(added([{"name": "OTEL_RESOURCE_ATTRIBUTES", "value": "a=b"}, {"name": "LAST", "value": "1"}]))
    assert names[-2:] == ["OTEL_RESOURCE_ATTRIBUTES", "LAST"]
    assert names.index("OTEL_RESOURCE_ATTRIBUTES_POD_NAME") < names.index("OTEL_RESOURCE_ATTRIBUTES")


def test_a_service_that_its_attributes_name_keeps_that_name() -> None:
    assert "OTEL_SERVICE_NAME" not in added([{"name": "OTEL_RESOURCE_ATTRIBUTES", "value": "service.name=mine"}])


def test_attributes_out_of_a_config_map_stay() -> None:
    own = {"name": "OTEL_RESOURCE_ATTRIBUTES", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}}
    original = workload("Deployment", {"containers": [container([own])]})
    found, _ = inject(original, AGENT)
    assert template_of(found)["spec"]["containers"][0]["env"][-1] == own
    assert remove(found)[0] == original


def test_the_token_comes_out_of_a_secret_and_a_pod_without_it_starts() -> None:
    made = yaml.safe_dump(workload("Deployment", {"containers": [container()]}))
    found = template_of(yaml.safe_load(on_stdin(made, "--headers-secret", "stagetrace").stdout))
    variables = {one["name"]: one for one in found["spec"]["containers"][0]["env"]}
    key = {"name": "stagetrace", "key": "headers", "optional": True}
    assert variables["OTEL_EXPORTER_OTLP_HEADERS"]["valueFrom"] == {"secretKeyRef": key}


def test_the_container_is_the_one_that_kubectl_takes() -> None:
    original = workload("Deployment", {"containers": [container(name=name) for name in "abc"]})
    assert inject(original, AGENT)[1][0].containers == ("a",)
    template_of(original)["metadata"] = {"annotations": {"kubectl.kubernetes.io/default-container": "b"}}
    assert inject(original, AGENT)[1][0].containers == ("b",)
    assert inject(original, AGENT._replace(containers=("c", "a")))[1][0].containers == ("a", "c")


def test_the_init_container_may_do_what_its_neighbour_may() -> None:
    """A namespace with the restricted policy refuses a pod of which one container has no such context."""
    restricted = {"runAsNonRoot": True, "capabilities": {"drop": ["ALL"]}}
    found, _ = inject(
        workload("Pod", {"containers": [container(securityContext=restricted)]}), AGENT._replace(is_musl=True)
    )
    (copying,) = template_of(found)["spec"]["initContainers"]
    assert copying["securityContext"] == restricted
    assert copying["command"] == ["cp", "-r", "/autoinstrumentation-musl/.", FOLDER]


@pytest.mark.parametrize("own", [None, "/app"])
def test_an_injected_pod_starts_the_agent(tmp_path: Path, own: str | None) -> None:
    """The command of the init container, then Python with the variables, with folders of this machine."""
    image, volume, app = (tmp_path / name for name in ("autoinstrumentation", "volume", "app"))
    site = image / SITE.removeprefix(f"{FOLDER}/")
    for folder in (site, volume, app):
        folder.mkdir(parents=True)
    (site / "sitecustomize.py").write_text("print('agent')")
    (app / "model.py").write_text("print('model')")
    env = [{"name": "PYTHONPATH", "value": own}] if own else []
    found, _ = inject(workload("Deployment", {"containers": [container(env)]}), AGENT)
    spec = template_of(found)["spec"]

    def here(text: str) -> str:
        text = text.replace("/autoinstrumentation/.", f"{image}/.").replace(FOLDER, str(volume))
        return text.replace("/app", str(app))

    command = [here(word) for word in spec["initContainers"][0]["command"]]
    assert shutil.which(command[0])
    subprocess.run(command, check=True)
    variables = {one["name"]: here(one["value"]) for one in spec["containers"][0]["env"] if "value" in one}
    program = "import sys; print(sys.path[-1])" if own is None else "import model"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**variables, "STAGETRACE": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[0] == "agent"
    assert own is None or done.stdout.splitlines()[1] == "model"
    assert variables["STAGETRACE"] == "1"
    assert os.fspath(volume) in variables["PYTHONPATH"]


MANIFESTS = """\
# Kept, as is the order.
apiVersion: v1
kind: ConfigMap   # this too
metadata: {name: c}
data: {a: "1e3", b: yes, "c": 'd'}
---
# Source: chart/templates/api.yaml
apiVersion: apps/v1
kind: Deployment
metadata:
  name: api
  creationTimestamp: 2026-12-01T10:00:00Z
spec:
  template:
    metadata: {labels: {version: "1e3", on: 'y', octal: 0644, plain: y, exponent: 1e3}}
    spec:
      containers:
      - name: api
        env:
        - {name: TEXT, value: "a: b # c"}
        - name: SCRIPT
          value: |
            if true; then
              echo "é"
            fi
        - name: FOLDED
          value: >-
            one line
            of two
--- # the last
{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}}
"""


def scalars(text: str) -> list[tuple[str, str, bool]]:
    """Return value, tag and whether it is plain of each scalar, in order."""
    tokens: list[tuple[str, str, bool]] = []

    def visit(node: yaml.Node) -> None:
        if isinstance(node, yaml.ScalarNode):
            tokens.append((node.value, node.tag, node.style is None))
        for child in node.value if isinstance(node, yaml.CollectionNode) else ():
            for one in child if isinstance(child, tuple) else (child,):
                visit(one)

    for document in yaml.compose_all(text, yaml.SafeLoader):
        visit(document)
    return tokens


def test_other_documents_stay_to_the_letter_and_scalars_as_they_are_written() -> None:
    done = on_stdin(MANIFESTS, "--endpoint", "http://stagetrace:4318")
    assert (done.returncode, done.stderr) == (0, "Deployment api: agent in container api\n")
    before, after = MANIFESTS.split("---"), done.stdout.split("---")
    assert (after[0], after[2]) == (before[0], before[2])
    assert after[1].startswith("\n# Source: chart/templates/api.yaml\napiVersion: apps/v1\n")
    assert '  - name: SCRIPT\n          value: |\n            if true; then\n              echo "é"\n' in after[1]
    removed = on_stdin(done.stdout, "--remove")
    assert removed.stderr == "Deployment api: agent removed from container api\n"
    assert scalars(removed.stdout) == scalars(MANIFESTS)
    assert on_stdin(MANIFESTS, "--remove").stdout == MANIFESTS
    assert on_stdin(done.stdout, "--endpoint", "http://stagetrace:4318").stdout == done.stdout


def test_json_is_read_and_aliases_are_written_out() -> None:
    """What two containers have by an alias, or by a merge, is changed in one of them alone."""
    plain = workload("Deployment", {"containers": [container([], name="a"), container(name="b")]})
    assert yaml.safe_load(on_stdin(json.dumps(plain, indent=4)).stdout) == inject(plain, Agent(IMAGE))[0]
    text = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: api}
spec:
  template:
    spec:
      containers:
      - &one {name: a, env: &env [{name: A, value: b}]}
      - {<<: *one, name: b}
      - {name: c, env: *env}
"""
    found = template_of(yaml.safe_load(on_stdin(text).stdout))["spec"]["containers"]
    assert len(found[0]["env"]) > 1
    assert found[1:] == [{"name": name, "env": [{"name": "A", "value": "b"}]} for name in "bc"]


@pytest.mark.thorough
@given(st.lists(st.text(st.characters(blacklist_categories=["Cs", "Cc"]), max_size=20), max_size=5))
def test_texts_of_a_manifest_survive(texts: list[str]) -> None:
    made = workload("Deployment", {"containers": [{**container(), "args": [*texts, "a\nb\n", " \n c", "x" * 300]}]})
    written = yaml.safe_dump(made, default_style=">", allow_unicode=True)
    done = on_stdin(written)
    assert template_of(yaml.safe_load(done.stdout))["spec"]["containers"][0]["args"][: len(texts)] == texts
    assert yaml.safe_load(on_stdin(done.stdout, "--remove").stdout) == made


def test_it_is_told_what_was_not_as_asked() -> None:
    made = workload("Deployment", {"containers": [container([{"name": "STAGETRACE_SLA", "value": "* within 1s"}])]})
    done = on_stdin(yaml.safe_dump(made), "--sla", "* within 2s")
    assert done.stderr == (
        "Deployment api: agent in container api; kept as set: STAGETRACE_SLA; "
        "no endpoint is set, so spans go to the pod itself (--endpoint)\n"
    )
    done = on_stdin(yaml.safe_dump(made), "--remove")
    assert (done.returncode, done.stderr) == (0, "no workload has the agent\n")


HEAD = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: api}\nspec: {template: {spec: "
BY_REFERENCE = "{valueFrom: {secretKeyRef: {name: s, key: k}}, name: PYTHONPATH}"


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("", [], "stdin is empty\ngive one of Deployment, "),
        ("kind: Service\napiVersion: v1\n", [], "stdin has no workload\ngive one of Deployment, "),
        ("a: b\n---\n- a: [\n", [], "stdin is no YAML in line 4: "),
        ("a: !include {b: c}\n", [], "stdin is no YAML in line 1: the tag '!include' is unknown"),
        ("a: \x01\n", [], "stdin is no YAML: "),
        ("[" * 5000, [], "stdin is nested too deeply"),
        (f"{HEAD}{{containers: []}}}}}}", [], "Deployment api has no containers"),
        (
            f"{HEAD}{{containers: [{{image: x}}]}}}}}}",
            [],
            "Deployment api: containers is no list of objects with names",
        ),
        (f"{HEAD}x}}}}", [], "Deployment api: spec is no object"),
        (
            f"{HEAD}{{containers: [{{name: api, env: [{BY_REFERENCE}]}}]}}}}}}",
            [],
            "container api has PYTHONPATH by `valueFrom`",
        ),
        (f"{HEAD}{{containers: [{{name: a, env: {{A: b}}}}]}}}}}}", [], "Deployment api: container a: env is no list"),
        (f"{HEAD}{{containers: [{{name: a}}]}}}}}}", ["--container", "b"], "has a container 'b'\nthere are a\n"),
        (MANIFESTS, ["--sla", "sla.yaml"], "--sla names sla.yaml, a file of this machine, which no container has"),
        (MANIFESTS, ["--sla", "* within"], "* within"),
        (MANIFESTS, ["--endpoint", "stagetrace:4318"], "--endpoint is 'stagetrace:4318', and no URL"),
        (MANIFESTS, ["--remove", "--musl"], "--remove takes the whole agent away"),
    ],
)
def test_what_is_wrong_is_named(text: str, options: list[str], expected: str) -> None:
    done = on_stdin(text, *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("stagetrace: ")
    assert 1 <= len(done.stderr.splitlines()) <= 3
    assert expected in done.stderr


def test_without_pyyaml_its_name_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    monkeypatch.delitem(sys.modules, "stagetrace.cli.inject.manifests", raising=False)
    assert refused("inject", "api.yaml").endswith("\npip install pyyaml\n")


def test_files_are_read_and_missing_ones_named(tmp_path: Path) -> None:
    file = tmp_path / "api.yaml"
    file.write_text(MANIFESTS, "utf-8-sig")
    done = cli(
        "inject", str(file), "--sla", "/etc/stagetrace/sla.yaml", "--container", "api", "--musl", "--image", "a:1"
    )
    spec = template_of(list(yaml.safe_load_all(done.stdout))[1])["spec"]
    assert spec["containers"][0]["env"][1] == {"name": "STAGETRACE_SLA", "value": "/etc/stagetrace/sla.yaml"}
    assert spec["initContainers"][0]["image"] == "a:1"
    assert "no-such.yaml" in refused("inject", str(tmp_path / "no-such.yaml"))
    file.write_bytes(b"\xff")
    assert "is not UTF-8" in refused("inject", str(file))


def test_an_annotation_that_was_changed_by_hand_is_reported() -> None:
    made, _ = inject(workload("Deployment", {"containers": [container()]}), AGENT)
    template_of(made)["metadata"]["annotations"][ANNOTATION] = "[]"
    done = on_stdin(yaml.safe_dump(made), "--remove")
    assert "Deployment api: the annotation stagetrace.dev/agent is not as `stagetrace inject` wrote it" in done.stderr
