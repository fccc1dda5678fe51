"""Does what k3s has on disk count as a voter's, so that nobody throws half of a majority away?"""

from __future__ import annotations

from pathlib import Path

from p2p_roles.k3s.datastore import may_vote
from p2p_roles.k3s.spec import K3sPaths


def test_etcds_data_may_vote_until_k3s_has_noted_its_removal(tmp_path: Path) -> None:
    paths = K3sPaths(data_dir=str(tmp_path))
    assert not may_vote(paths), "never started"
    wal = tmp_path / "server" / "db" / "etcd" / "member" / "wal"
    wal.mkdir(parents=True)
    assert not may_vote(paths), "etcd never wrote"
    (wal / "0.wal").touch()
    assert may_vote(paths)
    (tmp_path / "server" / "db" / "etcd" / "tombstone").touch()
    assert not may_vote(paths)
