"""spaCy: a pipeline that is called, and its `pipe`. Its components, one after another in each call, are parts of it."""

from __future__ import annotations

from typing import Any

from stagetrace.instrumentation.models.base import Calls, Library

UNVERSIONED = "0.0.0"  # of a pipeline whose metadata have no version


def _name(pipeline: Any) -> str:
    return f"{pipeline.lang}_{pipeline._meta.get('name', 'pipeline')}"  # `meta` would collect all labels


def _version(pipeline: Any) -> str | None:
    version = pipeline._meta.get("version")
    return None if version == UNVERSIONED else version


SPACY = Library(
    __name__,
    "spacy",
    name=_name,
    version=_version,
    not_recognised="processes of `pipe(n_process=...)`; a component that is called alone",
)
patch_language = SPACY.patch(Calls("Language", ("__call__", "pipe")))
