"""Serve the stalls by LitServe: its worker process stalls, and another process serves HTTP."""

from __future__ import annotations

import sys
from typing import Any

import litserve

from benchmarks.stalls.planted import BLOCKING


class Stalls(litserve.LitAPI):  # type: ignore[misc]
    """Stall as the request says."""

    def setup(self, device: str) -> None:
        """Load nothing."""

    def predict(self, asked: dict[str, Any]) -> dict[str, str]:
        """Stall in the worker process."""
        BLOCKING[asked["stall"]](asked["ms"])
        return {"stalled": "ok"}


if __name__ == "__main__":
    server = litserve.LitServer(Stalls(api_path="/stall"), accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1", port=int(sys.argv[-1]), num_api_servers=1, generate_client_file=False, log_level="warning"
    )
