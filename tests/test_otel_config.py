"""OTEL_CONFIG_FILE: what the file says is done in place of all other OTEL_* variables; what is wrong is named."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from services import run_python, run_service
from stagetrace import otel_config, settings
from stagetrace.otel_config import ConfigError, read
from stagetrace.sla import process

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sink import Sink

PAGE = Path(__file__).parent.parent / "docs" / "environment.md"
OFFICIAL = Path(__file__).parent / "otel_config" / "otel-sdk-migration-config.yaml"  # of the schema's repository, 1.1
FIRST = 'file_format: "1.0"\n'
TRACES = "OTEL_EXPORTER_OTLP_TRACES_"
METRICS = "OTEL_EXPORTER_OTLP_METRICS_"
# What follows from what is not in a file, as the specification has it: no provider, no propagator.
NOTHING = {"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none", "OTEL_PROPAGATORS": "none"}
HTTP = {
    "OTEL_TRACES_EXPORTER": "otlp",
    f"{TRACES}PROTOCOL": "http/protobuf",
    f"{TRACES}ENDPOINT": "http://localhost:4318/v1/traces",
}


def variables(text: str, **environ: str) -> dict[str, str]:
    """Return what a file says beyond NOTHING."""
    found = read(FIRST + text, "otel.yaml", environ)
    assert found.unused == ()
    return {name: value for name, value in found.variables.items() if NOTHING.get(name) != value}


def processor(exporter: str, *lines: str) -> str:
    """Return a batch processor with an exporter, and more lines of the processor."""
    more = "".join(f"        {line}\n" for line in lines)
    return f"tracer_provider:\n  processors:\n    - batch:\n{more}        exporter: {exporter}\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("disabled: true", {"OTEL_SDK_DISABLED": "true"}),
        ("disabled:", {}),
        (
            "resource: {attributes: [{name: service.name, value: 'a, b'}]}",
            {"OTEL_RESOURCE_ATTRIBUTES": "service.name=a%2C%20b"},
        ),
        (
            "resource: {attributes_list: 'a=1,b=2', attributes: [{name: b, value: three}, {name: c, value: null}]}",
            {"OTEL_RESOURCE_ATTRIBUTES": "a=1,b=2,b=three"},
        ),
        (
            "attribute_limits: {attribute_value_length_limit: 100, attribute_count_limit: 7}",
            {"OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": "100", "OTEL_ATTRIBUTE_COUNT_LIMIT": "7"},
        ),
        (
            "propagator: {composite: [tracecontext: , b3: ], composite_list: 'baggage,tracecontext'}",
            {"OTEL_PROPAGATORS": "tracecontext,b3,baggage"},
        ),
        (processor("{otlp_http: }"), HTTP),
        (
            processor("{otlp_grpc: {endpoint: 'collector:4317', tls: {insecure: true}}}"),
            {
                "OTEL_TRACES_EXPORTER": "otlp",
                f"{TRACES}PROTOCOL": "grpc",
                f"{TRACES}ENDPOINT": "collector:4317",
                f"{TRACES}INSECURE": "true",
            },
        ),
        (
            processor(
                "{otlp_http: {headers_list: 'a=1,b=2', headers: [{name: b, value: 'x, y'}, {name: c, value: }], "
                "compression: gzip, timeout: 1500, encoding: protobuf, "
                "tls: {ca_file: /ca.pem, key_file: /key.pem, cert_file: /cert.pem}}}"
            ),
            {
                **HTTP,
                f"{TRACES}HEADERS": "a=1,b=2,b=x%2C%20y",
                f"{TRACES}COMPRESSION": "gzip",
                f"{TRACES}TIMEOUT": "1.5",
                f"{TRACES}CERTIFICATE": "/ca.pem",
                f"{TRACES}CLIENT_KEY": "/key.pem",
                f"{TRACES}CLIENT_CERTIFICATE": "/cert.pem",
            },
        ),
        (
            processor(
                "{otlp_http: {timeout: 0}}",
                "schedule_delay: 0",
                "max_queue_size: 9",
                "max_export_batch_size: 3",
            ),
            {
                **HTTP,
                f"{TRACES}TIMEOUT": "86400",
                "OTEL_BSP_SCHEDULE_DELAY": "1",
                "OTEL_BSP_MAX_QUEUE_SIZE": "9",
                "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "3",
            },
        ),
        (
            "tracer_provider: {processors: [batch: {exporter: {otlp_http: }}, batch: {exporter: {console: }}]}",
            {**HTTP, "OTEL_TRACES_EXPORTER": "otlp,console"},
        ),
        (
            (
                "tracer_provider: {limits: {attribute_value_length_limit: 1, attribute_count_limit: 2, "
                "event_count_limit: 3, link_count_limit: 4, event_attribute_count_limit: 5, "
                "link_attribute_count_limit: 6}}"
            ),
            {
                "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT": "1",
                "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "2",
                "OTEL_SPAN_EVENT_COUNT_LIMIT": "3",
                "OTEL_SPAN_LINK_COUNT_LIMIT": "4",
                "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT": "5",
                "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT": "6",
            },
        ),
        ("tracer_provider: {sampler: {always_off: {}}}", {"OTEL_TRACES_SAMPLER": "always_off"}),
        (
            "tracer_provider: {sampler: {trace_id_ratio_based: {ratio: 0.25}}}",
            {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.25"},
        ),
        ("tracer_provider: {sampler: {parent_based: }}", {"OTEL_TRACES_SAMPLER": "parentbased_always_on"}),
        (
            (
                "tracer_provider: {sampler: {parent_based: {root: {trace_id_ratio_based: {ratio: 1}}, "
                "remote_parent_not_sampled: {always_off: }}}}"
            ),
            {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "1"},
        ),
        (
            "meter_provider: {readers: [periodic: {interval: 500, exporter: {otlp_grpc: {headers_list: a=1}}}]}",
            {
                "OTEL_METRIC_EXPORT_INTERVAL": "500",
                f"{METRICS}PROTOCOL": "grpc",
                f"{METRICS}ENDPOINT": "http://localhost:4317",
                f"{METRICS}HEADERS": "a=1",
            },
        ),
        ("distribution: {another: {sla: [1]}}", {}),
    ],
)
def test_what_a_file_says_is_what_variables_say(text: str, expected: Mapping[str, str]) -> None:
    assert variables(text) == expected
    assert set(expected) <= set(settings.SETTINGS)  # each of them is read


def test_a_file_without_a_provider_or_propagator_has_none() -> None:
    assert read(FIRST, "otel.yaml", {}).variables == NOTHING


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("${NAME}", "given"),
        ("${env:NAME}", "given"),
        ("a-${NAME}-b", "a-given-b"),
        ("${NAME:-other}", "given"),
        ("${NONE:-other}", "other"),
        ("${EMPTY:-other}", "other"),
        ("$${NAME}", "${NAME}"),
        ("$$${NAME}", "$given"),
        ("${TWICE}", "${NAME}"),
        ("$NAME", "$NAME"),
        ('"${NAME}"', "given"),
    ],
)
def test_references_to_variables(value: str, expected: str) -> None:
    text = processor(f"{{otlp_http: {{compression: {value if value[0] == chr(34) else repr(value)}}}}}")
    found = variables(text, NAME="given", EMPTY="", TWICE="${NAME}")
    assert found[f"{TRACES}COMPRESSION"] == expected


def test_an_empty_reference_is_nothing_and_a_number_is_a_number() -> None:
    text = processor("{otlp_http: {endpoint: '${NONE}'}}", "max_queue_size: ${SIZE}")
    assert variables(text, SIZE="5") == {**HTTP, "OTEL_BSP_MAX_QUEUE_SIZE": "5"}


def test_a_value_cannot_become_more_than_a_value() -> None:
    """A newline in a variable must not add keys, says the specification."""
    found = variables("resource: {attributes_list: '${EVIL}'}", EVIL="a=1\ndisabled: true")
    assert "OTEL_SDK_DISABLED" not in found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "1:1: the file is empty\nwrite file_format"),
        ("disabled: true", "1:1: file_format is missing\nwrite file_format"),
        ("file_format: 0.4", "1:14: file_format is 0.4\nstagetrace reads"),
        ("- a", "1:1: there stands a list\nwrite file_format"),
        (f"{FIRST}disabled: [", "3:1: this is not YAML"),
        (f"{FIRST}disabled: true\ndisabled: false", "3:1: 'disabled' stands twice\nfirst in line 2"),
        (f"{FIRST}disabled: perhaps", "2:11: disabled is the text 'perhaps'\nwrite true or false"),
        (f"{FIRST}resource: 5", "2:11: resource is the number 5\nwrite a mapping"),
        (f"{FIRST}resource:\n  attributes:\n    - value: 5", "4:7: resource.attributes[0] has no name\nwrite name:"),
        (f"{FIRST}attribute_limits: {{attribute_count_limit: -1}}", "2:43: attribute_limits.attribute_count_limit is"),
        (f"{FIRST}tracer_provider: {{processors: []}}", "2:31: tracer_provider.processors is a list\nwrite"),
        (f"{FIRST}tracer_provider: {{processors: [batch: ]}}", "has no exporter\nwrite exporter:"),
        (
            f"{FIRST}tracer_provider: {{sampler: {{trace_id_ratio_based: {{ratio: 2}}}}}}",
            "is 2\nwrite a ratio from 0 to 1",
        ),
        (f"{FIRST}tracer_provider: {{sampler: {{a: , b: }}}}", "2:28: tracer_provider.sampler is a mapping\nwrite"),
        (
            f"{FIRST}resource: {{attributes_list: '${{1}}'}}",
            "2:29: '${1}' is no reference to a variable\nwrite ${NAME}",
        ),
        (
            f"{FIRST}distribution:\n  stagetrace:\n    slo: x",
            "4:5: 'slo' is no key of distribution.stagetrace\nwrite sla",
        ),
        (f"{FIRST}distribution:\n  stagetrace:\n    sla: POST /predict", "4:10: sla: "),
        (
            f"{FIRST}distribution:\n  stagetrace:\n    sla:\n      objectives:\n        - within: soon",
            "6:19: within: ",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_place(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read(text, "otel.yaml", {})
    assert message in str(raised.value)
    assert str(raised.value).startswith("cannot use OTEL_CONFIG_FILE: otel.yaml:")
    assert len(str(raised.value).splitlines()) <= 3


@pytest.mark.parametrize(
    ("text", "unused"),
    [
        ("logger_provider: {processors: []}", "logger_provider (line 2)"),
        ("resource: {schema_url: x}", "resource.schema_url (line 2)"),
        (
            "resource: {attributes: [{name: a, value: 5, type: int}]}",
            "resource.attributes[0].type, a is recorded as text",
        ),
        (
            "tracer_provider: {sampler: {jaeger_remote/development: {}}}",
            "tracer_provider.sampler.jaeger_remote/development",
        ),
        (
            "tracer_provider: {sampler: {parent_based: {local_parent_sampled: {always_off: }}}}",
            "tracer_provider.sampler.parent_based.local_parent_sampled",
        ),
        ("tracer_provider: {processors: [another: ]}", "tracer_provider.processors[0].another"),
        ("tracer_provider: {sampler: {always_on: {share: 1}}}", "tracer_provider.sampler.always_on.share"),
        (processor("{zipkin: }"), "tracer_provider.processors[0].batch.exporter.zipkin"),
        (processor("{otlp_http: {encoding: json}}"), "tracer_provider.processors[0].batch.exporter.otlp_http.encoding"),
        (
            "tracer_provider: {processors: [batch: {exporter: {otlp_http: }}, batch: {exporter: {otlp_grpc: }}]}",
            "tracer_provider.processors[1].batch.exporter.otlp_grpc, a second receiver",
        ),
        ("meter_provider: {readers: [pull: {exporter: {prometheus/development: }}]}", "meter_provider.readers[0].pull"),
        ("meter_provider: {views: []}", "meter_provider.views"),
    ],
)
def test_what_is_not_done_is_named(text: str, unused: str) -> None:
    (found,) = read(FIRST + text, "otel.yaml", {}).unused
    assert found.startswith(unused)
    assert "(line " in found


def test_the_official_example_says_the_defaults() -> None:
    """That it names logs, timeouts and instrumentations is all that is not done of it."""
    found = read(OFFICIAL.read_text(), "otel.yaml", {"OTEL_SERVICE_NAME": "shop", "OTEL_BSP_MAX_QUEUE_SIZE": "77"})
    assert found.variables["OTEL_RESOURCE_ATTRIBUTES"] == "service.name=shop"
    assert found.variables["OTEL_BSP_MAX_QUEUE_SIZE"] == "77"
    assert found.variables["OTEL_TRACES_SAMPLER"] == "parentbased_always_on"
    assert found.variables[f"{TRACES}ENDPOINT"] == "http://localhost:4318/v1/traces"
    assert [one.partition(" ")[0].rpartition(".")[2] for one in found.unused] == [
        *("export_timeout", "timeout", "logger_provider", "instrumentation/development"),
    ]


@pytest.mark.parametrize(
    "sla",
    ["'POST /predict within 50ms'", "{objectives: [{match: {route: POST /predict}, within: '${BOUND}'}]}"],
)
def test_objectives_in_both_forms(sla: str) -> None:
    found = read(f"{FIRST}distribution: {{stagetrace: {{sla: {sla}}}}}", "otel.yaml", {"BOUND": "50ms"}).policy
    assert found is not None
    (objective,) = found.applying("POST", "/predict")
    assert objective.within_ns == 50_000_000


@pytest.fixture
def fresh() -> Iterator[None]:
    """Let this process read the file, and its objectives, anew, and not afterwards what the test has read."""
    for cached in (otel_config._of, process._inline, process._file):
        cached.cache_clear()
    yield
    for cached in (otel_config._of, process._inline, process._file):
        cached.cache_clear()


@pytest.mark.usefixtures("fresh")
def test_a_file_is_read_in_place_of_all_other_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "other")
    monkeypatch.setenv("OTEL_PYTHON_EXCLUDED_URLS", "health")
    assert settings.SERVICE_NAME.read() == "other"
    (tmp_path / "otel.yaml").write_text(FIRST + processor("{otlp_http: {endpoint: 'http://c/v1/traces'}}"))
    monkeypatch.setenv("OTEL_CONFIG_FILE", str(tmp_path / "otel.yaml"))
    assert settings.SERVICE_NAME.read() == ""
    assert settings.excluded_urls(["ASGI"]) == (["OTEL_PYTHON_EXCLUDED_URLS"], "")
    assert settings.endpoint() == "http://c/v1/traces"
    assert settings.exporters("TRACES", "otlp") == ["otlp_proto_http"]
    assert "OTEL_SERVICE_NAME" not in settings.otel_variables()


@pytest.mark.usefixtures("fresh")
def test_objectives_of_a_variable_win(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "otel.yaml").write_text(f"{FIRST}distribution: {{stagetrace: {{sla: '* within 1s'}}}}")
    monkeypatch.setenv("OTEL_CONFIG_FILE", str(tmp_path / "otel.yaml"))
    assert process.objectives_text() == "* within 1s"
    process._inline.cache_clear()
    monkeypatch.setenv("STAGETRACE_SLA", "* within 2s")
    assert process.objectives_text() == "* within 2s"
    assert "STAGETRACE_SLA is used, and not the objectives in the file" in capsys.readouterr().err


@pytest.mark.usefixtures("fresh")
def test_a_fault_of_ours_switches_recording_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "otel.yaml").write_text(FIRST)
    monkeypatch.setenv("OTEL_CONFIG_FILE", str(tmp_path / "otel.yaml"))

    def fail(*_: Any) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(otel_config, "read", fail)
    assert settings.SDK_DISABLED.read() == "true"
    assert settings.OTEL_DISABLED.read() == ["*"]
    assert "This is a fault of stagetrace" in capsys.readouterr().err


def test_json_is_read_without_pyyaml(tmp_path: Path) -> None:
    """A file in YAML then needs the package, and the error says so."""
    for name, text in (("otel.json", '{"file_format": "1.0", "disabled": true}'), ("otel.yaml", FIRST)):
        (tmp_path / name).write_text(text)
        code = "import sys; sys.modules['yaml'] = None; from stagetrace import settings; print(settings.otel())"
        done = run_python("-c", code, OTEL_CONFIG_FILE=str(tmp_path / name))
        assert "'OTEL_SDK_DISABLED': 'true'" in done.stdout
        assert ("`pip install pyyaml`" in done.stderr) == (name == "otel.yaml")


def test_the_example_of_the_docs_is_done_as_a_whole() -> None:
    text = re.findall(r"^```yaml\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)[0]
    found = read(text, "otel.yaml", {"TENANT": "one"})
    assert found.unused == ()
    assert found.policy is not None
    assert found.variables["OTEL_RESOURCE_ATTRIBUTES"] == "service.name=shop"
    assert found.variables[f"{TRACES}HEADERS"] == "x-tenant=one"
    assert found.variables["OTEL_TRACES_SAMPLER"] == "parentbased_traceidratio"


# --- Services.


def config(sink: Sink, more: str = "", sampler: str = "parent_based") -> str:
    return f"""
file_format: "1.0"
resource:
  attributes:
    - {{name: service.name, value: of-file}}
propagator: {{composite_list: "tracecontext,baggage"}}
tracer_provider:
  sampler: {{{sampler}: }}
  limits: {{attribute_value_length_limit: 5}}
  processors:
    - batch:
        schedule_delay: 50
        exporter: {{otlp_grpc: {{endpoint: "{sink.endpoint}", headers_list: "tenant=one"}}}}
{more}
meter_provider:
  readers:
    - periodic: {{interval: 100, exporter: {{otlp_grpc: {{endpoint: "{sink.endpoint}"}}}}}}
distribution:
  stagetrace:
    sla: "* within 1m"
"""


CONSOLE = "    - simple: {exporter: {console: }}"
OTHERS = {
    "STAGETRACE": "1",
    "STAGETRACE_STATUS": "0",
    "OTEL_SERVICE_NAME": "of-variable",
    "OTEL_TRACES_EXPORTER": "none",
    "OTEL_TRACES_SAMPLER": "always_off",
    "OTEL_PROPAGATORS": "none",
    "OTEL_RESOURCE_ATTRIBUTES": "a=b",
}


@pytest.mark.usefixtures("services")
@pytest.mark.parametrize("more", ["", CONSOLE], ids=["alone", "with an SDK"])
def test_a_service_is_recorded_as_the_file_says(more: str, sink: Sink, tmp_path: Path) -> None:
    """The console's exporter is the SDK's, which reads the variables itself where it is not given the values."""
    (tmp_path / "otel.yaml").write_text(config(sink, more))
    env = {**OTHERS, "OTEL_CONFIG_FILE": str(tmp_path / "otel.yaml")}
    with run_service(tmp_path, "any_bare", env=env) as service:
        trace_id, response = service.call("GET", "/some/path")
        assert response.status_code == 200
        request = sink.request(trace_id)
        assert sink.wait_for(lambda _: bool(sink.metrics))
    assert request.entry.attributes["sla.verdict"] == "good"
    assert request.entry.attributes["url.path"] == "/some"  # as long as the file allows
    assert request.entry.service == "of-file"
    assert "judging by: * within 1m" in service.log
    assert "which are ignored" in service.log
    assert ('"name"' in service.log) == bool(more)


@pytest.mark.usefixtures("services")
def test_without_propagators_a_trace_begins_here(sink: Sink, tmp_path: Path) -> None:
    (tmp_path / "otel.yaml").write_text(config(sink).replace('"tracecontext,baggage"', '"baggage"'))
    env = {**OTHERS, "OTEL_CONFIG_FILE": str(tmp_path / "otel.yaml")}
    with run_service(tmp_path, "any_bare", env=env) as service:
        trace_id, _ = service.call("GET", "/")
        spans = sink.wait_for(lambda all_: any(one.service == "of-file" for one in all_))
    assert trace_id not in {one.trace_id for one in spans}


@pytest.mark.usefixtures("services")
@pytest.mark.parametrize(
    ("text", "logged"),
    [
        (f"{FIRST}disabled: [", "otel.yaml:3:1: this is not YAML"),
        (None, "No such file or directory"),
        (f"{FIRST}disabled: true", "has disabled: true."),
    ],
    ids=["wrong", "missing", "disabled"],
)
def test_a_service_starts_as_if_untraced(text: str | None, logged: str, sink: Sink, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "otel.yaml").write_text(text)
    env = {**sink.environment(STAGETRACE_STATUS="0"), "OTEL_CONFIG_FILE": str(tmp_path / "otel.yaml")}
    with run_service(tmp_path, "any_bare", env=env) as service:
        trace_id, response = service.call("GET", "/")
        assert response.status_code == 200
        service.stop()
    assert service.log.count(logged) == 1
    assert service.log.count("records nothing in process") == 1
    assert trace_id not in sink.traces()
    assert "Traceback" not in service.log


def test_doctor_shows_the_file(tmp_path: Path) -> None:
    def checks(text: str) -> dict[str, Any]:
        (tmp_path / "otel.yaml").write_text(text)
        env = {"STAGETRACE_STATUS": "0", "OTEL_CONFIG_FILE": str(tmp_path / "otel.yaml")}
        done = run_python("-m", "stagetrace.cli.main", "doctor", "--json", **env)
        return {check["name"]: check for check in json.loads(done.stdout)["checks"]}

    headers = "{otlp_http: {endpoint: 'http://127.0.0.1:9/v1/traces', timeout: 500, headers_list: key=hidden}}"
    found = checks(
        FIRST + processor(headers) + "distribution: {stagetrace: {sla: '* within 1s'}}\nlogger_provider: {}\n"
    )
    assert "otel.yaml says " in found["settings"]["found"]
    assert f"{TRACES}ENDPOINT=http://127.0.0.1:9/v1/traces" in found["settings"]["found"]
    assert "key=hidden" not in found["settings"]["found"]
    assert "not done: logger_provider (line " in found["settings"]["found"]
    assert found["policy"]["found"].endswith("otel.yaml: * within 1s for 99% over 28d")
    assert "http://127.0.0.1:9/v1/traces" in found["endpoint"]["found"]
    found = checks(f"{FIRST}disabled: [")
    assert found["settings"]["state"] == "fail"
    assert "otel.yaml:3:1: this is not YAML" in found["settings"]["found"]


def test_nothing_is_imported_without_the_variable() -> None:
    code = "import sys; from stagetrace.settings import SERVICE_NAME as name; print(name.read(), *sys.modules)"
    loaded = run_python("-c", code).stdout.split()
    assert "stagetrace.settings" in loaded
    assert otel_config.__name__ not in loaded
