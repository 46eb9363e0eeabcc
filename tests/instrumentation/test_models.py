"""scikit-learn, xgboost, lightgbm, onnxruntime: one inference a request, with the responses of an untraced run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest

from backends import free_port
from services import Service, run_service
from sink import Sink, assert_tiled, run_sink

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("services")

EXPECTED = {
    "logistic": ("LogisticRegression", "sklearn", 5),
    "logistic-proba": ("LogisticRegression", "sklearn", 5),
    "regression": ("LinearRegression", "sklearn", 5),
    "forest-parallel": ("RandomForestClassifier", "sklearn", 5),
    "stacking": ("StackingClassifier", "sklearn", 5),
    "kmeans": ("KMeans", "sklearn", 5),
    "neighbors": ("NearestNeighbors", "sklearn", 5),
    "one-class": ("OneClassSVM", "sklearn", 5),
    "available-if": ("SGDClassifier", "sklearn", 5),
    "pipeline": ("LogisticRegression", "sklearn", 5),
    "columns": ("LogisticRegression", "sklearn", 5),
    "grid-search": ("LogisticRegression", "sklearn", 5),
    "transformer": ("PCA", "sklearn", 4_000_000),
    "transformers": ("PCA", "sklearn", 4_000_000),
    "distances": ("KMeans", "sklearn", 1_000_000),
    "own-transformer": ("Embedder", "sklearn", 2),
    "scaled-logistic": ("LogisticRegression", "sklearn", 5),
    "scaled-xgboost": ("Booster", "xgboost", 5),
    "mixin": ("FromMixin", "sklearn", 5),
    "overrides": ("Overrides", "sklearn", 5),
    "late-class": ("DefinedInTheRequest", "sklearn", 5),
    "raises": ("Lonely", "sklearn", 5),
    "xgboost": ("XGBClassifier", "xgboost", 5),
    "xgboost-booster": ("Booster", "xgboost", 5),
    "xgboost-inplace": ("Booster", "xgboost", 5),
    "lightgbm": ("LGBMClassifier", "lightgbm", 5),
    "lightgbm-booster": ("Booster", "lightgbm", 5),
    "onnx-keywords": (None, "onnxruntime", 5),
    "onnx": (None, "onnxruntime", 5),
    "onnx-async": (None, "onnxruntime", 5),
    "onnx-iobinding": (None, "onnxruntime", None),
    "onnx-own-values": (None, "onnxruntime", None),
    "onnx-raises": (None, "onnxruntime", None),
}
# Of what is in none of these, nobody can know that it is a model; nor is there one behind each transform.
OWN_MODEL = ("scaled-own", "own-scaler-own", "embedded-own", "decoded-own", "any-function")
NO_MODEL = (*OWN_MODEL, "scaler", "columns-alone", "union", "imputer", "selector", "vectors")


@pytest.fixture(scope="module")
def sink() -> Iterator[Sink]:
    with run_sink() as running:
        yield running


def environment(sink: Sink) -> dict[str, str]:
    return {"STAGETRACE": "1", "OTEL_EXPORTER_OTLP_ENDPOINT": sink.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "50"}


@pytest.fixture(scope="module")
def control() -> str:
    """Return the URL by which parts of stagetrace are broken and mended in the traced service."""
    return f"http://127.0.0.1:{free_port()}"


@pytest.fixture(scope="module")
def traced(sink: Sink, control: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    env = {
        **environment(sink),
        "STAGETRACE_SLA": "GET /in-task/{name} within 0.001ms",
        "APP": "models",
        "CONTROL": control.rpartition(":")[2],
    }
    with run_service(tmp_path_factory.mktemp("traced"), "controlled", env=env) as running:
        yield running


@pytest.fixture(scope="module")
def untraced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with run_service(tmp_path_factory.mktemp("untraced"), "models") as running:
        yield running


@pytest.mark.parametrize("case", EXPECTED)
@pytest.mark.parametrize("path", ["/case", "/in-task"])
def test_one_inference_of_the_outermost_model(
    case: str, path: str, traced: Service, untraced: Service, sink: Sink
) -> None:
    trace_id, response = traced.call("GET", f"{path}/{case}")
    assert response.content == untraced.call("GET", f"{path}/{case}")[1].content
    request = sink.request(trace_id)
    assert_tiled(request)
    inferences = [stage for stage in request.stages if stage.name == "inference"]
    assert len(inferences) == 1
    name, framework, rows = EXPECTED[case]
    attributes = inferences[0].attributes
    assert attributes["ml.framework"] == framework
    assert attributes.get("ml.batch.size") == rows
    assert attributes["ml.model.name"] == name if name else attributes["ml.model.name"]


@pytest.mark.parametrize("case", NO_MODEL)
@pytest.mark.parametrize("path", ["/case", "/in-task"])
def test_a_transform_is_no_model_and_none_is_guessed(
    case: str, path: str, traced: Service, untraced: Service, sink: Sink
) -> None:
    """What prepares data is never the inference, nor is what more time follows in which nothing was marked."""
    trace_id, response = traced.call("GET", f"{path}/{case}")
    assert response.content == untraced.call("GET", f"{path}/{case}")[1].content
    request = sink.request(trace_id)
    assert_tiled(request)
    assert {stage.name for stage in request.stages} <= {"queue", "handler", "network.send"}
    entry = request.entry.attributes
    for said in (entry, *(stage.attributes for stage in request.stages if stage.name == "handler")):
        assert said["ml.model.recognised"] is False
    assert not {"ml.model.name", "ml.framework", "ml.cold_start"} & entry.keys()
    if path == "/in-task" and case in OWN_MODEL:
        assert entry["sla.breach.stage"] == "handler"
        assert entry["sla.breach.evidence"].endswith("; no model was recognised")


def test_a_recognised_model_and_a_request_without_one_log_nothing(traced: Service, sink: Sink) -> None:
    for path in ("/in-task/scaled-logistic", "/health"):
        entry = sink.request(traced.call("GET", path)[0]).entry.attributes
        assert "ml.model.recognised" not in entry
        assert "recognised" not in entry.get("sla.breach.evidence", "")


def test_a_missing_method_stays_missing(traced: Service, untraced: Service) -> None:
    """`hasattr` answers as before, where scikit-learn offers a method on some instances only."""
    for service in (traced, untraced):
        assert service.call("GET", "/case/not-available")[1].json() == [False]


def test_each_case_of_the_app_is_tested(untraced: Service) -> None:
    assert set(untraced.call("GET", "/cases")[1].json()) == {*EXPECTED, *NO_MODEL, "not-available"}


def test_a_description_that_fails_is_logged_once_and_changes_no_response(
    traced: Service, untraced: Service, control: str
) -> None:
    before = len(traced.log)
    httpx.get(f"{control}/break/stagetrace.instrumentation.models.boosting:description").raise_for_status()
    try:
        for case in ("xgboost-booster", "lightgbm-booster", "xgboost"):
            expected = untraced.call("GET", f"/case/{case}")[1].content
            assert [traced.call("GET", f"/case/{case}")[1].content for _ in range(12)] == [expected] * 12
    finally:
        httpx.get(f"{control}/mend").raise_for_status()
    log = traced.log[before:]
    assert log.count("injected fault") == 1
    assert log.count("failed 10 times: its patch is switched off") == 1


@pytest.mark.smoke
def test_a_model_of_onnxruntime_is_one_inference(sink: Sink, tmp_path: Path) -> None:
    """As above, without the time that it takes to import the other libraries."""
    with run_service(tmp_path, "negative", env=environment(sink)) as service:
        trace_id, response = service.call("GET", "/negative")
        assert response.json() == [[-1.0] * 4] * 5
        request = sink.request(trace_id)
    assert_tiled(request)
    (inference,) = [stage.attributes for stage in request.stages if stage.name == "inference"]
    assert (inference["ml.framework"], inference["ml.batch.size"]) == ("onnxruntime", 5)
