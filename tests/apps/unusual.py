"""Estimators whose methods are no plain functions, or that are made in an unusual way. Each says what it does."""

from __future__ import annotations

import asyncio
import functools
import inspect
import typing
from typing import Any

import attrs
from sklearn.base import BaseEstimator


def counted(function: Any) -> Any:
    @functools.wraps(function)
    def call(*args: Any) -> Any:
        call.calls += 1  # type: ignore[attr-defined]
        return function(*args)

    call.calls = 0  # type: ignore[attr-defined]
    return call


class Callee:
    """No descriptor, so it is called without the instance."""

    tag = "its own"

    def __call__(self, *args: Any) -> Any:
        return args


class Written:
    """A descriptor that instances write to."""

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return "the class's" if instance is None else vars(instance).get("written")

    def __set__(self, instance: Any, value: Any) -> None:
        vars(instance)["written"] = [value]


class Found:
    """A descriptor whose value is no method."""

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return ["found"]


class Changeless(type):
    def __setattr__(cls, name: str, value: Any) -> None:
        if name == "predict":  # of scikit-learn's own methods it has some set
            raise TypeError(name)
        super().__setattr__(name, value)


class Attributes(BaseEstimator):
    predict = Callee()
    transform = functools.cached_property(lambda _: Callee())
    inverse_transform, score_samples = len, dict
    predict_proba, decision_function = Written(), Found()


class Slots(BaseEstimator):
    __slots__ = ("predict",)


class Decorated(BaseEstimator):
    @functools.lru_cache  # noqa: B019
    def predict(self, x: Any) -> Any:
        return x

    @counted
    def transform(self, x: Any) -> Any:
        return x

    def run(self, x: Any, times: int) -> Any:
        return x * times

    inverse_transform = functools.partialmethod(run, times=2)

    @functools.singledispatchmethod
    def score_samples(self, x: Any) -> Any:
        return "any", x

    @score_samples.register
    def _(self, x: int) -> Any:
        return "int", x


class Later(BaseEstimator):
    async def predict(self, x: Any) -> Any:
        return x

    def transform(self, x: Any) -> Any:
        yield x

    async def inverse_transform(self, x: Any) -> Any:
        yield x

    @counted
    async def score_samples(self, x: Any) -> Any:
        return x


class Unchanged(BaseEstimator, metaclass=Changeless):
    def predict(self, x: int) -> int:
        return x


@attrs.define(eq=False)
class MadeAnew(Decorated):
    factor: int = 2

    def predict(self, x: int) -> int:
        return super().predict(x) * self.factor


def say(*what: Any) -> None:
    print(*what)  # noqa: T201


if __name__ == "__main__":
    one: Any = Attributes()
    say(one.predict(1), one.predict.tag, one.transform(2), one.transform is one.transform)
    say(one.inverse_transform([1]), one.score_samples(a=1), one.decision_function, one.predict_proba)
    one.predict_proba = 1
    say(one.predict_proba, Attributes.predict_proba, vars(one).keys())
    one = Slots()
    say(hasattr(one, "predict"))
    one.predict = 1
    say(one.predict, vars(one))
    one = Decorated()
    say(one.predict(1), one.predict(1), one.predict.cache_info(), Decorated.predict.cache_info())
    say(one.transform(1), one.transform.calls, one.transform(2), one.transform.calls, Decorated.transform.calls)
    say(one.inverse_transform(2), one.inverse_transform(x=2), inspect.signature(one.inverse_transform))
    Decorated.score_samples.register(str, lambda _, x: ("str", x))
    say(one.score_samples(1), one.score_samples("a"), one.score_samples(2.0), inspect.signature(one.score_samples))
    one = Later()
    say(asyncio.run(one.predict(1)), asyncio.run(one.score_samples(1)), list(one.transform(1)))
    for method in (one.predict, one.transform, one.inverse_transform, one.score_samples, Later.predict):
        kinds = inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction
        say([is_one(method) for is_one in kinds])
    say(Unchanged().predict(1), typing.get_type_hints(Unchanged.predict), Unchanged.predict.__globals__ is globals())
    say(MadeAnew().predict(3))
