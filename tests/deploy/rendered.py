"""The chart as Helm renders it, and deploy/kustomize/, which has the same manifests.

`PYTHONPATH=src python tests/deploy/rendered.py` writes these anew.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import yaml

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from backends import binary

DEPLOY: Final = Path(__file__).parents[2] / "deploy"
CHART: Final = DEPLOY / "helm/stagetrace"
CONFIG: Final = DEPLOY.parent / "collector-config"
OF_CLICKHOUSE: Final = ("clickhouse.yaml", "gateway.yaml")  # a chart reads no file that is outside of it
INSTRUMENTATION: Final = "opentelemetry.io/v1alpha1/Instrumentation"
NAMESPACE: Final = "ml"
_TITLE: Final = "# Rendered from deploy/helm/stagetrace by tests/deploy/rendered.py.\n"


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Helm."""
    return subprocess.run([binary("helm"), *arguments], capture_output=True, text=True, check=False)


def render(*values: str, has_operator: bool = True, name: str = "stagetrace") -> str:
    """Return the manifests of the chart with `key=value`s, in a cluster that has the operator or not."""
    options = [option for value in values for option in ("--set", value)]
    options += ["--api-versions", INSTRUMENTATION] if has_operator else []
    done = helm("template", name, str(CHART), "--namespace", NAMESPACE, *options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def documents(text: str) -> list[dict[str, Any]]:
    """Return the objects of a text."""
    return [one for one in yaml.safe_load_all(text) if one]


def kustomize_files() -> dict[str, str]:
    """Return the files of deploy/kustomize/ that follow from the chart, without namespace and Secret."""
    found: dict[str, list[str]] = {}
    for with_collector in (False, True):
        text = render("tokenSecret=stagetrace", f"collector.enabled={json.dumps(with_collector)}")
        for part in text.split("---\n")[1:]:
            made = yaml.safe_load(part)
            of_collector = made["metadata"]["name"].endswith("-collector")
            file = "instrumentation/instrumentation" if made["kind"] == "Instrumentation" else "back-end"
            if of_collector == with_collector:
                content = "".join(f"{line.rstrip()}\n" for line in part.splitlines()[1:]).replace(f".{NAMESPACE}:", ":")
                found.setdefault("collector/collector" if of_collector else file, []).append(content)
    return {f"{name}.yaml": _TITLE + "---\n".join(parts) for name, parts in found.items()}


if __name__ == "__main__":
    for name, text in kustomize_files().items():
        (DEPLOY / "kustomize" / name).write_text(text, "utf-8")
    for name in OF_CLICKHOUSE:
        (CHART / name).write_bytes((CONFIG / name).read_bytes())
