"""What the deep layers of a UNet give changes little from step to step: it is remembered, and used again.

DeepCache (Ma, Fang & Wang 2024, section 3), at the outermost skip connection: in a shallow call only the first convolution
and the last layer of the way up run (and the last convolution), and between them stands what came there in the last full call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .blocks import Run, UpBlock, _join
from .conditioning import Context, Kept, Moment


class DeepFeatures:
    """What one generation remembers: `value` [B, C, H, W], or `None` before its first full call."""

    def __init__(self, value: Tensor | None = None, fixed: bool = False):
        self.value, self._fixed = value, fixed

    def remember(self, x: Tensor) -> None:
        """Keep `x`; where the memory is fixed, a copy in that."""
        if self._fixed and self.value is not None:
            self.value.copy_(x)
        else:
            self.value = x


@dataclass(frozen=True)
class DeepMoment(Moment):
    """A timestep in a generation that uses deep features again.

    Attributes:
        deep: what the generation remembers; a full call does it anew.
        shallow: use that, and run the outermost layers only.
    """

    deep: DeepFeatures
    shallow: bool

    @property
    def key(self) -> Any:
        """What a recording depends on."""
        return super().key, self.shallow, None if self.deep.value is None else self.deep.value.shape

    @property
    def ready(self) -> bool:
        """Whether layers have asked, and how large the features are is known."""
        return super().ready and self.deep.value is not None

    def fixed(self) -> DeepMoment:
        """A copy in memory of its own."""
        value = self.deep.value
        deep = DeepFeatures(None if value is None else value.clone(), fixed=True)
        return DeepMoment(super().fixed().times, 0, deep, self.shallow)

    def update(self, other: Moment) -> None:
        """Take over what `other` says, in the memory that this has."""
        super().update(other)
        if self.shallow and isinstance(other, DeepMoment) and other.deep.value is not None:
            self.deep.remember(other.deep.value)

    def receive(self, other: Moment) -> None:
        """Remember what a full call has left in `other`, whose memory the next call uses again."""
        if not self.shallow and isinstance(other, DeepMoment) and other.deep.value is not None:
            self.deep.remember(other.deep.value.clone())


def check_reusable(unet: Any) -> None:
    """Raise a `ValueError` for a UNet whose levels pass on something else than a sample a layer (`k_blocks.py`)."""
    if not isinstance(unet.up_blocks[-1], UpBlock):
        raise ValueError(f"deep features cannot be used again in a UNet of {unet.config.up_block_types[-1]}")


def deep_features(time: Any, context: Context) -> Tensor | None:
    """What a shallow call begins its way up with, at its last layer; `None` for a full call.

    The full call may have been for more texts: what it gave for the last ones is taken.
    """
    if not isinstance(time, DeepMoment) or not time.shallow:
        return None
    if time.deep.value is None:
        raise ValueError("a shallow call before a full one: there are no deep features yet")
    states = context.states.value if isinstance(context.states, Kept) else context.states
    return time.deep.value if states is None else time.deep.value[-len(states):]


def outermost_up(level: Any, x: Tensor, passed: list[Tensor], time: Any, context: Context, run: Run) -> Tensor:
    """The last level of the way up; of a shallow call, its last layer. What comes to that is remembered in a full one."""
    if not isinstance(time, DeepMoment):
        return level(x, passed, time, context, run)
    last = len(level.resnets) - 1
    for i in range(last if time.shallow else 0, last + 1):
        if i == last and not time.shallow:
            time.deep.remember(x)
        x = run(level.layer, i, _join(x, passed), time, context)
    return x
