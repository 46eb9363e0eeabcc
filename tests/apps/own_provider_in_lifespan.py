"""The author sets the provider in the lifespan, when the middleware stack is built already."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import ml
from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    provider = TracerProvider(resource=Resource.create({"service.name": "own-provider"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=os.environ["SINK"], insecure=True)))
    trace.set_tracer_provider(provider)
    yield
    provider.shutdown()


app = FastAPI(lifespan=lifespan)
app.include_router(ml.app.router)
