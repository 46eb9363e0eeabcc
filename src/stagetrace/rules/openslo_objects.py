"""The objects of an OpenSLO file by kind and name, and what of them was read: the rest is reported, never dropped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stagetrace.rules.openslo import API
from stagetrace.sla.policy_kinds import nearest
from stagetrace.sla.yaml_nodes import At, Mapping, Node, Problem, Problems, Scalar, Sequence

if TYPE_CHECKING:
    from collections.abc import Iterator

KINDS: Final = (
    "DataSource",
    "SLO",
    "SLI",
    "AlertPolicy",
    "AlertCondition",
    "AlertNotificationTarget",
    "Service",
)


class Object:
    """One object, in a document of its own or within another one. What is not taken of it is `left`."""

    def __init__(self, kind: str, node: Mapping, problems: Problems, notes: list[Problem]) -> None:
        self.kind = kind
        self.node = node
        self._problems = problems
        self._notes = notes
        self._taken: set[int] = set()
        name = self.take("metadata", "name")
        self.name = name.text if isinstance(name, Scalar) else ""
        if not self.name:
            self.wrong("metadata.name", node.at, "is missing", "write the name of the object")

    @property
    def at(self) -> At:
        """Return where it begins."""
        return self.node.at

    def take(self, *path: str) -> Node | None:
        """Return what stands under a path of keys, all of it: it counts as read."""
        found = self.look(*path)
        if found is not None:
            self.took(found)
        return found

    def look(self, *path: str) -> Node | None:
        """Return what stands under a path of keys; what is needed of it is to be taken."""
        node: Node | None = self.node
        for key in path:
            node = node.entries.get(key) if isinstance(node, Mapping) else None
        return node

    def took(self, node: Node) -> None:
        """Count a node as read."""
        self._taken.add(id(node))

    def text(self, *path: str) -> Scalar | None:
        """Return the text or number under a path; None where there is none, which is a problem if it is a list."""
        found = self.take(*path)
        if found is None or (isinstance(found, Scalar) and found.value is None):
            return None
        if not isinstance(found, Scalar):
            self.wrong(".".join(path), found.at, f"is {found.kind}", "write a text")
            return None
        return found

    def wrong(self, field: str, at: At, what: str, fix: str = "") -> None:
        """Add a problem with a field."""
        self._problems.add(Problem(at, f"{self}: {field} {what}", fix))

    def leaves(self, field: str, at: At, why: str) -> None:
        """Add a note on a field that a policy cannot express, and that changes no verdict."""
        self._notes.append(Problem(at, f"{self}: {field} is not expressed", why))

    def __str__(self) -> str:
        return f"{self.kind} {self.name[:80]}".rstrip()

    def leave_rest(self) -> None:
        """Add a note on each field that was not read."""
        for key, node in self.node.entries.items():
            if key not in ("apiVersion", "kind"):
                for path, at in self._left(key, node):
                    self.leaves(path, at, "stagetrace has nothing that it would change")

    def _left(self, path: str, node: Node) -> Iterator[tuple[str, At]]:
        if id(node) in self._taken or (isinstance(node, (Mapping, Sequence)) and not _inside(node)):
            return
        if not self._touched(node):
            yield path, node.at
        elif isinstance(node, Mapping):
            for key, value in node.entries.items():
                yield from self._left(f"{path}.{key}", value)
        elif isinstance(node, Sequence):
            for place, value in enumerate(node.items):
                yield from self._left(f"{path}[{place}]", value)

    def _touched(self, node: Node) -> bool:
        """Return whether anything within a node was read."""
        return id(node) in self._taken or any(map(self._touched, _inside(node)))


def _inside(node: Node) -> list[Node]:
    if isinstance(node, Mapping):
        return list(node.entries.values())
    return node.items if isinstance(node, Sequence) else []


class Objects:
    """The objects of a file; `notes` are on what a policy cannot express of them."""

    def __init__(self, documents: list[Node], problems: Problems) -> None:
        self.notes: list[Problem] = []
        self._problems = problems
        self.all: list[Object] = []
        self._named: dict[tuple[str, str], Object] = {}
        for node in documents:
            self._add(node)

    def _add(self, node: Node) -> None:
        if not isinstance(node, Mapping):
            if not isinstance(node, Scalar) or node.value is not None:  # an empty document
                self._problems.add(Problem(node.at, f"a document is {node.kind}", f"write apiVersion: {API}"))
            return
        version, kind = node.entries.get("apiVersion"), node.entries.get("kind")
        if not isinstance(version, Scalar) or version.text != API:
            at = node.at if version is None else version.at
            shown = repr(version.text[:80]) if isinstance(version, Scalar) else "missing"
            self._problems.add(Problem(at, f"apiVersion is {shown}, which is not read", f"write {API}"))
        elif not isinstance(kind, Scalar) or kind.text not in KINDS:
            at = node.at if kind is None else kind.at
            shown = kind.text if isinstance(kind, Scalar) else ""
            self._problems.add(Problem(at, f"kind is {shown[:80]!r}", nearest(shown, KINDS)))
        else:
            self.include(kind.text, node)

    def include(self, kind: str, node: Mapping) -> Object:
        """Add an object, which may stand within another one, and return it."""
        found = Object(kind, node, self._problems, self.notes)
        first = self._named.setdefault((kind, found.name), found)
        if first is not found and found.name:
            found.wrong("metadata.name", found.at, f"is that of the one in line {first.at.line}, too", "rename one")
        self.all.append(found)
        return found

    def of(self, kind: str) -> list[Object]:
        """Return all of a kind, in order."""
        return [one for one in self.all if one.kind == kind]

    def get(self, kind: str, name: str) -> Object | None:
        """Return one by its name."""
        return self._named.get((kind, name))

    def referred(self, kind: str, holder: Object, node: Node, reference: str) -> Object | None:
        """Return the object that a node names by `reference`, or holds itself; None, with a problem, for neither."""
        if not isinstance(node, Mapping):
            holder.wrong(kind, node.at, f"is {node.kind}", f"write {reference}: and a name")
            return None
        name = node.entries.get(reference)
        if name is None:
            return self.include(kind, node)
        for key, value in node.entries.items():
            if key != reference:
                holder.wrong(key, value.at, f"stands beside {reference}", "remove one of the two")
        found = self.get(kind, name.text) if isinstance(name, Scalar) else None
        if found is None:
            shown = name.text[:80] if isinstance(name, Scalar) else name.kind
            holder.wrong(reference, name.at, f"is {shown!r}, and no {kind} of the file has that name", "add it")
        return found
