"""Does the helper read a node list only from the right server, as the right client? Over real TLS."""

from __future__ import annotations

import base64
import datetime
import ipaddress
import json
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from p2p_simulations.lab import kube_nodes

NODES = {"kind": "NodeList", "items": [{"metadata": {"name": "n1"}}]}


class Authority:
    """A CA with one server and one client certificate."""

    def __init__(self, name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.pem = self._sign(self._name, self._key.public_key(), authority=True)

    def issue(self, name: str) -> tuple[bytes, bytes]:
        """(certificate, key), valid for 127.0.0.1."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return self._sign(subject, key.public_key(), authority=False), private

    def _sign(self, subject: x509.Name, key: ec.EllipticCurvePublicKey, *, authority: bool) -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(names, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status, body = (200, NODES) if self.path == "/api/v1/nodes" else (404, {"kind": "Status"})
        if getattr(self.server, "forbidden", False):
            status, body = 403, {"kind": "Status"}
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format: str, *args: Any) -> None:
        return None


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority("cluster")


@pytest.fixture
def server(authority: Authority, tmp_path: Path) -> Iterator[ThreadingHTTPServer]:
    """A Kubernetes API of one path that wants a client certificate."""
    (tmp_path / "server.pem").write_bytes(b"".join(authority.issue("server")))
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem")
    context.load_verify_locations(tmp_path / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.socket = context.wrap_socket(httpd.socket, server_side=True)
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
    thread.start()
    yield httpd
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def kubeconfig(authority: Authority, client: Authority, url: str) -> str:
    certificate, key = client.issue("admin")
    data = {"client-certificate-data": certificate, "client-key-data": key}
    return yaml.safe_dump(
        {
            "current-context": "default",
            "contexts": [{"name": "default", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [
                {
                    "name": "c",
                    "cluster": {
                        "server": url,
                        "certificate-authority-data": base64.b64encode(authority.pem).decode(),
                    },
                }
            ],
            "users": [{"name": "u", "user": {k: base64.b64encode(v).decode() for k, v in data.items()}}],
        }
    )


def ask(text: str) -> subprocess.CompletedProcess[str]:
    """As the demo does, only not inside a node."""
    argv = [sys.executable, "-I", kube_nodes.__file__]
    return subprocess.run(argv, input=text, capture_output=True, text=True, timeout=30, check=False)


def url_of(server: ThreadingHTTPServer) -> str:
    return f"https://127.0.0.1:{server.server_address[1]}"


def test_the_list_is_read_with_the_client_certificate(
    server: ThreadingHTTPServer, authority: Authority
) -> None:
    done = ask(kubeconfig(authority, authority, url_of(server)))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"url": url_of(server), "nodes": NODES}


def test_a_server_of_another_authority_is_not_believed(
    server: ThreadingHTTPServer, authority: Authority
) -> None:
    done = ask(kubeconfig(Authority("other"), authority, url_of(server)))
    assert (done.returncode, done.stdout) == (1, "")
    assert "CERTIFICATE_VERIFY_FAILED" in done.stderr


def test_a_refusal_is_told(server: ThreadingHTTPServer, authority: Authority) -> None:
    server.forbidden = True  # type: ignore[attr-defined]
    done = ask(kubeconfig(authority, authority, url_of(server)))
    assert done.returncode == 1
    assert "answered 403" in done.stderr


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "current-context: x\ncontexts: []\nclusters: []\nusers: []\n"]
)
def test_what_is_no_kubeconfig_is_one_sentence(text: str) -> None:
    done = ask(text)
    assert (done.returncode, done.stdout) == (1, "")
    assert "Traceback" not in done.stderr
    assert done.stderr


def test_a_server_without_tls_is_refused(authority: Authority) -> None:
    done = ask(kubeconfig(authority, authority, "http://127.0.0.1:1"))
    assert "not an https address" in done.stderr
