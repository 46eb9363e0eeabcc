"""Define the fixtures of every test, the markers that follow from them, and the rules of a whole test run."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

import services as services_module
from backends import BackendMissing, Collector, Jaeger, binary, run_collector, run_jaeger
from heavy import HEAVY
from leftovers import Watcher
from missing import missing
from sink import Sink, run_sink

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

# Tests that use one of these fixtures, directly or not, get the marker.
MARKERS = {
    "service": {"services", "up"},
    "backend": {"backends", "jaeger", "collector", "storage", "promtool", "kubernetes"},
}
# A busy machine draws slowly. The same cases in each run, or a failure could be one of chance.
settings.register_profile(
    "all",
    suppress_health_check=[HealthCheck.too_slow],
    deadline=None,
    derandomize=not HEAVY,
    max_examples=100 if HEAVY else 50,
)
settings.load_profile("all")
LONGEST_ID = 500
_watcher = pytest.StashKey[Watcher]()
_left = pytest.StashKey[list[str]]()
_not_run = pytest.StashKey[Counter[str]]()


def pytest_configure(config: pytest.Config) -> None:
    """Give the processes of tests the signal dispositions of a terminal, and watch that none is left running."""
    # A run in the background ignores SIGINT and SIGQUIT, and so would each process that a test starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # fixtures still stop what they have started
    os.environ.pop("COLUMNS", None)  # pytest-xdist sets it, and commands fold their tables by it
    config.stash[_not_run] = Counter()
    if not hasattr(config, "workerinput"):
        config.stash[_watcher] = Watcher()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over the counts of a process of pytest-xdist; each has the same."""
    counted: dict[str, int] | None = getattr(node, "workeroutput", {}).get("not_run")  # none of one that has crashed
    if counted is not None:
        merged: Counter[str] = Counter(counted)
        node.config.stash[_not_run] = merged


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name bytes and long text by their argument alone.

    Bytes made by gzip or at random may differ between two processes; each report of a test holds its name.
    """
    return argname if isinstance(val, bytes) or (isinstance(val, str) and len(val) > LONGEST_ID) else None


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Count the tests that this run leaves to another target of the Makefile."""
    for item in items:
        marker = next(
            (name for name in ("heavy", "backend", "service", "thorough") if item.get_closest_marker(name)), "other"
        )
        item.config.stash[_not_run][marker] += 1


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Kill processes that tests have left running."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        counted = session.config.stash[_not_run]
        output["not_run"] = dict(counted)
    watcher = session.config.stash.get(_watcher, None)
    if watcher is not None:
        session.config.stash[_left] = watcher.end()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Report what this run did not cover, and processes left running, a fault of the test that started them."""
    count = config.stash[_not_run]
    if count["service"] or count["thorough"] or count["backend"]:
        terminalreporter.write_line(
            f"make test-all adds {count['service']} tests of servers, {count['thorough']} that try more, and "
            f"{count['backend']} with the real Jaeger and Collector; make test-heavy has {count['heavy']} more."
        )
    for line in config.stash.get(_left, []):
        terminalreporter.write_line(f"LEFT RUNNING, killed: {line}")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Set markers, keep tests that share a fixture of their module in one process, and skip `heavy` by default."""
    seen: dict[tuple[Path, str], list[object]] = {}
    for item in items:
        _share_values(item, seen)
        names = set(getattr(item, "fixturenames", ()))
        for marker, fixtures in MARKERS.items():
            if names & fixtures:
                item.add_marker(marker)
        group = _group(item)
        if group and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(group))
        for mark in (*item.iter_markers("heavy"), *item.iter_markers("heavier")):
            item.user_properties += [("tried", text) for text in mark.args]
        if not HEAVY and item.get_closest_marker("heavy"):
            item.add_marker(pytest.mark.skip(reason="make test-heavy runs this"))


def _share_values(item: pytest.Item, seen: dict[tuple[Path, str], list[object]]) -> None:
    """Let all tests of a module share a fixture that is parametrised, for each value of its parameter.

    pytest brings those together that have the same number of the value, its place in the list of one test, and the same
    scope, which a test with further parameters narrows to itself. A service would start anew for most of them.
    """
    callspec = getattr(item, "callspec", None)
    for name, definition in _shared(item).items():
        if callspec is not None and name in callspec.params:
            values = seen.setdefault((item.path, name), [])
            if callspec.params[name] not in values:
                values.append(callspec.params[name])
            callspec.indices[name] = values.index(callspec.params[name])
            callspec._arg2scope[name] = definition._scope


def _shared(item: pytest.Item) -> dict[str, Any]:
    """Return the fixtures of a test that others share with it."""
    definitions = item._fixtureinfo.name2fixturedefs  # type: ignore[attr-defined] # which pytest shows in no other way
    return {name: found[-1] for name, found in definitions.items() if found[-1].scope != "function"}


def _group(item: pytest.Item) -> str:
    """Return what a test shares with those that run best in one process with it, or "".

    That is a fixture with parameters of the whole run, of which a process keeps one at a time, or else the fixtures of
    the test's module.
    """
    scopes = {name: definition.scope for name, definition in _shared(item).items()}
    values = getattr(getattr(item, "callspec", None), "params", {})
    whole_run = sorted(
        f"{name} {values[name]}" for name, scope in scopes.items() if scope == "session" and name in values
    )
    module = sorted(f"{name} {values.get(name, '')}" for name, scope in scopes.items() if scope != "session")
    group = ", ".join(whole_run or module)
    if module and not whole_run:
        group = f"{item.path.name}: {group}"
    # What pytest-xdist reads out of the test's name.
    return group.replace("@", "").replace("]", "").replace("[", "")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape text in a report that is no valid UTF-8, which pytest-xdist cannot pass on."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(autouse=True)
def _no_policy_is_left() -> Iterator[None]:
    """Let the span processors of one test have no request of another one sampled."""
    yield
    loaded = sys.modules.get("stagetrace.causes.stall_sampler")
    if loaded is not None:
        for judge in loaded.stall_sampler._judges:
            loaded.stall_sampler.remove(judge.learned)


@pytest.fixture(autouse=True)
def _no_failure_is_left() -> Iterator[None]:
    """Let no test see the faults that another one has injected in the same process."""
    yield
    loaded = sys.modules.get("stagetrace.guard")
    if loaded is not None:
        loaded.failures.clear()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let only tests that are marked `service` start one."""
    services_module.allowed = item.get_closest_marker("service") is not None


def need(name: str) -> None:
    """Skip if a binary is not built; under CI fail instead, or a green run could have tested nothing."""
    try:
        binary(name)
    except BackendMissing as error:
        missing(str(error))


@pytest.fixture(scope="session")
def services() -> None:
    """Mark a test that starts services as `service`."""


@pytest.fixture(scope="module")
def sink() -> Iterator[Sink]:
    """Receive the spans of all services of a module."""
    with run_sink() as running:
        yield running


@pytest.fixture(scope="module")
def folder(services: None, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: ARG001 -- for its marker
    """Return the folder of the services that the tests of a module share."""
    return tmp_path_factory.mktemp("services")


@pytest.fixture(scope="session")
def backends() -> None:
    """Need both binaries, for tests that run processes of their own."""
    need("jaeger")
    need("otelcol")


@pytest.fixture(scope="session")
def promtool() -> None:
    """Need promtool (`rules.promtool`)."""
    need("promtool")


@pytest.fixture(scope="session")
def kubernetes() -> None:
    """Need Helm, Kustomize and kubeconform, with the schema that lies beside them."""
    for name in ("helm", "kustomize", "kubeconform"):
        need(name)


@pytest.fixture(scope="session")
def jaeger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jaeger]:
    """Run Jaeger with memory storage; tests share it, so each uses a service name of its own."""
    need("jaeger")
    folder: Path = tmp_path_factory.mktemp("jaeger")
    with run_jaeger(folder) as running:
        yield running


@pytest.fixture(scope="session")
def collector(tmp_path_factory: pytest.TempPathFactory, jaeger: Jaeger) -> Iterator[Collector]:
    """Run a Collector that feeds `jaeger`."""
    need("otelcol")
    with run_collector(tmp_path_factory.mktemp("collector"), jaeger) as running:
        yield running
