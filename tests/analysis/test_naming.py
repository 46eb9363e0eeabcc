"""Which names a person knows: the order of the kinds of attributes."""

from __future__ import annotations

from stagetrace.analysis.base import rank, rank_of

IN_ORDER = (
    "service.version",
    "tenant.id",
    "ml.model.name",
    "app.lang",
    "http.route",
    "ml.batch.size",
    "http.request.body.size",
    "http.response.body.size",
    "service.instance.id",
    "host.name",
    "process.runtime.version",
    "server.port",
)


def test_kinds_of_attributes_are_in_the_order_in_which_a_person_knows_them() -> None:
    assert [rank(key) for key in IN_ORDER] == sorted({rank(key) for key in IN_ORDER})


def test_what_an_application_recorded_is_known_as_well_as_what_its_name_says() -> None:
    assert rank("http.request.header.x_tenant") == rank("tenant.id")
    assert rank("ml.model.version") == rank("service.version")
    assert rank("cache.outcome") == rank("app.lang") < rank("http.route")


def test_a_name_is_known_as_well_as_its_least_known_part() -> None:
    assert rank_of({"app.lang": "tr", "service.version": "2"}) < rank_of({"app.lang": "tr", "host.name": "h"})
    assert rank_of({"tenant.id": "a"}) < rank_of({"tenant.id": None})
    assert rank_of({"tenant.id": "a"}) < rank_of({"tenant.id": "a", "service.version": "2"})
