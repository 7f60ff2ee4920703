"""What all calls of text-guided pipelines take, besides the arguments of their task."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar, overload

import torch
from torch import Tensor

from ..images import OUTPUT_TYPES
from ..models.merging import at_scale
from ..prompts.encode import Prompt
from ..randomness import Generators
from ..words import check_choice, check_keywords, listing
from .call_arguments import check_arguments
from .quality import QUALITIES

OnStepEnd = Callable[[Any, int, Tensor, dict[str, Tensor]], Mapping[str, Any] | None]
_Call = TypeVar("_Call", bound=Callable[..., Any])


@dataclass(frozen=True)
class Request:
    """Arguments that mean the same in every task, all by keyword.

    Args:
        negative_prompt: what should not be seen: one text, or one for each prompt; or `negative_prompt_embeds`.
        num_images_per_prompt: pictures for each prompt.
        eta: fresh noise in solvers that take it (`DDIMScheduler`), 0 to 1.
        generator: one, or one for each picture (each is then what it would be alone).
        prompt_embeds, negative_prompt_embeds: [B, L, C] hidden states in place of texts.
        output_type: `"pil"`, `"np"` ([B, H, W, C] in [0, 1]), `"pt"` ([B, C, H, W] in [0, 1]) or `"latent"`.
        return_dict: return an object with fields, not a tuple.
        cross_attention_kwargs: `{"scale": s}` lets all LoRA adapters count s times, beside what `set_adapters` said. The weights
            are merged anew for this call, and calls at another scale wait; not for streams.
        guidance_rescale: against overexposure at high scales; see `guidance.guide`.
        clip_skip: leave out that many last layers of the text encoder, for the prompt; the negative prompt has all.
        prompt_syntax: read weights in prompts by the rules of `"a1111"` or `"compel"`; see `docs/prompts.md`.
        long_prompts: read prompts longer than the text encoder's positions in chunks, instead of cutting them.
        quality: `"exact"`, or approximations that are quicker, `"high"` and `"draft"`; see `docs/quality.md`.
        callback_on_step_end: called as `callback(pipeline, call, timestep, tensors)` after every model call, with the tensors
            named in `callback_on_step_end_tensor_inputs`; it may return some of them changed.
    """

    negative_prompt: Prompt = None
    num_images_per_prompt: int = 1
    eta: float = 0.0
    generator: Generators = None
    prompt_embeds: Tensor | None = None
    negative_prompt_embeds: Tensor | None = None
    output_type: str = "pil"
    return_dict: bool = True
    cross_attention_kwargs: Mapping[str, Any] | None = None
    guidance_rescale: float = 0.0
    clip_skip: int | None = None
    prompt_syntax: str | None = None
    long_prompts: bool = False
    quality: str = "exact"
    callback_on_step_end: OnStepEnd | None = None
    callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",)

    @property
    def lora_scale(self) -> float:
        """How much adapters count in this call, beside what was set."""
        given = dict(self.cross_attention_kwargs or {})
        scale = given.pop("scale", None)
        if given:
            raise ValueError(f"cross_attention_kwargs takes 'scale', of LoRA adapters, and got {listing(given)}")
        if scale is not None and (isinstance(scale, bool) or not isinstance(scale, (int, float))):
            raise ValueError(f"the scale in cross_attention_kwargs is {scale!r}, but must be a number")
        return 1.0 if scale is None else float(scale)

    def check(self, prompt: Prompt, callback_tensors: Sequence[str]) -> None:
        """Refuse what cannot be, before any work is done."""
        check_choice("output_type", self.output_type, OUTPUT_TYPES)
        check_choice("quality", self.quality, QUALITIES)
        for name in self.callback_on_step_end_tensor_inputs:
            check_choice("a callback tensor", name, callback_tensors)
        embeds, unwanted = self.prompt_embeds, self.negative_prompt_embeds
        for what, text, given in (("prompt", prompt, embeds), ("negative_prompt", self.negative_prompt, unwanted)):
            if text is not None and given is not None:
                raise ValueError(f"give {what} or {what}_embeds, not both")
            several = isinstance(text, (list, tuple)) and all(isinstance(one, str) for one in text)
            if text is not None and not isinstance(text, str) and not several:
                raise TypeError(f"{what} is text or a list of texts, and this is {text!r:.80}")
            if several and not text:
                raise ValueError(f"{what} is an empty list")
        if prompt is None and embeds is None:
            raise ValueError("give a prompt, or prompt_embeds")
        if embeds is not None and unwanted is not None and embeds.shape != unwanted.shape:
            raise ValueError(f"prompt_embeds are {list(embeds.shape)} and negative_prompt_embeds "
                             f"{list(unwanted.shape)}: they must have one shape")


@overload
def takes_request(call: _Call) -> _Call: ...
@overload
def takes_request(*, without: Sequence[str]) -> Callable[[_Call], _Call]: ...
def takes_request(call: Any = None, *, without: Sequence[str] = ()) -> Any:
    """Decorate a `__call__` whose parameter `request` holds the fields of `Request`, which callers give by keyword.

    Without gradients. Unknown keywords are a `TypeError` that names the nearest; so are those fields that a task goes
    `without`, since they mean nothing there.
    """
    if call is None:
        return functools.partial(takes_request, without=without)
    own = [p for p in inspect.signature(call).parameters.values() if p.name != "request"]
    common = [inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type)
              for f in fields(Request) if f.name not in {*without, *(p.name for p in own)}]
    names = {p.name for p in common}
    signature, parameters = inspect.Signature(own), {p.name: p for p in [*own, *common]}

    @functools.wraps(call)
    @torch.no_grad()
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        beside = {name: kwargs.pop(name) for name in [*kwargs] if name in names}
        check_keywords(type(self).__name__, kwargs, [p.name for p in own[1:] + common])
        bound = signature.bind(self, *args, **kwargs)
        bound.arguments.update(check_arguments(parameters, bound.arguments))
        request = Request(**check_arguments(parameters, beside))
        scale = request.lora_scale
        if self._streaming and scale != 1:
            raise ValueError("a stream cannot have a LoRA scale of its own: use set_adapters(names, adapter_weights) before it")
        with at_scale(self.components.values(), scale):
            return call(*bound.args, request=request, **bound.kwargs)

    wrapper.__signature__ = inspect.Signature([*own, *common])  # type: ignore[attr-defined]
    return wrapper
