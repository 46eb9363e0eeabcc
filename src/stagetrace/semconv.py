"""Every span and attribute name that the recording side writes and the reading side asks for."""

from __future__ import annotations

from typing import Final

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

# Stage spans.
ML_STAGE: Final = "ml.stage"
ML_STAGE_COALESCED: Final = "ml.stage.coalesced"
QUEUE_REASON: Final = "queue.reason"
ML_MODEL_NAME: Final = "ml.model.name"
ML_FRAMEWORK: Final = "ml.framework"
ML_BATCH_SIZE: Final = "ml.batch.size"

# Entry spans.
SLA_BREACHED: Final = "sla.breached"
SLA_VERDICT: Final = "sla.verdict"
SLA_OBJECTIVE: Final = "sla.objective"
SLA_THRESHOLD_MS: Final = "sla.threshold_ms"
SLA_OVERRUN_MS: Final = "sla.overrun_ms"
SLA_SEVERITY: Final = "sla.severity"
SLA_BREACH_STAGE: Final = "sla.breach.stage"
SLA_BREACH_CAUSE: Final = "sla.breach.cause"
SLA_BREACH_EVIDENCE: Final = "sla.breach.evidence"
# Present (true) on each span that the head sampler had dropped and a breach brought back: never extrapolate from it.
SLA_UPGRADED: Final = "sla.upgraded"

# Metrics.
METRIC_REQUESTS: Final = "sla.requests"

DESCRIPTIONS: Final[dict[str, str]] = {
    ML_STAGE: "stage span: name of the stage, equal to the span's name",
    ML_STAGE_COALESCED: "stage span: number of short visits to this stage that this one span stands for",
    QUEUE_REASON: "queue stage: what was waited for (`thread_pool`)",
    ML_MODEL_NAME: "inference stage and entry span: class or file name of the model",
    ML_FRAMEWORK: "inference stage and entry span: library that ran the model",
    ML_BATCH_SIZE: "inference stage and entry span: rows in the first input",
    SLA_BREACHED: "entry span: duration exceeded the threshold; absent where no objective matches",
    SLA_VERDICT: "entry span: `good` or `breach`",
    SLA_OBJECTIVE: "entry span: the objective that judged it, in the policy's own words",
    SLA_THRESHOLD_MS: "entry span: promised duration, ms",
    SLA_OVERRUN_MS: "breached entry span: duration minus threshold, ms",
    SLA_SEVERITY: "breached entry span: `minor` (< 1.25 x), `major` (< 2 x) or `critical`",
    SLA_BREACH_STAGE: "breached entry span: stage that took the most time",
    SLA_BREACH_CAUSE: "breached entry span: why that stage was slow; `unknown` until a source can tell",
    SLA_BREACH_EVIDENCE: "breached entry span: one sentence with the numbers",
    SLA_UPGRADED: "span that the head sampler dropped and a breach brought back: leave it out of extrapolations",
}


def stage_total_ms(stage: str) -> str:
    """Return the entry span's attribute that holds the summed duration of `stage`, in ms."""
    return f"ml.stage.{stage}.ms"


def stage_of_total(attribute: str) -> str | None:
    """Return the stage whose total `attribute` holds, or None if it is another attribute."""
    if attribute.startswith("ml.stage.") and attribute.endswith(".ms"):
        return attribute[len("ml.stage.") : -len(".ms")]
    return None
