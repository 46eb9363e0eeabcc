"""The contract of a tool: a question that an agent asks, with one function that answers it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stagetrace.store.base import Partial


@dataclass(frozen=True)
class Found(Partial):
    """The answer to a tool. All of it but `command` is text and figures that spans hold, or that code holds."""

    sentence: str
    command: str  # that prints the same; made of what the agent gave
    figures: Mapping[str, Any] = field(default_factory=dict)  # the keys of the command's JSON
    evidence: Sequence[str] = ()  # ids of traces
    steps: Sequence[str] = ()  # commands to run next
    reason: str | None = None


@dataclass(frozen=True)
class Tool:
    """One question. `ask` raises StagetraceError where what is given is wrong, or the store does not answer."""

    name: str
    about: str
    properties: Mapping[str, Mapping[str, Any]]  # JSON Schema of what it takes
    ask: Callable[[Mapping[str, Any]], Found]
    required: Sequence[str] = ()

    @property
    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of its arguments."""
        own = {"properties": dict(self.properties), "required": list(self.required)}
        return {"type": "object", **own, "additionalProperties": False}
