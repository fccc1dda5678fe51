"""Is only code handed back, never what somebody may have written?"""

from __future__ import annotations

from p2p_network.dataplane.memory import code_mappings, release_code

MAPS = """\
55d0a0000000-55d0a0001000 r--p 00000000 08:01 1 /usr/bin/python3.11
55d0a0001000-55d0a0003000 r-xp 00001000 08:01 1 /usr/bin/python3.11
55d0a0003000-55d0a0004000 rw-p 00003000 08:01 1 /usr/bin/python3.11
7f0000000000-7f0000100000 r-xp 00000000 08:01 2 /opt/some where/libx.so (deleted)
7f0000200000-7f0000300000 rw-p 00000000 00:00 0
7f0000300000-7f0000400000 r-xp 00000000 00:00 0
7ffc00000000-7ffc00001000 r-xp 00000000 00:00 0 [vdso]
"""


def test_only_the_code_of_files_is_found() -> None:
    assert code_mappings(MAPS.splitlines()) == [
        (0x55D0A0001000, 0x55D0A0003000),
        (0x7F0000000000, 0x7F0000100000),
    ]


def test_this_very_process_lives_on_without_its_code() -> None:
    release_code()
    assert sorted([3, 1, 2]) == [1, 2, 3]
