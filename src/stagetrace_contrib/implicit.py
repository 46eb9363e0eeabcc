"""implicit: recommendations, of each class of recommenders and of users' own."""

from __future__ import annotations

from stagetrace.instrumentation.models.base import Calls, Library

IMPLICIT = Library(__name__, "implicit", is_flat=True)
patch_recommender_base = IMPLICIT.patch(
    Calls(
        "RecommenderBase",
        ("recommend", "recommend_all", "similar_items", "similar_users", "rank_items"),
        derived=True,
    )
)
