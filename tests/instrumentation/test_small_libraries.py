"""Small model libraries: the spans of each call, with the responses of an untraced run, in one environment."""

from __future__ import annotations

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import pytest

from backends import free_port
from environments import interpreter_once
from libraries_page import versions
from services import APPS, Service, clean_environment, run_service

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sink import Request, Sink

pytestmark = [pytest.mark.usefixtures("services"), pytest.mark.xdist_group("small libraries")]

PACKAGES = (
    *("faiss-cpu", "fastembed", "gensim", "implicit", "model2vec", "onnxruntime", "openvino", "river", "spacy"),
    *("statsmodels", "treelite"),
)
REQUIREMENTS = (*(f"{name}=={versions()[name]}" for name in PACKAGES), "fastapi", "onnx", "uvicorn")


WHOLE = ["preprocess", "inference", "postprocess", "network.send"]
NO_MODEL = ["handler", "network.send"]


def said(framework: str, name: str, batch: int | None = None, size: int | None = None, **more: Any) -> dict[str, Any]:
    """Return what the stage of an inference has of its model and its input."""
    sizes = {name: value for name, value in (("ml.batch.size", batch), ("ml.input.size", size)) if value is not None}
    return {"ml.model.name": name, "ml.framework": framework, **sizes, **{f"ml.{k}": v for k, v in more.items()}}


SMALL: dict[str, Any] = {"model.version": "1.2"}
OLS = said("statsmodels", "OLS", 5, 15)
DOUBLER = said("openvino", "doubler", 5, 15, device="cpu")
TINY = said("model2vec", "tiny", 2, 19)
LOOKUP = said("fastembed", "own/lookup", 2, 19)
RIVER = {name: said("river", name, 1, 3) for name in ("LogisticRegression", "ARFClassifier", "HalfSpaceTrees", "Own")}
ALS = said("implicit", "AlternatingLeastSquares")
TREE = said("treelite", "Model", 5, 15)
# Of each case the inferences, each with its model and input, in order: a generator has one for each of its steps, and
# one for its end.
EXPECTED: dict[str, tuple[dict[str, Any], ...]] = {
    "spacy": (said("spacy", "en_small", None, 22, **SMALL),),
    "spacy-doc": (said("spacy", "en_small", **SMALL),),
    "spacy-pipe": (said("spacy", "en_small", 2, 19, **SMALL),) * 3,
    "spacy-left": (said("spacy", "en_small", 2, 19, **SMALL),),
    **dict.fromkeys(("spacy-unnamed", "spacy-copied"), (said("spacy", "xx_pipeline", None, 3),)),
    "spacy-raises": (said("spacy", "en_pipeline", None, 3),),
    **dict.fromkeys(("statsmodels-ols", "statsmodels-prediction", "statsmodels-own", "statsmodels-pickled"), (OLS,)),
    "statsmodels-glm": (said("statsmodels", "GLM", 5, 15),),
    "statsmodels-arima": (said("statsmodels", "ARIMA"),),
    "statsmodels-smoothing": (said("statsmodels", "ExponentialSmoothing"),),
    "statsmodels-theta": (said("statsmodels", "ThetaModel"),),
    "statsmodels-var": (said("statsmodels", "VAR"),),
    "statsmodels-raises": (said("statsmodels", "OLS", 5, 10),),
    **dict.fromkeys(("openvino-call", "openvino-named", "openvino-new", "openvino-infer"), (DOUBLER,)),
    **dict.fromkeys(("openvino-callback", "openvino-wait", "openvino-plain-queue"), (DOUBLER,)),
    "openvino-queue": (DOUBLER,),  # of three at once
    **dict.fromkeys(("openvino-raises", "openvino-start-raises"), (DOUBLER,)),
    **dict.fromkeys(("model2vec", "model2vec-sequence", "model2vec-copied"), (TINY,)),
    "model2vec-text": (said("model2vec", "tiny", None, 10),),
    "model2vec-own": (said("model2vec", "OwnStatic", 2, 19),),
    "fastembed": (LOOKUP,) * 3,
    "fastembed-query": (said("fastembed", "own/lookup", None, 10),) * 2,
    "fastembed-left": (LOOKUP,),
    "faiss": (said("faiss", "IndexFlatL2", 2000, 128_000),),
    "faiss-clusters": (said("faiss", "IndexIVFFlat", 2000, 128_000),),
    "faiss-after-model": (TINY,),  # the search is part of `postprocess`
    "faiss-raises": (),
    "river": (RIVER["LogisticRegression"],) * 2,
    **dict.fromkeys(("river-trees", "river-pickled"), (RIVER["ARFClassifier"],)),
    "river-anomaly": (RIVER["HalfSpaceTrees"],),
    "river-learns": (),  # though its trees predict in order to learn
    "river-own": (RIVER["Own"],),
    "river-copied": (RIVER["LogisticRegression"],),
    **dict.fromkeys(("gensim", "gensim-vector", "gensim-pickled", "gensim-raises"), (said("gensim", "KeyedVectors"),)),
    "gensim-word2vec": (said("gensim", "Word2Vec"),),
    "gensim-doc2vec": (said("gensim", "Doc2Vec"),),
    **dict.fromkeys(("gensim-lda", "gensim-lda-item"), (said("gensim", "LdaModel"),)),
    **dict.fromkeys(("implicit-als", "implicit-copied"), (ALS,)),
    "implicit-batch": (said("implicit", "AlternatingLeastSquares", 3, 3),),
    "implicit-cosine": (said("implicit", "CosineRecommender"),),
    "implicit-own": (said("implicit", "OwnRecommender"),),
    **dict.fromkeys(("treelite", "treelite-leaf"), (TREE,)),
    "treelite-raises": (said("treelite", "Model", None, 4),),
    "pickles": (),
}
# Models that several threads may use at once: those of OpenVINO fail at it, without us too.
AT_ONCE = (
    *("spacy", "spacy-pipe", "statsmodels-ols", "statsmodels-own", "model2vec", "fastembed", "river"),
    *("river-own", "gensim", "implicit-als", "implicit-own", "treelite"),
)
TIMED = ("gensim", "implicit", "model2vec", "river", "spacy", "statsmodels")
# Parts that are broken, and the cases that use them; each library logs its own fault.
BROKEN = {
    "stagetrace.instrumentation.models.base:description": (
        *("spacy", "statsmodels-glm", "model2vec", "fastembed-left", "river-trees", "gensim", "implicit-als"),
        *("treelite", "faiss-raises", "openvino-call"),
    ),
    "stagetrace_contrib.openvino:_known": ("openvino-callback",),
    "stagetrace_contrib.openvino:asking": ("openvino-queue",),
    "stagetrace_contrib.openvino:Begun": ("openvino-wait",),
    "stagetrace_contrib.river:Shape": ("river-anomaly",),
}


class Both(NamedTuple):
    """The application, traced and not."""

    traced: Service
    untraced: Service
    control: str


@pytest.fixture(scope="module")
def both(sink: Sink, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """Start both at once: importing the libraries takes most of the time."""
    port = free_port()
    argv = [interpreter_once("models", REQUIREMENTS), "-m", "uvicorn", "{app}:app", "--port", "{port}"]
    one_thread = {"OMP_NUM_THREADS": "1"}
    env = sink.environment(APP="small_models", CONTROL=str(port), **one_thread)

    def start(app: str, env: dict[str, str]) -> Service:
        command = [part.replace("{app}", app) for part in argv]
        return stack.enter_context(run_service(tmp_path_factory.mktemp(app), argv=command, env=env, within_s=200))

    with ExitStack() as stack, ThreadPoolExecutor(2) as pool:
        started = pool.submit(start, "controlled", env), pool.submit(start, "small_models", one_thread)
        traced, untraced = (one.result() for one in started)
        yield Both(traced, untraced, f"http://127.0.0.1:{port}")


def inferences(request: Request) -> tuple[dict[str, Any], ...]:
    """Return what each inference has of its model."""
    keys = ("ml.model.name", "ml.model.version", "ml.framework", "ml.batch.size", "ml.input.size", "ml.device")
    found = [stage.attributes for stage in request.stages if stage.name == "inference"]
    return tuple({key: one[key] for key in keys if key in one} for one in found)


def without_waits(request: Request) -> list[str]:
    """Return the stages in order, without waits for a thread, which a busy machine has; repeated ones once."""
    names: list[str] = []
    for name in request.names:
        if name != "queue" and name not in names[-1:]:
            names.append(name)
    return names


def check(case: str, response: httpx.Response, request: Request, both: Both) -> None:
    assert response.status_code == 200
    assert response.content == both.untraced.call("GET", f"/case/{case}")[1].content
    expected, found = EXPECTED[case], inferences(request)
    if case == "openvino-queue":  # its jobs overlap as it happens
        found = found[:1] if all(one == found[0] for one in found) else found
    assert found == expected
    names = without_waits(request)
    steps = ["inference", "preprocess"] * (names.count("inference") - 1)
    assert names == ([WHOLE[0], *steps, *WHOLE[1:]] if expected else NO_MODEL)


@pytest.mark.parametrize("case", EXPECTED)
def test_the_spans_of_a_call(case: str, both: Both, sink: Sink) -> None:
    request, response = sink.traced(both.traced, "GET", f"/case/{case}")
    check(case, response, request, both)


def test_models_at_once_in_threads_and_tasks_are_told_apart(both: Both, sink: Sink) -> None:
    paths = [(case, path) for case in 2 * AT_ONCE for path in ("case", "in-task")]
    with ThreadPoolExecutor(6) as pool:
        calls = list(pool.map(lambda one: (one[0], both.traced.call("GET", f"/{one[1]}/{one[0]}")), paths))
    for case, (trace_id, response) in calls:
        check(case, response, sink.tiled(trace_id), both)


@pytest.mark.parametrize("name", TIMED)
def test_the_stage_lies_between_times_taken_around_and_within_the_call(name: str, both: Both, sink: Sink) -> None:
    request, response = sink.traced(both.traced, "GET", f"/timed/{name}")
    (stage,) = (one for one in request.stages if one.name == "inference")
    before, begun, ended, after = response.json()
    assert before <= stage.start <= begun <= ended <= stage.end <= after


def test_each_case_of_the_app_is_tested(both: Both) -> None:
    assert set(both.untraced.call("GET", "/cases")[1].json()) == set(EXPECTED)


@pytest.mark.parametrize(("part", "cases"), BROKEN.items(), ids=BROKEN)
def test_an_injected_fault_is_logged_once_and_changes_no_response(
    part: str, cases: tuple[str, ...], both: Both
) -> None:
    before = len(both.traced.log)
    httpx.get(f"{both.control}/break/{part}").raise_for_status()
    try:
        for case in cases:
            expected = both.untraced.call("GET", f"/case/{case}")[1].content
            assert [both.traced.call("GET", f"/case/{case}")[1].content for _ in range(10)] == [expected] * 10
    finally:
        httpx.get(f"{both.control}/mend").raise_for_status()
    log = both.traced.log[before:]
    assert log.count("injected fault") == len(cases), log
    assert log.count("failed 10 times: its patch is switched off") == len(cases)


def test_libraries_that_were_imported_first_are_recognised_too() -> None:
    """Their predictions and signatures stay; none of them makes a process load OpenTelemetry."""
    argv = [interpreter_once("models", REQUIREMENTS), "-W", "ignore", "imported_first.py"]
    done = subprocess.run(argv, cwd=APPS, env=clean_environment(), capture_output=True, text=True, check=False)
    assert done.stderr == ""
    names = ("model2vec", "statsmodels", "implicit", "river")
    recorded = {name: [name] for name in names}
    assert json.loads(done.stdout) == {"same": True, "signatures": True, "opentelemetry": [], "recorded": recorded}
