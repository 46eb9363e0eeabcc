"""feast: fetching features and documents from the online store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stagetrace.instrumentation.detail import FEATURE_FETCH, add_details

if TYPE_CHECKING:
    from types import ModuleType

FETCHES = ("get_online_features", "get_online_features_async", "retrieve_online_documents")


def patch_feature_store(module: ModuleType) -> None:
    """Wrap what reads the online store."""
    add_details(module.FeatureStore, {FEATURE_FETCH: (*FETCHES, "retrieve_online_documents_v2")}, "feast", __name__)
