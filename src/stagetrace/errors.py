"""Errors that a person is meant to read: what was asked, what is wrong, what fixes it."""

from __future__ import annotations


class StagetraceError(Exception):
    """Base of all errors of this package; its text is one to three lines."""


class PolicyError(StagetraceError, ValueError):
    """Say what is wrong in a policy and how to write it."""

    def __init__(self, message: str, rule: str = "", problem: str = "") -> None:
        """Take the whole message, the rule that is wrong, and the part of the message that says what is wrong in it."""
        super().__init__(message)
        self.rule = rule
        self.problem = problem or message


class StoreError(StagetraceError):
    """Say why a store gave no answer and what would make it answer."""


class UnknownTrace(StoreError):  # noqa: N818 -- a state of the store, no fault of it
    """Say that a store holds no trace of this id."""


class QueryError(StagetraceError):
    """Say why SQL that somebody wrote was not run."""
