"""Libraries too large for `make test-all`: transformers, torchvision, OpenCV and feast as details of their stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

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

NEEDS = ("fastapi", "uvicorn", "torch", "torchvision", "transformers", "jinja2", "opencv-python-headless", "feast")
READY_WITHIN_S = 300  # importing these takes a minute on a cold disk
# Of each case the details of all its stages but `inference`: span, library, calls, calls that raised.
EXPECTED: dict[str, list[tuple[str, str, int, int]]] = {
    "fast_tokenizer": [("tokenize", "transformers", 3, 0), ("detokenize", "transformers", 1, 0)],
    "slow_tokenizer": [("tokenize", "transformers", 1, 0), ("detokenize", "transformers", 1, 0)],
    "copied_tokenizer": [("tokenize", "transformers", 1, 0)],
    "image_processor": [("image.transform", "transformers", 1, 0)],
    "opencv": [("image.decode", "cv2", 1, 0), ("image.transform", "cv2", 2, 0)],
    "opencv_raises": [("image.transform", "cv2", 1, 1)],
    "transforms": [("image.transform", "torchvision", 1, 0)],
    "transforms_v2": [("image.transform", "torchvision", 2, 0)],
    "compiled_transform": [],
    "scripted_transform": [],
    "torchvision_io": [("image.decode", "torchvision", 1, 0)],
    "scripted_io": [],
    "feature_store": [("feature.fetch", "feast", 2, 0)],
    "feature_store_async": [("feature.fetch", "feast", 1, 1)],
}


@pytest.fixture(scope="module")
def argv() -> list[str]:
    return [interpreter_with(NEEDS), "-m", "uvicorn", "preparing_large:app", "--port", "{port}"]


@pytest.fixture(scope="module")
def traced(sink: Sink, folder: Path, argv: list[str]) -> Iterator[Service]:
    with run_service(folder, argv=argv, env=sink.environment(), within_s=READY_WITHIN_S) as running:
        yield running
        assert "fault of stagetrace" not in running.log


@pytest.fixture(scope="module")
def untraced(folder: Path, argv: list[str]) -> Iterator[Service]:
    with run_service(folder, argv=argv, within_s=READY_WITHIN_S) as running:
        yield running


@pytest.mark.parametrize("case", EXPECTED)
def test_each_call_is_a_detail_and_no_stage(case: str, traced: Service, untraced: Service, sink: Sink) -> None:
    request, response = sink.traced(traced, "GET", f"/case/{case}")
    assert response.status_code == 200
    assert response.content == untraced.call("GET", f"/case/{case}")[1].content
    found = [
        (
            span.name,
            span.attributes["stagetrace.detail.library"],
            span.attributes["stagetrace.detail.calls"],
            span.attributes.get("stagetrace.detail.failed", 0),
        )
        for span in sorted(request.others, key=lambda one: one.start)
    ]
    assert found == EXPECTED[case]
    stages = {stage.name for stage in request.stages} - {"queue", "network.send"}
    assert stages in ({"handler"}, {"preprocess", "inference"}, {"preprocess", "inference", "postprocess"})


def test_each_case_of_the_app_is_tested(untraced: Service) -> None:
    assert set(untraced.call("GET", "/cases")[1].json()) == set(EXPECTED)
