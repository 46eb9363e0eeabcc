"""Libraries imported before stagetrace is activated: what they predict before and after it, and what is recorded."""

import inspect
import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from implicit.nearest_neighbours import CosineRecommender
from model2vec import StaticModel
from river import dummy, stats
from scipy.sparse import csr_matrix
from statsmodels.tsa.holtwinters import ExponentialSmoothing
from statsmodels.tsa.holtwinters.results import HoltWintersResultsWrapper
from tokenizers import Tokenizer, models, pre_tokenizers

UNKNOWN = "[UNK]"
tokenizer = Tokenizer(models.WordLevel({UNKNOWN: 0, "day": 1}, unk_token=UNKNOWN))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
static = StaticModel(np.eye(2, dtype=np.float32), tokenizer)
series = ExponentialSmoothing(np.arange(12.0)).fit()
likes = csr_matrix(np.eye(4, dtype=np.float32))
cosine = CosineRecommender(num_threads=1)
cosine.fit(likes, show_progress=False)
mean = dummy.StatisticRegressor(stats.Mean())
mean.learn_one({}, 3.0)

CALLS: dict[str, Callable[[], Any]] = {
    "model2vec": lambda: static.encode(["day"]).tolist(),
    "statsmodels": lambda: series.forecast(2).tolist(),
    "implicit": lambda: list(map(int, cosine.recommend(0, likes[0])[0])),
    "river": lambda: mean.predict_one({}),
}
METHODS: list[tuple[type, str]] = [
    (StaticModel, "encode"),
    (HoltWintersResultsWrapper, "forecast"),
    (CosineRecommender, "recommend"),
    (dummy.StatisticRegressor, "predict_one"),
]


def signatures() -> list[str]:
    return [str(inspect.signature(getattr(cls, name))) for cls, name in METHODS]


before, declared = {name: call() for name, call in CALLS.items()}, signatures()

from stagetrace.activate import activate  # noqa: E402

activate()
imported = [name for name in sys.modules if name.startswith("opentelemetry.")]
after = {name: call() for name, call in CALLS.items()}

from stagetrace.request.current import current  # noqa: E402
from stagetrace.request.request import Request  # noqa: E402


def recorded(call: Callable[[], Any]) -> list[str]:
    """Return the frameworks of the inferences of a request that makes a call."""
    record = Request(start=1)
    record.bound = True
    token = current.set(record)
    call()
    current.reset(token)
    stages = record.close(1, 2**62).segments()
    return [dict(one.attributes or {})["ml.framework"] for one in stages if one.stage == "inference"]


said = {
    "same": before == after,
    "signatures": declared == signatures(),
    "opentelemetry": imported,
    "recorded": {name: recorded(call) for name, call in CALLS.items()},
}
sys.stdout.write(json.dumps(said))
