"""Libraries too large for `make test`: one inference a call, described, with the responses of an untraced run."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import pytest

from environments import interpreter_with
from services import Service, run_service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sink import Sink

pytestmark = [
    *(pytest.mark.usefixtures("services"), pytest.mark.heavy),
    pytest.mark.xdist_group("large libraries"),  # each application is started once, one at a time
]

READY_WITHIN_S = 300  # importing these takes a minute on a cold disk
DEEP = ("torch", "transformers", "sentence-transformers", "catboost")
# By application, what it needs besides FastAPI.
NEEDS = {
    "deep": DEEP,
    "torch_models": DEEP,
    "torch_package": DEEP,
    "jax_models": ("jax", "keras"),
    "keras_tensorflow": ("tensorflow-cpu", "keras", "tf-keras", "ai-edge-litert"),
    "uncommon": ("prophet", "fasttext", "hnswlib", "tl2cgen", "treelite", "scikit-learn"),
}
SAMPLE = ("deep", "torch_models")
NET = ("Net", "torch", 3)
# Of each application's cases what its one inference says: the model, its framework, how many rows.
EXPECTED: dict[str, dict[str, tuple[str, str, int | None] | None]] = {
    "deep": {
        **dict.fromkeys(("module", "keywords", "compiled", "scripted", "traced", "symbolic"), NET),
        **dict.fromkeys(("parallel", "between", "raises", "scaled"), NET),
        "exported": ("GraphModule", "torch", 3),
        "no-parameter": ("Distance", "torch", 3),
        "listed": ("listed", "torch", 3),
        "transformer": ("BertForSequenceClassification", "torch", 2),
        "classification": ("classifier", "torch", 2),
        "generation": ("GPT2LMHeadModel", "torch", 1),
        "generation-pipeline": ("GPT2LMHeadModel", "torch", 1),
        "sentences": ("sentences", "sentence_transformers", 2),
        "catboost": ("CatBoostClassifier", "catboost", 3),
        "catboost-pool": ("CatBoostRegressor", "catboost", 3),
        # To torch.compile a function is no model, whatever it calls.
        **dict.fromkeys(("scaled-function", "function", "compiled-function"), None),
    },
    "torch_models": {
        **dict.fromkeys(("module", "gradients", "hooks", "copied", "pickled", "saved", "parallel"), NET),
        **dict.fromkeys(("script-loaded", "script-frozen", "compiled-in-place"), NET),
        "slow": ("Slow", "torch", 3),
        "dropout": ("Dropped", "torch", 3),  # in training mode, without gradients
        "around": ("Sequential", "torch", 3),  # in training mode, around one that is not
        "exported": ("GraphModule", "torch", 3),
        **dict.fromkeys(("own-call", "compiled-own-call"), ("OwnCall", "torch", 3)),
        "instrumented-function": ("scored", "torch", 3),
        "recursive": ("Recursive", "torch", 3),
        **dict.fromkeys(("training", "training-on-frozen", "signature"), None),
        "breaks": None,
    },
    "torch_package": {
        "package": ("net.pt2", "torch", 3),
        "package-copied": ("AOTICompiledModel", "torch", 3),
    },
    "jax_models": {
        **dict.fromkeys(("instrumented", "instrumented-first", "ready", "raises"), ("dense", "jax", 3)),
        **dict.fromkeys(("keras-call", "keras-predict"), ("flowers", "keras", 3)),
        "jitted": None,
    },
    "keras_tensorflow": {
        **dict.fromkeys(("call", "predict", "predict-on-batch", "layer-first", "raises"), ("flowers", "keras", 3)),
        **dict.fromkeys(("several-inputs", "named-inputs"), ("both", "keras", 3)),
        **dict.fromkeys(("own", "own-predict", "compiled"), ("own", "keras", 3)),
        **dict.fromkeys(("old", "old-call"), ("old", "keras", 3)),
        **dict.fromkeys(("restored", "restored-function", "signature", "restored-raises"), ("plain", "tensorflow", 3)),
        "served": ("flowers", "tensorflow", 3),
        "lite": ("small.tflite", "tflite", None),
        "lite-content": ("Interpreter", "tflite", None),
        "lite-signature": ("small.tflite", "tflite", 3),
        "litert": ("small.tflite", "litert", None),
        **dict.fromkeys(("layer", "function", "models-in-a-function"), None),  # nor is it to tf.function
    },
    "uncommon": {
        **dict.fromkeys(("prophet", "prophet-copied"), ("Prophet", "prophet", 4)),
        "prophet-raises": ("Prophet", "prophet", 30),
        **dict.fromkeys(("fasttext", "fasttext-vector"), ("FastText", "fasttext", None)),
        "fasttext-list": ("FastText", "fasttext", 2),
        "fasttext-word": None,
        "hnswlib": ("Index", "hnswlib", 5_000),
        "hnswlib-after-model": ("LinearRegression", "sklearn", 3),
        "tl2cgen": ("Predictor", "tl2cgen", 5),
    },
}
BROKEN = [
    ("deep", "stagetrace.patches.torch:_is_model", ("module", "compiled", "raises", "generation")),
    ("deep", "stagetrace.patches.torch:description", ("module", "compiled", "raises", "generation")),
    (
        "torch_models",
        "stagetrace.patches.torch:_is_trained",
        ("gradients", "around", "training", "exported"),
    ),
    (
        "torch_models",
        "stagetrace.patches.torch:device_of",
        ("module", "hooks", "own-call", "compiled-in-place"),
    ),
    (
        "keras_tensorflow",
        "stagetrace.instrumentation.models.eager:_is_tracing",
        ("call", "named-inputs", "own", "layer-first"),
    ),
    (
        "keras_tensorflow",
        "stagetrace.patches.tensorflow:description",
        ("restored", "signature", "lite", "restored-raises"),
    ),
    (
        "keras_tensorflow",
        "stagetrace.instrumentation.models.base:description",
        ("call", "predict", "several-inputs", "raises"),
    ),
    ("uncommon", "stagetrace.instrumentation.models.base:description", ("prophet", "prophet-copied", "prophet-raises")),
]


class Both(NamedTuple):
    """One application, twice."""

    name: str
    argv: list[str]
    traced: Service
    untraced: Service


@pytest.fixture(scope="module")
def both(request: pytest.FixtureRequest, sink: Sink, folder: Path) -> Iterator[Both]:
    name = request.param
    argv = [interpreter_with((*NEEDS[name], "fastapi", "uvicorn")), "-m", "uvicorn", f"{name}:app", "--port", "{port}"]
    env = sink.environment()
    with (
        run_service(folder, argv=argv, env=env, within_s=READY_WITHIN_S) as traced,
        run_service(folder, argv=argv, within_s=READY_WITHIN_S) as untraced,
    ):
        yield Both(name, argv, traced, untraced)
        assert "fault of stagetrace" not in traced.log


CASES = [(app, case) for app in EXPECTED for case in EXPECTED[app]]


@pytest.mark.parametrize(
    ("both", "case"),
    [pytest.param(*one, marks=[pytest.mark.sample] if one[0] in SAMPLE else []) for one in CASES],
    indirect=["both"],
)
def test_one_inference_of_the_outermost_model(case: str, both: Both, sink: Sink) -> None:
    trace_id, response = both.traced.call("GET", f"/case/{case}")
    assert response.status_code == 200
    assert response.content == both.untraced.call("GET", f"/case/{case}")[1].content
    request = sink.tiled(trace_id)
    inferences = [stage.attributes for stage in request.stages if stage.name == "inference"]
    found = [tuple(map(one.get, ("ml.model.name", "ml.framework", "ml.batch.size"))) for one in inferences]
    expected = EXPECTED[both.name][case]
    assert found == ([expected] if expected else [])


@pytest.mark.parametrize("both", ["deep"], indirect=True)
def test_a_tokenizer_is_preprocessing_and_what_follows_the_model_is_not(both: Both, sink: Sink) -> None:
    trace_id, _ = both.traced.call("GET", "/case/classification")
    names = sink.request(trace_id).names
    at = names.index("inference")
    assert (names[at - 1], names[at + 1]) == ("preprocess", "postprocess")


@pytest.mark.parametrize("both", ["torch_models"], indirect=True)
def test_what_is_known_of_a_call(both: Both, sink: Sink) -> None:
    known = {
        "ml.model.name": "Net",
        "ml.framework": "torch",
        "ml.device": "cpu",
        "ml.batch.size": 3,
        "ml.input.size": 12,
    }
    trace_id, _ = both.traced.call("GET", "/case/module")
    request = sink.tiled(trace_id)
    at = request.names.index("inference")
    assert (request.names[at - 1], request.names[at + 1]) == ("preprocess", "postprocess")
    for span in (request.entry, request.stages[at]):
        found = {name: value for name, value in span.attributes.items() if name.startswith("ml.")}
        found = {name: value for name, value in found.items() if not name.startswith("ml.stage")}
        found.pop("ml.cold_start", None)  # of the first call
        assert found == known


@pytest.mark.parametrize("both", ["torch_models"], indirect=True)
def test_requests_at_once_have_one_inference_each(both: Both, sink: Sink) -> None:
    with ThreadPoolExecutor(8) as pool:
        traces = list(pool.map(lambda _: both.traced.call("GET", "/case/slow")[0], range(16)))
    for trace_id in traces:
        request = sink.tiled(trace_id)
        (inference,) = (stage for stage in request.stages if stage.name == "inference")
        assert inference.end - inference.start >= 50_000_000  # it sleeps
        assert inference.attributes["ml.model.name"] == "Slow"


@pytest.mark.parametrize("both", ["keras_tensorflow"], indirect=True)
@pytest.mark.parametrize(("case", "version"), [("served", "7"), ("restored", None)])
def test_the_folder_of_a_saved_model_has_its_version(case: str, version: str | None, both: Both, sink: Sink) -> None:
    trace_id, _ = both.traced.call("GET", f"/case/{case}")
    request = sink.request(trace_id)
    (inference,) = (stage.attributes for stage in request.stages if stage.name == "inference")
    assert inference.get("ml.model.version") == request.entry.attributes.get("ml.model.version") == version


@pytest.mark.parametrize(("both", "part", "cases"), BROKEN, indirect=["both"])
def test_an_injected_fault_is_logged_once_and_changes_no_response(
    part: str, cases: tuple[str, ...], both: Both, tmp_path: Path
) -> None:
    env = {"STAGETRACE": "1", "APP": both.name, "BREAK": part}
    with run_service(
        tmp_path, argv=[one.replace(both.name, "broken") for one in both.argv], env=env, within_s=READY_WITHIN_S
    ) as service:
        for case in cases:
            assert [service.call("GET", f"/case/{case}")[1].content for _ in range(4)] == [
                both.untraced.call("GET", f"/case/{case}")[1].content
            ] * 4
        assert service.log.count("injected fault") == 1
        assert service.log.count("failed 10 times: its patch is switched off") == 1


@pytest.mark.parametrize("both", EXPECTED, indirect=True)
def test_each_case_of_the_app_is_tested(both: Both) -> None:
    assert set(both.untraced.call("GET", "/cases")[1].json()) == set(EXPECTED[both.name])
