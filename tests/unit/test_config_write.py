"""Is a written configuration whole, secret, and read back as it was meant?"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from p2p_bootstrap.config.loading import load
from p2p_bootstrap.config.write import from_token, write_config
from p2p_network.core.errors import NotPermitted, P2PError
from p2p_network.token import NetworkToken, format_token

TOKEN = format_token(NetworkToken(bytes(32)))


def test_a_token_becomes_a_configuration(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "config.yaml"
    text = from_token(
        f" {TOKEN[:30]}\n{TOKEN[30:]}\n", "eu-1", zone="no", role="agent", servers=3, minimum_nodes=5,
        network_id="0123", bootstrap=("192.0.2.1:4701",), hostname="n1",
    )  # fmt: skip
    write_config(path, text)
    config = load([path])
    assert config.token == NetworkToken(bytes(32))
    assert (config.p2p.region, config.p2p.zone, config.wish) == ("eu-1", "no", "agent")
    assert (config.declared_servers, config.minimum_nodes) == (3, 5)
    assert (config.p2p.network_id, config.bootstrap, config.hostname) == ("0123", ("192.0.2.1:4701",), "n1")
    assert config.notes == ()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == ["config.yaml"], "no temporary file stays"


def test_the_least_there_is() -> None:
    lines = from_token(TOKEN).splitlines()
    assert lines[0] == "#cloud-config"
    assert lines[-2:] == ["p2p:", f"  network_token: {TOKEN}"]


def test_overwriting_replaces_the_whole_file_and_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("x" * 10_000)
    path.chmod(0o644)
    write_config(path, "#cloud-config\n")
    assert path.read_text() == "#cloud-config\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(P2PError, match="no space is left") as caught:
        write_config(path, "new")
    assert "old file is untouched" in caught.value.hint
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["c.yaml"]


@pytest.mark.parametrize(
    ("number", "kind", "word"), [(13, NotPermitted, "root"), (30, P2PError, "persistent")]
)
def test_refusals_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[P2PError], word: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(kind) as caught:
        write_config(tmp_path / "c.yaml", "new")
    assert word in caught.value.hint
    assert os.listdir(tmp_path) == []
