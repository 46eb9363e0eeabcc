"""Tasks of Celery's, whose messages are files of the folder TASKS_FOLDER, and an API that sends them."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from celery import Celery
from fastapi import FastAPI
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

folder = Path(os.environ["TASKS_FOLDER"])
for name in ("messages", "results", "control"):
    (folder / name).mkdir(exist_ok=True)
messages = str(folder / "messages")
queue = Celery("tasks", broker="filesystem://", backend=f"file://{folder}/results")
queue.conf.update(
    broker_transport_options={
        "data_folder_in": messages,
        "data_folder_out": messages,
        "control_folder": str(folder / "control"),
        "polling_interval": 0.02,
    },
    worker_enable_remote_control=False,
)
model = LogisticRegression(max_iter=500).fit(*load_iris(return_X_y=True))
api = FastAPI()


@queue.task  # type: ignore[untyped-decorator]
def predict(row: list[float]) -> int:
    return int(model.predict([row])[0])


@queue.task  # type: ignore[untyped-decorator]
def slow(row: list[float]) -> int:
    time.sleep(0.3)
    return int(model.predict([row])[0])


@queue.task  # type: ignore[untyped-decorator]
def fails(row: list[float]) -> None:
    raise ValueError(f"no such row: {row}")


@queue.task  # type: ignore[untyped-decorator]
def ends(row: list[float]) -> None:
    os.kill(os.getpid(), signal.SIGTERM)  # as a hard time limit does, which kills a tenth of a second later
    time.sleep(10)


@queue.task(bind=True)  # type: ignore[untyped-decorator]
def again(self: Any, row: list[float]) -> int:
    if not self.request.retries:
        raise self.retry(countdown=0.5)
    return int(model.predict([row])[0])


@queue.task  # type: ignore[untyped-decorator]
def outer(row: list[float]) -> int:
    return int(predict.apply([row]).get(disable_sync_subtasks=False))


@api.get("/health")
def health() -> str:
    return "ok"


@api.post("/send/{task}")
def send(task: str, row: list[float]) -> str:
    return str(queue.tasks[f"tasks.{task}"].delay(row).id)


@api.get("/result/{task_id}")
def result(task_id: str) -> dict[str, Any]:
    found = queue.AsyncResult(task_id)
    return {"state": found.state, "result": found.result if found.successful() else str(found.result)}
