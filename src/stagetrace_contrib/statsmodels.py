"""statsmodels: what fitted results predict with, of each class of results and of users' own."""

from __future__ import annotations

from typing import Any

from stagetrace.instrumentation.models.base import Calls, Library, first_argument

METHODS = ("predict", "forecast", "get_prediction", "get_forecast", "simulate")


def _name(results: Any) -> str:
    return type(getattr(results, "model", results)).__name__


def _rows(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if "steps" in kwargs or (len(args) > 1 and type(args[1]) is int):
        return None  # to forecast steps, which may be given the values before them: these are no batch
    return first_argument(args, kwargs)


STATSMODELS = Library(
    __name__,
    "statsmodels",
    name=_name,
    rows=_rows,
    is_flat=True,
    not_recognised="`predict` of an unfitted model, with parameters",
)
patch_model = STATSMODELS.patch(Calls("Results", METHODS, derived=True))
# It hands results out in these, which hold some methods as they were when they were made.
patch_wrapper = STATSMODELS.patch(Calls("ResultsWrapper", METHODS, derived=True))
# These do not derive from `Results`.
patch_var_model = STATSMODELS.patch(Calls("VARProcess", ("forecast", "forecast_interval"), derived=True))
patch_vecm = STATSMODELS.patch(Calls("VECMResults", ("predict",)))
patch_stl = STATSMODELS.patch(Calls("STLForecastResults", ("forecast", "get_prediction")))
patch_theta = STATSMODELS.patch(Calls("ThetaModelResults", ("forecast", "prediction_intervals")))
