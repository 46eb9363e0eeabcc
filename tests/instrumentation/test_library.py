"""What a library's file declares, and `stagetrace.instrument`: calls of every kind, in a request and outside of one."""

from __future__ import annotations

import asyncio
import copy
import inspect
import pickle
import re
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

import stagetrace
from libraries_page import PAGE, page
from services import run_python
from stagetrace import guard
from stagetrace.instrumentation.models import base, marked
from stagetrace.instrumentation.models.base import TRAIN, Calls, Library, description
from stagetrace.request.current import current
from stagetrace.request.request import Request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

FIRST = {"ml.model.name": "Model", "ml.framework": "pinewood", "ml.batch.size": 2, "ml.cold_start": True}
LATER = {name: value for name, value in FIRST.items() if name != "ml.cold_start"}


class Pipeline:
    """Calls a model."""

    def predict(self, rows: list[int]) -> list[int]:
        return Model().predict(rows)


class Model:
    """A model of a library, with all kinds of methods."""

    def predict(self, rows: list[int]) -> list[int]:
        """Double the rows."""
        return [2 * row for row in rows]

    def recurse(self, rows: list[int]) -> list[int]:
        return [rows[0], *self.recurse(rows[1:])] if rows else []

    def fail(self, rows: list[int]) -> None:
        raise LookupError(rows)

    async def await_(self, rows: list[int]) -> list[int]:
        await asyncio.sleep(0)
        return rows

    def generate(self, rows: list[int]) -> Iterator[int]:
        yield from rows

    async def stream(self, rows: list[int]) -> AsyncIterator[int]:
        for row in rows:
            yield row

    def lazy(self, rows: list[int]) -> Iterator[int]:
        return iter(rows)

    def tokenize(self, rows: list[int]) -> list[int]:
        return rows


def functional(rows: list[int]) -> list[int]:
    return rows


PINEWOOD = Library(__name__, "pinewood")
ALL = Calls(
    "Model", tuple(name for name in vars(Model) if not name.startswith("_") and name not in {"lazy", "tokenize"})
)
PATCH = PINEWOOD.patch(
    *(
        ALL,
        Calls("Model", ("lazy",), lazy=True),
        Calls("Model", ("tokenize",), "prepare"),
        Calls("Pipeline", ("predict",)),
    ),
    Calls("", ("functional",)),
)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(marked, "_called", set())
    monkeypatch.setattr(guard, "failures", {})


@pytest.fixture(scope="module")
def library() -> Any:
    """Return the library's module, patched."""
    module: Any = ModuleType("pinewood.model")
    for cls in (Model, Pipeline):
        setattr(module, cls.__name__, type(cls.__name__, (), dict(vars(cls))))
    module.functional = functional
    PATCH(module)
    return module


@contextmanager
def request() -> Iterator[list[Any]]:
    """Be within a request; yield its stages, each as its name and attributes, once it has ended."""
    record = Request(start=1)
    record.bound = True
    token = current.set(record)
    stages: list[Any] = []
    try:
        yield stages
    finally:
        current.reset(token)
        tiled = record.close(1, 2**62)
        stages += [(one.stage, dict(one.attributes or {})) for one in tiled.segments()]


def of_inference(stages: list[Any]) -> list[dict[str, Any]]:
    """Return the attributes of the inferences, without those that a call has which lasts long enough."""
    found = [attributes for name, attributes in stages if name == "inference"]
    return [{name: value for name, value in one.items() if not name.startswith("stagetrace.cpu.")} for one in found]


async def _listed(steps: AsyncIterator[int]) -> list[int]:
    return [one async for one in steps]


ROWS = [1, 2]
CALLS = {
    "predict": lambda model: model.predict(ROWS),
    "by-name": lambda model: model.predict(rows=ROWS),
    "recursive": lambda model: model.recurse(ROWS),
    "awaited": lambda model: asyncio.run(model.await_(ROWS)),
    "generated": lambda model: list(model.generate(ROWS)),
    "streamed": lambda model: asyncio.run(_listed(model.stream(ROWS))),
    "lazy": lambda model: list(model.lazy(ROWS)),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_call_is_the_inference_and_gives_what_it_gives(call: Any, library: Any) -> None:
    assert call(library.Model()) == call(Model())  # outside a request
    with request() as stages:
        result = call(library.Model())
    assert result == call(Model())
    inferences = of_inference(stages)
    assert inferences[0] == FIRST
    assert all(one == LATER for one in inferences[1:])
    assert guard.failures == {}


def test_a_model_inside_another_is_no_inference_of_its_own(library: Any) -> None:
    with request() as stages:
        assert library.Pipeline().predict(ROWS) == [2, 4]
    assert [one["ml.model.name"] for one in of_inference(stages)] == ["Pipeline"]


def test_work_on_the_input_is_no_inference(library: Any) -> None:
    with request() as stages:
        library.Model().tokenize(ROWS)
        library.Model().predict(ROWS)
    assert [name for name, _ in stages if name in {"preprocess", "inference"}] == ["preprocess", "inference"]


def test_a_function_of_the_module_is_described_without_an_instance(library: Any) -> None:
    with request() as stages:
        assert library.functional(rows=ROWS) == ROWS
    assert of_inference(stages)[0]["ml.batch.size"] == 2


def test_an_exception_passes_and_the_stage_ends(library: Any) -> None:
    with request() as stages, pytest.raises(LookupError, match="1, 2"):
        library.Model().fail(ROWS)
    assert of_inference(stages) == [FIRST]


def test_a_generator_left_half_way_is_closed_and_the_stage_ends(library: Any) -> None:
    closed = []

    class Kept(library.Model):  # type: ignore[misc]
        pass

    def steps(_self: Any, rows: list[int]) -> Iterator[int]:
        try:
            yield from rows
        finally:
            closed.append(marked.inside.get())

    Kept.generate = PINEWOOD.wrap(steps, Calls("Kept", ("generate",)))
    with request() as stages:
        for one in Kept().generate(ROWS):
            assert one == 1
            assert not marked.inside.get()  # the caller's work is none of the model's
            break
    assert closed == [False]
    assert len(of_inference(stages)) == 1


@pytest.mark.parametrize("name", [*ALL.names, "lazy"])
def test_kind_signature_and_documentation_stay(name: str, library: Any) -> None:
    wrapped, original = vars(library.Model)[name], vars(Model)[name]
    assert inspect.signature(wrapped) == inspect.signature(original)
    assert (wrapped.__name__, wrapped.__doc__) == (original.__name__, original.__doc__)
    for is_kind in (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction):
        assert is_kind(wrapped) == is_kind(original)


def test_models_are_pickled_and_copied_as_before() -> None:
    one = SimpleNamespace(model=stagetrace.instrument(len))
    assert copy.deepcopy(one).model([1]) == 1


def test_a_library_that_lacks_a_name_is_left_whole() -> None:
    module: Any = ModuleType("pinewood.model")
    module.Model = type("Model", (), {"predict": Model.predict})
    patch = PINEWOOD.patch(Calls("Model", ("predict",)), Calls("Model", ("rank", "score")))
    with pytest.raises(AttributeError, match=r"pinewood\.model\.Model has no rank or score"):
        patch(module)
    assert module.Model.predict is Model.predict


@pytest.fixture
def bases() -> Any:
    """Return a module with a base, patched, and a class that derived from it before."""
    module: Any = ModuleType("pinewood.base")

    class Base:
        pass

    class Derived(Base):
        def predict(self, rows: list[int]) -> list[int]:
            return rows

        def learn(self, rows: list[int]) -> list[int]:
            return self.predict(rows)

    module.Base, module.Derived = Base, Derived
    Library(__name__, "pinewood").patch(
        Calls("Base", ("predict",), derived=True), Calls("Base", ("learn",), TRAIN, derived=True)
    )(module)
    return module


def test_derived_classes_are_recognised_whenever_they_are_made(bases: Any) -> None:
    class Later(bases.Derived):  # type: ignore[misc]
        def predict(self, rows: list[int]) -> list[int]:
            return [*super().predict(rows), 3]

    with request() as stages:
        assert (bases.Derived().predict(ROWS), Later().predict(ROWS)) == (ROWS, [1, 2, 3])
    assert [one["ml.model.name"] for one in of_inference(stages)] == ["Derived", "Later"]


def test_training_calls_models_that_are_no_inference(bases: Any) -> None:
    with request() as stages:
        assert bases.Derived().learn(ROWS) == ROWS
    assert of_inference(stages) == []
    assert not marked.inside.get()


def test_a_class_that_cannot_be_wrapped_is_made_as_before(bases: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("ours")

    monkeypatch.setattr(base, "recorded", fail)

    class Later(bases.Base):  # type: ignore[misc]
        def predict(self, rows: list[int]) -> list[int]:
            return rows

    assert Later().predict(ROWS) == ROWS
    assert list(guard.failures.values()) == [1]


def test_a_reader_that_fails_changes_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Any) -> str:
        raise OSError("ours")

    monkeypatch.setattr(guard, "_switches", {})
    broken = Library("stagetrace.instrumentation.models.any", "any", name=fail)
    predict = broken.wrap(Model.predict, ALL)
    with request() as stages:
        assert [predict(Model(), ROWS) for _ in range(12)] == [[2, 4]] * 12
    assert of_inference(stages) == []
    assert guard.failures == {"stagetrace.instrumentation.models.any": 10}


@pytest.mark.parametrize(
    ("rows", "batch", "size"),
    [
        ("seven c", None, 7),
        (["ab", "c"], 2, 3),
        ([1, "c"], 2, None),
        ([], 0, 0),
        (SimpleNamespace(shape=(3, 4)), 3, 12),
        (SimpleNamespace(shape=(3, None)), 3, None),
        (SimpleNamespace(shape=(64,)), None, 64),
        (5, None, None),
    ],
)
def test_the_input_has_rows_and_a_size(rows: Any, batch: int | None, size: int | None) -> None:
    described = description("m", "f", rows)
    assert (described.get("ml.batch.size"), described.get("ml.input.size")) == (batch, size)


def test_an_array_of_one_dimension_is_a_batch_where_the_library_says_so() -> None:
    library = Library("any", "any", is_flat=True)
    assert library.describe(Model(), (SimpleNamespace(shape=(3,)),), {})["ml.batch.size"] == 3


def test_a_description_has_version_and_device() -> None:
    described = description("m", "f", None, version="3", device="cuda:0")
    assert described == {"ml.model.name": "m", "ml.framework": "f", "ml.model.version": "3", "ml.device": "cuda:0"}


class Own:
    """A model of the user's."""

    @stagetrace.instrument
    def predict(self, rows: list[int]) -> list[int]:
        return rows

    @stagetrace.instrument(model="named", version="3", framework="mine")
    async def later(self, rows: list[int]) -> list[int]:
        return rows


_NO_FUNCTION: Any = 3


class Callable_:  # noqa: N801
    def __call__(self, rows: list[int]) -> list[int]:
        return rows


def test_instrument_takes_methods_functions_and_callables() -> None:
    score = stagetrace.instrument(functional, model="score")
    bound = stagetrace.instrument(Model().predict)
    called = stagetrace.instrument(Callable_(), framework="jax")
    with request() as stages:
        assert (Own().predict(ROWS), asyncio.run(Own().later(ROWS)), score(ROWS)) == (ROWS, ROWS, ROWS)
        assert (bound(ROWS), called(ROWS)) == ([2, 4], ROWS)
    found = [(one["ml.model.name"], one["ml.framework"]) for one in of_inference(stages)]
    here = __name__.partition(".")[0]
    assert found == [("Own", here), ("named", "mine"), ("score", here), ("Model", here), ("Callable_", "jax")]
    assert of_inference(stages)[1]["ml.model.version"] == "3"
    assert pickle.loads(pickle.dumps(functional)) is functional  # noqa: S301


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: stagetrace.instrument(Model), "not the class Model: instrument its method"),
        (lambda: stagetrace.instrument(_NO_FUNCTION), "takes a callable, not int"),
        (lambda: stagetrace.instrument(staticmethod(len)), "below @staticmethod"),
        (lambda: stagetrace.instrument(len, stage="tokenize"), r"use stagetrace.stage\('tokenize'\)"),
    ],
)
def test_a_wrong_argument_of_instrument_is_explained(wrong: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        wrong()


def _distribution(folder: Path, name: str, entry: str) -> None:
    info = folder / f"{name}-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[stagetrace.patches]\n{entry}\n")


def test_another_distribution_brings_a_patch(tmp_path: Path) -> None:
    """As the page shows it. It is used like ours: one that fails alone is reported, and what is ours stays ours."""
    (entry,) = re.findall(r'^"(pinewood\.model" = ".*)"$', PAGE.read_text(), re.MULTILINE)
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (code,) = (one for one in blocks if "def patch_model" in one)
    _distribution(tmp_path, "pinewood-stagetrace", entry.replace('"', ""))
    _distribution(tmp_path, "broken", "brokenwood = brokenwood_stagetrace:patch")
    _distribution(tmp_path, "rival", "flask.app = rival:patch_app")
    (tmp_path / "pinewood_stagetrace.py").write_text(code)
    (tmp_path / "pinewood").mkdir()
    (tmp_path / "pinewood" / "model.py").write_text("class Model:\n    def predict(self, rows): return rows\n")
    (tmp_path / "brokenwood.py").touch()
    script = (
        "import brokenwood; from pinewood.model import Model\n"
        "print(hasattr(Model.predict, '__wrapped__'), Model().predict([1]))"
    )
    env = {"STAGETRACE": "1", "PYTHONPATH": str(tmp_path), "OTEL_TRACES_EXPORTER": "none"}
    done = run_python("-c", script, **env)
    assert done.stdout.split() == ["True", "[1]"]
    assert "rival:patch_app is to patch flask.app, which stagetrace.patches.flask" in done.stderr
    assert "cannot patch brokenwood (ModuleNotFoundError" in done.stderr
    done = run_python("-c", script, **env, STAGETRACE_DISABLED_INSTRUMENTATIONS="pinewood")
    assert done.stdout.split() == ["False", "[1]"]


OAKSERVE_TABLE = """
ENTRY_PATCHES = {"oakserve": "oakserve_stagetrace.oakserve:patch"}
PATCHES = {**ENTRY_PATCHES, "pinewood.model": "oakserve_stagetrace.pinewood:patch", "flask.app": "rival:patch_app"}
"""
OAKSERVE = """
import sys
def patch(module):
    module.answer = lambda: sys._getframe()
"""


def test_another_distribution_brings_a_table_of_patches(tmp_path: Path) -> None:
    """As ours does. Its code is none of the service's, and requests begin where it says; a broken one is logged."""
    _distribution(tmp_path, "oakserve_stagetrace", "oakserve = oakserve_stagetrace.registry [extra]\n; comment = x:y")
    _distribution(
        tmp_path, "broken", "brokenwood = brokenwood_stagetrace.registry\n\n[another]\npinewood.other = no:no"
    )
    files = {"registry": OAKSERVE_TABLE, "oakserve": OAKSERVE, "pinewood": OAKSERVE, "__init__": ""}
    (tmp_path / "oakserve_stagetrace").mkdir()
    for name, text in files.items():
        (tmp_path / "oakserve_stagetrace" / f"{name}.py").write_text(text)
    (tmp_path / "pinewood").mkdir()
    for name in ("pinewood/model.py", "pinewood/other.py", "oakserve.py"):
        (tmp_path / name).touch()
    script = (
        "import oakserve, pinewood.model, pinewood.other\n"
        "from stagetrace.sources import stacks\n"
        "for frame in oakserve.answer(), pinewood.model.answer():\n"
        "    print(stacks.is_ours(frame.f_code), len(stacks.of_request(frame)))\n"
        "print(stacks.is_ours((lambda: 0).__code__))"
    )
    env = {"STAGETRACE": "1", "PYTHONPATH": str(tmp_path), "OTEL_TRACES_EXPORTER": "none"}
    done = run_python("-c", script, **env)
    assert done.stdout.split() == ["True", "1", "True", "0", "False"]
    assert "rival:patch_app is to patch flask.app" in done.stderr
    assert "registry failed (ModuleNotFoundError: No module named 'brokenwood_stagetrace'" in done.stderr
    assert "cannot patch" not in done.stderr


def test_the_page_of_libraries_is_what_the_files_declare() -> None:
    assert page(PAGE.read_text()) == PAGE.read_text(), "run tests/libraries_page.py"
