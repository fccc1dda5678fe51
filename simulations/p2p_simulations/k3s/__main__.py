"""Which command was given? `server`, `agent`, `kubectl`, `etcd-snapshot`, `token`, `--version`, as k3s."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from p2p_simulations.k3s import VERSION, log, process
from p2p_simulations.k3s.configfile import read_config
from p2p_simulations.k3s.errors import HttpError, K3sError
from p2p_simulations.k3s.flags import Settings, settings
from p2p_simulations.k3s.layout import Layout

USAGE = """NAME:
   k3s - Kubernetes, but small and simple (kairos-p2p stand-in: simulated, runs no containers)

COMMANDS:
   server         Run management server
   agent          Run node agent
   kubectl        Run kubectl (get, delete, version, cluster-info)
   token          Manage tokens (generate)
   etcd-snapshot  Manage etcd snapshots (save, ls, delete, prune)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 1 after a line `level=fatal msg="Error: ..."`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        match arguments:
            case ["--version" | "-v"]:
                sys.stdout.write(f"k3s version {VERSION} (kairos-p2p stand-in)\n")
                return 0
            case ["server", *rest]:
                return _run("server", rest)
            case ["agent", *rest]:
                return _run("agent", rest)
            case ["kubectl", *rest]:
                from p2p_simulations.k3s import kubectl

                try:
                    return kubectl.run(rest, dict(os.environ))
                except K3sError as exc:
                    sys.stderr.write(f"{exc}\n")
                    return 1
            case ["etcd-snapshot", *rest]:
                return _snapshot(rest)
            case ["token", "generate", *_]:
                sys.stdout.write(f"{os.urandom(3).hex()}.{os.urandom(8).hex()}\n")
                return 0
            case [] | ["help" | "--help" | "-h", *_]:
                sys.stdout.write(USAGE)
                return 0
            case [other, *_]:
                raise K3sError(f"No help topic for '{other}'")
    except K3sError as exc:
        text = str(exc)
        if text.startswith(("flag provided", "flag needs", "invalid boolean", "invalid value")):
            sys.stdout.write(f"Incorrect Usage: {text}\n\n{USAGE}")
        log.fatal(f"Error: {text}")
        return 1
    except OSError as exc:  # a folder that cannot be written, a port that is taken
        log.fatal(f"Error: {exc.filename or ''}: {(exc.strerror or str(exc)).lower()}")
        return 1
    return 0


def _settings(command: str, argv: Sequence[str]) -> Settings:
    default = str(process.etc_dir() / "k3s" / "config.yaml")
    found = settings(command, argv, os.environ, read_config, default)
    for warning in found.warnings:
        log.warning(warning)
    return found


def _run(command: str, argv: Sequence[str]) -> int:
    process.crash_point("start")
    found = _settings(command, argv)
    notify_socket = os.environ.pop("NOTIFY_SOCKET", None)
    os.umask(0o077)
    coroutine = _server(found, notify_socket) if command == "server" else _agent(found, notify_socket)
    return asyncio.run(coroutine)


def _layout(found: Settings) -> Layout:
    return Layout(Path(found.text("data-dir")).absolute())


def _stopped() -> asyncio.Event:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.set_exception_handler(process.die_of_broken_invariant)
    return stop


async def _server(found: Settings, notify_socket: str | None) -> int:
    from p2p_simulations.k3s.server import build

    stop = asyncio.ensure_future(_stopped().wait())
    server = build(found, _layout(found), notify_socket)
    start = asyncio.ensure_future(server.start())
    try:
        await asyncio.wait((start, stop), return_when=asyncio.FIRST_COMPLETED)
        if not start.done():
            start.cancel()
            return 0
        start.result()
        if found.on("cluster-reset"):
            return 0
        await asyncio.wait((stop, server.failed), return_when=asyncio.FIRST_COMPLETED)
        if server.failed.done():
            reason = server.failed.result()
            if reason.startswith("starting kubernetes"):
                raise K3sError(reason)
            log.error(f'Shutdown request received: "{reason}"')  # and k3s ends with status 0
        return 0
    finally:
        stop.cancel()
        server.stop()


async def _agent(found: Settings, notify_socket: str | None) -> int:
    from p2p_simulations.k3s import agent as agents
    from p2p_simulations.k3s.balancer import Balancer
    from p2p_simulations.k3s.bootstrap import token_of
    from p2p_simulations.k3s.layout import machine

    where, token, url = _layout(found), token_of(found), found.text("server")
    if not token and not (where.agent / "client-kubelet.crt").exists():
        raise K3sError("--token is required")
    if not url:
        raise K3sError("--server is required")
    agents.check_labels(found)
    own = machine(found)
    log.info(f"Starting k3s agent {VERSION} (kairos-p2p stand-in)")
    where.agent.mkdir(parents=True, exist_ok=True, mode=0o700)
    balancer = Balancer(
        url, where.agent / "etc" / "k3s-agent-load-balancer.json", found.number("lb-server-port")
    )
    try:
        await balancer.start()
    except OSError as exc:
        raise K3sError(
            f"listen tcp 127.0.0.1:{found.number('lb-server-port')}: bind: {exc.strerror}"
        ) from exc
    agent = agents.Agent(settings=found, layout=where, machine=own, url=url, token=token, balancer=balancer)
    stop = asyncio.ensure_future(_stopped().wait())

    async def live() -> None:
        await agent.join()
        process.crash_point("before-ready")
        log.info("k3s agent is up and running")
        process.notify_ready(notify_socket)
        process.crash_point("after-ready")
        await agent.run()

    work = asyncio.ensure_future(live())
    try:
        await asyncio.wait((work, stop), return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
        return 0
    finally:
        work.cancel()
        stop.cancel()
        agent.close()


def _snapshot(argv: Sequence[str]) -> int:
    """Asks the server of this machine, with its own credentials."""
    from p2p_simulations.k3s import https, tokens
    from p2p_simulations.k3s.access import validate

    command, rest = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else ("save", argv)
    operation = {"ls": "list", "l": "list"}.get(command, command)
    if operation not in ("save", "list", "delete", "prune"):
        raise K3sError(f"No help topic for '{command}'")
    found = _settings("etcd-snapshot", rest)
    where = _layout(found)
    try:
        ca = (where.tls / "server-ca.crt").read_bytes()
        password = tokens.read_passwd(where.passwd.read_text())["server"].password
    except OSError as exc:
        raise K3sError(f"open {exc.filename}: {(exc.strerror or '').lower()}") from exc
    names = list(found.rest) if operation == "delete" else [found.text("name")]
    order = {"operation": operation, "name": names, "retention": found.number("snapshot-retention")}

    async def ask() -> bytes:
        url = found.text("etcd-server") or "https://127.0.0.1:6443"
        access = await validate(url, tokens.render(ca, "server", password), "server")
        return await access.request("/db/snapshot", method="POST", body=json.dumps(order).encode())

    try:
        answer = json.loads(asyncio.run(ask()))
    except (https.RequestFailed, HttpError) as exc:
        raise K3sError(f"see server log for details: {exc}") from exc
    if operation == "list":
        _print_snapshots(answer, found.text("output"))
    if operation == "delete":
        for name in names:
            if name not in (answer.get("deleted") or []):
                log.warning(f"Snapshot {name} not found.")
    for name in answer.get("created") or []:
        log.info(f"Snapshot {name} saved.")
    for name in answer.get("deleted") or []:
        log.info(f"Snapshot {name} deleted.")
    return 0


def _print_snapshots(answer: dict[str, list[dict[str, dict[str, str]]]], output: str) -> None:
    if output == "json":
        sys.stdout.write(json.dumps(answer) + "\n")
        return
    rows = [("Name", "Location", "Size", "Created")]
    for item in answer["items"]:
        spec, status = item["spec"], item["status"]
        rows.append((spec["snapshotName"], spec["location"], status["size"], status["creationTime"]))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for row in rows:
        sys.stdout.write(" ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() + "\n")


if __name__ == "__main__":
    sys.exit(main())
