"""What spans say of where they come from, and which head sampler the variables name."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.resources import OTELResourceDetector
from opentelemetry.sdk.trace import sampling

from environments import ROOT
from services import run_python
from stagetrace import log
from stagetrace.runtime import provider
from stagetrace.tracing import resource, sampler
from stagetrace.tracing.sampler import Sampler

if TYPE_CHECKING:
    from pathlib import Path

CONTAINER = "ab" * 32
ON, OFF = (Sampler(rate).get_description() for rate in (1.0, 0.0))
POD = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"


@pytest.mark.parametrize(
    "text",
    [
        "service.name=shop,team=a%20b,empty=, spaced = x ,no-equals,=nobody,twice=1,twice=2",
        "service.name=shop",
        "",
        ",,=,",
    ],
)
def test_attributes_are_read_as_opentelemetry_reads_them(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", text)
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    monkeypatch.setattr(resource, "_of_process", None)
    expected = dict(OTELResourceDetector().detect().attributes)
    found = resource.resource().attributes
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("quota", "cpus"),
    [("50000 100000\n", 0.5), ("max 100000\n", None), ("none", None), ("9999900000 100000", None), (None, None)],
)
def test_how_many_cpus_there_are(
    quota: str | None, cpus: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the affinity, unless a container has less."""
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(resource, "_QUOTA", str(tmp_path / "cpu.max"))
    monkeypatch.setattr(resource, "_of_process", None)
    expected = len(os.sched_getaffinity(0)) if cpus is None else cpus
    assert resource.resource().attributes["stagetrace.process.cpus"] == expected


def test_the_name_of_the_service_has_its_own_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=no")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
    monkeypatch.setattr(resource, "_of_process", None)
    assert resource.resource().attributes["service.name"] == "shop"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        (
            "mountinfo",
            f"712 696 254:1 /var/lib/docker/containers/{CONTAINER}/hostname /etc/hostname rw - ext4 /dev/vda\n",
        ),
        ("cgroup", f"12:memory:/kubepods/burstable/pod{POD}/{CONTAINER}\n1:name=systemd:/\n"),
        ("cgroup", f"0::/system.slice/docker-{CONTAINER}.scope\n"),
    ],
)
def test_a_container_is_named_where_the_kernel_shows_its_id(
    file: str, content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / file).write_text(content)
    places = [(str(tmp_path / name.rpartition("/")[2]), pattern) for name, pattern in resource._CONTAINER_IDS]
    monkeypatch.setattr(resource, "_CONTAINER_IDS", places)
    assert resource._container() == {"container.id": CONTAINER}


def test_a_process_in_no_container_names_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cgroup").write_text("0::/user.slice/user-1000.slice/session-2.scope\n")
    monkeypatch.setattr(resource, "_CONTAINER_IDS", [(str(tmp_path / "cgroup"), resource._CONTAINER_IDS[1][1])])
    assert resource._container() == {}


def test_a_pod_names_its_namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "namespace").write_text("shop\n")
    monkeypatch.setattr(resource, "_NAMESPACE", str(tmp_path / "namespace"))
    assert (resource._kubernetes() or {})["k8s.namespace.name"] == "shop"
    assert re.search(resource._POD, f"/var/lib/kubelet/pods/{POD}/etc-hosts") is not None


def test_a_forked_child_is_another_instance() -> None:
    code = """
import os
from stagetrace.tracing.resource import resource
before = resource()
assert resource() is before
if (pid := os.fork()) == 0:
    print(resource().attributes["service.instance.id"] != before.attributes["service.instance.id"], flush=True)
    os._exit(0)
os.waitpid(pid, 0)
"""
    assert run_python("-c", code).stdout.split() == ["True"]


SAMPLERS: list[Any] = [
    sampling.ALWAYS_ON,
    sampling.ALWAYS_OFF,
    sampling.DEFAULT_ON,
    sampling.DEFAULT_OFF,
    sampling.TraceIdRatioBased(0.25),
    sampling.TraceIdRatioBased(0.0),
    sampling.ParentBased(sampling.TraceIdRatioBased(1.0)),
]


@pytest.mark.parametrize("one", SAMPLERS, ids=lambda one: one.get_description()[:30])
def test_samplers_of_opentelemetry_are_known_by_their_descriptions(one: Any) -> None:
    text = one.get_description()
    found = sampler.described(text)
    assert found is not None
    assert found.get_description() == text
    root = getattr(one, "_root", one)
    if isinstance(root, sampling.TraceIdRatioBased):
        assert found.bound == root.bound


def test_another_sampler_is_not_known() -> None:
    other: Any = sampling.ParentBased(sampling.ALWAYS_ON, remote_parent_sampled=sampling.TraceIdRatioBased(0.1))
    assert sampler.described(other.get_description()) is None
    assert sampler.described("TraceIdRatioBased{0.1} of mine") is None


@pytest.mark.parametrize(
    ("name", "argument", "text", "said"),
    [
        ("", "", ON, None),
        ("traceidratio", "0.1", "TraceIdRatioBased{0.1}", None),
        ("PARENTBASED_ALWAYS_OFF", "", OFF, None),
        ("traceidratio", "", "TraceIdRatioBased{1.0}", None),
        ("traceidratio", "often", "TraceIdRatioBased{1.0}", "OTEL_TRACES_SAMPLER_ARG=often is no share from 0 to 1"),
        ("traceidratio", "2", "TraceIdRatioBased{1.0}", "OTEL_TRACES_SAMPLER_ARG=2 is no share from 0 to 1"),
        ("traceidratio", "nan", "TraceIdRatioBased{1.0}", "OTEL_TRACES_SAMPLER_ARG=nan is no share from 0 to 1"),
        ("sometimes", "", ON, "OTEL_TRACES_SAMPLER=sometimes is none of: "),
    ],
)
def test_a_sampler_is_named_by_its_variables(
    name: str,
    argument: str,
    text: str,
    said: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", name)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", argument)
    log._logged.clear()
    assert provider.own_sampler().get_description() == text
    logged = capfd.readouterr().err
    assert (said in logged) if said else not logged


CORE = ("runtime", "api", "request", "sla", "causes", "policy", "sources", "tracing", "process_status", "otlp.export")
IMPORTS_ALL = f"""
import importlib, pkgutil, sys
for name in {CORE!r}:
    package = importlib.import_module("stagetrace." + name)
    for one in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(one.name)
for name in ("otlp.encode", "protocols.asgi", "protocols.wsgi_request", "instrumentation.served_call",
             "instrumentation.clients.base", "patches.registry", "activate"):
    importlib.import_module("stagetrace." + name)
standard = sys.stdlib_module_names
print(sorted({{name.partition(".")[0] for name in sys.modules}} - set(standard) - {{"stagetrace", "__main__"}}))
"""


def test_what_records_needs_nothing_but_the_standard_library() -> None:
    """Where nothing is installed; and where everything is, it imports nothing of that but what reads a policy file."""
    bare = run_python("-S", "-c", f"import sys; sys.path.insert(0, {str(ROOT / 'src')!r}){IMPORTS_ALL}")
    assert bare.returncode == 0, bare.stderr
    full = run_python("-c", IMPORTS_ALL)
    assert third_party(bare.stdout) == set()
    assert third_party(full.stdout) <= {"yaml", "cython_runtime"}


def third_party(text: str) -> set[str]:
    return {one for one in re.findall(r"'([\w-]+)'", text) if not one.startswith("_")}
