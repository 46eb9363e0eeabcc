"""Links from a line of code to its source: nothing but a well-formed link comes out, whatever a span says."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.running import fail_to_start, run_up
from page.data import HOSTILE, fill
from stagetrace.page.source import EDITOR, Folders, Source, template

if TYPE_CHECKING:
    from pathlib import Path

    from page.conftest import OpenPage

WEB = "https://git.test/acme/ranker/blob/{version}/{path}#L{line}"
IN_REPOSITORY = Source(template(WEB))


def test_a_line_of_a_release_in_a_repository() -> None:
    found = IN_REPOSITORY.url("ranker/mo del.py:12 in forward", "1.5.0+b#1")
    assert found == "https://git.test/acme/ranker/blob/1.5.0%2Bb%231/ranker/mo%20del.py#L12"
    assert IN_REPOSITORY.url("app.py:41 in predict", None) is None
    assert Source(WEB.replace("{version}", "main")).url("app.py:41 in predict") == (
        "https://git.test/acme/ranker/blob/main/app.py#L41"
    )


@pytest.mark.parametrize(
    "code",
    [
        None,
        "",
        "app.py",
        "app.py:x in f",
        "app.py:12345678 in f",
        "../../login:1 in f",
        "a/../../b.py:1 in f",
        "/etc/passwd:1 in f",
        "//evil.test/x:1 in f",
        "a//b:1 in f",
        "\\\\evil\\x:1 in f",
        "<string>:1 in f",
        "~root/x:1 in f",
        "java\nscript.py:1 in f",
        f"{'x' * 500}:1 in f",
        ":1 in f",
        ".:1 in f",
    ],
)
def test_a_path_that_leads_elsewhere_has_no_link(code: str | None) -> None:
    assert IN_REPOSITORY.url(code, "1.5.0") is None


@pytest.mark.parametrize("version", [None, "", ".", "..", "a\nb", "x" * 201])
def test_a_version_that_leads_elsewhere_has_no_link(version: str | None) -> None:
    assert IN_REPOSITORY.url("app.py:41 in predict", version) is None


@given(
    code=st.one_of(st.text(), st.builds("{}:{} in {}".format, st.text(), st.integers(), st.text())),
    version=st.one_of(st.none(), st.text(), st.sampled_from(["..", HOSTILE, "%2e%2e", "a/../.."])),
)
def test_whatever_a_span_says_the_link_stays_below_the_repository(code: str, version: str | None) -> None:
    found = IN_REPOSITORY.url(code, version)
    if found is not None:
        parts = urlsplit(found)
        assert found.isascii()
        assert found.isprintable()
        assert not set(found) & set(" \"'<>`\\{}")
        assert (parts.scheme, parts.netloc, parts.query) == ("https", "git.test", "")
        segments = parts.path.split("/")
        assert segments[:4] == ["", "acme", "ranker", "blob"]
        assert ".." not in segments
        assert all(segments[1:])
        assert parts.fragment[0] == "L"
        assert parts.fragment[1:].isdigit()


@pytest.mark.parametrize(
    "text",
    [
        "javascript:alert(1)//{path}",
        "data:text/html,{path}",
        "file:///{path}",
        "//git.test/{path}",
        "https:///{path}",
        "https://{path}/x",
        "https://{version}.test/{path}",
        "https://git.test/",
        "https://git.test/{path}/{host}",
        'https://git.test/{path}"onmouseover="x',
        "https://git.test/ {path}",
        "https://[git.test/{path}",
    ],
)
def test_a_template_that_is_no_address_of_a_source_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no URL of a line of code|has characters that a URL has not"):
        template(text)


def test_a_page_with_such_a_template_does_not_start(tmp_path: Path) -> None:
    told = fail_to_start("--data", str(tmp_path), env={"STAGETRACE_SOURCE_URL": "javascript:alert(1)//{path}"})
    assert "STAGETRACE_SOURCE_URL: 'javascript:alert(1)//{path}' is no URL of a line of code" in told


def test_an_editor_opens_a_file_that_is_here(tmp_path: Path) -> None:
    (tmp_path / "ranker").mkdir()
    (tmp_path / "ranker/model.py").write_text("")
    found = Source(EDITOR, lambda: [tmp_path / "none", tmp_path])
    assert found.url("ranker/model.py:12 in forward") == f"vscode://file/{str(tmp_path).lstrip('/')}/ranker/model.py:12"
    assert found.url("ranker/other.py:12 in forward") is None
    assert found.url("ranker:12 in forward") is None
    (tmp_path / "secret.py").write_text("")
    inside = Source(EDITOR, lambda: [tmp_path / "ranker"])
    assert inside.url("../secret.py:1 in f") is None


def test_folders_are_looked_up_again_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    folders = Folders(lambda: now[0])
    with monkeypatch.context() as patched:
        patched.chdir(tmp_path)
        assert folders()[0] == tmp_path
    assert folders()[0] == tmp_path
    now[0] = 11.0
    assert folders()[0] != tmp_path


@pytest.mark.usefixtures("services")
def test_lines_of_breaches_and_stacks_are_links(open_page: OpenPage, tmp_path: Path) -> None:
    """To the repository; a click on one does not open the row's trace."""
    fill(tmp_path / "data", "many")
    url = "https://git.test/acme/blob/main/{path}#L{line}"
    with run_up(tmp_path, env={"STAGETRACE_SOURCE_URL": url}) as up:
        address = up.url("query_http_port")
        expected = "https://git.test/acme/blob/main/ranker/model.py#L12"
        wanted = "since=2h&code=ranker/model.py"
        for path in (f"/breaches?{wanted}", f"/breaches?{wanted}&groups=1", f"/board?{wanted}"):
            page = open_page(address, path)
            link = page.locator("a.source", has_text="ranker/model.py:12 in forward").first
            assert link.get_attribute("href") == expected, path
            page.close()  # a board would ask again
        page = open_page(address, f"/breaches?{wanted}")
        box = page.locator("a.source").first.bounding_box()
        assert box is not None
        under = page.evaluate(
            "([x, y]) => document.elementFromPoint(x, y).closest('a').className", [box["x"] + 5, box["y"] + 5]
        )
        assert under == "source"
        page.locator("#list [data-row] a").first.click()
        page.wait_for_url("**/trace/*")
        assert page.locator(".blame a.source").get_attribute("href") == expected
        assert page.locator(".stood a.source").first.get_attribute("href") == expected
