"""The state of recording in this process: prepared when a server is about to serve, delivered when it ends."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from stagetrace import log
from stagetrace.guard import guarded, report
from stagetrace.request import serving_process
from stagetrace.request.context import here, meet_otel
from stagetrace.request.serving_process import serving
from stagetrace.settings import CONFIG_FILE, SDK_DISABLED
from stagetrace.sla import verdict_counts
from stagetrace.sla.process import counter, look_at_file, objectives_text, policy
from stagetrace.system import setting_problems, sigterm, unrecognised_models
from stagetrace.system.import_hooks import finder, uncollected
from stagetrace.system.queues import Empty, SimpleQueue
from stagetrace.system.threads import Event, allocate_lock, has_greenlets, in_thread, sleep, start, yield_interpreter

if TYPE_CHECKING:
    from collections.abc import Callable

    from stagetrace.process_status.publish import Publisher
    from stagetrace.sla.metrics_sender import MetricsSender
    from stagetrace.system.queues import SimpleQueue as Queue

# --- The background thread of this process: it runs jobs that may take long or hang, one after another.

IDLE_EVERY_S = 2.0
# What only some requests need: a late one, the first ones of a route, those of a batch. They import it themselves if
# they come before this thread has had nothing to do.
FOR_SOME_REQUESTS: Final = (
    "stagetrace.causes.breakdown",
    "stagetrace.causes.code",
    "stagetrace.causes.in_the_way",
    "stagetrace.instrumentation.batching.gathered_batch",
)
_FORK_WAITS_S: Final = 1.0


class Worker:
    """Runs jobs in one thread, and `when_idle` after each `idle_every_s` without a job.

    The first job starts the thread; a forked child starts its own. That is to be before the interpreter ends: from 3.12
    on no thread can be started then. No lock guards the state: two threads that race start a thread too many, which
    ends as soon as its queue is empty.
    """

    def __init__(self, when_idle: Callable[[], None]) -> None:
        self._when_idle = when_idle
        self._jobs: Queue[Callable[[], None]] | None = None
        self._pid = 0  # the process that `_jobs` belongs to
        self.idle_every_s = IDLE_EVERY_S
        self._may_hang = False  # whether a job of `run_blocking` runs

    def put(self, job: Callable[[], None]) -> None:
        """Run `job` in the thread. Raises RuntimeError where no thread can be started."""
        self._running().put(job)

    def put_if_running(self, *jobs: Callable[[], None]) -> bool:
        """Run `jobs` if this process has the thread, and return whether it has; starts none, takes no lock."""
        if self._jobs is None or self._pid != os.getpid():
            return False
        for job in jobs:
            self._jobs.put(job)
        return True

    def run_blocking(self, function: Callable[[], None]) -> None:
        """Call `function`, in the thread: while it runs (a disk may hang), the next job gets a new thread."""
        self._may_hang = True
        function()
        self._may_hang = False

    def _running(self) -> Queue[Callable[[], None]]:
        """Return the queue of a thread that is not blocked."""
        is_forked = self._pid != os.getpid()
        if self._jobs is None or is_forked or self._may_hang:
            before, self._may_hang = self._jobs, False
            self._jobs, self._pid = SimpleQueue(), os.getpid()
            try:
                start(partial(self._work, self._jobs), "stagetrace-flush")
            except RuntimeError:
                if before is None or is_forked:
                    raise
                self._jobs = before
            except BaseException:  # of a signal's handler: perhaps there is no thread at that queue
                self._jobs = None if is_forked else before
                raise
        return self._jobs

    def _work(self, jobs: Queue[Callable[[], None]]) -> None:
        while jobs is self._jobs or not jobs.empty():
            try:
                job = jobs.get(timeout=self.idle_every_s)
            except Empty:
                job = self._when_idle
            job()


class Rest:
    """Imports what only some requests need. A fork waits for a module: in the child it would never become complete."""

    def __init__(self) -> None:
        self._busy = allocate_lock()  # held while a module is imported
        self._is_done = self._is_held = False
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(before=self._hold, after_in_parent=self._let_go, after_in_child=self._begin_again)

    def load(self) -> None:
        """Import what is not imported yet."""
        if self._is_done:
            return
        self._is_done = True
        for name in FOR_SOME_REQUESTS:
            with self._busy:
                _import(name)
            yield_interpreter()

    def _hold(self) -> None:
        self._is_held = self._busy.acquire(timeout=_FORK_WAITS_S)

    def _let_go(self) -> None:
        if self._is_held:
            self._is_held = False
            self._busy.release()

    def _begin_again(self) -> None:
        self._busy, self._is_done = allocate_lock(), False


@guarded
def _import(name: str) -> None:
    uncollected(partial(import_module, name))


# --- Bounded flush: the delivery at the end of a process never takes longer than SHUTDOWN_BOUND_S.

SHUTDOWN_BOUND_S = 5.0
_LEAST_WAIT_S = 0.1


class BoundedFlush:
    """Runs flushes in the worker, and waits for them no longer than is left of SHUTDOWN_BOUND_S.

    All waits in vain share that bound, since a shutdown is made of several; one that was not in vain renews it.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._left_s = SHUTDOWN_BOUND_S

    def run(self, function: Callable[[], Any]) -> bool:
        """Run `function` and return whether it ended within the bound."""
        done = Event()
        results: list[Any] = []

        def work() -> None:
            try:
                results.append(function())
            except Exception as error:  # noqa: BLE001
                report("stagetrace.runtime.runtime.BoundedFlush.run", error)
            done.set()

        started = time.monotonic()
        self._worker.put(work)
        ended = done.wait(max(self._left_s, _LEAST_WAIT_S))
        in_vain = not ended or results == [False]
        self._left_s = max(0.0, self._left_s - (time.monotonic() - started)) if in_vain else SHUTDOWN_BOUND_S
        return ended

    def flush_providers(self) -> None:
        """Flush what this process sends spans by, and its providers of OpenTelemetry."""
        given: list[Any] = [here.recorder] if here.recorder is not None else []
        for module, provider in (
            ("opentelemetry.metrics", "get_meter_provider"),
            ("opentelemetry.trace", "get_tracer_provider"),
        ):
            if module in sys.modules:
                given.insert(0, getattr(sys.modules[module], provider)())
        for one in given:
            force_flush = getattr(one, "force_flush", None)
            if force_flush is not None and not self.run(partial(force_flush, self._timeout_ms())):
                log.once(
                    "flush", f"a flush did not end within {SHUTDOWN_BOUND_S:g} s; what it did not deliver is lost."
                )

    def _timeout_ms(self) -> int:
        # Less than `run` waits: a flush that ends by itself can log what it has not delivered.
        return int(self._left_s * 900)


# --- The state of recording in this process: prepared when a server is about to serve, delivered when it ends.
#
# Not prepared before: a process that serves nothing loads no SDK, and the user's own start-up code goes first.

WITHDRAW_BOUND_S = 0.5
# A client that has its response may send SIGTERM before the request has ended, which is then a matter of a thread's
# time slice.
ENDS_WITHIN_S = 0.02
NOWHERE = "nowhere: "
# Patched modules of packages that are in every process: the log at the start does not list them.
_EVERYWHERE = {"opentelemetry"} | (sys.stdlib_module_names - {"wsgiref"})


class Runtime:
    """What recording keeps in this process. Any thread may call any method."""

    def __init__(self) -> None:
        self.ready = False  # whether `prepare_now` has run in this process
        self._lock = threading.Lock()  # guards `ready` and `_prepared`
        self._prepared = False  # here, or in the process that has forked this one
        self._delivers_immediately = False
        self._delivering_pid = 0  # the process in which `multiprocessing` delivers at exit
        self._publisher: Publisher | None = None
        self._metrics_sender: MetricsSender | None = None
        self._offers_metrics = False
        self._rest = Rest()
        self._worker = Worker(self._when_idle)
        self._flush = BoundedFlush(self._worker)

    async def prepare(self) -> None:
        """Make sure that a tracer provider is set; in a thread, since the exporter takes 0.1 s to load."""
        await _in_thread(self.prepare_now)

    async def flush(self) -> None:
        """Deliver what has ended, for at most SHUTDOWN_BOUND_S, and log what was judged."""
        await _in_thread(self.flush_now)

    @guarded
    def prepare_now(self) -> None:
        """Set a provider if there is none, once in each process."""
        with self._lock:
            if self.ready:
                return
            try:
                sigterm.catch(self.deliver_all)  # first, so that it comes last in `atexit`, after what delivers
                if not self._prepared:
                    self._prepared = True
                    uncollected(self._prepare_first)
                else:
                    self._worker.put(self._report_status)  # in a forked child, which has no thread yet
                self.deliver_at_exit()
                serving.begin()
                _prepare_sampling()
            finally:
                self.ready = True  # not before: a request that arrived meanwhile would go unrecorded
        if self._delivers_immediately:
            self.deliver_immediately()

    def _prepare_first(self) -> None:
        from stagetrace.runtime import provider
        from stagetrace.sources import gc_pauses

        finder.begin_serving()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._begin_again)
        if SDK_DISABLED.read().lower() == "true":
            path = CONFIG_FILE.read()
            # Spans of OpenTelemetry do nothing then, and its contexts go on; what a file says is for us alone.
            here.has_provider = not path and meet_otel()
            self._publish_from_now_on(NOWHERE + (f"OTEL_CONFIG_FILE={path}" if path else "OTEL_SDK_DISABLED=true"))
            return
        target = provider.set_up(self._flush.run)
        provider.set_meter_provider(self._flush.run)
        self._metrics_sender = provider.metrics_sender()
        if self._metrics_sender is not None:
            self._worker.idle_every_s = min(self._metrics_sender.every_s, self._worker.idle_every_s)
        self.offer_metrics()
        gc_pauses.start()
        if has_greenlets():
            _import_now(target, self._metrics_sender)
            self._rest.load()
        self._publish_from_now_on(target)

    @guarded
    def meet_otel(self) -> None:
        """Go on with the service's OpenTelemetry, which it has imported after recording was prepared."""
        if meet_otel() and self._prepared and here.recorder is not None:
            from stagetrace.bridge import provider

            provider.meet(here.recorder)
            self.offer_metrics()

    @guarded
    def offer_metrics(self) -> None:
        """Offer our counts as metrics to the present or a later meter provider, where the service has such."""
        if "opentelemetry.metrics" in sys.modules and here.has_otel and not self._offers_metrics:
            self._offers_metrics = True
            from stagetrace.bridge import metrics

            metrics.offer(is_sent=self._metrics_sender is not None)
        elif self._metrics_sender is not None:
            measure_loops()

    def _begin_again(self) -> None:
        """Be ready in a forked child when a server is about to serve there, too."""
        self._lock, self.ready = threading.Lock(), False

    @guarded
    def deliver_immediately(self) -> None:
        """Deliver at once what ends from now on: a server that waits for its last requests may be killed meanwhile."""
        self._delivers_immediately = True
        if self.ready:
            from stagetrace.otlp.export.batch_processor import deliver_immediately

            deliver_immediately()

    @guarded
    def schedule_immediate_delivery(self) -> None:
        """Deliver at once from a signal handler, which may have interrupted a thread that holds a lock."""
        self._worker.put_if_running(self.deliver_immediately)  # a SimpleQueue allows it even within itself

    def deliver_at_exit(self) -> None:
        """Deliver before this process ends, if `multiprocessing` has made it: it then runs no exit handlers."""
        process = sys.modules.get("multiprocessing.process")
        if process is None or process.parent_process() is None or self._delivering_pid == os.getpid():
            return
        self._delivering_pid = os.getpid()
        from multiprocessing.util import Finalize

        Finalize(None, self._deliver_last, exitpriority=1)

    def _deliver_last(self) -> None:
        self.flush_now()
        sigterm.end_if_asked()
        in_python = sys.modules.get("stagetrace.runtime.sigterm_python")
        if in_python is not None:
            in_python.end_if_asked()

    def deliver_all(self) -> None:
        """Deliver what has ended, and what is about to, before SIGTERM ends the process."""
        if not self.ready:
            return
        self.deliver_immediately()
        sleep(ENDS_WITHIN_S)
        for wait in sigterm.awaited:
            wait()
        self.flush_now()

    @guarded
    def flush_now(self) -> None:
        """Flush the current providers within the bound, log what was judged and lost, withdraw the status file."""
        self._flush.flush_providers()
        if self._metrics_sender is not None:
            self._flush.run(self._metrics_sender.send_last)
        if (objectives := policy()) is not None:
            counter().say_unmatched(objectives)
        verdict_counts.log_counts()
        serving_process.log_counts()
        factory = sys.modules.get("stagetrace.otlp.export.batch_processor")
        if factory is not None:  # not to be loaded for this, at the end
            factory.report_lost()
        self._withdraw()

    def _publish_from_now_on(self, target: str) -> None:
        """Let `stagetrace doctor` see this process; `target` is where its spans go."""
        from stagetrace.process_status.publish import Publisher

        self._publisher = Publisher(target)
        self._worker.put(partial(_log, target))  # the first request does not wait for that
        self._worker.put(self._report_status)
        atexit.register(self._withdraw)

    def _when_idle(self) -> None:
        self._rest.load()
        self._report_status()

    def _report_status(self) -> None:
        unrecognised_models.log_new()
        if self._metrics_sender is not None:
            self._metrics_sender.tick()
        self._worker.run_blocking(look_at_file)
        if self._publisher is not None:
            self._worker.run_blocking(self._publisher.publish)

    @guarded
    def _withdraw(self) -> None:
        """Remove the status file; do not wait for a disk that hangs."""
        publisher = self._publisher
        if publisher is not None:
            done = Event()
            if self._worker.put_if_running(lambda: self._worker.run_blocking(publisher.withdraw), done.set):
                done.wait(WITHDRAW_BOUND_S)


def measure_loops() -> None:
    """Have the delays of event loops measured, for our own sender."""
    from stagetrace.sla.metric_points import loop_lags
    from stagetrace.sources import loops

    loops.take = loop_lags.add


async def _in_thread(method: Callable[[], None]) -> None:
    try:
        await in_thread(method)
    except Exception as error:  # noqa: BLE001
        report(f"{__name__}.{method.__name__}", error)


def _why_nowhere(target: str) -> str:
    why = target.removeprefix(NOWHERE)
    if not CONFIG_FILE.read():
        return f"{why}. Unset it to record."
    from stagetrace.otel_config import config_file

    found = config_file()
    return f"{why} {'cannot be used' if found and found.problem else 'has disabled: true'}."


@guarded
def _prepare_sampling() -> None:
    from stagetrace.request.in_flight import in_flight

    in_flight.prepare()


@guarded
def _import_now(target: str, sender: MetricsSender | None) -> None:
    """Import all modules that our threads need.

    Import locks belong to greenlets where there are some: a greenlet that imports a module which a real thread just
    imports fails or hangs.
    """
    import netrc  # noqa: F401 -- which `requests` imports late

    from stagetrace.otlp.export.batch_processor import processors
    from stagetrace.process_status.publish import rehearse

    settings = getattr(sys.modules.get("gevent"), "config", None)
    if settings is not None:  # for a thread that looks up a host
        _ = settings.resolver, settings.threadpool
    rehearse(target)
    for processor in processors():
        processor.load()
    if sender is not None:
        sender.load()


@guarded
def _log(target: str) -> None:
    _log_start(target)
    setting_problems.log_misspelt()


def _log_start(target: str) -> None:
    from stagetrace import __version__
    from stagetrace.process_status.files import samples_all
    from stagetrace.process_status.publish import sampler

    if target.startswith(NOWHERE):
        log.warning(f"{__version__} records nothing in process {os.getpid()}: {_why_nowhere(target)}")
        return
    seen = sorted({name.partition(".")[0] for name in finder.patched} - _EVERYWHERE)
    sampled = "" if samples_all(sampler()) else f", head sampler {sampler()}"
    has_gil = getattr(sys, "_is_gil_enabled", None)
    without_gil = "" if has_gil is None or has_gil() else "; without the GIL no breach has its line of code"
    broken = f"; not patched: {', '.join(finder.failed)} (`stagetrace doctor` shows why)" if finder.failed else ""
    log.info(
        f"{__version__} recording in process {os.getpid()} ({', '.join(seen)}), spans to {target}{sampled}, "
        f"judging by: {objectives_text()}{broken}{without_gil}"
    )


runtime = Runtime()
