"""All output formats of `stagetrace sla rules`. A new one is a file with a `Format`, and a line here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stagetrace.policy import policy_file
from stagetrace.rules import collector, grafana, openslo, prometheus
from stagetrace.rules.base import Format, RulesOptions

if TYPE_CHECKING:
    from stagetrace.policy.policy import Policy


def render(policy: Policy, options: RulesOptions) -> str:
    """Return the file; no option concerns it."""
    del options
    return policy_file.write(policy)


POLICY_YAML = Format("policy", "a policy file, such as sla.yaml", ".yaml", render)


FORMATS: Final[dict[str, Format]] = {
    one.name: one
    for one in (
        prometheus.FORMAT,
        prometheus.PROMETHEUSRULE,
        prometheus.PROMTOOL,
        collector.FORMAT,
        grafana.FORMAT,
        openslo.FORMAT,
        POLICY_YAML,
    )
}
