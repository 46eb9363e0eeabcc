"""Add host pressure and page faults to the evidence, where they bear on the cause."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stagetrace.sla.cause import COLD_START, CPU_WAIT, IO_WAIT, MIXED, UNKNOWN
from stagetrace.sources import machine, page_faults

if TYPE_CHECKING:
    from stagetrace.sla.cause import Cause
    from stagetrace.sources.machine import Rise

LEAST_SHARE: Final = 0.01  # of the time, to be reported
_METERS: Final = (machine.pressure, machine.quota, page_faults.major_faults)


def read_meters() -> None:
    """Read the meters now and then, so that their rise after a breach is that of the last few seconds."""
    for meter in _METERS:
        meter.tick()


def host_evidence(cause: Cause) -> str:
    """Return what bears on this cause, to be appended to the evidence; often nothing."""
    if cause.word == CPU_WAIT:
        return of_cpus(machine.pressure.rise(), machine.quota.rise())
    is_of_disks = cause.word in (COLD_START, IO_WAIT, MIXED, UNKNOWN)
    return of_disks(page_faults.major_faults.rise()) if is_of_disks else ""


def of_cpus(pressure: Rise | None, quota: Rise | None) -> str:
    """Return for how much of the last seconds the machine lacked CPUs, and the quota held this container."""
    text = ""
    if pressure is not None and pressure.by >= LEAST_SHARE * pressure.within:
        share = min(pressure.by / pressure.within, 1.0)
        text = f"; in {share:.0%} of the last {pressure.within / 1e9:.0f} s something on this machine waited for a CPU"
    if quota is not None and quota.by:
        text += (
            f"; the CPU quota held this container for {quota.by / 1e6:.0f} ms in the last {quota.within / 1e9:.0f} s"
        )
    return text


def of_disks(loads: Rise | None) -> str:
    """Return how many page faults of this process waited for a disk."""
    if loads is None or not loads.by:
        return ""
    return f"; {loads.by} page faults of this process waited for a disk in the last {loads.within / 1e9:.0f} s"
