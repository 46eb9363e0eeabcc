"""Spans, their contexts and how they travel, from the standard library alone.

What is here has the names, the attributes and the order of parts that OpenTelemetry's own has: what reads spans reads
both. `stagetrace.bridge` turns one into the other where a service uses OpenTelemetry.
"""
