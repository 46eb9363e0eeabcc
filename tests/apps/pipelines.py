"""Pipelines of transformers and models of sentence-transformers: `GET /case/NAME` runs one call."""

import tempfile
import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

import torch
from cases import error_of, serve
from sentence_transformers import CrossEncoder, MultiVectorEncoder, SentenceTransformer, SparseEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.sparse_encoder.modules import SpladePooling
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    TextIteratorStreamer,
    pipeline,
)
from transformers.pipelines.text_classification import TextClassificationPipeline

torch.manual_seed(0)
torch.set_num_threads(1)
FOLDER = tempfile.mkdtemp()
SMALL = {"vocab_size": 8, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
WORDS = ("PAD", "UNK", "END", "MASK", "good", "bad", "day", "a")
TEXTS = ["good day", "bad", "a good day", "day"]

words = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, "UNK"))
words.pre_tokenizer = Whitespace()
special = {"pad_token": "PAD", "unk_token": "UNK", "eos_token": "END", "mask_token": "MASK", "sep_token": "END"}
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **special, model_max_length=32)


def saved(model: Any, name: str) -> str:
    folder = f"{FOLDER}/{name}"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Own(TextClassificationPipeline):
    """A pipeline of the user's: its postprocessing calls another pipeline."""

    def postprocess(self, model_outputs: Any, **parameters: Any) -> Any:
        first = super().postprocess(model_outputs, **parameters)
        return [first, mark("good MASK", top_k=1)]


class OwnWriter(GPT2LMHeadModel):
    """A model with a `generate` of its own."""

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        return super().generate(*args, **kwargs)[:, 1:]


class Nested(TextClassificationPipeline):
    """A pipeline that runs another one as its model."""

    def _forward(self, model_inputs: Any) -> Any:
        classify("a day")
        return super()._forward(model_inputs)


class Broken(TextClassificationPipeline):
    """A pipeline that fails where it is told to."""

    at = ""

    def preprocess(self, inputs: Any, **parameters: Any) -> Any:
        return self.fail("preprocess") or super().preprocess(inputs, **parameters)

    def _forward(self, model_inputs: Any) -> Any:
        return self.fail("forward") or super()._forward(model_inputs)

    def postprocess(self, model_outputs: Any, **parameters: Any) -> Any:
        return self.fail("postprocess") or super().postprocess(model_outputs, **parameters)

    def fail(self, where: str) -> None:
        if where == self.at:
            raise LookupError(where)


labels = {"id2label": {0: "entailment", 1: "contradiction"}, "label2id": {"entailment": 0, "contradiction": 1}}
bert = BertForSequenceClassification(BertConfig(**SMALL, **labels)).eval()
classify = pipeline("text-classification", model=saved(bert, "classifier"))
mark = pipeline("fill-mask", model=BertForMaskedLM(BertConfig(**SMALL)).eval(), tokenizer=tokenizer)
choose = pipeline("zero-shot-classification", model=bert, tokenizer=tokenizer)
own, nested = Own(model=bert, tokenizer=tokenizer), Nested(model=bert, tokenizer=tokenizer)
broken = Broken(model=bert, tokenizer=tokenizer)
of_writer = GPT2Config(vocab_size=8, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=2, eos_token_id=2)
writer, own_writer = GPT2LMHeadModel(of_writer).eval(), OwnWriter(of_writer).eval()
write = pipeline("text-generation", model=writer, tokenizer=tokenizer)
short = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}

encoder = SentenceTransformer(modules=[Transformer(saved(BertModel(BertConfig(**SMALL)), "sentences")), Pooling(16)])
pairs = CrossEncoder(saved(BertForSequenceClassification(BertConfig(**SMALL, num_labels=1)), "pairs"))
sparse = SparseEncoder(
    modules=[
        Transformer(saved(BertForMaskedLM(BertConfig(**SMALL)), "sparse"), transformer_task="fill-mask"),
        SpladePooling(),
    ]
)
vectors = MultiVectorEncoder(saved(BertModel(BertConfig(**SMALL)), "vectors"))


def fail(where: str) -> Any:
    one = Broken(model=bert, tokenizer=tokenizer)
    one.at = where
    return error_of(lambda: one("good day"))


def first_of(results: Any) -> Any:
    return next(iter(results))["score"]


def scores(results: Any) -> list[float]:
    return [one["score"] for one in results]


def streamed() -> list[str]:
    streamer = TextIteratorStreamer(tokenizer)
    writer.generate(**tokens("good day"), **short, streamer=streamer)
    return list(streamer)


def streamed_from_a_thread() -> list[str]:
    streamer = TextIteratorStreamer(tokenizer)
    thread = threading.Thread(target=writer.generate, kwargs={**tokens("good day"), **short, "streamer": streamer})
    thread.start()
    try:
        return list(streamer)
    finally:
        thread.join()


def in_a_copied_context() -> Any:
    context, found = copy_context(), []
    thread = threading.Thread(target=lambda: found.append(context.run(writer.generate, **tokens("a"), **short)))
    thread.start()
    thread.join()
    return found[0]


def tokens(*texts: str) -> Any:
    return tokenizer(list(texts), return_tensors="pt", padding=True, return_token_type_ids=False)


CASES: dict[str, Callable[[], Any]] = {
    "one": lambda: scores(classify("good day")),
    "list": lambda: scores(classify(TEXTS[:3])),
    "batches": lambda: scores(classify(TEXTS, batch_size=2)),
    "generator": lambda: scores(classify(text for text in TEXTS[:2])),
    "abandoned": lambda: first_of(classify(text for text in TEXTS)),
    "loader-process": lambda: scores(classify(TEXTS, batch_size=2, num_workers=1)),
    "chunks": lambda: choose("good day", candidate_labels=["good", "bad"])["scores"],
    "own": lambda: own("good day")[0][0]["score"],
    "nested": lambda: scores(nested("good day")),
    **{f"raises-{where}": lambda where=where: fail(where) for where in ("preprocess", "forward", "postprocess")},
    "generate": lambda: writer.generate(**tokens("good day"), **short),
    "generate-own": lambda: own_writer.generate(**tokens("good day"), **short),
    "generate-rows": lambda: writer.generate(**tokens("good day", "a"), **short),
    "generate-raises": lambda: error_of(lambda: writer.generate(**tokens("a"), max_new_tokens=-1)),
    "write": lambda: [one["generated_text"] for one in write("good day", **short)],
    "streamed": streamed,
    "streamed-from-a-thread": streamed_from_a_thread,
    "in-a-copied-context": in_a_copied_context,
    "encode": lambda: encoder.encode(TEXTS[:2]),
    "encode-text": lambda: encoder.encode("good day"),
    "encode-batches": lambda: encoder.encode(TEXTS, batch_size=2),
    "encode-query": lambda: encoder.encode_query("good day"),
    "encode-raises": lambda: error_of(lambda: encoder.encode([3])),
    "predict": lambda: pairs.predict([("good day", "bad"), ("a", "day")]),
    "rank": lambda: [one["score"] for one in pairs.rank("good", TEXTS)],
    "sparse": lambda: sparse.encode(TEXTS[:2]).to_dense(),
    "vectors": lambda: vectors.encode(TEXTS[:1])[0],
}

app = serve({name: torch.no_grad()(call) for name, call in CASES.items()})
