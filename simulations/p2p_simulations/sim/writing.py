"""How is a plan written as a scenario file, so that `sim run` plays the same world?

The opposite of `files.parse_scenario`: what that reads from `render(plan)` is the plan again (times to the
millisecond). Only what differs from the defaults is written. So a world that chance made, or that shrinking
made small, becomes a file that a person can read, keep and play again.
"""

from __future__ import annotations

from typing import Any, assert_never

import yaml

from p2p_network.addressing import DEFAULT_NETWORK
from p2p_simulations.sim.plan import (
    BreakK3s,
    Byzantine,
    ChangeWeather,
    CorruptCopy,
    CorruptDurable,
    CorruptLedger,
    Cut,
    Depart,
    Drain,
    DriftClock,
    Expectations,
    Fault,
    Flap,
    Freeze,
    FullDisk,
    JumpClock,
    K3sPlan,
    KillAgent,
    LoseLedger,
    MakeBackup,
    NodePlan,
    OneWay,
    Partition,
    Plan,
    PowerCut,
    Recover,
    Reimage,
    RestoreBackup,
    Revoke,
    Rotate,
    Slow,
    Upgrade,
    UpgradeK3s,
)
from p2p_simulations.world.net import CALM, Weather

Facts = dict[str, Any]


def duration(seconds: float) -> str:
    """A duration as scenario files have it, to the millisecond."""
    ms = round(abs(seconds) * 1000)
    sign = "-" if seconds < 0 and ms else ""
    if ms % 60_000 == 0 and ms:
        return f"{sign}{ms // 60_000}m"
    return (
        f"{sign}{ms // 1000}s"
        if ms % 1000 == 0
        else f"{sign}{ms / 1000:g}s"
        if ms < 10**6
        else _long(sign, ms)
    )


def _long(sign: str, ms: int) -> str:
    return f"{sign}{ms // 1000}.{ms % 1000:03d}s"


def render(plan: Plan, *, comment: str = "") -> str:
    """A scenario file. `comment`: lines for its head."""
    lines = [f"# {line}" if line else "#" for line in comment.splitlines()]
    for key, value in _top(plan).items():
        if key == "faults":
            lines.append("faults:")
            lines += [f"  - {_flow(fault)}" for fault in value]
        else:
            lines.append(f"{key}: {_flow(value)}")
    return "\n".join(lines) + "\n"


def describe(fault: Fault) -> str:
    """One line for people, in the words of scenario files."""
    return _flow(_fault(fault))[1:-1]


def _flow(value: Any) -> str:
    """YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**9, allow_unicode=True)
    return text.removesuffix("...\n").strip()


def _top(plan: Plan) -> Facts:
    regions: dict[str, list[str]] = {}
    for node in plan.nodes:
        regions.setdefault(node.region, []).append(node.name)
    nodes = {node.name: facts for node in plan.nodes if (facts := _node(node))}
    faults = [{"at": duration(at_s), **_fault(fault)} for at_s, fault in plan.faults]
    faults += [
        {"when": trigger.state, "after": duration(trigger.after_s), **_fault(trigger.fault)}
        for trigger in plan.triggers
    ]
    expect, usual = plan.expect, Expectations()
    expected: Facts = {}
    if not expect.converges:
        expected["cluster"] = False
    if expect.within_s != usual.within_s:
        expected["within"] = duration(expect.within_s)
    if expect.alarm:
        expected["alarm"] = expect.alarm
    if expect.clusters_before_healing is not None:
        expected["clusters_before_heal"] = expect.clusters_before_healing
    whole: Facts = {
        "regions": regions,
        "servers": plan.servers,
        "minimum_nodes": plan.minimum_nodes,
        "cluster": "region" if plan.per_region else None,
        "placement": plan.placement.kind if plan.placement.kind != "spread" else None,
        "home_region": plan.placement.home_region or None,
        "infer_regions": plan.infers_regions or None,
        "relay": None if plan.relays else False,
        "dynamic_roles": plan.replaces or None,
        "recovery": "automatic" if plan.recovers else None,
        "nodes": nodes,
        "network": _weather(plan.weather),
        "vpn": None if plan.network == DEFAULT_NETWORK else str(plan.network),
        "k3s": _k3s(plan.k3s),
        "chaos": plan.chaos or None,
        "max_chaos": plan.max_chaos if plan.chaos and plan.max_chaos != 10 else None,
        "faults": faults,
        "heal": duration(plan.heal_at_s),
        "expect": expected,
    }
    return {key: value for key, value in whole.items() if value is not None and value not in ({}, [])}


def _node(node: NodePlan) -> Facts:
    said: Facts = {
        "role": node.wish if node.wish != "auto" else None,
        "zone": node.zone or None,
        "minimum_nodes": node.minimum_nodes,
        "clock": duration(node.clock_offset_s) if node.clock_offset_s else None,
        "slowness": node.slowness if node.slowness != 1.0 else None,
        "k3s": "broken" if node.k3s_broken else "stale" if node.stale_k3s else None,
        "boots": duration(node.boots_at_s) if node.boots_at_s else None,
        "joins": "later" if node.joins_later else None,
        "nat": node.nat if node.nat != "open" else None,
    }
    return {key: value for key, value in said.items() if value is not None}


def _k3s(k3s: K3sPlan) -> Facts:
    said: Facts = {}
    if k3s.start_s != K3sPlan().start_s:
        said["start"] = [duration(end) for end in k3s.start_s]
    if k3s.lingers_s != K3sPlan().lingers_s:
        said["lingers"] = [duration(end) for end in k3s.lingers_s]
    if k3s.failure:
        said["failure"] = k3s.failure
    if k3s.snapshots_s:
        said["snapshots"] = duration(k3s.snapshots_s)
    return said


def _weather(weather: Weather) -> Facts:
    said: Facts = {}
    for key, value, usual in (
        ("delay", weather.base_delay_s, CALM.base_delay_s),
        ("region_delay", weather.region_delay_s, CALM.region_delay_s),
        ("tail", weather.tail_delay_s, CALM.tail_delay_s),
    ):
        if value != usual:
            said[key] = duration(value)
    said |= {key: value for key in ("loss", "duplication") if (value := getattr(weather, key))}
    if weather.links:
        said["links"] = [
            {
                "between": [link.one, link.other],
                "delay": duration(link.delay_s),
                "tail": duration(link.tail_s),
                "loss": link.loss,
            }
            for link in weather.links
        ]
    return said


def _names(names: tuple[str, ...]) -> str | list[str]:
    return "it" if not names else names[0] if len(names) == 1 else list(names)


def _lasting(key: str, value: Any, for_s: float | None) -> Facts:
    return {key: value} if for_s is None else {key: value, "for": duration(for_s)}


def _fault(fault: Fault) -> Facts:
    match fault:
        case PowerCut(nodes, down_s):
            return _lasting("power_cut", _names(nodes), down_s)
        case KillAgent(nodes, down_s):
            return _lasting("kill_agent", _names(nodes), down_s)
        case Partition(groups, for_s):
            return _lasting("partition", [list(group) for group in groups] if groups else "it", for_s)
        case OneWay(sources, targets, for_s):
            return _lasting("one_way", {"from": list(sources), "to": list(targets)}, for_s)
        case Cut(pairs, for_s):
            return _lasting("cut", [list(pair) for pair in pairs], for_s)
        case Flap(one, other, period_s, for_s):
            return _lasting("flap", [one, other], for_s) | {"period": duration(period_s)}
        case ChangeWeather(weather):
            return {"network": _weather(weather)}
        case JumpClock(node, by_s):
            return {"clock": {node: duration(by_s)}}
        case DriftClock(node, rate):
            return {"drift": {node: rate}}
        case Slow(node, what, factor, for_s):
            return _lasting(f"slow_{what}", {node: factor}, for_s)
        case Upgrade(nodes, is_good, every_s):
            name = "upgrade" if is_good else "bad_upgrade"
            return {name: _names(nodes), "period": duration(every_s)}
        case UpgradeK3s(node, version, bad):
            words = {"at": node, "version": version} | ({"bad": list(bad)} if bad else {})
            return {"upgrade_k3s": words}
        case Rotate(node):
            return {"rotate": node}
        case Revoke(node):
            return {"revoke": node}
        case _:
            return _fault_of_one(fault)


def _fault_of_one(
    fault: Freeze
    | LoseLedger
    | CorruptDurable
    | CorruptLedger
    | CorruptCopy
    | Reimage
    | BreakK3s
    | FullDisk
    | Depart
    | Byzantine
    | Recover
    | Drain
    | MakeBackup
    | RestoreBackup,
) -> Facts:
    match fault:
        case Freeze(node, for_s):
            return _lasting("freeze", node, for_s)
        case LoseLedger(node, down_s):
            return _lasting("lose_ledger", node, down_s)
        case CorruptDurable(node, down_s):
            return _lasting("corrupt", node, down_s)
        case CorruptLedger(node, down_s):
            return _lasting("corrupt_ledger", node, down_s)
        case Reimage(node, down_s):
            return _lasting("reimage", node, down_s)
        case BreakK3s(node, for_s):
            return _lasting("break_k3s", node, for_s)
        case FullDisk(node, for_s):
            return _lasting("full_disk", node, for_s)
        case Depart(node, said):
            return {"leave" if said else "vanish": node}
        case Byzantine(node, how):
            return {how: node}
        case MakeBackup(node):
            return {"backup": node}
        case RestoreBackup(node):
            return {"restore": node}
        case CorruptCopy(node):
            return {"corrupt_snapshot": node}
        case Drain(node, for_s):
            return _lasting("drain", node, for_s)
        case Recover(node, snapshot):
            return {"recover": {"at": node, "snapshot": snapshot} if snapshot else node}
        case _:
            assert_never(fault)
