"""Run a hook right after a module is imported, whoever imports it and in whatever order.

Written here and not taken from wrapt, since every traced process pays for it at start, those that serve nothing
included (docs/decisions/002).
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # importing `typing` takes longer than all of this package's start
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType


_OURS = "_stagetrace_wrapped"
_IMPORT = "<frozen importlib._bootstrap_external>"
_ANYWHERE = ("signal", "concurrent.futures.thread")  # in processes that serve nothing, too, which are to say nothing


class PostImportFinder:
    """A finder for `sys.meta_path` that finds nothing itself and adds one step after `exec_module`."""

    def __init__(self, hooks: Mapping[str, str]) -> None:
        self._hooks = dict(hooks)
        self._finding: set[str] = set()
        self._installed = False
        self.hooked: list[str] = []  # their modules, in the order in which they were hooked
        self.failed: dict[str, str] = {}  # their modules that could not be, and why

    def install(self) -> None:
        """Put the finder first and run the hooks of what is already imported."""
        if self._installed:
            return
        self._installed = True
        sys.meta_path.insert(0, self)
        self._run_imported()

    def add(self, hooks: Mapping[str, str]) -> None:
        """Hook more, once."""
        self._hooks.update({name: hook for name, hook in hooks.items() if name not in (*self.hooked, *self.failed)})
        self._run_imported()

    def _run_imported(self) -> None:
        for name in list(self._hooks):
            module = sys.modules.get(name)
            if module is not None:
                self._run(name, module)

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return the spec that the other finders give for a hooked module, with its loader extended."""
        if name not in self._hooks or name in self._finding:
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
        hook = self._hooks.pop(name, None)
        if hook is None:
            return
        try:
            from importlib import import_module

            from stagetrace.runtime import versions

            is_anywhere = name in _ANYWHERE
            if not versions.fit(saying=not is_anywhere):
                if not is_anywhere:
                    self._hooks.clear()
                return
            import_module(hook).hook(module)
            self.hooked.append(name)
        except Exception as error:  # noqa: BLE001 -- one broken hook disables itself alone
            self._report(name, error)

    def _report(self, name: str, error: Exception) -> None:
        self.failed[name] = f"{type(error).__name__}: {error}"
        try:
            from stagetrace import guard, log
        except Exception:  # noqa: BLE001 -- a broken installation, in which nothing can be said either
            return
        guard.failures[name] = guard.failures.get(name, 0) + 1
        if guard.say_unusable(error):
            return
        log.once(
            f"hook:{name}",
            f"cannot hook {name} ({self.failed[name]}); it runs as if untraced, everything else is traced.\n"
            "This version of it may be newer than stagetrace: upgrade stagetrace, or report it.",
        )
