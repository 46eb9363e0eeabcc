"""MLflow's scoring server: its model is the inference, with the name and version of the registry."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from environments import interpreter_once
from libraries_page import versions
from services import APPS, run_service
from sink import assert_tiled
from stagetrace import guard
from stagetrace_contrib.mlflow import _loading, origin

if TYPE_CHECKING:
    from sink import Sink

ROWS = {"dataframe_split": {"columns": ["a", "b", "c", "d"], "data": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]}}


@pytest.mark.heavy
@pytest.mark.usefixtures("services")
def test_the_scoring_server_has_one_inference_with_its_registered_version(sink: Sink, tmp_path: Path) -> None:
    python = interpreter_once("mlflow", (f"mlflow=={versions()['mlflow']}",))
    env = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db", "MLFLOW_DISABLE_TELEMETRY": "true"}
    path = f"{Path(python).parent}:/usr/bin:/bin"
    subprocess.run([python, APPS / "mlflow_model.py"], env={**env, "PATH": path}, cwd=tmp_path, check=True, timeout=250)
    options = ("-m", "models:/flowers/1", "--env-manager", "local", "-p", "{port}")
    serve = [python, "-m", "mlflow", "models", "serve", *options]
    env = {**env, **sink.environment(), "PATH": path}
    with run_service(tmp_path, argv=serve, env=env, within_s=250, ready="/ping") as service:
        request, response = sink.traced(service, "POST", "/invocations", json=ROWS)
    assert response.json() == {"predictions": [0, 1, 0]}
    assert_tiled(request)
    at = request.names.index("inference")
    assert "preprocess" in request.names[:at]
    assert request.names[at + 1] == "postprocess"
    (inference,) = [stage.attributes for stage in request.stages if stage.name == "inference"]
    found = [inference.get(f"ml.{name}") for name in ("model.name", "model.version", "framework", "batch.size")]
    assert found == ["flowers", "1", "sklearn", 3]


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("models:/flowers/3", ("flowers", "3")),
        ("models:/main.ml.flowers@champion", ("main.ml.flowers", "champion")),
        ("models:/m-0123", ("m-0123", None)),
        ("{folder}/registered", ("flowers", "7")),
        ("file://{folder}/registered", ("flowers", "7")),
        ("{folder}/plain", ("plain", None)),
        ("runs:/0123/model", ("model", None)),
    ],
)
def test_the_uri_gives_name_and_version(uri: str, expected: tuple[str, str | None], tmp_path: Path) -> None:
    (tmp_path / "registered").mkdir()
    (tmp_path / "registered" / "registered_model_meta").write_text("model_name: flowers\nmodel_version: '7'\n")
    assert origin(uri.format(folder=tmp_path), SimpleNamespace(name=None, artifact_path=None)) == expected


def test_a_model_is_loaded_whatever_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "failures", {})
    bare = object()  # has no place for a note
    assert _loading(lambda _uri: bare)("models:/flowers/1") is bare
    assert list(guard.failures.values()) == [1]
