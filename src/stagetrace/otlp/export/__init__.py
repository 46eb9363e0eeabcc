"""From encoded spans to a receiver: queue, spool, delivery."""
