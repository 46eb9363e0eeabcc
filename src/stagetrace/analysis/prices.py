"""The prices of instances and tokens: a price file, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any, Final

MICROS: Final = 10**6  # of the currency's unit
_TIME: Final = ("per_hour", "gpu_per_hour", "gpus")
_TOKENS: Final = ("per_token", "per_1k_tokens")
_MATCHED: Final = ("service", "model", "instance_type")
_WHOLE: Final = ("currency", "bill", "instances", "prices")
_KINDS: Final = ("input", "output")


class PriceError(ValueError):
    """A price file is inconsistent."""


@dataclass(frozen=True)
class Price:
    """One line of a price file: its scope (None: any) and its prices, in the currency's unit."""

    service: str | None = None
    model: str | None = None
    instance_type: str | None = None
    per_hour: Fraction | None = None  # of an instance, GPUs included
    per_token: tuple[Fraction, Fraction] | None = None  # input, output

    def is_for(self, service: str | None, model: str | None, instance_type: str | None) -> bool:
        """Return whether this is a price of these."""
        given = (self.service, service), (self.model, model), (self.instance_type, instance_type)
        return all(wanted in (None, found) for wanted, found in given)


@dataclass(frozen=True)
class Prices:
    """A price file. Of several prices the first that fits holds; `bill` is all that is to be divided, in micros."""

    currency: str | None = None
    bill: int | None = None
    instances: int | None = None  # paid for in the whole window, in place of the number that was seen
    prices: tuple[Price, ...] = ()

    @property
    def has_tokens(self) -> bool:
        """Return whether tokens cost something."""
        return any(price.per_token is not None for price in self.prices)

    def per_hour(self, service: str | None, instance_type: str | None) -> Fraction | None:
        """Return the price of an hour of an instance; None if no price is given."""
        fits = (one for one in self.prices if one.per_hour is not None and one.is_for(service, None, instance_type))
        return next((one.per_hour for one in fits), None)

    def per_token(self, service: str | None, model: str | None) -> tuple[Fraction, Fraction] | None:
        """Return the prices of a token of input and of output; None if no price is given."""
        fits = (one for one in self.prices if one.per_token is not None and one.is_for(service, model, None))
        return next((one.per_token for one in fits), None)


def prices(found: Any) -> Prices:
    """Return the prices of a file: a table with `per_hour` and the like, or a list of such tables under `prices`.

    Raise PriceError for what is unknown, missing, negative or no number.
    """
    if not isinstance(found, dict):
        raise PriceError("it holds no table of prices; write per_hour = 1.20, or a bill")
    _refuse_unknown(found, (*_WHOLE, *_TIME, *_TOKENS, *_MATCHED), "the file")
    listed = found.get("prices", [])
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise PriceError("`prices` is no list of tables; write [[prices]] above each")
    own = {key: value for key, value in found.items() if key not in _WHOLE}
    made = [_price(one, f"price {number}") for number, one in enumerate(listed, 1)]
    made += [_price(own, "the file")] if own else []
    bill = found.get("bill")
    if not made and bill is None:
        raise PriceError("it has no price; write per_hour = 1.20, per_1k_tokens, or a bill")
    currency = found.get("currency")
    if currency is not None and (not isinstance(currency, str) or not currency.strip()):
        raise PriceError(f'currency {currency!r} is no name; write currency = "EUR"')
    micros = None if bill is None else round(_number(bill, "bill") * MICROS)
    return Prices(currency, micros, _count(found.get("instances"), "instances"), tuple(made))


def _price(found: Mapping[str, Any], where: str) -> Price:
    _refuse_unknown(found, (*_TIME, *_TOKENS, *_MATCHED), where)
    for key in _MATCHED:
        if key in found and not isinstance(found[key], str):
            raise PriceError(f"{key} of {where} is {found[key]!r}; write it in quotes")
    matched = {key: found.get(key) for key in _MATCHED}
    per_hour, per_token = _per_hour(found, where), _per_token(found, where)
    if per_hour is None and per_token is None:
        raise PriceError(f"{where} has no price; write {', '.join((*_TIME[:2], *_TOKENS))}")
    if per_hour is not None and matched["model"] is not None:
        raise PriceError(
            f"{where} has a price by the hour of a model, and an instance may serve several\n"
            "match it by service or instance_type; tokens have prices by model"
        )
    return Price(**matched, per_hour=per_hour, per_token=per_token)


def _per_hour(found: Mapping[str, Any], where: str) -> Fraction | None:
    if "gpus" in found and "gpu_per_hour" not in found:
        raise PriceError(f"{where} has gpus and no gpu_per_hour")
    parts = [_number(found["per_hour"], f"per_hour of {where}")] if "per_hour" in found else []
    if "gpu_per_hour" in found:
        gpus = _count(found.get("gpus", 1), f"gpus of {where}") or 0
        parts.append(_number(found["gpu_per_hour"], f"gpu_per_hour of {where}") * gpus)
    return sum(parts, Fraction(0)) if parts else None


def _per_token(found: Mapping[str, Any], where: str) -> tuple[Fraction, Fraction] | None:
    given = [key for key in _TOKENS if key in found]
    if not given:
        return None
    if len(given) > 1:
        raise PriceError(f"{where} has per_token and per_1k_tokens; give one of them")
    (key,) = given
    value, tokens = found[key], 1 if key == "per_token" else 1000
    if not isinstance(value, dict):
        one = _number(value, f"{key} of {where}") / tokens
        return one, one
    _refuse_unknown(value, _KINDS, f"{key} of {where}")
    into, out = (_number(value.get(kind, 0), f"{kind} of {key} of {where}") / tokens for kind in _KINDS)
    return into, out


def _refuse_unknown(found: Mapping[str, Any], keys: tuple[str, ...], where: str) -> None:
    unknown = sorted(str(key) for key in found if key not in keys)
    if unknown:
        raise PriceError(f"{where} has {unknown[0]!r}, which is no price\nthere are {', '.join(keys)}")


def _number(value: Any, what: str) -> Fraction:
    """Return a price exactly as it is written: 0.1 is a tenth."""
    try:
        number = None if isinstance(value, bool) else Decimal(str(value))
    except InvalidOperation:
        number = None
    if number is None or not number.is_finite() or not isinstance(value, (int, float, Decimal)):
        raise PriceError(f"{what} is {value!r}, which is no number")
    if number < 0:
        raise PriceError(f"{what} is {value}; a price is not negative")
    return Fraction(number)


def _count(value: Any, what: str) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise PriceError(f"{what} is {value!r}, which is no whole number from 1 on")
    return value
