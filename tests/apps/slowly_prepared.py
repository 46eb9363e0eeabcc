"""A bare application, for which to prepare the recording takes half a second."""

import time

from any_bare import app

from stagetrace.runtime import provider as distro

prepare = distro._set_meter_provider


def slow() -> None:
    time.sleep(0.5)
    prepare()


distro._set_meter_provider = slow

__all__ = ["app"]
