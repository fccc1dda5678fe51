"""What do layout files, the cloud-config and the command line make together?"""

from __future__ import annotations

import pytest

from p2p_bootstrap.boot import layout
from p2p_bootstrap.boot.facts import TextFile, Wishes
from p2p_bootstrap.boot.layout import Volume
from p2p_bootstrap.cloudconfig.document import parse
from p2p_network.core.errors import BootError


def test_without_files_the_shipped_default() -> None:
    made = layout.read(())
    assert made.rw_paths == ("/etc", "/srv", "/var")
    assert made.target == "/usr/local/.state"
    assert made.bind
    assert len(made.persistent) > 30
    assert made.volumes == (Volume("LABEL=COS_OEM", "/oem"), Volume("LABEL=COS_PERSISTENT", "/usr/local"))


def test_every_key_and_the_order_of_the_files() -> None:
    lines = (
        'export RW_PATHS="/var /etc"', "PERSISTENT_STATE_PATHS=/etc/ssh", "PERSISTENT_STATE_BIND=true # yes",
        "OVERLAY=tmpfs:10%", "PERSISTENT_STATE_TARGET=/data", "VOLUMES='LABEL=D:/data LABEL=COS_OEM:/oem'",
        "MERGE=false",
    )  # fmt: skip
    custom = (
        "CUSTOM_BIND_MOUNTS=/srv/a",
        "CUSTOM_EPHEMERAL_MOUNTS='/srv/b /srv/a'",
        "PERSISTENT_STATE_POLICY=/etc/ssh=image",
    )
    files = (
        TextFile("cos-layout.env", "\n".join(lines)),
        TextFile("extra-layout.env", "PERSISTENT_STATE_PATHS=/home\nOVERLAY=tmpfs:20%"),
        TextFile("custom-layout.env", "\n".join(custom)),
    )
    made = layout.read(files, Wishes(("/x",), ("/y",)), mounts=("LABEL=Z:/data",))
    assert made.rw_paths == ("/etc", "/var")
    assert set(made.persistent) == {"/etc/ssh", "/home", "/srv/a", "/x", *layout.ALWAYS}
    assert made.ephemeral == ("/srv/b", "/y")
    assert (made.overlay, made.target, made.bind) == ("tmpfs:20%", "/data", True)
    assert made.volumes == (Volume("LABEL=Z", "/data"),)  # MERGE=false: the command line's alone
    assert dict(made.policies)["/etc/ssh"] == "image"
    assert made.remarks == ("/srv/a is to be ephemeral and to last: it lasts",)


def test_what_cannot_be_used_is_told() -> None:
    text = 'RWPATHS=/x\nRW_PATHS="/var ../etc /proc rel"\nVOLUMES=oops\nnonsense\n'
    text += 'PERSISTENT_STATE_POLICY=/a=b\nA="'
    made = layout.read((TextFile("f", text),))
    assert made.rw_paths == ("/var",)
    told = "\n".join(made.remarks)
    for what in (
        "did you mean RW_PATHS",
        "'../etc'",
        "path /proc",
        "'rel'",
        "'oops'",
        "line 4",
        "'/a=b'",
        "line 6",
    ):
        assert what in told


def test_two_volumes_for_one_place_are_refused() -> None:
    with pytest.raises(BootError, match="claimed by two volumes"):
        layout.read((TextFile("f", 'VOLUMES="LABEL=A:/x LABEL=B:/x"'),))


def test_names_are_kairos_names_where_these_are_unambiguous() -> None:
    assert layout.escape("/etc/systemd") == "etc-systemd" == layout.legacy_name("/etc/systemd")
    assert layout.escape("/a-b") != layout.escape("/a/b")
    assert layout.legacy_name("/a-b") == layout.legacy_name("/a/b")


def test_wishes_of_a_cloud_config() -> None:
    text = b"#cloud-config\ninstall:\n  bind_mounts: [/a, 12:30]\n  ephemeral_mounts:\n  - /b\n"
    assert layout.wishes_of(parse(text, "f").root) == Wishes(("/a", "12:30"), ("/b",))
    for value, seconds in (
        ("90", 90),
        ("0", 0),
        ("soon", None),
        ("[1]", None),
        ("-1", None),
        ("9" * 30, None),
    ):
        text = b"#cloud-config\np2p: {bless: {within_s: %s}}\n" % value.encode()
        assert layout.wishes_of(parse(text, "f").root).bless_within_s == seconds


@pytest.mark.parametrize("text", ["tmpfs", "tmpfs:", "tmpfs:x", "tmpfs:0%"])
def test_an_overlay_needs_a_size(text: str) -> None:
    with pytest.raises(BootError, match="has no size"):
        layout.split_overlay(text)
    assert layout.split_overlay("tmpfs:25%") == ("tmpfs", "25%")
    assert layout.split_overlay("LABEL=X") == ("LABEL=X", "")
