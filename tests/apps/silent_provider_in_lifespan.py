"""The author's provider, which has no exporter, is set in the lifespan."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from opentelemetry import trace

os.environ["GLOBAL"] = "0"
import silent_provider


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    provider = silent_provider.make()
    trace.set_tracer_provider(provider)
    yield
    provider.shutdown()


app = FastAPI(lifespan=lifespan)
app.include_router(silent_provider.app.router)
