"""Methods of models after they were wrapped: parameters, signatures and attributes are those of the original."""

from __future__ import annotations

import functools
import inspect
from contextvars import copy_context
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.metaestimators import available_if

from services import APPS, run_python
from stagetrace import guard
from stagetrace.instrumentation.base import then
from stagetrace.instrumentation.models.base import description
from stagetrace.instrumentation.models.marked import inside, marked
from stagetrace.instrumentation.models.signature import with_signature
from stagetrace.instrumentation.models.subclasses import MARK
from stagetrace.patches import onnxruntime, sklearn
from stagetrace.request.current import current


class Takes:
    """Methods of all kinds of parameters; each returns what it was given."""

    def nothing(self) -> Any:
        return self

    def some(self, x: Any, check: Any = True) -> Any:
        return self, x, check

    def by_position(self, x: Any, y: Any = 1, /, z: Any = None) -> Any:
        return self, x, y, z

    def by_keyword(self, x: Any, *, needed: Any, check: Any = True) -> Any:
        return self, x, needed, check

    def anything(self, x: Any, *args: Any, y: Any = 2, **kwargs: Any) -> Any:
        return self, x, args, y, kwargs

    def all_of_it(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs


METHODS = [name for name, value in vars(Takes).items() if inspect.isfunction(value)]
TAKES = Takes()


def _wrapped(method: Any) -> Any:
    return with_signature(marked(method, lambda *_: {}), method)


@pytest.mark.parametrize("is_inside", [False, True])
@pytest.mark.parametrize("name", METHODS)
@given(
    args=st.lists(st.integers(), max_size=4),
    kwargs=st.dictionaries(st.sampled_from(["x", "y", "z", "check", "needed", "other"]), st.integers(), max_size=3),
)
def test_a_call_is_as_before(name: str, is_inside: bool, args: list[int], kwargs: dict[str, int]) -> None:
    method = vars(Takes)[name]
    outcomes = [_outcome(one, is_inside, args, kwargs) for one in (method, _wrapped(method))]
    assert outcomes[0] == outcomes[1]


def _outcome(method: Any, is_inside: bool, args: list[int], kwargs: dict[str, int]) -> Any:
    def run() -> Any:
        inside.set(is_inside)
        try:
            return method(TAKES, *args, **kwargs)
        except TypeError as error:
            return str(error)

    return copy_context().run(run)


@pytest.mark.parametrize("name", METHODS)
def test_its_signature_and_attributes_are_the_original_ones(name: str) -> None:
    method = vars(Takes)[name]
    made = _wrapped(method)
    assert made.__name__ == name
    assert inspect.signature(made) == inspect.signature(method)
    assert inspect.signature(made, follow_wrapped=False) == inspect.signature(method)
    assert made.__wrapped__ is method


def test_a_callable_without_a_true_signature_is_called_unchanged() -> None:
    def pretends(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    pretends.__signature__ = inspect.signature(len)  # type: ignore[attr-defined]
    for method, passed in ((max, (1, 2)), (functools.partial(max, 3), (1, 2)), (pretends, (1, 2))):
        assert _wrapped(method)(*passed) == method(*passed)
    assert _wrapped(pretends)(1, x=2) == ((1,), {"x": 2})
    assert inspect.signature(_wrapped(pretends)) == inspect.signature(len)


def test_inside_a_model_the_request_is_not_looked_up() -> None:
    """Which is what a forest's hundreds of trees would do."""

    class Asked:
        closed = bound = False

        def __getattribute__(self, name: str) -> Any:
            raise AssertionError(name)

    made = _wrapped(Takes.some)

    def run() -> Any:
        current.set(Asked())  # type: ignore[arg-type]
        inside.set(True)
        return made(TAKES, 1)

    assert copy_context().run(run) == (TAKES, 1, True)


def test_a_batch_size_computes_nothing_lazy() -> None:
    class Later:
        """As dask's number of rows."""

        def __int__(self) -> int:
            raise AssertionError

    class Rows:
        def __init__(self, shape: Any) -> None:
            self.shape = shape

    for shape, size in (((3, 4), 3), ((), None), ((Later(), 4), None), ((float("nan"), 4), None), (lambda: [3], None)):
        assert description("any", "any", Rows(shape)).get("ml.batch.size") == size


def test_a_callback_is_called_whatever_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs on a thread of onnxruntime, and the caller waits for it."""

    class Breaks:
        def enter(self, *_: Any) -> None:
            pass

        def leave(self, _: Any) -> None:
            raise OSError("ours")

    class Session:
        _model_path = "any.onnx"

        def get_modelmeta(self) -> Any:
            return SimpleNamespace(version=0)

        def get_providers(self) -> list[str]:
            return []

    monkeypatch.setattr(onnxruntime, "asking", Breaks)
    monkeypatch.setattr(guard, "failures", {})
    run_async = onnxruntime._wrap_async(lambda _, names, feed, callback: callback(names, feed))
    assert run_async(Session(), ["y"], {}, lambda *results: results) == (["y"], {})
    assert list(guard.failures.values()) == [1]


@pytest.mark.parametrize(
    ("path", "graph", "producer", "name"),
    [
        ("/models/flowers.onnx", "main_graph", "pytorch", "flowers.onnx"),
        (None, "flowers", "pytorch", "flowers"),
        (None, "0123456789abcdef0123456789abcdef", "skl2onnx", "skl2onnx"),
        (None, "01234567-89ab-cdef-0123-456789abcdef", "", "SimpleNamespace"),
        (None, "", "", "SimpleNamespace"),
    ],
)
def test_a_session_has_a_name_that_is_no_random_id(path: str | None, graph: str, producer: str, name: str) -> None:
    meta = SimpleNamespace(graph_name=graph, producer_name=producer)
    assert onnxruntime._name(SimpleNamespace(_model_path=path, get_modelmeta=lambda: meta)) == name


@pytest.mark.parametrize(("version", "expected"), [(0, None), (2**63 - 1, None), (7, "7")])
def test_a_session_has_the_version_of_its_metadata(version: int, expected: str | None) -> None:
    session = SimpleNamespace(get_modelmeta=lambda: SimpleNamespace(version=version))
    assert onnxruntime._version(session) == expected


@pytest.mark.parametrize(
    ("providers", "options", "device"),
    [
        (["CPUExecutionProvider"], {"CPUExecutionProvider": {}}, "cpu"),
        (["CUDAExecutionProvider", "CPUExecutionProvider"], {"CUDAExecutionProvider": {"device_id": "1"}}, "cuda:1"),
        (["CoreMLExecutionProvider"], {}, "coreml"),
        ([], {}, None),
    ],
)
def test_a_session_runs_on_the_device_of_its_first_provider(
    providers: list[str], options: dict[str, dict[str, str]], device: str | None
) -> None:
    session = SimpleNamespace(get_providers=lambda: providers, get_provider_options=lambda: options)
    assert onnxruntime._device(session) == device


class Sometimes:
    """Has a method only if `has`."""

    def __init__(self, *, has: bool) -> None:
        self.has = has

    @available_if(lambda self: self.has)  # type: ignore[untyped-decorator]
    def predict(self, x: Any) -> Any:
        return self, x


def test_a_method_that_some_instances_have_is_wrapped_once() -> None:
    sklearn.wrap_class(Sometimes)
    one, other = Sometimes(has=True), Sometimes(has=True)
    assert one.predict == one.predict
    assert hasattr(one.predict, MARK)
    assert one.predict.__func__ is other.predict.__func__
    assert one.predict(1) == (one, 1)
    assert other.predict(x=1) == (other, 1)
    assert Sometimes.predict(one, 1) == (one, 1)
    assert not hasattr(Sometimes(has=False), "predict")


def test_a_descriptor_that_makes_no_method_of_the_function_is_wrapped_as_well() -> None:
    class Partly:
        """As scikit-learn before 1.1."""

        def run(self, x: Any, times: int) -> Any:
            return self, x * times

        predict = functools.partialmethod(run, times=2)

    sklearn.wrap_class(Partly)
    one = Partly()
    assert one.predict(3) == (one, 6)
    assert one.predict(x=3) == (one, 6)


def test_a_decorated_method_is_marked() -> None:
    class Caches:
        def __init__(self) -> None:
            pass

        @functools.lru_cache  # noqa: B019
        def predict(self, x: Any) -> Any:
            return x

        def _transform(self, x: Any, times: int) -> Any:
            return x * times

        transform = functools.partialmethod(_transform, times=2)

    sklearn.wrap_class(Caches)
    one: Any = Caches()
    assert hasattr(one.predict, MARK)
    assert hasattr(one.transform.func, MARK)


@pytest.mark.usefixtures("services")  # no service, but two programs that import scikit-learn
def test_an_unusual_estimator_behaves_as_untraced() -> None:
    """One whose methods are no plain functions, or that is made in an unusual way; and nothing of ours fails at it."""
    untraced, traced = (
        run_python(str(APPS / "unusual.py"), OTEL_TRACES_EXPORTER="none", STAGETRACE=value) for value in ("0", "1")
    )
    assert untraced.returncode == 0, untraced.stderr
    assert (traced.stdout, traced.stderr) == (untraced.stdout, untraced.stderr)


def test_an_estimator_is_restored_whatever_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Any) -> None:
        raise OSError("ours")

    monkeypatch.setattr(sklearn, "wrap_class", fail)
    monkeypatch.setattr(guard, "failures", {})
    one = Takes()
    then(sklearn._wrap_restored)(lambda self, state: setattr(self, "fitted", state))(one, 1)
    assert vars(one) == {"fitted": 1}
    assert list(guard.failures.values()) == [1]


@pytest.mark.usefixtures("services")  # several programs
def test_a_class_of_the_main_program_goes_to_other_processes_as_before() -> None:
    """To joblib's, and to whoever loads a model that was kept, with stagetrace, which sees it, and without."""
    run = run_python(str(APPS / "pickled.py"), STAGETRACE="1", OTEL_TRACES_EXPORTER="none")
    expected = ["True", "[0, 2, 4]", *2 * ["9 [2] False False"], *2 * ["9 [2] True True"]]
    assert run.stdout.splitlines() == expected, run.stderr
