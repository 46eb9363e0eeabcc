"""scikit-learn, xgboost, lightgbm, onnxruntime: one inference a request, with the responses of an untraced run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest

from backends import free_port
from services import Service, run_service
from trees import at_its_best

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sink import Received, Request, Sink

pytestmark = pytest.mark.usefixtures("services")

EXPECTED = {
    **dict.fromkeys(("logistic", "logistic-proba", "pipeline"), ("LogisticRegression", "sklearn", 5)),
    **dict.fromkeys(("columns", "grid-search", "scaled-logistic"), ("LogisticRegression", "sklearn", 5)),
    "regression": ("LinearRegression", "sklearn", 5),
    "forest-parallel": ("RandomForestClassifier", "sklearn", 5),
    "stacking": ("StackingClassifier", "sklearn", 5),
    "kmeans": ("KMeans", "sklearn", 5),
    "neighbors": ("NearestNeighbors", "sklearn", 5),
    "one-class": ("OneClassSVM", "sklearn", 5),
    "available-if": ("SGDClassifier", "sklearn", 5),
    **dict.fromkeys(("transformer", "transformers"), ("PCA", "sklearn", 4_000_000)),
    "distances": ("KMeans", "sklearn", 1_000_000),
    "own-transformer": ("Embedder", "sklearn", 2),
    "mixin": ("FromMixin", "sklearn", 5),
    "overrides": ("Overrides", "sklearn", 5),
    "late-class": ("DefinedInTheRequest", "sklearn", 5),
    "raises": ("Lonely", "sklearn", 5),
    "xgboost": ("XGBClassifier", "xgboost", 5),
    **dict.fromkeys(("xgboost-booster", "xgboost-inplace", "scaled-xgboost"), ("Booster", "xgboost", 5)),
    "lightgbm": ("LGBMClassifier", "lightgbm", 5),
    "lightgbm-booster": ("Booster", "lightgbm", 5),
    # Made from bytes: it has the name of its graph.
    **dict.fromkeys(
        ("onnx", "onnx-keywords", "onnx-async", "onnx-iobinding"), ("ONNX(LogisticRegression)", "onnxruntime", 5)
    ),
    **dict.fromkeys(("onnx-bound-value", "onnx-own-values"), ("ONNX(LogisticRegression)", "onnxruntime", 5)),
    "onnx-raises": ("ONNX(LogisticRegression)", "onnxruntime", None),
    "xgboost-own": ("OwnXgboost", "xgboost", 5),
    "lightgbm-own": ("OwnLightgbm", "lightgbm", 5),
}
# Of what is in none of these, nobody can know that it is a model; nor is there one behind each transform.
OWN_MODEL = ("scaled-own", "own-scaler-own", "embedded-own", "decoded-own", "any-function")
NO_MODEL = (*OWN_MODEL, "matrix", "scaler", "columns-alone", "union", "imputer", "selector", "vectors")


@pytest.fixture(scope="module")
def control() -> str:
    """Return the URL by which parts of stagetrace are broken and mended in the traced service."""
    return f"http://127.0.0.1:{free_port()}"


@pytest.fixture(scope="module")
def traced(sink: Sink, control: str, folder: Path) -> Iterator[Service]:
    sla = "GET /in-task/{name} within 0.001ms"
    env = sink.environment(STAGETRACE_SLA=sla, APP="models", CONTROL=control.rpartition(":")[2])
    with run_service(folder, "controlled", env=env) as running:
        yield running


@pytest.fixture(scope="module")
def untraced(folder: Path) -> Iterator[Service]:
    with run_service(folder, "models") as running:
        yield running


@pytest.fixture(params=["/case", "/in-task"])
def path(request: pytest.FixtureRequest) -> str:
    """Return where a case runs: in its handler, or in a task that the handler awaits."""
    return str(request.param)


@pytest.fixture
def record(case: str, path: str, traced: Service, untraced: Service, sink: Sink) -> Callable[[], Request]:
    """Give a function that returns what is recorded of a case, which answers as untraced."""

    def call() -> Request:
        request, response = sink.traced(traced, "GET", f"{path}/{case}")
        assert response.content == untraced.call("GET", f"{path}/{case}")[1].content
        return request

    return call


@pytest.fixture
def recorded(record: Callable[[], Request]) -> Request:
    return record()


@pytest.mark.parametrize("case", EXPECTED)
def test_one_inference_of_the_outermost_model(case: str, record: Callable[[], Request]) -> None:
    """A transform is one where it takes most of the request, which may wait for a CPU elsewhere."""
    found: list[Received] = []

    def count() -> int:
        found[:] = [stage for stage in record().stages if stage.name == "inference"]
        return len(found)

    assert at_its_best(count, 1) == 1
    (inference,) = found
    name, framework, rows = EXPECTED[case]
    attributes = inference.attributes
    assert attributes["ml.framework"] == framework
    assert attributes.get("ml.batch.size") == rows
    assert attributes["ml.model.name"] == name
    assert attributes.get("ml.device") == ("cpu" if framework == "onnxruntime" else None)


@pytest.mark.parametrize("case", NO_MODEL)
def test_a_transform_is_no_model_and_none_is_guessed(case: str, path: str, recorded: Request) -> None:
    """What prepares data is never the inference, nor is what more time follows in which nothing was marked."""
    assert {stage.name for stage in recorded.stages} <= {"queue", "handler", "network.send"}
    entry = recorded.entry.attributes
    for said in (entry, *(stage.attributes for stage in recorded.stages if stage.name == "handler")):
        assert said["ml.model.recognised"] is False
    assert not {"ml.model.name", "ml.framework", "ml.cold_start"} & entry.keys()
    if path == "/in-task" and case in OWN_MODEL:
        assert entry["sla.breach.stage"] == "handler"
        assert entry["sla.breach.evidence"].partition("; no model was recognised")[1]


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


def test_a_description_that_fails_is_logged_once_a_library_and_changes_no_response(
    traced: Service, untraced: Service, control: str
) -> None:
    before = len(traced.log)
    httpx.get(f"{control}/break/stagetrace.instrumentation.models.base:description").raise_for_status()
    try:
        for case in ("xgboost-booster", "lightgbm-booster", "xgboost"):
            expected = untraced.call("GET", f"/case/{case}")[1].content
            assert [traced.call("GET", f"/case/{case}")[1].content for _ in range(12)] == [expected] * 12
    finally:
        httpx.get(f"{control}/mend").raise_for_status()
    log = traced.log[before:]
    for patch in ("xgboost", "lightgbm"):
        assert log.count(f"stagetrace.patches.{patch} failed (RuntimeError: injected fault)") == 1
        assert log.count(f"stagetrace.patches.{patch} failed 10 times: its patch is switched off") == 1
    assert log.count("injected fault") == 2


@pytest.mark.smoke
def test_a_model_of_onnxruntime_is_one_inference(sink: Sink, tmp_path: Path) -> None:
    """As above, without the time that it takes to import the other libraries."""
    with run_service(tmp_path, "negative", env=sink.environment()) as service:
        request, response = sink.traced(service, "GET", "/negative")
    assert response.json() == [[-1.0] * 4] * 5
    (inference,) = [stage.attributes for stage in request.stages if stage.name == "inference"]
    assert (inference["ml.framework"], inference["ml.batch.size"]) == ("onnxruntime", 5)
