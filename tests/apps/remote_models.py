"""Handlers that call models elsewhere: language models by plain clients and by SDKs, KServe v2 by tritonclient."""

import asyncio
import json
import urllib.request
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import aiohttp
import breaking
import httpx
import httpx2
import numpy as np
import requests
import urllib3
from fastapi import FastAPI, Request

app = FastAPI()
pool = urllib3.PoolManager()
session = requests.Session()
MESSAGES: Any = [{"role": "user", "content": "hello"}]


@app.get("/break/{name}")
async def make_broken(name: str) -> None:
    breaking.make_broken(name)


@app.get("/mend")
async def mend() -> None:
    breaking.mend()


@app.get("/health")
async def health() -> bool:
    return True


Note = Callable[[bytes], None]  # told of each part of a body as it comes


def by_httpx(of: Any, url: str, body: Any, note: Note) -> None:
    with of.Client() as client, client.stream("POST", url, json=body) as answer:
        for part in answer.iter_bytes():
            note(part)


class Unzipping(httpx.HTTPTransport):
    """Decodes bodies itself, and returns the response without the header."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = super().handle_request(request)
        response.stream = httpx.ByteStream(zlib.decompress(b"".join(response.stream), wbits=31))
        del response.headers["content-encoding"]
        return response


def by_httpx_unzipping(url: str, body: Any, note: Note) -> None:
    with httpx.Client(transport=Unzipping()) as client:
        note(client.post(url, json=body).content)


def by_requests(url: str, body: Any, note: Note) -> None:
    with session.post(url, json=body, stream=True, timeout=5) as answer:
        for part in answer.iter_content(None):
            note(part)


def by_requests_whole(url: str, body: Any, note: Note) -> None:
    note(session.post(url, data=json.dumps(body).encode(), timeout=5).content)


def by_urllib3(url: str, body: Any, note: Note) -> None:
    note(pool.request("POST", url, json=body).data)


def by_urllib3_parts(url: str, body: Any, note: Note) -> None:
    answer = pool.request("POST", url, json=body, preload_content=False)
    while part := answer.read(100):
        note(part)
    answer.release_conn()


def by_urllib3_chunks(url: str, body: Any, note: Note) -> None:
    answer = pool.request("POST", url, json=body, preload_content=False)
    for part in answer.stream(decode_content="content-encoding" in answer.headers or None):
        note(part)


async def by_httpx_async(of: Any, url: str, body: Any, note: Note) -> None:
    async with of.AsyncClient() as client, client.stream("POST", url, json=body) as answer:
        async for part in answer.aiter_bytes():
            note(part)


async def by_aiohttp(url: str, body: Any, note: Note) -> None:
    async with aiohttp.ClientSession() as one, one.post(url, json=body) as answer:
        assert type(answer.content).__name__ == "StreamReader"
        assert isinstance(answer.content, aiohttp.StreamReader)
        async for part in answer.content.iter_any():
            note(part)


async def by_aiohttp_whole(url: str, body: Any, note: Note) -> None:
    async with aiohttp.ClientSession() as one, one.post(url, data=json.dumps(body)) as answer:
        note(await answer.read())


SYNC: dict[str, Any] = {
    "httpx": partial(by_httpx, httpx),
    "httpx2": partial(by_httpx, httpx2),
    "httpx-unzipping": by_httpx_unzipping,
    "requests": by_requests,
    "requests-whole": by_requests_whole,
    "urllib3": by_urllib3,
    "urllib3-parts": by_urllib3_parts,
    "urllib3-chunks": by_urllib3_chunks,
}
ASYNC: dict[str, Any] = {
    "httpx-async": partial(by_httpx_async, httpx),
    "httpx2-async": partial(by_httpx_async, httpx2),
    "aiohttp": by_aiohttp,
    "aiohttp-whole": by_aiohttp_whole,
}


@app.post("/ask/{how}")
async def ask(how: str, url: str, request: Request) -> str:
    body, parts = await request.json(), []

    def note(part: bytes) -> None:
        parts.append(part)
        if b"Hel" in part and "paced" in str(body):  # the server waits for this
            urllib.request.urlopen(f"{url.partition('/v1')[0]}/received", b"").close()  # noqa: S310

    if how in ASYNC:
        await ASYNC[how](url, body, note)
    else:
        await asyncio.to_thread(SYNC[how], url, body, note)
    return b"".join(parts).decode()


def chats(client: Any, model: str) -> dict[str, Any]:
    create = client.chat.completions.create
    counted = {"stream_options": {"include_usage": True}}
    return {
        "chat": lambda: create(model=model, messages=MESSAGES).choices[0].message.content,
        "raw": lambda: (
            client.chat.completions.with_raw_response.create(model=model, messages=MESSAGES)
            .parse()
            .choices[0]
            .message.content
        ),
        "stream": lambda: "".join(
            chunk.choices[0].delta.content or ""
            for chunk in create(model=model, messages=MESSAGES, stream=True, **counted)
            if chunk.choices
        ),
        "responses": lambda: client.responses.create(model=model, input="hello").usage.total_tokens,
    }


@app.get("/openai/{what}")
def by_openai(what: str, url: str, model: str) -> Any:
    import openai

    with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        if what == "abandoned":
            with client.chat.completions.create(model=model, messages=MESSAGES, stream=True) as stream:
                return next(iter(stream)).choices[0].delta.role
        return chats(client, model)[what]()


@app.get("/openai-async/{what}")
async def by_openai_async(what: str, url: str, model: str) -> Any:
    import openai

    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
        if what == "stream":
            stream = await client.chat.completions.create(model=model, messages=MESSAGES, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])
        answer = await client.chat.completions.create(model=model, messages=MESSAGES)
        return answer.choices[0].message.content


@app.get("/anthropic/{what}")
def by_anthropic(what: str, url: str, model: str) -> Any:
    import anthropic

    own: Any = {} if what == "own" else False  # the SDK's own span of a call
    with anthropic.Anthropic(base_url=url, api_key="none", open_telemetry=own) as client:
        if what == "stream":
            with client.messages.stream(model=model, max_tokens=9, messages=MESSAGES) as stream:
                return "".join(stream.text_stream)
        return client.messages.create(model=model, max_tokens=9, messages=MESSAGES).content[0].text


def inputs(of: Any) -> list[Any]:
    tensor = of.InferInput("IN", [2, 3], "INT32")
    tensor.set_data_from_numpy(np.arange(6, dtype=np.int32).reshape(2, 3))
    return [tensor]


@app.get("/triton/http/{what}")
def by_triton_http(what: str, target: str, version: str = "") -> Any:
    from tritonclient import http

    client = http.InferenceServerClient(target)
    try:
        if what == "async":
            return client.async_infer("trees", inputs(http), version).get_result().as_numpy("OUT").tolist()
        return client.infer("trees", inputs(http), version, headers={"X-Mine": "1"}).as_numpy("OUT").tolist()
    finally:
        client.close()


@app.get("/triton/http-aio/{what}")
async def by_triton_http_aio(what: str, target: str, version: str = "") -> Any:
    from tritonclient.http import aio

    async with aio.InferenceServerClient(target) as client:
        return (await client.infer("trees", inputs(aio), version)).as_numpy("OUT").tolist()


@app.get("/triton/grpc/{what}")
def by_triton_grpc(what: str, target: str, version: str = "") -> Any:
    import queue

    from tritonclient import grpc

    done: queue.Queue[Any] = queue.Queue()

    def note(result: Any, error: Any) -> None:
        done.put(error or result.as_numpy("OUT").tolist())

    with grpc.InferenceServerClient(target) as client:
        if what == "async":
            client.async_infer("trees", inputs(grpc), note, version)
            return done.get(timeout=5)
        if what.startswith("stream"):
            client.start_stream(note)
            for name in ("trees", "trees" if what == "stream" else "others"):
                client.async_stream_infer(name, inputs(grpc), version)
            found = [done.get(timeout=5) for _ in range(2)]
            client.stop_stream()
            return found
        return client.infer("trees", inputs(grpc), version).as_numpy("OUT").tolist()


@app.get("/triton/grpc-aio/{what}")
async def by_triton_grpc_aio(what: str, target: str, version: str = "") -> Any:
    from tritonclient.grpc import aio

    async def asked() -> Any:
        for _ in range(2):
            yield {"model_name": "trees", "inputs": inputs(aio), "model_version": version}

    async with aio.InferenceServerClient(target) as client:
        if what == "stream":
            return [one.as_numpy("OUT").tolist() async for one, _ in client.stream_infer(asked())]
        return (await client.infer("trees", inputs(aio), version)).as_numpy("OUT").tolist()
