"""Is the house tidy? Style, types, import contracts, package layout; each tool run as a test."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("p2p_bootstrap", "network/p2p_network", "roles/p2p_roles", "simulations/p2p_simulations")
BIN = Path(sys.executable).parent


def run(*argv: str) -> None:
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"$ {' '.join(argv)}\n{done.stdout}{done.stderr}"


def test_ruff_check() -> None:
    run(str(BIN / "ruff"), "check", ".")


def test_ruff_format() -> None:
    run(str(BIN / "ruff"), "format", "--check", ".")


def test_mypy_strict() -> None:
    run(str(BIN / "mypy"))


def test_import_contracts() -> None:
    run(str(BIN / "lint-imports"))


def sources() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def test_every_module_says_which_question_it_answers() -> None:
    silent = [str(p.relative_to(ROOT)) for p in sources() if not ast.get_docstring(ast.parse(p.read_text()))]
    assert not silent, f"modules without a docstring: {silent}"


# Pure modules decide; time, randomness and I/O are passed in (DESIGN.md, import rule 2).
IMPURE = {
    "trio",
    "libp2p",
    "subprocess",
    "socket",
    "ctypes",
    "os",
    "time",
    "random",
    "secrets",
    "sh",
    "pyroute2",
}
PURE = (
    "simulations/p2p_simulations/lab/distance.py",
    "network/p2p_network/core",
    "network/p2p_network/wire.py",
    "network/p2p_network/identity.py",
    "network/p2p_network/blobs/transfer.py",
    "network/p2p_network/blobs/sealing.py",
    "network/p2p_network/token.py",
    "network/p2p_network/sealed.py",
    "network/p2p_network/meeting",
    "network/p2p_network/admission",
    "network/p2p_network/records.py",
    "network/p2p_network/standing.py",
    "network/p2p_network/nat.py",
    "network/p2p_network/igd.py",
    "network/p2p_network/access.py",
    "network/p2p_network/services.py",
    "network/p2p_network/socks.py",
    "network/p2p_network/destinations.py",
    "network/p2p_network/tubes/flow.py",
    "network/p2p_network/subnets.py",
    "network/p2p_network/dataplane/guard.py",
    "network/p2p_network/session.py",
    "network/p2p_network/membership.py",
    "network/p2p_network/drains.py",
    "network/p2p_network/detector.py",
    "network/p2p_network/liveness.py",
    "network/p2p_network/addressing.py",
    "network/p2p_network/coordinates.py",
    "network/p2p_network/places.py",
    "network/p2p_network/regions.py",
    "network/p2p_network/ledger/entry.py",
    "network/p2p_network/ledger/core.py",
    "network/p2p_network/ledger/policy.py",
    "network/p2p_network/ledger/sync.py",
    "network/p2p_network/dataplane/packet.py",
    "network/p2p_network/names/answering.py",
    "network/p2p_network/names/resolv_conf.py",
    "network/p2p_network/names/zone.py",
    "network/p2p_network/dataplane/choice.py",
    "network/p2p_network/dataplane/datagrams.py",
    "network/p2p_network/dataplane/icmp.py",
    "network/p2p_network/dataplane/path.py",
    "network/p2p_network/dataplane/pulse.py",
    "network/p2p_network/dataplane/queues.py",
    "network/p2p_network/dataplane/segments.py",
    "network/p2p_network/dataplane/inbox.py",
    "network/p2p_network/dataplane/records.py",
    "network/p2p_network/host/dialer.py",
    "network/p2p_network/dataplane/peers.py",
    "network/p2p_network/dataplane/routes.py",
    "network/p2p_network/dataplane/preface.py",
    "network/p2p_network/host/addresses.py",
    "network/p2p_network/host/frames.py",
    "network/p2p_network/host/relay.py",
    "network/p2p_network/host/psk.py",
    "network/p2p_network/ledger/reading.py",
    "network/p2p_network/ledger/anti_entropy.py",
    "network/p2p_network/ledger/events.py",
    "roles/p2p_roles/upgrade",
    "p2p_bootstrap/boot/cmdline.py",
    "p2p_bootstrap/boot/devices.py",
    "p2p_bootstrap/boot/dispatch.py",
    "p2p_bootstrap/boot/entries.py",
    "p2p_bootstrap/boot/facts.py",
    "p2p_bootstrap/boot/grubcfg.py",
    "p2p_bootstrap/boot/layout.py",
    "p2p_bootstrap/boot/measure.py",
    "p2p_bootstrap/boot/merge3.py",
    "p2p_bootstrap/boot/pe.py",
    "p2p_bootstrap/boot/plan.py",
    "p2p_bootstrap/boot/ports.py",
    "p2p_bootstrap/boot/record.py",
    "p2p_bootstrap/boot/slots.py",
    "p2p_bootstrap/boot/steps.py",
    "p2p_bootstrap/boot/superblock.py",
    "p2p_bootstrap/boot/tail.py",
    "p2p_bootstrap/boot/uki.py",
    "p2p_bootstrap/cloudconfig/cmdline.py",
    "p2p_bootstrap/cloudconfig/functions.py",
    "p2p_bootstrap/cloudconfig/merge.py",
    "p2p_bootstrap/cloudconfig/template.py",
    "p2p_bootstrap/cloudconfig/template_parser.py",
    "p2p_bootstrap/stages/accounts.py",
    "p2p_bootstrap/stages/conditions.py",
    "p2p_bootstrap/stages/configured.py",
    "p2p_bootstrap/stages/facts.py",
    "p2p_bootstrap/stages/gpt.py",
    "p2p_bootstrap/stages/model.py",
    "p2p_bootstrap/stages/plain.py",
    "p2p_bootstrap/stages/plan.py",
    "p2p_bootstrap/stages/reading.py",
    "p2p_bootstrap/node/health.py",
    "roles/p2p_roles/view.py",
    "roles/p2p_roles/assign.py",
    "roles/p2p_roles/grants.py",
    "roles/p2p_roles/placement.py",
    "roles/p2p_roles/timing.py",
    "roles/p2p_roles/k3s/kubevip.py",
    "roles/p2p_roles/k3s/kubeconfig.py",
    "roles/p2p_roles/bootstrap.py",
    "roles/p2p_roles/duties.py",
    "roles/p2p_roles/joining.py",
    "roles/p2p_roles/facts.py",
    "roles/p2p_roles/reconcile",
    "roles/p2p_roles/durable.py",
    "roles/p2p_roles/events.py",
    "roles/p2p_roles/quorum.py",
    "roles/p2p_roles/recovering.py",
    "roles/p2p_roles/recovery.py",
    "roles/p2p_roles/rules.py",
    "roles/p2p_roles/transitions.py",
    "roles/p2p_roles/genesis",
    "roles/p2p_roles/k3s/causes.py",
    "roles/p2p_roles/k3s/release.py",
    "roles/p2p_roles/k3s/spec.py",
    "roles/p2p_roles/k3s/units.py",
)


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_do_no_io(name: str) -> None:
    place = ROOT / name
    assert place.exists(), f"{name} is listed as pure but is not there"
    for path in [place] if place.is_file() else sorted(place.rglob("*.py")):
        assert not imports_of(path) & IMPURE, f"{path.relative_to(ROOT)} imports {imports_of(path) & IMPURE}"


def names_from(path: Path, package: str) -> set[str]:
    """What a module takes from a package, and which of its modules."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(package):
            found |= {alias.name for alias in node.names} | {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith(package)}
    return found


def test_one_module_only_speaks_without_the_pre_shared_key() -> None:
    """What makes a libp2p connection is in three modules: two for the mesh, and the public DHT's client."""
    makes = {"RawConnection", "TransportUpgrader", "Transport", "new_host", "new_swarm", "TCP"}
    users, reach = set(), set()
    for path in sources():
        if b"libp2p" in (text := path.read_bytes()) and names_from(path, "libp2p.") & makes:
            users.add(path.name)
        if b"public_dht" in text and "p2p_network.host.public_dht" in names_from(path, "p2p_network.host"):
            reach.add(path.name)
    assert users == {"guards.py", "private.py", "public_dht.py"}
    assert reach == {"public_notes.py"}


def test_the_ground_floor_needs_only_the_standard_library() -> None:
    for path in sorted((ROOT / "network/p2p_network/core").glob("*.py")):
        foreign = imports_of(path) - set(sys.stdlib_module_names) - {"p2p_network"}
        assert not foreign, f"{path.relative_to(ROOT)} imports {foreign}"


@pytest.mark.parametrize("room", ["cloudconfig", "stages"])
def test_what_runs_in_the_initramfs_needs_only_pyyaml(room: str) -> None:
    for path in sorted((ROOT / "p2p_bootstrap" / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("p2p_"):
                ours = ("p2p_network.core", "p2p_bootstrap.cloudconfig", "p2p_bootstrap.stages")
                assert node.module.startswith(ours), f"{path.relative_to(ROOT)} imports {node.module}"
        foreign = imports_of(path) - set(sys.stdlib_module_names) - {"p2p_network", "p2p_bootstrap", "yaml"}
        assert not foreign, f"{path.relative_to(ROOT)} imports {foreign}"


def test_only_the_host_adapter_imports_libp2p() -> None:
    for path in sources():
        if "p2p_network/host/" not in str(path):
            assert "libp2p" not in imports_of(path), path.relative_to(ROOT)


def test_wheel_holds_the_four_packages_and_nothing_else(tmp_path: Path) -> None:
    run(str(BIN / "hatchling"), "build", "-t", "wheel", "-d", str(tmp_path))
    (wheel,) = tmp_path.glob("*.whl")
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    packages = {top for top in tops if not top.endswith(".dist-info")}
    assert packages == {Path(p).name for p in PACKAGES}


def test_lock_is_hashed_and_names_no_index() -> None:
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text
    pins = re.findall(r"^[A-Za-z0-9].*==", text, re.MULTILINE)
    assert len(pins) > 50
    assert text.count("--hash=sha256:") >= len(pins)


def test_nothing_names_this_machine() -> None:
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode != 0:
        pytest.skip("not a git checkout: the list of committed files is unknown")
    here = str(ROOT)
    for name in tracked.stdout.split("\0"):
        path = ROOT / name
        if name and path.is_file() and path.suffix in {".py", ".md", ".toml", ".yaml", ".yml", ".lock", ""}:
            text = path.read_text(errors="replace")
            assert here not in text, f"{name} names this machine's folder"
