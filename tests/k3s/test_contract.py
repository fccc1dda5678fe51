"""What a real k3s was seen to do, asserted of it and of the stand-in alike.

One cluster of three is led through its life: who is answered what, which tokens open which door, snapshots, a
member that is removed and comes back, the loss of the quorum, the reset of the cluster. (simulations'
k3s/README.md lists what the first run of this suite on a real k3s corrected.)
"""

from __future__ import annotations

import http.client
import signal
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from k3s_hosts import CONTROL_PLANE, FAST, Host, Hosts, eventually

from p2p_roles.k3s import causes

FORBIDDEN, UNAUTHORIZED = (403, "forbidden"), (401, "not authorized")
CONFIGMAPS = "/api/v1/namespaces/default/configmaps"
KEPT = {"metadata": {"name": "kept"}}


def patience_s(host: Host) -> float:
    return 90 if host.simulated else 240


@pytest.fixture(scope="module")
def cluster(shared_hosts: Hosts) -> list[Host]:
    """Three servers; the second and the third join at the same moment."""
    first, *others = [shared_hosts.add(name) for name in ("alpha", "beta", "gamma")]
    for host in (first, *others):
        host.env = {"K3S_SIMULATED_PROMOTION_TICK_S": "4"}  # else nobody would ever have to wait
    first.configure(token="server-pw", agent_token="agent-pw", cluster_init=True, **FAST)
    first.start()
    eventually("alpha is ready", first.ready, patience_s(first), log_of=first)
    for host in others:
        _joining(host, first)
        host.start()
    for host in others:
        eventually(f"{host.name} is ready", host.ready, patience_s(host), log_of=host)
    return [first, *others]


def _joining(host: Host, first: Host) -> None:
    token = first.token
    host.configure(token=token, agent_token="agent-pw", server=first.url, **FAST)


def said(host: Host, path: str, **how: str) -> tuple[int, str]:
    answer = host.request(path, **how)
    return answer.status, answer.json()["message"]


def test_learners_come_in_one_at_a_time(cluster: list[Host]) -> None:
    waiting = "Waiting for other members to finish joining etcd cluster: etcdserver: too many learner members"
    assert [host.name for host in cluster[1:] if waiting in host.log], "one of the two had to wait"
    assert sorted(cluster[0].members()) == ["alpha", "beta", "gamma"]
    assert not any(m.get("isLearner") for m in cluster[0].members().values())


def test_who_is_answered_what(cluster: list[Host]) -> None:
    alpha = cluster[0]
    node, server = {"user": "node", "password": "agent-pw"}, {"user": "server", "password": "server-pw"}
    assert alpha.request("/ping").body == b"pong"
    assert alpha.request("/cacerts").body == (alpha.data / "server/tls/server-ca.crt").read_bytes()
    assert said(alpha, "/v1-k3s/config") == FORBIDDEN
    assert alpha.request("/v1-k3s/config", **node).json()["ClusterDomain"] == "cluster.local"
    assert said(alpha, "/v1-k3s/config", **server) == FORBIDDEN, "the server's password is no agent's"
    assert said(alpha, "/v1-k3s/config", user="node", password="server-pw") == UNAUTHORIZED
    assert said(alpha, "/v1-k3s/server-bootstrap", **node) == FORBIDDEN
    assert set(alpha.request("/v1-k3s/server-bootstrap", **server).json()) >= {"ClientCA", "ETCDPeerCA"}
    assert sorted(alpha.request("/v1-k3s/apiservers", **node).json()) == [
        f"10.98.0.{i}:6443" for i in (1, 2, 3)
    ]
    assert alpha.request("/v1-k3s/readyz", **node).body == b"ok"
    assert alpha.request("/v1-k3s/client-ca.crt", **node).body.startswith(b"-----BEGIN CERTIFICATE")
    assert alpha.request("/db/info").status == 200, "from this machine without a password"
    for path in ("/readyz", "/version", "/api", "/nothing"):
        assert said(alpha, path) == (401, "Unauthorized")


def test_a_node_keeps_its_first_password(cluster: list[Host]) -> None:
    alpha = cluster[0]
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "w1")])
    csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    body = csr.public_bytes(serialization.Encoding.DER)

    def ask(headers: dict[str, str]) -> tuple[int, str]:
        answer = alpha.request(
            "/v1-k3s/serving-kubelet.crt", method="POST", raw=body, headers=headers,
            user="node", password="agent-pw",
        )  # fmt: skip
        return answer.status, answer.body.decode() if answer.status == 200 else answer.json()["message"]

    assert ask({}) == (400, "node name not set")
    assert ask({"k3s-Node-Name": "w1"}) == (400, "node password not set")
    status, chain = ask({"k3s-Node-Name": "w1", "k3s-Node-Password": "first"})
    assert (status, "BEGIN CERTIFICATE" in chain) == (200, True)
    wrong = "unable to verify password for node w1: hash does not match"
    assert ask({"k3s-Node-Name": "w1", "k3s-Node-Password": "second"}) == (403, wrong)
    secrets = alpha.api("/api/v1/namespaces/kube-system/secrets").json()["items"]
    assert "w1.node-password.k3s" in [s["metadata"]["name"] for s in secrets]


@pytest.mark.parametrize("kind", ["agent", "guess"])
def test_which_token_lets_no_server_in(cluster: list[Host], shared_hosts: Hosts, kind: str) -> None:
    stranger = shared_hosts.add(f"with-{kind}")
    pinned = cluster[0].token.partition("::")[0]
    token = f"{pinned}::node:agent-pw" if kind == "agent" else "a-guess"
    stranger.configure(token=token, server=cluster[0].url)
    stranger.start()
    assert stranger.wait(60) == 1
    assert "preparing server: failed to bootstrap cluster data: not authorized" in stranger.log
    assert "does not accept" in causes.explain(stranger.log, 1).error


def test_a_server_without_token_makes_a_cluster_of_its_own(cluster: list[Host], shared_hosts: Hosts) -> None:
    """It is told whom to join, and silently does not: why our driver never starts one without a token."""
    lonely = shared_hosts.add("lonely")
    lonely.configure(server=cluster[0].url, **FAST)
    lonely.start()
    eventually("it is ready", lonely.ready, patience_s(lonely), log_of=lonely)
    assert (lonely.data / "server/db/state.db").exists()
    assert lonely.request("/cacerts").body != cluster[0].request("/cacerts").body
    lonely.kill()


def test_snapshots(cluster: list[Host]) -> None:
    beta = cluster[1]
    saved = beta.run("etcd-snapshot", "save", "--name", "before", timeout_s=60)
    assert (saved.returncode, saved.stdout) == (0, "")
    (file,) = (beta.data / "server/db/snapshots").iterdir()
    assert file.name.startswith("before-beta-")
    assert f"Snapshot {file.name} saved." in saved.stderr
    listed = beta.run("etcd-snapshot", "ls", timeout_s=60).stdout.splitlines()
    assert listed[0].split() == ["Name", "Location", "Size", "Created"]
    inside = f"file:///var/lib/rancher/k3s/server/db/snapshots/{file.name}"
    assert listed[1].split()[:3] == [file.name, inside, str(file.stat().st_size)]
    missing = beta.run("etcd-snapshot", "delete", "nope", timeout_s=60)
    assert (missing.returncode, "Snapshot nope not found." in missing.stderr) == (0, True)


def _register(host: Host, via: Host) -> None:
    """A Node for a server: its kubelet's, or where none runs one made by hand, as k3s would annotate it."""
    path = f"/api/v1/nodes/{host.name}"
    if via.simulated:
        eventually(f"{host.name} is registered", lambda: via.api(path).status == 200)
        return
    metadata = {
        "name": host.name,
        "labels": {"node-role.kubernetes.io/etcd": "true"},
        "annotations": {
            "etcd.k3s.cattle.io/node-name": via.members()[host.name]["name"],
            "etcd.k3s.cattle.io/node-address": host.address,
        },
    }
    assert via.api("/api/v1/nodes", method="POST", body={"metadata": metadata}).status == 201
    eventually("k3s has seen it", lambda: via.api(path).json()["metadata"].get("finalizers"), 60)


def test_a_life(cluster: list[Host]) -> None:
    """Removed, back again, the quorum lost, the cluster reset: in one story, to save time."""
    alpha, beta, gamma = cluster
    eventually("a write", lambda: alpha.api(CONFIGMAPS, method="POST", body=KEPT).status == 201)
    token = alpha.token

    # who deletes a server's Node removes its etcd member
    _register(gamma, alpha)
    assert alpha.api("/api/v1/nodes/gamma", method="DELETE").status == 200
    eventually("its member is gone", lambda: sorted(alpha.members()) == ["alpha", "beta"], 60)
    eventually("its Node is gone", lambda: alpha.api("/api/v1/nodes/gamma").status == 404, 60)
    tombstone = gamma.data / "server/db/etcd/tombstone"
    eventually("gamma knows", tombstone.exists, 60, log_of=gamma)
    eventually("and says so", lambda: "please restart k3s to rejoin the cluster" in gamma.log, 30)
    eventually("it is not ready", lambda: not _ready(gamma), 60)
    gamma.kill(signal.SIGTERM)
    gamma.configure(token=token, agent_token="agent-pw", cluster_init=True, **FAST)
    refused = gamma.run("server", *CONTROL_PLANE, timeout_s=60)
    assert refused.returncode == 1
    assert "tombstone file has been detected but --server is empty" in refused.stderr
    _joining(gamma, alpha)
    gamma.start()
    eventually("gamma is back", gamma.ready, patience_s(gamma), log_of=gamma)
    assert (
        "tombstone file has been detected, removing ${datadir}/server/db to rejoin the cluster" in gamma.log
    )
    eventually("it has what was written", lambda: gamma.api(f"{CONFIGMAPS}/kept").status == 200)

    # quorum lost: alive, but not ready, and it says so
    assert beta.kill(signal.SIGTERM) == 0
    gamma.kill()
    eventually("one of three is not ready", lambda: not _ready(alpha), 60)
    alpha.kill()
    alpha.start()
    eventually("it listens", lambda: alpha.request("/ping").status == 200, 60, log_of=alpha)
    node = {"user": "node", "password": "agent-pw"}
    eventually("its agents wait", lambda: said(alpha, "/v1-k3s/readyz", **node)[0] == 503, 60)
    assert said(alpha, "/v1-k3s/readyz", **node)[1] == "runtime core not ready"
    assert alpha.request("/v1-k3s/config", **node).status == 200
    eventually("no members are told", lambda: said(alpha, "/db/info")[0] == 500, 60)
    assert "failed to get etcd MemberList" in said(alpha, "/db/info")[1]
    assert said(alpha, "/api/v1/nodes") == (503, "apiserver not ready")
    assert alpha.process is not None
    assert alpha.process.poll() is None
    alpha.kill()

    # the reset: only without `server`, and only once
    with_url = alpha.run("server", "--cluster-reset", "--server", beta.url, *CONTROL_PLANE, timeout_s=60)
    assert with_url.returncode == 1
    assert "cannot perform cluster-reset while server URL is set" in with_url.stderr
    reset = alpha.run("server", "--cluster-reset", *CONTROL_PLANE, timeout_s=90)
    assert reset.returncode == 0, reset.stderr[-2000:]
    assert "Managed etcd cluster membership has been reset, restart without --cluster-reset" in reset.stderr
    assert (alpha.data / "server/db/reset-flag").exists()
    again = alpha.run("server", "--cluster-reset", *CONTROL_PLANE, timeout_s=60)
    assert again.returncode == 1
    assert "Managed etcd cluster membership was previously reset" in again.stderr
    alpha.start()
    eventually("alpha alone is a cluster", alpha.ready, patience_s(alpha), log_of=alpha)
    assert sorted(alpha.members()) == ["alpha"]
    assert alpha.api(f"{CONFIGMAPS}/kept").status == 200

    # an old member is no member any more; with its database out of the way it joins
    beta.start()
    eventually("beta listens", lambda: beta.request("/ping").status == 200, 60, log_of=beta)
    assert sorted(alpha.members()) == ["alpha"]
    assert not _ready(beta)
    beta.kill()
    subprocess.run(["rm", "-r", str(beta.data / "server/db/etcd")], check=True)
    beta.start()
    eventually("beta is back", beta.ready, patience_s(beta), log_of=beta)
    assert sorted(alpha.members()) == ["alpha", "beta"]


def _ready(host: Host) -> bool:
    try:
        return host.ready()
    except (OSError, http.client.HTTPException):
        return False


def test_restore_from_a_snapshot(hosts: Hosts) -> None:
    host = hosts.add("alpha")
    host.configure(token="t", cluster_init=True, **FAST)
    host.start()
    eventually("it is ready", host.ready, patience_s(host), log_of=host)
    assert host.api(CONFIGMAPS, method="POST", body=KEPT).status == 201
    assert host.run("etcd-snapshot", "save", "--name", "s", timeout_s=60).returncode == 0
    (file,) = (host.data / "server/db/snapshots").iterdir()
    assert host.api(f"{CONFIGMAPS}/kept", method="DELETE").status == 200
    host.kill(signal.SIGTERM)
    inside = f"/var/lib/rancher/k3s/server/db/snapshots/{file.name}"
    done = host.run(
        "server", "--cluster-reset", f"--cluster-reset-restore-path={inside}", *CONTROL_PLANE, timeout_s=90
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert any(path.name.startswith("etcd-old-") for path in (host.data / "server/db").iterdir())
    host.start()
    eventually("it is ready again", host.ready, patience_s(host), log_of=host)
    assert host.api(f"{CONFIGMAPS}/kept").status == 200


def test_our_causes_are_k3ss_own_texts(hosts: Hosts) -> None:
    """Every text that the table looks for is in the real binary (what it puts together, in parts)."""
    if hosts.binary[-1] == "p2p_simulations.k3s":
        pytest.skip("only a real k3s can show it")
    program = Path(hosts.binary[0]).read_bytes().lower()
    parts = [part for entry in causes.TABLE for part in entry.pattern.split(": ")]
    assert [part for part in parts if part.encode() not in program] == []
