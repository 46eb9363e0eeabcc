"""Links from alerts to breaches: none hides a breach of the objective that the alert is about."""

from __future__ import annotations

import json
from dataclasses import replace
from urllib.parse import parse_qs, parse_qsl, urlsplit

import pytest

from rules.policies import OTHERS, PREDICT, policy
from stagetrace.page.app import target
from stagetrace.policy.objective import Condition, Objective
from stagetrace.rules.prometheus import breaches_url


def tags(objective: Objective, *objectives: Objective) -> dict[str, str]:
    """Return by what Jaeger is asked for the breaches of an objective."""
    url = breaches_url(policy(*objectives, traces="http://jaeger:80/ui"), objective, "shop", 7_200)
    query = parse_qs(urlsplit(url).query)
    assert (query["service"], query["lookback"]) == (["shop"], ["2h"])
    found: dict[str, str] = json.loads(query["tags"][0])
    return found


def test_jaeger_is_asked_for_the_objective_only_where_each_of_its_breaches_shows_it() -> None:
    first, gold = replace(PREDICT, continues=True), Condition("tier", "gold")
    override = replace(first, name="gold", conditions=(*first.conditions, gold), base="predict")
    alone = {"sla.breached": "true", "sla.objective": "every request"}
    assert tags(OTHERS, PREDICT, OTHERS) == alone
    assert tags(OTHERS, first, OTHERS) == {"sla.breached": "true"}
    assert tags(first, override, first, OTHERS) == {"sla.breached": "true", "sla.objective": "predict"}
    assert tags(override, override, first, OTHERS) == {"sla.breached": "true", "sla.objective": "gold"}


@pytest.mark.parametrize("address", ["http://page:80", "http://page:80/", "http://page:80/breaches"])
def test_the_page_is_asked_for_what_the_objective_judged(address: str) -> None:
    whole = policy(replace(PREDICT, continues=True), OTHERS, traces=address)
    url = breaches_url(whole, replace(OTHERS, name="a&b c"), "shop", 30)
    assert url == "http://page:80/breaches?service=shop&judged-by=a%26b%20c&since=1m"


def test_a_link_to_jaegers_search_leads_to_the_breaches_on_the_page() -> None:
    """As `up` serves both at the address of the documented example, whose port is Jaeger's."""
    url = breaches_url(policy(PREDICT, traces="http://127.0.0.1:16686"), PREDICT, "shop", 7_200)
    assert url.startswith("http://127.0.0.1:16686/search?")
    found = urlsplit(target(dict(parse_qsl(urlsplit(url).query))))
    assert found.path == "/breaches"
    assert parse_qs(found.query) == {"service": ["shop"], "judged-by": [PREDICT.name], "since": ["2h"]}
    odd = target({"service": "a&b", "tags": '{"tenant":"x"', "lookback": "custom"})
    assert odd == "/breaches?service=a%26b"
    assert target({"tags": '{"tenant": "x=y"}'}) == "/breaches?segment=tenant%3Dx%3Dy"
