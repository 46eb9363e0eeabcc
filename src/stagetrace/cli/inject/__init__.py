"""`stagetrace inject`: Kubernetes manifests with the agent in their pods, or without it again."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from stagetrace import __version__
from stagetrace.cli.console import unescaped
from stagetrace.cli.inject import pods
from stagetrace.cli.registry import ANSWERED, Option, UsageError
from stagetrace.policy.policy import Policy, file_named

IMAGE: Final = f"ghcr.io/stagetrace/agent:{__version__}"

DESCRIPTION: Final = f"""Print Kubernetes manifests with the agent in their pods: an init container copies it from its
image into a volume, and variables let Python start it. The images of the pods stay as they are.

Workloads are {", ".join(pods.KINDS)}: alone, in a
List, among other documents. What a controller has made is left as it is. A variable that a container
sets is kept; PYTHONPATH and OTEL_RESOURCE_ATTRIBUTES are extended. An agent that was injected before is
replaced. Comments within documents of workloads are lost; other documents stay as they are."""
EXAMPLE: Final = "kubectl get deploy api -o yaml | stagetrace inject - | kubectl apply -f -"
OPTIONS: Final = (
    Option("FILE", "manifests as YAML or JSON; - reads stdin"),
    Option("--remove", "print them without the agent, as they were"),
    Option(
        "--container NAME",
        "inject into the container of this name; repeatable; default: the one that `kubectl logs` takes, which is the "
        "first unless an annotation names another",
        repeats=True,
    ),
    Option("--sla TEXT", "STAGETRACE_SLA: an inline policy, or the path of a policy file in the container", default=""),
    Option("--endpoint URL", "where spans go, by OTLP over HTTP, as in http://stagetrace.ml:4318", default=""),
    Option(
        "--headers-secret NAME",
        "OTEL_EXPORTER_OTLP_HEADERS is the key `headers` of this Secret, as the chart of `stagetrace up` makes it",
        default="",
    ),
    Option("--image IMAGE", f"the image of the agent; default: {IMAGE}", default=IMAGE),
    Option("--musl", "for images with musl in place of glibc (Alpine)"),
)
_STDIN: Final = "-"


def run(args: argparse.Namespace) -> int:
    """Print the manifests and return the exit code."""
    try:
        from stagetrace.cli.inject.manifests import rewrite
    except ImportError as error:
        raise UsageError(f"manifests are read with PyYAML, which is missing ({error})\npip install pyyaml") from None
    if args.remove and (args.container or args.sla or args.endpoint or args.headers_secret or args.musl):
        raise UsageError("--remove takes the whole agent away\nleave the other options out")
    if args.sla:
        _check_sla(args.sla)
    if args.endpoint and not (urlsplit(args.endpoint).scheme in ("http", "https") and urlsplit(args.endpoint).netloc):
        raise UsageError(f"--endpoint is {args.endpoint!r}, and no URL\nwrite it as in http://stagetrace.ml:4318")
    agent = pods.Agent(
        args.image, args.sla, args.endpoint, args.headers_secret, args.musl, containers=tuple(args.container)
    )
    where = "stdin" if args.file == _STDIN else args.file
    changes: list[pods.Change] = []
    seen: list[str] = []

    def change(manifest: Any) -> Any:
        seen.extend(pods.containers(manifest))
        changed, made = pods.remove(manifest) if args.remove else pods.inject(manifest, agent)
        changes.extend(made)
        return changed

    text = rewrite(_content(args.file, where), change, where)
    if not seen:
        problem = "has no workload" if text.strip() else "is empty"
        raise UsageError(f"{where} {problem}\ngive one of {', '.join(pods.KINDS)} that no controller has made")
    unknown = [name for name in args.container if name not in seen]
    if unknown:
        raise UsageError(
            f"no workload of {where} has a container {unknown[0]!r}\nthere are {', '.join(dict.fromkeys(seen))}"
        )
    unescaped(sys.stdout).write(text)
    for one in changes:
        sys.stderr.write(f"{_said(one, is_removed=args.remove)}\n")
    if not changes:
        sys.stderr.write("no workload has the agent\n")
    return ANSWERED


def _content(file: str, where: str) -> str:
    try:
        data = sys.stdin.buffer.read() if file == _STDIN else Path(file).read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"cannot read {where}: {error.strerror}\nname a file, or - for stdin") from None
    except UnicodeDecodeError:
        raise UsageError(f"{where} is not UTF-8\ngive a manifest of Kubernetes") from None
    return text


def _check_sla(text: str) -> None:
    """Raise PolicyError or UsageError where a container could not read a policy."""
    path = file_named(text)
    if path is None:
        Policy.parse(text)
    elif not path.startswith("/"):
        raise UsageError(
            f"--sla names {path}, a file of this machine, which no container has\n"
            "mount it from a ConfigMap, and give its path there (docs/kubernetes.md)"
        )


def _said(change: pods.Change, *, is_removed: bool) -> str:
    """Return what was done to a workload."""
    names = f"container{'s' if len(change.containers) > 1 else ''} {', '.join(change.containers)}"
    if is_removed:
        return f"{change.where}: agent removed from {names}"
    kept = f"; kept as set: {', '.join(change.kept)}" if change.kept else ""
    lost = "" if change.has_endpoint else "; no endpoint is set, so spans go to the pod itself (--endpoint)"
    return f"{change.where}: agent in {names}{kept}{lost}"
