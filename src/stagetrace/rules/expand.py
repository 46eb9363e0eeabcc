"""The labels and annotations of a rule with the values of one alert, as Prometheus expands the templates in them.

It knows the templates that `prometheus_alerts` writes, and no others.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final
from urllib.parse import quote_plus

if TYPE_CHECKING:
    from collections.abc import Mapping

_STRING: Final = r'"(?:[^"\\]|\\.)*"'
_TEMPLATE: Final = re.compile(
    r"\{\{ with \$labels\.(?P<tested>\w+) \}\}(?P<body>.*?)\{\{ end \}\}"
    r"|\{\{ \$labels\.(?P<label>\w+) \}\}"
    rf"|\{{\{{ reReplaceAll (?P<pattern>{_STRING}) (?P<by>{_STRING}) \$labels\.(?P<replaced>\w+) \| urlquery \}}\}}"
    r"|(?P<value>\{\{ \$value \| humanizePercentage \}\})"
    r'|(?P<literal>\{\{ "\{\{" \}\})',
    re.DOTALL,
)


def expanded(template: str, labels: Mapping[str, str], value: float) -> str:
    """Return the text that Prometheus makes of a template, for an alert with these labels and this value."""

    def put(match: re.Match[str]) -> str:
        if match["label"]:
            return labels.get(match["label"], "")
        if match["tested"]:
            found = labels.get(match["tested"], "")
            return expanded(match["body"], labels, value).replace("{{ . }}", found) if found else ""
        if match["replaced"]:
            pattern, by = (json.loads(match[name]) for name in ("pattern", "by"))
            return quote_plus(re.sub(pattern, by, labels.get(match["replaced"], "")))
        return "{{" if match["literal"] else f"{100 * value:.4g}%"

    return _TEMPLATE.sub(put, template)
