"""llama-cpp-python itself, with a model made here: compiled once for a cache, which takes minutes."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from environments import interpreter_with
from services import APPS, Service, run_service

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sink import Sink

pytestmark = [pytest.mark.usefixtures("services"), pytest.mark.heavy, pytest.mark.timeout(3_000)]

NEEDS = ("llama-cpp-python==0.3.36", "gguf", "fastapi", "uvicorn")
# Nothing of it has to be fast, and only the library itself is needed: five minutes on two cores.
PARTS = (
    "LLAVA_BUILD",
    "MTMD_BUILD",
    *(f"LLAMA_BUILD_{one}" for one in ("TOOLS", "EXAMPLES", "TESTS", "COMMON", "SERVER")),
)
BUILD = (
    "-DCMAKE_BUILD_TYPE=Debug -DCMAKE_C_FLAGS=-O1 -DCMAKE_CXX_FLAGS=-O0 -DGGML_NATIVE=OFF -DLLAMA_CURL=OFF "
    + " ".join(f"-D{one}=OFF" for one in PARTS)
)
PATHS = ("/generate?tokens=20", "/stream?tokens=20", "/chat?tokens=6", "/twice", "/abandoned", "/embed")


class Both:
    """The service, traced and untraced."""

    def __init__(self, traced: Service, untraced: Service) -> None:
        self.traced = traced
        self.untraced = untraced


@pytest.fixture(scope="module")
def both(sink: Sink, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CMAKE_ARGS", BUILD)
        python = interpreter_with(NEEDS)
    folder = tmp_path_factory.mktemp("llama")
    model = str(folder / "tiny.gguf")
    subprocess.run([python, str(APPS / "tiny_gguf.py"), model], check=True, timeout=120)
    argv = [python, "-m", "uvicorn", "generative:app", "--port", "{port}"]
    env = sink.environment(STAGETRACE_SLA="* within 60s first_token 60s per_token 60s", MODEL=model)
    with (
        run_service(folder, argv=argv, env=env) as traced,
        run_service(folder, argv=argv, env={"MODEL": model}) as untraced,
    ):
        yield Both(traced, untraced)
    assert "fault of stagetrace" not in traced.log


@pytest.mark.parametrize("path", PATHS)
def test_responses_are_those_of_an_untraced_service(path: str, both: Both) -> None:
    assert both.traced.client.get(path).content == both.untraced.client.get(path).content


@pytest.mark.parametrize("path", ["/generate?tokens=20", "/chat?tokens=6"])
def test_tokens_are_those_that_the_library_counts(path: str, both: Both, sink: Sink) -> None:
    request, response = sink.traced(both.traced, "GET", path)
    usage, entry = response.json()["usage"], request.entry.attributes
    assert entry["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert entry["gen_ai.usage.output_tokens"] == usage["completion_tokens"]
    assert 0 < entry["stagetrace.tokens.gap.mean_ms"] <= entry["stagetrace.tokens.gap.max_ms"]
    assert (entry["ml.model.name"], entry["sla.verdict"], entry.get("sla.fallback")) == ("tiny.gguf", "good", None)


def test_a_stream_has_the_tokens_of_the_same_whole_completion(both: Both, sink: Sink) -> None:
    whole: dict[str, Any] = sink.traced(both.traced, "GET", "/generate?tokens=20")[0].entry.attributes
    streamed = sink.traced(both.traced, "GET", "/stream?tokens=20")[0].entry.attributes
    for name in ("gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"):
        assert streamed[name] == whole[name]
    assert streamed["stagetrace.tokens.first_ms"] / 1e3 <= streamed["gen_ai.response.time_to_first_chunk"]
    assert "stagetrace.tokens.incomplete" not in streamed


def test_embeddings_are_counted(both: Both, sink: Sink) -> None:
    request, response = sink.traced(both.traced, "GET", "/embed")
    assert request.entry.attributes["gen_ai.usage.input_tokens"] == response.json()["prompt_tokens"]
