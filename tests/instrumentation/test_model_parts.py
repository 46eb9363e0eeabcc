"""Calls of more than one stage: preparation within a call, postprocessing, methods that subclasses override."""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from stagetrace import guard
from stagetrace.instrumentation.models import marked, preparing
from stagetrace.instrumentation.models.base import Calls, Library
from stagetrace.instrumentation.models.signature import recorded
from stagetrace.instrumentation.models.subclasses import wrap_in_subclasses
from stagetrace.request.current import current
from stagetrace.request.request import Request
from stagetrace.semconv import POSTPROCESS

if TYPE_CHECKING:
    from collections.abc import Iterator

PINEWOOD = Library(__name__, "pinewood")


class Clock:
    """Time that goes on by a millisecond with each reading."""

    now = 1_000_000_000

    def __call__(self) -> int:
        self.now += 1_000_000
        return self.now


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(marked, "_called", set())
    monkeypatch.setattr(guard, "failures", {})
    clock = Clock()
    monkeypatch.setattr(marked, "time_ns", clock)
    monkeypatch.setattr(preparing, "time_ns", clock)
    monkeypatch.setattr(marked, "sample", lambda _: None)
    monkeypatch.setattr(Request, "clock", staticmethod(clock), raising=False)


@contextmanager
def request() -> Iterator[list[str]]:
    """Be within a request; yield its stages once it has ended."""
    record = Request(Request.clock)  # type: ignore[arg-type]
    record.bound = True
    token = current.set(record)
    stages: list[str] = []
    try:
        yield stages
    finally:
        current.reset(token)
        stages += [one.stage for one in record.close(record.started, Request.clock()).segments()]  # type: ignore[misc]


class Model:
    """A model that prepares each batch of its input."""

    def encode(self, rows: list[int], batch_size: int = 1) -> list[int]:
        """Encode."""
        found = []
        for at in range(0, len(rows), batch_size):
            found += self.forward(self.prepare(rows[at : at + batch_size]))
        return found

    def prepare(self, rows: list[int]) -> list[int]:
        if rows == [0]:
            raise LookupError(rows)
        return rows

    def forward(self, rows: list[int]) -> list[int]:
        return [2 * row for row in rows]


class Traced(Model):
    """The same, recorded."""

    encode = preparing.preparing(Model.encode, PINEWOOD.describe, __name__)
    prepare = preparing.preparation(Model.prepare)
    forward = PINEWOOD.wrap(Model.forward, Calls("Model", ("forward",)))


def test_a_call_is_the_inference_but_for_the_preparation_of_each_batch() -> None:
    with request() as stages:
        assert Traced().encode([1, 2, 3], batch_size=2) == Model().encode([1, 2, 3])
    assert stages == ["preprocess", "inference", "preprocess", "inference", "postprocess"]
    assert guard.failures == {}


def test_a_call_that_prepares_nothing_is_the_inference_as_a_whole() -> None:
    with request() as stages:
        assert Traced().encode([]) == []
    assert stages == ["preprocess", "inference", "postprocess"]


def test_a_preparation_that_fails_is_followed_by_no_inference() -> None:
    with request() as stages, pytest.raises(LookupError, match=r"\[0\]"):
        Traced().encode([0])
    assert stages == ["handler"]
    with request() as stages, pytest.raises(LookupError, match=r"\[0\]"):
        Traced().encode([1, 0])
    assert stages == ["preprocess", "inference", "postprocess"]


def test_outside_a_request_and_outside_such_a_call_nothing_is_recorded() -> None:
    assert Traced().encode([1]) == [2]
    with request() as stages:
        assert Traced().prepare([1]) == [1]
    assert stages == ["handler"]


def test_a_description_that_fails_is_counted_and_the_call_goes_on() -> None:
    def fail(*_: Any) -> Any:
        raise OSError("ours")

    encode = preparing.preparing(Model.encode, fail, "stagetrace.instrumentation.models.other")
    with request():
        for rows in ([1], []):
            assert encode(Traced(), rows) == Model().encode(rows)
    assert sum(guard.failures.values()) == 2


def test_kind_signature_and_documentation_stay() -> None:
    for name in ("encode", "prepare"):
        wrapped, original = vars(Traced)[name], vars(Model)[name]
        assert inspect.signature(wrapped) == inspect.signature(original)
        assert (wrapped.__name__, wrapped.__doc__) == (original.__name__, original.__doc__)


SEEN: list[str] = []


class Pipeline:
    """The class of a library whose subclasses override a method."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        SEEN.append(cls.__name__)

    def run(self, rows: list[int]) -> Any:
        return self.postprocess(Traced().forward(rows))

    def postprocess(self, rows: list[int]) -> Any:
        return rows


class Before(Pipeline):
    def postprocess(self, rows: list[int]) -> Any:
        return super().postprocess(rows)[0]


class Mixed:
    def postprocess(self, rows: list[int]) -> Any:
        return Traced().forward(rows)


wrap_in_subclasses(
    Pipeline, {"postprocess": lambda f: recorded(f, lambda *_: None, POSTPROCESS, where=__name__, is_method=True)}
)


class After(Before):
    def postprocess(self, rows: list[int]) -> Any:
        return [super().postprocess(rows)]


class Inherits(Mixed, Pipeline):
    pass


@pytest.mark.parametrize(("cls", "result"), [(Pipeline, [2]), (Before, 2), (After, [2])])
def test_postprocessing_of_each_subclass_is_recorded(cls: Any, result: Any) -> None:
    with request() as stages:
        assert [cls().run([1]), cls().run([1])] == [result] * 2
    assert stages == ["preprocess", "inference", "postprocess", "preprocess", "inference", "postprocess"]
    assert cls is Pipeline or cls.__name__ in SEEN


def test_a_model_that_postprocessing_calls_is_an_inference() -> None:
    with request() as stages:
        assert Inherits().run([1]) == [4]
    assert stages == ["preprocess", "inference", "postprocess", "inference", "postprocess"]


def test_a_wrapper_of_postprocessing_that_fails_to_be_made_leaves_the_class_as_it_was() -> None:
    class Base:
        pass

    def fail(_: Any) -> Any:
        raise OSError("ours")

    wrap_in_subclasses(Base, {"postprocess": fail})

    class Derived(Base):
        def postprocess(self) -> int:
            return 1

    assert Derived().postprocess() == 1
    assert guard.failures
