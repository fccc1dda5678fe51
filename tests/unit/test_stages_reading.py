"""What is wrong with a file's stages, where, and what was meant? All at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from p2p_bootstrap.cloudconfig.collect import collect
from p2p_bootstrap.config.loading import check
from p2p_bootstrap.stages.configured import Configured, read_steps
from p2p_bootstrap.stages.model import Step
from p2p_bootstrap.stages.reading import keys_of


def read(text: str, *more: str) -> Configured:
    collected = collect([], stdin=f"#cloud-config\n{text}\n")
    assert not collected.problems, collected.problems
    return read_steps(collected.root, collected.files, collected.names)


def step(text: str) -> Step:
    configured = read("stages:\n  boot:\n" + "".join(f"  {line}\n" for line in text.splitlines()))
    assert not configured.problems, [str(problem) for problem in configured.problems]
    (one,) = configured.steps
    return one.step


WRONG = [
    ("stages: {bot: []}", 2, 10, "stages.bot", "unknown stage", "did you mean 'boot'?"),
    ("stages: {xyzzy: []}", 2, 10, "stages.xyzzy", "unknown stage", "rootfs, initramfs"),
    ("stages: [boot]", 2, 9, "stages", "expected a map of stages", ""),
    ("stages: {boot: {name: a}}", 2, 16, "stages.boot", "expected a list of steps", "dash"),
    ("stages: {boot: [echo]}", 2, 17, "stages.boot[0]", "expected a map of keys, found a text", "commands"),
    ("stages: {boot: [{comands: [a]}]}", 2, 18, "stages.boot[0].comands", "unknown key", "'commands'"),
    ("stages: {boot: [{systctl: {a: 1}}]}", 2, 18, "stages.boot[0].systctl", "unknown key", "'sysctl'"),
    ("stages: {boot: [{only_so: a}]}", 2, 18, "stages.boot[0].only_so", "unknown key", "'only_os'"),
    ("stages: {boot: [{commands: a}]}", 2, 28, "stages.boot[0].commands", "expected a list", "dash"),
    ("stages: {boot: [{commands: [{a: b}]}]}", 2, 29, "stages.boot[0].commands[0]", "found a map", "quotes"),
    ("stages: {boot: [{commands: [~]}]}", 2, 29, "stages.boot[0].commands[0]", "found nothing", "remove"),
    ("stages: {boot: [{only_os: '('}]}", 2, 27, "stages.boot[0].only_os", "no regular expression", ""),
    (
        "stages: {boot: [{only_service_manager: runit}]}",
        2,
        40,
        "stages.boot[0].only_service_manager",
        "one of systemd, openrc",
        "",
    ),
    ("stages: {boot: [{if_files: {some: [/a]}}]}", 2, 29, "stages.boot[0].if_files.some", "unknown key", ""),
    (
        "stages: {boot: [{if_files: {any: [a]}}]}",
        2,
        35,
        "stages.boot[0].if_files.any[0]",
        "absolute path",
        "/",
    ),
    ("stages: {boot: [{after: [x]}]}", 2, 26, "stages.boot[0].after[0]", "map of keys", "name"),
    ("stages: {boot: [{files: [{content: a}]}]}", 2, 26, "stages.boot[0].files[0]", "'path' is missing", ""),
    (
        "stages: {boot: [{files: [{path: /a, permissions: 644}]}]}",
        2,
        50,
        "stages.boot[0].files[0].permissions",
        "mode 1204",
        "write 0644",
    ),
    (
        "stages: {boot: [{files: [{path: /a, encoding: zip}]}]}",
        2,
        47,
        "stages.boot[0].files[0].encoding",
        "one of b64",
        "",
    ),
    (
        "stages: {boot: [{files: [{path: /a, owner: me}]}]}",
        2,
        44,
        "stages.boot[0].files[0].owner",
        "whole number",
        "",
    ),
    (
        "stages: {boot: [{commands: ['{{ trunk 1 }}']}]}",
        2,
        29,
        "stages.boot[0].commands[0]",
        "'trunk'",
        "trunc",
    ),
    (
        "stages: {boot: [{datasource: {providers: [ec2]}}]}",
        2,
        43,
        "stages.boot[0].datasource.providers[0]",
        "one of aws",
        "",
    ),
    ("stages: {boot: [{layout: {}}]}", 2, 26, "stages.boot[0].layout", "'device' is missing", ""),
    (
        "stages: {boot: [{systemctl: {enable: ['a b']}}]}",
        2,
        39,
        "stages.boot[0].systemctl.enable[0]",
        "plain name",
        "spaces",
    ),
    (
        "stages: {boot: [{packages: {install: [--help]}}]}",
        2,
        39,
        "stages.boot[0].packages.install[0]",
        "plain name",
        "",
    ),
    ("stages: {boot: [{fatal: 'yes'}]}", 2, 25, "stages.boot[0].fatal", "true or false", "quotes"),
    (
        "stages: {boot: [{users: {a: {no_create_home: true, no-create-home: true}}}]}",
        2,
        52,
        "stages.boot[0].users.a.no-create-home",
        "says the same",
        "keep one",
    ),
    ("users: [{passwd: a}]", 2, 9, "users[0]", "'name' is missing", ""),
    ("users: [{name: a, sudo: x}]", 2, 19, "users[0].sudo", "unknown key", "valid keys here"),
    (
        "write_files: [{path: /a, permission: '0644'}]",
        2,
        26,
        "write_files[0].permission",
        "unknown key",
        "'permissions'",
    ),
    ("runcmd: ls", 2, 9, "runcmd", "expected a list", "dash"),
    ("config_url: http://h/x", 2, 13, "config_url", "plain http", "pin the content"),
    ("growpart: {device: [/]}", 2, 12, "growpart.device", "unknown key", "'devices'"),
]


@pytest.mark.parametrize(
    ("text", "line", "column", "key", "message", "hint"), WRONG, ids=[w[3] for w in WRONG]
)
def test_each_mistake_has_its_place_and_its_cure(
    text: str, line: int, column: int, key: str, message: str, hint: str
) -> None:
    _, problems = check(collect([], stdin=f"#cloud-config\n{text}\n"))
    assert [problem.key for problem in problems] == [key], [str(problem) for problem in problems]
    (problem,) = problems
    assert (problem.file, problem.line, problem.column) == ("stdin", line, column)
    assert message in problem.message
    assert hint in problem.hint


def test_all_mistakes_at_once_and_the_good_steps_stay() -> None:
    configured = read(
        "stages:\n  boot:\n  - {comands: [a], sysctl: [b]}\n  - commands: [c]\n  initramf:\n  - {}\n"
    )
    assert [(p.line, p.key) for p in configured.problems] == [
        (4, "stages.boot[0].comands"),
        (4, "stages.boot[0].sysctl"),
        (6, "stages.initramf"),
    ]
    assert [one.step.commands for one in configured.steps] == [("c",)]
    assert configured.broken == {"boot": 1}


def test_a_template_in_a_block_is_found_on_its_line() -> None:
    configured = read(
        "stages:\n  boot:\n  - files:\n    - path: /a\n      content: |\n        one\n        {{ .Nope }}\n"
    )
    (problem,) = configured.problems
    assert problem.line == 8


@pytest.mark.parametrize(
    ("written", "mode"),
    [
        ("0644", 0o644),
        ('"0644"', 0o644),
        ('"644"', 0o644),
        ("0o600", 0o600),
        ("420", 0o644),
        ("511", 0o777),
        ("493", 0o755),
        ("0", 0),
        ("04755", 0o4755),
    ],
)
def test_permissions_mean_what_they_mean_to_kairos(written: str, mode: int) -> None:
    assert step(f"- files: [{{path: /a, permissions: {written}}}]").files[0].permissions == mode


def test_every_key_of_kairos_s_reference_is_known() -> None:
    reference = (
        "dns downloads git ensure_entities directories files commands delete_entities hostname sysctl users "
        "authorized_keys modules timesyncd systemctl environment environment_file systemd_firstboot "
        "datasource layout package_pins packages unpack_images node if only_os only_os_version only_arch "
        "only_service_manager if_files after name"
    )
    assert set(reference.split()) == {one.key for one in keys_of(Step).values()} - {"fatal"}
    providers = (
        "aws azure gcp hetzner openstack packet scaleway vultr digitalocean vmware cdrom config-drive file"
    )
    from p2p_bootstrap.stages.model import Provider

    assert set(providers.split()) <= set(get_args(Provider))


def test_plain_keys_are_steps_of_their_stages() -> None:
    configured = read(
        "hostname: n-{{ .UUID }}\n"
        "users:\n- {name: kairos, passwd: x, ssh_authorized_keys: [ssh-ed25519 AAAA, 'github:me']}\n"
        "- default\n"
        "ssh_authorized_keys: [ssh-rsa BBBB, 'gitlab:you']\n"
        "write_files: [{path: /a, content: hi, owner: 'kairos:kairos', permissions: '0640'}]\n"
        "runcmd:\n- echo a\n- [echo, it's]\n"
        "growpart: {devices: ['/']}\n"
        "stages: {boot: [{name: mine}]}\n"
    )
    found: dict[str, list[Any]] = {}
    for one in configured.steps:
        found.setdefault(one.stage, []).append(one)
    assert not configured.problems
    users, files, grow, mine = (one.step for one in found["boot"])
    assert list(users.users) == ["kairos"]
    assert users.authorized_keys == {"kairos": ("ssh-ed25519 AAAA", "ssh-rsa BBBB")}
    assert (files.files[0].owner_string, files.files[0].permissions) == ("kairos:kairos", 0o640)
    assert files.commands == ("echo a", "'echo' 'it'\\''s'")
    assert grow.layout is not None
    assert grow.layout.device.path == "/"
    assert mine.name == "mine"
    assert found["initramfs"][0].step.hostname == "n-{{ .UUID }}"
    assert found["network"][0].step.authorized_keys == {"kairos": ("github:me", "gitlab:you")}


def test_groups_may_stand_in_one_line() -> None:
    (one,) = read('users: [{name: a, groups: "users, admin"}]').steps
    assert one.step.users["a"].groups == ("users", "admin")


def test_keys_without_users_are_root_s() -> None:
    (one,) = read("ssh_authorized_keys: [ssh-rsa A]").steps
    assert one.step.authorized_keys == {"root": ("ssh-rsa A",)}


def test_steps_run_file_by_file(tmp_path: Path) -> None:
    (tmp_path / "1.yaml").write_text("#cloud-config\nruncmd: [one]\nstages: {boot: [{commands: [two]}]}\n")
    (tmp_path / "2.yaml").write_text("#cloud-config\nname: B\nruncmd: [three]\nstages: {boot: [{name: x}]}\n")
    collected = collect([tmp_path])
    configured = read_steps(collected.root, collected.files, collected.names)
    assert [one.step.commands for one in configured.steps] == [("one",), ("two",), ("three",), ()]
    assert configured.steps[-1].id == "B.x"
