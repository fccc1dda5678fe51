"""Does a node without a device and without rights reach the mesh, and only what the rules let it?"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest
from clusters import ask, statuses

from p2p_simulations.lab import processes
from p2p_simulations.lab.lab import Lab
from p2p_simulations.lab.node import Node, kairos_p2p
from p2p_simulations.lab.topology import make_topology

pytestmark = pytest.mark.timeout(600)

LabFactory = Callable[..., Lab]
PATIENCE_S = 60.0
BEHIND, LAN = "10.77.0.5", "10.77.0.0/24"
CONFIG = {"p2p": {"auto": {"enable": False}}}
SITE = {"p2p": {"services": [{"name": "site", "to": "127.0.0.1:8001", "port": 80}]}}
LOWLY = {
    "p2p": {
        "socks": "127.0.0.1:1080",
        "forwards": [{"listen": "127.0.0.1:8080", "to": "n1:8001"}],
        "listen": ["0.0.0.0:4701"],
    }
}
HOME = "/tmp/lowly"
SOCKET = f"{HOME}/agent.sock"
# an account of its own, without any right but to read this program wherever it lies
LOWER = [
    "setpriv",
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
    "--bounding-set=-all,+dac_read_search",
]
LOWER += ["--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"]
ECHO = (
    "import socket\ns = socket.socket(type=socket.SOCK_DGRAM)\ns.bind(('0.0.0.0', 9999))\n"
    "while True:\n    data, who = s.recvfrom(65535)\n    s.sendto(data.upper(), who)\n"
)
SAY = (
    "import socket, sys\ns = socket.socket(type=socket.SOCK_DGRAM)\ns.settimeout(5)\n"
    "s.sendto(b'hello', ('127.0.0.1', int(sys.argv[1])))\nprint(s.recv(100).decode())\n"
)
ASSOCIATE = """
import socket, struct
control = socket.create_connection(("127.0.0.1", 1080), 10)
control.sendall(b"\\x05\\x01\\x00")
assert control.recv(2) == b"\\x05\\x00"
control.sendall(b"\\x05\\x03\\x00\\x01" + bytes(6))
answer = control.recv(10)
assert answer[:4] == b"\\x05\\x00\\x00\\x01", answer
relay = (socket.inet_ntoa(answer[4:8]), struct.unpack("!H", answer[8:])[0])
udp = socket.socket(type=socket.SOCK_DGRAM)
udp.settimeout(10)
head = b"\\0\\0\\0\\x03\\x02n1" + struct.pack("!H", 9999)
udp.sendto(head + b"hello", relay)
data = udp.recv(100)
assert data.startswith(head), data
print(data[len(head):].decode())
"""


MIB = 16


def told(node: Node, *argv: str) -> str:
    done = node.exec([*kairos_p2p(), *argv], 60)
    assert done.returncode == 0, f"{' '.join(argv)} on {node.name}: {done.stderr}"
    return done.stdout.strip()


@contextlib.contextmanager
def going_on(argv: list[str], log: str) -> Iterator[None]:
    """A program, ended with the block."""
    with (
        open(log, "w") as file,
        subprocess.Popen(argv, stdout=file, stderr=file, start_new_session=True) as process,
    ):
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def test_a_node_without_a_device_reaches_the_mesh(lab: LabFactory) -> None:
    mine = lab(
        make_topology({"east": ("n1",), "west": ("n2", "n3")}, config=CONFIG, nodes={"n1": SITE, "n3": LOWLY})
    )
    one, two, three = (mine.node(name) for name in ("n1", "n2", "n3"))
    for node in (one, two):
        mine.start_agent(node.name)
    for node, page in ((one, "www"), (three, "www")):
        node.exec(["sh", "-c", f"mkdir /root/{page}; echo from {node.name} > /root/{page}/index.html"])
    prepare = f"mkdir -m 700 {HOME}; cp /oem/90_custom.yaml {HOME}/c.yaml; chown -R 65534:65534 {HOME}"
    assert three.exec(["sh", "-c", prepare]).returncode == 0
    (router,) = [h.pid for h in processes.holders(mine.folder) if h.place == processes.ROUTER]
    inside = ["nsenter", "-t", str(router), "-n"]
    subprocess.run([*inside, "ip", "address", "add", f"{BEHIND}/32", "dev", "lo"], check=True)
    (mine.folder / "behind").mkdir()
    (mine.folder / "behind" / "index.html").write_text("from behind\n")
    serve = ["python3", "-m", "http.server"]
    agent = [*kairos_p2p(), "agent", "--cloud-config", f"{HOME}/c.yaml", "--state-dir", f"{HOME}/state"]
    logs = str(mine.folder)
    with contextlib.ExitStack() as programs:
        for argv, log in (
            (one.enter_argv([*serve, "8001", "-d", "/root/www"]), "web"),
            (one.enter_argv(["python3", "-c", ECHO]), "echo"),
            ([*inside, *serve, "80", "-b", BEHIND, "-d", f"{mine.folder}/behind"], "behind"),
            (three.enter_argv([*LOWER, *agent, "--socket", SOCKET]), "agent"),
        ):
            programs.enter_context(going_on(argv, f"{logs}/{log}.log"))
        try:
            check(mine, one, two, three)
        except BaseException:
            print((mine.folder / "agent.log").read_text()[-4000:])
            raise


def check(mine: Lab, one: Node, two: Node, three: Node) -> None:
    def lowly(*argv: str) -> subprocess.CompletedProcess[str]:
        return three.exec([*LOWER, *kairos_p2p(), *argv, "--socket", SOCKET], 60)

    def fetched(url: str) -> str:
        return three.exec(
            ["curl", "-sS", "--max-time", "30", "--socks5-hostname", "127.0.0.1:1080", url]
        ).stdout

    def status() -> dict[str, dict[str, str]]:
        done = lowly("status", "-o", "json")
        return dict(json.loads(done.stdout)) if done.returncode == 0 else {}

    mine.wait(lambda: status().get("mesh", {}).get("state") == "joined", PATIENCE_S, "n3 to join")
    vpn = status()["vpn"]
    assert vpn["state"] == "userspace"
    assert "CAP_NET_ADMIN" in vpn["reason"]
    assert three.exec(["test", "-e", "/sys/class/net/kp2p0"]).returncode != 0

    def address() -> str:
        seen = statuses(mine, ("n1",)).get("n1")
        return seen["vpn"]["ipv4"] if seen is not None and seen["vpn"]["state"] == "up" else ""

    mine.wait(address, PATIENCE_S, "n1's VPN")
    origin = f"{status()['mesh']['network_id']}.p2p"
    # by a node's name, by its VPN address, by a service's name; and by a port forward
    for url in (
        f"http://n1.{origin}:8001/",
        f"http://{address()}:8001/",
        f"http://site.{origin}/",
        f"http://site.east.{origin}/",
    ):
        mine.wait(lambda url=url: "from n1" in fetched(url), PATIENCE_S, url)
    plain = ["curl", "-sS", "--max-time", "30", "http://127.0.0.1:8080/"]
    mine.wait(lambda: "from n1" in three.exec(plain).stdout, PATIENCE_S, "the port forward")
    mine.wait(
        lambda: three.exec(["python3", "-c", ASSOCIATE]).stdout.strip() == "HELLO",
        PATIENCE_S,
        "UDP ASSOCIATE",
    )

    forwards(mine, one, three)

    # a network behind n2: only once it is accepted, and through n2
    told(two, "routes", "advertise", LAN)
    mine.wait(lambda: LAN in told(one, "routes", "-o", "name"), PATIENCE_S, "the offer")
    assert fetched(f"http://{BEHIND}/") == ""
    told(one, "routes", "accept", "n2")
    mine.wait(lambda: "from behind" in fetched(f"http://{BEHIND}/"), PATIENCE_S, "the network behind n2")

    # what is not the mesh's, not there, or not allowed, is refused in SOCKS's words
    curl = ["curl", "-sS", "--max-time", "30", "--socks5-hostname", "127.0.0.1:1080"]
    for url in ("http://example.com/", f"http://nobody.{origin}/", f"http://n1.{origin}:1/"):
        assert three.exec([*curl, url]).returncode == 97, url
    told(one, "access", "deny", "node:n3", "node:n1")
    mine.wait(lambda: not fetched(f"http://n1.{origin}:8001/"), PATIENCE_S, "the rule")
    assert "(2)" in three.exec([*curl, f"http://n1.{origin}:8001/"]).stderr, "not allowed by ruleset"
    mine.wait(lambda: "from behind" in fetched(f"http://{BEHIND}/"), PATIENCE_S, "what is still allowed")
    assert [row["allowed"] for row in ask(mine, "n1", "access")["inbound"] if row["hostname"] == "n3"] == [
        False
    ]


def forwards(mine: Lab, one: Node, three: Node) -> None:
    """Large transfers side by side through both kinds of forward, and datagrams: none hinders another."""
    one.exec(["sh", "-c", f"head -c {MIB}M /dev/urandom > /root/www/big"])
    digest = one.exec(["sha256sum", "/root/www/big"]).stdout.split()[0]
    by_hand = [*LOWER, *kairos_p2p(), "forward", "--socket", SOCKET]
    with contextlib.ExitStack() as programs:
        doors = []
        for argv in (["127.0.0.1:0", "n1:8001"], ["127.0.0.1:0", "n1:9999", "--udp"]):
            process = programs.enter_context(
                subprocess.Popen(
                    three.enter_argv([*by_hand, *argv]),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                    start_new_session=True,
                )
            )
            programs.callback(os.killpg, process.pid, signal.SIGKILL)
            assert process.stdout is not None
            doors.append(process.stdout.readline().strip())
        page, echo = doors
        loads = [
            programs.enter_context(
                subprocess.Popen(
                    three.enter_argv(["sh", "-c", f"curl -sS --max-time 120 http://{door}/big | sha256sum"]),
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for door in (page, page, "127.0.0.1:8080")
        ]
        say = ["python3", "-c", SAY, echo.rpartition(":")[2]]
        mine.wait(lambda: three.exec(say).stdout.strip() == "HELLO", PATIENCE_S, "an echo beside the traffic")
        assert "from n1" in three.exec(["curl", "-sS", "--max-time", "60", f"http://{page}/"]).stdout
        for load in loads:
            assert load.communicate(timeout=180)[0].split()[0] == digest
