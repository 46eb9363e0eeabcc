"""A service of generative models: of llama-cpp-python where MODEL names a GGUF file, else of the stand-ins."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

if "MODEL" not in os.environ:
    sys.path.insert(0, str(Path(__file__).parent / "stand_ins"))

from fastapi import FastAPI, HTTPException
from fastapi.responses import StreamingResponse
from llama_cpp import Llama

app = FastAPI()
PAUSE_S = 0.002
if "MODEL" in os.environ:
    llama = Llama(os.environ["MODEL"], n_ctx=256, n_threads=1, seed=1, verbose=False)
    embedder = Llama(os.environ["MODEL"], n_ctx=256, n_threads=1, embedding=True, verbose=False)
    SURE = {"temperature": 0.0}
else:
    llama = embedder = Llama("/models/tiny.gguf", [(PAUSE_S, 97 + place % 26) for place in range(40)])
    SURE = {}
broken = None if SURE else Llama("/models/broken.gguf", [(PAUSE_S, 97)] * 3, fails_at=2)


@app.get("/health")
def health() -> str:
    return "ok"


@app.get("/generate")
def generate(tokens: int = 8) -> dict:
    completion = llama("hello", max_tokens=tokens, **SURE)
    return {"text": completion["choices"][0]["text"], "usage": completion["usage"]}


@app.get("/stream")
def stream(tokens: int = 8) -> StreamingResponse:
    steps = llama.create_completion("hello", max_tokens=tokens, stream=True, **SURE)
    return StreamingResponse((one["choices"][0]["text"] + "\n" for one in steps), media_type="text/plain")


@app.get("/chat")
def chat(tokens: int = 8) -> dict:
    found = llama.create_chat_completion([{"role": "user", "content": "hi"}], max_tokens=tokens, **SURE)
    return {"text": found["choices"][0]["message"]["content"], "usage": found["usage"]}


@app.get("/twice")
def twice() -> list:
    return [llama("hello", max_tokens=count, **SURE)["usage"]["completion_tokens"] for count in (3, 4)]


@app.get("/abandoned")
def abandoned() -> str:
    for _ in llama("hello", stream=True, **SURE):
        break
    return "enough"


@app.get("/embed")
def embed() -> dict:
    return embedder.create_embedding(["hello", "hi"])["usage"]


@app.get("/fail")
def fail() -> None:
    try:
        broken("hello")
    except ValueError as error:
        raise HTTPException(503, str(error)) from error


@app.get("/vllm")
async def of_vllm(tokens: int = 4) -> StreamingResponse:
    from vllm.outputs import RequestOutputKind, SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM

    steps = AsyncLLM("org/model", tokens).generate("hello", SamplingParams(1, RequestOutputKind.DELTA), "1")

    async def texts() -> AsyncIterator[str]:
        async for output in steps:
            await asyncio.sleep(0)
            yield f"{output.outputs[0].token_ids}\n"

    return StreamingResponse(texts(), media_type="text/plain")
