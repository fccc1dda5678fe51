"""Three-way merging: nobody's work is lost, doing it twice is doing it once, interruptions don't matter."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2p_bootstrap.boot.merge3 import Change, Item, merge, resumed_base
from p2p_bootstrap.boot.ports import Policy

NAMES = ("a", "b", "d", "d/x", "d/y", "d/e", "d/e/z")


def tree(contents: dict[str, str]) -> dict[str, Item]:
    """A tree whose parents are folders wherever there is something below."""
    found: dict[str, Item] = {}
    for name, text in sorted(contents.items()):
        parts = name.split("/")
        for depth in range(1, len(parts)):
            found["/".join(parts[:depth])] = Item("folder", 0o755, 0, 0)
        found.setdefault(name, Item("file", 0o644, 0, 0, text))
    return found


trees = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(("1", "2", "3")), max_size=6).map(tree)
policies: st.SearchStrategy[Policy] = st.sampled_from(("merge", "local", "image"))


def apply(local: dict[str, Item], new: dict[str, Item], changes: tuple[Change, ...]) -> dict[str, Item]:
    """What `persistence` does with files."""
    result = dict(local)
    for change in changes:
        if change.verb == "take":
            if new[change.path].kind != "folder":  # a file in place of a folder takes its content away
                for below in [p for p in result if p.startswith(f"{change.path}/")]:
                    del result[below]
            result[change.path] = new[change.path]
        elif not any(p.startswith(f"{change.path}/") for p in result):
            result.pop(change.path, None)
    return result


@given(trees, trees, policies)
def test_without_edits_the_image_wins(base: dict[str, Item], new: dict[str, Item], policy: Policy) -> None:
    outcome = merge(base, new, base, policy)
    assert not outcome.conflicts
    assert apply(base, new, outcome.changes) == new


@given(trees, trees, policies)
def test_without_a_new_image_nothing_changes(
    base: dict[str, Item], local: dict[str, Item], policy: Policy
) -> None:
    outcome = merge(base, base, local, policy)
    assert outcome.changes == ()
    assert outcome.conflicts == ()


@given(trees, trees, trees, policies)
def test_edits_are_kept_or_reported(
    base: dict[str, Item], new: dict[str, Item], local: dict[str, Item], policy: Policy
) -> None:
    outcome = merge(base, new, local, policy)
    result = apply(local, new, outcome.changes)
    reported = {conflict.path for conflict in outcome.conflicts}
    for path in base.keys() | new.keys() | local.keys():
        edited = local.get(path) != base.get(path)
        if edited and result.get(path) != local.get(path):
            above = {path[:i] for i in range(len(path)) if path[i] == "/"}
            assert path in reported or above & reported, f"{path} was lost"
            assert policy == "image"
    if policy != "image":
        assert all(conflict.kept == "local" for conflict in outcome.conflicts)


@given(trees, trees, trees, policies)
def test_twice_is_once(
    base: dict[str, Item], new: dict[str, Item], local: dict[str, Item], policy: Policy
) -> None:
    result = apply(local, new, merge(base, new, local, policy).changes)
    again = merge(new, new, result, policy)
    assert again.changes == ()


@given(trees, trees, trees, st.integers(0, 10), policies)
def test_interrupted_and_then_another_image_loses_and_invents_nothing(
    base: dict[str, Item], new: dict[str, Item], local: dict[str, Item], cut: int, policy: Policy
) -> None:
    """Power fails within a merge to `new`; the next boot is the old image: what was taken is given back."""
    changes = merge(base, new, base, policy).changes
    torn = apply(base, new, changes[:cut])
    resumed = resumed_base(base, new, torn)
    back = merge(resumed, base, torn, policy)
    assert not back.conflicts
    assert apply(torn, base, back.changes) == base
