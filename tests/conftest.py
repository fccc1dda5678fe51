"""Which tests of `make test` may run in different processes?

It runs more processes than there are cores (pytest-xdist), as a lab waits for silences and time-outs far
more than it computes. Tests of a folder or file that share something expensive stay together; every lab
that is made for one test goes to whoever is free.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Final

import pytest

_HERE: Final = Path(__file__).parent
_WHOLE_FOLDER: Final = ("k3s",)
"""They share clusters."""
_SHARED_LAB: Final = ("test_dataplane_netns", "test_dataplane_udp", "test_lab_kube_nodes")


# Started by a shell in the background we ignore SIGINT, and so would all programs whose Ctrl-C is tested.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # xdist reads the marks in its own
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        group = _group(item.path.relative_to(_HERE))
        if group:
            item.add_marker(pytest.mark.xdist_group(group))


def _group(path: Path) -> str:
    """Tests with the same one run one after another in one process; "" for no matter where."""
    room = path.parts[0]
    if room in _WHOLE_FOLDER:
        return room
    return "" if room == "lab" and path.stem not in _SHARED_LAB else str(path)
