"""Manifests for autoscalers, out of the load that one instance of a service takes: KEDA's ScaledObject, and an HPA.

The signal is requests in flight by Little's law: the rate at which the sum of durations grows, of the histogram
`http.server.request.duration`, under the names that OpenTelemetry's Prometheus exporters give it. Strings are JSON's,
which YAML has too, so that no name can be anything else.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from stagetrace.analysis.capacity import Capacity, Plan

KEDA: Final = "keda"
HPA: Final = "hpa"
FORMS: Final = (KEDA, HPA)
METRIC: Final = "http_server_request_duration_seconds_sum"
_LONGEST: Final = 53  # characters of a name, that what is made of it has room in 63


def manifest(form: str, one: Capacity, given: Plan, most: int) -> str:
    """Return the manifest of a service, each instance of which is to have at most `given.in_flight` requests."""
    name = label(one.service)
    target = given.in_flight or 0.0
    query = f"sum(rate({METRIC}{{job={json.dumps(one.service, ensure_ascii=False)}}}[1m]))"
    head = _head(one, given, query)
    if form == KEDA:
        return head + _KEDA.format(
            name=json.dumps(name), most=most, query=json.dumps(query), threshold=json.dumps(f"{target:.4g}")
        )
    return head + _HPA.format(
        name=json.dumps(name),
        most=most,
        metric=json.dumps(f"{name.replace('-', '_')}_requests_in_flight"),
        target=json.dumps(f"{max(1, round(target * 1000))}m"),
    )


def label(service: str) -> str:
    """Return the name of a service as Kubernetes allows names: lower-case letters, digits and hyphens."""
    name = re.sub(r"[^a-z0-9]+", "-", service.lower()).strip("-")[:_LONGEST].strip("-")
    return name or "service"


def _head(one: Capacity, given: Plan, query: str) -> str:
    # A service's name comes from requests: as JSON it has no end of line that would end the comment.
    lines = [
        f"Made by `stagetrace capacity` for the service {json.dumps(one.service)}, each instance of which is to have",
        f"{given.in_flight or 0:.3g} requests in flight, {given.per_s or 0:.3g}/s, by {given.reason}.",
        "An instance is a process: a pod that runs several takes so many times this.",
        "The signal is requests in flight (Little's law), out of a metric that the service sends where",
        "OTEL_METRICS_EXPORTER is set (docs/attributes.md); of HTTP requests alone, and counted as they end:",
        f"  {query}",
        "Change to your own: the name of the Deployment, the label job where your Prometheus sets another one, and",
        "the greatest number of replicas, which is what you want to pay for at most.",
    ]
    return "".join(f"# {line}\n" for line in lines)


_KEDA: Final = """\
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata:
  name: {name}
spec:
  scaleTargetRef:
    name: {name}
  minReplicaCount: 1
  maxReplicaCount: {most}
  triggers:
    - type: prometheus
      metricType: AverageValue
      metadata:
        serverAddress: "http://prometheus:9090"
        query: {query}
        threshold: {threshold}
        ignoreNullValues: "false"
"""
_HPA: Final = """\
# The external metric is that query, under this name, as an adapter gives it (prometheus-adapter: externalRules).
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: {name}
spec:
  scaleTargetRef:
    apiVersion: apps/v1
    kind: Deployment
    name: {name}
  minReplicas: 1
  maxReplicas: {most}
  metrics:
    - type: External
      external:
        metric:
          name: {metric}
        target:
          type: AverageValue
          averageValue: {target}
"""
