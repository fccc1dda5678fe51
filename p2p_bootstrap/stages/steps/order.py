"""Which actions does a step consist of, and in which order? Kairos's order, whatever the file's.

What few stages of the boot need is imported when a step asks for it: process 1 has no time for more.
"""

from __future__ import annotations

from collections.abc import Iterator

from p2p_bootstrap.stages.action import Action
from p2p_bootstrap.stages.model import Step
from p2p_bootstrap.stages.steps import files, kernel, naming, people, programs, services


def actions(step: Step) -> tuple[Action, ...]:
    """The actions of a step, in the order in which they run."""
    return tuple(_actions(step))


def _actions(step: Step) -> Iterator[Action]:
    place = str(step.mark)
    if step.dns:
        yield naming.SetDns(step.dns)
    yield from (files.Fetch(download) for download in step.downloads)
    if step.git:
        yield programs.CloneGit(step.git)
    if step.ensure_entities or step.delete_entities:
        from p2p_bootstrap.stages.steps import entities
    yield from (entities.EnsureEntity(entity, place) for entity in step.ensure_entities)
    yield from (files.MakeDirectory(directory) for directory in step.directories)
    yield from (files.WriteFile(file, place) for file in step.files)
    yield from (programs.RunCommand(command, place) for command in step.commands)
    yield from (entities.DeleteEntity(entity, place) for entity in step.delete_entities)
    if step.hostname:
        yield naming.SetHostname(step.hostname, place)
    yield from (kernel.SetSysctl(key, value) for key, value in step.sysctl.items())
    # sorted: users get the same numbers on every boot, however the map is written
    yield from (people.EnsureUser(name, user) for name, user in sorted(step.users.items()))
    yield from (people.AuthorizeKeys(name, keys) for name, keys in step.authorized_keys.items())
    yield from (kernel.LoadModule(module) for module in step.modules)
    if step.timesyncd:
        yield services.SetTime(step.timesyncd)
    if step.systemctl:
        yield from (services.ControlUnit("enable", unit) for unit in step.systemctl.enable)
        yield from (services.ControlUnit("disable", unit) for unit in step.systemctl.disable)
        yield from (services.ControlUnit("mask", unit) for unit in step.systemctl.mask)
        yield from (services.OverrideUnit(override) for override in step.systemctl.overrides)
        yield from (services.ControlUnit("start", unit) for unit in step.systemctl.start)
    if step.environment:
        yield services.SetEnvironment(step.environment, step.environment_file, place)
    if step.systemd_firstboot:
        yield services.FirstBoot(step.systemd_firstboot)
    if step.datasource:
        from p2p_bootstrap.stages.steps import userdata

        yield userdata.FetchUserData(step.datasource)
    if step.layout:
        from p2p_bootstrap.stages.steps import disk

        yield disk.ApplyLayout(step.layout)
    if step.package_pins:
        yield programs.PinPackages(step.package_pins)
    if step.packages:
        yield programs.ManagePackages(step.packages)
    if step.unpack_images:
        from p2p_bootstrap.stages.steps import images

        yield from (images.UnpackImageFiles(image) for image in step.unpack_images)
