"""Every fault once, on a real Anvil, with a real ledger: all comes right, nothing comes twice."""

from __future__ import annotations

import random

import pytest

from benchmarks._chain_faults import FAULTS, lying_endpoint
from benchmarks._world import World

pytestmark = pytest.mark.chain


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with World(tmp_path_factory.mktemp("faults")) as made:
        yield made
        made.check(from_block=0)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("fault", FAULTS)
def test_all_comes_right_after(world, fault, seed):
    world.heal()  # of what a failed test before this one left
    FAULTS[fault](world, random.Random(f"{fault} {seed}"))
    world.heal()
    world.settle()


def test_a_liar_among_honest_nodes_is_outvoted(tmp_path):
    with World(tmp_path, proxies=3) as world:
        for seed in range(8):
            lying_endpoint(world, random.Random(seed))
            world.heal()
            world.settle()
        world.check(from_block=0)
