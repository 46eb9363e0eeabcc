"""Handlers that call another service, at DOWNSTREAM, by every client; INSTRUMENT: with OpenTelemetry's own for each."""

import asyncio
import os
from typing import Any

import aiohttp
import grpc
import httpx
import httpx2
import requests
import urllib3
from fastapi import FastAPI, Request, Response
from opentelemetry import propagate

if os.environ.get("INSTRUMENT"):
    from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor
    from opentelemetry.instrumentation.grpc import GrpcAioInstrumentorClient, GrpcInstrumentorClient
    from opentelemetry.instrumentation.httpx import HTTPX2ClientInstrumentor, HTTPXClientInstrumentor
    from opentelemetry.instrumentation.requests import RequestsInstrumentor
    from opentelemetry.instrumentation.urllib3 import URLLib3Instrumentor

    for instrumentor in (
        *(AioHttpClientInstrumentor, GrpcAioInstrumentorClient, GrpcInstrumentorClient),
        *(HTTPXClientInstrumentor, HTTPX2ClientInstrumentor, RequestsInstrumentor, URLLib3Instrumentor),
    ):
        instrumentor().instrument()

app = FastAPI()
TARGET = os.environ.get("GRPC_TARGET", "127.0.0.1:1")
pool = urllib3.PoolManager()
session = requests.Session()
client = httpx.Client()
client2 = httpx2.Client()


@app.get("/health")
async def health() -> bool:
    return True


def by_httpx(url: str, headers: dict[str, str], client: Any = client) -> Any:
    answer = client.get(url, headers=headers, follow_redirects=True)
    assert answer.request.headers.get("traceparent") == httpx.Headers(headers).get("traceparent") or os.environ.get(
        "INSTRUMENT"
    )
    return answer.text, answer.status_code


def by_httpx2(url: str, headers: dict[str, str]) -> Any:
    return by_httpx(url, headers, client2)


def by_requests(url: str, headers: dict[str, str]) -> Any:
    answer = session.get(url, headers=headers, timeout=5)
    return answer.text, answer.status_code


def by_urllib3(url: str, headers: dict[str, str]) -> Any:
    answer = pool.request("GET", url, headers=headers, retries=False)
    return answer.data.decode(), answer.status


async def by_httpx_async(url: str, headers: dict[str, str]) -> Any:
    async with httpx.AsyncClient() as one:
        answer = await one.get(url, headers=headers, follow_redirects=True)
        return answer.text, answer.status_code


async def by_httpx2_async(url: str, headers: dict[str, str]) -> Any:
    async with httpx2.AsyncClient() as one:
        answer = await one.get(url, headers=headers, follow_redirects=True)
        return answer.text, answer.status_code


async def by_aiohttp(url: str, headers: dict[str, str]) -> Any:
    async with aiohttp.ClientSession() as one, one.get(url, headers=headers) as answer:
        return await answer.text(), answer.status


SYNC = {"httpx": by_httpx, "httpx2": by_httpx2, "requests": by_requests, "urllib3": by_urllib3}
ASYNC = {"httpx-async": by_httpx_async, "httpx2-async": by_httpx2_async, "aiohttp": by_aiohttp}


def mine(request: Request) -> dict[str, str]:
    wanted = request.headers.get("x-send")
    if wanted == "own":
        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        return {name.title(): value for name, value in carrier.items()}
    return dict([wanted.split("=", 1)]) if wanted else {"x-mine": "1"}


@app.get("/sync/{how}")
def call(how: str, url: str, request: Request) -> Any:
    try:
        return SYNC[how](url, mine(request))
    except Exception as error:  # noqa: BLE001
        return [type(error).__name__, 0]


@app.get("/async/{how}")
async def call_async(how: str, url: str, request: Request) -> Any:
    try:
        return await ASYNC[how](url, mine(request))
    except Exception as error:  # noqa: BLE001
        return [type(error).__name__, 0]


@app.get("/forward")
def forward(url: str) -> Response:
    """Hand on what another service responds, its headers included."""
    answer = client.get(url)
    return Response(answer.content, answer.status_code, dict(answer.headers))


@app.get("/unread/{how}")
async def unread(how: str, url: str) -> Any:
    """Look at the head of the answer alone."""
    if how == "aiohttp":
        async with aiohttp.ClientSession() as one, one.get(url) as answer:
            return answer.status
    if how.endswith("-async"):
        of = httpx2 if how.startswith("httpx2") else httpx
        async with of.AsyncClient() as two, two.stream("GET", url) as answer:
            return answer.status_code

    def plain() -> int:
        if how.startswith("httpx"):
            with (client2 if how == "httpx2" else client).stream("GET", url) as answer:
                return answer.status_code
        if how == "requests":
            return session.get(url, stream=True, timeout=5).status_code
        answer = pool.request("GET", url, preload_content=False)
        answer.drain_conn()
        return int(answer.status)

    return await asyncio.to_thread(plain)


@app.get("/outside/{how}")
async def outside(how: str, url: str) -> Any:
    """Call in a thread of its own, which no request's context gets to."""
    import threading

    done: list[Any] = []
    thread = threading.Thread(target=lambda: done.append(SYNC[how](url, {})))
    thread.start()
    await asyncio.to_thread(thread.join)
    return done[0]


def stream(request: bytes) -> Any:
    yield request
    yield request


METADATA = (("x-mine", "1"),)


def metadata(own: bool) -> tuple[tuple[str, str], ...]:
    carrier: dict[str, str] = {}
    if own:
        propagate.inject(carrier)
    return (*METADATA, *carrier.items())


def rpc(channel: Any, kind: str) -> Any:
    return getattr(channel, kind if "_" in kind else "unary_unary")


def path(kind: str) -> str:
    return f"/test.Down/{''.join(part.title() for part in kind.split('_'))}"


if os.environ.get("BREAKABLE"):
    import switchable

    for name in ("/break/{name}", "/mend"):
        app.router.routes += [one for one in switchable.app.routes if getattr(one, "path", "") == name]


@app.get("/grpc/{kind}")
def call_grpc(kind: str, how: str = "call", own: bool = False, target: str = TARGET) -> Any:
    with grpc.insecure_channel(target) as channel:
        multi = rpc(channel, kind)(path(kind))
        request = stream(b"0.5") if kind.startswith("stream") else b"0.5"
        timeout = 0.1 if kind == "Sleep" else 5
        try:
            if how == "future":
                return multi.future(request, timeout, METADATA).result().decode()
            if how == "with_call":
                return multi.with_call(request, metadata=METADATA, timeout=timeout)[0].decode()
            answer = multi(request, timeout, metadata(own))
            return answer.decode() if isinstance(answer, bytes) else [one.decode() for one in answer]
        except grpc.RpcError as error:
            return error.code().name


@app.get("/grpc-aio/{kind}")
async def call_grpc_aio(kind: str, own: bool = False, target: str = TARGET) -> Any:
    async with grpc.aio.insecure_channel(target) as channel:
        multi = rpc(channel, kind)(path(kind))
        timeout = 0.1 if kind == "Sleep" else 5
        try:
            if kind.startswith("stream"):
                answer = multi(request_iterator=stream(b"0.5"), timeout=timeout, metadata=METADATA)
            else:
                answer = multi(b"0.5", timeout=timeout, metadata=grpc.aio.Metadata(*metadata(own)))
            if kind.endswith("stream"):
                return [one.decode() async for one in answer]
            return (await answer).decode()
        except grpc.RpcError as error:
            return error.code().name
