"""Every span and attribute name that the recording side writes and the reading side asks for."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

# Stages, in the order in which a request passes through them.
NETWORK_RECEIVE: Final = sys.intern("network.receive")  # as `_passing.c` has it: the same object
QUEUE: Final = "queue"
PREPROCESS: Final = "preprocess"
INFERENCE: Final = "inference"
POSTPROCESS: Final = "postprocess"
NETWORK_SEND: Final = sys.intern("network.send")
HANDLER: Final = "handler"  # all of the handler's own time, where it never infers
STAGES: Final = (NETWORK_RECEIVE, QUEUE, PREPROCESS, HANDLER, INFERENCE, POSTPROCESS, NETWORK_SEND)

# A model's `transform`, until it is settled whether it was preprocessing, inference or postprocessing; never exported.
TRANSFORM: Final = "transform"
# That of a scaler, an encoder and their like, which is no inference wherever it is; never exported, either.
PREPARE: Final = "prepare"

# Stage spans.
ML_STAGE: Final = "ml.stage"
ML_STAGE_COALESCED: Final = "ml.stage.coalesced"
ML_STAGE_COALESCED_LONGEST_MS: Final = "ml.stage.coalesced.longest_ms"
QUEUE_REASON: Final = "queue.reason"
QUEUE_POOL_SIZE: Final = "queue.pool_size"
QUEUE_WAITERS: Final = "queue.waiters"
QUEUE_BLOCKED_BY: Final = "queue.blocked_by"
# Entry span; Sentry's name for it, since the semantic conventions have none.
QUEUE_IN_FRONT_MS: Final = "http.server.request.time_in_queue"
ML_MODEL_NAME: Final = "ml.model.name"
ML_MODEL_RECOGNISED: Final = "ml.model.recognised"
ML_MODEL_VERSION: Final = "ml.model.version"
ML_FRAMEWORK: Final = "ml.framework"
ML_BATCH_SIZE: Final = "ml.batch.size"
ML_COLD_START: Final = "ml.cold_start"
CPU_TIME_MS: Final = "stagetrace.cpu.time_ms"
CPU_WAIT_MS: Final = "stagetrace.cpu.wait_ms"
CPU_BLOCKED_MS: Final = "stagetrace.cpu.blocked_ms"
GC_PAUSE_MS: Final = "stagetrace.gc.pause_ms"

# Entry spans: the server.
ML_WORKER_LOST: Final = "ml.worker.lost"

# Entry spans: what passed between client and application.
NETWORK_CHUNKS: Final = "stagetrace.network.chunks"
NETWORK_FIRST_BYTE_MS: Final = "stagetrace.network.first_byte_ms"
NETWORK_CHUNK_GAP_MAX_MS: Final = "stagetrace.network.chunk_gap.max_ms"
NETWORK_CHUNK_GAP_P99_MS: Final = "stagetrace.network.chunk_gap.p99_ms"
NETWORK_DISCONNECT: Final = "stagetrace.network.disconnect"
NETWORK_RTT_MS: Final = "stagetrace.network.rtt_ms"
NETWORK_RETRANSMITS: Final = "stagetrace.network.retransmits"
NETWORK_UNACKED_BYTES: Final = "stagetrace.network.unacked_bytes"
NETWORK_MESSAGES_RECEIVED: Final = "stagetrace.network.messages.received"
NETWORK_MESSAGES_SENT: Final = "stagetrace.network.messages.sent"
NETWORK_RECEIVED_BYTES: Final = "stagetrace.network.received_bytes"
NETWORK_SENT_BYTES: Final = "stagetrace.network.sent_bytes"
HTTP_REQUEST_BODY_SIZE: Final = "http.request.body.size"
HTTP_RESPONSE_BODY_SIZE: Final = "http.response.body.size"

# Entry spans: the verdict.
SLA_BREACHED: Final = "sla.breached"
SLA_VERDICT: Final = "sla.verdict"
SLA_OBJECTIVE: Final = "sla.objective"
SLA_TARGET: Final = "sla.target"
SLA_THRESHOLD_MS: Final = "sla.threshold_ms"
SLA_OVERRUN_MS: Final = "sla.overrun_ms"
SLA_SEVERITY: Final = "sla.severity"
SLA_BREACH_STAGE: Final = "sla.breach.stage"
SLA_BREACH_PROMISE: Final = "sla.breach.promise"
SLA_BREACH_MISSED: Final = "sla.breach.missed"
SLA_BREACH_CAUSE: Final = "sla.breach.cause"
SLA_BREACH_EVIDENCE: Final = "sla.breach.evidence"
SLA_BREACH_PEER: Final = "sla.breach.peer"
SLA_DEADLINE_REMAINING_MS: Final = "sla.deadline.remaining_ms"
# Present (true) on each span that the head sampler had dropped and a breach brought back: never extrapolate from it.
SLA_UPGRADED: Final = "sla.upgraded"
# Present on each entry span of a process that samples at its head; 0: not known. A breach counts once all the same.
SLA_SAMPLING_PROBABILITY: Final = "sla.sampling.probability"

# Any span: what could not be recorded of it.
STAGETRACE_TRUNCATED_ATTRIBUTES: Final = "stagetrace.truncated_attributes"
STAGETRACE_DROPPED_ATTRIBUTES: Final = "stagetrace.dropped_attributes"
STAGETRACE_DROPPED_SPANS: Final = "stagetrace.dropped_spans"

# Metrics.
METRIC_REQUESTS: Final = "sla.requests"
METRIC_BREACHES: Final = "sla.breaches"
METRIC_SPANS: Final = "stagetrace.spans"
METRIC_SPANS_OUTCOME: Final = "outcome"

DESCRIPTIONS: Final[dict[str, str]] = {
    ML_STAGE: "stage span: name of the stage, equal to the span's name",
    ML_STAGE_COALESCED: "stage span: number of visits to this stage that this one span stands for; its length is their sum, and they took turns with those of its neighbours",  # noqa: E501
    ML_STAGE_COALESCED_LONGEST_MS: "such a span: the longest of these visits, ms",
    QUEUE_REASON: "queue stage: what was waited for (`socket`: the server, before it took the request up, `thread_pool`: anyio's, `executor`: a ThreadPoolExecutor, `server_threads`: a WSGI server's, `grpc_pool`, `worker`: a process, `batch`, `consumer`: whoever takes it out of a queue of the service's own)",  # noqa: E501
    QUEUE_POOL_SIZE: "queue stage: threads of the pool",
    QUEUE_WAITERS: "queue stage: those already waiting for the pool as this came",
    QUEUE_BLOCKED_BY: "queue stage of a wait in the socket: the request, and the model if it was one, that held event loop or worker for most of it",  # noqa: E501
    QUEUE_IN_FRONT_MS: "entry span: how long the request waited before it came here, by a load balancer's `X-Request-Start` or `X-Queue-Start`, ms; no part of the duration",  # noqa: E501
    ML_MODEL_NAME: "inference stage and entry span: class or file name of the model, of transformers its id or folder",
    ML_MODEL_RECOGNISED: "entry span and handler stage: false where data were transformed, as for a model, and none was recognised",  # noqa: E501
    ML_MODEL_VERSION: "inference stage and entry span: version of the model, where its server or folder says it",
    ML_FRAMEWORK: "inference stage and entry span: library that ran the model",
    ML_BATCH_SIZE: "inference stage and entry span: requests in the batch; without one, rows in the first input",
    ML_WORKER_LOST: "entry span: true where the process ended that was at work for the request",
    ML_COLD_START: "inference stage and entry span: true on the first call of this model in the process",
    CPU_TIME_MS: "inference stage of 1 ms and more, entry span for the first: how long its thread computed, ms",
    CPU_WAIT_MS: "the same: how long its thread could have computed and had no CPU, ms; Linux",
    CPU_BLOCKED_MS: "the same: the rest, in which its thread waited for a lock, the GIL, a device, or input or output, ms; Linux",  # noqa: E501
    GC_PAUSE_MS: "breached entry span: how long Python collected garbage within its handler and model, ms",
    NETWORK_CHUNKS: "entry span of an answer in more than one piece, or message of an RPC: how many, empty pieces not counted",  # noqa: E501
    NETWORK_FIRST_BYTE_MS: "entry span of such an answer: from its start until the first piece was handed over, ms",
    NETWORK_CHUNK_GAP_MAX_MS: "entry span of such an answer: longest time from one piece to the next, ms",
    NETWORK_CHUNK_GAP_P99_MS: "entry span of such an answer: 99 % of these times were no longer, ms; up to 3 % too high",  # noqa: E501
    NETWORK_DISCONNECT: "entry span: the answer did not get to its end: `client` went away, or the request was `cancelled`, an RPC also by its deadline",  # noqa: E501
    NETWORK_RTT_MS: "entry span: round trip to whoever sent the request, by the kernel's smoothed measure as the answer ends, ms; span of a call: to whom was called, as the answer begins; Linux",  # noqa: E501
    NETWORK_RETRANSMITS: "the same, where there are any: segments that had to be sent again since the connection began",
    NETWORK_UNACKED_BYTES: "entry span, where there are any: bytes of answers that the other side had not acknowledged as this one was handed over, those in the server's own buffer included; Linux 4.19",  # noqa: E501
    NETWORK_MESSAGES_RECEIVED: "entry span of a websocket, or of an RPC that takes a stream: messages received",
    NETWORK_MESSAGES_SENT: "entry span of a websocket: messages sent",
    NETWORK_RECEIVED_BYTES: "entry span of an RPC: bytes of the messages received, uncompressed",
    NETWORK_SENT_BYTES: "entry span of an RPC: bytes of the messages handed over to be sent, uncompressed",
    HTTP_REQUEST_BODY_SIZE: "entry span: bytes of the body that the application received, where there was one",
    HTTP_RESPONSE_BODY_SIZE: "entry span: bytes of the answer's body, where there is one",
    SLA_BREACHED: "entry span: whether the objective was missed; absent where no objective matches and where the verdict is `excluded`",  # noqa: E501
    SLA_VERDICT: "entry span: `good`, `breach`, or `excluded` from judgement",
    SLA_OBJECTIVE: "entry span: the objective that judged it, in the policy's own words",
    SLA_TARGET: "judged entry span, where it is not `99% over 28d`: the share of requests that is to meet the objective, and the window over which it counts",  # noqa: E501
    SLA_THRESHOLD_MS: "entry span: duration allowed, ms, or what the bound allows that `sla.breach.promise` names",
    SLA_OVERRUN_MS: "breached entry span: duration minus threshold, ms",
    SLA_SEVERITY: "breached entry span: `minor` (< 1.25 x), `major` (< 2 x) or `critical`",
    SLA_BREACH_STAGE: "breached entry span: stage in which most of the time lies that `sla.breach.cause` is about; of an unknown cause, and of chunks, the one that took the most",  # noqa: E501
    SLA_BREACH_PROMISE: "breached entry span: the bound that was missed, where it is not the duration: `first_chunk`, `per_chunk` or `disconnect`",  # noqa: E501
    SLA_BREACH_MISSED: "breached entry span of a streamed response: each bound of the objective that was missed, with its value, as `first_chunk: 163.2 ms, 100 ms allowed; per_chunk: 41 ms, 20 ms allowed`; the first one is what `sla.threshold_ms` and `sla.overrun_ms` are about",  # noqa: E501
    SLA_BREACH_CAUSE: "breached entry span: what made it slow, one of the words of docs/causes.md (`cpu_wait`, `downstream`, `gc` ...)",  # noqa: E501
    SLA_BREACH_PEER: "breached entry span: service that the stage waited for most of its time (`downstream`): `peer.service`, else `address:port`",  # noqa: E501
    SLA_DEADLINE_REMAINING_MS: "entry span of an RPC whose caller set a deadline: what was left of it on arrival, ms",
    SLA_BREACH_EVIDENCE: "breached entry span: one sentence with the numbers",
    SLA_UPGRADED: "span that the head sampler dropped and a breach brought back: leave it out of extrapolations",
    SLA_SAMPLING_PROBABILITY: "entry span, where the head sampler drops requests: how likely one is kept that is no breach (0.1: it stands for 10), or 0 where that is not known; breaches are all kept, and count once",  # noqa: E501
    STAGETRACE_TRUNCATED_ATTRIBUTES: "any span: values, of its events and links too, that were cut at the limit",
    STAGETRACE_DROPPED_ATTRIBUTES: "entry or stage span: attributes left out: over 128 of a stage, without a text, or holding themselves",  # noqa: E501
    STAGETRACE_DROPPED_SPANS: "upgraded entry span: spans under it that there was no room to hold",
}


def peer(attributes: Mapping[str, object]) -> str | None:
    """Return whom a client's span called, by the names of today or those before them; None if it does not say."""
    for name in ("peer.service", "service.peer.name"):
        if name in attributes:
            return str(attributes[name])
    for host, port in (("server.address", "server.port"), ("net.peer.name", "net.peer.port")):
        if attributes.get(host):
            return f"{attributes[host]}:{attributes[port]}" if attributes.get(port) else str(attributes[host])
    return urlsplit(str(attributes.get("url.full") or attributes.get("http.url") or "")).netloc or None


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
