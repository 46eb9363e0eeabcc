"""The patch of torch on a stand-in of its modules: which call is the inference. Real torch: test_large_libraries.py."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from stagetrace import log
from stagetrace.instrumentation.models import unrecorded_calls
from stagetrace.patches import torch
from stagetrace.request.current import current
from stagetrace.request.request import Request

if TYPE_CHECKING:
    from collections.abc import Iterator


class Torch:
    """What the patch needs of torch."""

    def __init__(self) -> None:
        class Module:
            """As torch's: parameters and modules by name, and a call that runs `forward`."""

            def __init__(self, *modules: Any, parameters: int = 0, device: str = "cpu") -> None:
                made = {str(one): SimpleNamespace(device=device, requires_grad=True) for one in range(parameters)}
                self._parameters = made
                self._buffers: dict[str, Any] = {}
                self._modules = {str(number): one for number, one in enumerate(modules)}
                self.training = True

            def __call__(self, *args: Any, **kwargs: Any) -> Any:
                return self.forward(*args, **kwargs)

            def forward(self, rows: Any) -> Any:
                for one in self._modules.values():
                    rows = one(rows)
                return rows

            def modules(self) -> Iterator[Any]:
                yield self
                for one in self._modules.values():
                    yield from Module.modules(one)

            def parameters(self, *, recurse: bool) -> Iterator[Any]:
                assert not recurse
                yield from self._parameters.values()

        self.nn = SimpleNamespace(Module=Module)
        self.is_compiling = self.with_gradients = False
        self.compiler = SimpleNamespace(
            is_compiling=lambda: self.is_compiling, is_dynamo_compiling=lambda: self.is_compiling
        )
        self.jit = SimpleNamespace(is_scripting=lambda: False)

    def is_grad_enabled(self) -> bool:
        return self.with_gradients


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    fake = Torch()
    monkeypatch.setitem(sys.modules, "torch", fake)
    monkeypatch.setattr(unrecorded_calls, "due", unrecorded_calls.NEVER)
    torch.patch_torch(fake)  # type: ignore[arg-type]
    fake.nn.Module.torch = fake
    fake.nn.Module.__module__ = "torch.nn.modules.module"
    yield fake.nn.Module
    current.set(None)


def _inferences(model: Any) -> list[Any]:
    record = Request()
    record.bound = True
    current.set(record)
    assert model([1, 2, 3]) == [1, 2, 3]
    segments = record.close(record.started, time.time_ns()).segments()
    return [one.attributes["ml.model.name"] for one in segments if one.stage == "inference"]


def test_the_outermost_model_is_the_inference(module: Any) -> None:
    net = type("Net", (module,), {})(module(module(parameters=1)), module())
    assert _inferences(net) == ["Net"]


def test_outside_a_request_and_while_it_is_compiled_a_call_is_only_a_call(module: Any) -> None:
    net = module(module(parameters=1))
    assert net([1]) == [1]
    module.torch.is_compiling = True
    assert _inferences(net) == []


def test_a_module_without_parameters_is_a_function_unless_its_code_is_the_users(module: Any) -> None:
    assert _inferences(module(module())) == []
    distance = type("Distance", (module,), {"__module__": "service"})()
    assert _inferences(module(distance)) == ["Module"]


def test_a_step_of_training_is_no_inference_nor_is_a_frozen_part_of_it(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[str] = []
    monkeypatch.setattr(log, "info", logged.append)
    monkeypatch.setattr(torch, "_logged", set())
    frozen = module(parameters=1)
    frozen.training = False
    trained = type("Trained", (module,), {})(frozen, module(parameters=1))
    module.torch.with_gradients = True
    assert _inferences(trained) == _inferences(trained) == []
    (message,) = logged
    assert message.startswith("Trained is called in training mode, with gradients: ")
    around = type("Around", (module,), {})(frozen)  # in training mode itself
    assert _inferences(around) == ["Around"]
    exported = type("Exported", (module,), {})(module(parameters=1))
    exported.train = None  # as torch.export sets it on what cannot leave that mode
    assert _inferences(exported) == ["Exported"]
    module.torch.with_gradients = False  # as for dropout at prediction
    assert _inferences(trained) == ["Trained"]


def test_a_training_that_raises_leaves_later_calls_recognised(module: Any) -> None:
    def fails(*_: Any) -> Any:
        raise ValueError("no rows")

    failing = type("Failing", (module,), {"forward": fails})(module(parameters=1))
    module.torch.with_gradients = True
    with pytest.raises(ValueError, match="no rows"):
        _inferences(failing)
    module.torch.with_gradients = False
    assert _inferences(module(parameters=1)) == ["Module"]
