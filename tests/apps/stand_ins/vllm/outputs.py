"""Results, with the fields that the library documents."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class RequestOutputKind(Enum):
    """What the outputs of a request hold."""

    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


@dataclass
class SamplingParams:
    """How to generate."""

    n: int = 1
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE


@dataclass
class RequestStateStats:
    """Times of the engine: by the wall clock at the front end, else by its monotonic clock."""

    num_generation_tokens: int = 0
    arrival_time: float = 0.0
    queued_ts: float = 0.0
    scheduled_ts: float = 0.0
    first_token_ts: float = 0.0
    last_token_ts: float = 0.0
    first_token_latency: float = 0.0


@dataclass
class CompletionOutput:
    """One sequence."""

    index: int
    text: str
    token_ids: list[int]
    finish_reason: str | None = None


@dataclass
class RequestOutput:
    """One request."""

    request_id: str
    prompt_token_ids: list[int] | None
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestStateStats | None = None
    num_cached_tokens: int | None = None


@dataclass
class PoolingRequestOutput:
    """One embedding."""

    request_id: str
    outputs: Any
    prompt_token_ids: list[int] = field(default_factory=list)
    finished: bool = True
