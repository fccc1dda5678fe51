"""How does a server come to have a datastore, CAs and passwords? Everything before port 6443 listens.

The order and the failures are k3s's: choose the datastore (an existing etcd log wins for ever), check the
token against the cluster that is joined, compare what all servers must agree on, take over that cluster's
CAs, then make whatever is still missing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid

from p2p_simulations.k3s import https, layout, log, pki, process, tokens
from p2p_simulations.k3s.access import Access, validate
from p2p_simulations.k3s.errors import HttpError, K3sError
from p2p_simulations.k3s.flags import Settings
from p2p_simulations.k3s.layout import Layout, Machine
from p2p_simulations.k3s.process import write_file
from p2p_simulations.k3s.state import State
from p2p_simulations.k3s.supervisor import restore
from p2p_simulations.k3s.tokens import Account
from p2p_simulations.k3s.wal import Wal

STORED_UNDER = "/bootstrap"


def token_of(settings: Settings, kind: str = "") -> str:
    """`token` or `agent-token`, from its flag or its file. Raises K3sError."""
    path = settings.text(f"{kind}token-file")
    if path:
        try:
            with open(path, encoding="utf-8") as file:
                return file.read(4096).strip()
        except OSError as exc:
            raise K3sError(f"open {path}: {(exc.strerror or '').lower()}") from exc
    return settings.text(f"{kind}token")


def uses_etcd(settings: Settings, where: Layout, token: str) -> bool:
    """The rule of k3s; decided at the first start, for ever."""
    if where.is_etcd():
        return True
    if settings.text("datastore-endpoint"):
        return False
    return settings.on("cluster-init") or bool(settings.text("server") and token)


async def prepare(
    settings: Settings, where: Layout, machine: Machine, token: str, critical: dict[str, object]
) -> Access | None:
    """Fill `server/`. Returns access to the cluster to be joined, if there is one to join.

    Raises:
        K3sError: with k3s's text.
    """
    for folder in ("etc", "tls", "cred", "manifests"):
        (where.server / folder).mkdir(parents=True, exist_ok=True, mode=0o700)
    where.server.chmod(0o700)
    endpoint = settings.text("datastore-endpoint")
    if endpoint and not endpoint.startswith("sqlite://"):
        raise K3sError(
            f"creating storage endpoint: the stand-in has SQLite and etcd, and no client for {endpoint}"
        )
    access = None
    if uses_etcd(settings, where, token):
        _tombstone(settings, where)
        try:
            access = await _bootstrap_etcd(settings, where, token, critical)
        except K3sError as exc:
            raise exc.within("failed to bootstrap cluster data") from exc
    try:
        _generate(settings, where, machine, token)
    except (RuntimeError, OSError) as exc:
        raise K3sError(f"failed to generate server dependencies: {exc}") from exc
    return access


def _tombstone(settings: Settings, where: Layout) -> None:
    if not (where.etcd / "tombstone").exists():
        return
    if not settings.text("server"):
        raise K3sError(
            "failed to start supervisor listener: tombstone file has been detected but --server is empty: "
            "backup and delete ${datadir}/server/db to create a new cluster, "
            "or set --server to rejoin the cluster"
        )
    log.info("tombstone file has been detected, removing ${datadir}/server/db to rejoin the cluster")
    shutil.move(where.etcd, where.etcd.with_name(f"etcd-backup-{int(time.time())}"))


async def _bootstrap_etcd(
    settings: Settings, where: Layout, token: str, critical: dict[str, object]
) -> Access | None:
    url = settings.text("server")
    ca_file = where.tls / "server-ca.crt"
    trusted = ca_file.read_text() if ca_file.exists() else None
    if where.is_etcd():
        log.info("Managed etcd cluster bootstrap already complete and initialized")
        if url and token:
            try:
                access = await validate(url, token, "server", trusted_ca=trusted)
                await access.request("/v1-k3s/server-bootstrap", timeout_s=2.0)
                log.info("Successfully reconciled with remote datastore")
                return access
            except (K3sError, HttpError, https.RequestFailed) as exc:
                log.warning(f"Unable to reconcile with remote datastore: {exc}")
        _check_stored_token(where, token)
        log.info("Successfully reconciled with local datastore")
        return None
    if not url:
        log.info("Managed etcd cluster initializing")
        return None
    try:
        access = await validate(url, token, "server", trusted_ca=trusted)
    except K3sError as exc:
        raise exc.within("failed to validate token") from exc
    log.info("Managed etcd cluster not yet initialized")
    try:
        await _compare(settings, access, critical)
    except K3sError as exc:
        raise exc.within("failed to validate server configuration") from exc
    try:
        restore(where, await access.request("/v1-k3s/server-bootstrap", timeout_s=15.0))
    except (HttpError, https.RequestFailed, ValueError, KeyError) as exc:
        raise K3sError(str(exc)) from exc
    process.crash_point("after-bootstrap")
    return access


async def _compare(settings: Settings, access: Access, critical: dict[str, object]) -> None:
    password = token_of(settings, "agent-") or access.password
    as_node = Access(access.url, access.ca, "node", tokens.parse(password).password)
    try:
        theirs = json.loads(await as_node.request("/v1-k3s/config"))
    except (HttpError, https.RequestFailed, ValueError) as exc:
        log.warning(f"Skipping cluster configuration validation: {exc}")
        return
    wrong = [name for name in layout.CRITICAL if theirs.get(name) != critical[name]]
    for (
        name
    ) in wrong:  # k3s names the flag, but for networks and addresses it comes no further than the field
        shown = f"{name}.slice[0].IP" if isinstance(critical[name], list) else layout.CRITICAL[name]
        log.warning(f"critical configuration mismatched: {shown}")
    if wrong:
        raise K3sError("critical configuration value mismatch between servers")


def stored_token_key(password: str) -> str:
    """Under which key the cluster remembers its token."""
    return f"{STORED_UNDER}/{hashlib.sha256(password.encode()).hexdigest()[:12]}"


def _check_stored_token(where: Layout, token: str) -> None:
    """An initialized member only starts with the token that its cluster knows."""
    if not token:
        return
    wal = Wal.open(where.wal)
    state = State.load(wal.saved.snapshot.data)
    for entry in wal.saved.entries:
        if entry.data:
            state.apply(entry.index, json.loads(entry.data))
    wal.close()
    check_token(state, token)


def check_token(state: State, token: str) -> None:
    """Raises K3sError if the datastore was set up with another token."""
    known = [key for key in state.objects if key.startswith(STORED_UNDER)]
    if known and token and stored_token_key(tokens.parse(token).password) not in known:
        raise K3sError("bootstrap data already found and encrypted with different token")


def _generate(settings: Settings, where: Layout, machine: Machine, token: str) -> None:
    names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"]
    names += [f"kubernetes.default.svc.{settings.text('cluster-domain')}", "127.0.0.1", "::1", "localhost"]
    names += [machine.name, machine.name.partition(".")[0], *machine.addresses, *machine.external_addresses]
    names += settings.words("tls-san")
    if settings.text("advertise-address"):
        names.append(settings.text("advertise-address"))
    pki.ask({"op": "server", "tls": str(where.tls), "names": [n for n in names if n]})
    psk = where.server / "cred" / "ipsec.psk"
    if not psk.exists():
        write_file(psk, os.urandom(48).hex() + "\n")
    accounts = tokens.read_passwd(where.passwd.read_text()) if where.passwd.exists() else {}
    password = tokens.parse(token).password if token else ""
    if not password:
        password = accounts["server"].password if "server" in accounts else os.urandom(16).hex()
    agent_token = token_of(settings, "agent-")
    node_password = tokens.parse(agent_token).password if agent_token else password
    if not agent_token and not token and "node" in accounts:
        node_password = accounts["node"].password
    accounts["server"] = Account(password, "k3s:server")
    accounts["node"] = Account(node_password, "k3s:agent")
    write_file(where.passwd, tokens.write_passwd(accounts))


def write_tokens(settings: Settings, where: Layout) -> None:
    """`server/token`, `server/node-token`, `server/agent-token`."""
    ca = (where.tls / "server-ca.crt").read_bytes()
    accounts = tokens.read_passwd(where.passwd.read_text())
    write_file(where.server / "token", tokens.render(ca, "server", accounts["server"].password) + "\n")
    log.info(f"Server node token is available at {where.server / 'token'}")
    agent_file = where.server / "agent-token"
    links = [where.server / "node-token"]
    if settings.text("agent-token") or settings.text("agent-token-file"):
        agent_file.unlink(missing_ok=True)
        write_file(agent_file, tokens.render(ca, "node", accounts["node"].password) + "\n")
    else:
        links.append(agent_file)
    for link in links:
        if not link.is_symlink():
            link.unlink(missing_ok=True)
            link.symlink_to(where.server / "token")
    log.info(f"Agent node token is available at {agent_file}")


def write_kubeconfig(settings: Settings, where: Layout) -> None:
    """The admin's kubeconfig, by default /etc/rancher/k3s/k3s.yaml."""
    import base64
    from pathlib import Path

    def data(path: Path) -> str:
        return base64.b64encode(path.read_bytes()).decode()

    name = settings.text("write-kubeconfig-name")
    target = settings.text("write-kubeconfig")
    path = Path(target) if target else process.etc_dir() / "k3s" / "k3s.yaml"
    text = f"""apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: {data(where.tls / "server-ca.crt")}
    server: https://127.0.0.1:{settings.number("https-listen-port")}
  name: {name}
contexts:
- context:
    cluster: {name}
    user: {name}
  name: {name}
current-context: {name}
kind: Config
preferences: {{}}
users:
- name: {name}
  user:
    client-certificate-data: {data(where.tls / "client-admin.crt")}
    client-key-data: {data(where.tls / "client-admin.key")}
"""
    write_file(path, text, int(settings.text("write-kubeconfig-mode"), 8))
    write_file(where.server / "cred" / "admin.kubeconfig", text)
    log.info(f"Wrote kubeconfig {path}")
    log.info("Run: k3s kubectl")


def member_name(where: Layout, machine: Machine, *, fresh: bool = False) -> str:
    """`server/db/etcd/name`: node name, hyphen, 8 hex digits; made once."""
    path = where.etcd / "name"
    if fresh or not path.exists():
        write_file(path, f"{machine.name}-{uuid.uuid4().hex[:8]}")
    return path.read_text()
