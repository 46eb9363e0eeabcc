"""prophet: forecasts of a fitted model."""

from __future__ import annotations

from stagetrace.instrumentation.models.base import Calls, Library

PROPHET = Library(__name__, "prophet")
patch_forecaster = PROPHET.patch(Calls("Prophet", ("predict", "predictive_samples")))
