"""The board's button by which an alert is silent for a time, in a browser."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from backend.processes import until
from backend.running import post, run_up
from backend.test_alerts import FIRES, POLICY, spans
from page.conftest import settle, violations

if TYPE_CHECKING:
    from pathlib import Path

    from page.conftest import OpenPage


@pytest.mark.usefixtures("services")
def test_an_alert_is_silenced_and_the_silence_ended_by_a_button(open_page: OpenPage, tmp_path: Path) -> None:
    policy = tmp_path / "sla.yaml"
    policy.write_text(POLICY)
    with run_up(tmp_path, f"--sla={policy}") as up:

        def fires() -> bool:
            post(up, spans(10, "breach")).raise_for_status()
            time.sleep(0.2)
            return up.metric(FIRES) == 1

        until(fires)
        page = open_page(up.url("query_http_port"), "/board?since=10m")
        row = page.locator(".alerts tbody tr")
        assert violations(page) == []
        row.locator("select").select_option("8 h")
        row.get_by_role("button", name="Silence").click()
        expect(row).to_contain_text("silent until")
        settle(page)
        assert page.url.endswith("/board?since=10m")
        page.set_viewport_size({"width": 390, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert violations(page) == []
        row.get_by_role("button", name="End the silence").click()
        expect(row.get_by_role("button", name="Silence", exact=True)).to_be_visible()
        page.close()  # it would ask again
