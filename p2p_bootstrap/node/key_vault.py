"""Where is this node's key kept, if the machine has a TPM and its owner wants that?"""

from __future__ import annotations

import logging

from p2p_bootstrap.boot import tpm
from p2p_network.core import log

logger = log.get(__name__)


class TpmVault:
    """Seals to this machine's TPM. `channel`: how it is spoken to; None for the kernel's device."""

    def __init__(self, channel: tpm.Channel | None = None) -> None:
        self._channel = channel

    def seal(self, secret: bytes) -> str:
        """See `p2p_network.state.Vault`. Raises BootError."""
        return tpm.seal_here(secret, self._channel)

    def unseal(self, text: str) -> bytes:
        """See `p2p_network.state.Vault`. Raises BootError."""
        return tpm.unseal(text, self._channel)


def machine_vault(wanted: bool) -> TpmVault | None:
    """This machine's vault, if it is wanted and there is one."""
    if not wanted:
        return None
    if not tpm.has_tpm():
        log.event(
            logger,
            "state.no_tpm",
            logging.WARNING,
            reason="p2p.seal_identity: there is no TPM that this agent may use; its key lies in a file",
            hint="switch the TPM on in the firmware",
        )
        return None
    return TpmVault()
