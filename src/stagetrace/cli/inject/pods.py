"""What `stagetrace inject` changes in an object of Kubernetes: pure functions of parsed manifests.

Our variables stand before those of the container, since Kubernetes puts the value of a variable only into later ones.
Which ones they are is in an annotation of the pod template, so that `remove` knows them from variables of the user.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from typing import Any, Final, NamedTuple

from stagetrace.cli.registry import UsageError

ANNOTATION: Final = "stagetrace.dev/agent"
NAME: Final = "stagetrace-agent"  # of the init container and of the volume
FOLDER: Final = "/stagetrace-agent"
_SITE: Final = f"{FOLDER}/opentelemetry/instrumentation/auto_instrumentation"
# Kind: its API group, and where its pod template is.
KINDS: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    **dict.fromkeys(("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet"), ("apps", ("spec", "template"))),
    "Job": ("batch", ("spec", "template")),
    "CronJob": ("batch", ("spec", "jobTemplate", "spec", "template")),
    "Pod": ("", ()),
}
_DEFAULT_CONTAINER: Final = "kubectl.kubernetes.io/default-container"
_PYTHONPATH: Final = "PYTHONPATH"
_ATTRIBUTES: Final = "OTEL_RESOURCE_ATTRIBUTES"
_SERVICE: Final = "OTEL_SERVICE_NAME"
_ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
_HEADERS: Final = "OTEL_EXPORTER_OTLP_HEADERS"
_PROTOCOL: Final = "OTEL_EXPORTER_OTLP_PROTOCOL"
# Names of the OpenTelemetry Operator: it takes a pod with the second one for injected, and adds no further agent to it.
_FIELDS: Final = {
    f"{_ATTRIBUTES}_POD_NAME": ("k8s.pod.name", "metadata.name"),
    f"{_ATTRIBUTES}_NODE_NAME": ("k8s.node.name", "spec.nodeName"),
    f"{_ATTRIBUTES}_NAMESPACE_NAME": ("k8s.namespace.name", "metadata.namespace"),
}
_MOUNT: Final = {"name": NAME, "mountPath": FOLDER}
# What `cp` needs; a namespace with a quota admits no container without.
_RESOURCES: Final = {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"cpu": "500m", "memory": "128Mi"}}

Object = dict[str, Any]


class Agent(NamedTuple):
    """What is injected, and into which containers; none: that which `kubectl logs` takes, too."""

    image: str
    sla: str = ""
    endpoint: str = ""
    headers_secret: str = ""
    is_musl: bool = False
    containers: tuple[str, ...] = ()


class Change(NamedTuple):
    """What was done to one workload."""

    where: str
    containers: tuple[str, ...]
    kept: tuple[str, ...] = ()  # the variables that were set already
    has_endpoint: bool = True  # whether each container knows one


def inject(manifest: Any, agent: Agent) -> tuple[Any, list[Change]]:
    """Return a manifest with the agent in its workloads, in place of an earlier one, and what was done to each.

    Raises:
        UsageError: where a workload cannot be read, or a container has PYTHONPATH by `valueFrom`.
    """
    copied, changes = _copy(manifest), []
    for workload in _workloads(copied):
        template, where = _template(workload), _where(workload)
        _remove(template, where)
        changes.append(_add(template, agent, where, _name(workload)))
    return copied, [one for one in changes if one.containers]


def remove(manifest: Any) -> tuple[Any, list[Change]]:
    """Return a manifest without what `inject` added, and what was done to each workload.

    Raises:
        UsageError: where a workload cannot be read.
    """
    copied = _copy(manifest)
    changes = [Change(_where(one), _remove(_template(one), _where(one))) for one in _workloads(copied)]
    return copied, [one for one in changes if one.containers]


def containers(manifest: Any) -> list[str]:
    """Return the names of all containers of the workloads of a manifest. Raise UsageError as `inject` does."""
    return [str(one["name"]) for workload in _workloads(manifest) for one in _template(workload)["spec"]["containers"]]


def _copy(value: Any) -> Any:
    """Return a copy in which nothing is shared: a list that two containers have by an alias becomes two."""
    if isinstance(value, dict):
        return {key: _copy(one) for key, one in value.items()}
    return [_copy(one) for one in value] if isinstance(value, list) else value


# --- Workloads


def _workloads(manifest: Any) -> Iterator[Object]:
    """Yield what has a pod template, of a List each item; what a controller makes follows from its own template."""
    if not isinstance(manifest, dict):
        return
    kind, group = manifest.get("kind"), str(manifest.get("apiVersion", "")).rpartition("/")[0]
    if kind == "List" and isinstance(manifest.get("items"), list):
        for one in manifest["items"]:
            yield from _workloads(one)
    elif isinstance(kind, str) and kind in KINDS and KINDS[kind][0] == group and not _is_made(manifest):
        yield manifest


def _metadata(workload: Object) -> Object:
    found = workload.get("metadata")
    return found if isinstance(found, dict) else {}


def _is_made(workload: Object) -> bool:
    """Return whether a controller has made a workload."""
    owners = _metadata(workload).get("ownerReferences")
    owners = [one for one in owners if isinstance(one, dict)] if isinstance(owners, list) else []
    return any(str(one.get("controller")).lower() == "true" for one in owners)


def _name(workload: Object) -> str:
    metadata = _metadata(workload)
    return str(metadata.get("name") or str(metadata.get("generateName") or "").rstrip("-"))


def _where(workload: Object) -> str:
    return f"{workload['kind']} {_name(workload)}".rstrip()


def _template(workload: Object) -> Object:
    """Return the pod template of a workload; all that is read of it here has the form that it must have."""
    where, found = _where(workload), workload
    for key in KINDS[workload["kind"]][1]:
        found = _object(found, key, where)
    spec, metadata = _object(found, "spec", where), _object(found, "metadata", where)
    _object(metadata, "annotations", where)
    for key in ("initContainers", "volumes"):
        _named(spec, key, where)
    if not _named(spec, "containers", where):
        raise UsageError(f"{where} has no containers\ncorrect the manifest")
    for container in spec["containers"]:
        for key in ("env", "volumeMounts"):
            _named(container, key, f"{where}: container {container['name']}")
    return found


def _object(owner: Object, key: str, where: str) -> Object:
    """Return an object in another one; an empty one where there is none."""
    found = owner.get(key)
    if found is not None and not isinstance(found, dict):
        raise UsageError(f"{where}: {key} is no object\ncorrect the manifest")
    return found or {}


def _named(owner: Object, key: str, where: str) -> list[Object]:
    """Return a list of objects with names; an empty one where there is none."""
    found = owner.get(key)
    is_list = isinstance(found, list) and all(isinstance(one, dict) and one.get("name") for one in found)
    if found is not None and not is_list:
        raise UsageError(f"{where}: {key} is no list of objects with names\ncorrect the manifest")
    return found or []


# --- Adding


def _add(template: Object, agent: Agent, where: str, name: str) -> Change:
    """Add the agent to a pod template; return what was done."""
    spec, chosen = template["spec"], _chosen(template, agent.containers)
    if not chosen:
        return Change(where, ())
    added, kept = {}, dict[str, None]()
    for container in chosen:
        ours, others = _variables(container, agent, name or container["name"], where)
        container["env"] = [*ours, *(container.get("env") or ())]
        container["volumeMounts"] = [*(container.get("volumeMounts") or ()), dict(_MOUNT)]
        added[str(container["name"])] = [one["name"] for one in ours]
        kept |= dict.fromkeys(others)
    spec["initContainers"] = [*(spec.get("initContainers") or ()), _init_container(agent, chosen[0])]
    spec["volumes"] = [*(spec.get("volumes") or ()), {"name": NAME, "emptyDir": {"sizeLimit": "200Mi"}}]
    template["metadata"] = template.get("metadata") or {}
    template["metadata"]["annotations"] = template["metadata"].get("annotations") or {}
    template["metadata"]["annotations"][ANNOTATION] = json.dumps(added)
    return Change(where, tuple(added), tuple(kept), all(map(_has_endpoint, chosen)))


def _chosen(template: Object, names: tuple[str, ...]) -> list[Object]:
    """Return the containers of these names; of no name, the one that `kubectl logs` takes."""
    found: list[Object] = template["spec"]["containers"]
    if names:
        return [one for one in found if one["name"] in names]
    usual = _object(_object(template, "metadata", ""), "annotations", "").get(_DEFAULT_CONTAINER)
    return [next((one for one in found if one["name"] == usual), found[0])]


def _variables(container: Object, agent: Agent, service: str, where: str) -> tuple[list[Object], list[str]]:
    """Return the variables to add, and the names of those that a container has already; extend those that are lists."""
    own = {one["name"]: one for one in container.get("env") or ()}  # of two with a name the last one counts
    if "valueFrom" in own.get(_PYTHONPATH, ()):
        raise UsageError(
            f"{where}: container {container['name']} has {_PYTHONPATH} by `valueFrom`, which cannot be extended\n"
            "write its value into the manifest, or choose other containers by --container"
        )
    texts = {"STAGETRACE": "1", "STAGETRACE_SLA": agent.sla, _SERVICE: service, _ENDPOINT: agent.endpoint}
    if "service.name=" in _value(own.get(_ATTRIBUTES, {})):
        del texts[_SERVICE]  # which would count for more
    if _ENDPOINT not in own:  # it could be one for gRPC
        texts[_PROTOCOL] = "http/protobuf"
    wanted: Object = {name: {"value": text} for name, text in texts.items() if text}
    if agent.headers_secret:  # optional: a pod starts without the Secret, and its spans are refused
        key = {"name": agent.headers_secret, "key": "headers", "optional": True}
        wanted[_HEADERS] = {"valueFrom": {"secretKeyRef": key}}
    kept = [name for name in wanted if name in own]
    wanted |= {name: {"valueFrom": {"fieldRef": {"fieldPath": path}}} for name, (_, path) in _FIELDS.items()}
    attributes = _attributes(container)
    wanted |= {_ATTRIBUTES: {"value": attributes}, _PYTHONPATH: {"value": f"{_SITE}:{FOLDER}"}}
    ours = [{"name": name, **value} for name, value in wanted.items() if name not in own]
    if _PYTHONPATH in own:
        own[_PYTHONPATH]["value"] = ":".join(filter(None, (_SITE, _value(own[_PYTHONPATH]), FOLDER)))
    if "valueFrom" not in own.get(_ATTRIBUTES, {"valueFrom": None}):  # a later attribute counts: the user's
        own[_ATTRIBUTES]["value"] = ",".join(filter(None, (attributes, _value(own[_ATTRIBUTES]))))
    return ours, kept


def _value(variable: Object) -> str:
    return str(variable.get("value") or "")


def _attributes(container: Object) -> str:
    fields = (f"{attribute}=$({name})" for name, (attribute, _) in _FIELDS.items())
    return ",".join((f"k8s.container.name={container['name']}", *fields))


def _has_endpoint(container: Object) -> bool:
    """Return whether a container knows where spans go, or may know it."""
    return "envFrom" in container or any(one["name"] == _ENDPOINT for one in container["env"])


def _init_container(agent: Agent, beside: Object) -> Object:
    """Return the container that copies the agent, with the security context of `beside`: a namespace may require it."""
    context = beside.get("securityContext")
    return {
        "name": NAME,
        "image": agent.image,
        "command": ["cp", "-r", f"/autoinstrumentation{'-musl' if agent.is_musl else ''}/.", FOLDER],
        "resources": _copy(_RESOURCES),
        **({"securityContext": _copy(context)} if context else {}),
        "volumeMounts": [dict(_MOUNT)],
    }


# --- Removal


def _remove(template: Object, where: str) -> tuple[str, ...]:
    """Take away what was added to a pod template; return the names of the containers that had it."""
    metadata = _object(template, "metadata", where)
    annotations = _object(metadata, "annotations", where)
    if ANNOTATION not in annotations:
        return ()
    try:
        added = {name: frozenset(map(str, names)) for name, names in json.loads(annotations[ANNOTATION]).items()}
    except (ValueError, TypeError, AttributeError):
        raise UsageError(
            f"{where}: the annotation {ANNOTATION} is not as `stagetrace inject` wrote it\n"
            "put it back, or take all with the name stagetrace-agent away by hand"
        ) from None
    del annotations[ANNOTATION]
    if not annotations:
        del metadata["annotations"]
    if not metadata:
        del template["metadata"]
    for key in ("initContainers", "volumes"):
        _drop(template["spec"], key, {NAME})
    for container in template["spec"]["containers"]:
        if container["name"] in added:
            _drop(container, "volumeMounts", {NAME})
            _drop(container, "env", added[container["name"]])
            for variable in container.get("env") or ():
                _restore(variable, container)
    return tuple(added)


def _drop(owner: Object, key: str, names: Collection[str]) -> None:
    """Take objects of these names out of a list, and the list itself with the last one."""
    left = [one for one in owner.get(key) or () if one["name"] not in names]
    if left:
        owner[key] = left
    else:
        owner.pop(key, None)


def _restore(variable: Object, container: Object) -> None:
    """Give a variable that was extended the value that it had."""
    value = _value(variable)
    if variable["name"] == _PYTHONPATH and value.startswith(_SITE) and value.endswith(FOLDER):
        variable["value"] = value.removeprefix(_SITE).removesuffix(FOLDER)[1:-1]
    elif variable["name"] == _ATTRIBUTES and value.startswith(_attributes(container)):
        variable["value"] = value.removeprefix(_attributes(container)).removeprefix(",")
