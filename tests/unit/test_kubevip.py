"""Which manifest brings the virtual IP up, and does every key of the cloud-config have its effect?"""

from __future__ import annotations

import pytest
import yaml

from p2p_bootstrap.config.loading import load
from p2p_bootstrap.config.names import KUBE_VIP_FIELDS
from p2p_network.core.errors import ConfigError, RoleError
from p2p_roles.k3s.kubevip import IMAGE, VERSION, KubeVipOptions, environment, file_of, without_effect
from p2p_roles.k3s.spec import K3sPaths

PATHS = K3sPaths()


def documents(options: KubeVipOptions, paths: K3sPaths = PATHS) -> dict[str, dict]:
    return {d["kind"]: d for d in yaml.safe_load_all(file_of(options, paths).content)}


def env_of(pod: dict) -> dict[str, str]:
    return {e["name"]: e.get("value", "") for e in pod["containers"][0]["env"]}


def test_a_daemon_set_on_the_servers_with_its_rights() -> None:
    made = file_of(KubeVipOptions("192.168.1.110", "ens18"), PATHS)
    assert made.path == "/var/lib/rancher/k3s/server/manifests/kairos-p2p-kube-vip.yaml"
    found = documents(KubeVipOptions("192.168.1.110", "ens18"))
    assert set(found) == {"ServiceAccount", "ClusterRole", "ClusterRoleBinding", "DaemonSet"}
    pod = found["DaemonSet"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"] == f"{IMAGE}:{VERSION}"
    assert pod["hostNetwork"] is True
    env = env_of(pod)
    assert (env["address"], env["vip_interface"], env["vip_arp"]) == ("192.168.1.110", "ens18", "true")
    assert (env["cp_enable"], env["vip_subnet"], env["vip_leaderelection"]) == ("true", "32", "true")
    assert "vip_interface" not in environment(KubeVipOptions("192.168.1.110")), "kube-vip finds it itself"
    assert environment(KubeVipOptions("fd00::5"))["vip_subnet"] == "128"


def test_a_static_pod_uses_the_kubeconfig_of_the_server() -> None:
    options = KubeVipOptions("10.0.0.9", static_pod=True, image="registry.local/kv", version="v0.9.2")
    made = file_of(options, K3sPaths(data_dir="/data/k3s"))
    assert made.path == "/data/k3s/agent/pod-manifests/kairos-p2p-kube-vip.yaml"
    pod = documents(options)["Pod"]["spec"]
    assert pod["containers"][0]["image"] == "registry.local/kv:v0.9.2"
    assert pod["volumes"][0]["hostPath"]["path"] == "/etc/rancher/k3s/k3s.yaml"


def test_bgp_and_kube_vip_s_own_fields() -> None:
    settings = {
        "enableBGP": True,
        "enableServices": True,
        "lbPort": 7443,
        "vipSubnet": "24",
        "bgpConfig": {"routerID": "10.0.0.1", "as": 65000, "peers": ["10.0.0.2:65001::false"]},
        "bgpPeerConfig": {"address": "10.0.0.2", "as": 65001},
    }
    env = environment(KubeVipOptions("10.0.0.9", settings=settings))
    assert (env["bgp_enable"], env["vip_arp"], env["vip_leaderelection"]) == ("true", "false", "false")
    assert (env["bgp_routerid"], env["bgp_as"], env["bgp_peeras"]) == ("10.0.0.1", "65000", "65001")
    assert (env["bgp_peers"], env["svc_enable"], env["lb_port"]) == ("10.0.0.2:65001::false", "true", "7443")
    assert env["vip_subnet"] == "24"
    arp_off = environment(KubeVipOptions("10.0.0.9", settings={"enableARP": False}))
    assert arp_off["vip_arp"] == "false"
    assert set(without_effect(settings)) == set()
    assert set(without_effect({"dhcpBackoffAttempts": 1, "port": 1})) == {"dhcpBackoffAttempts"}
    assert without_effect(dict.fromkeys(KUBE_VIP_FIELDS)), "what kube-vip can't be told is remarked upon"


def test_a_manifest_of_the_user_takes_its_place() -> None:
    own = KubeVipOptions(manifest=b"kind: Own\n")
    assert file_of(own, PATHS).content == b"kind: Own\n"
    with pytest.raises(RoleError, match="no address"):
        file_of(KubeVipOptions(), PATHS)


@pytest.mark.parametrize(
    ("section", "key", "message"),
    [
        ("{enable: true}", "kubevip", "no address"),
        ("{eip: 10.0.0.9, manifest_url: 'http://example.org/x.yaml'}", "kubevip.manifest_url", "plain http"),
        ("{eip: 10.0.0.9, manifest_url: x.yaml}", "kubevip.manifest_url", "neither"),
    ],
)
def test_what_can_t_work_is_an_error_of_the_configuration(section: str, key: str, message: str) -> None:
    from pathlib import Path

    text = f"#cloud-config\np2p: {{}}\nkubevip: {section}\n"
    with pytest.raises(ConfigError) as caught:
        load([Path("-")], stdin=text)
    (problem,) = caught.value.problems
    assert problem.key == key
    assert message in problem.message
