"""What comes after the root is mounted, in whichever mode: OEM, stages, overlays, what lasts, the proof.

`Builder` collects steps and finds out their needs: a mount needs the mount that carries its place.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from dataclasses import replace
from typing import Final

from p2p_bootstrap.boot import devices, layout
from p2p_bootstrap.boot import steps as do
from p2p_bootstrap.boot.cmdline import CommandLine
from p2p_bootstrap.boot.facts import BlockDevice, Facts
from p2p_bootstrap.boot.ports import BindRequest, CanaryRequest, Policy

OEM: Final = "/oem"
PROFILES: Final = ("active", "passive", "recovery")  # slots that may have extensions of the system
UNLOCKED: Final = "unlocked.json"
_CHECKED: Final = ("ext2", "ext3", "ext4", "vfat")


class Builder:
    """Steps in the making."""

    def __init__(self, facts: Facts, command: CommandLine) -> None:
        self.facts = facts
        self.command = command
        self.remarks: list[str] = []
        self._steps: dict[str, do.Step] = {}
        self._carriers: dict[str, str] = {}  # mount point -> name of its last step
        self._required: list[do.Required] = []
        self._locked = False

    @property
    def image_view(self) -> str:
        """Where the image can be seen untouched."""
        return f"{self.facts.places.run}/initramfs/image"

    def add(self, name: str, action: do.Action, *needs: str) -> str:
        """Add a step. What carries its mount point, and the last horizon, are added to its needs."""
        assert name not in self._steps, f"two steps {name}"
        found = dict.fromkeys(need for need in needs if need)
        target = getattr(action, "target", "")
        if target and (carrier := self._carrier(target)):
            found[carrier] = None
        for before in reversed(self._steps.values()):
            if isinstance(before.action, do.Look):
                found[before.name] = None
                break
        if isinstance(action, do.Look):
            found |= dict.fromkeys(self._steps)
        self._steps[name] = do.Step(name, action, tuple(found))
        if target and not isinstance(action, do.CopyToMemory | do.CopyProved):
            self._carriers[target] = name
        if isinstance(action, do.Mount | do.MountImage | do.Overlay | do.Bind):
            self._required.append(action.required)
        return name

    def last(self, name: str) -> str:
        """`name` if there is such a step, else ""."""
        return name if name in self._steps else ""

    def names(self) -> tuple[str, ...]:
        return tuple(self._steps)

    def steps(self) -> tuple[do.Step, ...]:
        return tuple(self._steps.values())

    def required(self) -> tuple[do.Required, ...]:
        return tuple(self._required)

    def check(self, device: BlockDevice, name: str) -> None:
        """A file system check, unless switched off or of no use."""
        command = self.command
        if command.fsck_mode == "skip" or device.fstype not in _CHECKED or device.read_only:
            return
        repair = command.fsck_repair not in ("no", "0", "false")
        self.add(name, do.Fsck(device.path, device.fstype, repair, command.fsck_mode == "force"))

    def need(self, selector: str) -> BlockDevice:
        """The device meant. One that may lie inside a locked one is taken for granted until that is open."""
        try:
            return devices.need(self.facts.devices, selector)
        except devices.Refused as exc:
            if self._locked and (isinstance(exc, devices.Missing) or exc.locked):
                return BlockDevice(selector, "auto")
            for one in self.facts.unlocked or ():
                if exc.locked and one.reason and f"({one.path})" in exc.message:
                    raise devices.Refused(f"{exc.message}: {one.reason}", hint=exc.hint) from exc
            raise

    def unlock(self, *, secrets: bool) -> None:
        """Open what is locked, and look again; nothing where nothing is."""
        kinds = ("LVM2_member", "crypto_LUKS") if secrets else ("LVM2_member",)
        if any(device.fstype in kinds for device in self.facts.devices):
            self.add(
                "unlock", do.Unlock(f"{self.facts.places.cos}/{UNLOCKED}", self.facts.places.esp, secrets)
            )
            self.add("look-unlocked", do.Look("what was unlocked"))
            self._locked = self.facts.unlocked is None

    def overlay_base(self, text: str = layout.DEFAULT_OVERLAY) -> None:
        """Where changes go that don't last; once."""
        if self.last("overlay-base"):
            return
        target = f"{self.facts.places.run}/overlay"
        kind, size = layout.split_overlay(text)
        if kind == "tmpfs":
            options = ("rw", f"size={size}", "mode=0755")
            self.add("overlay-base", do.Mount("tmpfs", target, "tmpfs", options, device=False))
        else:
            device = self.need(kind)
            self.add("overlay-base", do.Mount(device.path, target, device.fstype, ("rw",)))

    def remount_root_read_only(self) -> None:
        """The last word about a root that was copied into memory."""
        self._required = [
            replace(r, option="ro") if r.target == self.facts.places.sysroot else r for r in self._required
        ]
        self.add("root-read-only", do.ReadOnly(self.facts.places.sysroot), *self.names())

    def _carrier(self, target: str) -> str:
        path = target
        while True:
            if name := self._carriers.get(path):
                return name
            if path in ("/", ""):
                return ""
            path = posixpath.dirname(path)


def tail(
    build: Builder, identity: str, *, lasting: bool, oem: str = "", persistent: str = "", profile: str = "",
    trusted: bool = False,
) -> None:  # fmt: skip
    """The steps after the root.

    Args:
        identity: of the image, "" if unknown.
        lasting: whether this boot is a node's normal life: OEM and persistent volumes are then required.
        oem, persistent: selectors to use although the boot is not lasting (``kairos.ram.*=``).
        profile: whose system extensions are wanted, "" for none; `trusted`: only what was signed may run.
    """
    facts, command, places = build.facts, build.command, build.facts.places
    _oem(build, oem, needed=lasting)
    build.add("stage-rootfs", do.RunStage("rootfs", places.sysroot), "root", build.last("oem"))
    build.add("look-layout", do.Look("the layout"))
    made = layout.read(facts.layout, facts.wishes, mounts=command.mounts, overlay=command.overlay)
    build.remarks += made.remarks
    build.overlay_base(made.overlay)
    if persistent:
        volume = layout.Volume(persistent, "/usr/local")
        made = replace(made, volumes=(volume,))
    elif not lasting:
        made = replace(made, volumes=(), persistent=())
    _mounts(build, made, identity)
    if profile in PROFILES:
        offer = do.OfferExtensions(places.sysroot, places.run, profile, trusted)
        build.add("extensions", offer, *build.names())
    if "/etc" in made.rw_paths:
        lines = "".join(f"{line}\n" for line in _fstab(build))
        build.add(
            "fstab",
            do.WriteFile(places.inside("/etc/fstab"), lines),
            build.last("overlay-etc"),
            *build.names(),
        )
    build.add("stage-initramfs", do.RunStage("initramfs", places.sysroot), *build.names())
    build.add("prove", do.Prove(build.required()), *build.names())


def _oem(build: Builder, selector: str, *, needed: bool) -> None:
    chosen = selector or f"LABEL={build.command.oem_label or 'COS_OEM'}"
    try:
        device = build.need(chosen)
    except devices.Refused as exc:
        if needed or selector:
            raise
        build.remarks.append(f"there is no OEM partition: {exc.message}")
        return
    build.check(device, "fsck-oem")
    target = build.facts.places.inside(OEM)
    build.add("oem", do.Mount(device.path, target, device.fstype, ("rw",)), "root", build.last("fsck-oem"))


def _mounts(build: Builder, made: layout.Layout, identity: str) -> None:
    """Every mount of the layout. A parent always comes before its children, or it would hide them."""

    def inside_lasting(path: str) -> bool:
        return any(path.startswith(f"{lasting}/") for lasting in made.persistent)

    kinds: list[tuple[str, str, layout.Volume | None]] = []
    kinds += [(v.path, "volume", v) for v in made.volumes if v.path != OEM]
    kinds += [(path, "overlay", None) for path in made.rw_paths]
    kinds += [(path, "ephemeral", None) for path in made.ephemeral if path not in made.rw_paths]
    early = [one for one in kinds if not inside_lasting(one[0])]
    late = [one for one in kinds if inside_lasting(one[0])]
    late += [(path, "lasting", None) for path in made.persistent]
    _add_mounts(build, early, made, identity)
    if made.persistent:
        _canary(build, made)
    _add_mounts(build, late, made, identity)
    if made.persistent and build.last("overlay-etc"):
        places = build.facts.places
        action = do.MachineId(places.inside(made.target), places.inside("/etc/machine-id"))
        build.add("machine-id", action, "canary")


def _add_mounts(
    build: Builder, kinds: list[tuple[str, str, layout.Volume | None]], made: layout.Layout, identity: str
) -> None:
    places = build.facts.places
    for path, kind, volume in sorted(kinds, key=lambda one: one[0].split("/")):
        name = layout.escape(path)
        if volume is not None:
            device = build.need(volume.selector)
            build.check(device, f"fsck-{name}")
            mount = do.Mount(device.path, places.inside(path), device.fstype, ("rw",))
            build.add(f"volume-{name}", mount, "root", build.last(f"fsck-{name}"))
        elif kind == "lasting":
            _lasting(build, made, path, identity)
        else:
            overlay = do.Overlay(places.inside(path), f"{places.run}/overlay/{name}")
            build.add(f"{kind}-{name}", overlay, "overlay-base", "image-view")


def _canary(build: Builder, made: layout.Layout) -> None:
    """The volume that carries what lasts must be there, and be the one we know."""
    places = build.facts.places
    carriers = [v for v in made.volumes if f"{made.target}/".startswith(f"{v.path}/") and v.path != OEM]
    volume = max(carriers, key=lambda v: len(v.path), default=None)
    carrier = build.last(f"volume-{layout.escape(volume.path)}") if volume else ""
    if volume is None or not carrier:
        raise devices.Refused(
            f"no volume carries {made.target}, so nothing would last",
            hint="let VOLUMES in the layout mount a partition there, e.g. LABEL=COS_PERSISTENT:/usr/local",
        )
    oem = places.inside(OEM) if build.last("oem") else ""
    build.add("canary", do.Canary(CanaryRequest(places.inside(volume.path), oem)), carrier, build.last("oem"))


def _lasting(build: Builder, made: layout.Layout, path: str, identity: str) -> None:
    places = build.facts.places
    name, old = layout.escape(path), layout.legacy_name(path)
    if made.bind:
        alone = Counter(map(layout.legacy_name, made.persistent))[old] == 1 and old != name
        request = BindRequest(
            path=path, image_path=build.image_view + path, state=places.inside(made.target),
            name=f"{name}.bind", legacy=f"{old}.bind" if alone else "", identity=identity,
            policy=_policy(dict(made.policies), path),
        )  # fmt: skip
        build.add(f"bind-{name}", do.Bind(request, places.inside(path)), "canary", "image-view")
    else:
        base = f"{places.inside(made.target)}/{name}.overlay"
        build.add(f"lasting-{name}", do.Overlay(places.inside(path), base), "canary", "image-view")


def _policy(policies: dict[str, Policy], path: str) -> Policy:
    while path != "/":
        if found := policies.get(path):
            return found
        path = posixpath.dirname(path)
    return "merge"


def _fstab(build: Builder) -> list[str]:
    """What systemd should know of the mounts; it remounts the root by its line."""
    sysroot = build.facts.places.sysroot
    lines = ["# written by kairos-p2p at each boot; changes are lost"]
    for step in build.steps():
        match step.action:
            case do.Mount(source=source, target=target, fstype=fstype, options=options, device=True) if (
                target.startswith(f"{sysroot}/")
            ):
                lines.append(f"{source} {target.removeprefix(sysroot)} {fstype} {','.join(options)} 0 0")
            case do.Bind(request=request, target=target):
                source = f"{request.state.removeprefix(sysroot)}/{request.name}".replace("\\", "\\134")
                lines.append(f"{source} {target.removeprefix(sysroot)} none bind 0 0")
            case _:
                pass
    return lines
