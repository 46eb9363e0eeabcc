"""Models of small libraries: `GET /case/NAME` runs one call and answers with what it returned.

`GET /timed/NAME` answers with times of the clock: before the call, within it twice, and after it.
"""

import asyncio
import copy
import hashlib
import json
import pickle
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import onnx
import openvino
import spacy
import treelite
from cases import error_of, serve
from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType
from gensim.models import Doc2Vec, KeyedVectors, LdaModel, Word2Vec
from gensim.models.doc2vec import TaggedDocument
from implicit.als import AlternatingLeastSquares
from implicit.nearest_neighbours import CosineRecommender
from implicit.recommender_base import RecommenderBase
from model2vec import StaticModel
from openvino import opset13
from river import anomaly, base, compose, forest, linear_model, preprocessing
from scipy.sparse import csr_matrix
from spacy.language import Language
from statsmodels.genmod.generalized_linear_model import GLM
from statsmodels.regression.linear_model import OLS, RegressionResults
from statsmodels.tsa.arima.model import ARIMA
from statsmodels.tsa.forecasting.theta import ThetaModel
from statsmodels.tsa.holtwinters import ExponentialSmoothing
from statsmodels.tsa.vector_ar.var_model import VAR
from tokenizers import Tokenizer, models, pre_tokenizers

warnings.simplefilter("ignore")
random = np.random.default_rng(0)
WORDS = ["a", "good", "day", "bad", "night"]
UNKNOWN = "[UNK]"
TEXTS = ["a good day", "bad night"]
inner: list[int] = []  # times within a call


def within(seconds: float = 0.002) -> None:
    """Note two times of the clock, within a model's own code."""
    inner.append(time.time_ns())
    time.sleep(seconds)
    inner.append(time.time_ns())


# spaCy
@Language.component("noting")
def noting(doc: Any) -> Any:
    within(0)
    return doc


nlp = spacy.blank("en", meta={"name": "small", "version": "1.2"})
nlp.add_pipe("sentencizer")
nlp.add_pipe("noting")
tokens: Callable[[Any], Any] = lambda docs: [" ".join(token.text for token in doc) for doc in docs]  # noqa: E731
unnamed = spacy.blank("xx")


@Language.component("failing")
def failing(doc: Any) -> Any:
    raise LookupError(doc.text)


fails = spacy.blank("en")
fails.add_pipe("failing")

# statsmodels
x = random.normal(size=(40, 3))
y = x @ [1.0, 2.0, 3.0] + random.normal(size=40)
series = np.cumsum(random.normal(size=40))
ols, glm = OLS(y, x).fit(), GLM(y, x).fit()
arima = ARIMA(series, order=(1, 0, 0)).fit()
smoothing = ExponentialSmoothing(series).fit()
theta = ThetaModel(series, period=1, deseasonalize=False).fit()
var = VAR(np.column_stack([series, series[::-1]])).fit(1)


class OwnResults(RegressionResults):
    """Overrides the method of its parent, and calls it."""

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        within()
        return super().predict(*args, **kwargs) * 2


own_results = OwnResults(OLS(y, x), ols.params)

# openvino
parameter = opset13.parameter([-1, 3], np.float32, name="rows")
doubler = openvino.Model(
    [opset13.multiply(parameter, opset13.constant(np.full((1, 3), 2, np.float32)))], [parameter], "doubler"
)
compiled = openvino.Core().compile_model(doubler, "CPU")
infer_request, waited = compiled.create_infer_request(), compiled.create_infer_request()
infer_queue, plain_queue = openvino.AsyncInferQueue(compiled, 2), openvino.AsyncInferQueue(compiled, 2)
rows = x[:5].astype(np.float32)
first = lambda results: results[0].copy()  # noqa: E731


def called_back() -> Any:
    done = threading.Event()
    box: list[Any] = []

    def callback(data: Any) -> None:
        box.append(infer_request.get_output_tensor().data.copy() * data)
        done.set()

    infer_request.set_callback(callback, 3)
    infer_request.start_async([rows], 3)
    done.wait(10)
    infer_request.wait()
    return box[0]


def waited_for() -> Any:
    waited.start_async(rows)
    waited.wait()
    return waited.get_output_tensor().data.copy()


infer_queue.set_callback(lambda request, box: box.append(float(request.get_output_tensor().data.sum())))


def queued() -> Any:
    box: list[float] = []
    for turn in range(3):
        infer_queue.start_async([rows * turn], box)
    infer_queue.wait_all()
    return sorted(box)


def queued_without_callback() -> Any:
    plain_queue.start_async(rows)
    plain_queue.wait_all()
    return [str(plain_queue.userdata), plain_queue[0].userdata is None]


# model2vec
tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate([UNKNOWN, *WORDS])}, unk_token=UNKNOWN))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
vectors = random.normal(size=(len(WORDS) + 1, 4)).astype(np.float32)
static = StaticModel(vectors, tokenizer, base_model_name="tiny")


class OwnStatic(StaticModel):
    """Its tokenizer takes long."""

    def tokenize(self, sentences: Any) -> Any:
        within()
        return super().tokenize(sentences)


own_static = OwnStatic(vectors, tokenizer)

# fastembed, by a model of onnx that looks up vectors
folder = Path(tempfile.mkdtemp())
make = onnx.helper
graph = make.make_graph(
    [make.make_node("Gather", ["vectors", "input_ids"], ["last_hidden_state"])],
    "lookup",
    [make.make_tensor_value_info("input_ids", onnx.TensorProto.INT64, ["batch", "length"])],
    [make.make_tensor_value_info("last_hidden_state", onnx.TensorProto.FLOAT, ["batch", "length", 4])],
    [onnx.numpy_helper.from_array(vectors, "vectors")],
)
opset = [make.make_opsetid("", 17)]
onnx.save(make.make_model(graph, ir_version=9, opset_imports=opset), folder / "model.onnx")
padded = Tokenizer.from_str(tokenizer.to_str())
padded.save(str(folder / "tokenizer.json"))
settings = {
    "config.json": {"pad_token_id": 0},
    "tokenizer_config.json": {"model_max_length": 8, "pad_token": "[UNK]"},
    "special_tokens_map.json": {"pad_token": "[UNK]"},
}
for name, content in settings.items():
    (folder / name).write_text(json.dumps(content))
TextEmbedding.add_custom_model(
    model="own/lookup",
    pooling=PoolingType.MEAN,
    normalization=True,
    sources=ModelSource(hf="own/lookup"),
    dim=4,
    model_file="model.onnx",
)
embedding = TextEmbedding("own/lookup", specific_model_path=str(folder))

# faiss
index = faiss.IndexFlatL2(64)
found = random.normal(size=(20_000, 64)).astype(np.float32)
index.add(found)
clusters = faiss.IndexIVFFlat(faiss.IndexFlatL2(64), 64, 4)
clusters.train(found[:2000])
clusters.add(found)
clusters.nprobe = 4
many = found[:2000]

# river
logistic = compose.Pipeline(preprocessing.StandardScaler(), linear_model.LogisticRegression())
trees = forest.ARFClassifier(n_models=3, seed=0)
half_space = anomaly.HalfSpaceTrees(n_trees=3, seed=0)
observations = [dict(zip("abc", map(float, row), strict=True)) for row in x]
for observation, target in zip(observations, y > 0, strict=True):
    logistic.learn_one(observation, bool(target))
    trees.learn_one(observation, bool(target))
    half_space.learn_one(observation)
one = observations[0]


class Own(base.Classifier):
    """A user's own, which takes its time."""

    def learn_one(self, x: Any, y: Any) -> None:
        pass

    def predict_one(self, x: Any) -> Any:
        within()
        return len(x)


# gensim
sentences = [text.split() for text in TEXTS] * 20
word2vec = Word2Vec(sentences, vector_size=4, min_count=1, workers=1, seed=0, epochs=1)
doc2vec = Doc2Vec(
    [TaggedDocument(words, [at]) for at, words in enumerate(sentences)], vector_size=4, workers=1, epochs=1
)
bag = [[(at, 1.0) for at in range(3)]] * 4
lda = LdaModel(bag, num_topics=2, random_state=0)
keyed = KeyedVectors(4)
keyed.add_vectors(WORDS, vectors[1:])


class Indexer:
    """Searches for gensim."""

    def most_similar(self, _vector: Any, _topn: int) -> Any:
        within()
        return [("day", 1.0)]


# implicit
likes = csr_matrix((random.random((30, 20)) > 0.7).astype(np.float32))
als = AlternatingLeastSquares(factors=4, iterations=1, random_state=0, num_threads=1)
als.fit(likes, show_progress=False)
cosine = CosineRecommender(K=5, num_threads=1)
cosine.fit(likes, show_progress=False)


class OwnRecommender(CosineRecommender):
    """Overrides the method of its parent, and calls it."""

    def recommend(self, *args: Any, **kwargs: Any) -> Any:
        within()
        return super().recommend(*args, **kwargs)


own_recommender = OwnRecommender(K=5, num_threads=1)
own_recommender.fit(likes, show_progress=False)
assert issubclass(OwnRecommender, RecommenderBase)

# treelite
builder = treelite.model_builder
tree_builder = builder.ModelBuilder(
    threshold_type="float32",
    leaf_output_type="float32",
    metadata=builder.Metadata(
        num_feature=3,
        task_type="kRegressor",
        average_tree_output=False,
        num_target=1,
        num_class=[1],
        leaf_vector_shape=(1, 1),
    ),
    tree_annotation=builder.TreeAnnotation(num_tree=1, target_id=[0], class_id=[0]),
    postprocessor=builder.PostProcessorFunc(name="identity"),
    base_scores=[0.0],
)
tree_builder.start_tree()
tree_builder.start_node(0)
tree_builder.numerical_test(
    feature_id=0, threshold=0.0, opname="<", left_child_key=1, right_child_key=2, default_left=True
)
tree_builder.end_node()
for key in (1, 2):
    tree_builder.start_node(key)
    tree_builder.leaf(float(key))
    tree_builder.end_node()
tree_builder.end_tree()
tree = tree_builder.commit()


def half_way(steps: Iterator[Any]) -> Any:
    """Take one of the steps and leave the rest."""
    return next(iter(steps))


def digest(model: Any) -> list[str]:
    return [hashlib.sha256(pickle.dumps(model)).hexdigest()]


def through_pickle(model: Any) -> Any:
    return pickle.loads(pickle.dumps(model))  # noqa: S301


CASES: dict[str, Callable[[], Any]] = {
    "spacy": lambda: tokens([nlp("A good day. A bad one.")]),
    "spacy-doc": lambda: tokens([nlp(nlp.make_doc("A good day."))]),
    "spacy-pipe": lambda: tokens(nlp.pipe(TEXTS)),
    "spacy-left": lambda: tokens([half_way(nlp.pipe(TEXTS))]),
    "spacy-unnamed": lambda: tokens([unnamed("a b")]),
    "spacy-raises": lambda: error_of(lambda: fails("a b")),
    "spacy-copied": lambda: tokens([copy.deepcopy(unnamed)("a b")]),
    "statsmodels-ols": lambda: ols.predict(x[:5]),
    "statsmodels-prediction": lambda: ols.get_prediction(x[:5]).predicted_mean,
    "statsmodels-glm": lambda: glm.predict(exog=x[:5]),
    "statsmodels-arima": lambda: arima.forecast(3),
    "statsmodels-smoothing": lambda: smoothing.forecast(3),
    "statsmodels-theta": lambda: theta.forecast(3),
    "statsmodels-var": lambda: var.forecast(var.endog, 2),
    "statsmodels-own": lambda: own_results.predict(x[:5]),
    "statsmodels-raises": lambda: error_of(lambda: ols.predict(x[:5, :2])),
    "statsmodels-pickled": lambda: through_pickle(ols).predict(x[:5]),
    "openvino-call": lambda: first(compiled(rows, share_inputs=False)),
    "openvino-named": lambda: first(compiled({"rows": rows}, share_inputs=False)),
    "openvino-new": lambda: first(compiled.infer_new_request([rows])),
    "openvino-infer": lambda: first(waited.infer([rows])),
    "openvino-callback": called_back,
    "openvino-wait": waited_for,
    "openvino-queue": queued,
    "openvino-plain-queue": queued_without_callback,
    "openvino-raises": lambda: error_of(lambda: compiled({"none": rows}))[0],
    "openvino-start-raises": lambda: error_of(lambda: waited.start_async({"none": rows}))[0],
    "model2vec": lambda: static.encode(TEXTS),
    "model2vec-text": lambda: static.encode(TEXTS[0]),
    "model2vec-sequence": lambda: static.encode_as_sequence(TEXTS)[1],
    "model2vec-copied": lambda: copy.deepcopy(static).encode(TEXTS),
    "model2vec-own": lambda: own_static.encode(TEXTS),
    "fastembed": lambda: list(embedding.embed(TEXTS)),
    "fastembed-query": lambda: list(embedding.query_embed(TEXTS[0])),
    "fastembed-left": lambda: half_way(embedding.embed(TEXTS)),
    "faiss": lambda: index.search(many, 3)[1][:5],
    "faiss-clusters": lambda: clusters.search(many, 3)[1][:5],
    "faiss-after-model": lambda: index.search(np.tile(static.encode(TEXTS), 16), 2)[1],
    "faiss-raises": lambda: error_of(lambda: index.search(many[:, :3], 3))[0],
    "river": lambda: [logistic.predict_one(one), next(iter(logistic.predict_proba_one(one).values()))],
    "river-trees": lambda: list(trees.predict_proba_one(x=one).values()),
    "river-anomaly": lambda: half_space.score_one(one),
    "river-learns": lambda: [copy.deepcopy(trees).learn_one(one, y=True) is None],
    "river-own": lambda: Own().predict_one(one),
    "river-copied": lambda: copy.deepcopy(logistic).predict_one(one),
    "river-pickled": lambda: list(through_pickle(trees).predict_proba_one(one).values()),
    "gensim": lambda: [word for word, _ in keyed.most_similar("day")],
    "gensim-vector": lambda: [word for word, _ in word2vec.wv.similar_by_vector(word2vec.wv["day"])],
    "gensim-word2vec": lambda: [[word, float(score)] for word, score in word2vec.predict_output_word(["good"])],
    "gensim-doc2vec": lambda: doc2vec.infer_vector(["good", "day"]).shape,
    "gensim-lda": lambda: [round(float(share), 1) for _, share in lda.get_document_topics(bag[0])],
    "gensim-lda-item": lambda: [round(float(share), 1) for _, share in lda[bag[0]]],
    "gensim-pickled": lambda: [word for word, _ in through_pickle(keyed).most_similar("day")],
    "gensim-raises": lambda: error_of(lambda: keyed.most_similar("none")),
    "implicit-als": lambda: als.recommend(0, likes[0])[0],
    "implicit-batch": lambda: als.recommend(np.arange(3), likes[:3])[0],
    "implicit-cosine": lambda: cosine.similar_items(0)[0],
    "implicit-own": lambda: own_recommender.recommend(0, likes[0])[0],
    "implicit-copied": lambda: copy.deepcopy(als).similar_users(0)[0],
    "treelite": lambda: treelite.gtil.predict(tree, rows),
    "treelite-leaf": lambda: treelite.gtil.predict_leaf(tree, data=rows),
    "treelite-raises": lambda: error_of(lambda: treelite.gtil.predict(tree, "rows"))[0],
    # What is pickled is the same, byte for byte.
    "pickles": lambda: [*map(digest, (ols, logistic, keyed, als, static.embedding, Own(), own_recommender))],
}

TIMED: dict[str, Callable[[], Any]] = {
    "spacy": lambda: nlp("A good day."),
    "statsmodels": lambda: own_results.predict(x[:5]),
    "model2vec": lambda: own_static.encode(TEXTS),
    "river": lambda: Own().predict_one(one),
    "gensim": lambda: keyed.most_similar("day", topn=1, indexer=Indexer()),
    "implicit": lambda: own_recommender.recommend(0, likes[0]),
}

app = serve(CASES)


@app.get("/timed/{name}")
def timed(name: str) -> list[int]:
    inner.clear()
    before = time.time_ns()
    TIMED[name]()
    return [before, *inner, time.time_ns()]


@app.get("/in-task/{name}")
async def in_task(name: str) -> Any:
    result = await asyncio.create_task(asyncio.to_thread(CASES[name]))
    return np.asarray(result).tolist()
