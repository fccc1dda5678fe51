"""How does a server become a member of a cluster that exists? First a learner, later, by the leader, a voter.

One learner at a time, and only while all voters are connected: until then the cluster says so, and the
joining server waits and asks again. A name that another member bears ends it.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import urlsplit

from p2p_simulations.k3s import https, log, process, raft, timing
from p2p_simulations.k3s.access import Access
from p2p_simulations.k3s.errors import HttpError, Unavailable
from p2p_simulations.k3s.etcd import TOO_MANY_LEARNERS, UNHEALTHY, Files, call
from p2p_simulations.k3s.layout import Layout
from p2p_simulations.k3s.wal import Wal


class Rejected(Exception):
    """The cluster will not have this server, whatever it waits for."""


async def join(access: Access, where: Layout, name: str, node_name: str, address: str, files: Files) -> Wal:
    """Returns this member's new, empty log. Raises Rejected."""
    process.crash_point("before-member-add")
    while True:
        try:
            member_id = await _attempt(access, where, name, node_name, address, files)
            process.crash_point("after-member-add")
            return Wal.create(where.wal, member_id, raft.Saved())
        except (HttpError, https.RequestFailed) as exc:
            log.info(
                f"Waiting to retrieve etcd cluster member list: failed to get MemberList from server: {exc}"
            )
        except Unavailable as exc:
            if str(exc) in (TOO_MANY_LEARNERS, UNHEALTHY):
                log.info(f"Waiting for other members to finish joining etcd cluster: {exc}")
            else:
                log.info(f"Retrying etcd cluster join: {exc}")
        await asyncio.sleep(timing.JOIN_RETRY_S)


async def _attempt(
    access: Access, where: Layout, name: str, node_name: str, address: str, files: Files
) -> int:
    """Our member id: of the member that was added, or that an earlier attempt had added."""
    members: list[dict[str, Any]] = json.loads(await access.request("/db/info", timeout_s=5.0))["members"]
    shown, urls = [], []
    for member in members:
        url = member["peerURLs"][0]
        ours = urlsplit(url).hostname == address
        their_name = member.get("name", "") or (name if ours else "")
        shown.append(f"{their_name}={url}")
        if ours and their_name == name:
            log.info(f"Starting etcd to join cluster with members [{' '.join(shown)}]")
            return int(member["ID"])
        if their_name.rpartition("-")[0] == node_name:
            (where.etcd / "name").unlink(missing_ok=True)
            raise Rejected(
                "etcd cluster join failed: duplicate node name found, please use a unique name for this node"
            )
        if not member.get("isLearner"):
            urls += member.get("clientURLs", [])
    host = f"[{address}]" if ":" in address else address
    peer_url = f"https://{host}:2380"
    log.info(f"Adding member {name}={peer_url} to etcd cluster [{' '.join(shown)}]")
    joined = urlsplit(access.url).hostname
    error = Unavailable("no endpoints available")
    for url in sorted(urls, key=lambda u: urlsplit(u).hostname != joined):
        try:
            answer = await call(
                url, "/members/add", json.dumps({"peer_url": peer_url}).encode(), files.client_context()
            )
            return int(answer["id"])
        except Unavailable as exc:
            error = exc
            if str(exc).startswith("etcdserver: ") and str(exc) != raft.NO_LEADER:
                break
    raise error
