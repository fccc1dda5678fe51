"""Does a TPM open a secret for our predicted PCR 11, and for nothing else? swtpm on loopback, no machine.

The policy digest is computed by `measure.policy`; the TPM itself has to agree, measured piece by piece.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tiny_stub import PARTS

from p2p_bootstrap.boot import measure, uki
from p2p_bootstrap.boot.signing import public_key, sign_policies
from p2p_bootstrap.boot.tpm import seal, unseal
from p2p_bootstrap.node.key_vault import TpmVault
from p2p_network.core.errors import BootError, MeshError
from p2p_network.state import StateDirectory

PROGRAMS = ("swtpm", "tpm2_createprimary", "openssl")


@dataclass
class Tpm:
    """A TPM of software, and the tools of tpm2-tools against it."""

    port: int
    folder: Path

    def _run(self, program: str, *argv: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [f"tpm2_{program}", *argv], cwd=self.folder, input=data, capture_output=True, check=False,
            env={**os.environ, "TPM2TOOLS_TCTI": f"swtpm:host=127.0.0.1,port={self.port}"},
        )  # fmt: skip

    def __call__(self, program: str, *argv: str, data: bytes = b"", fails: bool = False) -> str:
        done = self._run(program, *argv, data=data)
        self._run("flushcontext", "-t")  # no resource manager does it for us
        assert (done.returncode != 0) == fails, f"{program}: {done.stderr.decode()}"
        return done.stdout.decode()


def two_free_ports() -> int:
    """A port that is free together with the next one: swtpm's command and control channels."""
    for _ in range(100):
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            port = int(one.getsockname()[1])
            try:
                two.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return port
    raise AssertionError("no two free ports")


@pytest.fixture
def tpm(tmp_path: Path) -> Iterator[Tpm]:
    if missing := [name for name in PROGRAMS if not shutil.which(name)]:
        pytest.skip(f"no TPM of software: missing {', '.join(missing)} (swtpm, tpm2-tools, openssl)")
    port = two_free_ports()
    (tmp_path / "state").mkdir()
    child = subprocess.Popen(
        ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={tmp_path}/state", "--flags", "startup-clear",
         "--server", f"type=tcp,port={port},bindaddr=127.0.0.1",
         "--ctrl", f"type=tcp,port={port + 1},bindaddr=127.0.0.1"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 30
        # the control channel: a knock on the command channel would be taken for a client
        while True:
            with socket.socket() as knock:
                if knock.connect_ex(("127.0.0.1", port + 1)) == 0:
                    break
            assert child.poll() is None, "swtpm ended at once"
            assert time.monotonic() < deadline, "swtpm does not start"
            time.sleep(0.02)
        yield Tpm(port, tmp_path)
    finally:
        child.kill()
        child.wait()


def test_a_secret_opens_for_the_predicted_value_and_for_no_other(tpm: Tpm) -> None:
    sections = ((".linux", b"kernel"), (".cmdline", b"quiet"))
    value = measure.zero("sha256")
    for name, data in sections:
        value = measure.extend(measure.extend(value, name.encode() + b"\0", "sha256"), data, "sha256")
    # sealed before anything was measured: to what will be, as an installer does it
    (tpm.folder / "policy").write_bytes(measure.policy(value.hex()))
    tpm("createprimary", "-C", "o", "-c", "primary.ctx", "-Q")
    tpm("create", "-C", "primary.ctx", "-L", "policy", "-i", "-", "-u", "s.pub", "-r", "s.priv", "-Q",
        data=b"secret")  # fmt: skip
    tpm("load", "-C", "primary.ctx", "-u", "s.pub", "-r", "s.priv", "-c", "s.ctx", "-Q")
    assert "secret" not in tpm("unseal", "-c", "s.ctx", "-p", "pcr:sha256:11", fails=True)
    for name, data in sections:
        for piece in (name.encode() + b"\0", data):
            tpm("pcrevent", "11", "-Q", data=piece)
    (tpm.folder / "pcr").unlink(missing_ok=True)
    tpm("pcrread", "sha256:11", "-o", "pcr", "-Q")
    assert (tpm.folder / "pcr").read_bytes() == value
    assert tpm("unseal", "-c", "s.ctx", "-p", "pcr:sha256:11") == "secret"
    tpm("pcrevent", "11", "-Q", data=b"something else")
    assert "secret" not in tpm("unseal", "-c", "s.ctx", "-p", "pcr:sha256:11", fails=True)


def test_our_own_words_to_the_tpm_seal_and_unseal(tpm: Tpm) -> None:
    """`boot seal` and what the initramfs does: no library, the same TPM."""

    def channel(command: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", tpm.port), timeout=60) as connection:
            connection.sendall(command)
            return connection.recv(4096)

    value = measure.extend(measure.zero("sha256"), b"this boot", "sha256")
    sealed = seal(b"a key of a disk", value.hex(), channel)
    with pytest.raises(BootError, match="another value"):
        unseal(sealed, channel)
    tpm("pcrevent", "11", "-Q", data=b"this boot")
    for _ in range(5):  # nothing stays loaded: a TPM has room for three objects
        assert unseal(sealed, channel) == b"a key of a disk"
    tpm("pcrevent", "11", "-Q", data=b"the running system")
    with pytest.raises(BootError, match="another value"):
        unseal(sealed, channel)
    for wrong in ("", "{}", sealed.replace("private", "privat"), sealed.replace("sha256", "md5")):
        with pytest.raises(BootError, match="damaged"):
            unseal(wrong, channel)
    document = json.loads(sealed)
    raw = bytearray(base64.b64decode(document["private"]))
    raw[-1] ^= 1
    foreign = json.dumps({**document, "private": base64.b64encode(raw).decode()})
    with pytest.raises(BootError, match="another TPM"):
        unseal(foreign, channel)


def test_a_signed_policy_verifies_with_the_published_key(tpm: Tpm) -> None:
    """What `.pcrsig` holds is a signature by the key of `.pcrpkey` that the TPM itself accepts."""
    key = tpm.folder / "pcr.key"
    subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
    image = uki.assemble(PARTS)
    (row,) = json.loads(sign_policies(image, key, ["sha256"]))["sha256"]
    assert row["pol"] == measure.policy(measure.predict(image)).hex()
    (tpm.folder / "pub.pem").write_bytes(public_key(key))
    (tpm.folder / "policy").write_bytes(bytes.fromhex(row["pol"]))
    (tpm.folder / "sig").write_bytes(base64.b64decode(row["sig"]))
    tpm("loadexternal", "-C", "o", "-G", "rsa", "-u", "pub.pem", "-c", "key.ctx", "-n", "key.name", "-Q")
    verify = ("verifysignature", "-c", "key.ctx", "-g", "sha256", "-f", "rsassa", "-s", "sig", "-t", "ticket")
    tpm(*verify, "-m", "policy")
    (tpm.folder / "policy").write_bytes(bytes(32))
    tpm(*verify, "-m", "policy", fails=True)
    with pytest.raises(BootError, match="openssl failed"):
        public_key(tpm.folder / "sig")


def test_a_nodes_key_is_sealed_to_this_machine_and_outlives_every_upgrade(tpm: Tpm, tmp_path: Path) -> None:
    def channel(command: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", tpm.port), timeout=60) as connection:
            connection.sendall(command)
            return connection.recv(4096)

    vault = TpmVault(channel)
    with StateDirectory.open(tmp_path / "new") as state:
        made = state.identity(vault)
        text = (state.path / "identity.key").read_text()
        assert made.seed.hex() not in text
        assert "sealed {" in text
        assert (state.path / "identity.key").stat().st_mode & 0o777 == 0o600
        tpm("pcrevent", "11", "-Q", data=b"another image")
        assert state.identity(vault).seed == made.seed
        with pytest.raises(MeshError, match="sealed by this machine's TPM"):
            state.identity()
    with StateDirectory.open(tmp_path / "old") as state:  # an open key is sealed, and stays the same
        before = state.identity()
        assert before.seed.hex() in (state.path / "identity.key").read_text()
        assert state.identity(vault).seed == before.seed
        assert before.seed.hex() not in (state.path / "identity.key").read_text()
        assert sorted(path.name for path in state.path.iterdir() if "tmp" in path.name) == []
    sealed = json.loads(text.splitlines()[1].removeprefix("sealed "))
    raw = bytearray(base64.b64decode(sealed["private"]))
    raw[-1] ^= 1
    foreign = json.dumps({**sealed, "private": base64.b64encode(raw).decode()})
    with pytest.raises(BootError, match="another TPM"):
        vault.unseal(foreign)
