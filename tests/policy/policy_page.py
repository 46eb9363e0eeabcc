"""The table of keys in docs/objectives.md: what `policy/policy_keys.py` declares.

`PYTHONPATH=src python tests/policy/policy_page.py` writes it.
"""

from __future__ import annotations

from pathlib import Path

from stagetrace.policy import policy_keys as keys
from stagetrace.policy.policy_kinds import Keys, described

PAGE = Path(__file__).parents[2] / "docs/objectives.md"
BEGIN = "<!-- begin of what tests/policy/policy_page.py writes -->\n"
END = "<!-- end of what tests/policy/policy_page.py writes -->\n"
TABLES: dict[str, Keys] = {
    "": keys.POLICY,
    "objectives.": {key: one for key, one in keys.OBJECTIVE.items() if key not in keys.PERCENTILES[1:]},
    "match.": keys.MATCH,
    "overrides.": {key: one for key, one in keys.OVERRIDE.items() if key not in keys.OBJECTIVE},
    "segments.": keys.SEGMENTS,
    "deadline.": keys.DEADLINE,
    "alerts.": keys.ALERTS,
    "burn.": keys.BURN,
}


def table() -> str:
    """Return the table; the percentiles are one row."""
    percentiles = "`, `".join(f"objectives.{key}" if key == "p50" else key for key in keys.PERCENTILES)
    rows = ["| key | value | what it says |", "|---|---|---|"]
    for above, table in TABLES.items():
        for key, one in table.items():
            name = percentiles if key in keys.PERCENTILES else f"{above}{key}"
            says = "`within` and `target` in one" if key in keys.PERCENTILES else described(one).replace("*", "`*`")
            rows.append(f"| `{name}` | {one.kind.words} | {says} |")
    return "\n".join([*rows, ""])


def page(text: str) -> str:
    """Return the page with the table in its place."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + table() + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
