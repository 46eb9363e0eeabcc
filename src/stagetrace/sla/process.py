"""The policy and the verdict counts of this process, which all its tracer providers share."""

from __future__ import annotations

import functools
import os
import weakref
from typing import TYPE_CHECKING

from stagetrace import log, settings
from stagetrace.errors import PolicyError
from stagetrace.guard import guarded

if TYPE_CHECKING:
    from stagetrace.policy.followed_file import FollowedFile
    from stagetrace.policy.policy import Policy
    from stagetrace.sla.processor import Judge
    from stagetrace.sla.verdict_counter import VerdictCounter

MOST_SHOWN = 20  # objectives in a text

_followers: list[weakref.ref[Judge]] = []  # the processors that judge by the policy of this process


@functools.cache
def counter() -> VerdictCounter:
    """Return the one counter of this process."""
    from stagetrace.sla.verdict_counter import VerdictCounter

    made = VerdictCounter()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=made.begin_again)
    return made


def policy() -> Policy | None:
    """Return the policy of STAGETRACE_SLA, else of OTEL_CONFIG_FILE; None if there is none, or no rule can be read.

    Of a file of STAGETRACE_SLA it is that of the newest content that can be used.
    """
    file = _file()
    return _inline()[0] if file is None else file.policy


def policy_problems() -> tuple[str, ...]:
    """Return what cannot be read in STAGETRACE_SLA, and why."""
    file = _file()
    if file is None:
        return _inline()[1]
    return tuple(file.problem.splitlines()[:1])


def policy_fix() -> str:
    """Return what fixes these problems."""
    from stagetrace.policy.inline import HOW

    file = _file()
    return HOW if file is None else "\n".join(file.problem.splitlines()[1:])


def policy_file() -> str | None:
    """Return the file that STAGETRACE_SLA names."""
    file = _file()
    return None if file is None else file.path


def is_given() -> bool:
    """Return whether there are objectives, or may be as soon as their file can be read."""
    return policy() is not None or _file() is not None


def objectives_text() -> str:
    """Return the objectives in words, and which rules of STAGETRACE_SLA cannot be read (the reason is logged)."""
    used, problems = policy(), policy_problems()
    if used is None and not problems:
        return "no objective given (STAGETRACE_SLA)"
    names = [rule.name for rule in used.objectives] if used else ["no objective"]
    more = [f"{len(names) - MOST_SHOWN} more"] if len(names) > MOST_SHOWN else []
    unread = [problem if _file() else problem.partition(": ")[0] for problem in problems]
    return "; ".join([*names[:MOST_SHOWN], *more, *unread])


def follow(processor: Judge) -> None:
    """Have a span processor, which has the policy of this process, judge by a new one as soon as there is one."""
    _followers.append(weakref.ref(processor))


@guarded
def look_at_file() -> None:
    """Take over what is new in the file of STAGETRACE_SLA. May take long, where its disk does."""
    file = _file()
    if file is None:
        return
    file.look()
    for reference in [*_followers]:
        processor = reference()
        if processor is None:
            _followers.remove(reference)
        elif file.policy is not None and processor.policy is not file.policy:
            processor.replace_policy(file.policy)


@functools.cache
def _file() -> FollowedFile | None:
    """Return the file that STAGETRACE_SLA names, read for the first time; None if it is an inline policy."""
    text = settings.SLA.read()
    if not text:
        return None
    from stagetrace.policy.policy import file_named

    path = file_named(text)
    if path is None:
        return None
    from stagetrace.policy.followed_file import FollowedFile

    file = FollowedFile(path)
    file.read()
    return file


def _of_config_file() -> Policy | None:
    """Return the objectives in the file of OTEL_CONFIG_FILE."""
    if not settings.CONFIG_FILE.read():
        return None
    from stagetrace.otel_config import config_file

    found = config_file()
    return None if found is None else found.policy


@functools.cache
def _inline() -> tuple[Policy | None, tuple[str, ...]]:
    """Read STAGETRACE_SLA, else the objectives of OTEL_CONFIG_FILE, and log once what of it cannot be read."""
    from stagetrace.policy.inline import HOW
    from stagetrace.policy.policy import Policy

    text = settings.SLA.read()
    given = _of_config_file()
    if not text:
        return given, ()
    if given is not None:
        log.once("policy of two", "STAGETRACE_SLA is used, and not the objectives in the file of OTEL_CONFIG_FILE.")
    try:
        found = Policy.readable(text)
    except PolicyError as error:
        log.once("policy", f"STAGETRACE_SLA is ignored, requests are traced without a verdict: {error}")
        return None, (error.problem,)
    if found.problems:
        what = "; ".join(found.problems)
        log.once("policy", f"STAGETRACE_SLA is used in part; requests of these rules are not judged: {what}.\n{HOW}")
    return found, found.problems
