"""What does the kernel command line configure?"""

from __future__ import annotations

from p2p_bootstrap.cloudconfig.cmdline import parse, split_path
from p2p_bootstrap.cloudconfig.nodes import find, to_value


def test_dot_notation_in_all_its_spellings() -> None:
    text = (
        "BOOT_IMAGE=/vmlinuz console=ttyS0 quiet rd.immucore.debug net.ifnames=0 i915.modeset=1 "
        'stages.boot[0].authorized_keys.root[0]=github:mudler "stages.boot[0].name=two words" '
        "kairos.config=hostname=box kairos.config=users.0.name=kairos kairos.config=install.auto=true "
        'stages."boot.after"[0].commands[0]="echo a=b" p2p.role=worker p2p.role=server'
    )
    found = parse(text)
    assert not found.problems
    assert to_value(found.root) == {
        "stages": {
            "boot": [{"authorized_keys": {"root": ["github:mudler"]}, "name": "two words"}],
            "boot.after": [{"commands": ["echo a=b"]}],
        },
        "hostname": "box",
        "users": [{"name": "kairos"}],
        "install": {"auto": True},
        "p2p": {"role": "server"},
    }
    node = find(found.root, ("hostname",))
    assert node is not None
    assert text[node.mark.column - 1 :].startswith("kairos.config=hostname")


def test_addresses_and_files_to_read_besides() -> None:
    text = 'config_url=https://a/x kairos.config_url="https://b/y z" cos.setup=/oem/s.yaml config_url='
    assert [source for source, _ in parse(text).sources] == ["https://a/x", "https://b/y z", "/oem/s.yaml"]


def test_what_contradicts_itself() -> None:
    text = "p2p.vpn=1 p2p.vpn.mtu=1300 k3s.args[1]=a kairos.config=nothing kairos.config=a[x]=1"
    messages = [problem.message for problem in parse(text).problems]
    assert any("a value and to keys below it" in message for message in messages)
    assert any("numbered 0, 1, 2" in message for message in messages)
    assert sum("can't be understood" in message for message in messages) == 2


def test_paths() -> None:
    assert split_path("a.0.b[1]") == ("a", 0, "b", 1)
    assert split_path('a."b.c"') == ("a", "b.c")
    assert split_path("a[99999]") is None
    assert split_path("a..b") is None
    assert split_path("") is None
