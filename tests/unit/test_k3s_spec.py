"""Is k3s started with exactly what it needs, and with what the user wants on top?"""

from __future__ import annotations

import datetime
import hashlib
import ssl
from dataclasses import replace

import pytest
import yaml
from cryptography import x509
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2p_network.core.errors import RoleError
from p2p_roles.k3s import causes, pki
from p2p_roles.k3s.spec import (
    K3sOptions,
    K3sPaths,
    NodeFacts,
    SectionOptions,
    build,
    cluster_wide_flags,
    node_name,
    render_yaml,
)
from p2p_roles.rules import Authorization
from p2p_roles.timing import SLOW

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
SECRETS = pki.make(1, NOW)
FACTS = NodeFacts("n1", "10.144.0.7", "kp2p0", "west", "west a", ("n1.kairos",))


def spec(kind, options: K3sOptions = K3sOptions(), **more):  # noqa: B008
    arguments = {
        "facts": FACTS,
        "options": options,
        "datastore": "etcd",
        "server_token": SECRETS.server_token,
        "agent_token": SECRETS.agent_token,
    }
    return build(kind, **(arguments | more))


def config(made) -> dict:
    return yaml.safe_load(made.config)


def test_the_init_server() -> None:
    made = spec("server-init", ca_files=SECRETS.files)
    assert made.argv == ("server",)
    assert made.files[0].path == "/etc/rancher/k3s/config.yaml.d/90-kairos-p2p.yaml"
    assert config(made) == {
        "cluster-init": True,
        "token": SECRETS.server_token,
        "agent-token": SECRETS.agent_token,
        "node-ip": "10.144.0.7",
        "node-name": "n1",
        "flannel-iface": "kp2p0",
        "tls-san+": ["10.144.0.7", "n1", "n1.kairos"],
        "node-label+": ["topology.kubernetes.io/region=west", "topology.kubernetes.io/zone=west-a"],
    }
    seeds = {f.path.removeprefix("/var/lib/rancher/k3s/server/tls/") for f in made.files if f.seed}
    assert seeds == {
        f"{name}.{suffix}"
        for name in ("client-ca", "server-ca", "request-header-ca", "etcd/server-ca", "etcd/peer-ca")
        for suffix in ("crt", "key")
    } | {"service.key"}
    assert SECRETS.server_token not in repr(made), "a spec in a log shows no token"


def test_cluster_init_is_in_no_other_kind() -> None:
    join = spec("server-join", join_ip="10.144.0.9")
    assert config(join)["server"] == "https://10.144.0.9:6443"
    later = spec("server")
    agent = spec("agent", join_ip="fd00::1", server_token="")
    for made in (join, later, agent):
        assert "cluster-init" not in config(made)
        assert not any(f.seed for f in made.files)
    assert later.requires == "/var/lib/rancher/k3s/server/db/etcd/member/wal"
    assert "server" not in config(later)
    assert spec("server", join_ip="10.144.0.9").requires == ""
    assert config(agent) == {
        "server": "https://[fd00::1]:6443",
        "token": SECRETS.agent_token,
        "node-ip": "10.144.0.7",
        "node-name": "n1",
        "flannel-iface": "kp2p0",
        "node-label+": ["topology.kubernetes.io/region=west", "topology.kubernetes.io/zone=west-a"],
    }


def test_certified_times_are_on_every_server_whatever_the_user_replaces() -> None:
    own = K3sOptions(server=SectionOptions(args=("--debug",), replace_args=True))
    for kind in ("server-init", "server-join", "server"):
        said = config(spec(kind, own, join_ip="10.144.0.1", timing=SLOW))
        assert said["etcd-arg+"] == ["heartbeat-interval=1000", "election-timeout=10000"]
        assert "leader-elect-renew-deadline=40s" in said["kube-scheduler-arg+"]
    assert not any("-arg" in key for key in config(spec("agent", join_ip="10.144.0.1", timing=SLOW)))
    assert not any("-arg" in key for key in config(spec("server-init")))


def test_other_datastores() -> None:
    options = K3sOptions(external_db="mysql://user@db")
    made = config(spec("server-init", options, datastore="external"))
    assert made["datastore-endpoint"] == "mysql://user@db"
    assert "cluster-init" not in made
    assert "server" not in config(spec("server-join", options, datastore="external", join_ip="10.144.0.9"))
    assert "cluster-init" not in config(spec("server-init", datastore="sqlite"))
    assert spec("server", datastore="sqlite").requires.endswith("server/db/state.db")
    with pytest.raises(RoleError, match="external database"):
        spec("server-init", datastore="external")


def test_labels_and_taints_of_the_declaration_go_to_k3s_in_both_roles() -> None:
    own = replace(FACTS, labels=("example.com/disk=ssd",), taints=("gpu=yes:NoSchedule",))
    for kind in ("server-init", "server", "agent"):
        said = config(spec(kind, facts=own, join_ip="10.144.0.1"))
        assert "example.com/disk=ssd" in said["node-label+"]
        assert said["node-taint+"] == ["gpu=yes:NoSchedule"]
    assert "node-taint+" not in config(spec("agent", join_ip="10.144.0.1"))


def test_what_the_user_wants_is_honoured() -> None:
    server = SectionOptions(("--disable=traefik", "-v", "2"), {"HTTP_PROXY": "x"}, embedded_registry=True)
    made = spec("server-init", K3sOptions(server=server))
    assert made.argv == ("server", "--disable=traefik", "-v", "2")
    assert made.env == {"HTTP_PROXY": "x"}
    assert not made.bare_env
    assert config(made)["embedded-registry"] is True
    assert [f.path for f in made.files if f.keep] == ["/etc/rancher/k3s/registries.yaml"]
    bare = SectionOptions(("--x",), replace_args=True, replace_env=True)
    replaced = spec("server-init", K3sOptions(server=bare))
    assert set(config(replaced)) == {"cluster-init", "token", "agent-token", "node-ip"}
    assert replaced.bare_env
    tainted = SectionOptions(("--node-taint=a=b:NoSchedule",))
    agent = spec("agent", K3sOptions(agent=tainted), join_ip="1.2.3.4")
    assert agent.argv == ("agent", "--node-taint=a=b:NoSchedule")


@pytest.mark.parametrize(
    "args",
    [("--cluster-init",), ("--token=x",), ("-t", "x"), ("--server", "https://x"), ("-s=x",), ("--config=x",),
     ("--datastore-endpoint=x",), ("--cluster-reset",), ("--token-file", "x"), ("--agent-token=x",)],
)  # fmt: skip
def test_the_genesis_is_not_taken_over_by_arguments(args: tuple[str, ...]) -> None:
    with pytest.raises(RoleError, match="cannot be set by hand") as caught:
        spec("server-init", K3sOptions(server=SectionOptions(args)))
    assert caught.value.hint
    assert "x" not in caught.value.message.split(":")[1].replace("kairos", ""), "its value is not quoted"


def test_nor_by_the_environment() -> None:
    with pytest.raises(RoleError, match=r"k3s\.env\.K3S_URL"):
        spec("server-init", K3sOptions(server=SectionOptions(env={"K3S_URL": "https://x"})))


def test_paths() -> None:
    made = spec("server-init", paths=K3sPaths("/lab/etc", "/lab/data"), ca_files=SECRETS.files)
    assert made.files[0].path == "/lab/etc/config.yaml.d/90-kairos-p2p.yaml"
    assert made.env["K3S_CONFIG_FILE"] == "/lab/etc/config.yaml"
    assert config(made)["data-dir"] == "/lab/data"
    assert config(made)["write-kubeconfig"] == "/lab/etc/k3s.yaml"
    moved = K3sOptions(server=SectionOptions(("--data-dir", "/big/disk")))
    own = spec("server-init", moved, ca_files=SECRETS.files)
    assert own.paths.data_dir == "/big/disk"
    assert own.files[1].path.startswith("/big/disk/server/tls/")
    with pytest.raises(RoleError, match="absolute"):
        spec("server-init", K3sOptions(server=SectionOptions(("--data-dir=x",))))


@given(
    st.dictionaries(
        st.text("abc-", min_size=1).filter(lambda k: k[0] != "-"),
        st.one_of(st.booleans(), st.text(max_size=20), st.lists(st.text(max_size=9), min_size=1)),
    )
)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine proves nothing
def test_rendered_yaml_reads_back(value: dict) -> None:
    assert (yaml.safe_load(render_yaml(value)) or {}) == value


def test_node_names() -> None:
    assert node_name("Edge_Box.local.") == "edge-box.local"
    assert node_name("box", "A1b2") == "box-a1b2"
    assert node_name("---") == "node"


def test_flags_that_all_servers_share() -> None:
    args = ("--disable", "traefik", "--cluster-cidr=10.1.0.0/16", "--disable-agent", "--node-label=a=b")
    assert cluster_wide_flags(K3sOptions(server=SectionOptions(args))) == (
        "cluster-cidr=10.1.0.0/16",
        "disable-agent=true",
        "disable=traefik",
    )


# ---------------------------------------------------------------- CA and tokens


def test_the_ca_bundles_hang_together_and_the_token_pins_them() -> None:
    files = dict(SECRETS.files)
    for name, _ in pki.CA_NAMES:
        leaf, root = x509.load_pem_x509_certificates(files[f"{name}.crt"])
        leaf.verify_directly_issued_by(root)
        root.verify_directly_issued_by(root)
        assert pki.bundle_hash(files[f"{name}.crt"]) == SECRETS.ca_hash
        assert leaf.not_valid_before_utc < NOW < leaf.not_valid_after_utc
    ssl.create_default_context(cadata=files["server-ca.crt"].decode())
    assert SECRETS.server_token.startswith(f"K10{SECRETS.ca_hash}::server:")
    assert pki.token_ca_hash(SECRETS.agent_token) == SECRETS.ca_hash
    assert pki.make(1, NOW).ca_hash != SECRETS.ca_hash, "every epoch has a CA of its own"
    assert pki.decode_cluster(pki.encode(SECRETS)) == SECRETS


def test_agents_get_only_the_agents_token() -> None:
    agent = pki.hand_out(Authorization("agent", ""), SECRETS).secret
    assert agent is not None
    assert agent.server_token == ""
    assert agent.ca_hash == SECRETS.ca_hash
    server = pki.hand_out(Authorization("server", ""), SECRETS).secret
    assert server is not None
    assert server.server_token == SECRETS.server_token
    assert pki.hand_out(Authorization(None, "no"), SECRETS).reason == "no"
    assert pki.hand_out(Authorization("agent", ""), agent).secret is None
    assert pki.hand_out(Authorization("agent", ""), server).secret == agent
    assert pki.decode_join(pki.encode(server)) == server
    for secret in (SECRETS, server, agent):
        assert "::" not in repr(secret), "no token in a log"


def test_bad_join_secrets() -> None:
    other = pki.make(2, NOW)
    for bad in (
        pki.JoinSecret("server", other.server_token, SECRETS.agent_token),
        pki.JoinSecret("agent", SECRETS.server_token, SECRETS.agent_token),
        pki.JoinSecret("agent", "", "secret"),
        pki.JoinSecret("server", "", SECRETS.agent_token),
    ):
        with pytest.raises(ValueError, match=r".") as caught:
            pki.decode_join(pki.encode(bad))
        assert "K10" not in str(caught.value).replace("K10 form", "")


# ---------------------------------------------------------------- exit causes


def test_k3s_s_own_words_are_quoted_without_tokens() -> None:
    line = f'time="x" level=fatal msg="token CA hash does not match: {SECRETS.server_token}"'
    found = causes.explain(f"noise\n{line}\n", 1)
    assert "K10..." in found.error
    assert SECRETS.server_token not in found.error
    unknown = causes.explain('level=info msg="a"\nlevel=fatal msg="it \\"broke\\""\nlast\n', 1)
    assert unknown.error == "k3s exited with code 1: \"it 'broke'\""
    assert causes.explain("", -9).error == "k3s was ended by signal 9, and said nothing"
    assert causes.known_cause("dial tcp: connection refused", running=True) is None
    assert causes.known_cause("dial tcp: connection refused") is not None


@given(st.text(max_size=500), st.one_of(st.none(), st.integers(-64, 255)))
def test_any_log_has_an_explanation(text: str, code: int | None) -> None:
    found = causes.explain(text, code)
    assert found.error
    assert found.hint
    assert "\n" not in found.error


def test_the_hash_of_a_ca_that_k3s_made_by_itself_is_that_of_its_file() -> None:
    """k3s gives it the serial 0, which libraries warn of and will refuse; so it is not parsed."""
    one = b"-----BEGIN CERTIFICATE-----\nAAECAwQF\n-----END CERTIFICATE-----\n"
    assert pki.bundle_hash(one) == hashlib.sha256(one).hexdigest()
    for broken in (b"", b"garbage", one.replace(b"AAEC", b"A*EC"), one + one):
        with pytest.raises(ValueError, match=r"base64|PEM|asn1"):
            pki.bundle_hash(broken)
