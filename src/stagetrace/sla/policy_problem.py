"""What is wrong in a policy file, by line and column, and the error with which the file is refused."""

from __future__ import annotations

from typing import Final, NamedTuple

from stagetrace.errors import PolicyError

MOST_PROBLEMS: Final = 20  # that are kept; more are counted


class At(NamedTuple):
    """A place in a text; lines and columns count from 1, columns in characters."""

    line: int
    column: int


class Problem(NamedTuple):
    """One thing that is wrong, and what fixes it."""

    at: At
    what: str
    fix: str = ""

    def text(self, where: str) -> str:
        """Return it in a line: `sla.yaml:12:5: what is wrong: what fixes it`."""
        return f"{where}:{self.at.line}:{self.at.column}: {self.what}{': ' if self.fix else ''}{self.fix}"


class WrongError(Exception):
    """A value that cannot be read; its reader goes on with the next one."""

    def __init__(self, at: At, what: str, fix: str = "") -> None:
        super().__init__(what)
        self.problem = Problem(at, what, fix)


class Problems:
    """The problems of one file, in the order in which they were found."""

    def __init__(self) -> None:
        self.found: list[Problem] = []
        self.more = 0  # that were found beyond MOST_PROBLEMS

    @property
    def count(self) -> int:
        """Return how many there are."""
        return len(self.found) + self.more

    @property
    def is_full(self) -> bool:
        """Return whether more of them are only counted."""
        return len(self.found) >= MOST_PROBLEMS

    def add(self, problem: Problem) -> None:
        """Add one."""
        if self.is_full:
            self.more += 1
        else:
            self.found.append(problem)


class PolicyFileError(PolicyError):
    """Say what is wrong in a policy file: the first problem, and how many more there are."""

    def __init__(self, where: str, problems: Problems) -> None:
        first, *others = sorted(problems.found)
        lines = [f"cannot read the policy {first._replace(fix='').text(where)}", first.fix]
        count = len(others) + problems.more
        if count:
            lines.append(f"{count} more {'is' if count == 1 else 'are'} wrong: stagetrace sla check {where}")
        super().__init__("\n".join(filter(None, lines)), problem=first.text(where))
        self.where = where
        self.problems = (first, *others)
        self.more = problems.more
