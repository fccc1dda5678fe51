"""One server: what it answers to whom, what it writes, and what it keeps. Stand-in and real k3s alike."""

from __future__ import annotations

import shutil
import signal
import socket
import ssl
import stat
import subprocess

import pytest
from k3s_hosts import FAST, Host, Hosts, eventually


@pytest.fixture
def server(hosts: Hosts) -> Host:
    host = hosts.add("alpha")
    host.configure(token="correct-horse", tls_san=["api.example"], **FAST)
    return host


def _start(host: Host) -> None:
    host.start()
    eventually(f"{host.name} is ready", host.ready, 90, log_of=host)


def test_one_server_with_sqlite(server: Host) -> None:
    """Neither cluster-init nor server: a silent private SQLite. All of it in one start, to save time."""
    _start(server)
    state = server.data / "server" / "db" / "state.db"
    assert state.exists()
    assert not (server.data / "server" / "db" / "etcd" / "member").exists()

    # who may ask what
    assert server.request("/ping").body == b"pong"
    cas = server.request("/cacerts")
    assert cas.status == 200
    assert cas.body == (server.data / "server" / "tls" / "server-ca.crt").read_bytes()
    assert server.request("/v1-k3s/config", user="node", password="correct-horse").status == 200
    assert server.request("/v1-k3s/config", user="node", password="wrong").status == 401
    assert server.request("/v1-k3s/config").status == 403
    assert server.request("/v1-k3s/server-bootstrap", user="node", password="correct-horse").status == 403
    answer = server.request("/v1-k3s/server-bootstrap", password="correct-horse")
    assert (answer.status, answer.json()["message"]) == (400, "etcd disabled")
    assert server.request("/db/info").json()["message"] == "etcd datastore disabled"
    assert server.request("/readyz").status == 401

    # files
    assert server.token.endswith("::server:correct-horse")
    assert server.token.startswith("K10")
    kubeconfig = server.etc / "k3s" / "k3s.yaml"
    assert stat.S_IMODE(kubeconfig.stat().st_mode) == 0o600
    assert "https://127.0.0.1:6443" in kubeconfig.read_text()
    assert (
        "correct-horse,server,server,k3s:server" in (server.data / "server" / "cred" / "passwd").read_text()
    )
    certificate = ssl.PEM_cert_to_DER_cert(_served_certificate(server))
    for name in (b"api.example", b"alpha", socket.inet_aton(server.address), socket.inet_aton("127.0.0.1")):
        assert name in certificate

    # a restart keeps the objects; SIGTERM ends it with status 0
    uid = server.api("/api/v1/namespaces/kube-system").json()["metadata"]["uid"]
    assert server.kill(signal.SIGTERM) == 0
    _start(server)
    assert server.api("/api/v1/namespaces/kube-system").json()["metadata"]["uid"] == uid


def _served_certificate(host: Host) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    raw = host.open_socket()
    raw.connect(("127.0.0.1", 6443))
    with context.wrap_socket(raw, server_hostname="127.0.0.1") as tls:
        der = tls.getpeercert(binary_form=True)
    assert der
    return ssl.DER_cert_to_PEM_cert(der)


def test_objects_conflicts_and_kubectl(server: Host) -> None:
    """The API as a client library sees it, on etcd (cluster-init)."""
    server.configure(cluster_init=True, node_label=["topology.kubernetes.io/region=berlin"], **FAST)
    _start(server)
    path = "/api/v1/namespaces/kube-system/configmaps"
    made = server.api(path, method="POST", body={"metadata": {"name": "plan"}, "data": {"a": "1"}})
    assert made.status == 201
    assert (
        server.api(path, method="POST", body={"metadata": {"name": "plan"}}).json()["reason"]
        == "AlreadyExists"
    )
    newer = made.json()
    newer["data"]["a"] = "2"
    assert server.api(f"{path}/plan", method="PUT", body=newer).status == 200
    stale = server.api(f"{path}/plan", method="PUT", body=newer)
    assert (stale.status, stale.json()["reason"]) == (409, "Conflict")
    assert server.api(f"{path}/plan").json()["data"] == {"a": "2"}
    assert server.api(f"{path}/plan", method="DELETE").status == 200
    assert server.api(f"{path}/plan").status == 404
    leases = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases"
    lease = {
        "metadata": {"name": "reconciler"},
        "spec": {"holderIdentity": "alpha", "leaseDurationSeconds": 15},
    }
    assert server.api(leases, method="POST", body=lease).json()["kind"] == "Lease"
    assert (server.data / "server" / "db" / "etcd" / "member" / "wal").is_dir()
    if not server.simulated:
        return
    eventually("the node is registered", lambda: server.api("/api/v1/nodes/alpha").status == 200)
    node = server.api("/api/v1/nodes/alpha").json()
    assert node["metadata"]["labels"]["topology.kubernetes.io/region"] == "berlin"
    assert node["metadata"]["labels"]["node-role.kubernetes.io/etcd"] == "true"
    assert {"type": "InternalIP", "address": server.address} in node["status"]["addresses"]
    assert "simulated" in node["status"]["nodeInfo"]["kubeletVersion"]
    shown = server.run("kubectl", "get", "nodes", "-o", "wide")
    assert "control-plane,etcd" in shown.stdout, shown.stderr
    kubectl = shutil.which("kubectl")
    if kubectl:
        real = subprocess.run(
            ["ip", "netns", "exec", server.namespace, kubectl, "get", "nodes", "-o", "wide",
             "--kubeconfig", str(server.etc / "k3s" / "k3s.yaml"),
             "--cache-dir", str(server.folder / "cache")],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert "control-plane,etcd" in real.stdout, real.stderr


def test_sd_notify_and_503_before(simulated_hosts: Hosts) -> None:
    host = simulated_hosts.add("alpha")
    host.configure(token="t", cluster_init=True, **FAST)
    path = host.folder / "notify"
    host.env = {"NOTIFY_SOCKET": str(path), "K3S_SIMULATED_DELAY_READY_S": "1"}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        sock.settimeout(20)
        host.start()
        answer = eventually("the API says that it is not ready", lambda: _starting(host))
        assert answer == "apiserver not ready"
        assert b"READY=1" in sock.recv(100)
    assert host.ready()
    assert host.process is not None
    with open(f"/proc/{host.process.pid}/status") as status:
        resident_kib = int(next(line for line in status if line.startswith("VmRSS")).split()[1])
    assert resident_kib < 40 * 1024, "many of these run on a small machine"


def _starting(host: Host) -> str:
    answer = host.api("/api/v1/nodes")
    return answer.json()["message"] if answer.status == 503 else ""


def test_seeded_ca_and_token_are_honoured(hosts: Hosts) -> None:
    """A leaf CA under a root, put there before the first start: the token is known beforehand."""
    host = hosts.add("alpha")
    expected = _seed_bundles(host)
    host.configure(token=f"K10{expected}::server:s3cret", cluster_init=True, **FAST)
    _start(host)
    assert host.token == f"K10{expected}::server:s3cret"


def _seed_bundles(host: Host) -> str:
    """CA bundles as `roles` seeds them; returns the hash that a token pins."""
    import datetime
    import hashlib

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    def certificate(
        subject: str, key: ec.EllipticCurvePrivateKey, issuer: str, signer: ec.EllipticCurvePrivateKey
    ):
        now = datetime.datetime.now(datetime.UTC)
        names = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, n)]) for n in (subject, issuer)]
        return (
            x509.CertificateBuilder()
            .subject_name(names[0])
            .issuer_name(names[1])
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=3650))
            .add_extension(x509.BasicConstraints(True, None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
            )
            .sign(signer, hashes.SHA256())
        )

    tls = host.data / "server" / "tls"
    (tls / "etcd").mkdir(parents=True)
    root_key = ec.generate_private_key(ec.SECP256R1())
    root = certificate("root", root_key, "root", root_key)
    for name in ("client-ca", "server-ca", "request-header-ca", "etcd/server-ca", "etcd/peer-ca"):
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = certificate(f"k3s-{name}", key, "root", root_key)
        pem = [c.public_bytes(serialization.Encoding.PEM) for c in (leaf, root)]
        (tls / f"{name}.crt").write_bytes(b"".join(pem))
        (tls / f"{name}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.TraditionalOpenSSL,
                serialization.NoEncryption(),
            )
        )
    return hashlib.sha256(root.public_bytes(serialization.Encoding.DER)).hexdigest()


def test_another_token_is_refused_at_a_restart(server: Host) -> None:
    server.configure(token="correct-horse", cluster_init=True, **FAST)
    _start(server)
    server.kill()
    server.configure(token="another", cluster_init=True, **FAST)
    server.start()
    assert server.wait(60) == 1
    assert "bootstrap data already found and encrypted with different token" in server.log


def test_what_the_command_line_refuses(hosts: Hosts) -> None:
    host = hosts.add("alpha")
    version = host.run("--version")
    assert version.stdout.startswith("k3s version v1.")
    assert ("simulated" in version.stdout) == host.simulated
    refused = host.run("server", "--bogus")
    assert refused.returncode == 1
    assert "flag provided but not defined: -bogus" in refused.stdout + refused.stderr
    refused = host.run("server", "--cluster-init=maybe")
    assert 'invalid boolean value "maybe" for -cluster-init: parse error' in refused.stdout + refused.stderr
    refused = host.run("agent", "--server", "https://10.98.0.9:6443")
    assert "--token is required" in refused.stderr
    host.configure(cluster_init=True)
    refused = host.run("agent", "--server", "https://10.98.0.9:6443", "--token", "x")
    assert "flag provided but not defined: -cluster-init" in refused.stdout + refused.stderr
