"""Record what Sloth makes of our files: `PYTHONPATH=tests python tests/rules/record_sloth.py`, after `make sloth`."""

from __future__ import annotations

from rules.test_sloth import FILES, OPTIONS, POLICY, VECTORS, rules_of_sloth

for name, write in FILES.items():
    (VECTORS / name).write_text(write(POLICY, OPTIONS), "utf-8")
(VECTORS / "rules.yaml").write_text(rules_of_sloth(VECTORS), "utf-8")
