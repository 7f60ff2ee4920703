"""The scheduler that people know, as a thin shell over tables.

A solver's class says which levels it visits (`levels`) and which row it makes of each (`row`, or `rows` of all at once).
`table` is pure, and is what the library's own loop uses; `set_timesteps` and `step`, for loops of one's own, keep a table and a
place in it on the object.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..arguments import numbers, whole_number
from ..outputs import Output
from ..randomness import Generators
from ..words import check_choice, check_keywords
from .entries import SchedulerMixin
from .noise import Array, Levels
from .prediction import PREDICTION_TYPES, Prediction, make_clip, read_prediction
from .table import Memory, Row, State, Table

_Self = TypeVar("_Self", bound="Scheduler")


@dataclass
class SchedulerOutput(Output):
    """What a step returns: the next sample, and the clean sample as this step sees it, for previews; both [B, …]."""

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


def checked_steps(steps: Any, most: int | None = None) -> int:
    """`num_inference_steps`, if it is a whole number from 1 to `most`."""
    return whole_number("num_inference_steps", steps, 1, most, limit="the number of training timesteps" if most else "")


class Scheduler(SchedulerMixin):
    """Base of all schedulers that are tables."""

    timesteps: Tensor  # [n] what the model is told, call by call
    _current: Levels
    _places: Mapping[tuple[str, int], int]  # where the state's tensors are

    # -- what a solver says ---------------------------------------------------------------------------------------------

    memory: Memory = "x0"  # what rows mix of a model output: the clean sample, the noise, or the output as it is
    timestep_dtype: Any = np.int64
    steps_at_once: ClassVar[bool] = False  # `step` works before `set_timesteps`, at every training timestep
    placed_by: ClassVar[tuple[str, ...]] = ()  # what a caller may place the levels by, besides their number: timesteps, sigmas
    sigmas_name_the_end: ClassVar[bool] = True  # a caller's last is where the trajectory ends, and not where the model is asked
    input_is_ve: ClassVar[bool] = False  # samples are variance-exploding, and the model wants them scaled to unit variance
    exposes_sigmas: ClassVar[bool] = False  # `sigmas` are the VE levels, though samples are not VE; none is without signal
    tells_x0: ClassVar[bool] = True  # without `return_dict`, a step returns the clean sample too
    prediction_types: ClassVar[tuple[str, ...]] = PREDICTION_TYPES  # what a model may predict
    bounded: ClassVar[bool] = False  # there are no more steps than levels at which the model was trained

    def levels(self, steps: int, timesteps: Array | None = None, sigmas: Array | None = None) -> Levels:
        """The levels of a trajectory of `steps` steps, or through the given timesteps or VE levels."""
        raise NotImplementedError

    def row(self, levels: Levels, i: int, **options: Any) -> Row:
        """What the model call at level `i` leads to; `options` are the arguments of `step` that change weights (`eta`, …)."""
        raise NotImplementedError

    def rows(self, levels: Levels, **options: Any) -> list[Row]:
        """One row a model call."""
        return [self.row(levels, i, **options) for i in range(len(levels))]

    def prediction(self, levels: Levels) -> Prediction:
        """How the model's output is read at each level."""
        return read_prediction(self._kind, levels)

    def _reading(self, levels: Levels) -> Prediction:
        """What rows take for the clean sample and the noise: `prediction`, unless the solver mixes something made of them."""
        return self.prediction(levels)

    @property
    def highest_timestep(self) -> float:
        """The timestep of pure noise."""
        return len(self) - 1.0

    def input_scale(self, levels: Levels) -> list[float]:
        """[n] what the sample is multiplied by before the model sees it, row by row."""
        deviation = np.hypot(levels.alpha * self._spread, levels.sigma)[:-1]
        return (1 / deviation).tolist() if self.input_is_ve else [1.0] * len(levels)

    def timesteps_of(self, levels: Levels, device: torch.device | str | None = None) -> Tensor:
        """[n] the model's timesteps as a tensor: whole numbers where the solver's are."""
        return torch.from_numpy(levels.timesteps.astype(self.timestep_dtype)).to(device)

    def sigmas_of(self, levels: Levels) -> Array:
        """The VE levels as the attribute `sigmas` lists them."""
        return levels.sigma / levels.alpha

    def initial_noise_scale(self, levels: Levels) -> float:
        """The standard deviation of the noise in which a trajectory at its top level begins."""
        return 1.0

    def _prepare(self) -> None:
        """Set up; the end of every `__init__`."""
        self._own = self.config  # without the entries of other classes, which come later
        self._kind = self.config.get("prediction_type", self.prediction_types[0])
        check_choice("prediction_type", self._kind, self.prediction_types)
        self._clip, self._spread = make_clip(self.config), self.config.get("sigma_data", 1.0)
        self.num_inference_steps: int | None = None
        self.begin_index: int | None = None
        self._tables: dict[tuple[Any, ...], Table] = {}  # of the current levels: the last few
        self._current = self._training()
        self._place(self._current, None)

    def _training(self) -> Levels:
        """The trajectory before `set_timesteps`."""
        return self.levels(len(self))

    # -- tables -----------------------------------------------------------------------------------------------------------

    def table(self, num_inference_steps: int | None = None, *, timesteps: Any = None, sigmas: Any = None, begin: int = 0,
              **options: Any) -> Table:
        """The table of one generation. Pure: nothing on the scheduler changes.

        Args:
            num_inference_steps: how many steps, unless `timesteps` or `sigmas` say where they are.
            begin: the row at which the trajectory is entered (image-to-image).
            **options: the solver's own (`eta`, `s_churn`, …, and what its `levels` takes: `mu` of flow models).
        """
        where = {name: options.pop(name) for name in [*inspect.signature(self.levels).parameters][3:] if name in options}
        check_keywords(f"{type(self).__name__}.table", options, self.step_options())
        levels = self._levels(num_inference_steps, timesteps, sigmas, **where)
        if not 0 <= begin < len(levels):
            raise ValueError(f"begin is {begin}, but must be a row from 0 to {len(levels) - 1}")
        table = self._defined(self._tabulate(levels.starting_at(begin), options))
        asked = next(len(given) for given in (timesteps, sigmas, range(num_inference_steps or 0)) if given is not None)
        if len(levels) > asked:
            table.count_steps()
        return table

    def _defined(self, table: Table) -> Table:
        """The table, unless one of its steps divides by zero, which is better said now than after the last one."""
        row = table.undefined_row()
        if row is None:
            return table
        alpha, at = float(table.levels.alpha[row]), float(table.timesteps[row])
        if alpha == 0:
            raise ValueError(
                f"at timestep {at:g} a sample is pure noise, of which a prediction_type of {self._kind!r} says nothing about the "
                "image: with rescale_betas_zero_snr, the model must have been trained with prediction_type='v_prediction'; for "
                f"any other, use {type(self).__name__}.from_config(config, rescale_betas_zero_snr=False)")
        raise ValueError(
            f"{type(self).__name__} divides by zero at timestep {at:g}, where the sample is {alpha:g} · image + "
            f"{float(table.levels.sigma[row]):g} · noise and prediction_type is {self._kind!r}: this config suits no model")

    def _tabulate(self, levels: Levels, options: dict[str, Any]) -> Table:
        return Table(levels, self.rows(levels, **options), self._reading(levels), self.memory, self._clip,
                     self.timesteps_of(levels), self.input_scale(levels), self.initial_noise_scale(levels))

    @classmethod
    def step_options(cls) -> set[str]:
        """The options of `table` and `step` that change this solver's weights."""
        named = {name for method in (cls.rows, cls.row) for name in inspect.signature(method).parameters}
        return named - {"self", "levels", "i", "options"}

    def _levels(self, steps: int | None, timesteps: Any, sigmas: Any, **where: Any) -> Levels:
        given = [name for name, value in (("timesteps", timesteps), ("sigmas", sigmas)) if value is not None]
        if len(given) > 1:
            raise ValueError("give timesteps or sigmas, not both")
        for name in given:
            if name not in self.placed_by:
                raise ValueError(f"{type(self).__name__} takes no {name} of one's own")
            values = numbers(name, timesteps if timesteps is not None else sigmas)
            least = 2 if name == "sigmas" and self.sigmas_name_the_end else 1
            if len(values) < least or not (np.diff(values) < 0).all() or values[-1] < 0:
                raise ValueError(f"{name} must be a list of falling numbers, not negative, and are {values.tolist()}")
            if name == "timesteps" and not values[0] <= self.highest_timestep:
                raise ValueError(f"timesteps must lie in [0, {self.highest_timestep:g}], and are {values.tolist()}")
            return self.levels(len(values), **{name: values}, **where)
        return self.levels(checked_steps(steps, len(self) if self.bounded else None), **where)

    # -- loops of one's own -----------------------------------------------------------------------------------------------

    def _place(self, levels: Levels, device: torch.device | str | None) -> None:
        if not levels.equals(self._current):
            self._tables = {}  # another dictionary, since a shallow copy of this scheduler may hold the same
        self._current, self._times, self._scales = levels, levels.timesteps.tolist(), self.input_scale(levels)
        self.timesteps = self.timesteps_of(levels, device)
        self.init_noise_sigma = self.initial_noise_scale(levels)
        if self.input_is_ve or self.exposes_sigmas:
            self.sigmas = torch.from_numpy(self.sigmas_of(levels)).float()
        self._row: int | None = None
        self._first = 0  # the row at which the trajectory was entered
        self._state: State | None = None

    def __copy__(self: _Self) -> _Self:
        """Another scheduler at the same place, which goes its own way from there."""
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__, _tables={}, _state=copy.copy(self._state))
        return made

    def _table_from(self, first: int, options: dict[str, Any]) -> Table:
        """The table of the current levels from row `first` on, with these options of `step`."""
        key = (first, *options.values())
        if key not in self._tables:
            self._tables = self._tables if len(self._tables) < 8 else {}
            self._tables[key] = self._defined(self._tabulate(self._current.starting_at(first), options))
        return self._tables[key]

    def set_timesteps(self, num_inference_steps: int | None = None, device: torch.device | str | None = None,
                      timesteps: Any = None, sigmas: Any = None, **where: Any) -> None:
        """Choose the levels by their number, or, for schedulers that can, by a list of them; and start again at the first.

        Args:
            timesteps: what the model is to be told, falling.
            sigmas: the VE levels (of flow models: the shares of noise) to visit, falling.
            **where: what else a solver's `levels` takes (`mu` of flow models).
        """
        if num_inference_steps is not None and not (timesteps is None and sigmas is None):
            raise ValueError("give num_inference_steps, or timesteps or sigmas, not both")
        where = {name: value for name, value in where.items() if value is not None}
        if where:  # to look at signatures takes time
            check_keywords(f"{type(self).__name__}.set_timesteps", where, inspect.signature(self.levels).parameters)
        levels = self._levels(num_inference_steps, timesteps, sigmas, **where)
        self.num_inference_steps = num_inference_steps or -(-len(levels) // self.order)
        self.begin_index = None
        self._place(levels, device)

    def step(self, model_output: Tensor, timestep: float | Tensor, sample: Tensor, generator: Generators = None,
             return_dict: bool = True, variance_noise: Tensor | None = None) -> Any:
        """The next sample [B, …], for the next model call: `SchedulerOutput`, or a tuple without `return_dict`.

        Args:
            model_output: [B, …] what the model said of `sample`; [B, 2C, …] where it learned variances too.
            timestep: one of `timesteps`: that at which the model was asked.
            generator: draws the fresh noise, if any: one, or one for each sample (each is then what it would be alone).
            variance_noise: [B, …] the fresh noise instead.
        """
        return self._step(model_output, timestep, sample, generator, return_dict, variance_noise)

    @property
    def step_index(self) -> int | None:
        """The row that the last `step` used; `None` before the first."""
        return self._row

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Say which row the trajectory is entered at (`begin_index`), instead of finding it by the first timestep."""
        self.begin_index = begin_index

    def index_for_timestep(self, timestep: float | Tensor) -> int:
        """The first row whose timestep is `timestep`; of several, one that opens a step. A `ValueError` if there is none."""
        found = self._rows_at(float(timestep))
        if not len(found):
            listed = ", ".join(f"{t:g}" for t in self._times[:8])
            raise ValueError(f"timestep {float(timestep):g} is not one of the scheduler's: {listed}, …")
        return int(min(found, key=lambda row: row % self.order > 0))

    def _rows_at(self, timestep: float) -> NDArray[np.intp]:
        """The rows whose timestep is nearest to `timestep`, if that is near."""
        away = np.abs(self._current.timesteps - timestep)
        return np.flatnonzero(away <= min(away.min(), 1e-3))

    def _enter(self, timestep: float | Tensor) -> int:
        """The row for a call at `timestep`: the next one, if it is that timestep's, else the first that is.

        A timestep on an accelerator is trusted to be the next one, since reading it would wait for the device.
        """
        following = self.begin_index or 0 if self._row is None else self._row + 1
        known = not isinstance(timestep, Tensor) or timestep.is_cpu
        if following < len(self._times) and (self._times[following] == float(timestep) if known else self._row is not None):
            return following
        return following if following in self._rows_at(float(timestep)) else self.index_for_timestep(timestep)

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """The sample as the model wants it, at `timestep`. To be called before every model call."""
        if not self.input_is_ve:
            return sample
        if timestep is None:
            raise ValueError(f"{type(self).__name__}.scale_model_input needs the timestep")
        return sample * self._scales[self._enter(timestep)]

    def _step(self, output: Tensor, timestep: float | Tensor, sample: Tensor, generator: Generators, return_dict: bool,
              noise: Tensor | None = None, **options: Any) -> Any:
        if isinstance(generator, bool) or isinstance(return_dict, Tensor):
            raise TypeError("generator and return_dict are mixed up with other arguments: give return_dict by its name")
        if self.num_inference_steps is None and not self.steps_at_once:
            raise ValueError(f"call {type(self).__name__}.set_timesteps(num_inference_steps) before its step")
        row = self._enter(timestep)
        if self._row is None or row != self._row + 1:
            self._first, self._state = row, None
        table = self._table_from(self._first, options)
        if self._state is not None and table.places != self._places:  # options that remember something else: begin anew with them
            self._first, self._state = row, None
            table = self._table_from(row, options)
        i, self._places = row - self._first, table.places
        self._state = table.new_state() if self._state is None else self._state
        noise = table.draw(i, sample, generator, output.dtype, self._state) if noise is None else noise
        following, x0 = table.advance(i, output, sample, self._state, noise, tells_x0=return_dict or self.tells_x0)
        self._row = row
        x0 = x0 if x0 is None or x0.dtype is sample.dtype else x0.to(sample.dtype)
        return SchedulerOutput(following, x0) if return_dict else (following, x0) if self.tells_x0 else (following,)

    # -- training and image-to-image ----------------------------------------------------------------------------------------

    def _levels_at(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """`alpha` and `sigma` at `timesteps`, shaped to multiply `like` [B, …]: a row's, or else those of training."""
        at = timesteps.detach().to(like.device, torch.float64).reshape(-1)
        current = np.stack([self._current.timesteps, self._current.alpha[:-1], self._current.sigma[:-1]])
        known, *rows = torch.from_numpy(current).to(like.device)
        away, row = (at[:, None] - known).abs().min(dim=1)
        alpha, sigma = (torch.where(away < 1e-3, own[row], trained).reshape(-1, *[1] * (like.ndim - 1))
                        for own, trained in zip(rows, self._trained_levels(at), strict=True))
        return alpha, sigma

    def _trained_levels(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """`alpha` and `sigma` [B] at any timesteps of training; here there are none but those of the rows."""
        rows = [self.index_for_timestep(timestep) for timestep in timesteps.tolist()]
        alpha, sigma = (torch.from_numpy(level[rows]).to(timesteps) for level in (self._current.alpha, self._current.sigma))
        return alpha, sigma

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Take clean samples to the level of `timesteps` ([B] or one): `alpha · x0 + sigma · noise`."""
        alpha, sigma = self._levels_at(timesteps, original_samples)
        return alpha.to(original_samples) * original_samples + sigma.to(noise) * noise

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)

    @property
    def compatibles(self) -> list[type[Scheduler]]:
        from . import ALL

        return [*ALL]
