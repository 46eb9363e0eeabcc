"""Route support tickets: which team should answer this message? Plain FastAPI and scikit-learn, no tracing code.

Run it from this folder: `uvicorn app:app`. It has typical faults: `v2` of the model is very much slower than `v1`, and
`/explain` computes inside an `async def`, which blocks the event loop. `ROUTER_MODEL` names the model that serves
requests without a choice of their own.
"""

from __future__ import annotations

import html
import json
import os
import random
import re
import unicodedata
from pathlib import Path
from typing import Literal

from fastapi import FastAPI
from pydantic import BaseModel, Field
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline

PHRASES = json.loads((Path(__file__).parent / "phrases.json").read_text("utf-8"))

QUOTED = re.compile(r"^\s*>.*$", re.MULTILINE)
SIGNATURE = re.compile(r"^-- ?$.*\Z", re.MULTILINE | re.DOTALL)
# Text of one customer alone becomes one shared word; applied in this order.
MASKS = [
    (re.compile(r"https?://\S+"), " url "),
    (re.compile(r"[\w.+-]{1,64}@[\w-]+\.[\w.-]+"), " mail "),
    (re.compile(r"[$£€]\s?\d[\d.,]*|\d[\d.,]*\s?(?:eur|usd|gbp)\b"), " money "),
    (re.compile(r"\b[a-z]-\d{4,}\b"), " order "),
    (re.compile(r"\d+(?:[.:]\d+)*"), " number "),
]
SPACE = re.compile(r"\s+")


class Ticket(BaseModel):
    """One message."""

    text: str = Field(min_length=1)
    model: Literal["v1", "v2", "v3"] | None = None


class Tickets(BaseModel):
    """Several messages."""

    texts: list[str] = Field(min_length=1)


class Route(BaseModel):
    """The team, and how likely each team is."""

    team: str
    probabilities: dict[str, float]


def normalise(text: str) -> str:
    """Return the message without quotes and signature, in lower case, masked."""
    text = unicodedata.normalize("NFKC", html.unescape(text))
    text = SIGNATURE.sub("", QUOTED.sub("", text)).casefold()
    for pattern, word in MASKS:
        text = pattern.sub(word, text)
    return SPACE.sub(" ", text).strip()


def past_tickets(count: int) -> list[tuple[str, str]]:
    """Return messages and the teams that answered them, the same ones on every start and as many for each team."""
    chance = random.Random(7)
    teams = sorted(PHRASES["problems"])
    return [(past_ticket(chance, team), team) for team in (teams[number % len(teams)] for number in range(count))]


def past_ticket(chance: random.Random, team: str) -> str:
    """Return one message."""
    words = {name: chance.choice(choices) for name, choices in PHRASES["words"].items()}
    problem = chance.choice(PHRASES["problems"][team])
    text = f"{chance.choice(PHRASES['openings'])} {problem}. {chance.choice(PHRASES['closings'])}"
    return text.format(order=f"A-{chance.randrange(10**5, 10**6)}", **words)


def train(classifier: LogisticRegression | ExtraTreesClassifier) -> Pipeline:
    """Return a router, trained on the past tickets."""
    texts, teams = zip(*past_tickets(600), strict=True)
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    pipeline = Pipeline([("words", words), ("classifier", classifier)])
    return pipeline.fit([normalise(text) for text in texts], teams)


app = FastAPI(title="Ticket router")
models = {
    "v1": train(LogisticRegression(C=10, max_iter=1000)),
    "v2": train(ExtraTreesClassifier(3000, random_state=7)),
    "v3": train(ExtraTreesClassifier(100, random_state=7)),
}
model = models[os.environ.get("ROUTER_MODEL", "v1")]


def chosen(ticket: Ticket) -> Pipeline:
    """Return the model that a message requests."""
    return model if ticket.model is None else models[ticket.model]


def route(row: list[float]) -> Route:
    """Return the response for one row of probabilities."""
    probabilities = dict(zip(model.classes_.tolist(), (round(value, 4) for value in row), strict=True))
    return Route(team=max(probabilities, key=probabilities.__getitem__), probabilities=probabilities)


@app.get("/health")
def health() -> dict[str, str]:
    """Report that the model is loaded."""
    return {"status": "ok"}


@app.post("/predict")
def predict(ticket: Ticket) -> Route:
    """Route one message."""
    text = normalise(ticket.text)
    return route(chosen(ticket).predict_proba([text])[0].tolist())


@app.post("/explain")
async def explain(ticket: Ticket) -> dict[str, float]:
    """Return the weight of each word for the team: the loss of its probability without that word."""
    words = normalise(ticket.text).split()
    without = [" ".join(words[:at] + words[at + 1 :]) for at in range(len(words))]
    rows = chosen(ticket).predict_proba([" ".join(words), *without])
    team = rows[0].argmax()
    return {word: round(float(rows[0][team] - row[team]), 4) for word, row in zip(words, rows[1:], strict=True)}


@app.post("/predict/batch")
async def predict_batch(tickets: Tickets) -> list[Route]:
    """Route many messages at once."""
    texts = [normalise(text) for text in tickets.texts]
    return [route(row) for row in model.predict_proba(texts).tolist()]
