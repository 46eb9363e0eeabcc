"""Methods of MLServer's models as they are wrapped, of a class that only looks like MLServer's own."""

from __future__ import annotations

import asyncio
import functools
import inspect
import subprocess
import sys
import typing
from types import SimpleNamespace
from typing import Any

import cloudpickle
import pytest

from stagetrace import guard
from stagetrace_contrib import mlserver

READ = f"""
import asyncio, sys
sys.path += {sys.path!r}
import pickle
print(asyncio.run(pickle.load(sys.stdin.buffer)().predict(2)), "stagetrace" in sys.modules)
"""


class Answer(int):
    """What is returned, known by name in this module alone."""


def _model() -> Any:
    class MLModel:
        pass

    mlserver.patch_model(SimpleNamespace(MLModel=MLModel))  # type: ignore[arg-type]

    class Mine(MLModel):
        async def predict(self, rows: int) -> Answer:
            return rows  # type: ignore[return-value]

    assert "begin" in inspect.getclosurevars(Mine.predict).nonlocals  # it is wrapped
    return Mine


def test_its_annotations_are_read_where_it_is_defined() -> None:
    assert typing.get_type_hints(_model().predict) == {"rows": int, "return": Answer}


def test_a_class_of_the_main_program_is_pickled_as_before() -> None:
    model = _model()
    del model.__base__.__init_subclass__  # MLServer's own class is imported at the other end
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        pickled = cloudpickle.dumps(model)
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    run = subprocess.run([sys.executable, "-S", "-c", READ], input=pickled, capture_output=True, check=False)
    assert run.stdout.decode() == "2 False\n", run.stderr.decode()


@pytest.mark.filterwarnings("ignore:functools.partial will be a method:FutureWarning")  # from Python 3.13 on
def test_a_method_without_an_instance_is_not_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(*args: Any) -> Any:
        return args

    monkeypatch.setattr(guard, "failures", {})
    model = type("Partly", (_model(),), {"predict": functools.partial(answer, 1)})
    assert asyncio.run(model().predict(2)) == (1, 2)
    assert guard.failures == {}
