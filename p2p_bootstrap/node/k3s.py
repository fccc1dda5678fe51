"""stub being replaced"""

from __future__ import annotations

import msgspec
import trio

from p2p_bootstrap.node.signal import Signal
from p2p_roles import events


class JoinSecret(msgspec.Struct, frozen=True):
    token: str


class K3sUnit:
    version = "x"
    args_hash = "y"

    def __init__(self, *, config, hostname, state_dir, vpn):
        self.changed = Signal()
        self.observed = events.K3sChanged("stopped")
        self.state = "stopped"
        self.pid = 0
        self.error = ""

    async def adopt(self):
        pass

    async def watch(self):
        await trio.sleep_forever()

    def make_secrets(self, epoch):
        return "ab" * 32

    async def start(self, effect):
        await trio.sleep(1)
        self.observed = events.K3sChanged("ready", uid="u1", ca_hash="ab" * 32)
        self.changed.raise_()

    def replace_init_drop_in(self, e):
        pass

    async def stop(self):
        pass

    def set_aside(self):
        pass

    def keep_join_secret(self, s):
        return "ab" * 32

    def join_secret(self, role):
        return JoinSecret("x")

    async def kubeconfig(self, ip):
        return "kc"
