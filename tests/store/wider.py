"""python store/wider.py FOLDER OLDER: what a stagetrace says whose schema has four rows more, as JSON on stdout."""

# ruff: noqa: E402 -- the schema grows before anything is made of it

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent.parent.parent / "src")]

from stagetrace import columns

NEXT = columns.GENERATION + 1
BOTH = (columns.SPANS, columns.REQUESTS)
columns.SCHEMA = (  # type: ignore[misc]
    *columns.SCHEMA,
    columns.Column("tier", columns.TEXT, BOTH, "shop.tier", since=NEXT),
    columns.Column("items", columns.WHOLE, BOTH, "shop.items", older="shop.count", since=NEXT),
    columns.Column("ratio", columns.NUMBER, (columns.REQUESTS,), "shop.ratio", since=NEXT),
    columns.Column("paid", columns.TRUTH, (columns.REQUESTS,), "shop.paid", since=NEXT),
    columns.Column("tenant", columns.TEXT, (columns.REQUESTS,), "tenant", since=NEXT),
)
columns.GENERATION = NEXT  # type: ignore[misc]

from stagetrace.otlp.decode.request import decode
from stagetrace.store import answers, open_store, write
from stagetrace.store.base import Relations, Selection
from stagetrace.store.jaeger.reader import Columns
from stagetrace.store.load import Loader, load
from stagetrace.store.local import LocalStore
from store.local.made import judged, request, span

EVER = Selection(0, 2**63 - 1)


def message() -> bytes:
    """Return two requests and a span inside of the first."""
    odd: dict[str, Any] = {"shop__tier": 5, "shop__items": "many", "shop__ratio": 7, "shop__paid": "true"}
    named: dict[str, Any] = {"shop__tier": "gold", "shop__count": 3, "shop__ratio": 0.5, "shop__paid": True}
    return request([judged(1, **named), judged(2, **odd), span(3, trace=1, parent=1, shop__tier="inner")])


def told(relations: Relations) -> dict[str, Any]:
    """Return the new columns as SQL, and as `requests --json`, have them."""
    query = "SELECT span_id, tier, items, ratio, paid FROM requests ORDER BY 1"
    listed = sorted(answers.requests(relations), key=lambda one: str(one["span_id"]))
    return {
        "requests": list(relations.select(query)[1]),
        "spans": list(relations.select("SELECT span_id, tier, items FROM spans ORDER BY 1")[1]),
        "counts": sorted((row["shop.tier"], row["stored"]) for row in relations.reduce("counts", ["shop.tier"])),
        "listed": [[one[name] for name in ("tier", "items", "ratio", "paid")] for one in listed],
    }


def of_store(url: str | Path) -> dict[str, Any]:
    """Return what a store says."""
    with open_store(str(url)) as reader, reader.relations(EVER) as relations:
        return told(relations)


def of_jaeger() -> dict[str, Any]:
    """Return what is made of Jaeger's answer."""
    loader, selection = Loader(EVER), replace(EVER, service="api", segments={"shop.tier": "gold"})
    with Columns(selection) as answer:
        (found,) = answer.pick(iter([message()]), selection).found
        loader.take(found.what)
    with loader.select(EVER, []) as relations:
        return told(relations)


def of_older(url: Path) -> list[Any]:
    """Return the new column of requests that were stored before there was any."""
    with open_store(str(url)) as reader, reader.relations(EVER) as relations:
        rows = list(relations.select("SELECT span_id, tenant FROM requests ORDER BY 1")[1])
    return [(int(number, 16), tenant) for number, tenant in rows]


def main(folder: Path, older: Path) -> None:
    """Ask each kind of store."""
    found: dict[str, Any] = {}
    (folder / "spans.pb").write_bytes(b"")
    with LocalStore.open(folder / "store") as store:
        store.append(message())
        with store.reader() as reader, reader.relations(EVER) as relations:
            found["log"] = told(relations)
        store.flush()
    found["local"] = of_store(folder / "store")
    with open_store(str(folder / "store")) as whole, load(whole, EVER) as relations:
        write.otlp(folder / "spans.pb", whole.iter_otlp(EVER, []), lambda _: None)
        write.parquet(folder / "spans.parquet", relations, lambda _: None)
    found["file"], found["parquet"] = of_store(folder / "spans.pb"), of_store(folder / "spans.parquet")
    found["jaeger"] = of_jaeger()
    found["older folder"], found["older export"] = of_older(older / "folder"), of_older(older / "spans.parquet")
    assert decode(message()).accepted == 3
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
