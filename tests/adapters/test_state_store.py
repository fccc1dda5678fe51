"""The state directory on real files: made once, never shared or overwritten; every fault says what to do."""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2p_network.core.clock import Stamp
from p2p_network.core.errors import MeshError, NotPermitted, P2PError
from p2p_network.identity import Identity
from p2p_network.ledger.durable import DurableFiles
from p2p_network.ledger.entry import Entry, sign_entry
from p2p_network.ledger.store import LedgerStore
from p2p_network.state import StateDirectory, create_atomically

MESH = "mesh"
IS_ROOT = os.geteuid() == 0


def identity(n: int) -> Identity:
    return Identity(hashlib.sha256(str(n).encode()).digest())


def entry(n: int, value: bytes = b"v" * 200, count: int = 0) -> Entry:
    who = identity(n)
    return sign_entry(who, MESH, f"node/{who.peer_id}", Stamp(1, count), value)


def run_in_mount_namespace(options: str, place: Path, program: str) -> subprocess.CompletedProcess[str]:
    """Run a Python program while a tmpfs with these options is mounted at `place`, for it alone."""
    script = 'mount -t tmpfs -o "$1" none "$2" && shift 2 && exec "$@"'
    return subprocess.run(
        [
            "unshare",
            "--mount",
            "sh",
            "-ec",
            script,
            "sh",
            options,
            str(place),
            sys.executable,
            "-c",
            program,
            str(place),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def can_mount() -> bool:
    probe = ["unshare", "--mount", "sh", "-ec", "mount -t tmpfs -o size=64k none /mnt"]
    try:
        return IS_ROOT and subprocess.run(probe, capture_output=True, timeout=20, check=False).returncode == 0
    except FileNotFoundError:
        return False


needs_mounts = pytest.mark.skipif(not can_mount(), reason="needs root and mount namespaces (unshare, mount)")


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateDirectory]:
    with StateDirectory.open(tmp_path / "state") as opened:
        yield opened


class TestIdentity:
    def test_it_is_made_once_and_private(self, tmp_path: Path) -> None:
        place = tmp_path / "a" / "b"
        with StateDirectory.open(place) as state:
            first = state.identity()
            assert state.identity().seed == first.seed
        with StateDirectory.open(place) as state:
            assert state.identity().peer_id == first.peer_id
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
        assert stat.S_IMODE((place / "identity.key").stat().st_mode) == 0o600
        assert {path.name for path in place.iterdir()} == {"identity.key", "lock"}

    def test_an_open_directory_or_key_is_closed(self, tmp_path: Path) -> None:
        place = tmp_path / "state"
        with StateDirectory.open(place) as state:
            state.identity()
        place.chmod(0o755)
        (place / "identity.key").chmod(0o644)
        with StateDirectory.open(place) as state:
            state.identity()
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
        assert stat.S_IMODE((place / "identity.key").stat().st_mode) == 0o600

    @pytest.mark.parametrize("damage", ["", "cut", "flip", "garbage", "other peer", "binary"])
    def test_a_damaged_key_is_said_and_left_as_it_is(self, state: StateDirectory, damage: str) -> None:
        path = state.path / "identity.key"
        state.identity()
        text = path.read_text()
        seed = text.splitlines()[1].split()[1]
        content = {
            "": b"",
            "cut": text[:-20].encode(),
            "flip": text.replace(seed, seed[::-1]).encode(),
            "garbage": b"x" * 5000,
            "other peer": text.replace(text.split()[-1], identity(1).peer_id).encode(),
            "binary": bytes(range(256)),
        }[damage]
        path.write_bytes(content)
        with pytest.raises(MeshError, match=r"identity\.key is damaged") as caught:
            state.identity()
        assert "backup" in caught.value.hint
        assert seed not in str(caught.value)
        assert path.read_bytes() == content

    def test_creating_never_overwrites(self, tmp_path: Path) -> None:
        create_atomically(tmp_path / "x", b"one")
        with pytest.raises(FileExistsError):
            create_atomically(tmp_path / "x", b"two")
        assert (tmp_path / "x").read_bytes() == b"one"
        assert len(list(tmp_path.iterdir())) == 1

    def test_a_link_is_not_followed(self, state: StateDirectory, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").write_text("x")
        (state.path / "identity.key").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(MeshError, match="symbolic link"):
            state.identity()

    def test_leftovers_of_a_crash_are_swept(self, tmp_path: Path) -> None:
        place = tmp_path / "state"
        place.mkdir()
        (place / ".tmp-0123").write_text("half a key")
        with StateDirectory.open(place) as state:
            state.identity()
        assert {path.name for path in place.iterdir()} == {"identity.key", "lock"}


class TestDirectory:
    def test_two_agents_can_not_share_it(self, state: StateDirectory) -> None:
        with pytest.raises(MeshError, match=f"in use by another agent .process {os.getpid()}.") as caught:
            StateDirectory.open(state.path)
        assert "--state-dir" in caught.value.hint
        state.close()
        state.close()
        StateDirectory.open(state.path).close()

    def test_the_lock_dies_with_its_holder_and_is_not_inherited(self, tmp_path: Path) -> None:
        program = (
            "import subprocess, sys, time; from pathlib import Path\n"
            "from p2p_network.state import StateDirectory\n"
            "state = StateDirectory.open(Path(sys.argv[1]))\n"
            "child = subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL, close_fds=False)\n"
            "print(child.pid, flush=True); time.sleep(60)"
        )
        place = tmp_path / "state"
        holder = subprocess.Popen(
            [sys.executable, "-c", program, str(place)], stdout=subprocess.PIPE, text=True
        )
        assert holder.stdout is not None
        child = int(holder.stdout.readline())
        try:
            with pytest.raises(MeshError, match=str(holder.pid)):
                StateDirectory.open(place)
            holder.kill()
            holder.wait()
            StateDirectory.open(place).close()
        finally:
            holder.kill()
            holder.wait()
            holder.stdout.close()
            os.kill(child, signal.SIGKILL)

    def test_a_file_in_the_way(self, tmp_path: Path) -> None:
        (tmp_path / "state").write_text("x")
        for place in (tmp_path / "state", tmp_path / "state" / "below"):
            with pytest.raises(P2PError, match="a file is in the way"):
                StateDirectory.open(place)

    @pytest.mark.skipif(not IS_ROOT, reason="needs root to hand a directory to another user")
    def test_a_foreign_one_is_refused(self, tmp_path: Path) -> None:
        place = tmp_path / "state"
        place.mkdir()
        os.chown(place, 12345, -1)
        with pytest.raises(NotPermitted, match="belongs to user 12345") as caught:
            StateDirectory.open(place)
        assert "chown" in caught.value.hint
        os.chown(place, 0, -1)
        with StateDirectory.open(place) as state:
            state.identity()
            os.chown(place / "identity.key", 12345, -1)
            with pytest.raises(NotPermitted, match=r"identity\.key belongs to user 12345"):
                state.identity()

    @needs_mounts
    @pytest.mark.parametrize(
        ("options", "expected"),
        [("ro", "read-only"), ("size=8k", "no space is left"), ("nr_inodes=1", "no space is left")],
    )
    def test_read_only_and_full(self, tmp_path: Path, options: str, expected: str) -> None:
        program = (
            "import sys; from pathlib import Path; from p2p_network.core.errors import MeshError\n"
            "from p2p_network.state import StateDirectory\n"
            "place = Path(sys.argv[1])\n"
            "try: (place / 'filler').write_bytes(bytes(8192))\n"
            "except OSError: pass\n"
            "try: StateDirectory.open(place)\n"
            "except MeshError as exc: print(exc)\n"
        )
        done = run_in_mount_namespace(options, tmp_path, program)
        assert expected in done.stdout, done
        assert "hint: " in done.stdout


class TestLedgerStore:
    def open(self, path: Path) -> tuple[LedgerStore, tuple[Entry, ...]]:
        store = LedgerStore(path, MESH)
        return store, store.load().entries

    def read(self, path: Path) -> tuple[Entry, ...]:
        store, found = self.open(path)
        store.close()
        return found

    def test_it_remembers_replaces_and_forgets(self, tmp_path: Path) -> None:
        path = tmp_path / "store.sqlite"
        store, found = self.open(path)
        assert found == ()
        store.store([entry(1), entry(2)])
        store.store([entry(1, b"newer", 1)])
        store.remove([entry(2).key, "never there"])
        store.close()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        store, found = self.open(path)
        assert found == (entry(1, b"newer", 1),)
        assert store._opened().execute("PRAGMA synchronous").fetchone() == (2,)
        assert store._opened().execute("PRAGMA journal_mode").fetchone() == ("wal",)
        store.close()
        store.close()

    def test_each_mesh_has_its_own(self, tmp_path: Path) -> None:
        path = tmp_path / "store.sqlite"
        store, _ = self.open(path)
        store.store([entry(1)])
        store.close()
        other = LedgerStore(path, "another mesh")
        assert other.load().entries == ()
        other.store([entry(1, b"theirs")])
        other.close()
        store, found = self.open(path)
        assert found == (entry(1),)
        store.close()

    def test_damaged_rows_are_left_out_reported_and_removed(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = tmp_path / "store.sqlite"
        store, _ = self.open(path)
        store.store([entry(n) for n in range(5)])
        store.close()
        with sqlite3.connect(path) as database:
            database.execute("UPDATE entry SET raw = x'00' WHERE id = 1")
            database.execute("UPDATE entry SET checksum = x'0000000000000000' WHERE id = 2")
            database.execute("UPDATE entry SET raw = zeroblob(0) WHERE id = 3")
        database.close()
        store = LedgerStore(path, MESH)
        with caplog.at_level(logging.WARNING):
            found = store.load()
        assert found.damaged_rows == 3
        assert found.moved_aside is None
        assert set(found.entries) == {entry(3), entry(4)}
        assert [record.message for record in caplog.records] == ["ledger.rows_damaged"]
        store.close()
        assert self.read(path) == found.entries

    @pytest.mark.parametrize("damage", ["garbage", "header", "middle", "schema"])
    def test_a_damaged_file_is_moved_aside_and_a_new_one_begun(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
    ) -> None:
        path = tmp_path / "store.sqlite"
        for number in (1, 2):
            store, _ = self.open(path)
            store.store([entry(n) for n in range(200)])
            store.close()
            raw = bytearray(path.read_bytes())
            match damage:
                case "garbage":
                    raw = bytearray(b"garbage" * 5000)
                case "header":
                    raw[:100] = bytes(100)
                case "middle":
                    raw[4096 : len(raw) - 4096] = bytes(len(raw) - 8192)
                case "schema":
                    raw[100:4096] = b"\xff" * 3996
            path.write_bytes(raw)
            store = LedgerStore(path, MESH)
            with caplog.at_level(logging.ERROR):
                found = store.load()
            assert found.entries == ()
            assert found.moved_aside == tmp_path / f"store.sqlite.corrupt-{number}"
            assert found.moved_aside.read_bytes()[100:] == bytes(raw)[100:]
            assert caplog.records[-1].message == "ledger.store_damaged"
            store.store([entry(1)])
            store.close()
            assert self.read(path) == (entry(1),)

    def test_a_directory_in_its_place(self, tmp_path: Path) -> None:
        (tmp_path / "store.sqlite").mkdir()
        with pytest.raises(MeshError) as caught:
            self.open(tmp_path / "store.sqlite")
        assert caught.value.hint

    @needs_mounts
    @pytest.mark.parametrize("options", ["ro", "size=200k"])
    def test_read_only_and_full(self, tmp_path: Path, options: str) -> None:
        program = (
            "import sys; from pathlib import Path; from p2p_network.core.errors import MeshError\n"
            "from p2p_network.core.clock import Stamp; from p2p_network.identity import Identity\n"
            "from p2p_network.ledger.entry import sign_entry\n"
            "from p2p_network.ledger.store import LedgerStore\n"
            "from p2p_network.ledger.durable import DurableFiles\n"
            "place, who, count = Path(sys.argv[1]), Identity(bytes(32)), 0\n"
            "key = f'node/{who.peer_id}'\n"
            "try:\n"
            "    store = LedgerStore(place / 'store.sqlite', 'mesh'); store.load()\n"
            "    while True:\n"
            "        store.store([sign_entry(who, 'mesh', f'{key}{count}', Stamp(1, 0), bytes(8000))])\n"
            "        count += 1\n"
            "except MeshError as exc: print(exc)\n"
            "try:\n"
            "    for n in range(1000): DurableFiles(place / 'durable').set('k', bytes(4000 * n))\n"
            "except MeshError as exc: print(exc)\n"
            "if count:\n"
            "    store.close(); again = LedgerStore(place / 'store.sqlite', 'mesh')\n"
            "    print('kept', len(again.load().entries) == count)\n"
        )
        done = run_in_mount_namespace(options, tmp_path, program)
        expected = "read-only" if options == "ro" else "no space is left"
        assert done.stdout.count(expected) == 2, done
        assert done.stdout.count("hint: ") == 2
        assert options == "ro" or "kept True" in done.stdout, done

    def test_killed_at_any_moment_nothing_acknowledged_is_lost(self, tmp_path: Path) -> None:
        """A child stores, and promises, and says so; it is killed with -9 again and again."""
        program = (
            "import sys; from pathlib import Path; from p2p_network.ledger.durable import DurableFiles\n"
            "from p2p_network.core.clock import Stamp; from p2p_network.identity import Identity\n"
            "from p2p_network.ledger.entry import sign_entry\n"
            "from p2p_network.ledger.store import LedgerStore\n"
            "who, start, place = Identity(bytes(32)), int(sys.argv[2]), Path(sys.argv[1])\n"
            "store = LedgerStore(place / 'store.sqlite', 'mesh'); store.load()\n"
            "durable = DurableFiles(place / 'durable')\n"
            "for n in range(start, start + 100000):\n"
            "    store.store([sign_entry(who, 'mesh', f'k{i}', Stamp(n, 0), b'v' * 500) for i in range(3)])\n"
            "    durable.set('promise', str(n).encode())\n"
            "    print(n, flush=True)\n"
        )
        said = 0
        for _ in range(4):
            argv = [sys.executable, "-c", program, str(tmp_path), str(said + 1)]
            child = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
            assert child.stdout is not None
            for _ in range(7):
                said = int(child.stdout.readline())
            child.kill()
            said = max([said, *map(int, child.stdout.read().split())])
            child.stdout.close()
            child.wait()
            store = LedgerStore(tmp_path / "store.sqlite", MESH)
            found = store.load()
            store.close()
            assert (found.damaged_rows, found.moved_aside) == (0, None)
            stamps = {found_entry.wall_ms for found_entry in found.entries}
            assert len(found.entries) == 3
            assert len(stamps) == 1, "a batch is stored whole or not at all"
            assert said <= stamps.pop() <= said + 1
            promise = DurableFiles(tmp_path / "durable").get("promise")
            assert promise is not None
            assert said <= int(promise) <= said + 1


class TestDurableFiles:
    def test_never_set_is_none(self, tmp_path: Path) -> None:
        files = DurableFiles(tmp_path / "durable")
        assert files.get("acceptor/kairos") is None
        assert files.keys() == frozenset()

    def test_what_a_killed_process_left_is_durable_once_it_is_found(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its last file may have its name, and the directory was never synced."""
        synced: list[str] = []
        really = os.fsync

        def fsync(fd: int) -> None:
            synced.append(os.readlink(f"/proc/self/fd/{fd}"))
            really(fd)

        DurableFiles(tmp_path / "durable").set("vote", b"for n1")
        monkeypatch.setattr(os, "fsync", fsync)
        found = DurableFiles(tmp_path / "durable")
        assert str(tmp_path / "durable") in synced
        assert found.get("vote") == b"for n1"

    def test_it_is_private_and_replaced_whole(self, tmp_path: Path) -> None:
        files = DurableFiles(tmp_path / "durable")
        files.set("acceptor/kairos/eu", b"one")
        files.set("acceptor/kairos/eu", b"two")
        (path,) = (tmp_path / "durable").iterdir()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.name == "acceptor%2Fkairos%2Feu"
        assert DurableFiles(tmp_path / "durable").get("acceptor/kairos/eu") == b"two"

    def test_a_file_put_in_anothers_place_is_noticed(self, tmp_path: Path) -> None:
        files = DurableFiles(tmp_path / "durable")
        files.set("one", b"1")
        (tmp_path / "durable" / "one").rename(tmp_path / "durable" / "two")
        with pytest.raises(MeshError, match="holds 'one' instead of 'two'") as caught:
            files.get("two")
        assert "promise" in caught.value.hint
