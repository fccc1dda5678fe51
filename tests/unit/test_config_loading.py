"""Is a good configuration understood as meant, and is every mistake in a bad one named at once?"""

# ruff: noqa: E501 - tables of cases read better with a case a line

from __future__ import annotations

import re
from pathlib import Path

import pytest

from p2p_bootstrap.cloudconfig.collect import collect
from p2p_bootstrap.config.loading import Config, check, load
from p2p_bootstrap.stages.facts import Facts
from p2p_network.admission.join_token import JoinToken, format_join_token
from p2p_network.core.errors import ConfigError, Problem
from p2p_network.token import NetworkToken, format_token

DATA = Path(__file__).resolve().parents[1] / "data" / "cloudconfigs"
JOIN_TOKEN = format_join_token(
    JoinToken(
        b"s" * 16,
        "00112233aabbccdd",
        "0123456789abcdef",
        1,
        b"p" * 32,
        b"r" * 32,
        b"a" * 32,
        2_000_000_000,
        ("192.0.2.9:4701",),
        dht=False,
    )
)
TOKEN = format_token(NetworkToken(bytes(range(32)), bootstrap=("192.0.2.9:4701",)))


def config(p2p: str = "", rest: str = "", *, token: str = TOKEN) -> Config:
    return load([], stdin=document(p2p, rest, token=token))


def document(p2p: str = "", rest: str = "", *, token: str = TOKEN) -> str:
    body = "".join(f"  {line}\n" for line in p2p.splitlines())
    return f"#cloud-config\np2p:\n  network_token: {token}\n{body}{rest}\n"


def problems(text: str) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        load([], stdin=text)
    return caught.value.problems


def one_problem(p2p: str = "", rest: str = "", *, token: str = TOKEN) -> Problem:
    found = problems(document(p2p, rest, token=token))
    assert len(found) == 1, found
    return found[0]


def notes(p2p: str = "", rest: str = "") -> dict[str, str]:
    return {note.key: f"{note.message} ({note.hint})" for note in config(p2p, rest).notes}


# --- what a good file means ---


def test_a_minimal_file_and_its_defaults() -> None:
    c = config()
    assert c.token == NetworkToken(bytes(range(32)), bootstrap=("192.0.2.9:4701",))
    assert c.notes == ()
    assert (c.wish, c.declared_servers, c.minimum_nodes) == ("auto", 1, 2)
    assert (c.dht, c.mdns, c.bootstrap) == (True, True, ("192.0.2.9:4701",))
    assert c.p2p.network_id == "kairos"
    assert c.p2p.listen == ("0.0.0.0:4701", "[::]:4701")
    assert (c.p2p.vpn.create, c.p2p.vpn.use, c.p2p.vpn.mtu, c.p2p.vpn.port) == (True, True, None, 4702)
    assert c.hostname is None
    assert c.p2p.auto.enable


def test_everything_of_ours() -> None:
    c = config(
        "network_id: dev\nrole: server\nregion: eu-1\nzone: a\nservers: 3\ncluster: region\nminimum_nodes: 5\n"
        "listen: [10.0.0.1:7001, '[fd00::1]:7001']\nbootstrap: [10.0.0.2:7001, /dns4/x.example/tcp/1, 192.0.2.9:4701]\n"
        "loglevel: WARN\ndisable_dht: true\n"
        "vpn: {create: no, use: off, interface: kp0, mtu: 1380, address_range: 10.200.0.0/16, port: 7002}",
        "hostname: n1\nk3s: {args: [--disable, traefik], env: {A: 1, B: no}, embedded_registry: on}\n"
        "k3s-agent: {args: [--x], replace_args: true}",
    )
    assert (c.wish, c.declared_servers, c.minimum_nodes, c.p2p.cluster) == ("server", 3, 5, "region")
    assert (c.p2p.region, c.p2p.zone, c.hostname, c.p2p.loglevel) == ("eu-1", "a", "n1", "warning")
    assert c.bootstrap == ("10.0.0.2:7001", "/dns4/x.example/tcp/1", "192.0.2.9:4701"), "each once"
    assert not c.dht
    assert not c.p2p.vpn.create
    assert c.k3s.args == ("--disable", "traefik")
    assert c.k3s.env == {"A": "1", "B": "no"}
    assert c.k3s.embedded_registry
    assert c.k3s_agent.replace_args


@pytest.mark.parametrize(
    ("written", "role"),
    [("master", "server"), ("worker", "agent"), ("server", "server"), ("AGENT", "agent"), ("''", "auto"),
     ("none", "auto"), ("", "auto")],
)  # fmt: skip
def test_old_words_for_roles(written: str, role: str) -> None:
    assert config(f"role: {written}").wish == role


@pytest.mark.parametrize(
    ("p2p", "servers", "nodes"),
    [
        ("", 1, 2),
        ("minimum_nodes: 1", 1, 1),
        ("servers: 3", 3, 3),
        ("servers: 3\nminimum_nodes: 5", 3, 5),
        ("servers: 3\nminimum_nodes: 2", 3, 2),
        ("auto: {ha: {master_nodes: 2}}", 3, 3),
        ("auto: {ha: {enable: true, master_nodes: 4}}", 5, 5),
        ("auto: {ha: {enable: true}}", 3, 3),
        ("auto: {ha: {enable: false, master_nodes: 2}}", 1, 2),
        ("auto: {ha: {master_nodes: 0}}", 1, 2),
        ("servers: 3\nauto: {ha: {master_nodes: 2}}", 3, 3),
    ],
)
def test_how_many_servers_and_nodes(p2p: str, servers: int, nodes: int) -> None:
    c = config(p2p)
    assert (c.declared_servers, c.minimum_nodes) == (servers, nodes)


@pytest.mark.parametrize("word", ["no", "0123", "12:30", "1e3", "true", "0x10", "2024-01-02"])
def test_a_text_is_kept_as_written(word: str) -> None:
    assert config(f"network_id: {word}\nregion: '{word.replace(':', '-')}'").p2p.network_id == word


def test_null_means_unset() -> None:
    c = config("role:\nminimum_nodes: ~\nvpn:\nbootstrap: null", "k3s:\nk3s-agent:\n  args:\nhostname:")
    assert (c.wish, c.minimum_nodes, c.k3s.args, c.hostname) == ("auto", 2, (), None)


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ('"node-{{ trunc 4 .MachineID }}"', "node-abcd"),
        ("node-{{ .Values.os.vendor | upper }}", "node-DEBIAN"),
        ('"{{ .UUID }}"', None),  # this machine has none: a note says so
    ],
)
def test_a_template_as_host_name_is_rendered_for_this_machine(written: str, name: str | None) -> None:
    facts = Facts(machine_id="abcdef0123456789", values={"os": {"vendor": "debian"}})
    collected = collect([], stdin=f"#cloud-config\nhostname: {written}\n")
    config, problems = check(collected, facts=lambda: facts)
    assert not problems
    assert config is not None
    assert config.hostname == name
    notes = [note.message for note in config.notes if note.key == "hostname"]
    assert bool(notes) == (name is None)


@pytest.mark.parametrize(
    ("written", "complaint"),
    [
        ('"node-{{ trunk 4 .MachineID }}"', "no function 'trunk'"),
        ('"a b {{ .MachineID }}"', "is not a host name"),
    ],
)
def test_a_wrong_template_as_host_name_is_a_problem(written: str, complaint: str) -> None:
    collected = collect([], stdin=f"#cloud-config\nhostname: {written}\n")
    config, problems = check(collected, facts=lambda: Facts(machine_id="abc"))
    assert config is None
    (problem,) = problems
    assert complaint in problem.message
    assert problem.line == 2


def test_a_typo_in_a_step_keeps_no_node_from_its_mesh() -> None:
    typo = "stages: {boot: [{comands: [a]}]}"
    c = config(rest=typo)
    assert any("unknown key" in note.message for note in c.notes)
    _, problems = check(collect([], stdin=f"#cloud-config\n{typo}\n"))
    assert [problem.key for problem in problems] == ["stages.boot[0].comands"]


def test_edgevpn_dht_variable_is_honoured() -> None:
    assert not config("vpn: {env: {EDGEVPNDHT: 'false'}}").dht
    assert config("vpn: {env: {EDGEVPNDHT: 'true'}}").dht


BARE = format_token(NetworkToken(bytes(range(32))))


@pytest.mark.parametrize(
    ("p2p", "speaks"),
    [
        ("", True),
        ("public_dht: false", False),
        ("disable_dht: true", False),
        ("public_dht: true\ndisable_dht: true", False),
        ("vpn: {env: {EDGEVPNDHT: 'false'}}", False),
        ("bootstrap: [192.0.2.9:4701]", False),
        ("rendezvous: [192.0.2.9:4702]", False),
        ("seed_file: /oem/seeds", False),
        ("public_dht: true\nbootstrap: [192.0.2.9:4701]", True),
    ],
)
def test_the_public_dht_is_used_where_nothing_else_is_named_and_can_be_turned_off(
    p2p: str, speaks: bool
) -> None:
    c = config(p2p, token=BARE)
    named = bool(c.bootstrap or c.p2p.rendezvous)
    assert bool(c.p2p.entrances(has_addresses=named)) is speaks


def test_the_public_dht_may_be_another_one() -> None:
    mine = "/ip4/192.0.2.9/tcp/4001/p2p/QmaCpDMGvV2BGHeYERUEnRQAwe3N8SzbUtfsmvsqQLuvuJ"
    c = config(f"public_dht_bootstrap: [{mine}]", token=BARE)
    assert c.p2p.entrances(has_addresses=False) == (mine,)
    assert "/dnsaddr/NAME" in one_problem("public_dht_bootstrap: ['192.0.2.9:4001']").message


def test_a_public_dht_that_is_turned_off_elsewhere_says_so() -> None:
    told = notes("public_dht: true\ndisable_dht: true\npublic_dht_bootstrap: [/dnsaddr/dht.example]")
    assert "disable_dht" in told["p2p.public_dht"]
    assert "turned off" in told["p2p.public_dht_bootstrap"]
    assert not {key for key in notes("public_dht: true") if "public" in key}


def test_without_a_token_the_file_is_valid_and_the_token_is_not_there(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("#cloud-config\nusers: []\n")
    c = load([file])
    assert not c.has_token
    assert "joins no mesh" in c.notes[0].message
    with pytest.raises(ConfigError, match=r"a\.yaml.*p2p\.network_token.*token generate"):
        _ = c.token


@pytest.mark.parametrize("key", ["join_token", "network_token"])
def test_a_join_token_stands_under_its_own_key_or_the_network_tokens(key: str) -> None:
    c = load([], stdin=f"#cloud-config\np2p:\n  {key}: {JOIN_TOKEN}\n")
    assert c.join_token is not None
    assert c.join_token.invite == "00112233aabbccdd"
    assert (c.has_token, c.bootstrap, c.dht) == (False, ("192.0.2.9:4701",), False)
    assert c.notes == ()
    assert JOIN_TOKEN[10:40] not in repr(c)


def test_two_kinds_of_tokens_are_one_too_many() -> None:
    problem = one_problem(f"join_token: {JOIN_TOKEN}")
    assert (problem.key, problem.message) == ("p2p.join_token", "there is a network token too")


def test_a_damaged_join_token_is_named_and_not_quoted() -> None:
    (problem,) = problems(f"#cloud-config\np2p:\n  join_token: {JOIN_TOKEN[:-3]}\n")
    assert problem.key == "p2p.join_token"
    assert "cut or mistyped" in problem.message
    assert JOIN_TOKEN[10:40] not in str(problem)


def test_origin_and_value(tmp_path: Path) -> None:
    base, custom = tmp_path / "01.yaml", tmp_path / "02.yaml"
    base.write_text(
        "#cloud-config\np2p:\n  servers: 3\n  region: a\nstages:\n  boot.after:\n  - name: 0123\n"
    )
    custom.write_text(f"#cloud-config\n# x\np2p:\n  region: b\n  network_token: {TOKEN}\n")
    c = load([base, custom])
    assert c.p2p.region == "b"
    assert c.origin("p2p.region") == (str(custom), 4)
    assert c.origin("p2p.servers") == (str(base), 3)
    assert c.origin("p2p.zone") is None
    assert c.origin("stages.boot.after") == (str(base), 6)
    assert c.value("stages.boot.after") == [{"name": "0123"}], "others' keys are passed through as written"
    assert c.files == (str(base), str(custom))


def test_no_secret_in_any_repr() -> None:
    c = config(
        "vpn: {env: {EDGEVPNTOKEN: hunter2}}",
        "k3s: {env: {K3S_DATASTORE_ENDPOINT: hunter2}, args: [--token=hunter2]}",
    )
    for thing in (c, c.p2p, c.k3s, c.notes, c.document, c.token):
        assert "hunter2" not in repr(thing)
        assert TOKEN not in repr(thing)
        assert "hunter2" not in str(thing)
    assert c.p2p.network_token is not None
    assert c.p2p.network_token.get_secret_value() == TOKEN


# --- files of Kairos, unchanged ---


def test_ha_with_kube_vip() -> None:
    c = load([DATA / "kairos-ha-kubevip.yaml"])
    assert c.token.origin == "kairos"
    assert (c.declared_servers, c.minimum_nodes, c.wish, c.dht) == (3, 3, "auto", False)
    assert c.p2p.network_id == "dev"
    found = {note.key for note in c.notes}
    assert found == {
        "p2p.vpn.env.DHCP", "p2p.vpn.env.EDGEVPNMAXCONNS", "p2p.vpn.env.DNSFORWARDSERVER"
    }  # fmt: skip
    files = c.value("stages.boot.after")
    assert isinstance(files, list)
    assert "'permissions': '0600'" in str(files), "an octal number stays as written"


def test_worker_of_an_old_file() -> None:
    c = load([DATA / "kairos-worker.yaml"])
    assert c.token == load([DATA / "kairos-ha-kubevip.yaml"]).token, "folded over lines, the same token"
    assert (c.wish, c.p2p.network_id, c.hostname) == ("agent", "0042", "worker-07")
    assert c.k3s_agent.args == ("--node-label=disk=nvme", "--node-label", "rack=12:30")
    assert c.k3s_agent.env["RETRIES"] == "5"
    assert {"k3s.enabled", "k3s-agent.enabled"} == {note.key for note in c.notes}


def test_single_node_without_a_mesh() -> None:
    c = load([DATA / "single-node.yaml"])
    assert not c.has_token
    assert not c.p2p.auto.enable
    assert not c.p2p.vpn.create
    assert not c.notes, "k3s runs by itself"


# --- mistakes ---


@pytest.mark.parametrize(
    ("p2p", "key", "message", "hint"),
    [
        ("minimum_nodes: two", "p2p.minimum_nodes", "expected a whole number, found 'two'", ""),
        ("minimum_nodes: 2.5", "p2p.minimum_nodes", "expected a whole number, found '2.5'", ""),
        ("minimum_nodes: '3'", "p2p.minimum_nodes", "found the text '3'", "remove the quotes"),
        ("minimum_nodes: 03", "p2p.minimum_nodes", "found '03'", "zero in front"),
        ("minimum_nodes: true", "p2p.minimum_nodes", "found 'true'", ""),
        ("minimum_nodes: [3]", "p2p.minimum_nodes", "found a list", ""),
        ("minimum_nodes: 0", "p2p.minimum_nodes", "must be at least 1, found '0'", ""),
        ("minimum_nodes: 99999", "p2p.minimum_nodes", "must be at most 200", ""),
        ("servers: -1", "p2p.servers", "must be at least 1", ""),
        ("dns: maybe", "p2p.dns", "expected true or false, found 'maybe'", ""),
        ('dns: "true"', "p2p.dns", "expected true or false, found the text 'true'", "remove the quotes"),
        ("role: [a]", "p2p.role", "expected a text, found a list", ""),
        ("role: servr", "p2p.role", "expected one of", "did you mean 'server'?"),
        ("cluster: regoin", "p2p.cluster", "expected one of mesh, region", "did you mean 'region'?"),
        ("loglevel: inf", "p2p.loglevel", "expected one of debug", "did you mean 'info'?"),
        ("vpn: 3", "p2p.vpn", "expected a map of keys, found '3'", "indented"),
        ("auto: true", "p2p.auto", "expected a map of keys", "indented"),
        ("bootstrap: 10.0.0.1:4701", "p2p.bootstrap", "expected a list", "after a dash"),
        ("bootstrap: {a: b}", "p2p.bootstrap", "expected a list, found a map", "after a dash"),
        ("bootstrap: [~]", "p2p.bootstrap[0]", "expected a text, found nothing", "remove the empty item"),
        ("listen: []", "p2p.listen", "the list is empty", "remove the key"),
        ("listen: [localhost:1]", "p2p.listen[0]", "no IP address", ""),
        ("listen: ['10.0.0.1:4702']", "p2p.listen[0]", "port 4702 is taken twice", "change one"),
        ("vpn: {port: 4701}", "p2p.vpn.port", "port 4701 is taken twice", "change one"),
        ("vpn: {mtu: 100}", "p2p.vpn.mtu", "must be at least 1280", ""),
        ("vpn: {interface: 'a b'}", "p2p.vpn.interface", "not a device name", ""),
        ("vpn: {interface: abcdefghijklmnop}", "p2p.vpn.interface", "at most 15", ""),
        ("vpn: {address_range: 10.144.1.0/16}", "p2p.vpn.address_range", "not an IPv4", "did you mean 10.144.0.0/16?"),
        ("vpn: {address_range: fd00::/64}", "p2p.vpn.address_range", "not an IPv4", "10.144.0.0/16"),
        ("vpn: {address_range: 10.144.0.0/30}", "p2p.vpn.address_range", "from /8 to /24", ""),
        ("vpn: {address_range: 8.8.0.0/16}", "p2p.vpn.address_range", "not a private network", "10.0.0.0/8"),
        ("vpn: {address_range: 10.42.0.0/16}", "p2p.vpn.address_range", "overlaps 10.42.0.0/16", "--cluster-cidr"),
        ("vpn: {env: {'a b': c}}", "p2p.vpn.env", "not the name of an environment variable", ""),
        ("region: -eu-", "p2p.region", "not a label", ""),
        ("network_id: a b", "p2p.network_id", "not a network id", ""),
        ("cluster: region", "p2p.cluster", "needs to know this node's region", "add p2p.region"),
        ("servers: 3\nauto: {ha: {master_nodes: 4}}", "p2p.servers", "3 servers here, but p2p.auto.ha asks for 5", "one"),
        ("replace_after: 5", "p2p.replace_after", "expected a duration", "90s"),
        ("replace_after: 1s", "p2p.replace_after", "not between 5s and 7d", ""),
        ("prefer: both", "p2p.prefer", "expected one of server, master, agent, worker", ""),
        ("labels: {disk ssd: a}", "p2p.labels", "no name of a label", "example.com/disk"),
        ("labels: {disk: 'a b'}", "p2p.labels", "no value of a label", "63"),
        ("labels: {node-role.kubernetes.io/x: a}", "p2p.labels", "belongs to Kubernetes", "prefix of your own"),
        ("labels: {topology.kubernetes.io/zone: a}", "p2p.labels", "belongs to Kubernetes", "p2p.zone"),
        ("taints: ['gpu=yes:Never']", "p2p.taints[0]", "is no taint", "NoSchedule"),
        ("taints: ['gpu=yes']", "p2p.taints[0]", "is no taint", "KEY[=VALUE]:EFFECT"),
        ("minimum_node: 3", "p2p.minimum_node", "unknown key", "did you mean 'minimum_nodes'?"),
        ("vpn: {vpn: true}", "p2p.vpn.vpn", "unknown key", "p2p.vpn.create"),
        ("mtu: 1400", "p2p.mtu", "unknown key", "p2p.vpn.mtu"),
        ("token: x", "p2p.token", "unknown key", "p2p.network_token"),
        ("xyzzy: x", "p2p.xyzzy", "unknown key", "valid keys here: network_token, network_id"),
        ("auto: {ha: {xyzzy: 1}}", "p2p.auto.ha.xyzzy", "unknown key", "valid keys here: enable, master_nodes"),
    ],
)  # fmt: skip
def test_mistakes_in_p2p(p2p: str, key: str, message: str, hint: str) -> None:
    problem = one_problem(p2p)
    assert problem.key == key
    assert message in problem.message
    assert hint in problem.hint
    assert problem.line >= 4
    assert problem.column >= 3
    assert "hunter2" not in str(problem)


@pytest.mark.parametrize(
    ("rest", "key", "message", "hint"),
    [
        ("k3s_agent: {}", "k3s_agent", "unknown key", "did you mean 'k3s-agent'?"),
        ("minimum_nodes: 3", "minimum_nodes", "unknown key", "did you mean p2p.minimum_nodes?"),
        ("p2p.role: server", "p2p.role", "unknown key", "nested maps"),
        ("userz: []", "userz", "unknown key", "did you mean 'users'?"),
        ("xyzzy: 1", "xyzzy", "unknown key", "valid keys here: p2p, k3s"),
        ("kairos: {network_token: x}", "kairos.network_token", "moved", "p2p.network_token"),
        ("k3s: [a]", "k3s", "expected a map of keys, found a list", "indented"),
        ("k3s: {args: --token=hunter2}", "k3s.args", "expected a list, found a text", "after a dash"),
        ("k3s: {args: ['a', {b: hunter2}]}", "k3s.args[1]", "expected a text, found a map", ""),
        ("k3s: {env: [A=hunter2]}", "k3s.env", "expected a map of keys, found a list", "indented"),
        ("k3s: {enable: true}", "k3s.enable", "unknown key", "k3s.enabled"),
        ("k0s: {enabled: true}", "k0s.enabled", "k0s is not supported yet", "k3s"),
        ("k0s-worker: {enabled: true}", "k0s-worker.enabled", "k0s is not supported yet", "k3s"),
        (
            "kubevip: {eip: 1.2.3.4, interfce: e}",
            "kubevip.interfce",
            "unknown key",
            "did you mean 'interface'?",
        ),
        ("hostname: bad_name", "hostname", "not a host name", "hyphens"),
        ("hostname: [a]", "hostname", "expected a text, found a list", ""),
        ("bundles: [{targets: [run://x]}]\nuserz: 1", "userz", "unknown key", "did you mean 'users'?"),
    ],
)
def test_mistakes_elsewhere(rest: str, key: str, message: str, hint: str) -> None:
    problem = one_problem(rest=rest)
    assert problem.key == key
    assert message in problem.message
    assert hint in problem.hint
    assert "hunter2" not in str(problem)


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (TOKEN[:-5], "cut or mistyped"),
        (TOKEN.replace("kp2p1_", "kp2p2_"), "format version 2"),
        (TOKEN[:20] + ("A" if TOKEN[20] != "A" else "B") + TOKEN[21:], "cut or mistyped"),
        ("YOUR_TOKEN_GOES_HERE", "no network token"),
        ("12345", "no network token"),
    ],
)
def test_a_bad_token_is_named_by_its_line_and_never_quoted(token: str, message: str) -> None:
    problem = one_problem(token=token)
    assert (problem.line, problem.column, problem.key) == (3, 18, "p2p.network_token")
    assert message in problem.message
    assert problem.hint
    assert token not in str(problem)


def test_a_token_under_the_wrong_key_is_not_quoted() -> None:
    for key in ("region", "role", "loglevel", "minimum_nodes", "dns"):
        assert TOKEN[:12] not in str(one_problem(f"{key}: {TOKEN}"))


def test_all_mistakes_of_all_files_at_once(tmp_path: Path) -> None:
    one, two = tmp_path / "1.yaml", tmp_path / "2.yaml"
    one.write_text(
        f"#cloud-config\np2p:\n  network_token: {TOKEN[:-3]}\n  servers: x\n  servers: 3\n  dns: 1\n"
    )
    two.write_text("p2p:\n  vpn: {mtu: 1}\nk3s: {argz: []}\nhostname: a_b\nwhat: 1\n\tx\n")
    with pytest.raises(ConfigError) as caught:
        load([one, two, tmp_path / "3.yaml"])
    assert [(Path(p.file).name, p.line, p.key) for p in caught.value.problems] == [
        ("1.yaml", 3, "p2p.network_token"),
        ("1.yaml", 4, "p2p.servers"),
        ("1.yaml", 5, "p2p.servers"),
        ("1.yaml", 6, "p2p.dns"),
        ("2.yaml", 1, ""),
        ("2.yaml", 2, "p2p.vpn.mtu"),
        ("2.yaml", 3, "k3s.argz"),
        ("2.yaml", 4, "hostname"),
        ("2.yaml", 5, "what"),
        ("2.yaml", 6, ""),
        ("3.yaml", 0, ""),
    ]
    assert re.search(r"1\.yaml:4:12: p2p\.servers: expected a whole number, found 'x'", str(caught.value))


# --- remarks ---


def test_what_has_no_effect_is_said() -> None:
    found = notes(
        "dns: true\nreplace_after: 1h\nvpn: {env: {EDGEVPNMTU: 1300, X: y}}\nauto: {ha: {enable: false, master_nodes: 2}}",
        "k3s: {enabled: true}\nkubevip: {eip: 10.0.0.1}\npackages: [vim]",
    )
    assert set(found) == {
        "p2p.replace_after", "p2p.vpn.env.EDGEVPNMTU", "p2p.vpn.env.X", "p2p.auto.ha.master_nodes",
        "k3s.enabled", "packages",
    }  # fmt: skip
    assert "p2p.vpn.mtu" in found["p2p.vpn.env.EDGEVPNMTU"]
    assert "p2p.role" in found["k3s.enabled"]


def test_unwise_numbers_are_said() -> None:
    assert "use 3" in notes("servers: 2")["p2p.servers"]
    assert "use 3" in notes("auto: {ha: {master_nodes: 1}}")["p2p.auto.ha.master_nodes"]
    assert "2 of its 3 servers" in notes("servers: 3\nminimum_nodes: 2")["p2p.minimum_nodes"]


def test_the_block_of_an_unknown_bundle_is_accepted_and_said() -> None:
    assert "bundle" in notes(rest="bundles: [{targets: [run://x]}]\nxyzzy: {a: 1}")["xyzzy"]
    assert "bundle" in notes(rest="install: {bundles: [{targets: [run://x]}]}\nxyzzy: {a: 1}")["xyzzy"]
    assert notes(rest="metallb: {version: 1}") == {}, "the blocks of community bundles are known"
