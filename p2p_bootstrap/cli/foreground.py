"""How does the agent run inside this process, with its log on stderr?

The one road into the composition root, for ``agent`` and for ``join`` where there is no service manager.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from p2p_bootstrap.api.service import Goal
from p2p_bootstrap.cli import progress
from p2p_bootstrap.cli.client import AgentClient
from p2p_bootstrap.cli.inputs import STDIN, read_text
from p2p_bootstrap.cli.output import note
from p2p_bootstrap.service import LEFT, notify
from p2p_network.core import log
from p2p_network.core.errors import P2PError, TimedOut
from p2p_network.lean import loading, without_plugins, without_searches

if TYPE_CHECKING:
    from p2p_bootstrap.config.loading import Config
    from p2p_bootstrap.logs import Format

logger = log.get(__name__)

LEFT_POLL_S: Final = 5.0


def run(
    cloud_configs: Sequence[Path] | None,
    state_dir: Path,
    socket: Path,
    *,
    log_format: Format,
    log_level: str | None,
) -> None:
    """Run the agent until it is told to end.

    Args:
        cloud_configs: what to read; None: what a booted machine has.
        log_level: what is shown; the configuration's `p2p.loglevel` if None.

    Raises ConfigError with everything that is wrong, and what the agent cannot start without.
    """
    with loading(), without_plugins(), without_searches():
        from p2p_bootstrap import logs
        from p2p_bootstrap.api.events import EventLog, EventLogHandler
        from p2p_bootstrap.node.local_k3s import role_of, run_local

    if cloud_configs is None:
        _wait_while_left(state_dir)
    config = _read(cloud_configs)
    alone = role_of(config, in_mesh=False)
    events = EventLog()
    logs.configure(log_format, log_level or config.p2p.loglevel, also=[EventLogHandler(events)])
    for remark in config.notes:
        reason = f"{remark.message} ({remark.hint})" if remark.hint else remark.message
        where = f"{remark.file}:{remark.line}"
        log.event(logger, "config.remarked", level=logging.WARNING, path=where, key=remark.key, reason=reason)

    if alone is not None:
        run_local(config, alone, state_dir=state_dir, socket=socket, events=events)
        return
    with loading(), without_plugins(), without_searches():
        from p2p_bootstrap.node.agent import run_agent

    run_agent(config, state_dir=state_dir, socket=socket, events=events, of_system=cloud_configs is None)


def _read(cloud_configs: Sequence[Path] | None) -> Config:
    from p2p_bootstrap.config.loading import load, load_system

    if cloud_configs is not None:
        return load(cloud_configs, stdin=read_text(STDIN) if STDIN in cloud_configs else None)
    from p2p_bootstrap.cloudconfig.fetching import fetch_http

    return load_system(fetch_http)


def _wait_while_left(state_dir: Path) -> None:
    """A machine that left its mesh stays out of it, whatever starts its agent again and again."""
    marker = state_dir / LEFT
    if marker.exists():
        note(f"this node left its mesh, and stays out as long as {marker} is there")
        notify("READY=1")
    while marker.exists():
        time.sleep(LEFT_POLL_S)


def run_and_watch(config: Path, state_dir: Path, socket: Path, *, goal: Goal, timeout_s: float) -> None:
    """Run the agent until Ctrl-C, and say how it comes along.

    Raises TimedOut if `goal` was not reached in time; the agent is stopped then.
    """
    failures: list[P2PError] = []

    def watch() -> None:
        client = AgentClient(socket)
        try:
            document = progress.wait_until(client, goal, timeout_s, agent_is_starting=True)
        except P2PError as exc:
            failures.append(exc)
            os.kill(os.getpid(), signal.SIGINT)
        else:
            note(progress.reached(goal, document))
            note("The agent runs in the foreground: Ctrl-C stops it, and its k3s and VPN with it.")

    threading.Thread(target=watch, name="progress", daemon=True).start()
    run((config,), state_dir, socket, log_format="console", log_level="warning")
    for failure in failures:
        if isinstance(failure, TimedOut):
            raise TimedOut(failure.message, hint="it was stopped; give it longer with --timeout") from failure
        raise failure
