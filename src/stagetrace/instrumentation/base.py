"""The contract of a patch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from types import ModuleType


class Patch(Protocol):
    """A function `patch_<what>(module)` of a patch file, named in `registry.py` beside the module that it changes.

    The import hook calls it once in a process, right after `module` was executed and before the code that imports it
    goes on; where the module was imported before the activation, at the activation. It may run in any thread, and the
    module may import, at its end, modules that have patches of their own.

    - It wraps classes, methods and functions in place, on the class or module where they are defined, so that it does
      not matter who has imported them before. It reads all that it will wrap before it changes the first of it: a
      release of the library that lacks something stays as it was, whole.
    - If it raises, that is logged once as `cannot patch MODULE`, `stagetrace doctor` shows it, the library works as
      without stagetrace, and all other patches go on.
    - Its wrappers call the original exactly once, with the same arguments, return what that returns and raise what that
      raises. All else that they do is guarded (`guard.guarded`, or `guard.guarded_end` for what ends something): an
      error of ours never reaches the caller. A patch that fails ten times at one place is switched off; its wrappers
      then only call the original.
    - Outside a recorded request a wrapper does as good as nothing. Programs that serve nothing import libraries, too:
      the patch file of a library that is no server imports no OpenTelemetry. Nor does one of a server that also runs in
      processes that serve nothing: a guarded function imports what its wrappers need. Any other import is at the top.
    - A wrapper keeps name, signature, documentation and kind (function, coroutine, generator) of the original
      (`functools.wraps`), and what is pickled stays loadable without stagetrace.
    - A patch file imports no other patch file. What several share is in `stagetrace.instrumentation`.
    """

    def __call__(self, module: ModuleType, /) -> None:
        """Wrap what the module defines."""
