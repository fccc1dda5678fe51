"""What is known about the machine that a stage runs on? Pure values; `observe` fills them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from p2p_bootstrap.cloudconfig.functions import Value

ServiceManager = Literal["", "systemd", "openrc"]


@dataclass(frozen=True, slots=True)
class Facts:
    """The machine.

    Attributes:
        hostname: its present name.
        os_name, os_id, os_version: of /etc/os-release: PRETTY_NAME, ID and VERSION_ID.
        arch: Go's word for the processor (amd64, arm64), `machine` the kernel's (x86_64, aarch64).
        service_managers: those that are installed; `service_manager` is the one that runs or would run.
        machine_id: None if the machine has none yet; `protected_id` a keyed hash of it.
        random, uuid: drawn once on a machine and kept, so that a stage that runs twice does the same.
        values: what ``.Values`` holds in templates.
    """

    hostname: str = ""
    os_name: str = ""
    os_id: str = ""
    os_version: str = ""
    arch: str = ""
    machine: str = ""
    service_managers: frozenset[str] = frozenset()
    service_manager: ServiceManager = ""
    machine_id: str | None = None
    protected_id: str | None = None
    random: str | None = field(default=None, repr=False)
    uuid: str | None = None
    values: Mapping[str, Value] = field(default_factory=dict, repr=False)

    def template_data(self) -> Mapping[str, Value]:
        """What templates may name."""
        own: dict[str, Value] = {"Random": self.random, "ProtectedID": self.protected_id}
        return {
            "MachineID": self.machine_id,
            "UUID": self.uuid,
            **own,
            "Values": {**self.values, **own},
        }
