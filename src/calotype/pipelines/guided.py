"""A generation under a text: what the model is told beside the sample, and how its predictions are guided."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..arguments import least_strength, shown
from ..models.conditioning import repeated
from ..models.deep_features import DeepFeatures, DeepMoment, check_reusable
from ..models.embeddings import sinusoidal
from ..models.merging import at_scale, changes
from ..prompts.encode import Prompt
from ..randomness import check_generators, randn, starting_noise
from ..runtime.recording import call, checked
from ..schedulers.table import Table
from ..words import check_choice
from .generation import Generation
from .guidance import guide
from .quality import shallow_calls
from .request import Request

Guide = Callable[[Tensor], Tensor]
"""[copies · B, …] predictions to [B, …] one."""


class GuidedGeneration(Generation):
    """One call of a text-guided pipeline.

    Attributes:
        text: [copies · B, L, C] hidden states: one copy, or the unwanted ones and then the wanted ones.
        unwanted: [B, L, C] the former, or `None`.
        size: B, the pictures that are made.
        held: tensors that the model or the task looks at in every step; callbacks may change them.
    """

    text: Tensor
    unwanted: Tensor | None = None
    size: int

    def __init__(self, pipeline: Any, request: Request, guidance_scale: float):
        super().__init__(pipeline)
        self.request = request
        self.pipeline._guidance_scale = guidance_scale
        self.unet = pipeline.unet
        self.device, self.dtype = self.unet.device, self.unet.dtype
        self.held: dict[str, Tensor] = {}

    @property
    def others_look_on(self) -> bool:
        """Whether code that is not the library's runs between the steps, and may change anything."""
        return super().others_look_on or self.request.callback_on_step_end is not None

    def read(self, prompt: Prompt, pictures: int = 1) -> None:
        """Encode the prompts. One prompt serves any number of `pictures` that are to be changed."""
        request, pipeline = self.request, self.pipeline
        wanted, unwanted = pipeline.encode_prompt(
            prompt, self.device, 1, pipeline.do_classifier_free_guidance, request.negative_prompt, request.prompt_embeds,
            request.negative_prompt_embeds, clip_skip=request.clip_skip, prompt_syntax=request.prompt_syntax,
            long_prompts=request.long_prompts)
        self.condition(wanted, unwanted, pictures)

    def condition(self, wanted: Tensor, unwanted: Tensor | None, pictures: int = 1) -> None:
        """Take hidden states [n, L, C] of what is wanted and, for guidance, of what is not: each for its pictures."""
        if pictures > 1 and len(wanted) not in (1, pictures):
            raise ValueError(f"{pictures} pictures for {len(wanted)} prompts: give one, or one for each")

        def ready(states: Tensor) -> Tensor:
            states = states.to(self.device, self.dtype).expand(max(pictures, len(states)), -1, -1)
            return states.repeat_interleave(self.request.num_images_per_prompt, dim=0)

        self.text, self.unwanted = ready(wanted), None if unwanted is None else ready(unwanted)
        self.size = len(self.text)
        check_generators(self.request.generator, self.size, self.device)
        if self.unwanted is not None:
            self.text = torch.cat([self.unwanted, self.text])

    def table(
        self, steps: int, timesteps: Sequence[float] | None = None, sigmas: Sequence[float] | None = None, strength: float = 1.0
    ) -> Table:
        """The table of the pipeline's scheduler; of a `strength` below 1, its last part."""
        scheduler, places = self.pipeline.scheduler, timesteps if timesteps is not None else sigmas
        options = {"eta": self.request.eta} if "eta" in scheduler.step_options() else {}
        begin = 0
        if strength < 1:
            count = steps if places is None else len(places)
            skipped = count - min(int(count * strength), count)
            if skipped >= count:
                raise ValueError(f"strength {strength:g} leaves none of {count} steps: at least {least_strength(count):g} leaves "
                                 "one")
            begin = skipped * scheduler.order
        table: Table = scheduler.table(
            steps if places is None else None, timesteps=timesteps, sigmas=sigmas, begin=begin, **options)
        return table

    def noise(self, channels: int, height: int, width: int, latents: Tensor | None = None) -> Tensor:
        """[B, C, H, W] standard normal noise of the generators; or the caller's `latents`, if they have that shape."""
        return starting_noise(
            (self.size, channels, height, width), self.request.generator, self.device, self.dtype, latents)

    def for_each(self, given: Tensor, make: Callable[[Tensor], Tensor]) -> Tensor:
        """[B, …] what `make`, which draws, makes of what is given for n pictures [n, …]: each for its share of B.

        One generator draws once for all pictures of a share; a list, for each of them from its own.
        """
        each = self.size // len(given)
        if isinstance(self.request.generator, (list, tuple)):
            return make(given.repeat_interleave(each, dim=0))
        return make(given).repeat_interleave(each, dim=0)

    def skip_noise(self, size: int, *shape: int) -> None:
        """Let the generators go on as if they had drawn noise for `size` samples of `shape`, or each for its own.

        Seeds then mean the pictures that people know, where these are made with a draw that has no use here.
        """
        generator = self.request.generator
        randn((self.size if isinstance(generator, (list, tuple)) else size, *shape), generator, self.device, self.dtype)

    def finish(
        self, table: Table, latents: Tensor, develop: Callable[[Tensor], Any], *, joined: Sequence[str] = (),
        put_back: Callable[[int, Tensor], Tensor] | None = None, class_labels: Tensor | None = None,
        combine: Guide | None = None, translate: Callable[[Tensor], Tensor] | None = None, timestep_cond: Tensor | None = None,
        times: Tensor | None = None,
    ) -> Any:
        """Run the loop, and return what `develop` makes of the last latents.

        Args:
            table, latents: where it begins.
            joined: names of `held` tensors that the model sees as further channels; [B, …], or [copies · B, …].
            put_back: row and sample to the sample with what is known put back.
            class_labels: [B, …] for models that are conditioned on them; or [copies · B, …].
            combine: how predictions are guided; by default as `guidance.guide` does.
            translate: the model's output to what the scheduler reads; before predictions are guided.
            timestep_cond: [B or copies · B, C] what the model is told with the time; by default the guidance scale, where it
                wants that.
            times: [n] what the model is told, row by row, instead of the table's timesteps.
        """
        pipeline, request, unet = self.pipeline, self.request, self.unet
        given = latents.shape[1] + sum(self.held[name].shape[1] for name in joined)
        if given != unet.config.in_channels:
            raise ValueError(f"this UNet was trained for another task: it reads {unet.config.in_channels} channels, and a "
                             f"{type(pipeline).__name__} gives it {given}")
        timesteps = table.timesteps.to(self.device)
        channels = unet.config.time_cond_proj_dim
        if channels is not None and timestep_cond is None:
            scale = _embed_scale(pipeline._guidance_scale, channels, self.dtype, self.device)
            self.held["w_embedding"] = scale.expand(self.size, -1)
        self._tensors(latents)  # that one is not there is said now, and not after the first step

        shallow = shallow_calls(table, request.quality)
        remembers = any(shallow)
        if remembers:
            check_reusable(unet)
        deep, added = DeepFeatures(), torch.empty(0)  # what full steps leave for shallow ones; `added` by guidance
        told: dict[bool, tuple[list[Any], Any]] = {}
        adapted = changes(unet)

        def tell(unet: Any, row: int, half: bool) -> tuple[Any, Any]:
            """The timestep of a row and the text, or the half of it that is wanted, as the model takes them.

            What layers make of the text and of all timesteps is kept for as long as nobody can change them in between.
            """
            if self.others_look_on or half not in told:
                text, beside = self.text[-self.size:] if half else self.text, self.held.get("w_embedding", timestep_cond)
                told[half] = unet.moments(
                    timesteps if times is None else times, class_labels=_for_copies(class_labels, text),
                    timestep_cond=_for_copies(beside, text)), unet.keep(text)
            moments, kept = told[half]
            return moments[row], kept

        def plainly(unet: Any, row: int, sample: Tensor) -> Tensor:
            """What the model says when it is just called: nothing shared, nothing kept."""
            size, text = len(self.text), self.text
            at = timesteps[row] if times is None else times[row]
            given = torch.cat([repeated(part, size) for part in (sample, *(self.held[name] for name in joined))], dim=1)
            return unet(given, at, text, class_labels=_for_copies(class_labels, text),
                        timestep_cond=_for_copies(self.held.get("w_embedding", timestep_cond), text), return_dict=False)[0]

        def output_of(unet: Any, row: int, sample: Tensor, reuse: bool, copies: int) -> Tensor:
            structure = checked(unet) if pipeline.fast else None
            if structure is None and not remembers:
                return plainly(unet, row, sample)
            if structure is None:
                told.clear()
            moment, kept = tell(unet, row, reuse and copies == 2)
            at = DeepMoment(moment.times, moment.row, deep, reuse) if remembers else moment
            parts = [sample, *(self.held[name] for name in joined)]
            size = max(at.size, *map(len, parts))  # B, if nothing but the text tells the copies apart
            whole = torch.cat([repeated(part, size) for part in parts], dim=1) if joined else repeated(sample, size)
            return call(unet, whole, at, kept, structure)

        def predict(row: int, sample: Tensor) -> Tensor:
            nonlocal added, adapted
            unet = pipeline.unet  # a callback may have put in another
            if changes(unet) != adapted:  # by a callback, or by who streams
                adapted, deep.value = changes(unet), None
                told.clear()
            reuse, copies = shallow[row] and deep.value is not None, len(self.text) // len(sample)
            with at_scale([unet] if pipeline._streaming else [], 1.0):
                output = output_of(unet, row, sample, reuse, copies)
            output = translate(output) if translate else output
            if copies == 1:
                return output
            if combine:
                return combine(output)
            if reuse:
                output = torch.cat([output - added, output])
            elif remembers:
                added = output[len(sample):] - output[:len(sample)]
            return guide(output, pipeline._guidance_scale, request.guidance_rescale)

        def after_step(row: int, sample: Tensor) -> Tensor:
            if put_back is not None:
                sample = put_back(row, sample)
            if request.callback_on_step_end is not None:
                before = pipeline.unet, self.text, self.held.get("w_embedding")
                sample = self._call_back(row, timesteps[row], sample)
                now = pipeline.unet, self.text, self.held.get("w_embedding")
                if any(one is not other for one, other in zip(now, before, strict=True)):
                    deep.value = None
            return sample

        return self.run(table, latents, predict, develop, request.generator, after_step, pipeline.vae)

    def _tensors(self, sample: Tensor) -> dict[str, Any]:
        """What the callback is given, by name."""
        everything = {**self.held, "latents": sample, "prompt_embeds": self.text, "negative_prompt_embeds": self.unwanted}
        for name in self.request.callback_on_step_end_tensor_inputs:
            check_choice("a callback tensor of this generation", name, everything)
        return {name: everything[name] for name in self.request.callback_on_step_end_tensor_inputs}

    def _call_back(self, row: int, timestep: Tensor, sample: Tensor) -> Tensor:
        callback = self.request.callback_on_step_end
        assert callback is not None
        changed: Any = callback(self.pipeline, row, timestep, self._tensors(sample))
        changed = {} if changed is None else changed
        if not isinstance(changed, Mapping):
            raise TypeError(f"callback_on_step_end returned {shown(changed)}, but must return a dictionary of tensors, or None")
        for name, tensor in changed.items():
            if tensor is not None and not isinstance(tensor, Tensor):
                raise TypeError(f"callback_on_step_end returned {shown(tensor)} as {name!r}, but must return tensors")
        if changed.get("latents", sample).shape != sample.shape:
            raise ValueError(f"callback_on_step_end returned latents of shape {list(changed['latents'].shape)}, but must return "
                             f"them as they were given, {list(sample.shape)}")
        self.text = changed.get("prompt_embeds", self.text)
        self.unwanted = changed.get("negative_prompt_embeds", self.unwanted)
        self.held.update({name: changed[name] for name in self.held.keys() & changed.keys()})
        return changed.get("latents", sample)


def _embed_scale(scale: float, channels: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[1, channels] a guidance scale for models that take it as an input (Meng et al. 2023; Luo et al. 2023)."""
    value = torch.tensor([(scale - 1) * 1000.0], device=device)
    return sinusoidal(value, channels, freq_shift=1).to(dtype)


def _for_copies(condition: Tensor | None, text: Tensor) -> Tensor | None:
    """[copies · B, …] of a condition of B pictures, as `text` has; of one of more copies than there are, the last, which are
    of what is wanted."""
    if condition is None or len(condition) >= len(text):
        return condition if condition is None else condition[-len(text):]
    return repeated(condition, len(text))
