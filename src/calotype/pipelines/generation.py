"""A generation under way: one call of a pipeline, step by step.

A pipeline's call says what is asked for, how the first latents come about and what the model is told beside them; here the
loop is run, callbacks are called, progress is shown, and whoever streams gets each step. Nothing of it is kept on the
pipeline, so that threads can share one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..images.previews import latent_preview, rgb_factors
from ..runtime.scope import Scope, fast_path
from ..schedulers.table import Table
from .decoding import check_finite
from .loop import AfterStep, Predict, denoise


class Stop:
    """The wish that generations end after the step that they are in.

    Attributes:
        wanted: whether it was said since the last generation began.
        count: how often it was said. A generation ends when that is no longer what it was at its beginning, so that others,
            which begin later, are not concerned.
    """

    def __init__(self) -> None:
        self.wanted, self.count = False, 0

    def want(self, wanted: bool) -> None:
        """Say so, or take it back for what has not begun yet."""
        self.wanted, self.count = wanted, self.count + wanted


@dataclass
class Step:
    """What `stream` yields after every model call.

    Attributes:
        call, calls: which model call this was, from 0, and how many there will be.
        step, steps: the same for the solver's steps, of which some take several calls.
        timestep: at which the model was asked.
        latents: [B, C, H, W] the sample now.
    """

    call: int
    calls: int
    step: int
    steps: int
    timestep: Tensor
    latents: Tensor
    _develop: Callable[[Tensor], Any] = field(repr=False)
    _preview: Callable[[Tensor], list[Any]] = field(repr=False)

    @cached_property
    def output(self) -> Any:
        """What the call would return if it ended here; after the last step, what it returns."""
        return self._develop(self.latents)

    def preview(self) -> list[Any]:
        """Small pictures of the latents, PIL images of a pixel a latent; the autoencoder is not asked.

        They are noisy at first, as the latents are.
        """
        return self._preview(self.latents)


class Generation:
    """One call of `pipeline`.

    Attributes:
        pipeline: the copy of the pipeline that callbacks see and may change: `guidance_scale`, `interrupt`, `num_timesteps`.
        prepared: the layers whose prepared weights this generation has compared, for `runtime.scope`.
    """

    def __init__(self, pipeline: Any):
        self._outside: Stop = pipeline._stop  # one object for the pipeline and its copies
        self._outside.wanted = False  # what was said of earlier calls
        self._count = self._outside.count
        self.pipeline = copy.copy(pipeline)
        self.pipeline._stop = Stop()
        self.prepared: Scope = set()

    def fast(self) -> Any:
        """A block in which models run by the fast path, where the pipeline allows it."""
        return fast_path(self.pipeline.fast, self.prepared)

    @property
    def others_look_on(self) -> bool:
        """Whether code that is not the library's runs between the steps, and may change anything."""
        return bool(self.pipeline._streaming)

    def _recheck(self) -> None:
        if self.others_look_on:
            self.prepared.clear()

    def run(
        self, table: Table, sample: Tensor, predict: Predict, develop: Callable[[Tensor], Any], generator: Any = None,
        after_step: AfterStep | None = None, autoencoder: Any = None,
        preview: Callable[[Tensor], list[Any]] | None = None,
    ) -> Any:
        """Denoise `sample` and return what `develop` makes of the result; or, under `stream`, the iterator of steps.

        Args:
            predict, after_step: see `loop`. generator: of the fresh noise.
            autoencoder: of the latents, for previews; or `preview`: makes PIL images of a sample.
        """
        self.pipeline.num_timesteps = len(table)

        def asked(row: int, scaled: Tensor) -> Tensor:
            self._recheck()
            with self.fast():
                return predict(row, scaled)

        def developed(latents: Tensor) -> Any:
            self._recheck()
            with torch.no_grad(), self.fast():
                check_finite(latents, "samples" if autoencoder is None else "latents")
                return develop(latents)

        def fitted(latents: Tensor) -> list[Any]:
            return latent_preview(latents, rgb_factors(autoencoder))

        @torch.no_grad()
        def steps() -> Iterator[Step]:
            done, total = 0, sum(table.ends_step)
            with self.pipeline.progress_bar(total=total) as bar:
                for row, latents in denoise(table, sample, asked, generator, after_step):
                    if table.ends_step[row]:
                        bar.update()
                    yield Step(row, len(table), done, total, table.timesteps[row], latents, developed, preview or fitted)
                    done += table.ends_step[row]
                    if self.pipeline._stop.wanted or self._outside.count != self._count:
                        return

        if self.pipeline._streaming:
            return steps()
        for step in steps():  # noqa: B007
            pass
        return step.output
