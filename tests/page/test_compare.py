"""Compare: sides from the URL, a form or a suggestion; the figures are those of the command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest
from playwright.sync_api import expect

from answers.made import MS, NOON, Made, store
from cli.running import answered
from page.conftest import containing, settle, violations
from page.data import fill
from page.serving import AS_PART, run_page
from stagetrace.output.units import milliseconds, percent

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from playwright.sync_api import Page

    from page.conftest import OpenPage

MODELS = "route=/predict&a=model%3DLogisticRegression&b=model%3DExtraTreesClassifier"


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """Give a function that returns what the command answers about the data of the demo."""
    folder = tmp_path_factory.mktemp("compare") / "data"
    fill(folder, "demo")

    def answer(*options: str) -> dict[str, Any]:
        found: dict[str, Any] = answered("compare", "--since", "1h", "--store", str(folder), *options)
        return found

    return answer


def rows(page: Page) -> dict[tuple[str, str], tuple[str, str]]:
    """Return the table of differences: stage and percentile -> both values, and the difference in words."""
    script = "rows => rows.map(row => [...row.cells].map(one => one.innerText))"
    cells = page.locator("#differences tbody tr").evaluate_all(script)
    return {(stage, at): (values, words) for stage, at, values, _, words in cells}


def signed(share: float) -> str:
    return f"{100 * share:+.{0 if abs(share) >= 0.1 else 1}f}"


def test_the_newest_versions_are_compared(open_page: OpenPage, asked: Callable[..., dict[str, Any]]) -> None:
    """The slower one is named, and that it is not sure, with how many requests would be enough."""
    found = asked()
    page = open_page("demo", "/compare")
    assert page.locator("#answer .sentence").inner_text() == found["sentence"]
    assert f"each side needs about {found['needed']:,} requests" in page.locator("#answer").inner_text()
    names = page.locator("#answer .facts b").all_inner_texts()
    assert names == ["A version 2026.10", "B version 2026.11"]
    shown = rows(page)
    for stage, quantiles in (
        ("request", found["quantiles"]),
        *((one["stage"], one["quantiles"]) for one in found["stages"]),
    ):
        for one in quantiles:
            values, words = shown[stage, f"p{100 * one['q']:g}"]
            assert values == f"{milliseconds(one['a_ms'])} to {milliseconds(one['b_ms'])}"
            assert words.startswith(f"{signed(one['difference'])} % [?, ?]")
    assert shown["request", "p50"][1].endswith("slower, not surely")
    table = page.locator("#answer table", has=page.locator("caption", has_text="Kinds of requests"))
    kinds = table.locator("tbody tr").evaluate_all(
        "rows => rows.map(row => +row.cells[row.cells.length - 5].innerText)"
    )
    assert sorted(kinds) == sorted(one["a_requests"] for one in found["strata"])
    out = [percent(found["left_out"][name]) for name in "ab"]
    assert f"are not compared: {out[0]} of A, {out[1]} of B" in page.locator("#left-out").inner_text()


def test_a_difference_that_is_sure_is_marked(open_page: OpenPage, asked: Callable[..., dict[str, Any]]) -> None:
    found = asked("--route", "/predict", "--a", "model=LogisticRegression", "--b", "model=ExtraTreesClassifier")
    page = open_page("demo", f"/compare?{MODELS}")
    assert page.locator("#answer .sentence").inner_text() == found["sentence"]
    low, high = found["quantiles"][0]["interval"]
    words = rows(page)["request", "p50"][1]
    assert words.endswith(f"[{signed(low)}, {signed(high)}] slower")
    assert page.locator("#differences tbody tr").first.locator("td.bad").count() == 1
    expect(page.locator(".interval.slower").first).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_comparison_is_accessible(open_page: OpenPage, scheme: str) -> None:
    """With differences that are sure, and all details open."""
    page = open_page("demo", f"/compare?{MODELS}", color_scheme=scheme)
    for one in page.locator("summary").all():
        one.click()
    assert violations(page) == []


def test_histograms_mirror_each_other(open_page: OpenPage) -> None:
    """Of each side a bar for each line of the table, whose shares are those of all of its requests."""
    page = open_page("demo", f"/compare?{MODELS}")
    page.get_by_text("In numbers").click()
    for place, side in enumerate("ab", 2):
        cells = page.locator(f"#histogram tbody td:nth-child({place})").all_inner_texts()
        shares = [float(cell.removesuffix(" %")) for cell in cells]
        assert sum(shares) == pytest.approx(100, abs=0.3)
        script = "bars => bars.map(bar => [+bar.getAttribute('y'), +bar.getAttribute('height')])"
        ends = page.locator(f".mirrored rect.of-{side}").evaluate_all(script)
        assert len(ends) == sum(share > 0 for share in shares)
        assert all(y + tall == pytest.approx(150, abs=0.1) if side == "a" else y == 150 for y, tall in ends)
    marks = page.locator(".mirrored text:not(.tick)").all_text_contents()
    assert [one.split()[:2] for one in marks] == [["A", "p50"], ["B", "p50"], ["A", "p99"], ["B", "p99"]]


def test_each_side_leads_to_its_requests(open_page: OpenPage) -> None:
    page = open_page("demo", f"/compare?since=2h&{MODELS}")
    links = [one.get_attribute("href") or "" for one in page.locator("#answer .facts a").all()]
    assert [one.partition("?")[0] for one in links] == ["/breaches", "/heatmap", "/stages"] * 2
    assert all("since=2h&route=%2Fpredict&model=ExtraTreesClassifier" in one for one in links[3:])
    page.locator("#answer .facts a").last.click()
    settle(page)
    assert "59 requests." in page.locator("#whole").inner_text()


def test_without_versions_the_time_before_is_compared(open_page: OpenPage) -> None:
    page = open_page("many", "/compare")
    expect(page.locator("#answer .sentence")).to_contain_text("No requests of")
    assert "it is compared with as much time before" in page.locator("#answer").inner_text()
    assert page.locator("#differences").count() == 0
    assert "there is nothing to compare" in open_page("none", "/compare").locator("#answer").inner_text()


def test_sides_are_in_the_url(open_page: OpenPage) -> None:
    """By keyboard: a suggestion, the form, both exchanged; and back again. The selection changes and sides stay."""
    page = open_page("demo", "/compare?route=/predict")
    page.get_by_role("link", name="model ExtraTreesClassifier against LogisticRegression").focus()
    page.keyboard.press("Enter")
    names = page.locator("#answer .facts b")
    expect(names).to_have_text(["A model LogisticRegression", "B model ExtraTreesClassifier"])
    expect(page).to_have_url(containing("route=%2Fpredict"))
    page.get_by_role("link", name="Swap").click()
    expect(names).to_have_text(["A model ExtraTreesClassifier", "B model LogisticRegression"])
    page.get_by_label("B: condition 1").fill("service.version=2026.10")
    page.keyboard.press("Enter")
    expect(names).to_have_text(["A model ExtraTreesClassifier", "B service.version 2026.10"])
    expect(page).to_have_url(containing("b=service.version%3D2026.10"))
    page.locator("#filter input[name=since]").fill("2h")
    page.keyboard.press("Enter")
    expect(names).to_have_count(2)
    expect(page).to_have_url(containing("since=2h"))
    expect(page).to_have_url(containing("b=service.version%3D2026.10"))
    page.go_back()
    expect(names).to_have_text(["A model ExtraTreesClassifier", "B service.version 2026.10"])
    page.go_back()
    expect(names).to_have_text(["A model ExtraTreesClassifier", "B model LogisticRegression"])


@pytest.mark.usefixtures("services")
@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("a=model%3Dx", "b is missing: a comparison has two sides"),
        ("a=model&b=model%3Dx", "is not KEY=VALUE"),
        ("a=store%3Dlocal:///etc&b=model%3Dx", "names another store"),
        ("a=file%3D/etc/passwd&b=model%3Dx", "names another store"),
        ("a=model%3Dx&b=model%3Dx", "are the same requests"),
        ("a=period%3Dnever&b=model%3Dx", "SINCE..UNTIL"),
    ],
)
def test_what_cannot_be_compared_is_refused(site: Callable[[str], str], query: str, problem: str) -> None:
    response = httpx.get(f"{site('none')}/compare/answer?{query}")
    assert response.status_code == 400
    assert problem in response.text


@pytest.mark.thorough
def test_kinds_and_versions_of_each_service_are_there(tmp_path: Path) -> None:
    """Kinds are those of the command; only versions and models of one service are suggested."""

    def of(service: str, model: str, version: str, took: float, size: int, count: int, first: int) -> list[Made]:
        return [
            Made(
                first + n, NOON + (first + n) * MS, {"inference": took + n % 7 / 10}, service, model=model,
                version=version, attributes={"http.request.body.size": size},
            )
            for n in range(count)
        ]  # fmt: skip

    made = [
        *of("fraudgate", "fraud", "v1", 10.0, 20, 300, 1), *of("fraudgate", "fraud", "v1", 10.0, 100, 100, 1000),
        *of("fraudgate", "fraud", "v2", 9.0, 20, 300, 2000), *of("fraudgate", "fraud", "v2", 50.0, 100, 100, 3000),
        *of("rank", "ranker.onnx", "7", 5.0, 20, 900, 4000),
    ]  # fmt: skip
    path = store(tmp_path / "store", made)
    with run_page(tmp_path, str(path)) as page:
        sides = "a=ml.model.version%3Dv1&b=ml.model.version%3Dv2"
        found = page.get(f"/compare/answer?since=2026-03-01&{sides}", headers=AS_PART).text
        offered = page.get("/compare/suggested?since=2026-03-01", headers=AS_PART).text
    slower, every = (
        found.partition(f"<caption>{title}")[2].partition("</table>")[0]
        for title in ("Requests that got slower", "Kinds of requests")
    )
    assert "requests of 64 to 255 bytes are " in found
    assert "+388 %" in slower
    assert all(f"<td>/predict</td><td>{size}" in every for size in ("64 to 255", "16 to 63"))
    assert "fraudgate fraud v2 against v1" in offered
    assert "a=service%3Dfraudgate&amp;a=model%3Dfraud&amp;a=ml.model.version%3Dv1" in offered
    assert "ranker.onnx against" not in offered
    assert "against ranker.onnx" not in offered
