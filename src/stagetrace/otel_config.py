"""The file of OTEL_CONFIG_FILE, OpenTelemetry's declarative configuration 1.x, as variables that it replaces.

https://github.com/open-telemetry/opentelemetry-configuration; `settings` reads OTEL_* from here where the file is set.
What recording does not do is named, and the rest is done.
"""

from __future__ import annotations

import functools
import re
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import quote

from stagetrace import log, settings
from stagetrace.errors import PolicyError, StagetraceError
from stagetrace.guard import report
from stagetrace.policy import yaml_nodes
from stagetrace.policy.inline import EXAMPLE
from stagetrace.policy.policy import Policy
from stagetrace.policy.policy_file import content, decoded, document_of
from stagetrace.policy.policy_kinds import nearest
from stagetrace.policy.yaml_nodes import At, Mapping, Node, Problems, Scalar, Sequence, WrongError, resolved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from collections.abc import Mapping as AnyMapping

    Take = Callable[[Node, str], None]  # of a value, and the keys that lead to it

_VERSION: Final = re.compile(r"1\.\d+(-rc\.?\d+)?")
_REFERENCE: Final = re.compile(r"\$\$|\$\{([^}\n]*)\}")
_VARIABLE: Final = re.compile(r"(?:env:)?([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?")
_PROTOCOLS: Final = {
    "otlp_http": ("http/protobuf", "http://localhost:4318/v1/{}"),
    "otlp_grpc": ("grpc", "http://localhost:4317"),
}
_NO_LIMIT_S: Final = 86_400  # in place of a time without limit
_ROOTS: Final = {"always_on": "always_on", "always_off": "always_off", "trace_id_ratio_based": "traceidratio"}
_OF_PARENT: Final = {  # what we do, and OpenTelemetry by default
    "remote_parent_sampled": "always_on",
    "remote_parent_not_sampled": "always_off",
    "local_parent_sampled": "always_on",
    "local_parent_not_sampled": "always_off",
}
_LIMITS: Final = {
    "attribute_value_length_limit": "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    "attribute_count_limit": "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
    "event_count_limit": "OTEL_SPAN_EVENT_COUNT_LIMIT",
    "link_count_limit": "OTEL_SPAN_LINK_COUNT_LIMIT",
    "event_attribute_count_limit": "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT",
    "link_attribute_count_limit": "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT",
}
# In place of all that a file would say which cannot be used: nothing is recorded, no instrumentation is applied.
_NOTHING: Final = {"OTEL_SDK_DISABLED": "true", "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "*"}


class ConfigError(StagetraceError):
    """Say what is wrong in the file, where, and what fixes it."""


class ConfigFile(NamedTuple):
    """What a file says: variables, objectives; `problem` is why it cannot be used, `unused` what is not done of it."""

    path: str
    variables: dict[str, str]
    policy: Policy | None = None
    unused: tuple[str, ...] = ()
    referenced: frozenset[str] = frozenset()  # the variables that it takes values from
    problem: str = ""


def config_file() -> ConfigFile | None:
    """Return the file of OTEL_CONFIG_FILE, as it was when it was first needed; None where the variable is not set."""
    path = settings.CONFIG_FILE.read()
    return _of(path) if path else None


@functools.cache
def _of(path: str) -> ConfigFile:
    """Read the file, and log once what cannot be used or is not done."""
    environ = settings.environment()
    try:
        found = read(_text(path), path, environ)
    except ConfigError as error:
        log.once("config file", f"{error}\nUntil then, nothing is recorded.")
        return ConfigFile(path, dict(_NOTHING), problem=str(error))
    except Exception as error:  # noqa: BLE001
        report(f"{__name__}.read", error)
        return ConfigFile(path, dict(_NOTHING), problem=f"{path} cannot be read")
    if found.unused:
        listed = ", ".join(found.unused)
        log.once("config file", f"stagetrace does not do all that OTEL_CONFIG_FILE={path} asks for: {listed}.")
    ignored = sorted(name for name in environ if name.startswith("OTEL_") and "CONFIG_FILE" not in name)
    ignored = [name for name in ignored if name not in found.referenced]
    if ignored:
        listed = ", ".join(ignored)
        log.once("config file ignores", f"OTEL_CONFIG_FILE={path} is read in place of {listed}, which are ignored.")
    return found


def _text(path: str) -> str:
    try:
        return decoded(content(path), path)
    except PolicyError as error:
        fix = str(error).partition("\n")[2]
        raise ConfigError(f"cannot use OTEL_CONFIG_FILE: {error.problem}\n{fix}") from None


def read(text: str, where: str, environ: AnyMapping[str, str]) -> ConfigFile:
    """Return what a file says whose text this is; `environ` are the variables that it may refer to.

    Raises:
        ConfigError: with the first thing that is wrong.
    """
    problems = Problems()
    reader = _Reader(environ, problems)
    try:
        reader.read(yaml_nodes.parse(text, problems))
    except WrongError as error:
        problems.add(error.problem)
    if problems.found:
        first = min(problems.found)
        fix = f"\n{first.fix}" if first.fix else ""
        raise ConfigError(f"cannot use OTEL_CONFIG_FILE: {first._replace(fix='').text(where)}{fix}")
    policy = reader.policy
    return ConfigFile(where, reader.variables, policy, tuple(reader.unused), frozenset(reader.referenced))


class _Reader:
    """Collects what a file says. Its methods with a node and its path take over what stands there."""

    def __init__(self, environ: AnyMapping[str, str], problems: Problems) -> None:
        self.variables: dict[str, str] = {}
        self.policy: Policy | None = None
        self.unused: list[str] = []
        self.referenced: set[str] = set()
        self._exporters: list[str] = []
        self._environ = environ
        self._problems = problems

    def read(self, document: Node | None) -> None:
        """Take over a document."""
        fix = 'write file_format: "1.0" in the first line'
        if not isinstance(document, Mapping):
            what = "the file is empty" if document is None else f"there stands {document.kind}"
            raise WrongError(At(1, 1) if document is None else document.at, what, fix)
        root = self._substituted(document)
        if not isinstance(root, Mapping) or "file_format" not in root.entries:
            raise WrongError(document.at, "file_format is missing", fix)
        self._take(
            root,
            "",
            {
                "file_format": self._file_format,
                "disabled": self._switch("OTEL_SDK_DISABLED"),
                "resource": self._resource,
                "attribute_limits": self._keys(
                    {
                        "attribute_value_length_limit": self._whole("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT"),
                        "attribute_count_limit": self._whole("OTEL_ATTRIBUTE_COUNT_LIMIT"),
                    }
                ),
                "propagator": self._propagator,
                "tracer_provider": self._keys(
                    {
                        "processors": self._each(self._processor),
                        "limits": self._keys({key: self._whole(variable) for key, variable in _LIMITS.items()}),
                        "sampler": self._sampler,
                    }
                ),
                "meter_provider": self._keys(
                    {"readers": self._each(self._metric_reader), "exemplar_filter": self._only("trace_based")}
                ),
                "log_level": self._only("info"),
                "distribution": self._distribution,
            },
        )
        self.variables["OTEL_TRACES_EXPORTER"] = ",".join(self._exporters) or "none"
        self.variables.setdefault("OTEL_PROPAGATORS", "none")
        if "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL" not in self.variables:
            self.variables["OTEL_METRICS_EXPORTER"] = "none"

    # --- Variables that stand in the values.

    def _substituted(self, node: Node) -> Node:
        """Return a node with the values of variables in place of the references to them."""
        if isinstance(node, Mapping):
            return node._replace(entries={key: self._substituted(one) for key, one in node.entries.items()})
        if isinstance(node, Sequence):
            return node._replace(items=[self._substituted(one) for one in node.items])
        if "$" not in node.text:
            return node
        return yaml_nodes.scalar_of(node.at, _REFERENCE.sub(partial(self._value, node.at), node.text))

    def _value(self, at: At, found: re.Match[str]) -> str:
        if found[1] is None:
            return "$"  # of `$$`
        named = _VARIABLE.fullmatch(found[1])
        if named is None:
            fix = "write ${NAME} or ${NAME:-default}, and $$ for a $"
            raise WrongError(at, f"{found[0][:80]!r} is no reference to a variable", fix)
        self.referenced.add(named[1])
        return self._environ.get(named[1]) or named[2] or ""

    # --- The forms of values. A value that is empty counts as one that is not there.

    def _take(self, node: Node, path: str, known: AnyMapping[str, Take]) -> None:
        """Take over the keys of a mapping; those that are not known are not done."""
        for key, at, value in _entries(node, path):
            inner = f"{path}.{key}" if path else key
            if key in known:
                known[key](value, inner)
            else:
                self._is_unused(inner, at)

    def _is_unused(self, what: str, at: At) -> None:
        self.unused.append(f"{what} (line {at.line})")

    def _keys(self, known: AnyMapping[str, Take]) -> Take:
        return lambda node, path: self._take(node, path, known)

    def _each(self, take: Take) -> Take:
        def items(node: Node, path: str) -> None:
            for number, item in enumerate(_items(node, path)):
                take(item, f"{path}[{number}]")

        return items

    def _set(self, variable: str) -> Take:
        def take(node: Node, path: str) -> None:
            if text := _text_of(node, path):
                self.variables[variable] = text

        return take

    def _switch(self, variable: str) -> Take:
        def take(node: Node, path: str) -> None:
            text = _text_of(node, path)
            if text and not isinstance(resolved(text), bool):
                raise WrongError(node.at, f"{path} is {node.kind}", "write true or false")
            if text:
                self.variables[variable] = text.lower()

        return take

    def _whole(self, variable: str, least: int = 0) -> Take:
        def take(node: Node, path: str) -> None:
            if (value := _whole_number(node, path)) is not None:
                self.variables[variable] = str(max(value, least))

        return take

    def _seconds(self, variable: str) -> Take:
        def take(node: Node, path: str) -> None:
            if (value := _whole_number(node, path)) is not None:
                self.variables[variable] = str(value / 1000 or _NO_LIMIT_S)

        return take

    # --- The parts of a file.

    def _file_format(self, node: Node, path: str) -> None:
        text = _text_of(node, path)
        if not _VERSION.fullmatch(text):
            raise WrongError(node.at, f"file_format is {text[:40] or 'empty'}", 'stagetrace reads "1.0" and later 1.x')

    def _resource(self, node: Node, path: str) -> None:
        found: dict[str, str] = {}
        listed: list[str] = []

        def attribute(one: Node, inner: str) -> None:
            entries = {key: value for key, _, value in _entries(one, inner)}
            name, value = _pair(one, entries, inner)
            if re.search("[=,]", name):
                raise WrongError(one.at, f"{inner}.name has = or ,", "give it another name")
            kind = _text_of(entries["type"], inner) if "type" in entries else ""
            items = value.items if isinstance(value, Sequence) else [value]
            if text := ",".join(map(_text_of, items, repeat(inner))):
                found[name] = quote(text, safe="")
            if kind not in ("", "string"):
                self._is_unused(f"{inner}.type, {name} is recorded as text", one.at)

        self._take(
            node,
            path,
            {
                "attributes": self._each(attribute),
                "attributes_list": lambda one, inner: listed.append(_text_of(one, inner)),
            },
        )
        pairs = [*filter(None, listed), *(f"{name}={value}" for name, value in found.items())]
        if pairs:
            self.variables["OTEL_RESOURCE_ATTRIBUTES"] = ",".join(pairs)

    def _propagator(self, node: Node, path: str) -> None:
        names: list[str] = []
        listed: list[str] = []

        def composite_list(one: Node, inner: str) -> None:
            listed.extend(name.strip() for name in _text_of(one, inner).split(",") if name.strip())

        def composite(one: Node, inner: str) -> None:
            names.extend(_single(item, inner)[0] for item in _items(one, inner))

        self._take(node, path, {"composite": composite, "composite_list": composite_list})
        self.variables["OTEL_PROPAGATORS"] = ",".join(dict.fromkeys([*names, *listed])) or "none"

    def _sampler(self, node: Node, path: str) -> None:
        if isinstance(node, Scalar) and not node.text:
            return
        prefix = ""
        name, value = _single(node, path)
        if name == "parent_based":
            prefix, root = "parentbased_", None
            for key, at, one in _entries(value, f"{path}.{name}"):
                if key == "root":
                    root = one
                elif _single(one, f"{path}.{name}.{key}")[0] != _OF_PARENT.get(key):
                    self._is_unused(f"{path}.{name}.{key}", at)
            path = f"{path}.{name}.root"
            name, value = ("always_on", yaml_nodes.scalar_of(node.at, "")) if root is None else _single(root, path)
        if name not in _ROOTS:
            self._is_unused(f"{path}.{name}", node.at)
            return
        self.variables["OTEL_TRACES_SAMPLER"] = prefix + _ROOTS[name]
        self._take(value, f"{path}.{name}", {"ratio": self._ratio} if name == "trace_id_ratio_based" else {})

    def _ratio(self, node: Node, path: str) -> None:
        text = _text_of(node, path)
        share = resolved(text)
        if text and (isinstance(share, bool | str | None) or not 0 <= share <= 1):
            raise WrongError(node.at, f"{path} is {text[:40]}", "write a ratio from 0 to 1")
        self.variables["OTEL_TRACES_SAMPLER_ARG"] = text

    def _processor(self, node: Node, path: str) -> None:
        kind, value = _single(node, path)
        path = f"{path}.{kind}"
        if kind not in ("batch", "simple"):
            self._is_unused(path, node.at)
            return
        if "exporter" not in [key for key, _, _ in _entries(value, path)]:
            raise WrongError(node.at, f"{path} has no exporter", "write exporter: and below it otlp_http:")
        if kind == "simple":
            self._is_unused(f"{path}, spans are sent in batches", node.at)
        self._take(
            value,
            path,
            {
                "exporter": partial(self._exporter, "TRACES"),
                "schedule_delay": self._whole("OTEL_BSP_SCHEDULE_DELAY", least=1),
                "max_queue_size": self._whole("OTEL_BSP_MAX_QUEUE_SIZE", least=1),
                "max_export_batch_size": self._whole("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", least=1),
            },
        )

    def _metric_reader(self, node: Node, path: str) -> None:
        kind, value = _single(node, path)
        path = f"{path}.{kind}"
        if kind != "periodic":
            self._is_unused(path, node.at)
            return
        interval = self._whole("OTEL_METRIC_EXPORT_INTERVAL", least=1)
        self._take(value, path, {"exporter": partial(self._exporter, "METRICS"), "interval": interval})

    def _exporter(self, signal: str, node: Node, path: str) -> None:
        """Take over where spans or metrics go: to one receiver of OTLP, and spans to the console too."""
        name, value = _single(node, path)
        path = f"{path}.{name}"
        of = f"OTEL_EXPORTER_OTLP_{signal}_"
        if name == "console" and signal == "TRACES":
            self._exporters.append(name)
            return
        if name not in _PROTOCOLS or f"{of}PROTOCOL" in self.variables:
            second = ", a second receiver" if name in _PROTOCOLS else ""
            self._is_unused(f"{path}{second}", node.at)
            return
        protocol, endpoint = _PROTOCOLS[name]
        self.variables |= {f"{of}PROTOCOL": protocol, f"{of}ENDPOINT": endpoint.format(signal.lower())}
        if signal == "TRACES":
            self._exporters.append("otlp")
        headers: dict[str, str] = {}
        listed: list[str] = []

        def header(one: Node, inner: str) -> None:
            key, given = _pair(one, {key: value for key, _, value in _entries(one, inner)}, inner)
            if text := _text_of(given, inner):
                headers[key] = quote(text, safe="")

        tls = {
            "ca_file": self._set(f"{of}CERTIFICATE"),
            "key_file": self._set(f"{of}CLIENT_KEY"),
            "cert_file": self._set(f"{of}CLIENT_CERTIFICATE"),
            "insecure": self._switch(f"{of}INSECURE"),
        }
        known: dict[str, Take] = {
            "endpoint": self._set(f"{of}ENDPOINT"),
            "tls": self._keys(tls),
            "headers": self._each(header),
            "headers_list": lambda one, inner: listed.append(_text_of(one, inner)),
            "compression": self._set(f"{of}COMPRESSION"),
            "timeout": self._seconds(f"{of}TIMEOUT"),
            "encoding": self._only("protobuf"),
            "temporality_preference": self._only("cumulative"),
            "default_histogram_aggregation": self._only("explicit_bucket_histogram"),
        }
        self._take(value, path, known)
        pairs = [*filter(None, listed), *(f"{key}={text}" for key, text in headers.items())]
        if pairs:
            self.variables[f"{of}HEADERS"] = ",".join(pairs)

    def _only(self, done: str) -> Take:
        """Take over nothing: it is done so in any case, and other values are not done."""

        def take(node: Node, path: str) -> None:
            if _text_of(node, path) not in ("", done):
                self._is_unused(path, node.at)

        return take

    def _distribution(self, node: Node, path: str) -> None:
        for key, _, ours in _entries(node, path):
            if key != "stagetrace":  # another vendor's
                continue
            for name, at, value in _entries(ours, f"{path}.stagetrace"):
                if name != "sla":
                    raise WrongError(at, f"{name[:80]!r} is no key of {path}.stagetrace", nearest(name, ("sla",)))
                self._sla(value)

    def _sla(self, node: Node) -> None:
        """Take over the objectives: an inline policy, or what stands in a policy file."""
        if isinstance(node, Scalar):
            if not node.text:
                return
            try:
                self.policy = Policy.parse(node.text)
            except PolicyError as error:
                raise WrongError(node.at, f"sla: {error.problem}", f"for example: {EXAMPLE}") from None
            return
        document = document_of(node, self._problems)
        self.policy = Policy(document.objectives, alerts=document.alerts)


def _entries(node: Node, path: str) -> Iterator[tuple[str, At, Node]]:
    """Yield the keys of a mapping, each with its place and its value."""
    if isinstance(node, Mapping):
        for key, value in node.entries.items():
            yield key, node.places[key], value
    elif not isinstance(node, Scalar) or node.text:
        raise WrongError(node.at, f"{path} is {node.kind}", "write a mapping of keys and values")


def _items(node: Node, path: str) -> list[Node]:
    if not isinstance(node, Sequence) or not node.items:
        raise WrongError(node.at, f"{path} is {node.kind}", "write a list of one item or more")
    return node.items


def _single(node: Node, path: str) -> tuple[str, Node]:
    """Return the one key of a mapping, and its value."""
    if not isinstance(node, Mapping) or len(node.entries) != 1:
        raise WrongError(node.at, f"{path} is {node.kind}", "write a mapping with one key")
    return next(iter(node.entries.items()))


def _pair(node: Node, entries: AnyMapping[str, Node], path: str) -> tuple[str, Node]:
    """Return the name and the value that two keys say."""
    missing = [key for key in ("name", "value") if key not in entries]
    if missing:
        raise WrongError(node.at, f"{path} has no {missing[0]}", "write name: and value:")
    return _text_of(entries["name"], f"{path}.name"), entries["value"]


def _text_of(node: Node, path: str) -> str:
    """Return the text of a scalar, empty for null."""
    if not isinstance(node, Scalar):
        raise WrongError(node.at, f"{path} is {node.kind}", "write a text")
    return "" if node.value is None else node.text.strip()


def _whole_number(node: Node, path: str) -> int | None:
    text = _text_of(node, path)
    if not text:
        return None
    if not (text.isascii() and text.isdecimal()):
        raise WrongError(node.at, f"{path} is {node.kind}", "write a whole number from 0 on")
    return int(text)
