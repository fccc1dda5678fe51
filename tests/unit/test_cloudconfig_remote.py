"""Is what lies behind config_url what was meant, and does every failure say so?"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from p2p_bootstrap.cloudconfig import ed25519
from p2p_bootstrap.cloudconfig.collect import collect, collect_system
from p2p_bootstrap.cloudconfig.nodes import Mark, to_value
from p2p_bootstrap.cloudconfig.remote import collect_remote
from p2p_network.core.errors import P2PError

H = b"#cloud-config\n"
HERE = Mark("f", 4, 2)
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


class Web:
    """Addresses and what they answer."""

    def __init__(self, **pages: bytes) -> None:
        self.pages = {f"https://h/{name}": data for name, data in pages.items()}
        self.asked: list[str] = []

    def __call__(self, address: str, limit: int) -> bytes:
        self.asked.append(address)
        if address not in self.pages:
            raise P2PError(f"{address} answers 404", hint="check the address")
        return self.pages[address][: limit + 1]


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def one(text: str, web: Web, root: Path = Path("/")) -> tuple[object, list[str]]:
    documents, problems = collect_remote([(text, HERE)], web, root=root)
    assert all((problem.file, problem.line, problem.key) == ("f", 4, "config_url") for problem in problems)
    return [to_value(document.root) for document in documents], [str(problem) for problem in problems]


def test_a_pinned_checksum() -> None:
    good = H + b"a: 1\n"
    web = Web(x=good)
    assert one(f"https://h/x#sha256={sha(good)}", web) == ([{"a": 1}], [])
    found, (problem,) = one(f"https://h/x#sha256={sha(b'else')}", web)
    assert found == []
    assert sha(good) in problem
    assert "#" not in web.asked[0], "the pin stays on this machine"


def test_a_pinned_key() -> None:
    good = H + b"a: 1\n"
    key = base64.b64encode(PUBLIC).decode()
    for signature in (KEY.sign(good), base64.b64encode(KEY.sign(good)) + b"\n"):
        web = Web(**{"x": good, "x.sig": signature})
        assert one(f"https://h/x#ed25519={key}", web) == ([{"a": 1}], [])
    for pages in ({"x.sig": KEY.sign(good + b" ")}, {"x.sig": b"rubbish"}, {}):
        found, problems = one(f"https://h/x#ed25519={key}", Web(**{"x": good, **pages}))
        assert found == []
        assert len(problems) == 1


def test_our_verification_agrees_with_cryptography() -> None:
    for number in range(8):
        message = bytes([number]) * number * 9
        signature = bytearray(KEY.sign(message))
        assert ed25519.verify(PUBLIC, bytes(signature), message)
        signature[number * 8] ^= 1 << number
        assert not ed25519.verify(PUBLIC, bytes(signature), message)
    assert not ed25519.verify(PUBLIC, KEY.sign(b"a"), b"b")
    assert not ed25519.verify(b"\xff" * 32, KEY.sign(b"a"), b"a")
    order = 2**252 + 27742317777372353535851937790883648493
    signature_ = KEY.sign(b"a")
    high = (int.from_bytes(signature_[32:], "little") + order).to_bytes(32, "little")
    assert not ed25519.verify(PUBLIC, signature_[:32] + high, b"a"), "malleable"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("http://h/x", "plain http"),
        ("ftp://h/x", "neither an http(s) address nor"),
        ("relative.yaml", "neither an http(s) address nor"),
        ("https:///x", "not a valid address"),
        ("https://h/x y", "not a valid address"),
        ("https://h/x#sha256=12", "no pin"),
        ("https://h/x#md5=12", "no pin"),
        ("https://h/missing", "404"),
        ("/missing.yaml", "can't be read"),
    ],
)
def test_failures_are_loud(text: str, complaint: str, tmp_path: Path) -> None:
    found, (problem,) = one(text, Web(), tmp_path)
    assert found == []
    assert complaint in problem


def test_content_that_is_no_cloud_config_is_a_problem(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_bytes(H + b"config_url: https://h/x\n")
    problem, *_ = collect([file], fetch=Web(x=b"<html>")).problems
    assert problem.file == "https://h/x"
    assert "header" in problem.message


def test_a_chain_and_its_precedence() -> None:
    web = Web(a=H + b"who: a\na: 1\nconfig_url: https://h/b\n", b=H + b"who: b\nb: 1\n")
    documents, problems = collect_remote([("https://h/a", HERE)], web)
    assert not problems
    assert [document.file for document in documents] == ["https://h/b", "https://h/a"], "lowest first"
    ring = Web(a=H + b"config_url: https://h/b\n", b=H + b"config_url: https://h/a\n")
    _, (problem,) = collect_remote([("https://h/a", HERE)], ring)
    assert "leads back to itself" in problem.message
    assert problem.file == "https://h/b"
    endless = Web(**{str(n): H + b"config_url: https://h/%d\n" % (n + 1) for n in range(9)})
    _, (problem,) = collect_remote([("https://h/0", HERE)], endless)
    assert "more than 5" in problem.message


def test_a_whole_machine(tmp_path: Path) -> None:
    for folder, text in {
        "system/oem/00.yaml": "name: shipped\nstages: {boot: [{name: ours}]}\nwho: image\n",  # no header
        "run/initramfs/live/a.yaml": "#cloud-config\nwho: live\nlive: 1\n",
        "etc/kairos/a.yaml": "#kairos-config\nwho: etc\n",
        "usr/local/cloud-config/a.yml": "#node-config\nwho: local\n",
        "oem/90_custom.yaml": "#cloud-config\nwho: oem\nconfig_url: https://h/x\n",
        "oem/notes.yaml": "just: yaml\n",
        "proc/cmdline": "quiet kairos.config=who=cmdline cos.setup=/extra.yaml\n",
        "extra.yaml": "#cloud-config\nwho: extra\nextra: 1\n",
    }.items():
        (tmp_path / folder).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / folder).write_text(text)
    collected = collect_system(tmp_path, fetch=Web(x=H + b"who: remote\nremote: 1\n"))
    assert not collected.problems
    assert len(collected.remarks) == 1, "the file without a header"
    value = to_value(collected.root)
    assert isinstance(value, dict)
    assert value["who"] == "extra"
    assert {"live", "remote", "extra", "stages"} <= value.keys()
    assert [Path(name).name for name in collected.files] == [
        "00.yaml", "a.yaml", "a.yaml", "a.yml", "90_custom.yaml", "kernel command line", "x", "extra.yaml",
    ]  # fmt: skip
    assert list(collected.names.values()) == ["shipped"]


def test_before_the_network_addresses_are_left_out_with_a_remark(tmp_path: Path) -> None:
    (tmp_path / "oem").mkdir()
    (tmp_path / "proc").mkdir()
    (tmp_path / "oem/a.yaml").write_text("#cloud-config\nconfig_url: https://h/x\n")
    (tmp_path / "proc/cmdline").write_text("cos.setup=/extra.yaml config_url=https://h/y")
    (tmp_path / "extra.yaml").write_text("#cloud-config\nextra: 1\n")
    collected = collect_system(tmp_path, fetch=None)
    assert not collected.problems
    assert [(remark.line, "no network yet" in remark.message) for remark in collected.remarks] == [
        (2, True),
        (1, True),
    ]
    assert "extra" in collected.root.entries


def test_a_bare_machine_is_no_problem(tmp_path: Path) -> None:
    collected = collect_system(tmp_path, fetch=None)
    assert (collected.files, collected.problems) == ((), ())
