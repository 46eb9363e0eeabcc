"""The names of OpenTelemetry's conventions for generative models that stagetrace writes and reads.

Source: the registry of semantic-conventions-genai, status Development, as of opentelemetry-semantic-conventions 0.66b1.
Attributes of ours have their line in `semconv`.
"""

from __future__ import annotations

from typing import Final

# Attributes of a generative call; one line each.
OPERATION_NAME: Final = "gen_ai.operation.name"  # string: what the model does, one of the OPERATION_ words below
PROVIDER_NAME: Final = "gen_ai.provider.name"  # string: the engine or company; `vllm`, `openai` ...
REQUEST_MODEL: Final = "gen_ai.request.model"  # string: the model that was asked for
REQUEST_STREAM: Final = "gen_ai.request.stream"  # bool: the response is streamed
RESPONSE_MODEL: Final = "gen_ai.response.model"  # string: the model that responded
TIME_TO_FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"  # double, seconds: from the call's begin
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"  # int: tokens of the prompt, those from a cache included
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"  # int: tokens generated
CACHE_READ_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"  # int: tokens of the prompt that a cache held
ERROR_TYPE: Final = "error.type"  # string: class of the exception that ended the call

# Values of `gen_ai.operation.name`.
CHAT: Final = "chat"
TEXT_COMPLETION: Final = "text_completion"
GENERATE_CONTENT: Final = "generate_content"
EMBEDDINGS: Final = "embeddings"

# What engines write on spans of their own, alike in vLLM and SGLang: double, seconds.
LATENCY_QUEUE: Final = "gen_ai.latency.time_in_queue"  # from arrival until it was scheduled
LATENCY_PREFILL: Final = "gen_ai.latency.time_in_model_prefill"  # SGLang's contains the queue
LATENCY_DECODE: Final = "gen_ai.latency.time_in_model_decode"  # from the first token to the last

LATENCIES: Final = (LATENCY_QUEUE, LATENCY_PREFILL, LATENCY_DECODE)  # the phases of a call, in order

# Metrics of a model server: histograms, seconds.
METRIC_REQUEST_DURATION: Final = "gen_ai.server.request.duration"  # of a generative call
METRIC_TTFT: Final = "gen_ai.server.time_to_first_token"  # queue and prefill included
METRIC_TPOT: Final = "gen_ai.server.time_per_output_token"  # of each token after the first
