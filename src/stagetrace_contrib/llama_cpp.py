"""llama-cpp-python: completions, chats and embeddings of a `Llama`; its tokens are counted as it generates them.

A chunk of a streamed completion may hold several tokens, or none of its own: a character of several bytes is held back.
So tokens are counted in `Llama.generate`, which yields each of them, and which a completion iterates.
"""

from __future__ import annotations

import functools
from functools import partial
from pathlib import PurePath
from time import time_ns
from typing import TYPE_CHECKING, Any

from stagetrace import semconv
from stagetrace.guard import guarded
from stagetrace.instrumentation.base import wrap_all
from stagetrace.instrumentation.models.base import Library, first_argument
from stagetrace.instrumentation.models.generation import Reads, generating
from stagetrace.request.generation import active
from stagetrace.request.steps import each_step

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import ModuleType

    from stagetrace.instrumentation.base import Wrap
    from stagetrace.request.generation import Call

BY_HAND = "by hand"  # the state of a call that ends where its caller stops: the generator itself has no end


def _texts(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    given = first_argument(args, kwargs)
    is_texts = isinstance(given, str) or (isinstance(given, list) and bool(given) and isinstance(given[0], str))
    return given if is_texts else None  # the tokens of one prompt, and the messages of one chat, are lists, too


LLAMA = Library(
    __name__,
    "llama_cpp",
    rows=_texts,
    name=lambda model: PurePath(model.model_path).name,
    package="llama-cpp-python",
    recognised="`Llama.__call__`, `.create_completion`, `.create_chat_completion`, `.generate`, `.embed`, streamed too",
    not_recognised="`Llama.eval` and `.sample` called by hand",
)


def patch_llama(module: ModuleType) -> None:
    """Wrap the methods of `Llama` that generate or embed."""
    completion = Reads(semconv.TEXT_COMPLETION, result=_usage)
    reads = {
        "__call__": completion,
        "create_completion": completion,
        "create_chat_completion": Reads(semconv.CHAT, result=_usage),
        "embed": Reads(semconv.EMBEDDINGS, result=_embedded),
    }
    is_end = getattr(module.llama_cpp, "llama_vocab_is_eog", None)
    by_hand = Reads(semconv.TEXT_COMPLETION, streams=True, begin=_by_hand)
    wraps: dict[str, Wrap] = {name: partial(generating, library=LLAMA, reads=how) for name, how in reads.items()}
    wraps["generate"] = lambda original: generating(_counting(original, is_end), LLAMA, by_hand)
    wrap_all((module.Llama, name, wrap) for name, wrap in wraps.items())


def _counting(original: Callable[..., Any], is_end: Callable[..., Any] | None) -> Callable[..., Any]:
    """Return `generate` with its tokens counted for the call that iterates it."""

    @functools.wraps(original)
    def generate(self: Any, *args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        steps, call = original(self, *args, **kwargs), active.get()
        if call is None:
            return (yield from steps)
        counted = _Counted(call)
        _prompt(call, args[0] if args else kwargs.get("tokens"))
        try:
            return (yield from each_step(counted, steps))
        finally:
            counted.end(self, is_end)

    return generate


class _Counted:
    """Counts the tokens of one generation, each when the next one is there: the last may be the mark of the end."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._last: tuple[int, int] | None = None  # when it was generated, and the token
        self._is_first = True

    def __call__(self) -> _Counted:
        return self

    def __enter__(self) -> Callable[[Any], None]:
        return self.see

    def __exit__(self, *_: object) -> None:
        pass

    @guarded
    def see(self, token: Any) -> None:
        """Take a token."""
        now = time_ns()
        self._count()
        self._last = now, token

    def _count(self) -> None:
        if self._last is not None:
            self._call.add(self._last[0], is_first=self._is_first)
            self._is_first, self._last = False, None

    @guarded
    def end(self, model: Any, is_end: Callable[..., Any] | None) -> None:
        """Count the last token, unless it marks the end of the text: as the library itself counts."""
        if self._last is not None:
            token = self._last[1]
            is_last = token == model.token_eos() if is_end is None else is_end(model._model.vocab, token)
            if not is_last:
                self._count()
        if self._call.state == BY_HAND:
            self._call.end(time_ns())


def _by_hand(call: Call, _arguments: Any) -> None:
    call.state = BY_HAND


@guarded
def _prompt(call: Call, tokens: Any) -> None:
    call.input = (call.input or 0) + len(tokens)


def _usage(call: Call, result: Any, _now: int) -> None:
    """Read the library's own counts, of a completion that is whole."""
    usage = result["usage"]
    call.input, call.output = usage["prompt_tokens"], usage["completion_tokens"]


def _embedded(call: Call, result: Any, _now: int) -> None:
    if isinstance(result, tuple):  # `return_count=True`
        call.input = result[1]
