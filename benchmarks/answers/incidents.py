"""Planted incidents: requests whose attributes go together and whose risks differ a little, with one or two causes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Columns = dict[str, list[str | None]]
KINDS = ("value", "pair", "triple", "two", "lower pair", "size", "millions")
_BASE = 0.02  # risk without a cause
_NATURAL = 0.15  # standard deviation of the logarithm of the risk of a value: some differ by a factor of 1.4


@dataclass(frozen=True)
class Incident:
    """Requests to compare, and which of them each cause has."""

    columns: Columns
    breached: list[bool]
    weights: list[float] | None
    routes: list[str]
    causes: list[tuple[dict[str, str], np.ndarray]]


def _pick(rng: np.random.Generator, size: int, **shares: float) -> np.ndarray:
    return rng.choice(list(shares), size, p=np.array(list(shares.values())) / sum(shares.values()))


def _goes_with(rng: np.random.Generator, column: np.ndarray, names: list[str], share: float) -> np.ndarray:
    """Return an attribute that mostly follows from another one."""
    values = np.unique(column)
    place = {value: names[at % len(names)] for at, value in enumerate(values)}
    follows = np.array([place[value] for value in column])
    return np.where(rng.random(len(column)) < share, follows, rng.choice(names, len(column)))


def _attributes(rng: np.random.Generator, size: int) -> dict[str, np.ndarray]:
    version = _pick(rng, size, v1=0.7, v2=0.3)
    instance = np.char.add(version, np.char.add("-pod-", rng.integers(0, 3, size).astype(str)))
    tenant = _pick(rng, size, **{f"t{at}": 1 / (at + 1) for at in range(20)})
    rows = np.where(_goes_with(rng, tenant, ["few", "many"], 0.8) == "few", 1, rng.integers(2, 200, size))
    body = rows * 87 + rng.integers(0, 80, size)
    return {
        "service.version": version,
        "service.instance.id": instance,
        "host.name": np.char.replace(instance, "pod", "host"),
        "tenant.id": tenant,
        "region": _goes_with(rng, tenant, ["eu", "us", "asia"], 0.7),
        "app.lang": _pick(rng, size, en=0.6, de=0.2, tr=0.1, ja=0.06, fi=0.04),
        "ml.model.name": _pick(rng, size, small=0.6, large=0.3, tiny=0.1),
        "ml.batch.size": rows.astype(str),
        "http.request.body.size": body.astype(str),
        "http.response.body.size": (rows * 21 + 40).astype(str),
        "feature.flag": _pick(rng, size, off=0.9, on=0.1),
        "cache": _pick(rng, size, hit=0.75, miss=0.25),
        "client.kind": _pick(rng, size, web=0.5, ios=0.3, android=0.2),
        "network.peer.address": np.char.add("10.0.0.", rng.integers(1, 30, size).astype(str)),
        "request.id": np.char.add("r", np.arange(size).astype(str)),
    }


def _where(columns: dict[str, np.ndarray], values: dict[str, str]) -> np.ndarray:
    found = np.ones(len(next(iter(columns.values()))), bool)
    for key, value in values.items():
        over = value.removeprefix("over ")
        found &= columns[key].astype(float) > float(over) if over != value else columns[key] == value
    return found


_PICKS = {
    "service.version": ["v2"],
    "tenant.id": [f"t{at}" for at in range(8)],
    "app.lang": ["de", "tr", "ja"],
    "ml.model.name": ["large", "tiny"],
    "feature.flag": ["on"],
    "cache": ["miss"],
    "client.kind": ["ios", "android"],
}


def _values(rng: np.random.Generator, count: int, without: tuple[str, ...] = ()) -> dict[str, str]:
    keys = rng.permutation([key for key in _PICKS if key not in without])[:count]
    return {str(key): str(rng.choice(_PICKS[str(key)])) for key in keys}


def incident(kind: str, seed: int, size: int = 12_000) -> Incident:
    """Return an incident of one kind: what its causes are called and do differs from seed to seed."""
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    size = 400_000 if kind == "millions" else size
    columns = _attributes(rng, size)
    routes = _pick(rng, size, **{"/rank": 0.6, "/embed": 0.3, "/chat": 0.1})
    risk = _BASE * np.where(routes == "/chat", 4.0, 1.0)
    for key in ("tenant.id", "region", "app.lang", "ml.model.name", "client.kind", "cache", "network.peer.address"):
        for value in np.unique(columns[key]):
            risk = risk * np.where(columns[key] == value, np.exp(rng.normal(0, _NATURAL)), 1.0)
    several = {"pair": 2, "lower pair": 2, "triple": 3}
    lowered = ("feature.flag", "app.lang") if kind == "lower pair" else ()
    planted = [_values(rng, several.get(kind, 1), without=lowered)]
    if kind == "size":
        planted = [{"ml.batch.size": str(rng.choice(["over 100", "over 150"]))}]
    if kind in ("two", "millions"):
        planted = [_values(rng, int(rng.integers(1, 3)))]
        planted.append(_values(rng, int(rng.integers(1, 3)), without=tuple(planted[0])))
    causes = []
    for values in planted:
        hit = _where(columns, values)
        if hit.sum() < 60:  # of a triple: too few to be a cause that anybody sees
            values.pop(next(iter(values)))
            hit = _where(columns, values)
        causes.append((values, hit))
        risk = np.where(hit, np.maximum(risk, rng.uniform(0.2, 0.8)), risk)
    if kind == "lower pair":  # of two values that lower the risk, both together do so by less
        one, other = columns["feature.flag"] == "on", columns["app.lang"] == "ja"
        factor = np.where(one & other, 0.7, np.where(one | other, 0.2, 1.0))
        risk = np.where(causes[0][1], risk, risk * factor)
    breached = rng.random(size) < np.minimum(risk, 0.95)
    weights = None
    if kind == "millions":  # ten million, of which a part of either kind is compared
        stands_for = np.maximum(1, np.where(breached, breached.sum(), (~breached).sum()) / 20_000)
        kept = rng.random(size) < 1 / stands_for
        weights = stands_for[kept] * 25
        columns = {key: column[kept] for key, column in columns.items()}
        routes, breached, causes = routes[kept], breached[kept], [(values, hit[kept]) for values, hit in causes]
    return Incident(
        {key: column.tolist() for key, column in columns.items()},
        breached.tolist(),
        None if weights is None else weights.tolist(),
        routes.tolist(),
        causes,
    )


def meant(incident_: Incident, values: dict[str, str | None]) -> np.ndarray:
    """Return which requests a finding is about."""
    found = np.ones(len(incident_.breached), bool)
    for key, value in values.items():
        column = np.array(incident_.columns[key], object)
        if value is None:
            found &= np.array([one is None for one in column])
        elif str(value).startswith(("over ", "up to ")):
            numbers = column.astype(float)
            words = str(value).replace("over ", "").replace("up to ", "").split(", to ")
            found &= numbers <= float(words[0]) if str(value).startswith("up to ") else numbers > float(words[0])
            found &= numbers <= float(words[1]) if len(words) > 1 else True
        elif " to " in str(value):
            low, high = map(float, str(value).split(" to "))
            found &= (column.astype(float) >= low) & (column.astype(float) <= high)
        else:
            found &= column == value
    return found


def is_same(one: np.ndarray, other: np.ndarray) -> bool:
    """Return whether two sets of requests are about the same: 80 % of what either has."""
    return bool(np.count_nonzero(one & other) >= 0.8 * np.count_nonzero(one | other))
