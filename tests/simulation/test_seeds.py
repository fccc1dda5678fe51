"""Do the production cores keep every promise in worlds that fail in every way?

A failure names the seed and the command that plays the same world again.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time

import pytest

from p2p_simulations.sim.chance import random_plan
from p2p_simulations.sim.world import Outcome, run_world

FOR_S = 3.0
ONCE_FAILED = (
    # certificates that were durable but never reached the ledger; assignments refused after a lost ledger
    98, 108, 118,
    # a machine whose clock was ahead when it claimed its address waited as long as it had been ahead
    94,
    # an address given up and taken again because of a look at the ledger before the claim was in it
    1_000_371, 1_000_417,
    # a server that lies assigned a role: what servers say of roles is believed, so the fault went too far
    50_000_097,
    # an upgrade while the image before it was still on trial: the bad one became the one to fall back to
    60_000_000,
    # a server given up while it got in became a voter before it heard so, and set half of the majority aside
    80_000_092,
    # the old system, healthy, blessed the new image after the flip and before the reboot
    91_000_115,
    # an entry whose author only one node had met, and that nobody else could judge: it had left since
    3021,
    # every first server was replaced: what later ones said of all could not be judged by a lost ledger (seed
    # 50_000_097 again); and two faults of the world: nobody was left, or left to lead two to each other
    400_000_025, 430_000_012,
    # a datastore of somebody else's was set aside, and it was its only member: our quorum loses nothing by it
    # (but its owner would have, at the third time: `test_k3s_driver` has production keep such data for ever)
    430_016_045,
    # a slow machine that left stood still in the middle (a fault of the twin)
    480_000_005,
    # a certificate was lost with a damaged row, and its owner had gone: its words stayed here only
    470_000_070,
    # a member that lies about the time drove the clock on by days, step by step (see `byzantine`)
    430_017_096,
)  # fmt: skip
"""Before operators had a die: played with the three dice that there were."""
OPERATED = (
    # a revoked server was etcd's member still, and whoever decided ended with an error over it
    520_000_040,
    # somebody deleted a Node while a revoked one was being added to etcd
    520_000_123,
    # two operators ordered different recoveries: some proposed what nobody may vote for, and never another
    520_000_195,
    # an order made from what others had said before a recovery was certified was carried out after it
    520_000_393,
    # an upgrade was under way when the cluster was recovered: nobody took it for this cluster's any more
    520_000_409,
    # a recovery that followed another one at once, by the same server, waited ten minutes for its reset
    532_000_183,
    # an upgrade waited for the old identity of a server that was imaged anew, and given up long since
    534_000_010,
    # who had rotated apart from the others, and was brought back by a new token, kept the lost generation
    540_000_232,
    # k3s broken on every node for long: each aborted epoch left its certificates in the ledger for ever
    540_000_610,
    # two recoveries ordered on one node: who ordered the first waited for ever, automatic ones ended with it
    560_000_191,
    # a ledger was lost, and an older claim on the same address came back: nobody looked whether it stands
    660_000_077,
    # fenced by an epoch that was recovered meanwhile, and the recovery given up: the ground was forgotten
    560_003_095,
    # a recovery went back to a snapshot, another one followed it: nobody knew of the upgrade ordered since
    580_000_082,
    # two upgrades ordered in one millisecond had one number: done with the first was done with the second
    581_000_177,
    # two faults of the world: judged while a server set its data aside; and people wrote to a revoked one
    583_000_052, 582_000_644,
    # a third: the disk was full where somebody was put out, and nobody ordered it again
    584_000_504, 585_000_881,
    # a fourth: a power cut came between the word that a node is out and the removal of what it had said
    586_000_247,
    # whoever was away heard of two recoveries one after the other, and stumbled while it set its data aside
    560_002_074,
)  # fmt: skip
"""With the four dice that there were."""
WENT_BACK = (
    # whom a restore had set aside, and who slept through a recovery after it, took it for another cluster
    572_000_016,
    # an order to recover took what a restore had begun, and never finished, for the cluster
    572_000_102,
    # a backup older than all snapshots was pruned before it was restored
    572_000_298,
    # servers were chosen without a look at where they may stand
    572_000_404,
    # as 560_002_074, and the second recovery had been given up
    560_003_095,
)  # fmt: skip
"""With five."""
DRAINED = (
    # of three servers two were upgraded, while the third, revoked, was etcd's member still
    590_000_248,
    # two faults of the world: nobody was left in the declared home region; and a write that a slow disk had
    # begun took as long as ever when the disk was fast again
    600_000_182, 600_000_716,
    # a ledger was lost on a slow disk, and the claim that was begun anew with was written over the one before
    620_000_980,
)  # fmt: skip
"""With six."""
SPARED = (
    # five epochs and three rotations on seven machines are no leak: the bound had no room for eight epochs
    750_000_431,
    # a fault of the checker: who never got in went on setting its data aside, also after the recovery that
    # had begun the cluster again without it was given up
    760_000_589,
    # a k3s whose agent was dead came back into etcd after it had been given up, and was put out again while
    # the one that took its place was being added
    780_000_210,
    # a fault of the world: k3s died between the first write of its datastore and its first answer
    820_000_023,
    # a word whose author's certificate the ledger did not have: only two had been shown it before it left
    840_000_544,
    # a full disk refused what a peer brought: the peer was told, and the agent went on with what it knew now
    870_000_064,
    # a fault of the world: who was put out was the only one that could lead two behind NATs to each other
    850_000_658,
    # the reset of a recovery that was given up ended while the next one's was waiting, which was asked for
    # again: etcd was reset a second time when it had begun, and stayed down
    880_002_185,
)
"""With seven."""
TOLD = (
    # k3s took long to end: setting its data aside was asked for again meanwhile, and took what came after
    910_000_808, 910_001_125,
    # a recovery was certified by fewer nodes than others came to know of before it was over: nobody counted
    # as many as they
    950_001_159,
    # who was to bring the cluster back had left, and nobody was told what to do about it
    955_000_725,
    # a k3s whose agent was dead joined a cluster that was being restored, and was set aside: as above
    960_001_359,
    # an agent was killed before its new secrets were sure to stay; the next one built the cluster upon them
    1_020_000_234,
    # a fault of the judge: what had been hopeless for a minute became possible at that very moment
    1_010_000_367,
    # a server left in the middle of its turn, and another one was taken down before etcd had given it up
    970_000_468,
    # a fault of the checker: a third server, from a region that nobody had come from before, and a recovery
    940_001_511,
)  # fmt: skip
"""With all eight."""
OF_ALL_KINDS = (5, 10, 600_000_017, 600_000_050, 600_000_149, 600_000_163)
"""Among them rotations, revocations, recoveries, backups, upgrades, nodes that leave or are imaged anew. What
hashes decided until they were sorted shows in the third."""


AN_OLDER_PROCESSOR = "glibc.cpu.hwcaps=-AVX2_Usable,-AVX2,-FMA_Usable,-FMA,-FMA4_Usable,-FMA4"
"""What glibc takes it for: its libm has other last bits there (other machines ignore this)."""


def checked(outcome: Outcome) -> Outcome:
    assert not outcome.violation, (
        f"seed {outcome.seed}: {outcome.violation}\nthe same again: kairos-p2p sim replay {outcome.seed}"
    )
    return outcome


@pytest.mark.parametrize("seed", [*range(10), *OPERATED])
def test_a_world_keeps_every_promise(seed: int) -> None:
    checked(run_world(random_plan(seed, dice=4), seed))


@pytest.mark.parametrize("seed", WENT_BACK)
def test_a_world_of_backups_keeps_every_promise(seed: int) -> None:
    checked(run_world(random_plan(seed, dice=5), seed))


@pytest.mark.parametrize("seed", DRAINED)
def test_a_world_of_drained_nodes_keeps_every_promise(seed: int) -> None:
    checked(run_world(random_plan(seed, dice=6), seed))


@pytest.mark.parametrize("seed", SPARED)
def test_a_world_where_enough_stay_keeps_every_promise(seed: int) -> None:
    checked(run_world(random_plan(seed, dice=7), seed))


@pytest.mark.parametrize("seed", TOLD)
def test_a_world_where_people_do_what_they_are_told_keeps_every_promise(seed: int) -> None:
    checked(run_world(random_plan(seed, dice=8), seed))


@pytest.mark.parametrize("seed", ONCE_FAILED)
def test_a_world_that_failed_before_operators_had_a_die_keeps_every_promise(seed: int) -> None:
    checked(run_world(random_plan(seed, dice=3), seed))


def test_worlds_one_after_another_keep_every_promise() -> None:
    """From KAIROS_P2P_FIRST_SEED on ("fresh": from anywhere), so that a lane is as green as the time before.
    Fresh ones by the hour are the business of ``kairos-p2p sim swarm``."""
    said = os.environ.get("KAIROS_P2P_FIRST_SEED", "600000000")
    first = secrets.randbelow(1_000_000_000) if said == "fresh" else int(said)
    end = time.monotonic() + FOR_S
    seed = first
    while time.monotonic() < end:
        checked(run_world(random_plan(seed), seed))
        seed += 1


def test_the_same_seed_is_the_same_world() -> None:
    one, other = (run_world(random_plan(10), 10, keep_trace=keep) for keep in (True, False))
    assert one.trace_hash == other.trace_hash
    assert (one.events, one.messages, one.virtual_s) == (other.events, other.messages, other.virtual_s)
    assert len(one.trace) > 50
    assert run_world(random_plan(10), 11).trace_hash != one.trace_hash


def test_no_hash_place_or_processor_decides_anything() -> None:
    code = (
        "from p2p_simulations.sim.chance import random_plan\n"
        "from p2p_simulations.sim.world import run_world\n"
        f"print([run_world(random_plan(seed), seed).trace_hash for seed in {OF_ALL_KINDS}])"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={
                **os.environ,
                "PYTHONHASHSEED": number,
                "TZ": zone,
                "LC_ALL": locale,
                "LANG": locale,
                **other,
            },
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for number, zone, locale, other in (
            ("1", "UTC", "C", {}),
            ("2", "Pacific/Auckland", "tr_TR.UTF-8", {"GLIBC_TUNABLES": AN_OLDER_PROCESSOR}),
        )
    }
    assert len(runs) == 1
