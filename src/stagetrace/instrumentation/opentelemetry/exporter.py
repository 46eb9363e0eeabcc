"""The official OTLP exporters, ours and anybody's: encode as they do, in a tenth of the time under the GIL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stagetrace.guard import report

if TYPE_CHECKING:
    from types import ModuleType


def patch_trace_exporter(module: ModuleType) -> None:
    """Replace the encoder of an exporter's module; where ours fails, the official one does the work."""
    official: Any = module.encode_spans

    from stagetrace.otlp.encode.span_encoder import encode_spans as fast

    def encode_spans(sdk_spans: Any) -> Any:  # a sequence of spans, or EncodedSpans from our own processor
        try:
            return fast(sdk_spans)
        except Exception as error:  # noqa: BLE001 -- whatever it is, the spans are not lost for it
            report("stagetrace.otlp.encode.span_encoder", error)
            return official(sdk_spans)

    module.encode_spans = encode_spans  # type: ignore[attr-defined]
