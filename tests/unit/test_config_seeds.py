"""Is a seed file read as far as it makes sense?"""

from __future__ import annotations

from pathlib import Path

from p2p_bootstrap.config.seeds import MAX_SEEDS, read_seeds


def test_every_line_that_is_an_address_is_a_seed(tmp_path: Path) -> None:
    path = tmp_path / "seeds"
    path.write_text(
        "# the cabinet in the cellar\n10.0.0.5:4701\n\nseed.example:4701   # by name\n"
        "/ip4/10.0.0.6/tcp/4701\nnonsense here\n10.0.0.5:4701\n[fd00::5]:4701\n"
    )
    seeds = ("10.0.0.5:4701", "seed.example:4701", "/ip4/10.0.0.6/tcp/4701", "[fd00::5]:4701")
    assert read_seeds(str(path)) == seeds


def test_no_file_and_a_huge_one_are_no_error(tmp_path: Path) -> None:
    assert read_seeds("") == ()
    assert read_seeds(str(tmp_path / "missing")) == ()
    path = tmp_path / "huge"
    path.write_bytes(b"\xff\xfe" + "".join(f"10.0.0.5:{n}\n" for n in range(1, 20_000)).encode())
    assert len(read_seeds(str(path))) == MAX_SEEDS
