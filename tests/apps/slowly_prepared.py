"""A bare application, for which to prepare the recording takes half a second."""

import time

from any_bare import app

from stagetrace.runtime import provider

prepare = provider.set_meter_provider


def slow(*arguments: object) -> None:
    time.sleep(0.5)
    prepare(*arguments)


provider.set_meter_provider = slow

__all__ = ["app"]
