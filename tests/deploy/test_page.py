"""The commands of docs/kubernetes.md and of the README do what they say, as far as no cluster is needed."""

from __future__ import annotations

import io
import re
import shlex
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml

from cli.running import cli
from deploy.rendered import CHART, DEPLOY, INSTRUMENTATION, documents, helm
from deploy.test_chart import kustomized

ROOT = DEPLOY.parent
PAGE = (ROOT / "docs/kubernetes.md").read_text("utf-8")
TEXT = PAGE + (ROOT / "README.md").read_text("utf-8")
MANIFEST = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: api}
spec: {template: {spec: {containers: [{name: api, image: "api:1"}]}}}
"""
INJECTIONS = sorted(set(re.findall(r"(stagetrace inject [-\w][^|`\n]*?)(?= \||`)", TEXT)))
INSTALLATIONS = sorted(set(re.findall(r"helm (install [^`\n]*)", TEXT)))


def test_the_pages_have_commands() -> None:
    assert len(INJECTIONS) >= 3
    assert len(INSTALLATIONS) >= 3


@pytest.mark.parametrize("command", INJECTIONS)
def test_each_injection_injects(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "api.yaml").write_text(MANIFEST)
    with patch("sys.stdin", io.TextIOWrapper(io.BytesIO(MANIFEST.encode()))):
        done = cli(*shlex.split(command)[1:])
    assert done.returncode == 0, done
    (made,) = documents(done.stdout)
    assert [one["name"] for one in made["spec"]["template"]["spec"]["initContainers"]] == ["stagetrace-agent"]


@pytest.mark.usefixtures("kubernetes")
@pytest.mark.parametrize("command", INSTALLATIONS)
def test_each_installation_renders(command: str) -> None:
    words = [one for one in shlex.split(command)[1:] if one != "--create-namespace"]
    assert words[1] == CHART.relative_to(ROOT).as_posix()
    words[1] = str(CHART)
    done = helm("template", *words, "--api-versions", INSTRUMENTATION)
    assert done.returncode == 0, done.stderr
    made = {one["kind"]: one for one in documents(done.stdout)}
    assert made["Instrumentation"]["metadata"]["name"] == "stagetrace", "the annotations name it"
    assert made["Service"]["metadata"]["name"] == "stagetrace"
    for name in re.findall(r"inject-python=(\w+)", TEXT):
        assert name == made["Instrumentation"]["metadata"]["name"]


@pytest.mark.usefixtures("kubernetes")
def test_the_kustomization_is_built(tmp_path: Path) -> None:
    (text,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    at = Path(*[".."] * len(tmp_path.parts[1:]), *ROOT.parts[1:])  # Kustomize takes no absolute path
    (tmp_path / "kustomization.yaml").write_text(text.replace("stagetrace/deploy", f"{at}/deploy"))
    kinds = {one["kind"] for one in documents(kustomized(tmp_path))}
    assert kinds == {"ConfigMap", "Instrumentation", "Service", "StatefulSet"}


def test_the_files_that_are_built_exist() -> None:
    assert {name for name in re.findall(r"docker build \S+ \S+ -f (\S+)", PAGE) if not (ROOT / name).is_file()} == set()
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["name"] == "stagetrace"
