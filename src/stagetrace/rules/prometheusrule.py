"""The rules of `prometheus.py` as a PrometheusRule, the resource of the Prometheus operator in Kubernetes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from stagetrace.rules.base import Format, RulesOptions
from stagetrace.rules.prometheus import comment, groups
from stagetrace.rules.yaml_text import yaml_of
from stagetrace.sla.objective import SERVICE_KEY

if TYPE_CHECKING:
    from stagetrace.sla.policy import Policy

_NOT_IN_NAMES: Final = re.compile(r"[^a-z0-9]+")
_MOST: Final = 253  # characters of a name of a resource


def render(policy: Policy, options: RulesOptions) -> str:
    """Return the resource; its name has that of the service, where the policy or the options name one."""
    services = {one.glob for rule in policy.objectives for one in rule.conditions if one.key == SERVICE_KEY}
    about = options.service or (services.pop() if len(services) == 1 else "")
    name = "-".join(["stagetrace-sla", *filter(None, _NOT_IN_NAMES.split(about.lower()))])
    resource = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": name[:_MOST].rstrip("-"), "labels": {"app.kubernetes.io/managed-by": "stagetrace"}},
        "spec": {"groups": groups(policy, options)},
    }
    return yaml_of(resource, comment(policy))


FORMAT = Format("prometheusrule", "the same as a PrometheusRule of Kubernetes", ".yaml", render)
