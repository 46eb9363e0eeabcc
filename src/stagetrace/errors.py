"""Errors that a person is meant to read: what was asked, what is wrong, what fixes it."""

from __future__ import annotations


class StagetraceError(Exception):
    """Base of all errors of this package; its text is one to three lines."""


class PolicyError(StagetraceError, ValueError):
    """Say what is wrong in a policy and how to write it."""


class StoreError(StagetraceError):
    """Say why a store gave no answer and what would make it answer."""
