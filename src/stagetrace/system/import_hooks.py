"""Run a patch right after its module is imported, by any importer and in any order.

Written here and not taken from wrapt, since every traced process pays for it at start, those that serve nothing
included (docs/decisions/002).
"""

from __future__ import annotations

import os
import sys
import time
from _thread import get_native_id
from itertools import takewhile

TYPE_CHECKING = False  # importing `typing` takes longer than all of this package's start
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any


_OURS = "_stagetrace_wrapped"
_IMPORT = "<frozen importlib._bootstrap_external>"
MOST_SOUGHT = 2_048
LONGEST_NS = 20_000_000


class PostImportFinder:
    """A finder for `sys.meta_path` that finds nothing itself and adds one step after `exec_module`."""

    def __init__(self) -> None:
        self._patches: dict[str, str] = {}  # by module of a library, each as `module:function`
        self._for_serving: Mapping[str, str] = {}
        self._finding: set[str] = set()
        self._installed = False
        # Modules, when they were looked for (ns since the epoch), and by which thread (the kernel's number).
        self._sought: list[tuple[int, str, int]] = []
        self.patched: list[str] = []  # modules of libraries, in the order in which they were patched
        self.failed: dict[str, str] = {}  # modules that could not be patched, and why
        # Of packages of patches beside ours: their folders, and the beginnings of paths where requests begin.
        self.folders: tuple[str, ...] = ()
        self.entries: tuple[str, ...] = ()

    def install(self, patches: Mapping[str, str], for_serving: Mapping[str, str]) -> None:
        """Put the finder first, and patch what is already imported, once; `for_serving` waits for `begin_serving`."""
        if self._installed:
            return
        self._installed = True
        self._patches, self._for_serving = dict(patches), for_serving
        sys.meta_path.insert(0, self)
        self._run_imported()

    def begin_serving(self) -> None:
        """Patch once what only a process that serves needs."""
        self.add(self._for_serving)

    def add(self, patches: Mapping[str, str]) -> None:
        """Add patches; those of modules that were patched before, or failed, are not run again."""
        done = (*self.patched, *self.failed)
        self._patches.update({name: patch for name, patch in patches.items() if name not in done})
        self._run_imported()

    def _run_imported(self) -> None:
        for name in list(self._patches):
            module = sys.modules.get(name)
            if module is not None:
                self._run(name, module)

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return the spec that the other finders give for a module to be patched, with its loader extended."""
        self._sought.append((time.time_ns(), name, get_native_id()))
        if len(self._sought) > MOST_SOUGHT:
            del self._sought[: MOST_SOUGHT // 2]
        if name not in self._patches or name in self._finding:
            return None
        self._finding.add(name)
        try:
            for finder in sys.meta_path:
                find = getattr(finder, "find_spec", None)
                spec: ModuleSpec | None = find(name, path, target) if find and finder is not self else None
                if spec is not None:
                    self._extend(name, spec)
                    return spec
        finally:
            self._finding.discard(name)
        return None

    def imported_in(self, sections: Collection[tuple[int, int, int]]) -> tuple[int, int]:
        """Return how many modules were imported in sections of threads, and for how many ns about.

        A section is its begin and end (ns since the epoch) and the kernel's number of its thread: what other threads
        import meanwhile is not the request's. Of the latest modules, at least; what comes within LONGEST_NS of a
        module's search counts as its import.
        """
        first = min((start for start, _, _ in sections), default=0)
        latest = self._sought[-1:]
        if not sections or not latest or latest[0][0] < first:  # as a rule: a service imports at its start
            return 0, 0
        found = sorted(
            (at, name)
            for at, name, thread in takewhile(lambda one: one[0] >= first, reversed(list(self._sought)))
            if any(start <= at < end and thread == of for start, end, of in sections) and name in sys.modules
        )
        ends = [*(at for at, _ in found), max(end for _, end, _ in sections)][1:]
        took = sum(min(after - at, LONGEST_NS) for (at, _), after in zip(found, ends, strict=True))
        return len({name for _, name in found}), took

    def _extend(self, name: str, spec: ModuleSpec) -> None:
        loader = spec.loader
        original = getattr(loader, "exec_module", None)
        if original is None or hasattr(original, _OURS):
            return

        def exec_module(module: ModuleType) -> None:
            original(module)
            self._run(module.__name__, module)  # of a zip file, one loader has all modules

        # Tracebacks and warnings leave out the frames of an import, and so this one.
        exec_module.__code__ = exec_module.__code__.replace(co_filename=_IMPORT)
        setattr(exec_module, _OURS, True)
        try:
            # On the instance, one of which belongs to each spec: the loader keeps its type for those who ask.
            loader.exec_module = exec_module  # type: ignore[union-attr, method-assign]
        except AttributeError as error:
            self._report(name, error)

    def _run(self, name: str, module: ModuleType) -> None:
        patch = self._patches.pop(name, None)
        if patch is None:
            return
        try:
            from importlib import import_module

            path, _, function = patch.partition(":")
            uncollected(lambda: getattr(import_module(path), function)(module))  # base.Patch
            self.patched.append(name)
        except Exception as error:  # noqa: BLE001 -- a broken patch disables itself alone
            self._report(name, error)

    def _report(self, name: str, error: Exception) -> None:
        self.failed[name] = f"{type(error).__name__}: {error}"
        try:
            from stagetrace import guard, log
        except Exception:  # noqa: BLE001 -- a broken installation, in which nothing can be logged either
            return
        guard.failures[name] = guard.failures.get(name, 0) + 1
        if guard.log_unusable(error):
            return
        log.once(
            f"patch:{name}",
            f"cannot patch {name} ({self.failed[name]}); it runs as if untraced, everything else is traced.\n"
            "This version of it may be newer than stagetrace: upgrade stagetrace, or report it.",
        )


# --- No collection of garbage while our modules are imported.
#
# What they make stays. Collected in between, it makes the interpreter look through all that the service has loaded once
# more before it is ready: 90 ms for FastAPI and scikit-learn.

_put_off: list[tuple[int, int, int]] = []  # the thresholds of before, of all threads that import now


def uncollected(function: Callable[[], Any]) -> Any:
    """Call a function, and have no garbage collected meanwhile, unless other code has changed the thresholds."""
    import gc

    before = gc.get_threshold()
    none = (0, *before[1:])
    _put_off.append(before)
    gc.set_threshold(*none)
    try:
        return function()
    finally:
        _put_off.remove(before)
        if gc.get_threshold() == none:
            gc.set_threshold(*before)


def _collect_again() -> None:
    """Have garbage collected in a child that was forked meanwhile."""
    if _put_off:
        import gc

        gc.set_threshold(*max(_put_off))
        _put_off.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_collect_again)

finder = PostImportFinder()  # of this process; `patches/registry.py` gives it the patches
