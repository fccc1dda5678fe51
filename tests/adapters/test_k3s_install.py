"""Does `k3s install` take what is genuine, refuse all else, and never leave a machine without a k3s?"""

from __future__ import annotations

import base64
import datetime
import hashlib
import http.server
import ipaddress
import ssl
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st

from p2p_bootstrap.cli.k3s_verbs import log_command
from p2p_bootstrap.cli.main import main
from p2p_network.core.errors import RoleError
from p2p_roles.k3s import release as releases

VERSION = "v1.36.1+k3s1"
PROGRAM = '#!/bin/sh\necho "k3s version {version} (0123abcd)"\n'


class Mirror:
    """A folder like upstream's, served over TLS on loopback with an authority of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root / "mirror"
        self.release = releases.release(VERSION, "x86_64")
        self.folder = self.root / "v1.36.1+k3s1"
        self.folder.mkdir(parents=True)
        (self.folder / "k3s").write_text(PROGRAM.format(version=VERSION))
        (self.folder / self.release.images).write_bytes(b"images")
        self.list_checksums()
        self.ca_file = root / "ca.pem"
        self.requests: list[str] = []
        mirror = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:
                mirror.requests.append(f"{self.command} {self.path}")

        self.server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), partial(Handler, directory=str(self.root))
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(_certificate(self.ca_file))
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.server.server_address[1]}"

    def list_checksums(self) -> None:
        names = ("k3s", self.release.images)
        digests = {name: hashlib.sha256((self.folder / name).read_bytes()).hexdigest() for name in names}
        text = "".join(f"{digest}  {name}\n" for name, digest in digests.items())
        (self.folder / self.release.checksums).write_text(text)


def _certificate(ca_file: Path) -> str:
    """A key with a self-signed certificate for 127.0.0.1; the certificate alone goes to `ca_file`."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "mirror")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(True, None), critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    ca_file.write_bytes(made)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    both = ca_file.with_name("server.pem")
    both.write_bytes(private + made)
    return str(both)


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    made = Mirror(tmp_path)
    yield made
    made.server.shutdown()
    made.server.server_close()


def run(root: Path, *more: str, version: str = VERSION) -> int:
    places = ("--to", str(root / "bin/k3s"), "--images-to", str(root / "images"))
    return main(["k3s", "install", "--version", version, *places, *more])


def test_from_a_mirror_over_tls_with_images(
    mirror: Mirror, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tls = ("--mirror", mirror.url, "--ca-file", str(mirror.ca_file))
    assert run(tmp_path, *tls, "--airgap") == 0
    program = tmp_path / "bin/k3s"
    assert program.read_text() == PROGRAM.format(version=VERSION)
    assert program.stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "images" / mirror.release.images).read_bytes() == b"images"
    asked = [r for r in mirror.requests if "200" not in r]
    assert "GET /v1.36.1%2Bk3s1/sha256sum-amd64.txt" in asked
    mirror.requests.clear()
    assert run(tmp_path, *tls) == 0
    assert "already; nothing was changed" in capsys.readouterr().err
    assert not [r for r in mirror.requests if r.endswith("/k3s")]
    assert run(tmp_path, "--mirror", mirror.url) == 1, "an authority that nobody named"
    assert "certificate is not trusted" in capsys.readouterr().err


def test_what_is_not_genuine_changes_nothing(
    mirror: Mirror, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tls = ("--mirror", mirror.url, "--ca-file", str(mirror.ca_file))
    (tmp_path / "bin").mkdir()
    before = tmp_path / "bin/k3s"
    before.write_text("the old one")

    def refused(why: str, *more: str) -> None:
        assert run(tmp_path, *(more or tls)) == 1
        assert why in capsys.readouterr().err
        assert before.read_text() == "the old one"
        assert [path.name for path in before.parent.iterdir()] == ["k3s"]

    (mirror.folder / "k3s").write_text("#!/bin/sh\necho evil\n")
    refused("is not what its checksum says")
    mirror.list_checksums()
    refused("the program says that it is no k3s")
    (mirror.folder / "k3s").write_text(PROGRAM.format(version="v1.35.0+k3s1"))
    mirror.list_checksums()
    refused("says that it is v1.35.0+k3s1, not v1.36.1+k3s1")
    (mirror.folder / mirror.release.checksums).write_text("<html>not found</html>\n")
    refused("is no list of checksums")
    (mirror.folder / mirror.release.checksums).unlink()
    refused("answers 404")
    refused("plain http could be changed", "--mirror", "http://127.0.0.1:9")
    refused("is no version of k3s", *tls, "--version", "1.36")
    refused("can't be read", "--from", str(tmp_path / "nowhere/"))


def test_a_signed_list(mirror: Mirror, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    public = base64.b64encode(key.public_key().public_bytes_raw()).decode()
    text = mirror.folder / mirror.release.checksums
    signature = text.with_name(f"{text.name}.sig")
    signed = ("--mirror", mirror.url, "--ca-file", str(mirror.ca_file), "--public-key", public)
    assert run(tmp_path, *signed) == 1
    assert "sha256sum-amd64.txt.sig answers 404" in capsys.readouterr().err
    signature.write_bytes(base64.b64encode(ed25519.Ed25519PrivateKey.generate().sign(text.read_bytes())))
    assert run(tmp_path, *signed) == 1
    assert "is not signed by the key given" in capsys.readouterr().err
    signature.write_bytes(base64.b64encode(key.sign(text.read_bytes())))
    assert run(tmp_path, *signed) == 0


def test_from_a_file_or_folder_and_the_old_one_is_kept(
    mirror: Mirror, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "--from", str(mirror.folder)) == 0
    (mirror.folder / "k3s").write_text(PROGRAM.format(version=VERSION) + "# another build\n")
    mirror.list_checksums()
    assert run(tmp_path, "--from", str(mirror.folder / "k3s")) == 0
    assert "another build" in (tmp_path / "bin/k3s").read_text()
    assert "another build" not in (tmp_path / "bin/k3s.previous").read_text()
    own = mirror.folder / "k3s-of-mine"
    own.write_text(PROGRAM.format(version=VERSION) + "# third\n")
    digest = hashlib.sha256(own.read_bytes()).hexdigest()
    assert run(tmp_path, "--from", str(own), "--sha256", digest) == 0
    assert "third" in (tmp_path / "bin/k3s").read_text()
    assert run(tmp_path, "--from", str(own), "--sha256", "0" * 64) == 1
    assert "third" in (tmp_path / "bin/k3s").read_text()


def test_a_proxy_of_the_environment_is_used(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A proxy that refuses is asked first, and named in the hint."""
    seen: list[str] = []

    class Proxy(http.server.BaseHTTPRequestHandler):
        def do_CONNECT(self) -> None:
            seen.append(self.path)
            self.send_error(403)

        def log_message(self, format: str, *args: object) -> None: ...

    proxy = http.server.HTTPServer(("127.0.0.1", 0), Proxy)
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.server_address[1]}")
    monkeypatch.setenv("no_proxy", "")
    assert run(tmp_path, "--mirror", "https://mirror.example:8443") == 1
    proxy.shutdown()
    proxy.server_close()
    assert seen == ["mirror.example:8443"]
    assert "HTTPS_PROXY" in capsys.readouterr().err


def test_the_log_of_k3s(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["k3s", "logs", "--state-dir", str(tmp_path)]) == 1
    assert "k3s has no log here" in capfd.readouterr().err
    (tmp_path / "k3s.log").write_text("one\ntwo\nthree\n")
    assert main(["k3s", "logs", "-n", "2", "--state-dir", str(tmp_path)]) == 0
    assert capfd.readouterr().out == "two\nthree\n"
    unit = tmp_path / "run/systemd/system/kairos-p2p-k3s.service"
    unit.parent.mkdir(parents=True)
    unit.touch()
    journal = log_command(tmp_path, follow=True, lines=5, root=tmp_path)
    assert journal == ["journalctl", "--unit=kairos-p2p-k3s", "--output=cat", "--lines=5", "-f"]


def test_names_of_a_release() -> None:
    arm = releases.release("v1.30.2-rc1+k3s2", "armv7l")
    assert (arm.program, arm.checksums) == ("k3s-armhf", "sha256sum-arm.txt")
    assert releases.release(VERSION, "aarch64").program == "k3s-arm64"
    assert releases.release(VERSION, "aarch64").images == "k3s-airgap-images-arm64.tar.zst"
    assert releases.release(VERSION, "x86_64").folder("https://m/x/") == "https://m/x/v1.36.1%2Bk3s1"
    with pytest.raises(RoleError, match="no k3s for vax machines"):
        releases.release(VERSION, "vax")
    assert releases.said_version("k3s version v1.36.1+k3s1 (abc)\ngo version go1.26.8") == VERSION


@given(st.text(max_size=300))
def test_no_list_of_checksums_is_taken_for_one(text: str) -> None:
    with pytest.raises(RoleError):
        releases.expected_sha256(text, "k3s", "there")
