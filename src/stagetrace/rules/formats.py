"""All output formats of `stagetrace sla rules`. A new one is a file with a `FORMAT`, and a line here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stagetrace.rules import (
    collector,
    grafana,
    openslo,
    policy_yaml,
    prometheus,
    prometheusrule,
    promtool,
)

if TYPE_CHECKING:
    from stagetrace.rules.base import Format

FORMATS: Final[dict[str, Format]] = {
    one.name: one
    for one in (
        prometheus.FORMAT,
        prometheusrule.FORMAT,
        promtool.FORMAT,
        collector.FORMAT,
        grafana.FORMAT,
        openslo.FORMAT,
        policy_yaml.FORMAT,
    )
}
