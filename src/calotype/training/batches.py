"""Which pictures a step draws, as a function of the seed and the step's number: a killed run goes on exactly."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from .seeds import generator_for

_SHUFFLE, _ORDER = 0x73687566, 0x6F726465  # the first number of a place, so that no step or ticket has the same one


class Draw(NamedTuple):
    """One picture drawn.

    Attributes:
        index: which picture.
        ticket: the number of the draw in the whole run, of all processes. What is random about the draw is
            `seeds.generator_for(seed, ticket)`, whoever makes it.
    """

    index: int  # type: ignore[assignment]  # a tuple has a method of this name
    ticket: int


class Batches:
    """Endless lists of draws, one a step: a `batch_sampler` for `torch.utils.data.DataLoader`.

    Each group of pictures is an endless stream: the whole group in a random order, then again in another, and so on. A step
    takes the next `batch_size * processes` draws of one group's stream; process p has the p-th part of them. So every
    picture comes exactly once in each pass through its group, and what is left at the end of a pass begins the batch that
    the next pass fills up: nothing is dropped, and no picture is drawn more often than others, not even one alone in its
    group. Groups take turns in random order, in proportion to their sizes: after any number of epochs a group has had its
    share of steps to within one.

    Args:
        groups: the number of pictures; or lists of indices, and a batch is of one list only (buckets of one size, say).
            Empty lists are left alone.
        batch_size: pictures a step and process.
        seed: not negative. Batch b of process p is a function of this and b alone.
        first: the number of the batch to begin with.
        process, processes: which one of how many this is. The others must be given the same of all else.
        shuffle: `False` draws in the order given.

    Attributes:
        steps_per_epoch: the steps in which at least as many pictures are drawn as there are.

    Raises:
        ValueError: no pictures, or a number out of range.
    """

    def __init__(
        self, groups: int | Sequence[Sequence[int]], batch_size: int, seed: int, *, first: int = 0, process: int = 0,
        processes: int = 1, shuffle: bool = True,
    ) -> None:
        least = {"batch_size": 1, "seed": 0, "first": 0, "processes": 1}
        for name, number in zip(least, (batch_size, seed, first, processes), strict=True):
            if number < least[name]:
                raise ValueError(f"{name} is {number}, but must be at least {least[name]}")
        if not 0 <= process < processes:
            raise ValueError(f"process is {process}, but must be from 0 to {processes - 1}: there are {processes} (processes)")
        lists: Sequence[Any] = [range(groups)] if isinstance(groups, int) else groups
        self._groups = [np.asarray(group, dtype=np.int64) for group in lists]
        self._lengths = [len(group) for group in self._groups]
        if not sum(self._lengths):
            raise ValueError(f"there are no pictures to draw from: groups is {groups!r:.80}")
        self.batch_size, self.seed, self.first, self.process, self.processes = batch_size, seed, first, process, processes
        self.shuffle = shuffle
        self._taken = batch_size * processes  # draws a step, of all processes
        self.steps_per_epoch = -(-sum(self._lengths) // self._taken)
        # Groups cross to their next step at phases spread evenly, so that no epoch has many more steps than another.
        self._phases: list[int] = self._permutation(len(lists), _ORDER, 0, 0).tolist()
        self._kept: dict[int, tuple[int, NDArray[np.int64]]] = {}  # of each group, the last pass: its number and order

    def __iter__(self) -> Iterator[list[Draw]]:
        number = self.first
        epoch = bisect.bisect_right(range(self._enough_epochs(number)), number, key=self._steps_before) - 1
        place = number - self._steps_before(epoch)
        while True:
            begin, turns = self._begun(epoch), self._turns(epoch)
            blocks = np.add(begin, np.bincount(turns[:place], minlength=len(begin)))
            for group in turns[place:].tolist():
                yield self._batch(number, group, int(blocks[group]))
                blocks[group] += 1
                number += 1
            epoch, place = epoch + 1, 0

    def steps_for(self, epochs: int) -> int:
        """The number of the first steps, in which every picture comes at least `epochs` times, and one at its least often so.

        Groups take turns, so it may be a few more than `epochs` times as many pictures as there are.
        """
        last = [self._step_of(group, -(-epochs * length // self._taken) - 1)
                for group, length in enumerate(self._lengths) if length]
        return max(last) + 1

    def _step_of(self, group: int, block: int) -> int:
        """The number of the step that takes the `block`-th block of a group's stream."""
        enough = (block + 2) * self._taken // self._lengths[group] + 2
        epoch = bisect.bisect_right(range(enough), block, key=lambda epoch: self._begun(epoch)[group]) - 1
        places = np.flatnonzero(self._turns(epoch) == group)
        return self._steps_before(epoch) + int(places[block - self._begun(epoch)[group]])

    def _turns(self, epoch: int) -> NDArray[np.int64]:
        """The groups that the steps of an epoch are of."""
        begin, end = self._begun(epoch), self._begun(epoch + 1)
        turns = np.repeat(np.arange(len(begin)), np.subtract(end, begin))
        return turns[self._permutation(len(turns), _ORDER, epoch, 1)]

    def _begun(self, epoch: int) -> list[int]:
        """How many steps each group has had before `epoch`: its share, rounded down after its phase is added."""
        parts = 2 * len(self._lengths)
        return [(epoch * length * parts + (2 * phase + 1) * self._taken) // (self._taken * parts)
                for length, phase in zip(self._lengths, self._phases, strict=True)]

    def _steps_before(self, epoch: int) -> int:
        return sum(self._begun(epoch))

    def _enough_epochs(self, number: int) -> int:
        """So many epochs that batch `number` is among them: a group is at most one step behind its share."""
        return (number + 1 + len(self._lengths)) * self._taken // sum(self._lengths) + 2

    def _batch(self, number: int, group: int, block: int) -> list[Draw]:
        """Batch `number`, this process's part of the `block`-th block of a group's stream."""
        members, offset = self._groups[group], self.process * self.batch_size
        start = block * self._taken + offset
        places = range(start, start + self.batch_size)
        passes = {turn: self._shuffled(group, turn) for turn in sorted({place // len(members) for place in places})}
        ticket = number * self._taken + offset
        return [Draw(int(passes[place // len(members)][place % len(members)]), ticket + i) for i, place in enumerate(places)]

    def _shuffled(self, group: int, turn: int) -> NDArray[np.int64]:
        """The members of a group in the order of its pass number `turn`."""
        kept, shuffled = self._kept.get(group, (-1, self._groups[group]))
        if kept != turn:
            shuffled = self._groups[group][self._permutation(len(shuffled), _SHUFFLE, group, turn)]
            self._kept[group] = turn, shuffled
        return shuffled

    def _permutation(self, count: int, *place: int) -> NDArray[np.int64]:
        """A random order of `count`; or, without `shuffle`, the one they have."""
        if not self.shuffle:
            return np.arange(count)
        return torch.randperm(count, generator=generator_for(self.seed, *place)).numpy()
