"""``kairos-p2p boot``: how would this machine boot, how did it, and which image is which slot?"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from p2p_bootstrap.cli import output as out
from p2p_bootstrap.cli.options import PATH, output_option
from p2p_bootstrap.cli.uki_verbs import grub_cfg, loader, measure_verb, seal, uki
from p2p_network.core.errors import BootError

if TYPE_CHECKING:
    from p2p_bootstrap.boot.facts import Facts
    from p2p_bootstrap.boot.record import Entry, Record
    from p2p_bootstrap.boot.slotstore import SlotStore
    from p2p_bootstrap.boot.steps import Step
    from p2p_bootstrap.units import Init

STATE: Final = Path("/run/initramfs/cos-state")
PROGRAM: Final = "/usr/bin/kairos-p2p"
_SENTINELS: Final = ("active", "passive", "recovery", "autoreset", "live")


@click.group()
def group() -> None:
    """How does this machine boot, and why that way?"""


def _root_option(command: Any) -> Any:
    return click.option(
        "--root", type=PATH, default=Path("/"), show_default=True, help="The root of the system to look at."
    )(command)


def _state_option(command: Any) -> Any:
    return click.option(
        "--state", type=PATH, default=STATE, show_default=True, help="Where the state partition is mounted."
    )(command)


@group.command()
@click.option("--facts", type=PATH, help="Plan for these facts (JSON) instead of this machine's.")
@output_option
def plan(facts: Path | None, output: out.Output) -> None:
    """Print what a boot would do, and do nothing.

    -o json holds the facts too; --facts takes that file again, on any machine.
    """
    import dataclasses

    from p2p_bootstrap.boot.plan import plan as make

    known = _read_facts(facts) if facts else _observe()
    made = make(known)
    steps = list(made.steps)
    match output:
        case "json" | "yaml":
            rows = [{"name": s.name, "needs": list(s.needs), "text": s.action.describe()} for s in steps]
            document = {
                "mode": made.mode, "slot": made.slot, "reason": made.reason, "hint": made.hint,
                "remarks": list(made.remarks), "steps": rows,
                "required": [dataclasses.asdict(one) for one in made.required],
                "facts": _plain(dataclasses.asdict(known)),
            }  # fmt: skip
            out.print_document(document, output)
        case "table" | "name":
            columns: list[out.Column[Step]] = [
                out.Column("STEP", lambda s: s.name),
                out.Column("WHAT", lambda s: s.action.describe()),
            ]
            out.print_rows(steps, columns, output, name=lambda s: s.name, empty="nothing would be done")
            if output == "table":
                out.note(
                    f"{made.mode} {made.slot}: {made.reason}" + (f"\n hint: {made.hint}" if made.hint else "")
                )
                for remark in made.remarks:
                    out.note(f"note: {remark}")


@group.command()
@click.option(
    "--boots", type=click.IntRange(1, 20), default=1, show_default=True, help="How many boots back."
)
@_root_option
@output_option
def explain(boots: int, root: Path, output: out.Output) -> None:
    """Why this slot, what failed, and how to mend it.

    Records are kept across reboots, those of boots that failed too.
    """
    from p2p_bootstrap.boot import record

    found = _records(root)[-boots:]
    match output:
        case "json" | "yaml":
            import json

            rows = [json.loads(record.to_json(one)) for one in found]
            out.print_document({"boots": rows}, output)
        case "name":
            for one in found:
                out.emit(out.printable(one.slot))
        case "table":
            for one in found:
                stamp = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(one.wall_s))
                if boots > 1:
                    out.emit(stamp)
                for line in record.explain(one):
                    out.emit(out.printable(line))


@group.command()
@_root_option
@output_option
def timeline(root: Path, output: out.Output) -> None:
    """How long did each step of the last boot take?"""
    last = _records(root)[-1]
    columns: list[out.Column[Entry]] = [
        out.Column("START", lambda e: f"{e.start_s * 1000:.0f} ms", right=True),
        out.Column("TOOK", lambda e: f"{e.duration_s * 1000:.1f} ms", right=True),
        out.Column("SLOT", lambda e: e.slot),
        out.Column("OUTCOME", lambda e: e.outcome),
        out.Column("STEP", lambda e: e.name),
        out.Column("WHAT", lambda e: e.detail or e.text),
    ]
    if output in ("json", "yaml"):
        import dataclasses

        rows: Any = [dataclasses.asdict(entry) for entry in last.entries]
        out.emit(out.to_json(rows) if output == "json" else out.to_yaml(rows))
        return
    out.print_rows(list(last.entries), columns, output, name=lambda e: e.name, empty="no step was done")
    if output == "table":
        memory = f"; process 1 took {last.peak_kib / 1024:.0f} MiB at most" if last.peak_kib else ""
        out.note(
            f"{last.total_s * 1000:.0f} ms until the switch, {last.planning_s * 1000:.0f} ms of it to plan"
            f"{memory}"
        )


@group.command()
@_state_option
@output_option
def slots(state: Path, output: out.Output) -> None:
    """Which image is which slot, and is one on trial?"""
    store = _store(state)
    table, there = store.table(), store.images()
    rows = []
    for slot in ("active", "passive"):
        path = table.image(slot)
        if not path:
            verdict = "none"
        elif path not in there:
            verdict = "missing"
        elif slot == "active" and table.trial:
            verdict = f"on trial, {table.tries_left} tries left" if table.tries_left else "failed its trial"
        else:
            verdict = "good"
        rows.append({"slot": slot, "image": path, "state": verdict})
    columns: list[out.Column[dict[str, str]]] = [
        out.Column("SLOT", lambda r: r["slot"]),
        out.Column("IMAGE", lambda r: r["image"]),
        out.Column("STATE", lambda r: r["state"]),
    ]
    out.print_rows(rows, columns, output, name=lambda r: r["slot"], empty="no slots")
    if store.journal():
        out.note("an upgrade was interrupted; boot bless finishes or undoes it")


@group.command()
@click.option(
    "--running", type=click.Choice(_SENTINELS), help="The slot that runs; found out by itself on a node."
)
@_state_option
@_root_option
def bless(running: str | None, state: Path, root: Path) -> None:
    """Say that the running slot is healthy: it ends its trial.

    The agent does it by itself once the node is healthy (p2p.bless in the cloud-config). A slot on trial that
    nobody blesses in time (p2p.bless.within_s) restarts the machine, and is left when its tries are spent.
    """
    from p2p_bootstrap.boot import blessing

    if running is None and state == STATE:
        _running(root)
        for line in blessing.bless(root):
            out.emit(line)
        return
    store = _store(state)
    for line in store.recover():
        out.note(f"finished an interrupted upgrade: {line}")
    out.emit(store.bless(running or _running(root)))
    blessing.call_off(root)


@group.group()
def build() -> None:
    """Make what a machine boots from."""


build.add_command(uki)
build.add_command(loader)
build.add_command(grub_cfg)
group.add_command(measure_verb)
group.add_command(seal)


@build.command()
@click.option("--file", "target", type=PATH, required=True, help="The file to write.")
@click.option(
    "--modules",
    "folder",
    type=PATH,
    help="The kernel's modules: /lib/modules/VERSION. Without: none are packed.",
)
@click.option("--module", "names", multiple=True, metavar="NAME", help="One more module; may be repeated.")
@click.option(
    "--hardware",
    is_flag=True,
    help="With drivers of disks of all kinds, not only virtio, AHCI, NVMe and USB.",
)
@click.option(
    "--program",
    "programs",
    multiple=True,
    metavar="NAME",
    help="A program and its libraries: cryptsetup and lvm open volumes, fsck.ext4 checks them.",
)
@click.option(
    "--hook", "hooks", type=PATH, multiple=True, help="A program that prints the key of an encrypted volume."
)
@click.option(
    "--key",
    "keys",
    multiple=True,
    metavar="UUID=FILE",
    help="The key of an encrypted volume (its LUKS UUID, or `default`).",
)
def initramfs(
    target: Path, folder: Path | None, names: tuple[str, ...], programs: tuple[str, ...],
    hooks: tuple[Path, ...], keys: tuple[str, ...], hardware: bool,
) -> None:  # fmt: skip
    """Make an initramfs: this Python, the boot module, and kernel modules.

    It works for any kernel of this machine's architecture whose modules it holds. A key in it is as safe as
    the place where it lies: seal it to the TPM, or let a hook fetch it.
    """
    from p2p_bootstrap.boot import initramfs as maker
    from p2p_bootstrap.boot.files import replace
    from p2p_bootstrap.boot.modules import DEFAULT, VOLUMES
    from p2p_bootstrap.cli.uki_verbs import located, unlock_files

    modules = (*DEFAULT, *(VOLUMES if programs else ()), *names)
    found, extra = [located(name) for name in programs], unlock_files(hooks, keys)
    data, method = maker.compress(maker.build(folder, modules, found, extra, hardware=hardware))
    replace(target, data, 0o600 if keys else 0o644)
    out.emit(f"{target}: {out.bytes_text(len(data))} ({method})")


@build.command()
@click.option("--root", "folder", type=PATH, required=True, help="The image's root, as a folder.")
@click.option(
    "--init",
    type=click.Choice(("systemd", "openrc", "busybox")),
    multiple=True,
    help="What the image starts with; may be repeated.  [default: those that are in the image]",
)
@click.option("--program", default=PROGRAM, show_default=True, help="Where kairos-p2p lies in the image.")
def units(folder: Path, init: tuple[Init, ...], program: str) -> None:
    """Write what an image needs so that a booted machine runs its stages and joins its mesh by itself.

    systemd units, OpenRC scripts, or for an init without services (busybox) a script and an inittab.
    """
    from p2p_bootstrap.units import image_files, inits_of, write

    found = init or inits_of(folder)
    if not found:
        raise BootError(
            f"no init that we know is in {folder}", hint="say which one it will have: --init systemd"
        )
    for one in found:
        for path in write(folder, image_files(one, program)):
            out.emit(out.printable(path))


@group.command()
@_root_option
@_state_option
@output_option
@click.pass_context
def status(ctx: click.Context, root: Path, state: Path, output: out.Output) -> None:
    """Did this boot go well? The slot, its trial, and every stage so far with its errors.

    Exit code 1 if a step of a stage failed or a slot was passed over.
    """
    from p2p_bootstrap.boot import status as look

    found = look.status(root, state)
    match output:
        case "json" | "yaml":
            out.print_document(found.document(), output)
        case "name":
            out.emit(out.printable(found.slot or "none"))
        case "table":
            for line in found.lines():
                out.emit(out.printable(line))
    if not found.ok:
        ctx.exit(1)


def _observe() -> Facts:
    from p2p_bootstrap.boot.facts import Places
    from p2p_bootstrap.boot.observe import Observer

    places = Places()
    return Observer(places).facts(layout_ready=Path(places.cos).is_dir())


def _read_facts(path: Path) -> Facts:
    import json

    from p2p_bootstrap.boot import facts
    from p2p_bootstrap.boot.files import read

    data = read(path, facts.MAX_FACTS_BYTES)
    if data is None:
        raise BootError(f"{path}: no such file", hint="make one with: kairos-p2p boot plan -o json")
    text = data.decode("utf-8", "replace")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if isinstance(document, dict) and isinstance(document.get("facts"), dict):
        text = json.dumps(document["facts"])
    return facts.from_json(text)


def _plain(value: Any) -> Any:
    """Tuples as lists, for YAML."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _records(root: Path) -> list[Record]:
    from p2p_bootstrap.boot import record, run
    from p2p_bootstrap.boot.files import read_text

    found = [one for place in run.KEPT_ON for one in run.kept(root / place.lstrip("/") / record.FOLDER)]
    found.sort(key=lambda one: one.wall_s)
    current = record.from_json(read_text(root / "run/cos" / record.NAME))
    if current and current not in found:
        found.append(current)
    if not found:
        raise BootError(
            f"there is no record of a boot below {root}",
            hint="only a machine that our initramfs booted has one",
        )
    return found


def _store(state: Path) -> SlotStore:
    from p2p_bootstrap.boot.blessing import running_image
    from p2p_bootstrap.boot.kernel import LinuxKernel
    from p2p_bootstrap.boot.slotstore import SlotStore

    if not (state / "cOS").is_dir():
        raise BootError(
            f"no slots are at {state}", hint="this is for nodes with a state partition; see --state"
        )
    # a partition mounted elsewhere is another machine's
    return SlotStore(state, LinuxKernel().remount, running_image() if state == STATE else "")


def _running(root: Path) -> str:
    from p2p_bootstrap.boot.blessing import running_slot

    if slot := running_slot(root):
        return slot
    raise BootError(
        "it can't be told which slot runs", hint="say it with --running active or --running passive"
    )
