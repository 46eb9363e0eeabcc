"""Serve the stalls by MLServer: a parallel worker stalls, and the main process serves HTTP."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from mlserver import MLModel
from mlserver.cli import main
from mlserver.codecs import StringCodec
from mlserver.types import InferenceRequest, InferenceResponse

from benchmarks.stalls.planted import plant

SETTINGS = {"name": "stalls", "implementation": "benchmarks.stalls.app_mlserver.Stalls"}


class Stalls(MLModel):  # type: ignore[misc]
    """Stall as the request says."""

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Stall in the event loop of the worker process."""
        stall, ms = StringCodec.decode_input(payload.inputs[0])
        await plant(stall, float(ms))
        return InferenceResponse(model_name=self.name, outputs=[StringCodec.encode_output("stalled", ["ok"])])


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        Path(folder, "model-settings.json").write_text(json.dumps(SETTINGS))
        port = int(sys.argv[-1])
        ports = {"HTTP": port, "GRPC": port + 1, "METRICS": port + 2}
        os.environ |= {f"MLSERVER_{name}_PORT": str(number) for name, number in ports.items()}
        os.environ |= {
            "MLSERVER_PARALLEL_WORKERS": "1",
            "PROMETHEUS_MULTIPROC_DIR": folder,
            "MLSERVER_HOST": "127.0.0.1",
        }
        sys.argv[1:] = ["start", folder]
        main()
