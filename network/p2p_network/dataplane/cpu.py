"""Which cipher is fast on this CPU?

Pure: looks for the AES instructions in the text of /proc/cpuinfo ("flags" on x86, "Features" on ARM).
"""

from __future__ import annotations

from p2p_network.session import AES, CHACHA


def ciphers_by_speed(cpuinfo: str) -> tuple[str, ...]:
    """Names of ciphers, fastest first."""
    for line in cpuinfo.splitlines():
        name, _, words = line.partition(":")
        if name.strip() in ("flags", "Features") and "aes" in words.split():
            return AES, CHACHA
    return CHACHA, AES
