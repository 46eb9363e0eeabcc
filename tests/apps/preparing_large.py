"""Prepare a model's input with transformers, torchvision, OpenCV and feast."""

from __future__ import annotations

import asyncio
import pickle
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from cases import error_of, serve
from cv2 import imdecode
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig
from feast.types import Float32
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torchvision.io import decode_image, encode_png
from torchvision.transforms import Compose, Resize, ToTensor, v2
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast, ViTImageProcessor

import stagetrace

vocabulary = Tokenizer(models.WordLevel({"[UNK]": 0, "the": 1, "model": 2}, unk_token="[UNK]"))  # noqa: S106
vocabulary.pre_tokenizer = pre_tokenizers.Whitespace()
fast = PreTrainedTokenizerFast(tokenizer_object=vocabulary, unk_token="[UNK]", pad_token="[UNK]")  # noqa: S106
fast.chat_template = "{% for one in messages %}{{ one.content }}{% endfor %}"
slow = ByT5Tokenizer()
processor = ViTImageProcessor(size={"height": 8, "width": 8})
PIXELS = np.arange(48 * 64 * 3, dtype=np.uint8).reshape(48, 64, 3)
PNG = cv2.imencode(".png", PIXELS)[1]


def predicted(*inputs: Any) -> Any:
    with stagetrace.stage("inference"):
        return [float(torch.as_tensor(np.asarray(one)).double().sum()) for one in inputs]


def fast_tokenizer() -> Any:
    ids = fast(["the model", "the"], padding=True)["input_ids"]
    return [
        ids,
        fast.encode("the"),
        fast.apply_chat_template([{"role": "user", "content": "the"}]),
        fast.decode(ids[0]),
    ]


def slow_tokenizer() -> Any:
    return [slow("the model")["input_ids"], slow.batch_decode([[119, 107]])]


def copied_tokenizer() -> Any:
    return pickle.loads(pickle.dumps(fast))("the model")["input_ids"]  # noqa: S301 -- our own


def image_processor() -> Any:
    return predicted(processor(Image.fromarray(PIXELS))["pixel_values"][0])


def opencv() -> Any:
    decoded = imdecode(PNG, cv2.IMREAD_COLOR)
    return predicted(cv2.cvtColor(cv2.resize(decoded, (8, 8)), cv2.COLOR_BGR2GRAY))


def opencv_raises() -> Any:
    return [error_of(lambda: cv2.resize(3))[0], pickle.loads(pickle.dumps(cv2.resize)) is cv2.resize]  # noqa: S301


def transforms() -> Any:
    return predicted(pickle.loads(pickle.dumps(Compose([Resize(8), ToTensor()])))(Image.fromarray(PIXELS)))  # noqa: S301


def transforms_v2() -> Any:
    pixels = torch.from_numpy(PIXELS).permute(2, 0, 1)
    whole = v2.Compose([v2.Resize(8), v2.ToDtype(torch.float32, scale=True)])
    return predicted(whole(pixels), v2.CenterCrop(8)(pixels))


def compiled_transform() -> Any:
    pixels = torch.from_numpy(PIXELS).permute(2, 0, 1).float()
    return predicted(torch.compile(v2.Normalize([0.5] * 3, [0.5] * 3), backend="eager", fullgraph=True)(pixels))


def scripted_transform() -> Any:
    scripted = torch.jit.script(v2.CenterCrop(8))
    return predicted(scripted(torch.from_numpy(PIXELS).permute(2, 0, 1)))


def decoded(content: torch.Tensor) -> torch.Tensor:
    return decode_image(content)


def torchvision_io() -> Any:
    return predicted(decode_image(encode_png(torch.from_numpy(PIXELS).permute(2, 0, 1).contiguous())))


def scripted_io() -> Any:
    return error_of(lambda: predicted(torch.jit.script(decoded)(torch.from_numpy(PNG))))


def features_of(folder: Path) -> FeatureStore:
    """Return a store with one feature view, whose online store is a file of sqlite."""
    rows = pd.DataFrame({"user": [1, 2], "score": [0.5, 0.25], "at": [datetime(2026, 11, 1, tzinfo=UTC)] * 2})
    rows.to_parquet(folder / "rows.parquet")
    online = {"type": "sqlite", "path": str(folder / "online.db")}
    made = FeatureStore(
        config=RepoConfig(
            project="loans",
            provider="local",
            registry=str(folder / "registry.db"),
            online_store=online,
            entity_key_serialization_version=3,
        )
    )
    user = Entity(name="user", join_keys=["user"])
    source = FileSource(path=str(folder / "rows.parquet"), timestamp_field="at")
    view = FeatureView(name="scores", entities=[user], schema=[Field(name="score", dtype=Float32)], source=source)
    made.apply([user, view])
    made.write_to_online_store("scores", rows)
    return made


features = features_of(Path(tempfile.mkdtemp()))
ASKED = {"features": ["scores:score"], "entity_rows": [{"user": 2}, {"user": 3}]}


def feature_store() -> Any:
    return [features.get_online_features(**ASKED).to_dict() for _ in range(2)]


def feature_store_async() -> Any:
    return error_of(lambda: asyncio.run(features.get_online_features_async(**ASKED)).to_dict())


CASES = (
    *(
        fast_tokenizer,
        slow_tokenizer,
        copied_tokenizer,
        image_processor,
        opencv,
        opencv_raises,
        transforms,
        transforms_v2,
    ),
    *(compiled_transform, scripted_transform, torchvision_io, scripted_io, feature_store, feature_store_async),
)
app = serve({case.__name__: (lambda case=case: [repr(case())]) for case in CASES})
