"""A program whose estimator is defined in it, and is sent to other processes: joblib's, and with and without stagetrace."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import cloudpickle
import dill
from joblib import Parallel, delayed
from sklearn.base import BaseEstimator
from sklearn.utils.metaestimators import available_if

READ = f"""
import sys
sys.path += {sys.path!r}
for pickler in sys.argv[1:]:
    model = __import__(pickler).load(sys.stdin.buffer)
    seen = getattr(type(model).predict, "_stagetrace_wrapped", None) is not None
    print(model.predict([1, 2], times=3), model.transform([1]), seen, "stagetrace" in sys.modules)
"""


class Mine(BaseEstimator):
    def predict(self, rows: list[int], times: int = 1) -> int:
        return sum(rows) * times

    @available_if(lambda _: True)
    def transform(self, rows: list[int]) -> Any:
        return [row + 1 for row in rows]


if __name__ == "__main__":
    mine = Mine()
    assert mine.predict([1, 2], times=2) == 6
    assert mine.transform([1]) == [2]
    print(hasattr(Mine.predict, "_stagetrace_wrapped"))  # noqa: T201
    print(Parallel(n_jobs=2)(delayed(mine.predict)([number, number]) for number in range(3)), flush=True)  # noqa: T201
    pickled = cloudpickle.dumps(mine) + dill.dumps(mine)
    for options in (["-S"], []):  # -S: no file of ours is run at the start
        argv = [sys.executable, *options, "-c", READ, "cloudpickle", "dill"]
        subprocess.run(argv, input=pickled, check=True)
