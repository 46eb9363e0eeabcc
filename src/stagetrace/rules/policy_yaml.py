"""The policy as a policy file (`sla.yaml`): what an inline policy, or a file of another program, is converted to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stagetrace.rules.base import Format, RulesOptions
from stagetrace.sla import policy_file

if TYPE_CHECKING:
    from stagetrace.sla.policy import Policy


def render(policy: Policy, options: RulesOptions) -> str:
    """Return the file; no option concerns it."""
    del options
    return policy_file.write(policy)


FORMAT = Format("policy", "a policy file, such as sla.yaml", ".yaml", render)
