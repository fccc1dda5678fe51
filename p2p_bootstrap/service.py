"""How does the agent run for ever on a machine: under which service manager, with which unit?

Two halves: unit files as pure text (`systemd_unit`, `openrc_script`), and `ServiceHost`, the thin adapter
that writes them and calls ``systemctl`` or ``rc-service``. Both units let the agent end alone: the data
plane and k3s, started by it, live on through a restart of the agent, so an upgrade loses no packet.
"""

from __future__ import annotations

import os
import shlex
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from p2p_network.core.errors import NotPermitted, P2PError
from p2p_roles.k3s.units import systemd_path, systemd_quote

Kind = Literal["systemd", "openrc"]
NAME: Final = "kairos-p2p"
LEFT: Final = "left"  # in the state folder: this node left, and joins no more by itself
_COMMAND_TIMEOUT_S: Final = 60


def notify(state: str) -> None:
    """Tell systemd about this process, e.g. ``READY=1``; does nothing when systemd did not start it.

    Best effort: a manager that went away is no reason to fail.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.connect(address)
            sock.sendall(state.encode())
    except OSError:
        return


def systemd_unit(
    argv: Sequence[str], config_path: Path | None, *, after: Sequence[str] = ("network.target",)
) -> str:
    """The unit file that runs `argv` as long as `config_path` exists (`leave` removes it); None: always."""
    condition = f"ConditionPathExists={systemd_path(str(config_path))}\n" if config_path else ""
    return f"""\
[Unit]
Description=kairos-p2p agent: private mesh, VPN and k3s roles
After={" ".join(after)}
{condition}\
# an edge node has nobody who would reset a unit that gave up
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart={" ".join(systemd_quote(arg) for arg in argv)}
# the data plane and k3s go on while the agent restarts; "kairos-p2p leave" stops them
KillMode=process
Restart=always
RestartSec=2
# a small machine under load takes its time to load us
TimeoutStartSec=300
TimeoutStopSec=20
# k3s runs below us and wants what its own unit would give it
Delegate=yes
TasksMax=infinity
LimitNOFILE=1048576
LimitNPROC=infinity
LimitCORE=infinity

[Install]
WantedBy=multi-user.target
"""


def openrc_script(
    argv: Sequence[str], config_path: Path | None, *, after: Sequence[str] = ("net", "firewall")
) -> str:
    """The OpenRC service script that runs `argv`; its log goes to /var/log/kairos-p2p.log."""
    command, *arguments = argv
    # command_args is split by a shell when the service starts: quoted once for that, once for this file
    inner = " ".join(shlex.quote(arg) for arg in arguments)
    required = f"required_files={shlex.quote(str(config_path))}\n" if config_path else ""
    # in an image that boots itself the mounts are there before the init is
    mounted = "need localmount" if config_path else "after localmount"
    return f"""\
#!/sbin/openrc-run
description="kairos-p2p agent: private mesh, VPN and k3s roles"
supervisor=supervise-daemon
command={shlex.quote(command)}
command_args={shlex.quote(inner)}
respawn_delay=2
respawn_max=0
retry="TERM/20"
output_log=/var/log/kairos-p2p.log
error_log=/var/log/kairos-p2p.log
{required}\
# the data plane and k3s go on while the agent restarts; "kairos-p2p leave" stops them
rc_cgroup_cleanup=no
rc_ulimit="-n 1048576"

depend() {{
    {mounted}
    after {" ".join(after)}
}}
"""


@dataclass(frozen=True, slots=True)
class ServiceHost:
    """A service manager of this machine.

    Attributes:
        kind: which one.
        root: prefix of every path, "/" but in tests.
    """

    kind: Kind
    root: Path = field(default=Path("/"))

    @classmethod
    def detect(cls, root: Path = Path("/")) -> ServiceHost | None:
        """The manager that runs this machine, or None (a container, a rescue shell)."""
        if (root / "run/systemd/system").is_dir():
            return cls("systemd", root)
        if (root / "run/openrc").is_dir():
            return cls("openrc", root)
        return None

    @property
    def unit_path(self) -> Path:
        """Where the unit file lies."""
        if self.kind == "systemd":
            return self.root / f"etc/systemd/system/{NAME}.service"
        return self.root / f"etc/init.d/{NAME}"

    def start_commands(self, *, restart: bool) -> tuple[tuple[str, ...], ...]:
        """The commands that enable and start the service once its unit is written."""
        if self.kind == "systemd":
            return (
                ("systemctl", "daemon-reload"),
                ("systemctl", "enable", f"{NAME}.service"),
                # READY=1 comes when the agent listens; what it reaches after that is ours to watch
                ("systemctl", "restart" if restart else "start", "--no-block", f"{NAME}.service"),
            )
        start = ("rc-service", NAME, "restart") if restart else ("rc-service", "--ifstopped", NAME, "start")
        return (("rc-update", "add", NAME, "default"), start)

    def stop_commands(self) -> tuple[tuple[str, ...], ...]:
        """The commands that stop the service and keep it from starting at boot."""
        if self.kind == "systemd":
            return (("systemctl", "disable", "--now", f"{NAME}.service"),)
        return (("rc-service", "--ifstarted", NAME, "stop"), ("rc-update", "del", NAME, "default"))

    def render(self, argv: Sequence[str], config_path: Path) -> str:
        """The text of the unit file."""
        make = systemd_unit if self.kind == "systemd" else openrc_script
        return make(argv, config_path)

    def log_command(self) -> str:
        """What a person types to read the agent's log."""
        return f"journalctl -u {NAME}" if self.kind == "systemd" else f"less /var/log/{NAME}.log"

    def is_installed(self) -> bool:
        """Whether our unit file is there."""
        return self.unit_path.exists()

    def install(self, argv: Sequence[str], config_path: Path) -> bool:
        """Write the unit file; True if that changed it. Raises NotPermitted, P2PError."""
        text = self.render(argv, config_path)
        try:
            if self.unit_path.exists() and self.unit_path.read_text(encoding="utf-8") == text:
                return False
            self.unit_path.parent.mkdir(parents=True, exist_ok=True)
            fresh = self.unit_path.with_name(f".{NAME}.new")
            fresh.write_text(text, encoding="utf-8")
            fresh.chmod(0o755 if self.kind == "openrc" else 0o644)
            fresh.replace(self.unit_path)
        except PermissionError as exc:
            raise NotPermitted(
                f"the service file {self.unit_path} cannot be written: permission denied",
                hint="run it as root, e.g. with sudo",
            ) from exc
        except OSError as exc:
            raise P2PError(f"the service file {self.unit_path} cannot be written: {exc.strerror}") from exc
        return True


def run_command(argv: Sequence[str]) -> None:
    """Run one command of a service manager to its end. Raises P2PError that quotes its words."""
    import sh

    line = shlex.join(argv)
    try:
        sh.Command(argv[0])(*argv[1:], _timeout=_COMMAND_TIMEOUT_S)
    except sh.CommandNotFound as exc:
        raise P2PError(f"cannot run {line}: {argv[0]} is not installed") from exc
    except sh.TimeoutException as exc:
        raise P2PError(
            f"{line} did not end within {_COMMAND_TIMEOUT_S} s", hint=f"run it by hand: {line}"
        ) from exc
    except sh.ErrorReturnCode as exc:
        words = exc.stderr.decode(errors="replace").strip()[-400:] or f"exit code {exc.exit_code}"
        raise P2PError(f"{line} failed: {words}", hint=f"run it by hand: {line}") from exc


def agent_argv(executable: Path, config_path: Path, state_dir: Path, socket_path: Path) -> tuple[str, ...]:
    """How a service starts the agent. `executable`: this program's Python.

    The command beside it is used where there is one: it is what a person sees in ``ps``.
    """
    command = executable.parent / NAME
    program = (str(command),) if command.exists() else (str(executable), "-m", "p2p_bootstrap.cli.main")
    return (
        *program,
        "agent",
        "--cloud-config",
        str(config_path),
        "--state-dir",
        str(state_dir),
        "--socket",
        str(socket_path),
        "--log-format",
        "console",
    )
