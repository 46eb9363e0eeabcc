"""What is asked of many requests at once: the answers, and some others, of one store as of another."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from cli.running import answered

SINCE: Final = ("--since", "1970-01-01", "--until", "2100-01-01")
_PRICES: Final = {"currency": "EUR", "per_hour": 1.2, "per_1k_tokens": {"input": 0.3}}
QUESTIONS: Final = {
    "slo": ["slo"],
    "report": ["report"],
    "bottleneck": ["bottleneck"],
    "causes": ["causes"],
    "segments": ["segments"],
    "compare": ["compare", "--a", "service.version=2026.10", "--b", "service.version=2026.11"],
    "drift": ["drift"],
    "capacity": ["capacity"],
    "cost": ["cost"],
    "stages": ["stages"],
    "breaches": ["breaches", "--each"],
    "why": ["why"],
    "groups": ["breaches"],
    "requests": ["requests", "--slowest", "20"],
    "suggest": ["sla suggest"],
}


def said(name: str, url: str) -> Any:
    """Return what a store answers to one of the questions."""
    with TemporaryDirectory() as folder:
        prices = Path(folder) / "prices.json"
        prices.write_text(json.dumps(_PRICES))
        command = [*QUESTIONS[name], *(["--prices", prices] if name == "cost" else [])]
        return rounded(answered(*command, *SINCE, "--store", url, code=None))


def rounded(found: Any) -> Any:
    """Return an answer without the last digits of its numbers: engines interpolate quantiles in another order."""
    if isinstance(found, dict):
        return {key: rounded(one) for key, one in found.items()}
    if isinstance(found, list):
        return [rounded(one) for one in found]
    return round(found, 9) if isinstance(found, float) else found
