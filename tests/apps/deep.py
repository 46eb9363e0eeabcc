"""Models of torch, transformers and catboost: `GET /case/NAME` runs one call and answers with what it returned."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases import error_of, serve
from catboost import CatBoostClassifier, CatBoostRegressor, Pool
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Pooling, Transformer
from sklearn.preprocessing import StandardScaler
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    pipeline,
)

torch.manual_seed(0)
torch.set_num_threads(1)
FOLDER = tempfile.mkdtemp()
SMALL = {"vocab_size": 7, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.rest = nn.Sequential(nn.ReLU(), nn.Linear(8, 2))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.rest(self.first(rows))


class Distance(nn.Module):
    """A model without a parameter."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.norm(dim=1)


class Listed(Net):
    """Gives its parameters as a list, and has a path where transformers has a text."""

    def __init__(self) -> None:
        super().__init__()
        self.name_or_path = Path("/models/listed")

    def parameters(self, recurse: bool = True) -> Any:
        return list(super().parameters(recurse))


def saved(model: Any, name: str) -> str:
    model.save_pretrained(f"{FOLDER}/{name}")
    tokenizer.save_pretrained(f"{FOLDER}/{name}")
    return f"{FOLDER}/{name}"


rows = torch.arange(12.0).reshape(3, 4) / 10
net = Net().eval()
compiled = torch.compile(Net().eval(), fullgraph=True, backend="aot_eager")
function = torch.compile(lambda data: net(data) * 1, fullgraph=True, backend="aot_eager")
exported = torch.export.export(net, (rows,)).module()

WORDS = ("PAD", "UNK", "END", "good", "bad", "day", "a")
words = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, "UNK"))
words.pre_tokenizer = Whitespace()
special = {"pad_token": "PAD", "unk_token": "UNK", "eos_token": "END"}
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **special)
bert = BertForSequenceClassification(BertConfig(**SMALL)).eval()
writer = GPT2LMHeadModel(
    GPT2Config(vocab_size=7, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=2, eos_token_id=2)
).eval()
classify = pipeline("text-classification", model=saved(bert, "classifier"))
write = pipeline("text-generation", model=writer, tokenizer=tokenizer)
parts = [Transformer(saved(BertModel(BertConfig(**SMALL)), "sentences")), Pooling(16)]
sentences = SentenceTransformer(modules=parts)

labels = np.array([0, 1, 0])
trees = CatBoostClassifier(5, verbose=False, allow_writing_files=False).fit(rows.numpy(), labels)
regression = CatBoostRegressor(5, verbose=False, allow_writing_files=False).fit(rows.numpy(), labels)
scaler = StandardScaler().fit(rows.numpy())
short = {"max_new_tokens": 5, "do_sample": False}

CASES: dict[str, Callable[[], Any]] = {
    "module": lambda: net(rows),
    "keywords": lambda: net(rows=rows),
    "compiled": lambda: compiled(rows),
    "compiled-function": lambda: function(rows),
    "scaled": lambda: net(torch.from_numpy(scaler.transform(rows.numpy()))),
    "scaled-function": lambda: function(torch.from_numpy(scaler.transform(rows.numpy()))),
    "scripted": lambda model=torch.jit.script(net): model(rows),
    "traced": lambda model=torch.jit.trace(net, rows): model(rows),
    "symbolic": lambda model=torch.fx.symbolic_trace(net): model(rows),
    "exported": lambda: exported(rows),
    "parallel": lambda model=nn.DataParallel(net): model(rows),
    "no-parameter": lambda: Distance()(rows),
    "listed": lambda model=Listed().eval(): model(rows),
    "function": lambda: nn.Softmax(1)(rows),
    "between": lambda: nn.Sequential(nn.Softmax(1), nn.ReLU())(net(nn.Flatten()(rows))),
    "raises": lambda: error_of(lambda: net(torch.ones(3, 5))),
    "transformer": lambda: bert(**tokenizer(["good day", "bad a"], return_tensors="pt")).logits,
    "classification": lambda: [one["score"] for one in classify(["good day", "a bad"], batch_size=2)],
    "generation": lambda: writer.generate(**tokenizer("good day", return_tensors="pt"), **short),
    "generation-pipeline": lambda: [one["generated_text"] for one in write("good day", **short)],
    "sentences": lambda: sentences.encode(["good day", "bad"]),
    "catboost": lambda: trees.predict_proba(rows.numpy()),
    "catboost-pool": lambda: regression.predict(Pool(rows.numpy())),
}

app = serve({name: torch.no_grad()(call) for name, call in CASES.items()})
