"""The parts of the stand-in that need no network: configuration, tokens, log file, state."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import yaml

from p2p_simulations.k3s import raft, tokens
from p2p_simulations.k3s.configfile import read_config
from p2p_simulations.k3s.errors import K3sError
from p2p_simulations.k3s.flags import Settings, settings
from p2p_simulations.k3s.state import State
from p2p_simulations.k3s.wal import Wal


def _settings(
    folder: Path, *argv: str, env: dict[str, str] | None = None, command: str = "server"
) -> Settings:
    return settings(command, argv, env or {}, read_config, str(folder / "config.yaml"))


def _write(folder: Path, name: str, document: object) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(document))


def test_files_merge_and_the_command_line_wins(tmp_path: Path) -> None:
    _write(
        tmp_path,
        "config.yaml",
        {"token": "a", "tls-san": ["one"], "disable": "traefik", "cluster-init": True},
    )
    _write(tmp_path, "config.yaml.d/10.yaml", {"token": "b", "tls-san+": ["two"], "disable+": "servicelb"})
    _write(tmp_path, "config.yaml.d/20.yaml", {"cluster-init": False, "etcd-arg": ["heartbeat-interval=100"]})
    (tmp_path / "config.yaml.d" / "ignored.txt").write_text("token: c")
    found = _settings(tmp_path, "--tls-san", "three", env={"K3S_TOKEN": "env", "K3S_NODE_NAME": "n1"})
    assert found.text("token") == "b", "a file beats the environment"
    assert found.text("node-name") == "n1"
    assert found.words("tls-san") == ["one", "two", "three"]
    assert found.items("disable") == ["traefik", "servicelb"]
    assert not found.on("cluster-init")
    assert found.component("etcd-arg", "heartbeat-interval") == "100"
    assert _settings(tmp_path, "--token=d").text("token") == "d"


def test_a_drop_in_alone_is_enough_and_another_file_can_be_named(tmp_path: Path) -> None:
    _write(tmp_path, "config.yaml.d/10.yml", {"server": "https://a:6443"})
    assert _settings(tmp_path).text("server") == "https://a:6443"
    _write(tmp_path, "other.yaml", {"server": "https://b:6443"})
    other = {"K3S_CONFIG_FILE": str(tmp_path / "other.yaml")}
    assert _settings(tmp_path, env=other).text("server") == "https://b:6443"


def test_unknown_keys_are_skipped_by_a_server_and_end_an_agent(tmp_path: Path) -> None:
    _write(tmp_path, "config.yaml", {"cluster-init": True, "nonsense": 1})
    found = _settings(tmp_path)
    assert found.warnings == ("Unknown flag --nonsense found in config.yaml, skipping\n",)
    with pytest.raises(K3sError, match="flag provided but not defined: -cluster-init"):
        _settings(tmp_path, command="agent")


def test_tokens() -> None:
    assert tokens.parse("secret") == tokens.Token("", "", "secret")
    assert tokens.parse(f"K10{'a' * 64}::server:se:cret") == tokens.Token("a" * 64, "server", "se:cret")
    for bad, why in (
        ("", "must not be empty"),
        ("K10abc::server:x", "hash length"),
        ("K10x", "invalid token format"),
    ):
        with pytest.raises(K3sError, match=why):
            tokens.parse(bad)
    accounts = {"node": tokens.Account('a,"b', "k3s:agent"), "server": tokens.Account("c", "k3s:server")}
    assert tokens.read_passwd(tokens.write_passwd(accounts)) == accounts
    with pytest.raises(K3sError, match="does not contain any valid"):
        tokens.hash_of(b"nothing")


def test_the_hash_of_a_single_certificate_is_that_of_its_file() -> None:
    pem = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    assert tokens.hash_of(pem) == hashlib.sha256(pem).hexdigest()


def _entries(*indexes: int) -> raft.SaveEntries:
    return raft.SaveEntries(tuple(raft.Entry(i, 1, f"data {i}") for i in indexes))


def test_the_log_survives_a_cut_and_refuses_damage(tmp_path: Path) -> None:
    config = raft.Config((raft.Member(7, "a-1", "https://a:2380", "https://a:2379", False),), (3,))
    wal = Wal.create(tmp_path / "wal", 7, raft.Saved(snapshot=raft.Snapshot(config=config)))
    wal.save([raft.SaveVote(1, 7), _entries(1, 2, 3)])
    wal.save([_entries(3)])  # replaces the third
    wal.close()
    found = Wal.open(tmp_path / "wal")
    assert (found.member_id, found.saved.term, found.saved.voted_for) == (7, 1, 7)
    assert found.saved.snapshot.config == config
    assert [e.data for e in found.saved.entries] == ["data 1", "data 2", "data 3"]
    found.close()
    whole = found.path.read_bytes()
    found.path.write_bytes(whole + whole[-20:-5])  # a crash in the middle of a write
    again = Wal.open(tmp_path / "wal")
    again.save([_entries(4)])
    again.close()
    assert len(Wal.open(tmp_path / "wal").saved.entries) == 4
    damaged = bytearray(whole)
    damaged[40] ^= 1
    found.path.write_bytes(bytes(damaged))
    with pytest.raises(K3sError, match="wal: crc mismatch"):
        Wal.open(tmp_path / "wal")


def test_a_snapshot_replaces_the_log(tmp_path: Path) -> None:
    wal = Wal.create(tmp_path / "wal", 1, raft.Saved())
    wal.save([_entries(1, 2, 3)])
    wal.save([raft.SaveSnapshot(raft.Snapshot(2, 1, raft.Config(), "state"), _entries(3).entries)])
    wal.close()
    found = Wal.open(tmp_path / "wal").saved
    assert (found.snapshot.data, [e.index for e in found.entries]) == ("state", [3])


def test_the_state_checks_versions_and_remembers_who_must_leave() -> None:
    state = State()
    node = {
        "metadata": {
            "uid": "u",
            "labels": {"node-role.kubernetes.io/etcd": "true"},
            "annotations": {"etcd.k3s.cattle.io/node-name": "alpha-1"},
        }
    }
    key = "/registry/nodes/alpha"
    assert state.apply(1, {"op": "put", "key": key, "object": node, "expect": 0}).verdict == "ok"
    assert (
        state.apply(2, {"op": "put", "key": key, "object": {"metadata": {}}, "expect": 0}).verdict == "exists"
    )
    assert state.apply(3, {"op": "delete", "key": key, "expect": 2}).verdict == "conflict"
    assert State.load(state.dump()) == State(state.revision, state.objects, state.removals)
    assert state.apply(4, {"op": "delete", "key": key, "expect": 1}).verdict == "ok"
    assert state.apply(5, {"op": "delete", "key": key, "expect": None}).verdict == "missing"
    assert state.removals == ["alpha-1"]
    state.forget_removals(frozenset({"beta-1"}))
    assert state.removals == []
