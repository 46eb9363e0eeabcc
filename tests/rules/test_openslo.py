"""A policy as OpenSLO v1: the documents keep to the standard, and read back as the same policy."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given

from rules import openslo_rules
from rules.policies import policies
from stagetrace.policy import policy_file
from stagetrace.policy.policy import Policy
from stagetrace.rules.base import RulesOptions
from stagetrace.rules.openslo import render
from stagetrace.rules.openslo_read import read


@pytest.mark.thorough
@given(policies())
def test_any_policy_reads_back_the_same_from_documents_that_keep_to_the_rules(given: Policy) -> None:
    text = render(given, RulesOptions())
    openslo_rules.check(list(yaml.safe_load_all(text)))
    found = read(text, "slo.yaml")
    assert found.policy == given
    assert found.notes == ()
    assert Policy.read(policy_file.write(found.policy), "sla.yaml") == given
