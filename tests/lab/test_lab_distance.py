"""Are the regions of a lab as far apart as a scenario says, and is everything else as it was?"""

from __future__ import annotations

import re
from collections.abc import Callable

from p2p_simulations.lab.carrier import Carrier
from p2p_simulations.lab.lab import Lab
from p2p_simulations.lab.topology import make_topology
from p2p_simulations.lab.weather import weather_script
from p2p_simulations.world.net import PairWeather, Weather

LabFactory = Callable[..., Lab]
SHAPE = make_topology(
    {"open": ("a", "b"), "far": ("c",), "cone": ("d",), "hidden": ("e",)},
    nat={"cone": "full-cone", "hidden": "symmetric"},
)
NEAR = Weather(base_delay_s=0.0, region_delay_s=0.0, tail_delay_s=1e-6)
FAR = Weather(
    base_delay_s=0.0, region_delay_s=0.1, tail_delay_s=1e-6,
    links=(PairWeather("open", "far", 0.3, 1e-6),),
)  # fmt: skip


def fastest_ms(lab: Lab, source: str, address: str) -> float | None:
    """The least of a few round trips; None without an answer."""
    said = lab.node(source).exec(["ping", "-n", "-c2", "-i0.2", "-W2", address]).stdout
    times = [float(text) for text in re.findall(r"time=([\d.]+) ms", said)]
    return min(times, default=None)


def is_near(lab: Lab, source: str, address: str) -> bool:
    took = fastest_ms(lab, source, address)
    return took is not None and took < 200


def test_packets_between_regions_take_as_long_as_the_weather_says(lab: LabFactory) -> None:
    mine = lab(SHAPE)
    c = mine.topology.place("c")
    with Carrier(mine) as carrier:
        carrier.change(FAR)
        for address in (c.ipv4, c.ipv6):
            took = fastest_ms(mine, "a", address)
            assert took is not None, address
            assert took >= 600, (address, took)
        for source, target in (("d", c.ipv4), ("a", "198.19.3.1"), ("e", "198.19.3.1"), ("e", c.ipv4)):
            took = fastest_ms(mine, source, target)  # from behind NAT, to the full cone, and both
            assert took is not None, (source, target)
            assert took >= 200, (source, target, took)
        assert fastest_ms(mine, "c", mine.topology.place("d").ipv4) is None, "a NAT is still one"
        b = mine.topology.place("b").ipv4
        mine.wait(lambda: is_near(mine, "a", b), 60, "b to be near: frames within a region take no detour")
        mine.disturb(weather_script(mine.topology, {("a", "c"): 1.0}))
        assert fastest_ms(mine, "a", c.ipv4) is None, "a cut is still one"
        mine.disturb(weather_script(mine.topology, {}))
        carrier.change(NEAR)
        mine.wait(lambda: is_near(mine, "a", c.ipv4), 60, "c to be near again")
    assert fastest_ms(mine, "a", c.ipv4) is not None, "packets go straight without a carrier"
