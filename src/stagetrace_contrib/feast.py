"""feast: fetching features and documents from the online store."""

from __future__ import annotations

from stagetrace.instrumentation.detail import FEATURE_FETCH, details

FETCHES = ("get_online_features", "get_online_features_async", "retrieve_online_documents")
spans = {FEATURE_FETCH: (*FETCHES, "retrieve_online_documents_v2")}
patch_feature_store = details("FeatureStore", spans, "feast", __name__)
