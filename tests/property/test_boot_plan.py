"""For whatever facts: there is one plan, it is orderly, and what was done before a horizon stays done."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from p2p_bootstrap.boot import cmdline, layout, slots
from p2p_bootstrap.boot import steps as do
from p2p_bootstrap.boot.facts import (
    BlockDevice,
    Efi,
    Facts,
    SlotFailure,
    SlotImage,
    TextFile,
    UkiRoot,
    Wishes,
    from_json,
    to_json,
)
from p2p_bootstrap.boot.plan import plan

LABELS = ("COS_STATE", "COS_OEM", "COS_PERSISTENT", "COS_RECOVERY", "COS_SYSTEM", "COS_LIVE", "OTHER", "")
WORDS = (
    "root=LABEL=COS_ACTIVE", "root=LABEL=COS_PASSIVE", "root=LABEL=COS_RECOVERY", "root=LABEL=COS_SYSTEM",
    "root=live:LABEL=COS_LIVE", "live:LABEL=COS_LIVE", "netboot",
    "recovery-mode", "kairos.reset", "kairos.ram",
    "kairos.ram.persistent=LABEL=COS_PERSISTENT", "rd.immucore.uki", "rd.cos.disable", "rd.cos.debugrw",
    "rd.immucore.securebootdisabled", "rd.cos.overlay=tmpfs:10%", "rd.cos.overlay=LABEL=OTHER",
    "rd.cos.mount=LABEL=OTHER:/srv", "cos-img/filename=/cOS/passive.img", "fsck.mode=skip",
    "rd.immucore.debgu",
    "root=/dev/x0",
)  # fmt: skip
PATHS = (
    "/var",
    "/etc",
    "/var/lib/a-b",
    "/var/lib/a/b",
    "/home",
    "/usr",
    "/usr/local/x",
    "/",
    "../x",
    "x",
    "/opt",
)

devices = st.lists(
    st.builds(
        BlockDevice,
        path=st.integers(0, 9).map(lambda n: f"/dev/x{n}"),
        fstype=st.sampled_from(("ext4", "ext4", "vfat", "iso9660", "crypto_LUKS", "")),
        label=st.sampled_from(LABELS),
        partuuid=st.sampled_from(("", "", "u")),
        read_only=st.booleans(),
    ),
    max_size=7,
)
images = st.lists(
    st.builds(
        SlotImage,
        path=st.sampled_from(
            ("/cOS/active.img", "/cOS/passive.img", "/cOS/recovery.img", "/cOS/slot-1-x.img")
        ),
        fstype=st.sampled_from(("squashfs", "erofs", "ext4", "")),
        identity=st.sampled_from(("", "a", "b")),
    ),
    max_size=4,
).map(tuple)
tables = st.builds(
    slots.SlotTable,
    active=st.sampled_from(("/cOS/active.img", "/cOS/slot-1-x.img")),
    passive=st.sampled_from(("/cOS/passive.img", "")),
    trial=st.booleans(),
    tries_left=st.integers(0, 3),
    generation=st.integers(0, 9),
)
some_paths = st.lists(st.sampled_from(PATHS), max_size=5).map(" ".join)
layouts = st.builds(
    lambda rw, kept, custom, gone, target, bind, overlay, volumes: TextFile(
        "cos-layout.env",
        f'RW_PATHS="{rw}"\nPERSISTENT_STATE_PATHS="{kept}"\nCUSTOM_BIND_MOUNTS="{custom}"\n'
        f'CUSTOM_EPHEMERAL_MOUNTS="{gone}"\nPERSISTENT_STATE_TARGET={target}\nPERSISTENT_STATE_BIND={bind}\n'
        f'OVERLAY={overlay}\nVOLUMES="{volumes}"\n',
    ),
    some_paths, some_paths, some_paths, some_paths,
    st.sampled_from(("", "/usr/local/.state", "/srv/state", "/nowhere")),
    st.sampled_from(("true", "false", "")),
    st.sampled_from(("", "tmpfs:25%", "tmpfs:x", "LABEL=OTHER")),
    st.sampled_from(("", "LABEL=COS_PERSISTENT:/usr/local", "LABEL=OTHER:/usr",
                     "LABEL=A:/x LABEL=B:/x", "bad")),
)  # fmt: skip
some_wishes = st.lists(st.sampled_from(PATHS)).map(tuple)
entries = st.sampled_from(("", "active.efi", "Statereset.efi"))
failed_slots = st.sampled_from(("active", "passive", "recovery"))
all_facts = st.builds(
    Facts,
    cmdline=st.lists(st.sampled_from(WORDS) | st.text(max_size=12), max_size=6).map(" ".join),
    devices=devices.map(tuple),
    efi=st.none() | st.builds(Efi, st.booleans(), entries, st.sampled_from(("", "u")), entries),
    uki_root=st.none()
    | st.builds(
        UkiRoot,
        st.sampled_from(("", "/r.img")),
        st.sampled_from(("", "/EFI/x.img")),
        st.just("00"),
        st.sampled_from(("", "squashfs")),
    ),
    images=st.none() | images,
    recovery_images=st.none() | images,
    pointer=st.just("") | tables.map(lambda t: slots.render(t).decode()) | st.text(max_size=30),
    layout=st.none()
    | st.lists(layouts | st.builds(TextFile, st.just("extra-layout.env"), st.text()), max_size=2).map(tuple),
    wishes=st.builds(Wishes, some_wishes, some_wishes),
    failures=st.lists(st.builds(SlotFailure, failed_slots, st.just("root"), st.just("x")), max_size=3).map(
        tuple
    ),
)
# a machine on which nothing is wrong, but for what `all_facts` says about the rest
whole = tuple(BlockDevice(f"/dev/y{n}", "ext4", label) for n, label in enumerate(LABELS[:7]))


@given(all_facts)
def test_there_is_always_one_plan_and_it_says_why(facts: Facts) -> None:
    made = plan(facts)
    assert made.reason
    assert plan(facts) == made
    assert (made.mode == "stop") == (not made.steps)
    assert made.slot not in {failure.slot for failure in facts.failures}


@given(all_facts, st.booleans())
def test_a_plan_is_orderly(facts: Facts, healthy: bool) -> None:
    made = plan(replace(facts, devices=whole, failures=()) if healthy else facts)
    done: set[str] = set()
    mounted: list[str] = []
    for step in made.steps:
        assert step.action.describe()
        assert done.issuperset(step.needs)
        assert step.name not in done
        done.add(step.name)
        target = getattr(step.action, "target", None)
        if isinstance(step.action, do.Mount | do.MountImage | do.Overlay | do.Bind):
            hidden = [other for other in mounted if other.startswith(f"{target}/")]
            assert not hidden, f"{step.name} hides {hidden}"
            mounted.append(str(target))
    if made.steps:
        assert isinstance(made.steps[-1].action, do.SwitchRoot)
        assert set(made.steps[-1].needs) == done - {made.steps[-1].name}


@given(all_facts)
def test_a_node_never_lives_without_what_must_last(facts: Facts) -> None:
    """Normal boots of active and passive prove the canary, and every lasting path; no others touch them."""
    made = plan(replace(facts, devices=whole))
    names = {step.name for step in made.steps}
    if made.mode == "normal" and made.slot in ("active", "passive"):
        assert {"canary", "oem", "prove"} <= names
        kept = [s.action for s in made.steps if s.name.startswith(("bind-", "lasting-"))]
        assert {a.target for a in kept if isinstance(a, do.Bind | do.Overlay)} >= {
            facts.places.inside(path) for path in layout.ALWAYS
        }
        proof = next(s.action for s in made.steps if s.name == "prove")
        assert isinstance(proof, do.Prove)
        assert set(made.required) == set(proof.required)
    elif made.mode == "normal":
        assert not any(name.startswith(("bind-", "volume-")) for name in names)


@given(all_facts, images, st.lists(layouts, max_size=2).map(tuple))
def test_what_was_done_before_a_horizon_stays_in_the_plan(
    facts: Facts, seen: tuple[SlotImage, ...], files: tuple[TextFile, ...]
) -> None:
    before = replace(facts, devices=whole, images=None, recovery_images=None, layout=None)
    looked = replace(before, images=seen, recovery_images=seen)
    laid_out = replace(looked, layout=files)
    for early, late, horizon in ((before, looked, "look-slots"), (looked, laid_out, "look-layout")):
        first, second = plan(early), plan(late)
        if (first.mode, first.slot) != (second.mode, second.slot):
            continue  # another slot: everything is undone first
        names = [step.name for step in first.steps]
        if horizon in names:
            upto = names.index(horizon) + 1
            assert first.steps[:upto] == second.steps[:upto]


@given(all_facts)
def test_facts_survive_their_json(facts: Facts) -> None:
    assert from_json(to_json(facts)) == facts


@given(st.text())
def test_any_command_line_is_read(text: str) -> None:
    assert cmdline.parse(text) == cmdline.parse(text)


@given(
    st.sets(
        st.lists(st.text("ab-/.\\x2", min_size=1, max_size=4), min_size=1, max_size=4).map(tuple), min_size=2
    )
)
def test_no_two_paths_share_a_name(parts: set[tuple[str, ...]]) -> None:
    import posixpath

    paths = {"/" + posixpath.normpath("/" + "/".join(p)).lstrip("/") for p in parts} - {"/"}
    assert len({layout.escape(path) for path in paths}) == len(paths)
    for path in paths:
        assert "/" not in layout.escape(path)
        assert not layout.escape(path).startswith(".")
