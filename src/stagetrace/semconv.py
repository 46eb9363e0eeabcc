"""Every span and attribute name that the recording side writes and the reading side reads.

An attribute is one line: its constant, its name, the type of its value, and what it holds.
"""

from __future__ import annotations

import base64
import json
from math import isfinite, isnan
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# Stages, in the order in which a request passes through them.
NETWORK_RECEIVE: Final = "network.receive"
QUEUE: Final = "queue"
PREPROCESS: Final = "preprocess"
INFERENCE: Final = "inference"
POSTPROCESS: Final = "postprocess"
NETWORK_SEND: Final = "network.send"
HANDLER: Final = "handler"  # all of the handler's own time, where it never infers
STAGES: Final = (NETWORK_RECEIVE, QUEUE, PREPROCESS, HANDLER, INFERENCE, POSTPROCESS, NETWORK_SEND)

# A model's `transform`, until it is settled whether it was preprocessing, inference or postprocessing; never exported.
TRANSFORM: Final = "transform"
# That of a scaler, an encoder and their like, which is no inference wherever it is; never exported, either.
PREPARE: Final = "prepare"


class Attribute(NamedTuple):
    """One attribute that stagetrace records."""

    name: str
    kind: str  # of its value, in OTLP's words
    description: str
    older: str | None = None  # its name in spans that older versions recorded, which readers accept


STRING: Final = "string"
INT: Final = "int"
DOUBLE: Final = "double"
BOOLEAN: Final = "boolean"
# Every attribute of ours by its name; docs/attributes.md and the types of columns are made of it.
ATTRIBUTES: Final[dict[str, Attribute]] = {}


def _attribute(name: str, kind: str, description: str, *, older: str | None = None) -> str:
    """Add an attribute to the table and return its name."""
    ATTRIBUTES[name] = Attribute(name, kind, description, older)
    return name


# One attribute a line: a table.
# fmt: off

# Stage spans.
ML_STAGE: Final = _attribute("ml.stage", STRING, "stage span: name of the stage, equal to the span's name")
ML_STAGE_COALESCED: Final = _attribute("ml.stage.coalesced", INT, "stage span that stands for several visits to its stage: how many; its length is their sum, and they alternated with those of its neighbours")
ML_STAGE_COALESCED_LONGEST_MS: Final = _attribute("ml.stage.coalesced.longest_ms", DOUBLE, "the same: the longest of these visits, ms")
QUEUE_REASON: Final = _attribute("queue.reason", STRING, "queue stage: what the request waited for (`socket`: the server, before it read the request; `thread_pool`: AnyIO's; `executor`: a ThreadPoolExecutor; `server_threads`: the threads of a WSGI server; `grpc_pool`; `worker`: a process; `batch`; `consumer`: the code that reads a queue of the service's own; `lock`, `semaphore`: one of asyncio or AnyIO, which another request had)")
QUEUE_POOL_SIZE: Final = _attribute("queue.pool_size", INT, "queue stage: threads of the pool")
QUEUE_WAITERS: Final = _attribute("queue.waiters", INT, "queue stage: tasks that were already waiting for the pool when this one arrived")
QUEUE_BLOCKED_BY: Final = _attribute("queue.blocked_by", STRING, "queue stage of a wait in the socket: the request, and its model if it called one, that blocked the event loop or the worker for most of the wait")
# Entry span; Sentry's name for it, since the semantic conventions have none.
QUEUE_IN_FRONT_MS: Final = _attribute("http.server.request.time_in_queue", DOUBLE, "entry span: how long the request waited before it reached this server, by a load balancer's `X-Request-Start` or `X-Queue-Start`, ms; no part of the duration")
ML_MODEL_NAME: Final = _attribute("ml.model.name", STRING, "inference stage and entry span: class or file name of the model, of transformers its id or folder; client span: the model that a KServe v2 call asks for")
ML_MODEL_RECOGNISED: Final = _attribute("ml.model.recognised", BOOLEAN, "entry span and handler stage: false where the request transformed data as for a model, and no model was recognised")
ML_MODEL_VERSION: Final = _attribute("ml.model.version", STRING, "inference stage and entry span: version of the model, where its server or folder gives it; client span: the version that a KServe v2 call asks for")
ML_FRAMEWORK: Final = _attribute("ml.framework", STRING, "inference stage and entry span: library that ran the model")
ML_DEVICE: Final = _attribute("ml.device", STRING, "inference stage and entry span: where the model runs, as `cpu` or `cuda:0`, where its library gives that")
ML_INPUT_SIZE: Final = _attribute("ml.input.size", INT, "inference stage and entry span: numbers in the first input, or characters where it is text")
ML_STEPS: Final = _attribute("ml.steps", INT, "inference stage and entry span: steps that a diffusion model was asked for")
ML_BATCH_SIZE: Final = _attribute("ml.batch.size", INT, "inference stage and entry span: requests in the batch; without one, rows in the first input; so on the client span of a KServe v2 call")
ML_COLD_START: Final = _attribute("ml.cold_start", BOOLEAN, "inference stage and entry span: true on the first call of this model in the process")
CPU_TIME_MS: Final = _attribute("stagetrace.cpu.time_ms", DOUBLE, "inference stage of 1 ms and more, entry span for the first: CPU time of its thread, ms", older="cpu.time_ms")
CPU_WAIT_MS: Final = _attribute("stagetrace.cpu.wait_ms", DOUBLE, "the same: how long its thread was ready to run and had no CPU, ms; Linux", older="cpu.wait_ms")
CPU_BLOCKED_MS: Final = _attribute("stagetrace.cpu.blocked_ms", DOUBLE, "the same: the rest, in which its thread waited for a lock, the GIL, a device, or input or output, ms; Linux", older="cpu.blocked_ms")
DEVICE_TIME_MS: Final = _attribute("stagetrace.device.time_ms", DOUBLE, "inference stage of a torch model on a CUDA device, entry span for the first: how long the device took from the begin of the call's work to its end, in the call's stream, ms; of calls that follow each other before the device was done, their sum")
DEVICE_PENDING: Final = _attribute("stagetrace.device.pending", BOOLEAN, "the same: true where the device was not done with a call when the request was over, or could not be asked; its time is then missing, and the stage is the host's time")
GC_PAUSE_MS: Final = _attribute("stagetrace.gc.pause_ms", DOUBLE, "breached entry span: how long Python's garbage collector ran within its handler and model, ms", older="gc.pause_ms")

# Detail spans.
DETAIL_CALLS: Final = _attribute("stagetrace.detail.calls", INT, "detail span: library calls of its kind that began within one visit to its stage; the span lasts from the first begin to the last end")
DETAIL_TIME_MS: Final = _attribute("stagetrace.detail.time_ms", DOUBLE, "detail span: sum of the times of these calls, ms; more than the span's length where they ran in parallel")
DETAIL_LIBRARY: Final = _attribute("stagetrace.detail.library", STRING, "detail span: library that was called, by its import name")
DETAIL_FAILED: Final = _attribute("stagetrace.detail.failed", INT, "detail span, where there are any: calls that raised an exception")

# Inference stages and entry spans of generative models, besides OpenTelemetry's `gen_ai.*` (gen_ai.py).
TOKENS_FIRST_MS: Final = _attribute("stagetrace.tokens.first_ms", DOUBLE, "inference stage of a generative model: from the call until its first token was generated, ms; entry span: from its start until the first token of the request")
TOKENS_PER_SECOND: Final = _attribute("stagetrace.tokens.per_second", DOUBLE, "the same: tokens generated by the second of the call, prompt and waits included; entry span: of all calls")
TOKENS_GAP_MEAN_MS: Final = _attribute("stagetrace.tokens.gap.mean_ms", DOUBLE, "the same, where two tokens and more were generated: mean time of each token after the first of its sequence, ms")
TOKENS_GAP_MAX_MS: Final = _attribute("stagetrace.tokens.gap.max_ms", DOUBLE, "the same, where each token was seen: longest time from one to the next, ms")
TOKENS_CALLS: Final = _attribute("stagetrace.tokens.calls", INT, "entry span of a request that called generative models more than once: how often")
TOKENS_INCOMPLETE: Final = _attribute("stagetrace.tokens.incomplete", BOOLEAN, "the same: true where the generation was given up, or went on when the request ended; the tokens are those until then")
TOKENS_ERROR: Final = _attribute("stagetrace.tokens.error", STRING, "the same: class of the exception by which the engine ended a call; entry span: of the first that it ended so")

# Entry spans: the server.
ML_WORKER_LOST: Final = _attribute("ml.worker.lost", BOOLEAN, "entry span: true where the process that worked for the request ended")

# Entry spans: what passed between client and application.
NETWORK_CHUNKS: Final = _attribute("stagetrace.network.chunks", INT, "entry span of a response in more than one chunk, or message of an RPC: how many, empty chunks not counted", older="network.chunks")
NETWORK_FIRST_BYTE_MS: Final = _attribute("stagetrace.network.first_byte_ms", DOUBLE, "entry span of such a response: from its start until the first chunk was sent, ms", older="network.first_byte_ms")
NETWORK_CHUNK_GAP_MAX_MS: Final = _attribute("stagetrace.network.chunk_gap.max_ms", DOUBLE, "entry span of such a response: longest time from one chunk to the next, ms", older="network.chunk_gap.max_ms")
NETWORK_CHUNK_GAP_P99_MS: Final = _attribute("stagetrace.network.chunk_gap.p99_ms", DOUBLE, "entry span of such a response: 99 % of these times were no longer, ms; up to 3 % too high", older="network.chunk_gap.p99_ms")
NETWORK_DISCONNECT: Final = _attribute("stagetrace.network.disconnect", STRING, "entry span of an incomplete response: the `client` disconnected, or the request was `cancelled`, an RPC also by its deadline", older="network.disconnect")
NETWORK_RTT_MS: Final = _attribute("stagetrace.network.rtt_ms", DOUBLE, "entry span, but of most good requests: round trip to the client, by the kernel's smoothed measure at the end of the response, ms; client span: to the server that was called, at the begin of its response; Linux", older="network.rtt_ms")
NETWORK_RETRANSMITS: Final = _attribute("stagetrace.network.retransmits", INT, "the same, where there are any: segments retransmitted since the connection began", older="network.retransmits")
NETWORK_UNACKED_BYTES: Final = _attribute("stagetrace.network.unacked_bytes", INT, "entry span that has the round trip, where there are any: bytes of responses that the client had not acknowledged when this one was sent, those in the server's own buffer included; Linux 4.19", older="network.unacked_bytes")
NETWORK_MESSAGES_RECEIVED: Final = _attribute("stagetrace.network.messages.received", INT, "entry span of a websocket, or of an RPC that takes a stream: messages received", older="network.messages.received")
NETWORK_MESSAGES_SENT: Final = _attribute("stagetrace.network.messages.sent", INT, "entry span of a websocket: messages sent", older="network.messages.sent")
NETWORK_RECEIVED_BYTES: Final = _attribute("stagetrace.network.received_bytes", INT, "entry span of an RPC: bytes of the messages received, uncompressed", older="network.received_bytes")
NETWORK_SENT_BYTES: Final = _attribute("stagetrace.network.sent_bytes", INT, "entry span of an RPC: bytes of the messages sent, uncompressed", older="network.sent_bytes")
HTTP_REQUEST_BODY_SIZE: Final = _attribute("http.request.body.size", INT, "entry span: bytes of the body that the application received, where there was one")
HTTP_RESPONSE_BODY_SIZE: Final = _attribute("http.response.body.size", INT, "entry span: bytes of the response's body, where there is one")

# Client spans: what the called service reports of itself, in its own words.
CALLEE_SOURCE: Final = _attribute("stagetrace.callee.source", STRING, "client span: where the called service reported its times: `server-timing`, a header of its own, or the engine (`vllm`, `sglang` ...)")
CALLEE_QUEUE_MS: Final = _attribute("stagetrace.callee.queue_ms", DOUBLE, "client span: how long the request waited in queues of the called service, by its own report, ms")
CALLEE_COMPUTE_MS: Final = _attribute("stagetrace.callee.compute_ms", DOUBLE, "the same: how long its model computed, ms")
CALLEE_OTHER_MS: Final = _attribute("stagetrace.callee.other_ms", DOUBLE, "the same, where it reports total and queue: the rest of its total, ms")
CALLEE_TOTAL_MS: Final = _attribute("stagetrace.callee.total_ms", DOUBLE, "the same: all of its time, over HTTP as a rule until its response began, ms")
CALLEE_NETWORK_MS: Final = _attribute("stagetrace.callee.network_ms", DOUBLE, "client span of a call whose total is reported: what the call took beyond that, until the response began, of an RPC until its end, ms: connecting, the network, and what either side did outside of the total")
CALLEE_RESPONSE_MS: Final = _attribute("stagetrace.callee.response_ms", DOUBLE, "the same, where the total came with the headers of a response: from these until its end, of which nothing is reported, ms")
CALLEE_FIRST_TOKEN_MS: Final = _attribute("stagetrace.callee.first_token_ms", DOUBLE, "client span: from the arrival of the request at the called engine until its first token, by its own report, ms")
CALLEE_IMPLAUSIBLE: Final = _attribute("stagetrace.callee.implausible", BOOLEAN, "client span: true where the called service reports more time than the call took, or parts that exceed their total: not used for any cause")
CALLEE_SERVER_TIMING: Final = _attribute("stagetrace.callee.server_timing", STRING, "client span: metrics of a `Server-Timing` that is not divided into queue and rest, as `db=53, app=47.2`, ms")
CALLEE_LOAD: Final = _attribute("stagetrace.callee.load", STRING, "client span: load that the called service reports (ORCA), as `cpu_utilization=0.3, named_metrics.num_requests_waiting=4`")
CALLEE_CPU_UTILIZATION: Final = _attribute("stagetrace.callee.cpu_utilization", DOUBLE, "the same: share of its CPUs in use")
CALLEE_APPLICATION_UTILIZATION: Final = _attribute("stagetrace.callee.application_utilization", DOUBLE, "the same: by its own measure, more than 1 beyond its soft limit")

# Entry spans: the verdict.
SLA_BREACHED: Final = _attribute("sla.breached", BOOLEAN, "entry span: whether the objective was missed; absent where no objective matches and where the verdict is `excluded`")
SLA_VERDICT: Final = _attribute("sla.verdict", STRING, "entry span: `good`, `breach`, or `excluded` from judgement")
SLA_OBJECTIVE: Final = _attribute("sla.objective", STRING, "entry span: the objective that judged it, in the policy's own words")
SLA_VERDICTS: Final = _attribute("sla.verdicts", STRING, "entry span that several objectives judged: the verdict of each, in the policy's order, as `good: predict-p99 (99% over 28d); breach: predict-p50 (50% over 7d)`; `sla.objective` and what follows from it are about the first that was missed, else the first that judged")
SLA_SEGMENT: Final = _attribute("sla.segment", STRING, "judged entry span whose objective has segments: its own, as `gold` or `gold, eu`; `other` beyond the limit on segments, `(none)` for a value that it does not have")
SLA_EXCLUDED_REASON: Final = _attribute("sla.excluded.reason", STRING, "excluded entry span: why: `rule`, `warmup`, `error` or `disconnect`")
SLA_DEADLINE_SOURCE: Final = _attribute("sla.deadline.source", STRING, "judged entry span whose threshold is the deadline that the request brought along: the header that had it, or `grpc-timeout`")
SLA_OVER_BUDGET: Final = _attribute("sla.over_budget", STRING, "judged entry span whose objective has budgets of stages: the stages that exceeded theirs, the one with most excess first, as `inference, queue`; also where the request as a whole was good")
SLA_TARGET: Final = _attribute("sla.target", STRING, "judged entry span, where it is not `99% over 28d`: the share of requests that is to meet the objective, and the window over which it counts")
SLA_THRESHOLD_MS: Final = _attribute("sla.threshold_ms", DOUBLE, "entry span: duration allowed, ms, or what the bound allows that `sla.breach.promise` names")
SLA_OVERRUN_MS: Final = _attribute("sla.overrun_ms", DOUBLE, "breached entry span: duration minus threshold, ms")
SLA_SEVERITY: Final = _attribute("sla.severity", STRING, "breached entry span: `minor` (< 1.25 x), `major` (< 2 x) or `critical`")
SLA_BREACH_STAGE: Final = _attribute("sla.breach.stage", STRING, "breached entry span: the stage that exceeds its budget by the most; else the one with most of the time that `sla.breach.cause` explains; for mixed causes the stage that took the most")
SLA_FALLBACK: Final = _attribute("sla.fallback", STRING, "judged entry span whose objective has `first_token` or `per_token`, where its tokens were not known: how these were judged instead, as `first_token as first_chunk, per_token not judged: tokens not known`")
SLA_BREACH_PROMISE: Final = _attribute("sla.breach.promise", STRING, "breached entry span: the bound that was missed, where it is not the duration: `first_chunk`, `per_chunk`, `first_token`, `per_token`, `disconnect` or `error`")
SLA_BREACH_MISSED: Final = _attribute("sla.breach.missed", STRING, "breached entry span of a streamed or generated response: each bound of the objective that was missed, with its value, as `first_chunk: 163.2 ms, 100 ms allowed; per_chunk: 41 ms, 20 ms allowed`; the first one is what `sla.threshold_ms` and `sla.overrun_ms` are about")
SLA_BREACH_CAUSE: Final = _attribute("sla.breach.cause", STRING, "breached entry span: what made it slow, one of the words of docs/causes.md (`cpu_wait`, `downstream`, `gc` ...)")
SLA_BREACH_EVIDENCE: Final = _attribute("sla.breach.evidence", STRING, "breached entry span: one sentence with the numbers")
SLA_BREACH_CODE: Final = _attribute("sla.breach.code", STRING, "breached entry span: the line of the application's own code at which the request stood while it was late, as `app.py:41 in predict`; absent where no stack was sampled in the stage of the breach (docs/stalls.md)")
SLA_BREACH_NO_CODE: Final = _attribute("sla.breach.no_code", STRING, "breached entry span without `sla.breach.code`: why it has none, one of `off`, `not_late`, `skipped`, `not_reached`, `libraries`, `after_wait`, `elsewhere` (docs/stalls.md)")
SLA_BREACH_PEER: Final = _attribute("sla.breach.peer", STRING, "breached entry span: service that the stage waited for most of its time (`downstream`): `peer.service`, else `address:port`")
SLA_BREACH_PEER_QUEUE_MS: Final = _attribute("sla.breach.peer.queue_ms", DOUBLE, "breached entry span with a peer whose report is plausible: how long its calls waited in queues of the peer, ms; so the next four, which are no parts of the request beside `sla.breach.part.*`")
SLA_BREACH_PEER_COMPUTE_MS: Final = _attribute("sla.breach.peer.compute_ms", DOUBLE, "the same: how long models of the peer computed, ms")
SLA_BREACH_PEER_OTHER_MS: Final = _attribute("sla.breach.peer.other_ms", DOUBLE, "the same: the rest of the peer's own time, ms")
SLA_BREACH_PEER_NETWORK_MS: Final = _attribute("sla.breach.peer.network_ms", DOUBLE, "the same: what its calls took beyond the peer's own time, ms (`stagetrace.callee.network_ms`)")
SLA_BREACH_PEER_RESPONSE_MS: Final = _attribute("sla.breach.peer.response_ms", DOUBLE, "the same: from the headers of its responses until their end, of which it reports nothing, ms")
SLA_DEADLINE_REMAINING_MS: Final = _attribute("sla.deadline.remaining_ms", DOUBLE, "entry span of an RPC whose caller set a deadline: what was left of it on arrival, ms")
# Present (true) on each span that the head sampler had dropped and a breach brought back: never extrapolate from it.
SLA_UPGRADED: Final = _attribute("sla.upgraded", BOOLEAN, "span that the head sampler dropped and a breach brought back: exclude it from extrapolations")
# Present on each entry span of a process that samples at its head; 0: not known. A breach counts once all the same.
SLA_SAMPLING_PROBABILITY: Final = _attribute("sla.sampling.probability", DOUBLE, "entry span, where the head sampler drops requests: the probability with which it keeps one that is no breach (0.1: it stands for 10), or 0 where that is not known; breaches are all kept, and count once")

# Span event of a breached entry span: a distinct stack that was sampled while the request was late.
STALL: Final = "stall"
CODE_FILE_PATH: Final = "code.file.path"
CODE_LINE_NUMBER: Final = "code.line.number"
CODE_FUNCTION_NAME: Final = "code.function.name"
CODE_STACKTRACE: Final = "code.stacktrace"
STALL_OF: Final = _attribute("stagetrace.stall.of", STRING, "event `stall`: whose stack it is: `request`, `blocker` (what ran on the event loop or thread that the request waited for), `resumed` (a block of `stagetrace.resume` in another process, where the request may not have waited for it), `rival` (the thread that computed while the request waited for a lock or the GIL) or `pool` (a thread of the pool that had none free)")
STALL_SAMPLES: Final = _attribute("stagetrace.stall.samples", INT, "event `stall`: samples with this stack")
STALL_OUT_OF: Final = _attribute("stagetrace.stall.out_of", INT, "event `stall`: samples of that kind in all")
STALL_GIL_MS: Final = _attribute("stagetrace.stall.gil_ms", DOUBLE, "event `stall`: for how long the sampler itself could not run Python before its sample, since some thread held the GIL, this one or another, ms; absent below 20 ms, for which it may change hands by turns")
STAGETRACE_DROPPED_STALLS: Final = _attribute("stagetrace.dropped_stalls", INT, "breached entry span, where there are any: stacks that were sampled and are no event, beyond 16 KB")
STAGETRACE_SKIPPED_STALLS: Final = _attribute("stagetrace.skipped_stalls", INT, "breached entry span, where there are any: times at which the request was late and no stack of it was sampled, since the sampler had used its share of a CPU, could not run, or watched 200 requests already")

# Any span: what could not be recorded of it.
STAGETRACE_PROCESS_CPU_MS: Final = _attribute("stagetrace.process.cpu_ms", DOUBLE, "entry span, at most four a second of a process: CPU time that all threads of its process used since the span before that carries it, ms")
STAGETRACE_PROCESS_CPUS: Final = _attribute("stagetrace.process.cpus", DOUBLE, "resource: CPUs that the process may use, by its affinity and the quota of its container (cgroup version 2)")
STAGETRACE_TRUNCATED_ATTRIBUTES: Final = _attribute("stagetrace.truncated_attributes", INT, "any span: values, of its events and links too, that were cut at the limit")
STAGETRACE_DROPPED_ATTRIBUTES: Final = _attribute("stagetrace.dropped_attributes", INT, "entry or stage span: attributes dropped: over 128 of a stage, without a text, or containing themselves")
STAGETRACE_DROPPED_DETAILS: Final = _attribute("stagetrace.dropped_details", INT, "entry span, where there are any: detail spans that were dropped, the shortest: a request has 64 at most")
STAGETRACE_DROPPED_SPANS: Final = _attribute("stagetrace.dropped_spans", INT, "upgraded entry span: spans under it that the buffer had no room for")

# fmt: on

# Metrics.
METRIC_REQUESTS: Final = "sla.requests"
METRIC_BREACHES: Final = "sla.breaches"
METRIC_TARGET: Final = "sla.target"
METRIC_THRESHOLD: Final = "sla.threshold"
METRIC_INFO: Final = "sla.objective.info"
METRIC_DURATION: Final = "sla.duration"  # s, exponential histogram by objective
METRIC_STAGE_DURATION: Final = "sla.stage.duration"  # s, the same by objective and stage
METRIC_SEGMENT_OVERFLOW: Final = "sla.segments.overflow"  # requests counted as `other` by objective
METRIC_UNUSABLE_DEADLINES: Final = "sla.deadlines.unusable"  # requests by where their deadline came from
METRIC_LOOP_LAG: Final = "stagetrace.event_loop.lag"  # s
METRIC_SPANS: Final = "stagetrace.spans"
METRIC_SPANS_OUTCOME: Final = "outcome"


def peer(attributes: Mapping[str, object]) -> str | None:
    """Return the peer that a client span called, by its present or older attributes; None if it has none of them."""
    for name in ("peer.service", "service.peer.name"):
        if name in attributes:
            return str(attributes[name])
    for host, port in (("server.address", "server.port"), ("net.peer.name", "net.peer.port")):
        if attributes.get(host):
            return f"{attributes[host]}:{attributes[port]}" if attributes.get(port) else str(attributes[host])
    url = urlsplit(str(attributes.get("url.full") or attributes.get("http.url") or ""))
    return url.netloc or (None if is_embedded(attributes) else _database(attributes))


def is_embedded(attributes: Mapping[str, object]) -> bool:
    """Return whether a client span is of a database within the process, which waits for nobody else."""
    return _database(attributes) in ("sqlite", "duckdb")


def _database(attributes: Mapping[str, object]) -> str | None:
    system = attributes.get("db.system.name") or attributes.get("db.system")
    return str(system) if system else None


def stage_total_ms(stage: str) -> str:
    """Return the entry span's attribute that holds the summed duration of `stage`, in ms."""
    return f"ml.stage.{stage}.ms"


def breach_part_ms(part: str) -> str:
    """Return the breached entry span's attribute that holds how long one part of the request took, in ms."""
    return f"sla.breach.part.{part}_ms"


def stage_of_total(attribute: str) -> str | None:
    """Return the stage whose total `attribute` holds, or None if it is another attribute."""
    if attribute.startswith("ml.stage.") and attribute.endswith(".ms"):
        return attribute[len("ml.stage.") : -len(".ms")]
    return None


# --- The names of OpenTelemetry's conventions for generative models that stagetrace writes and reads.
#
# Source: the registry of semantic-conventions-genai, status Development, as of opentelemetry-semantic-conventions
# 0.66b1. Attributes of ours have their line in `semconv`.

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


# --- Typed access to the attributes of a span, as both stores and analyses read them. Pure.

_STAGE_ORDER: Final = {stage: place for place, stage in enumerate(STAGES)}


def text(attributes: Mapping[str, object], key: str) -> str | None:
    """Return a text attribute, or None if it is absent or of another type."""
    found = attributes.get(key)
    return found if isinstance(found, str) else None


def as_text(found: Any) -> str:
    """Return a value's text form, which filters compare: `true`, `3`, `0.5`, text itself, base64 of bytes.

    Lists and maps are JSON without spaces. A whole float has no fraction (`50`), as Jaeger shows it.
    """
    if isinstance(found, str):
        return found
    if isinstance(found, bool):
        return "true" if found else "false"
    if isinstance(found, int):
        return str(found)
    if isinstance(found, float):
        return str(json_value(found)).removesuffix(".0")
    if isinstance(found, bytes):
        return base64.b64encode(found).decode()
    return "" if found is None else json.dumps(json_value(found), ensure_ascii=False, separators=(",", ":"))


def json_value(found: Any) -> Any:
    """Return a value as JSON has it; like OTLP, bytes in base64 and NaN and infinities as words."""
    if isinstance(found, bytes):
        return base64.b64encode(found).decode()
    if isinstance(found, float) and not isfinite(found):
        return "NaN" if isnan(found) else "Infinity" if found > 0 else "-Infinity"
    if isinstance(found, list | tuple):
        return [json_value(item) for item in found]
    if isinstance(found, dict):
        return {key: json_value(item) for key, item in found.items()}
    return found


def number(attributes: Mapping[str, object], key: str) -> float | None:
    """Return a finite numeric attribute, or None if it is absent or something else."""
    found = attributes.get(key)
    return found if isinstance(found, (int, float)) and not isinstance(found, bool) and isfinite(found) else None


def named_stages(attributes: Mapping[str, object]) -> dict[str, float]:
    """Return stage -> total ms as the attributes of an entry span give them, in stage order, then by name."""
    stages = ((stage_of_total(key), number(attributes, key)) for key in attributes)
    return _ordered({stage: total for stage, total in stages if stage and total is not None})


def stage_totals(entry: Any, spans: Iterable[Any]) -> dict[str, float]:
    """Return stage -> total ms in stage order: from the entry span's own attributes, else from its stage spans.

    Both are spans as `store.base.SpanRow` has them.
    """
    totals = named_stages(entry.attributes)
    if not totals:
        nanoseconds: dict[str, int] = {}
        for span in {span.span_id: span for span in spans if span.parent_span_id == entry.span_id}.values():
            stage = text(span.attributes, ML_STAGE)
            if stage is not None:
                nanoseconds[stage] = nanoseconds.get(stage, 0) + span.duration_ns
        totals = _ordered({stage: total / 1e6 for stage, total in nanoseconds.items()})
    return totals


def _ordered(totals: dict[str, float]) -> dict[str, float]:
    return dict(sorted(totals.items(), key=lambda item: (_STAGE_ORDER.get(item[0], len(_STAGE_ORDER)), item[0])))
