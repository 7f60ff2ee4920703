"""Seeds of places in a run."""

from __future__ import annotations

import itertools

import torch

from calotype.training.seeds import generator_for, seed_for


def test_every_place_has_a_seed_of_its_own():
    places = [place for length in range(4) for place in itertools.product(range(4), repeat=length)]
    seeds = {seed_for(seed, *place) for seed in range(4) for place in places}
    assert len(seeds) == 4 * len(places)  # also (5,), (5, 0) and (5, 0, 0): a ticket is no step of process 0


def test_the_same_place_draws_the_same():
    first, again, other = (torch.rand(4, generator=generator_for(*place)) for place in ((1, 2, 3), (1, 2, 3), (1, 3, 2)))
    assert torch.equal(first, again) and not torch.equal(first, other)
