"""All output formats of `stagetrace sla rules`. A new one is a file with a `Format`, and a line here."""

from __future__ import annotations

from typing import Final

from stagetrace.policy import policy_file
from stagetrace.rules import collector, grafana, openslo, prometheus
from stagetrace.rules.base import Format

FORMATS: Final[dict[str, Format]] = {
    one.name: one
    for one in (
        prometheus.FORMAT,
        prometheus.PROMETHEUSRULE,
        prometheus.PROMTOOL,
        collector.FORMAT,
        grafana.FORMAT,
        openslo.FORMAT,
        Format("policy", "a policy file, such as sla.yaml", ".yaml", lambda policy, _: policy_file.write(policy)),
    )
}
