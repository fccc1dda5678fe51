"""Which files does an image carry so that the booted system goes on by itself: stages, then the agent?

Pure text for three kinds of init: systemd units, OpenRC scripts, and for an init without services (busybox)
one script with an inittab. All of them do the same:

    fs, boot -> network -> reconcile again and again
                   └─────> the agent, which reads what the machine has (`agent --system`)

`image_files` lists every file and link of one kind; `kairos-p2p boot build units` writes them into a root.
Nothing here needs the image to be writable at run time. No init gets a shell on the console.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

from p2p_bootstrap.service import NAME, openrc_script, systemd_unit
from p2p_bootstrap.stages.root import Root
from p2p_network.core.errors import BootError

Init: TypeAlias = Literal["systemd", "openrc", "busybox"]
INITS: Final[tuple[Init, ...]] = ("systemd", "openrc", "busybox")
PROGRAM: Final = "/usr/bin/kairos-p2p"
RC: Final = "/usr/lib/kairos-p2p/rc"
UNITS: Final = "/usr/lib/systemd/system"
RECONCILE_EVERY_S: Final = 300
# what extensions of the system may add to, as with Kairos
EXTENDED: Final = (
    *(f"/usr/local/{name}" for name in ("bin", "sbin", "include", "lib", "share", "src")),
    *(f"/usr/{name}" for name in ("bin", "share", "lib", "include", "src", "sbin")),
)
_MIN_FREE_S: Final = 5
_LOOPBACK: Final = "ip link set lo up 2>/dev/null || ifconfig lo up"


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A file, or a link if `link_to` is set. `keep`: one that is there already stays as it is."""

    path: str
    text: str = ""
    mode: int = 0o644
    link_to: str = ""
    keep: bool = False


def image_files(init: Init, program: str = PROGRAM) -> tuple[ImageFile, ...]:
    """Everything that an image with this init needs."""
    match init:
        case "systemd":
            return _systemd(program)
        case "openrc":
            return _openrc(program)
        case "busybox":
            return _busybox(program)


def _systemd(program: str) -> tuple[ImageFile, ...]:
    early = "DefaultDependencies=no\nConflicts=shutdown.target\nBefore=shutdown.target\n"
    units = {
        "fs": _stage_unit(program, "fs", f"{early}After=local-fs.target\nBefore=sysinit.target\n"),
        # before the network is set up, so that this stage may say how
        "boot": _stage_unit(
            program, "boot", f"{early}After=sysinit.target {_unit('fs')}\nBefore=network-pre.target\n"
            "Wants=network-pre.target\n",
        ),
        "network": _stage_unit(
            program, "network", f"After=network-online.target {_unit('boot')}\nWants=network-online.target\n"
        ),
        "reconcile": _stage_unit(program, "reconcile", f"After={_unit('network')}\n", again=True),
    }  # fmt: skip
    files = [ImageFile(f"{UNITS}/{_unit(stage)}", text) for stage, text in units.items()]
    timer = f"{NAME}-stage-reconcile.timer"
    files.append(
        ImageFile(
            f"{UNITS}/{timer}",
            f"[Unit]\nDescription=kairos-p2p: the stage reconcile, again and again\n\n[Timer]\n"
            f"OnActiveSec={RECONCILE_EVERY_S}\nOnUnitInactiveSec={RECONCILE_EVERY_S}\n",
        )
    )
    # the machine's id is mounted by the boot and lasts already; systemd would try to make it last, and fail
    files.append(
        ImageFile(
            f"{UNITS}/systemd-machine-id-commit.service.d/{NAME}.conf",
            "[Unit]\nConditionPathExists=!/run/cos\n",
        )
    )
    files += _extensions()
    argv = (program, "agent", "--system")
    agent = systemd_unit(argv, None, after=(_unit("boot"), _unit("network"), "network.target"))
    files.append(ImageFile(f"{UNITS}/{NAME}.service", agent))
    wanted = {
        _unit("fs"): "sysinit.target",
        _unit("boot"): "multi-user.target",
        _unit("network"): "multi-user.target",
        timer: "timers.target",
        f"{NAME}.service": "multi-user.target",
    }
    for unit, target in wanted.items():
        files.append(ImageFile(f"{UNITS}/{target}.wants/{unit}", link_to=f"../{unit}"))
    return tuple(files)


def _extensions() -> list[ImageFile]:
    """What the boot offered is merged early; folder by folder: over /usr it would hide what lasts."""
    paths = ":".join(EXTENDED)
    return [
        ImageFile(
            f"{UNITS}/systemd-sysext.service.d/{NAME}.conf",
            f'[Service]\nEnvironment="SYSTEMD_SYSEXT_HIERARCHIES={paths}"\n'
            # it looks at images in /tmp, which may be the read-only root's
            "ExecStartPre=/bin/sh -c '[ -w /tmp ] || mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs /tmp'\n",
        ),
        *(
            ImageFile(f"{UNITS}/sysinit.target.wants/{unit}", link_to=f"../{unit}")
            for unit in ("systemd-sysext.service", "systemd-confext.service")
        ),
    ]


def _unit(stage: str) -> str:
    return f"{NAME}-stage-{stage}.service"


def _stage_unit(program: str, stage: str, ordering: str, *, again: bool = False) -> str:
    # a stage whose steps failed is told by `boot status`; it must not keep what comes after it from starting
    remain = "" if again else "RemainAfterExit=yes\n"
    return (
        f"[Unit]\nDescription=kairos-p2p: the stage {stage} of the cloud-config\n{ordering}\n"
        f"[Service]\nType=oneshot\n{remain}ExecStart={program} stage run {stage}\n"
        f"StandardOutput=journal+console\nStandardError=journal+console\nTimeoutStartSec=infinity\n"
    )


def _openrc(program: str) -> tuple[ImageFile, ...]:
    scripts = {
        # not every OpenRC has a service for the loopback device, which k3s listens on
        "boot": _stage_script(
            f"{_LOOPBACK}\n\t{program} stage run fs boot", "\tafter localmount\n\tbefore net\n"
        ),
        "network": _stage_script(f"{program} stage run network", f"\tneed {NAME}-boot\n\tafter net\n"),
        "reconcile": (
            "#!/sbin/openrc-run\n"
            'description="kairos-p2p: the stage reconcile, again and again"\n'
            f"supervisor=supervise-daemon\ncommand={RC}\ncommand_args=reconcile\n\n"
            f"depend() {{\n\tafter {NAME}-network\n}}\n"
        ),
    }
    files = [
        ImageFile(f"/etc/init.d/{NAME}-{name}", text, 0o755) for name, text in scripts.items()
    ]  # fmt: skip
    agent = openrc_script((program, "agent", "--system"), None, after=(f"{NAME}-network", "net", "firewall"))
    files += [ImageFile(f"/etc/init.d/{NAME}", agent, 0o755), ImageFile(RC, _rc(program), 0o755)]
    runlevels = {
        f"{NAME}-boot": "boot",
        f"{NAME}-network": "default",
        f"{NAME}-reconcile": "default",
        NAME: "default",
    }
    for name, level in runlevels.items():
        files.append(ImageFile(f"/etc/runlevels/{level}/{name}", link_to=f"/etc/init.d/{name}"))
    return tuple(files)


def _stage_script(command: str, depend: str) -> str:
    # a stage whose steps failed is told by `boot status`; services that need this one start all the same
    return (
        f'#!/sbin/openrc-run\ndescription="kairos-p2p: stages of the cloud-config"\n\n'
        f"start() {{\n\tebegin\n\t{command}\n\teend 0\n}}\n\ndepend() {{\n{depend}}}\n"
    )


def _busybox(program: str) -> tuple[ImageFile, ...]:
    inittab = (
        f"# written by kairos-p2p: no init of services here; no line starts a shell\n"
        f"::sysinit:{RC} boot\n::respawn:{RC} agent\n::respawn:{RC} reconcile\n"
        f"::ctrlaltdel:/sbin/reboot\n::shutdown:{RC} shutdown\n"
    )
    return (ImageFile(RC, _rc(program), 0o755), ImageFile("/etc/inittab", inittab, keep=True))


def _rc(program: str) -> str:
    log = posixpath.join("/var/log", f"{NAME}.log")
    return f"""\
#!/bin/sh
# What a machine without a manager of services does after the switch; see {program} boot --help
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
case "$1" in
boot)
    [ -s /etc/hostname ] && hostname "$(cat /etc/hostname)"
    {_LOOPBACK}
    {program} stage run fs boot network
    ;;
agent)
    {program} agent --system >>{log} 2>&1
    sleep {_MIN_FREE_S} # an agent that ends at once must not keep the machine busy
    ;;
reconcile)
    while :; do
        sleep {RECONCILE_EVERY_S}
        {program} stage run reconcile
    done
    ;;
shutdown)
    umount -a -r 2>/dev/null
    ;;
*)
    echo "usage: $0 boot|agent|reconcile|shutdown" >&2
    exit 2
    ;;
esac
"""


def inits_of(root: Path) -> tuple[Init, ...]:
    """The inits that a root has."""
    programs: dict[Init, tuple[str, ...]] = {
        "systemd": ("usr/lib/systemd/systemd", "lib/systemd/systemd"),
        "openrc": ("sbin/openrc-init", "sbin/openrc", "usr/sbin/openrc"),
    }
    found = tuple(init for init in programs if any((root / path).exists() for path in programs[init]))
    if found:
        return found
    return ("busybox",) if any((root / path).exists() for path in ("bin/busybox", "usr/bin/busybox")) else ()


def write(root: Path, files: Sequence[ImageFile]) -> tuple[str, ...]:
    """Write files below a root. Returns the paths that were made or changed. Raises BootError."""
    tree = Root(root)
    changed = []
    for file in files:
        if file.link_to:
            if _link(tree.path(file.path, follow=False), file.link_to):
                changed.append(file.path)
        elif not (file.keep and tree.exists(file.path)) and tree.write(
            file.path, file.text.encode(), file.mode
        ):
            changed.append(file.path)
    return tuple(changed)


def _link(path: Path, target: str) -> bool:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink() and path.readlink() == Path(target):
            return False
        path.unlink(missing_ok=True)
        path.symlink_to(target)
    except OSError as exc:
        raise BootError(f"{path} can't be made: {exc.strerror or exc}", hint="is the root writable?") from exc
    return True
