"""FastAPI's own telemetry has been given a provider that exports nothing."""

import os

from fastapi import FastAPI

os.environ["GLOBAL"] = "0"
import silent_provider

app = FastAPI(telemetry={"tracer_provider": silent_provider.make()})
app.include_router(silent_provider.app.router)
