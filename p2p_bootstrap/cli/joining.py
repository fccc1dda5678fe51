"""What has to be done so that this machine becomes a node, given what is there already?

`plan` is pure: facts in, steps out, or an error that says why not. A step can describe itself, for
``--dry-run``, and execute. Planning again after everything is done plans nothing but the wait.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from p2p_bootstrap.cli.options import format_duration
from p2p_bootstrap.service import ServiceHost, run_command
from p2p_network.core.errors import P2PError

_LEAVE_FIRST = "a machine is in one mesh at a time; leave that one first: kairos-p2p leave"


@dataclass(frozen=True, slots=True)
class Target:
    """What the machine shall become.

    Attributes:
        text: the configuration, as it will lie on the disk.
        mesh_id, network_id, region, fingerprint: what it says; `fingerprint` names the token.
        config, state_dir, socket: where things lie.
        argv: how a service starts the agent.
        timeout_s: how long to wait for the role.
    """

    text: str
    mesh_id: str
    network_id: str
    region: str
    fingerprint: str
    config: Path
    state_dir: Path
    socket: Path
    argv: tuple[str, ...]
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Found:
    """What is there.

    Attributes:
        text, mesh_id: of the configuration on the disk; None if there is none.
        running_mesh_id: mesh of the agent that answers on the socket, None if none does.
        host: the service manager.
        unit: text of our unit file, None if there is none.
    """

    text: str | None
    mesh_id: str | None
    running_mesh_id: str | None
    host: ServiceHost | None
    unit: str | None


class Step(Protocol):
    """One thing to do."""

    def describe(self) -> str:
        """What it does, one line in the imperative."""
        ...

    def execute(self) -> None:
        """Do it. Raises P2PError."""
        ...


@dataclass(frozen=True, slots=True)
class WriteConfig:
    """Put the configuration on the disk."""

    target: Target

    def describe(self) -> str:
        """See `Step`."""
        target = self.target
        region = f", region {target.region}" if target.region else ""
        return (
            f"write {target.config} (mode 0600): network {target.network_id}{region}, "
            f"token {target.fingerprint}, mesh {target.mesh_id}"
        )

    def execute(self) -> None:
        """See `Step`."""
        from p2p_bootstrap.config.write import write_config

        write_config(self.target.config, self.target.text)


@dataclass(frozen=True, slots=True)
class InstallUnit:
    """Put the service file in its place."""

    target: Target
    host: ServiceHost

    def describe(self) -> str:
        """See `Step`."""
        return f"write {self.host.unit_path}"

    def execute(self) -> None:
        """See `Step`."""
        self.host.install(self.target.argv, self.target.config)


@dataclass(frozen=True, slots=True)
class RunCommand:
    """Run one command of the service manager."""

    argv: tuple[str, ...]

    def describe(self) -> str:
        """See `Step`."""
        return f"run {' '.join(self.argv)}"

    def execute(self) -> None:
        """See `Step`."""
        run_command(self.argv)


@dataclass(frozen=True, slots=True)
class WaitForRole:
    """Watch the agent until the node has its role."""

    target: Target
    wait: Callable[[Target], None]

    def describe(self) -> str:
        """See `Step`."""
        return f"wait up to {format_duration(self.target.timeout_s)} until the node has its role"

    def execute(self) -> None:
        """See `Step`."""
        self.wait(self.target)


@dataclass(frozen=True, slots=True)
class RunHere:
    """Be the agent, until Ctrl-C."""

    target: Target
    run: Callable[[Target], None]

    def describe(self) -> str:
        """See `Step`."""
        wait = format_duration(self.target.timeout_s)
        return f"run the agent in the foreground, with up to {wait} until the node has its role"

    def execute(self) -> None:
        """See `Step`."""
        self.run(self.target)


def plan(
    target: Target, found: Found, *, wait: Callable[[Target], None], run: Callable[[Target], None]
) -> tuple[Step, ...]:
    """The steps from `found` to `target`. Raises P2PError if the machine is in another mesh."""
    for mesh_id, where in ((found.mesh_id, f"by {target.config}"), (found.running_mesh_id, "by its agent")):
        if mesh_id not in (None, target.mesh_id):
            raise P2PError(f"this machine is in the mesh {mesh_id} already, {where}", hint=_LEAVE_FIRST)
    running = found.running_mesh_id is not None
    config_changes = found.text != target.text
    steps: list[Step] = [WriteConfig(target)] if config_changes else []
    if found.host is None:
        if running and config_changes:
            raise P2PError(
                "the agent that runs here must be restarted to take the new configuration, "
                "and no service manager runs it",
                hint="stop it (Ctrl-C where it runs) and join again",
            )
        steps.append(WaitForRole(target, wait) if running else RunHere(target, run))
        return tuple(steps)
    unit_changes = found.unit != found.host.render(target.argv, target.config)
    if unit_changes:
        steps.append(InstallUnit(target, found.host))
    if unit_changes or config_changes or not running:
        commands = found.host.start_commands(restart=running)
        steps += [RunCommand(argv) for argv in commands]
    return (*steps, WaitForRole(target, wait))
