"""How does k3s run under a service manager: which unit, which script, which environment file?

Pure text. The unit is written where a reboot forgets it and is in no runlevel: after a power cut k3s must not
start before the agent knows this node's assignment. Secrets stand in neither (anyone may read a unit): k3s
reads them from its own configuration, and the user's environment from a file of mode 0600.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

NAME: Final = "kairos-p2p-k3s"
STOP_S: Final = 30

_DIGEST: Final = re.compile(r"^# digest ([0-9a-f]{64})$", re.MULTILINE)
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def systemd_unit(argv: Sequence[str], env_path: Path, digest: str) -> str:
    """The unit that runs k3s. `digest`: of what it was started with, found again by `digest_of`."""
    return f"""\
# written by kairos-p2p, which starts and stops it; do not enable it
# digest {digest}
[Unit]
Description=k3s, driven by kairos-p2p
Documentation=https://docs.k3s.io
After=network.target
# an edge node has nobody who would reset a unit that gave up
StartLimitIntervalSec=0

[Service]
Type=notify
EnvironmentFile={systemd_path(str(env_path))}
ExecStartPre=-/sbin/modprobe br_netfilter
ExecStartPre=-/sbin/modprobe overlay
ExecStart={" ".join(systemd_quote(arg) for arg in argv)}
# pods outlive a restart of k3s
KillMode=process
Delegate=yes
LimitNOFILE=1048576
LimitNPROC=infinity
LimitCORE=infinity
TasksMax=infinity
# READY=1 may need other servers, which may be down for days
TimeoutStartSec=0
TimeoutStopSec={STOP_S}
Restart=always
RestartSec=5
"""


def openrc_script(argv: Sequence[str], env_path: Path, log_path: Path, digest: str) -> str:
    """The OpenRC service script that runs k3s under supervise-daemon.

    A shell of k3s's own reads the environment: in the script's it would take away OpenRC's PATH. It also sets
    the limits: of several, `rc_ulimit` takes only the first where /bin/sh is dash.
    """
    line = " ".join(shlex.quote(arg) for arg in argv)
    starts = f"ulimit -n 1048576; ulimit -c unlimited; set -a; . {shlex.quote(str(env_path))}; exec {line}"
    # command_args is split by a shell when the service starts: quoted once for that, once for this file
    inner = f"-c {shlex.quote(starts)}"
    return f"""\
#!/sbin/openrc-run
# written by kairos-p2p, which starts and stops it; do not add it to a runlevel
# digest {digest}
description="k3s, driven by kairos-p2p"
supervisor=supervise-daemon
pidfile=/run/{NAME}.pid
command=/bin/sh
command_args={shlex.quote(inner)}
output_log={shlex.quote(str(log_path))}
error_log={shlex.quote(str(log_path))}
respawn_delay=5
respawn_max=0
retry="TERM/{STOP_S}/KILL/5"
# pods outlive a restart of k3s
rc_cgroup_cleanup=no

depend() {{
    want cgroups
    # an image that boots itself has no localmount to need: its mounts are there before the init is
    after localmount net firewall
}}

start_pre() {{
    modprobe -q br_netfilter
    modprobe -q overlay
    # a kernel may have them built in, or lack them: k3s says so better
    return 0
}}
"""


def env_file(env: Mapping[str, str]) -> str:
    """Assignments that systemd's EnvironmentFile and a POSIX shell read alike.

    Names that are no variables are left out: neither could set them.
    """
    lines = []
    for name, value in sorted(env.items()):
        if _VARIABLE.fullmatch(name):
            escaped = re.sub(r'(["\\$`])', r"\\\1", value)
            lines.append(f'{name}="{escaped}"\n')
    return "".join(lines)


def digest_of(text: str) -> str:
    """The digest in a unit's or script's text; "" if it is not one of ours."""
    found = _DIGEST.search(text)
    return found[1] if found else ""


def systemd_path(text: str) -> str:
    """A path in a unit file."""
    return text.replace("%", "%%")


def systemd_quote(arg: str) -> str:
    """One word of an Exec line."""
    escaped = systemd_path(arg).replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    return f'"{escaped}"' if not escaped or any(c in escaped for c in " \t'\"\\;") else escaped
