"""Which files bring kube-vip up on this server, by the cloud-config?"""

from __future__ import annotations

import trio

from p2p_bootstrap.cloudconfig.fetching import fetch_http
from p2p_bootstrap.cloudconfig.remote import read_pinned
from p2p_bootstrap.config.loading import Config
from p2p_bootstrap.config.names import KUBE_VIP_FIELDS
from p2p_network.core.errors import P2PError, RoleError
from p2p_roles.k3s.kubevip import KubeVipOptions, file_of
from p2p_roles.k3s.spec import FileSpec, K3sPaths


class ManifestMissing(RoleError):
    """A manifest of the user's can't be had now; it is tried again."""


async def files(config: Config, paths: K3sPaths) -> tuple[FileSpec, ...]:
    """The manifest of the virtual IP, if one is wanted. Raises ManifestMissing, RoleError."""
    said = config.kubevip
    if not said.wanted:
        return ()
    manifest = None
    if said.manifest_url:
        try:
            manifest = await trio.to_thread.run_sync(read_pinned, said.manifest_url, fetch_http)
        except P2PError as exc:
            raise ManifestMissing(f"kubevip.manifest_url: {exc.message}", hint=exc.hint) from exc
    written = config.value("kubevip")
    fields = written if isinstance(written, dict) else {}
    options = KubeVipOptions(
        eip=said.eip or "",
        interface=said.interface or "",
        image=said.image or "",
        version=said.version or "",
        static_pod=said.static_pod,
        settings={name: value for name, value in fields.items() if name in KUBE_VIP_FIELDS},
        manifest=manifest,
    )
    return (file_of(options, paths),)


def names(config: Config) -> tuple[str, ...]:
    """Where else the servers' API is reached: the virtual IP."""
    said = config.kubevip
    return (said.eip,) if said.wanted and said.eip else ()
