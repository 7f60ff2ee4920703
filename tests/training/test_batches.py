"""Batches: every picture once a pass, whatever the processes, and any batch by its number alone."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from calotype.training.batches import Batches, Draw

groups_of = st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any)


def lists(lengths):
    """Lists of these lengths that share no index."""
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    return [list(range(start, start + length)) for start, length in zip(starts, lengths, strict=True)]


def steps(groups, size, count, processes=1, first=0, **how):
    """`count` steps, each the draws of all processes together."""
    each = [Batches(groups, size, 3, first=first, process=p, processes=processes, **how) for p in range(processes)]
    return [[draw for part in parts for draw in part] for parts in islice(zip(*each, strict=True), count)]


@settings(max_examples=60, deadline=None)
@given(groups_of, st.integers(1, 4), st.integers(1, 3))
def test_every_picture_once_in_each_pass_of_its_group(lengths, size, processes):
    groups = lists(lengths)
    drawn = [draw.index for step in steps(groups, size, 30, processes) for draw in step]
    for group in groups:
        own = [index for index in drawn if index in group]
        passes = [own[i : i + len(group)] for i in range(0, len(own) - len(group) + 1, max(len(group), 1))] if group else []
        assert all(sorted(one) == group for one in passes)
        if passes:  # and what is left is the beginning of a pass
            assert len(set(own[len(passes) * len(group) :])) == len(own) - len(passes) * len(group)


@settings(max_examples=60, deadline=None)
@given(groups_of, st.integers(1, 4), st.integers(1, 3))
def test_a_step_is_of_one_group_and_tickets_are_its_numbers(lengths, size, processes):
    groups = lists(lengths)
    taken = steps(groups, size, 20, processes)
    for number, step in enumerate(taken):
        assert [draw.ticket for draw in step] == list(range(number * size * processes, (number + 1) * size * processes))
        group, = (group for group in groups if step[0].index in group)
        assert {draw.index for draw in step} <= set(group)
        assert len({draw.index for draw in step}) >= min(len(step), len(group)) / 2  # only a pass's end can bring one again


@settings(max_examples=60, deadline=None)
@given(groups_of, st.integers(1, 4), st.integers(1, 3), st.integers(0, 60))
def test_going_on_is_never_having_stopped(lengths, size, processes, first):
    groups = lists(lengths)
    assert steps(groups, size, first + 8, processes)[first:] == steps(groups, size, 8, processes, first)


@settings(max_examples=40, deadline=None)
@given(groups_of, st.integers(1, 4), st.integers(1, 30))
def test_groups_have_their_share_of_steps(lengths, size, epochs):
    groups = lists(lengths)
    batches = Batches(groups, size, 0)
    count = -(-epochs * sum(lengths) // size)
    drawn = Counter(next(i for i, group in enumerate(groups) if batch[0].index in group) for batch in islice(batches, count))
    for i, length in enumerate(lengths):
        assert abs(drawn[i] - epochs * length / size) <= 1 + len(lengths)


def test_one_epoch_is_a_permutation_and_each_is_another():
    batches = list(islice(Batches(12, 4, 0), 6))
    first, second = ([draw.index for batch in half for draw in batch] for half in (batches[:3], batches[3:]))
    assert sorted(first) == sorted(second) == list(range(12)) and first != second
    assert first != [draw.index for batch in islice(Batches(12, 4, 1), 3) for draw in batch]
    assert [draw.index for batch in islice(Batches(12, 4, 0, shuffle=False), 3) for draw in batch] == list(range(12))


def test_groups_do_not_come_one_after_the_other():
    of = [batch[0].index >= 40 for batch in islice(Batches([range(40), range(40, 80)], 4, 0), 20)]
    assert sum(of) == 10 and of != sorted(of) and of != sorted(of, reverse=True)


def test_pictures_alone_in_their_groups_are_spread_over_the_epochs():
    groups = [range(400), *([i] for i in range(400, 416))]  # 100 steps an epoch, and for each of 16 one in four epochs
    alone = [batch[0].index >= 400 for batch in islice(Batches(groups, 4, 0), 416)]
    assert sum(alone) == 16 and all(3 <= sum(alone[i : i + 104]) <= 5 for i in range(0, 416, 104))


def test_steps_per_epoch():
    assert [Batches(10, 4, 0).steps_per_epoch, Batches(3, 64, 0).steps_per_epoch] == [3, 1]
    assert Batches([range(5), range(5, 12)], 2, 0, processes=3).steps_per_epoch == 2


@settings(max_examples=80, deadline=None)
@given(groups_of, st.integers(1, 4), st.integers(1, 3), st.integers(1, 12))
def test_steps_for_epochs_are_the_fewest_in_which_every_picture_comes_so_often(lengths, size, processes, epochs):
    groups = lists(lengths)
    count = Batches(groups, size, 3, processes=processes).steps_for(epochs)
    taken = steps(groups, size, count, processes)
    seen, before = (Counter(draw.index for step in part for draw in step) for part in (taken, taken[:-1]))
    assert min(seen[index] for group in groups for index in group) >= epochs
    assert min(before[index] for group in groups for index in group) < epochs


def test_far_on_is_as_near():
    assert next(iter(Batches(1000, 8, 0, first=10**9)))[0].ticket == 8 * 10**9


def test_in_a_loader():
    loader = DataLoader(Tickets(), batch_sampler=Batches(5, 2, 0), num_workers=2)
    plain = DataLoader(Tickets(), batch_sampler=Batches(5, 2, 0))
    assert [batch.tolist() for batch in islice(loader, 6)] == [batch.tolist() for batch in islice(plain, 6)]


class Tickets:
    """A data set that gives its draws back."""

    def __getitem__(self, draw):
        assert isinstance(draw, Draw)
        return draw.index * 1000 + draw.ticket


@pytest.mark.parametrize(("arguments", "word"), [
    ({"groups": 0}, "no pictures"), ({"groups": [[], []]}, "no pictures"), ({"groups": []}, "no pictures"),
    ({"batch_size": 0}, "batch_size is 0"), ({"process": 2, "processes": 2}, "process is 2"), ({"first": -1}, "first is -1"),
    ({"seed": -1}, "seed is -1")])
def test_bad_input(arguments, word):
    with pytest.raises(ValueError, match=word):
        Batches(**{"groups": 4, "batch_size": 2, "seed": 0} | arguments)
