"""Measure what a recognised call of a model costs: the library's own method against the wrapped one.

In one process, interleaved: the original (bare), the wrapped one outside a request, both within one. Each call within
a request is the first of a request of its own. "a method that does nothing" has the cost of the wrapper alone; of real
models, whose calls take far longer, the difference lies within their spread. Libraries that are not installed are
left out.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measure import Spread, Table, differences, parser, progress, ratios, rotated, show

if TYPE_CHECKING:
    from collections.abc import Callable

    Call = Callable[[], Any]

BARE, OUTSIDE, BARE_WITHIN, WITHIN = "bare", "outside a request", "bare, within", "within a request"
HOW = (BARE, OUTSIDE, BARE_WITHIN, WITHIN)


@dataclass(frozen=True)
class ModelCalls:
    """By library and way of calling, the median of each round in nanoseconds a call."""

    calls: int
    ns: dict[str, dict[str, list[float]]]


def nothing() -> tuple[Call, Call]:
    """Return a call of a method that does nothing, bare and wrapped."""
    import numpy as np

    from stagetrace.instrumentation.models.base import Calls, Library

    class Model:
        def predict(self, rows: Any) -> None:
            pass

    rows, model = np.ones((5, 4), np.float32), Model()
    wrapped = Library(__name__, "nothing").wrap(Model.predict, Calls("Model", ("predict",)))
    return (lambda: Model.predict(model, rows)), (lambda: wrapped(model, rows))


def scikit_learn() -> tuple[Call, Call]:
    """Return a prediction of a linear model of scikit-learn, bare and wrapped."""
    import numpy as np
    from sklearn.linear_model import LinearRegression

    rows = np.ones((5, 4), np.float32)
    return _both(LinearRegression().fit(rows, np.ones(5)), "predict", rows)


def xgboost() -> tuple[Call, Call]:
    """Return a prediction of trees of xgboost, bare and wrapped."""
    import numpy as np
    from xgboost import DMatrix, train

    rows = np.ones((5, 4), np.float32)
    model = train({"nthread": 1}, DMatrix(rows, label=np.ones(5)), num_boost_round=5)
    return _both(model, "inplace_predict", rows)


def lightgbm() -> tuple[Call, Call]:
    """Return a prediction of trees of lightgbm, bare and wrapped."""
    import numpy as np
    from lightgbm import Dataset, train

    rows = np.ones((50, 4), np.float32)
    model = train({"verbose": -1, "num_threads": 1}, Dataset(rows, label=np.arange(50)), num_boost_round=5)
    return _both(model, "predict", rows)


def onnxruntime() -> tuple[Call, Call]:
    """Return a run of a session of onnxruntime, bare and wrapped."""
    import numpy as np
    from onnxruntime import InferenceSession
    from skl2onnx import to_onnx
    from sklearn.linear_model import LinearRegression

    rows = np.ones((5, 4), np.float32)
    model = to_onnx(LinearRegression().fit(rows, np.ones(5)), rows[:1])
    return _both(
        InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]), "run", None, {"X": rows}
    )


def model2vec() -> tuple[Call, Call]:
    """Return an embedding of model2vec, bare and wrapped."""
    import numpy as np
    from model2vec import StaticModel
    from tokenizers import Tokenizer, models

    unknown = "unknown"
    tokenizer = Tokenizer(models.WordLevel({unknown: 0, "day": 1}, unk_token=unknown))
    return _both(StaticModel(np.eye(2, dtype=np.float32), tokenizer), "encode", "day")


def spacy() -> tuple[Call, Call]:
    """Return a call of an empty pipeline of spaCy, bare and wrapped."""
    import spacy as library

    return _both(library.blank("en"), "__call__", "a good day")


def river() -> tuple[Call, Call]:
    """Return a prediction of a linear model of river, bare and wrapped."""
    from river.linear_model import LinearRegression

    return _both(LinearRegression(), "predict_one", {"a": 1.0})


CALLED = (nothing, scikit_learn, xgboost, lightgbm, onnxruntime, model2vec, spacy, river)


def _both(model: Any, name: str, *args: Any) -> tuple[Call, Call]:
    wrapped = getattr(type(model), name)
    original = wrapped.__wrapped__
    return (lambda: original(model, *args)), (lambda: wrapped(model, *args))


def measure(rounds: int, calls: int) -> ModelCalls:
    """Call each model `calls` times in each round and way."""
    from stagetrace.activate import activate

    activate()
    result = ModelCalls(calls, {})
    for made in CALLED:
        try:
            bare, wrapped = made()
        except ImportError as error:
            progress(f"{made.__name__}: left out, {error}")
            continue
        name = "a method that does nothing" if made is nothing else made.__name__.replace("_", "-")
        ways = {
            BARE: (bare, _outside),
            OUTSIDE: (wrapped, _outside),
            BARE_WITHIN: (bare, _within),
            WITHIN: (wrapped, _within),
        }
        ns = result.ns[name] = {how: [] for how in HOW}
        for number in range(rounds):
            for how in rotated(HOW, number):
                call, timed = ways[how]
                ns[how].append(timed(call, calls))
        progress(f"{name}: {', '.join(f'{how} {min(ns[how]):.0f} ns' for how in HOW)}")
    return result


def _outside(call: Call, calls: int) -> float:
    taken = []
    for _ in range(calls):
        began = perf_counter_ns()
        call()
        taken.append(perf_counter_ns() - began)
    return statistics.median(taken)


def _within(call: Call, calls: int) -> float:
    from stagetrace.request.current import current
    from stagetrace.request.request import Request

    taken = []
    for _ in range(calls):
        record = Request(start=1)
        record.bound = True
        token = current.set(record)
        began = perf_counter_ns()
        call()
        taken.append(perf_counter_ns() - began)
        current.reset(token)
    return statistics.median(taken)


def tables(result: ModelCalls) -> list[Table]:
    """Return the table for people."""
    rows = []
    for name, ns in result.ns.items():
        row = [name, Spread.of([one / 1000 for one in ns[BARE]]).text(2)]
        for bare, wrapped in ((BARE, OUTSIDE), (BARE_WITHIN, WITHIN)):
            added = [one / 1000 for one in differences(ns[wrapped], ns[bare])]
            row += [Spread.of(added).text(2), Spread.of(ratios(ns[wrapped], ns[bare])).text(2)]
        rows.append(row)
    rounds = len(next(iter(result.ns.values()))[BARE])
    columns = ("call", "bare, us", "added outside, us", "outside / bare", "added within, us", "within / bare")
    return [Table(f"{rounds} rounds of {result.calls} calls; median (least to greatest)", columns, rows)]


def reading(result: ModelCalls) -> list[str]:
    """Return what the figures mean."""
    ns = next(iter(result.ns.values()))
    outside, within = (
        Spread.of([one / 1000 for one in differences(ns[wrapped], ns[bare])]).text(2, " us")
        for bare, wrapped in ((BARE, OUTSIDE), (BARE_WITHIN, WITHIN))
    )
    return [f"A wrapper adds {outside} to a call outside a request, {within} within one."]


def main() -> None:
    """Measure and print."""
    arguments = parser(__doc__, "python benchmarks/model_calls.py --rounds 11 --json calls.json")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--calls", type=int, default=2_000, help="measured in each round and way")
    args = arguments.parse_args()
    show(measure(args.rounds, args.calls), tables, reading, args.json)


if __name__ == "__main__":
    main()
