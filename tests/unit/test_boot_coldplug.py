"""Are the drivers loaded that the hardware asks for, with what they need, and no others?"""

from __future__ import annotations

from pathlib import Path

from p2p_bootstrap.boot import coldplug
from p2p_bootstrap.boot.coldplug import Catalogue, Coldplug

DEP = """\
kernel/drivers/scsi/sym/sym53c8xx.ko.xz: kernel/drivers/scsi/transport.ko.xz
kernel/drivers/scsi/transport.ko.xz:
kernel/drivers/usb/host/xhci-pci.ko.xz: kernel/drivers/usb/host/xhci.ko.xz
kernel/drivers/usb/host/xhci.ko.xz:
kernel/drivers/usb/storage/usb-storage.ko.xz:
kernel/drivers/gpu/big.ko.xz:
"""
ALIAS = """\
# Aliases
alias pci:v00001000d00000012sv*sd*bc*sc*i* sym53c8xx
alias pci:v*d*sv*sd*bc0Csc03i30* xhci_pci
alias usb:v*p*d*dc*dsc*dp*ic08isc06ip50in* usb_storage
alias pci:v00001234d*sv*sd*bc*sc*i* big
alias char-major-10-200 xhci
"""
LSI = "pci:v00001000d00000012sv00000000sd00001000bc01sc00i00"
XHCI = "pci:v00001B36d0000000Dsv00001AF4sd00001100bc0Csc03i30"
STICK = "usb:v46F4p0001d0000dc00dsc00dp00ic08isc06ip50in00"
GPU = "pci:v00001234d00001111sv00001AF4sd00001100bc03sc00i00"


def made(tmp_path: Path) -> Catalogue:
    (tmp_path / "modules.dep").write_text(DEP)
    (tmp_path / "modules.builtin").write_text("")
    (tmp_path / "modules.alias").write_text(ALIAS)
    return coldplug.catalogue(tmp_path)


def test_the_catalogue_knows_drivers_of_disks_only(tmp_path: Path) -> None:
    known = made(tmp_path)
    assert known.asked([LSI, GPU, "acpi:PNP0A03:"]) == ("sym53c8xx",)
    assert known.asked([STICK, XHCI]) == ("xhci_pci", "usb_storage")
    assert known.asked([]) == ()
    assert coldplug.parse(coldplug.render(known)).asked([LSI]) == ("sym53c8xx",)


def test_what_appears_behind_a_driver_gets_its_own(tmp_path: Path) -> None:
    folder, sys = tmp_path / "packed", tmp_path / "sys"
    folder.mkdir()
    (folder / coldplug.NAME).write_bytes(coldplug.render(made(tmp_path)))
    loaded: list[str] = []

    def device(place: str, name: str) -> None:
        (sys / "devices" / place).mkdir(parents=True)
        (sys / "devices" / place / "modalias").write_text(f"{name}\n")

    def insert(path: Path) -> str:
        loaded.append(path.name)
        if path.name == "xhci-pci.ko":
            device("pci0/usb1/1-1", STICK)  # the bus comes to life
        return "the kernel refused it" if path.name == "usb-storage.ko" else ""

    device("pci0/0000:00:03.0", XHCI)
    plug = Coldplug(folder, insert, sys)
    assert plug() == ("the kernel refused it",)
    assert loaded == ["xhci.ko", "xhci-pci.ko", "usb-storage.ko"]
    device("pci0/0000:00:04.0", LSI)  # while the boot waits for a device
    assert plug() == ()
    assert loaded[3:] == ["transport.ko", "sym53c8xx.ko"]
    assert plug() == ()
    assert len(loaded) == 5


def test_without_a_catalogue_nothing_is_looked_at(tmp_path: Path) -> None:
    assert Coldplug(tmp_path, sys=tmp_path / "missing")() == ()
