"""Three servers and an agent: what they survive, and what they refuse. Stand-in and real k3s alike.

One cluster serves the tests of what does not change it; each test that breaks something has its own.
"""

from __future__ import annotations

import signal

import pytest
from k3s_hosts import FAST, Host, Hosts, eventually

CONFIGMAPS = "/api/v1/namespaces/default/configmaps"


def form(hosts: Hosts, *names: str, agent: str = "") -> list[Host]:
    """Servers (the first initializes) and, last, an agent."""
    made = [hosts.add(name) for name in names]
    first, *others = made
    first.configure(token="shared", cluster_init=True, **FAST)
    first.start()
    patience_s = 90 if first.simulated else 240
    eventually(f"{first.name} is ready", first.ready, patience_s)
    token = first.token
    for host in others:
        host.configure(token=token, server=first.url, **FAST)
        host.start()
    if agent:
        host = hosts.add(agent)
        host.configure(token=token, server=first.url, **{"kubelet-arg": FAST["kubelet-arg"]})
        host.start("agent")
        made.append(host)
    for host in others:
        eventually(f"{host.name} is ready", host.ready, patience_s, log_of=host)
    return made


def put(host: Host, name: str) -> bool:
    """Did the cluster acknowledge it? Without a quorum a real k3s does not answer at all."""
    try:
        return host.api(CONFIGMAPS, method="POST", body={"metadata": {"name": name}}).status == 201
    except TimeoutError:
        return False


def has(host: Host, name: str) -> bool:
    return host.api(f"{CONFIGMAPS}/{name}").status == 200


def lacks(host: Host, name: str) -> bool:
    return host.api(f"{CONFIGMAPS}/{name}").status == 404


@pytest.fixture(scope="module")
def cluster(shared_hosts: Hosts) -> list[Host]:
    agent = "delta" if shared_hosts.binary[-1] == "p2p_simulations.k3s" else ""
    return form(shared_hosts, "alpha", "beta", "gamma", agent=agent)


def test_all_are_voters_of_one_cluster(cluster: list[Host]) -> None:
    alpha, beta, gamma = cluster[:3]
    eventually("three voters", lambda: sum(not m.get("isLearner") for m in alpha.members().values()) == 3)
    members = alpha.members()
    assert members["beta"]["peerURLs"] == [f"https://{beta.address}:2380"]
    assert beta.request("/cacerts").body == alpha.request("/cacerts").body
    assert beta.token == alpha.token
    eventually("alpha takes a write", lambda: put(alpha, "written-at-alpha"))
    eventually("gamma has it", lambda: has(gamma, "written-at-alpha"))
    uids = {h.api("/api/v1/namespaces/kube-system").json()["metadata"]["uid"] for h in (alpha, beta, gamma)}
    assert len(uids) == 1
    if alpha.simulated:
        eventually("all nodes are ready", lambda: list(alpha.nodes().values()) == ["True"] * 4)


def test_a_token_of_another_cluster_is_refused(cluster: list[Host], shared_hosts: Hosts) -> None:
    stranger = shared_hosts.add("stranger")
    stranger.configure(token=f"K10{'0' * 64}::server:shared", server=cluster[0].url)
    stranger.start()
    assert stranger.wait() == 1
    assert "token CA hash does not match the Cluster CA certificate hash" in stranger.log


def test_a_wrong_password_is_refused(cluster: list[Host], shared_hosts: Hosts) -> None:
    stranger = shared_hosts.add("guesser")
    stranger.configure(
        token=cluster[0].token.replace("::server:shared", "::server:guess"), server=cluster[0].url
    )
    stranger.start()
    assert stranger.wait() == 1
    assert "failed to bootstrap cluster data: not authorized" in stranger.log


def test_servers_must_agree_on_what_is_critical(cluster: list[Host], shared_hosts: Hosts) -> None:
    other = shared_hosts.add("other")
    different = {"cluster_cidr": "10.77.0.0/16", "cluster_domain": "other.local"}
    other.configure(token=cluster[0].token, server=cluster[0].url, **different)
    other.start()
    assert other.wait(60) == 1
    assert "critical configuration mismatched: ClusterIPRanges.slice[0].IP" in other.log
    assert "critical configuration mismatched: cluster-domain" in other.log
    assert "critical configuration value mismatch between servers" in other.log


def test_a_second_server_of_a_name_is_refused(cluster: list[Host], shared_hosts: Hosts) -> None:
    """k3s asks itself to shut down, and ends with status 0."""
    twin = shared_hosts.add("twin")
    twin.configure(token=cluster[0].token, server=cluster[0].url)
    twin.start("server", "--node-name", "beta")
    assert twin.wait(60) == 0
    assert "duplicate node name found, please use a unique name for this node" in twin.log


def test_a_second_agent_of_a_name_is_refused(cluster: list[Host], shared_hosts: Hosts) -> None:
    """It keeps asking: the node's password is not the one of the first."""
    if not cluster[0].simulated:
        pytest.skip("a real agent needs containers")
    eventually("the first agent is there", lambda: "delta" in cluster[0].nodes())
    impostor = shared_hosts.add("impostor")
    impostor.configure(token=cluster[0].token, server=cluster[0].url)
    impostor.start("agent", "--node-name", "delta")
    eventually(
        "it is refused", lambda: "Node password rejected, duplicate hostname or contents of" in impostor.log
    )
    assert impostor.process is not None
    assert impostor.process.poll() is None
    impostor.kill()


def test_an_agent_learns_all_servers_and_goes_to_another(simulated_hosts: Hosts) -> None:
    alpha, beta, gamma, delta = form(simulated_hosts, "alpha", "beta", "gamma", agent="delta")
    remembered = delta.data / "agent" / "etc" / "k3s-agent-load-balancer.json"
    eventually(
        "it knows three servers", lambda: all(h.address in remembered.read_text() for h in (beta, gamma))
    )
    alpha.kill()
    eventually("alpha is missed", lambda: beta.nodes()["alpha"] == "Unknown")
    eventually("delta is ready without it", lambda: beta.nodes()["delta"] == "True")
    delta.kill()
    delta.start("agent")  # the configured server is dead: it goes to those it remembers
    eventually(
        "delta came back", lambda: "Annotations and labels" in delta.log.rpartition("Starting k3s agent")[2]
    )


def test_a_minority_is_neither_ready_nor_writable(hosts: Hosts) -> None:
    alpha, beta, gamma = form(hosts, "alpha", "beta", "gamma")
    gamma.plug(up=False)
    eventually("gamma knows that it is alone", lambda: not gamma.ready())
    assert not put(gamma, "lost")
    eventually("the others go on", lambda: put(alpha, "majority"))
    gamma.plug(up=True)
    eventually("gamma is back", gamma.ready)
    # its return may cost an election, during which nobody answers
    eventually("gamma has what the majority wrote", lambda: has(gamma, "majority"))
    eventually("what the minority was told is nowhere", lambda: lacks(gamma, "lost"))
    for host in (alpha, beta):
        host.kill()
    eventually("one of three is not ready", lambda: not gamma.ready())


def test_kill_of_one_and_of_all_loses_nothing(hosts: Hosts) -> None:
    servers = form(hosts, "alpha", "beta", "gamma")
    written = [f"w{i}" for i in range(10) if put(servers[i % 3], f"w{i}")]
    servers[0].kill()
    eventually("two of three write", lambda: put(servers[1], "while-one-is-dead"))
    written.append("while-one-is-dead")
    for host in servers[1:]:
        host.kill()
    for host in servers:
        host.configure(token=servers[0].token, server=servers[1].url, **FAST)
    for host in servers:  # a cold restart: all at once, the one they name is not up yet
        host.start()
    for host in servers:
        eventually(f"{host.name} is ready", host.ready, 90 if host.simulated else 240, log_of=host)
    for name in written:
        eventually(f"{name} is there", lambda n=name: has(servers[0], n))


def test_a_join_waits_while_a_voter_is_dead(simulated_hosts: Hosts) -> None:
    alpha, beta, gamma = form(simulated_hosts, "alpha", "beta", "gamma")
    eventually("all are registered", lambda: len(alpha.nodes()) == 3)
    gamma.kill()
    eventually("the cluster misses gamma", lambda: alpha.nodes()["gamma"] == "Unknown")
    late = simulated_hosts.add("late")
    late.configure(token=alpha.token, server=alpha.url, **FAST)
    late.start()
    eventually("it has to wait", lambda: "etcdserver: unhealthy cluster" in late.log)
    eventually("gamma is deleted", lambda: alpha.api("/api/v1/nodes/gamma", method="DELETE").status == 200)
    eventually("now it can join", late.ready, log_of=late)
    eventually("beta knows its members", lambda: sorted(beta.members()) == ["alpha", "beta", "late"])


@pytest.mark.parametrize("point", ["after-bootstrap", "after-member-add", "after-wal"])
def test_a_join_that_was_killed_is_finished_by_a_restart(simulated_hosts: Hosts, point: str) -> None:
    (alpha,) = form(simulated_hosts, "alpha")
    beta = simulated_hosts.add("beta")
    beta.configure(token=alpha.token, server=alpha.url, **FAST)
    beta.env = {"K3S_SIMULATED_CRASH_AT": point}
    beta.start()
    assert beta.wait() == -signal.SIGKILL
    beta.env = {}
    beta.start()
    eventually("beta is ready", beta.ready, log_of=beta)
    eventually("alpha knows its members", lambda: sorted(alpha.members()) == ["alpha", "beta"])
