"""Libraries of others in the page: unchanged, with their licences, named in NOTICE."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from page import chromium
from stagetrace.page import templates

ROOT = Path(__file__).resolve().parents[2]
VENDOR = ROOT / "src/stagetrace/page/static/vendor"
# File -> where its npm package has it.
FILES = {
    "htmx.min.js": "htmx.org/dist/htmx.min.js",
    "hx-sse.min.js": "htmx.org/dist/ext/hx-sse.min.js",
    "htmx.LICENSE.txt": "htmx.org/LICENSE",
    "uPlot.iife.min.js": "uplot/dist/uPlot.iife.min.js",
    "uPlot.min.css": "uplot/dist/uPlot.min.css",
    "uPlot.LICENSE.txt": "uplot/LICENSE",
}


@pytest.mark.thorough  # it installs the packages
def test_each_file_is_the_one_of_its_package() -> None:
    """Of the version, and with the hash, that `browser/package-lock.json` pins."""
    packages = chromium.installed().packages
    assert {path.name for path in VENDOR.iterdir()} == {*FILES, "README.txt"}
    for name, original in FILES.items():
        assert (VENDOR / name).read_bytes() == (packages / original).read_bytes(), name


def test_they_are_named_where_licences_are_looked_for() -> None:
    notice = (ROOT / "NOTICE").read_text()
    for name in ("htmx", "uPlot"):
        assert name in notice
        assert (VENDOR / f"{name}.LICENSE.txt").read_text().strip()


def test_they_are_small() -> None:
    """About 40 KB are sent for all of them."""
    sent = [
        file.compressed for name, file in templates.files().items() if name.startswith("vendor/") and ".min." in name
    ]
    assert len(sent) == 4
    assert sum(map(len, sent)) < 45_000
    assert gzip.decompress(sent[0])
