"""What does each key of a step do to a root folder? Twice is once, and nothing leaves the folder."""

from __future__ import annotations

import base64
import gzip
import hashlib
import os
import shutil
import stat
import subprocess
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from p2p_bootstrap.cloudconfig.collect import collect
from p2p_bootstrap.stages import gpt
from p2p_bootstrap.stages.action import Context
from p2p_bootstrap.stages.configured import read_steps
from p2p_bootstrap.stages.facts import Facts
from p2p_bootstrap.stages.model import Step
from p2p_bootstrap.stages.observe import SEED, observe
from p2p_bootstrap.stages.passwords import sha512_crypt, verify
from p2p_bootstrap.stages.reading import keys_of
from p2p_bootstrap.stages.root import Root
from p2p_bootstrap.stages.run import Report, Runner
from p2p_bootstrap.stages.system import Ended, LinuxSystem
from p2p_network.core.errors import BootError, P2PError

FACTS = Facts(
    hostname="old",
    service_manager="systemd",
    service_managers=frozenset({"systemd"}),
    arch="amd64",
    machine_id="abcdef0123456789abcdef0123456789",
    values={"node": {"hostname": "old"}},
)
PASSWD = "root:x:0:0:root:/root:/bin/bash\nbin:x:1:1:bin:/bin:/bin/false\n"
GROUP = "root:x:0:\nadmin:x:110:ann\nusers:x:100:\n"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB me@home"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: chown, chroot or mount")


@dataclass
class Recorder:
    """A system that only writes down what it is asked."""

    ran: list[list[str]] = field(default_factory=list)
    env: list[Mapping[str, str]] = field(default_factory=list)
    pages: dict[str, bytes] = field(default_factory=dict)
    fetched: list[str] = field(default_factory=list)
    programs: set[str] = field(default_factory=set)
    answers: dict[str, Ended] = field(default_factory=dict)
    hostname: str = ""

    def run(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, stdin: str = "") -> Ended:
        self.ran.append(list(argv))
        self.env.append(env or {})
        return self.answers.get(argv[0], Ended(0))

    def has(self, program: str) -> bool:
        return program in self.programs

    def set_hostname(self, name: str) -> None:
        self.hostname = name

    def fetch(self, address: str, limit_bytes: int, timeout_s: float) -> bytes:
        self.fetched.append(address)
        if address not in self.pages:
            raise P2PError(f"{address} answers 404")
        return self.pages[address]


class World:
    """A root folder, a recorder, and a way to run steps on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = Root(folder)
        self.system = Recorder()
        self.facts = FACTS
        self.said: list[str] = []
        self.metadata_base = ""
        self.put("etc/passwd", PASSWD)
        self.put("etc/group", GROUP)
        self.put("etc/shadow", "root:*:19000:0:99999:7:::\n")

    def put(self, name: str, text: str | bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def text(self, name: str) -> str:
        return (self.folder / name).read_text()

    def mode(self, name: str) -> int:
        return stat.S_IMODE((self.folder / name).stat().st_mode)

    def run(self, text: str, stage: str = "boot") -> Report:
        """Run the steps of a document (without header) once."""
        collected = collect([], stdin=f"#cloud-config\n{text}\n")
        assert not collected.problems, collected.problems
        configured = read_steps(collected.root, collected.files, collected.names)
        context = Context(self.root, self.system, say=self.said.append, metadata_base=self.metadata_base)
        return Runner(configured, context, lambda: self.facts, lambda: 1.0, lambda: 2.0).run(stage)

    def step(self, text: str) -> Report:
        """Run one step twice; the second run must change nothing."""
        body = "".join(f"    {line}\n" for line in text.splitlines())
        document = f"stages:\n  boot:\n  -\n{body}"
        report = self.run(document)
        assert report.ok, [outcome.failures for outcome in report.outcomes] + [report.problems]
        before = snapshot(self.folder)
        again = self.run(document)
        assert again.ok
        assert snapshot(self.folder) == before, "a second run changes nothing"
        return report

    def fails(self, text: str, complaint: str) -> Report:
        """One step that fails, with that message, and leaves its error in the record."""
        body = "".join(f"    {line}\n" for line in text.splitlines())
        report = self.run(f"stages:\n  boot:\n  -\n{body}")
        assert not report.ok
        messages = [failure.message for outcome in report.outcomes for failure in outcome.failures]
        assert any(complaint in message for message in messages), [messages, report.problems]
        return report


def snapshot(folder: Path) -> dict[str, object]:
    """Every file with its inode and content: a rewrite shows."""
    found: dict[str, object] = {}
    for parent, _, names in os.walk(folder):
        if "kairos-p2p/stages" in parent or "/.git" in parent:
            continue
        for name in names:
            path = Path(parent, name)
            status = path.lstat()
            content = os.readlink(path) if path.is_symlink() else path.read_bytes()
            found[str(path)] = (status.st_ino, status.st_mode, status.st_uid, status.st_gid, content)
    return found


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


TESTED: set[str] = set()


def key(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Notes which keys a test looks at; `test_every_key_has_a_test` asks for all."""
    TESTED.update(names)
    return lambda test: test


@key("dns")
def test_dns(world: World) -> None:
    world.put("run/resolve.conf", "stub\n")
    (world.folder / "etc/resolv.conf").symlink_to("/run/resolve.conf")
    world.step("dns: {nameservers: [8.8.8.8, 1.1.1.1], search: [a.b], options: [rotate]}")
    assert (
        world.text("etc/resolv.conf")
        == "search a.b\nnameserver 8.8.8.8\nnameserver 1.1.1.1\noptions rotate\n"
    )
    assert world.text("run/resolve.conf") == "stub\n"
    world.step("dns: {nameservers: [9.9.9.9], path: /etc/resolv.conf.bak}")
    assert world.text("etc/resolv.conf.bak") == "nameserver 9.9.9.9\n"


@key("downloads")
def test_downloads(world: World) -> None:
    data = b"\x7fELF tool"
    world.system.pages["https://h/t"] = data
    world.step("downloads: [{path: /usr/bin/t, url: 'https://h/t', permissions: 0755}]")
    assert (world.folder / "usr/bin/t").read_bytes() == data
    assert world.mode("usr/bin/t") == 0o755
    digest = hashlib.sha256(data).hexdigest()
    world.system.fetched.clear()
    world.step(f"downloads: [{{path: /usr/bin/t, url: 'https://h/t', permissions: 0700, sha256: {digest}}}]")
    assert world.system.fetched == [], "it is there already"
    assert world.mode("usr/bin/t") == 0o700
    world.fails(f"downloads: [{{path: /x, url: 'https://h/t', sha256: {'0' * 64}}}]", "has the checksum")
    world.fails("downloads: [{path: /x, url: 'https://h/missing'}]", "404")
    assert not (world.folder / "x").exists()


@key("ensure_entities", "delete_entities")
def test_entities(world: World) -> None:
    world.step(
        "ensure_entities:\n"
        '- {path: /etc/passwd, entity: "kind: user\\nusername: foo\\nuid: 0\\ngid: 0\\ninfo: Foo!\\n'
        'homedir: /home/foo\\nshell: /bin/bash"}\n'
        '- entity: "kind: group\\ngroup_name: admin\\nusers: foo"\n'
        '- entity: "kind: shadow\\nusername: foo\\npassword: $6$x\\nlast_changed: now"\n'
        '- {path: /etc/passwd, entity: "kind: user\\nusername: auto\\nuid: -1\\ngid: 5"}'
    )
    assert "foo:x:0:0:Foo!:/home/foo:/bin/bash\n" in world.text("etc/passwd")
    assert "auto:x:1000:5::" in world.text("etc/passwd")
    assert "admin:x:110:ann,foo\n" in world.text("etc/group")
    assert "foo:$6$x:" in world.text("etc/shadow")
    world.step('delete_entities: [{path: /etc/passwd, entity: "kind: user\\nusername: foo"}]')
    assert "foo" not in world.text("etc/passwd")
    assert world.text("etc/passwd").startswith(PASSWD)
    world.fails('ensure_entities: [{entity: "kind: usr"}]', "needs a kind")
    world.fails('ensure_entities: [{entity: "kind: user\\nusername: a\\nuidd: 1"}]', "has no field 'uidd'")


@key("directories")
def test_directories(world: World) -> None:
    world.step("directories: [{path: /srv/a/b, permissions: 0700}, {path: /srv}]")
    assert (world.mode("srv/a/b"), world.mode("srv/a"), world.mode("srv")) == (0o700, 0o755, 0o755)
    world.put("srv/file", "")
    world.fails("directories: [{path: /srv/file}]", "no folder")


@key("files")
def test_files(world: World) -> None:
    packed = base64.b64encode(gzip.compress(b"packed\n")).decode()
    world.step(
        "files:\n"
        "- {path: /etc/secret, content: 'p=1'}\n"
        "- {path: /etc/open, permissions: 0644,\n"
        "   content: 'id={{ trunc 4 .MachineID }} {{ .Values.node.hostname }}'}\n"
        f"- {{path: /etc/packed, content: {packed}, encoding: gz+b64, permissions: 0600}}\n"
        "- {path: /usr/local/bin/x, content: '', permissions: 04755}"
    )
    assert (world.text("etc/secret"), world.mode("etc/secret")) == ("p=1", 0o600), "unwritten means private"
    assert world.text("etc/open") == "id=abcd old"
    assert world.mode("etc/open") == 0o644
    assert world.text("etc/packed") == "packed\n"
    assert world.mode("usr/local/bin/x") == 0o4755
    world.fails("files: [{path: /a, content: '%', encoding: b64}]", "is not b64")
    world.fails("files: [{path: /a, content: '{{ .Random }}'}]", ".Random has no value")
    world.fails("files: [{path: /a, owner_string: nobody-here}]", "no user nobody-here")
    world.fails("files: [{path: /etc, content: a}]", "is no file")


@needs_root
def test_files_have_owners_of_the_root_s_own_accounts(world: World) -> None:
    world.step(
        "files: [{path: /a, owner: 5, group: 6}, {path: /b, owner_string: 'bin:admin'},\n"
        "  {path: /c, owner_string: bin}]"
    )
    ids = [(os.stat(world.folder / name).st_uid, os.stat(world.folder / name).st_gid) for name in "abc"]
    assert ids == [(5, 6), (1, 110), (1, 1)]


@key("commands")
def test_commands_go_to_a_shell_and_each_error_is_kept(world: World) -> None:
    world.system.answers["/bin/sh"] = Ended(3, "one\nwent wrong\n")
    report = world.fails("commands: ['a {{ .MachineID }}', b]", "ended with 3: one; went wrong")
    assert world.system.ran == [["/bin/sh", "-c", f"a {FACTS.machine_id}"], ["/bin/sh", "-c", "b"]]
    assert len(report.outcomes[0].failures) == 2
    assert "one" in world.said


@needs_root
@pytest.mark.skipif(shutil.which("busybox") is None, reason="needs busybox for a shell inside the root")
def test_commands_run_inside_the_root(world: World) -> None:
    busybox = shutil.which("busybox")
    assert busybox is not None
    (world.folder / "bin").mkdir(exist_ok=True)
    shutil.copy(busybox, world.folder / "bin/busybox")
    for name in ("sh", "id", "sleep"):
        (world.folder / "bin" / name).symlink_to("/bin/busybox")
    system = LinuxSystem(world.root, timeout_s=0.3)
    try:
        ended = system.run(["/bin/sh", "-c", "echo hi > /made; pwd; exit 4"])
    except BootError as exc:
        pytest.skip(f"busybox can't run in a chroot here: {exc}")
    assert (ended.code, ended.output) == (4, "/\n")
    assert world.text("made") == "hi\n"
    with pytest.raises(BootError, match="still ran"):
        system.run(["/bin/sh", "-c", "sleep 60"])
    with pytest.raises(BootError, match="nothing"):
        system.run(["/bin/nothing"])


@key("hostname")
def test_hostname(world: World) -> None:
    world.put("etc/hosts", "# mine\n127.0.0.1 localhost\n::1 localhost\n")
    world.step("hostname: 'node-{{ trunc 4 .MachineID }}'")
    assert world.text("etc/hostname") == "node-abcd\n"
    assert world.text("etc/hosts") == "# mine\n127.0.0.1 localhost node-abcd\n::1 localhost\n"
    assert world.system.hostname == "node-abcd"
    assert world.mode("etc/hosts") == 0o644
    world.fails("hostname: 'a b'", "no host name")


@key("sysctl")
def test_sysctl(world: World) -> None:
    world.put("proc/sys/net/ipv4/ip_forward", "0\n")
    world.step("sysctl: {net.ipv4.ip_forward: 1, net.ipv4.conf.eth0/7.rp_filter: 2, kernel/pid_max: 9}")
    assert world.text("proc/sys/net/ipv4/ip_forward") == "1\n"
    assert world.text("proc/sys/net/ipv4/conf/eth0.7/rp_filter") == "2\n"
    assert world.text("proc/sys/kernel/pid_max") == "9\n"
    world.fails("sysctl: {'../../etc/passwd': x}", "no kernel setting")


@key("users")
def test_users(world: World) -> None:
    world.put("etc/default/useradd", "SHELL=/bin/bash\n")
    text = (
        "users:\n"
        "  kairos: {passwd: plain, groups: [admin], ssh_authorized_keys: ['" + KEY + "'], gecos: Me}\n"
        "  hashed: {passwd: $6$salt$hash, uid: 1234, homedir: /var/hashed, shell: /bin/false}\n"
        "  locked: {lock_passwd: true, no_create_home: true}\n"
        "  daemon: {system: true, primary_group: users}"
    )
    if os.geteuid() != 0:
        pytest.skip("needs root: home folders belong to their users")
    world.step(text)
    passwd = world.text("etc/passwd")
    assert passwd.startswith(PASSWD)
    assert "hashed:x:1234:1234::/var/hashed:/bin/false\n" in passwd
    assert "kairos:x:1000:1000:Me:/home/kairos:/bin/bash\n" in passwd, "users are made in the order of names"
    assert "daemon:x:999:100::" in passwd
    assert "admin:x:110:ann,kairos\n" in world.text("etc/group")
    shadow = {line.split(":")[0]: line.split(":")[1] for line in world.text("etc/shadow").splitlines()}
    assert shadow["root"] == "*"
    assert verify("plain", shadow["kairos"])
    assert (shadow["hashed"], shadow["locked"], shadow["daemon"]) == ("$6$salt$hash", "!", "!")
    assert not (world.folder / "home/locked").exists()
    assert (world.folder / "home/kairos").stat().st_uid == 1000
    assert world.text("home/kairos/.ssh/authorized_keys") == KEY + "\n"
    assert (world.mode("home/kairos/.ssh"), world.mode("home/kairos/.ssh/authorized_keys")) == (0o700, 0o600)
    world.step("users: {kairos: {passwd: other, shell: /bin/sh}}")
    assert "kairos:x:1000:1000:Me:/home/kairos:/bin/bash\n" in world.text("etc/passwd"), "only the password"
    world.fails("users: {kairos: {groups: [nope]}}", "no group nope")
    world.fails("users: {'a:b': {}}", "no name of a user")


@needs_root
def test_a_user_who_comes_back_owns_their_home_again(world: World) -> None:
    (world.folder / "home/back").mkdir(parents=True)
    os.chown(world.folder / "home/back", 1077, 1077)
    world.step("users: {back: {}, another: {}}")
    assert "back:x:1077:" in world.text("etc/passwd")


def test_passwords_are_hashed_as_openssl_does() -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs openssl to compare with")
    for password in ("a", "pass word", "ü" * 40, "x" * 130):
        argv = [openssl, "passwd", "-6", "-salt", "abcDEF./", "-stdin"]
        done = subprocess.run(argv, input=password + "\n", capture_output=True, text=True, check=True)
        assert sha512_crypt(password, "abcDEF./") == done.stdout.strip()


@key("authorized_keys")
@needs_root
def test_authorized_keys(world: World) -> None:
    world.system.pages["https://github.com/me.keys"] = b"ssh-rsa AAAA\n<html>\necdsa-sha2-nistp256 BBBB x\n"
    world.put("root/.ssh/authorized_keys", "ssh-rsa OLD kept\n")
    world.step(f"authorized_keys: {{root: ['{KEY}', 'github:me']}}")
    assert world.text("root/.ssh/authorized_keys") == (
        f"ssh-rsa OLD kept\n{KEY}\nssh-rsa AAAA\necdsa-sha2-nistp256 BBBB x\n"
    )
    report = world.fails("authorized_keys: {root: ['github:gone', 'no key', 'ssh-rsa NEW']}", "404")
    assert "no SSH public key" in report.outcomes[0].failures[0].message
    assert "ssh-rsa NEW\n" in world.text("root/.ssh/authorized_keys"), "the good ones stay"
    world.fails("authorized_keys: {nobody: ['ssh-rsa A']}", "no user nobody")


@key("modules")
def test_modules(world: World) -> None:
    world.put("proc/modules", "br_netfilter 1 0 - Live 0x0\n")
    world.step("modules: [br-netfilter, 'bonding mode=1']")
    assert world.system.ran[0] == ["modprobe", "bonding", "mode=1"]
    assert all(argv[1] != "br-netfilter" for argv in world.system.ran)
    world.fails("modules: ['a; rm']", "no kernel module")


@key("timesyncd")
def test_timesyncd(world: World) -> None:
    path = "etc/systemd/timesyncd.conf.d/10-yip.conf"
    world.step("timesyncd: {NTP: '0.pool.org foo.pool.org', FallbackNTP: ''}")
    assert world.text(path) == "[Time]\nNTP=0.pool.org foo.pool.org\nFallbackNTP=\n"
    world.step("timesyncd: {NTP: x}")
    assert world.text(path) == "[Time]\nNTP=x\nFallbackNTP=\n"


@key("systemctl")
@pytest.mark.parametrize("manager", ["systemd", "openrc", ""])
def test_systemctl(world: World, manager: str) -> None:
    world.facts = Facts(service_manager=manager)  # type: ignore[arg-type]
    text = (
        "systemctl:\n  start: [d]\n  enable: [a]\n  disable: [b]\n  mask: [c]\n"
        "  overrides: [{service: k3s, content: '[Service]'}, {service: x.timer, name: y, content: z}]"
    )
    if not manager:
        report = world.fails(text, "neither systemd nor OpenRC")
        assert len(report.outcomes[0].failures) == 4
    else:
        world.step(text)
        wanted = {
            "systemd": [
                ["systemctl", verb, unit]
                for verb, unit in zip(("enable", "disable", "mask", "start"), "abcd", strict=True)
            ],
            "openrc": [
                ["rc-update", "add", "a"],
                ["rc-update", "-a", "del", "b"],
                ["rc-update", "-a", "del", "c"],
                ["rc-service", "d", "start"],
            ],
        }
        assert world.system.ran[:4] == wanted[manager]
    assert world.text("etc/systemd/system/k3s.service.d/override-yip.conf") == "[Service]"
    assert world.text("etc/systemd/system/x.timer.d/y.conf") == "z"


@key("environment", "environment_file")
def test_environment(world: World) -> None:
    world.put("etc/environment", "# mine\nOLD=1\nFOO=old\n")
    world.step("environment: {FOO: 'b a$r', ID: '{{ trunc 2 .MachineID }}'}")
    assert world.text("etc/environment") == '# mine\nOLD=1\nFOO="b a\\$r"\nID="ab"\n'
    world.step("environment_file: /etc/rancher/k3s/k3s.env\nenvironment: {command_args: server --verbose}")
    assert world.text("etc/rancher/k3s/k3s.env") == 'command_args="server --verbose"\n'
    assert world.mode("etc/rancher/k3s/k3s.env") == 0o600
    world.fails("environment: {'a b': c}", "no variable's name")


@key("systemd_firstboot")
def test_systemd_firstboot(world: World) -> None:
    world.fails("systemd_firstboot: {keymap: us}", "not on this system")
    world.system.programs.add("systemd-firstboot")
    world.step("systemd_firstboot: {keymap: us, Setup-Machine-Id: true}")
    assert world.system.ran[0] == ["systemd-firstboot", "--force", "--setup-machine-id", "--keymap=us"]


@key("packages", "package_pins")
def test_packages(world: World) -> None:
    world.fails("packages: {install: [a]}", "no package program")
    world.system.programs.add("apt-get")
    world.step(
        "package_pins: {curl: 8.1*}\npackages: {remove: [b], install: [a], upgrade: true, refresh: true}"
    )
    verbs = [argv[2:] if argv[1] == "-y" else argv for argv in world.system.ran[:4]]
    assert verbs == [["update"], ["upgrade"], ["--no-install-recommends", "install", "a"], ["remove", "b"]]
    assert "Package: curl\nPin: version 8.1*\n" in world.text("etc/apt/preferences.d/99-yip-pins")
    world.system.programs = {"apk"}
    world.put("etc/apk/world", "busybox\ncurl<8\n")
    world.step("package_pins: {curl: 8.1-r0}")
    assert world.text("etc/apk/world") == "busybox\ncurl=8.1-r0\n"


@key("git")
@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_git(tmp_path: Path) -> None:
    origin, root = tmp_path / "origin", tmp_path / "root"
    root.mkdir()
    world = World(root)

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "init.defaultBranch=main"]
        subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, cwd=origin)

    class OnHost(Recorder):
        """git itself, with paths of the root as this machine has them."""

        def run(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, stdin: str = "") -> Ended:
            mine = [str(root / "oem/copy") if word == "/oem/copy" else word for word in argv]
            done = subprocess.run(
                mine,
                env={"PATH": os.environ["PATH"], **(env or {})},
                capture_output=True,
                text=True,
                check=False,
            )
            super().run(argv, env=env)
            return Ended(done.returncode, done.stdout + done.stderr)

    origin.mkdir()
    git("init", "-q")
    (origin / "a.yaml").write_text("one\n")
    git("add", "."), git("commit", "-qm", "one")
    world.system = OnHost(programs={"git"})
    text = f"git: {{url: '{origin}', path: /oem/copy, branch: main, auth: {{username: u, password: hush}}}}"
    world.step(text.replace("auth", "branch_only: true, auth"))
    assert world.text("oem/copy/a.yaml") == "one\n"
    (origin / "a.yaml").write_text("two\n")
    git("commit", "-qam", "two")
    world.put("oem/copy/a.yaml", "edited\n")
    assert world.run(f"stages:\n  boot:\n  - {text}").ok
    assert world.text("oem/copy/a.yaml") == "two\n", "the newest commit, whatever was edited"
    assert not any("hush" in word for argv in world.system.ran for word in argv)
    report = world.fails("git: {url: '/nowhere', path: /oem/copy2, branch: main}", "git for /oem/copy2")
    assert "hush" not in str(report)


@key("layout")
def test_layout(world: World) -> None:
    image = world.put("dev/sda", b"")
    with image.open("r+b") as file:
        file.truncate(64 * gpt.MIB)
    text = (
        "layout:\n"
        "  device: {path: /dev/sda, init_disk: true, disk_name: MINE}\n"
        "  expand_partition: {size: 0}\n"
        "  add_partitions:\n"
        "  - {fsLabel: COS_STATE, pLabel: state, size: 8, filesystem: ext4}\n"
        "  - {pLabel: efi, size: 4, filesystem: fat32, bootable: true}"
    ).replace("  expand_partition: {size: 0}\n", "")
    world.step(text)
    table = read_table(image)
    assert [(one.number, one.name, (one.last - one.first + 1) * 512 // gpt.MIB) for one in table.slices] == [
        (1, "state", 8),
        (2, "efi", 4),
    ]
    assert table.slices[1].kind == gpt.ESP
    assert all(one.first % 2048 == 0 for one in table.slices)
    assert world.system.ran == [
        ["mkfs.ext4", "-F", "-L", "COS_STATE", "/dev/sda1"],
        ["mkfs.fat", "-F", "32", "/dev/sda2"],
    ]
    world.step("layout: {device: {path: /dev/sda}, expand_partition: {size: 16}}")
    world.step("layout: {device: {path: /dev/sda}, expand_partition: {size: 8}}")
    assert (read_table(image).slices[1].last - read_table(image).slices[1].first + 1) * 512 == 16 * gpt.MIB
    world.fails("layout: {device: {path: /dev/sda}, add_partitions: [{size: 999, pLabel: x}]}", "not 999")
    world.fails("layout: {device: {path: /dev/sda}, add_partitions: [{size: 1}]}", "without a label")
    world.step("layout: {device: {path: /dev/sda}, add_partitions: [{pLabel: rest, filesystem: swap}]}")
    assert read_table(image).slices[2].last > 64 * 2048 - 4096
    world.put("dev/sdb", bytes(gpt.MIB))
    world.fails("layout: {device: {path: /dev/sdb}, expand_partition: {}}", "no GPT")
    with (world.folder / "dev/sdb").open("r+b") as file:
        file.seek(1080)
        file.write(b"\x53\xef")
    world.fails("layout: {device: {path: /dev/sdb, init_disk: true}}", "is not empty")
    world.fails("layout: {device: {label: NOPE}}", "no partition has the label NOPE")


def read_table(image: Path) -> gpt.Table:
    size = image.stat().st_size // 512
    table = gpt.parse(image.read_bytes()[: 64 * 512], size, 512)
    assert table is not None
    return table


@pytest.mark.skipif(shutil.which("partx") is None, reason="needs partx, whose reading of GPT is compared")
def test_others_read_our_partition_table(tmp_path: Path) -> None:
    image = tmp_path / "disk"
    table = gpt.Table(uuid.UUID(int=7), 64 * 2048, 512)
    table, _ = table.added("state", 8, gpt.LINUX, uuid.UUID(int=8))
    table, _ = table.added("rest", 0, gpt.LINUX, uuid.UUID(int=9))
    with image.open("wb") as file:
        file.truncate(64 * gpt.MIB)
        for offset, data in table.writes():
            file.seek(offset)
            file.write(data)
    argv = ["partx", "--show", "--noheadings", "-o", "NR,START,SECTORS,NAME", str(image)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    found = [line.split() for line in done.stdout.splitlines()]
    assert found == [
        [str(one.number), str(one.first), str(one.last - one.first + 1), one.name] for one in table.slices
    ]


def test_links_do_not_lead_out_of_the_root(world: World, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (world.folder / "var").mkdir()
    (world.folder / "var/run").symlink_to("/run")
    (world.folder / "escape").symlink_to(outside)
    (world.folder / "up").symlink_to("../../../../../..")
    world.step(
        "files: [{path: /var/run/a, content: a}, {path: /escape/b, content: b}, {path: /up/c, content: c},\n"
        "  {path: /../../d, content: d}]"
    )
    assert world.text("run/a") == "a"
    assert list(outside.iterdir()) == []
    assert world.text("c") == "c"
    assert world.text("d") == "d"
    (world.folder / "ring").symlink_to("ring")
    world.fails("files: [{path: /ring/x, content: a}]", "too many links")


def test_what_is_drawn_once_stays(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    root = Root(tmp_path)
    assert observe(root).random is None
    first = observe(root, keep=True)
    assert first == observe(root) == observe(root, keep=True)
    assert first.random
    assert len(first.random) == 32
    assert uuid.UUID(first.uuid).version == 4
    assert stat.S_IMODE((tmp_path / SEED.lstrip("/")).stat().st_mode) == 0o600
    assert first.machine_id == "0123456789abcdef0123456789abcdef"


def test_every_key_has_a_test() -> None:
    others = {"datasource", "unpack_images"}  # test_stages_sources.py
    conditions = {
        "name",
        "after",
        "fatal",
        "node",
        "if_",
        "only_os",
        "only_os_version",
        "only_arch",
        "only_service_manager",
        "if_files",
    }
    assert TESTED | others | conditions == set(keys_of(Step))
