"""What becomes of what lasts when the image changed? A three-way merge: old image, new image, local.

For each path: changed by one side only, that side wins; changed by both alike, fine; changed by both
differently is a conflict, settled by the path's policy (``merge`` and ``local`` keep the node's, ``image``
takes the image's) and always reported, the losing content kept aside. Pure: `persistence` does the files.
Doing it twice is doing it once, so an interrupted merge is simply begun again.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from p2p_bootstrap.boot.ports import Policy

Kind: TypeAlias = Literal["file", "folder", "link", "other"]


@dataclass(frozen=True, slots=True)
class Item:
    """What is at a path. `digest`: SHA-256 of a file's content, target of a link."""

    kind: Kind
    mode: int
    owner: int
    group: int
    digest: str = ""


Tree: TypeAlias = Mapping[str, Item]  # relative path -> item


@dataclass(frozen=True, slots=True)
class Change:
    """Something to be done to the local tree: take the image's item, or remove the local one."""

    path: str
    verb: Literal["take", "remove"]


@dataclass(frozen=True, slots=True)
class Conflict:
    """Both sides changed a path. `kept`: whose content stands now; the other's is kept aside."""

    path: str
    kept: Literal["local", "image"]


@dataclass(frozen=True, slots=True)
class Merge:
    """The outcome. Changes in an order in which they can be done: removals last, deepest first."""

    changes: tuple[Change, ...]
    conflicts: tuple[Conflict, ...]


def merge(base: Tree, new: Tree, local: Tree, policy: Policy) -> Merge:
    """Decide on every path.

    `local` needs to hold only paths of `base` and `new`, and everything below what is a folder there and
    something else in `new`.
    """
    takes: list[Change] = []
    removals: list[Change] = []
    conflicts: list[Conflict] = []
    result: dict[str, Item] = dict(local)
    for path in sorted(base.keys() | new.keys()):
        old, theirs, ours = base.get(path), new.get(path), local.get(path)
        if theirs in (old, ours):
            continue  # the image did not change it, or we have the same
        blocked = theirs is not None and not _reachable(path, result)
        if ours == old and not blocked and not _buries_edits(path, base, new, local):
            _apply(path, theirs, takes, removals, result)
        elif blocked or policy != "image":
            conflicts.append(Conflict(path, "local"))
        else:
            conflicts.append(Conflict(path, "image"))
            _apply(path, theirs, takes, removals, result)
    return Merge((*takes, *reversed(removals)), tuple(conflicts))


def resumed_base(base: Tree, pending: Tree, local: Tree) -> dict[str, Item]:
    """The base of a merge that was interrupted on the way to the image `pending`.

    What was already taken (or removed) is the image's doing, not the node's: it counts as base, or a boot of
    the other image would take it for an edit and keep it.
    """
    found: dict[str, Item] = {}
    for path in base.keys() | pending.keys():
        item = pending.get(path) if local.get(path) == pending.get(path) else base.get(path)
        if item is not None:
            found[path] = item
    return found


def _apply(
    path: str, theirs: Item | None, takes: list[Change], removals: list[Change], result: dict[str, Item]
) -> None:
    if theirs is None:
        removals.append(Change(path, "remove"))
        result.pop(path, None)
    else:
        takes.append(Change(path, "take"))
        result[path] = theirs


def _buries_edits(path: str, base: Tree, new: Tree, local: Tree) -> bool:
    """Whether the image puts something else in place of a folder in which the node has work of its own."""
    ours, theirs = local.get(path), new.get(path)
    if ours is None or theirs is None or ours.kind != "folder" or theirs.kind == "folder":
        return False
    return any(p.startswith(f"{path}/") and item != base.get(p) for p, item in local.items())


def _reachable(path: str, result: Mapping[str, Item]) -> bool:
    """Whether the folders above `path` are folders in the outcome; the root itself always is."""
    parent = posixpath.dirname(path)
    return not parent or (parent in result and result[parent].kind == "folder")
