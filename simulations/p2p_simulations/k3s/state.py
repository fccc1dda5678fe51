"""What does the cluster remember, and what does a decided command do to it?

The pure state machine behind the stand-in's API: objects by etcd-like keys
(`/registry/nodes/alpha`), each with the index of the command that wrote it as its `resourceVersion`.
Every member applies the same commands in the same order, so nothing here may depend on a clock, on
chance or on the machine: the proposer puts such things into the command.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

Object = dict[str, Any]

NODES = "/registry/nodes/"
ETCD_NAME_ANNOTATION = "etcd.k3s.cattle.io/node-name"
ETCD_LABEL = "node-role.kubernetes.io/etcd"
KEPT_EVENTS = 512


@dataclass(frozen=True, slots=True)
class Outcome:
    """`verdict`: ok, conflict (another version is stored), exists, missing. `object`: what is stored."""

    verdict: str
    object: Object | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """One line of a watch: `kind` is ADDED, MODIFIED or DELETED."""

    revision: int
    kind: str
    key: str
    object: Object


@dataclass(slots=True)
class State:
    """All objects after `revision`."""

    revision: int = 0
    objects: dict[str, Object] = field(default_factory=dict)
    removals: list[str] = field(default_factory=list)
    """Names of etcd members whose Node was deleted and who must leave."""
    changes: list[Change] = field(default_factory=list)
    """The last changes, for watches; not part of the state."""

    def apply(self, index: int, command: Object) -> Outcome:
        """Carry out a decided command: {"op": "put"|"delete", "key", "object", "expect"}.

        `expect`: None for any version, 0 for "must not exist", else the version that must be stored.
        """
        self.revision = index
        key, expect = str(command["key"]), command.get("expect")
        stored = self.objects.get(key)
        if expect == 0 and stored is not None:
            return Outcome("exists", stored)
        if stored is None and (command["op"] == "delete" or expect):
            return Outcome("missing")
        if expect and stored is not None and int(stored["metadata"]["resourceVersion"]) != expect:
            return Outcome("conflict", stored)
        if command["op"] == "delete":
            assert stored is not None
            return self._delete(index, key, stored)
        new: Object = command["object"]
        if stored is not None:
            for fixed in ("uid", "creationTimestamp"):
                new["metadata"][fixed] = stored["metadata"].get(fixed)
        new["metadata"]["resourceVersion"] = str(index)
        self.objects[key] = new
        self._note(index, "ADDED" if stored is None else "MODIFIED", key, new)
        return Outcome("ok", new)

    def _delete(self, index: int, key: str, stored: Object) -> Outcome:
        del self.objects[key]
        self._note(index, "DELETED", key, stored)
        if key.startswith(NODES):
            name = key.removeprefix(NODES)
            for dependent in (
                f"/registry/secrets/kube-system/{name}.node-password.k3s",
                f"/registry/leases/kube-node-lease/{name}",
            ):
                gone = self.objects.pop(dependent, None)
                if gone is not None:
                    self._note(index, "DELETED", dependent, gone)
            member = stored["metadata"].get("annotations", {}).get(ETCD_NAME_ANNOTATION)
            if member and ETCD_LABEL in stored["metadata"].get("labels", {}):
                self.removals.append(member)
        return Outcome("ok", stored)

    def _note(self, index: int, kind: str, key: str, stored: Object) -> None:
        self.changes.append(Change(index, kind, key, stored))
        del self.changes[:-KEPT_EVENTS]

    def forget_removals(self, members: frozenset[str]) -> None:
        """After a change of membership: only names of living members still have to leave."""
        self.removals = [name for name in self.removals if name in members]

    def get(self, key: str) -> Object | None:
        return self.objects.get(key)

    def list(self, prefix: str) -> Iterator[Object]:
        """Objects whose key starts with `prefix`, in the order of their keys."""
        return (self.objects[key] for key in sorted(self.objects) if key.startswith(prefix))

    def dump(self) -> str:
        return json.dumps([self.revision, self.objects, self.removals], separators=(",", ":"), sort_keys=True)

    @classmethod
    def load(cls, data: str) -> State:
        """Inverse of `dump`; "" is the empty state."""
        if not data:
            return cls()
        revision, objects, removals = json.loads(data)
        return cls(revision, objects, removals)
