"""The cells of the matrix: each value is there, and most pairs of two, in some thirty of all the combinations.

A cell is a Python, an application with its server, how the application uses OpenTelemetry, and packages. Those that are
not pinned are of the day that `environment.py` names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import pytest

LIMIT_MS: Final = 100  # of the objective
NONE: Final = "none"
API: Final = "API"  # the service starts spans by the API and has no SDK
SDK: Final = "SDK"  # it imports the SDK and sets no provider
OWN: Final = "own provider"  # it sets a provider with an exporter
INSTRUMENT: Final = "opentelemetry-instrument"

# The instrumentations of each version.
BETA: Final = {
    "1.20.0": "0.41b0",
    "1.27.0": "0.48b0",
    "1.30.0": "0.51b0",
    "1.36.0": "0.57b0",
    "1.40.0": "0.61b0",
    "1.45.2": "0.66b2",
}
SERVED_BY: Final = {
    "wsgiref": "",
    "asgi": "uvicorn",
    "fastapi": "fastapi uvicorn",
    "flask": "flask gunicorn",
    "grpc": "grpcio",
}


@dataclass(frozen=True)
class Cell:
    """One cell. `packages` are requirements besides those of application and OpenTelemetry."""

    python: str
    app: str
    otel: str = NONE
    version: str = ""  # of OpenTelemetry
    packages: str = ""

    def __str__(self) -> str:
        """Return its name, which the test has."""
        parts = (self.python, self.app, self.otel.replace(" ", "-"), self.version, *self.packages.split())
        return " ".join(part for part in parts if part not in ("", NONE))

    @property
    def requirements(self) -> list[str]:
        """What is installed before stagetrace."""
        given = self.packages.split()
        named = {one.partition("==")[0].partition("<")[0] for one in given}
        return [one for one in (*SERVED_BY[self.app].split(), *self._otel()) if one not in named] + given

    def _otel(self) -> list[str]:
        exporter = f"opentelemetry-exporter-otlp-proto-http=={self.version}"
        if self.otel == NONE:
            return []
        if self.otel in (API, SDK):
            return [f"opentelemetry-{self.otel.lower()}=={self.version}"]
        if self.otel == OWN:
            return [exporter]
        beta = BETA[self.version]
        return [exporter, f"opentelemetry-distro=={beta}", f"opentelemetry-instrumentation-{self.app}=={beta}"]

    @property
    def is_free_threaded(self) -> bool:
        """Whether its Python has no GIL."""
        return self.python.endswith("t")

    @property
    def is_smoke(self) -> bool:
        """Whether `make test` runs it."""
        return self in SMOKE


CELLS: Final = (
    # Nothing but the standard library.
    Cell("3.10", "wsgiref"),
    Cell("3.11", "wsgiref"),
    Cell("3.12", "wsgiref"),
    Cell("3.13", "wsgiref"),
    Cell("3.14", "wsgiref"),
    Cell("3.13t", "wsgiref"),
    # No OpenTelemetry.
    Cell("3.11", "asgi"),
    Cell("3.13t", "asgi"),
    Cell("3.10", "fastapi", packages="fastapi==0.95.2 pydantic==1.10.26 uvicorn==0.22.0"),
    Cell("3.12", "fastapi", packages="urllib3==1.26.20 requests==2.28.2"),
    Cell("3.14", "flask", packages="protobuf==7.36.2"),
    Cell("3.13", "flask", packages="google-auth==2.43.0"),
    Cell("3.10", "grpc", packages="grpcio==1.48.2 protobuf==3.20.3"),
    Cell("3.14", "grpc"),
    # Its API alone.
    Cell("3.10", "asgi", API, "1.20.0"),
    Cell("3.11", "flask", API, "1.27.0"),
    Cell("3.12", "grpc", API, "1.30.0"),
    Cell("3.13", "fastapi", API, "1.36.0"),
    Cell("3.14", "wsgiref", API, "1.40.0"),
    Cell("3.14", "fastapi", API, "1.45.2"),
    # Its SDK, and no provider.
    Cell("3.11", "fastapi", SDK, "1.20.0", "protobuf==4.25.8"),
    Cell("3.12", "flask", SDK, "1.27.0", "protobuf==3.20.3"),
    Cell("3.10", "asgi", SDK, "1.30.0", "protobuf==5.29.5 grpcio==1.71.2"),
    Cell("3.12", "wsgiref", SDK, "1.36.0"),
    Cell("3.11", "grpc", SDK, "1.40.0", "protobuf==6.33.6"),
    Cell("3.13", "asgi", SDK, "1.45.2", "protobuf==7.36.2 grpcio==1.85.3"),
    # A provider of its own.
    Cell("3.10", "flask", OWN, "1.20.0", "protobuf==3.20.3 urllib3==1.26.20"),
    Cell("3.12", "asgi", OWN, "1.27.0", "protobuf==4.25.8"),
    Cell("3.11", "wsgiref", OWN, "1.30.0", "protobuf==5.29.5"),
    Cell("3.14", "flask", OWN, "1.36.0", "protobuf==6.33.6"),
    Cell("3.13", "grpc", OWN, "1.40.0"),
    Cell("3.12", "fastapi", OWN, "1.45.2", "protobuf==7.36.2"),
    # Under opentelemetry-instrument.
    Cell("3.10", "fastapi", INSTRUMENT, "1.20.0", "protobuf==3.20.3 setuptools==75.8.0"),
    Cell("3.11", "flask", INSTRUMENT, "1.27.0", "protobuf==4.25.8 setuptools==75.8.0"),
    Cell("3.12", "fastapi", INSTRUMENT, "1.30.0", "fastapi==0.115.14"),
    Cell("3.13", "flask", INSTRUMENT, "1.36.0"),
    Cell("3.10", "grpc", INSTRUMENT, "1.40.0"),
    Cell("3.14", "fastapi", INSTRUMENT, "1.45.2"),
)
SMOKE: Final = (
    Cell("3.10", "wsgiref"),
    Cell("3.14", "fastapi", API, "1.45.2"),
)


def marked(cell: Cell) -> object:
    """Return a cell as a parameter of a test."""
    return pytest.param(cell, id=str(cell), marks=pytest.mark.smoke if cell.is_smoke else pytest.mark.thorough)
