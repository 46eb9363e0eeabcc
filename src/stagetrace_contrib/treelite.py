"""treelite and tl2cgen: predictions of tree models, interpreted or compiled."""

from __future__ import annotations

from typing import Any

from stagetrace.instrumentation.models.base import Calls, Library
from stagetrace.semconv import PREPARE


def _data(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[1] if len(args) > 1 else kwargs.get("data")


TREELITE = Library(__name__, "treelite", name=lambda _: "Model", rows=_data)
patch_gtil = TREELITE.patch(Calls("", ("predict", "predict_leaf", "predict_per_tree")))

TL2CGEN = Library(__name__, "tl2cgen")
patch_predictor = TL2CGEN.patch(Calls("Predictor", ("predict",)))
patch_data = TL2CGEN.patch(Calls("DMatrix", ("__init__",), PREPARE))
