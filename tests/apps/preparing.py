"""Prepare a model's input with tokenizers, Pillow, redis and SQLAlchemy; which model that is does not matter."""

from __future__ import annotations

import asyncio
import io
import os
import pickle
import threading
from contextvars import copy_context
from typing import Any

import redis.asyncio
from cases import error_of, serve
from PIL import Image
from sqlalchemy import create_engine, text
from tokenizers import Tokenizer, models, pre_tokenizers

import stagetrace

TEXTS = [f"the model number {number} is late" for number in range(400)]
tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "the": 1, "model": 2, "is": 3, "late": 4}, unk_token="[UNK]"))  # noqa: S106
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
engine = create_engine("sqlite://")  # long before this process serves
REDIS_PORT = int(os.environ["REDIS_PORT"])
client = redis.Redis(port=REDIS_PORT, protocol=2)


class Thumbnail(Image.Image):
    """Overrides a method that is patched."""

    def resize(self, size: Any, *args: Any, **kwargs: Any) -> Any:
        return super().resize((size[0] // 2, size[1] // 2), *args, **kwargs)


def predicted(*inputs: Any) -> list[Any]:
    with stagetrace.stage("inference"):
        return [len(one) for one in inputs]


def image(kind: str, size: tuple[int, int] = (64, 48)) -> io.BytesIO:
    made = io.BytesIO()
    Image.frombytes("RGB", size, bytes(range(256)) * (size[0] * size[1] * 3 // 256)).save(made, kind)
    made.seek(0)
    return made


IMAGES = {kind: image(kind).getvalue() for kind in ("PNG", "JPEG", "WEBP", "TIFF", "GIF")}


def documents() -> Any:
    ids = [tokenizer.encode(one).ids for one in TEXTS]
    found = predicted(*ids)
    return [found[:3], tokenizer.decode_batch(ids)[:2], tokenizer.decode(ids[0])]


def batch() -> Any:
    return predicted(*(one.ids for one in tokenizer.encode_batch(TEXTS)))[:3]


def within() -> Any:
    with stagetrace.stage("inference"):
        return tokenizer.encode("the model").ids


def images() -> Any:
    opened = [Image.open(io.BytesIO(content)) for content in IMAGES.values()]
    small = [one.resize((8, 8)) for one in opened]
    again = [one.convert("L") for one in opened]  # decoded already
    return predicted(*(one.tobytes() for one in (*small, *again)))


def broken_image() -> Any:
    return error_of(lambda: Image.open(io.BytesIO(IMAGES["JPEG"][:-300])).load())


def copied() -> Any:
    return pickle.loads(pickle.dumps(tokenizer)).encode("the model").ids  # noqa: S301 -- our own


def overridden() -> Any:
    small = Image.open(io.BytesIO(IMAGES["PNG"]))
    small.load()
    small.__class__ = Thumbnail
    return [small.resize((8, 8)).size, isinstance(small, Image.Image), Thumbnail.resize.__name__]


def raises() -> Any:
    return error_of(lambda: tokenizer.encode(3))


def threads() -> Any:
    found: list[Any] = []
    begun = [
        threading.Thread(target=copy_context().run, args=(lambda: found.append(tokenizer.encode("the").ids),))
        for _ in range(4)
    ]
    for one in begun:
        one.start()
    for one in begun:
        one.join()
    return found


def cached() -> Any:
    return [client.get("quick"), error_of(lambda: client.execute_command("FAIL"))]


def async_cache() -> Any:
    async def fetched() -> Any:
        async with redis.asyncio.Redis(port=REDIS_PORT, protocol=2) as connected:
            return await asyncio.gather(*(connected.get("quick") for _ in range(2)))

    return asyncio.run(fetched())


def slow_cache() -> Any:
    return [client.get("slow"), *predicted("")]


def rows() -> Any:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text("SELECT 1, 'a' UNION SELECT 2, 'b'"))]


def late_engine() -> Any:
    made = create_engine("sqlite://")
    with made.connect() as connection:
        return [
            list(connection.execute(text("SELECT 3")).one()),
            error_of(lambda: connection.execute(text("NO SQL")))[:1],
        ]


CASES = (documents, batch, within, images, broken_image, copied, overridden, raises, threads, cached, slow_cache, rows)
app = serve({case.__name__: (lambda case=case: [repr(case())]) for case in (*CASES, late_engine, async_cache)})
