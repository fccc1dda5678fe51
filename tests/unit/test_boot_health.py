"""When does a node say that its boot slot is healthy? The rule, its adapter, the boot loader's counter."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from p2p_bootstrap.boot import blessing, record, slots
from p2p_bootstrap.config.model import Bless as Options
from p2p_bootstrap.node.blessing import Blessing
from p2p_bootstrap.node.health import Bless, Blessed, BlessFailed, Condition, Health, Seen, lacks
from p2p_network.core.errors import BootError

WELL = Condition(peers=2, known=2, role="server", ready=True)


def test_a_slot_is_blessed_once_the_node_was_healthy_for_long_enough() -> None:
    health = Health("role", 10)
    assert "no role yet" in health.step(0, Seen(Condition(peers=1, known=1))).reason
    assert health.step(1, Seen(WELL)).effects == ()
    assert health.wake_at() == 11
    # a break begins the wait anew
    assert "none of the 2 other nodes" in health.step(5, Seen(Condition(known=2, role="server"))).reason
    assert health.wake_at() is None
    assert health.step(6, Seen(WELL)).effects == ()
    assert health.step(15, Seen(WELL)).effects == ()
    assert health.step(16, Seen(WELL)).effects == (Bless(),)
    assert health.step(17, Seen(WELL)).effects == ()
    # what could not be written is tried again, not at once
    assert "disk is gone" in health.step(18, BlessFailed("disk is gone")).reason
    assert health.step(20, Seen(WELL)).effects == ()
    assert health.step(80, Seen(WELL)).effects == (Bless(),)
    health.step(81, Blessed())
    assert health.done
    assert health.step(500, Seen(WELL)).effects == ()


@pytest.mark.parametrize(
    ("when", "condition", "healthy"),
    [
        ("mesh", Condition(peers=1, known=1), True),
        ("mesh", Condition(), False),
        ("mesh", Condition(role="server"), True),  # a cluster of one node
        ("role", Condition(peers=1, known=1), False),
        ("role", Condition(peers=1, known=1, role="agent"), True),
        ("role", Condition(role="server"), True),
        ("role", Condition(known=1, role="server"), False),
        ("ready", Condition(peers=1, known=1, role="agent"), False),
        ("ready", WELL, True),
    ],
)
def test_what_counts_as_healthy(when: str, condition: Condition, healthy: bool) -> None:
    assert (lacks(condition, when) == "") is healthy  # type: ignore[arg-type]


@given(st.lists(st.tuples(st.floats(0, 30), st.booleans()), max_size=60))
def test_a_blessing_always_follows_an_unbroken_time_of_health(looks: list[tuple[float, bool]]) -> None:
    health, now, since = Health("role", 10), 0.0, None
    for passed, well in looks:
        now += passed
        decision = health.step(now, Seen(WELL if well else Condition(known=1)))
        since = (since if since is not None else now) if well else None
        if decision.effects:
            assert since is not None
            assert now - since >= 10


def status(role: str) -> dict[str, object]:
    return {"mesh": {"peers": 1, "known": 1}, "role": {"role": role, "ready": False}}


async def test_the_agent_blesses_through_the_store_and_tries_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    roles, calls = [""], []

    async def slot() -> str:
        return "active"

    async def bless() -> tuple[str, ...]:
        calls.append(trio.current_time())
        if len(calls) == 1:
            raise BootError("the disk is gone", hint="plug it in")
        return ("the active slot is blessed",)

    agent = Blessing(
        Options.model_validate({}), lambda: status(roles[0]), bless=bless, slot=slot  # type: ignore[arg-type, return-value]
    )  # fmt: skip
    async with trio.open_nursery() as nursery:
        nursery.start_soon(agent.run)
        await trio.sleep(30)
        assert calls == []
        assert "no role yet" in agent.reason
        roles[0] = "server"
        await trio.sleep(200)
    assert len(calls) == 2
    assert calls[1] - calls[0] >= 60
    assert "is blessed" in agent.reason


async def test_a_machine_that_we_did_not_boot_has_nothing_to_bless() -> None:
    async def slot() -> str:
        return ""

    def never() -> object:
        raise AssertionError

    await Blessing(Options.model_validate({}), never, slot=slot).run()  # type: ignore[arg-type]


def test_blessing_ends_the_trial_in_the_pointer_and_in_the_boot_loader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert blessing.bless(tmp_path) == ()
    (tmp_path / "run/cos").mkdir(parents=True)
    (tmp_path / "run/cos/active_mode").touch()
    pointer = tmp_path / "run/initramfs/cos-state/cOS/slots.env"
    pointer.parent.mkdir(parents=True)
    pointer.write_bytes(slots.render(slots.SlotTable("/cOS/b.img", "/cOS/a.img", True, 0, 7)))
    variable = tmp_path / blessing.COUNT_PATH
    variable.parent.mkdir(parents=True)
    variable.write_bytes(b"\6\0\0\0" + "\\EFI\\Linux\\active+2-1.efi\0".encode("utf-16-le"))
    entry = tmp_path / "efi/EFI/Linux/active+2-1.efi"
    entry.parent.mkdir(parents=True)
    entry.write_bytes(b"MZ")
    monkeypatch.setattr("os.path.ismount", lambda path: str(path).endswith("/efi"))
    for _ in range(2):  # doing it twice is doing it once
        said = blessing.bless(tmp_path)
        assert "the boot loader's entry is blessed" in said
        assert not slots.parse(pointer.read_text()).trial
        assert [path.name for path in entry.parent.iterdir()] == ["active.efi"]
    assert "blessed already" in said[0]
    assert (tmp_path / "run/cos/blessed").exists()  # for the guard


def test_what_was_written_since_the_boot_is_not_blessed_by_what_runs(tmp_path: Path) -> None:
    made = record.Record(1.0, "booted", "normal", "active", "it is active", image="/cOS/a.img")
    (tmp_path / "run/cos").mkdir(parents=True)
    (tmp_path / "run/cos/active_mode").touch()
    (tmp_path / "run/cos/boot.json").write_text(record.to_json(made))
    pointer = tmp_path / "run/initramfs/cos-state/cOS/slots.env"
    pointer.parent.mkdir(parents=True)
    upgraded = slots.render(slots.SlotTable("/cOS/b.img", "/cOS/a.img", True, 1, 8))
    pointer.write_bytes(upgraded)
    assert blessing.bless(tmp_path) == (
        "/cOS/a.img is healthy; /cOS/b.img was written since, and has to prove itself",
    )
    assert pointer.read_bytes() == upgraded
