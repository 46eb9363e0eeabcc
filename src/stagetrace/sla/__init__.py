"""The policy, the verdict on each request, and the processor that writes it on the span."""
