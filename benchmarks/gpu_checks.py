"""The self-checks of `gpu.py` (is what is fast also right?), and its ablation (what is each fast part worth?)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from gpu_setting import Setting, picture, prediction
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import calotype
from calotype.models.conditioning import repeated
from calotype.pipelines import guided
from calotype.runtime import fused, recording
from calotype.runtime.scope import fast_path

ENOUGH_DB = 35.0  # peak signal to noise of a picture in half precision against one in single precision


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Decibels, of pictures in [0, 1]; 200 for equal ones."""
    error = float(np.mean((np.asarray(one, np.float64) - np.asarray(other, np.float64)) ** 2))
    return min(200.0, -10 * math.log10(error)) if error else 200.0


# -- kernels ---------------------------------------------------------------------------------------------------------------

NORMS = {  # [B, C, H, W] of group norms: the UNet's for one guided picture, and the decoder's
    "sd15": [(2, 320, 64, 64), (2, 960, 64, 64), (2, 640, 32, 32), (2, 1280, 16, 16), (2, 2560, 8, 8), (32, 320, 64, 64),
             (1, 512, 64, 64), (1, 512, 256, 256), (1, 256, 512, 512), (1, 128, 512, 512)],
    "tiny": [(2, 32, 8, 8), (1, 64, 16, 16)],
}
TOKENS = {"sd15": [(2, 4096, 320), (2, 1024, 640), (2, 256, 1280), (2, 64, 1280), (32, 4096, 320)], "tiny": [(2, 64, 32)]}
BOUNDS = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2, torch.float32: 1e-5}  # ‖out - reference‖ / ‖reference‖


def check_kernels(setting: Setting) -> dict[str, Any]:
    """Every fused kernel on the shapes that Stable Diffusion has, in every precision and layout: how far it is from the plain
    operators in float64, how fast, and how fast they are. Whether `fused.check` lets it be used."""
    torch.manual_seed(0)
    allowed = {str(dtype)[6:]: fused.check(setting.device, dtype) for dtype in BOUNDS}
    rows, kind = [], "tiny" if setting.size_name == "tiny" else "sd15"
    for dtype, bound in BOUNDS.items():
        for kernel, shape, fast, plain, reference in _cases(setting, kind, dtype):
            with torch.no_grad(), fast_path():
                wanted = reference()
                away = float((fast().double() - wanted).norm() / wanted.norm())
                seconds = setting.median(setting.captured(fast), setting.size.calls)
            with torch.no_grad():
                plainly = setting.median(setting.captured(plain), setting.size.calls)
            moved = {"gated": 3, "add_norm": 4}.get(kernel.split(",")[0], 2) * math.prod(shape) * dtype.itemsize
            rows.append({"kernel": kernel, "shape": shape, "dtype": str(dtype)[6:], "away": away, "passed": away < bound,
                         "microseconds": seconds * 1e6, "plain_microseconds": plainly * 1e6, "gb_per_s": moved / seconds / 1e9})
            torch.cuda.empty_cache()
    return {"allowed": allowed, "rows": rows,
            "passed": all(row["passed"] for row in rows) and (not setting.cuda or all(allowed.values()))}


Case = tuple[str, tuple[int, ...], Callable[[], Tensor], Callable[[], Tensor], Callable[[], Tensor]]


def _cases(setting: Setting, kind: str, dtype: torch.dtype) -> Iterator[Case]:
    """Kernel, shape of the output, and three functions: fused, plain, plain in float64."""
    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, device=setting.device).to(dtype)

    for shape in NORMS[kind]:
        norm = nn.GroupNorm(32, shape[1], 1e-5).to(setting.device, dtype)
        norm.weight.data, norm.bias.data = draw(shape[1]) + 1, draw(shape[1])
        exact, shift = nn.GroupNorm(32, shape[1], 1e-5).to(setting.device).double(), draw(1, shape[1])
        exact.load_state_dict(norm.state_dict())
        for layout in ("contiguous", "channels last"):
            x = 2 * draw(*shape) + 1
            x = x.to(memory_format=torch.channels_last) if layout == "channels last" else x
            yield (f"group_norm, {layout}", shape, lambda norm=norm, x=x, shift=shift: fused.norm_silu(norm, x, shift),
                   lambda norm=norm, x=x, shift=shift: F.silu(norm(x + shift[..., None, None])),
                   lambda norm=exact, x=x, shift=shift: F.silu(norm(x.double() + shift.double()[..., None, None])))
    for shape in TOKENS[kind]:
        wide = draw(*shape[:-1], 8 * shape[-1])
        yield ("gated", (*shape[:-1], 4 * shape[-1]), lambda wide=wide: fused.gated(wide),
               lambda wide=wide: fused._plain_gated(wide), lambda wide=wide: fused._plain_gated(wide.double()))
        x, delta, layer = draw(*shape), draw(*shape), nn.LayerNorm(shape[-1]).to(setting.device, dtype)
        yield ("add_norm", shape, lambda x=x, delta=delta, layer=layer: fused.add_norm(x, delta, layer)[1],
               lambda x=x, delta=delta, layer=layer: layer(x + delta),
               lambda x=x, delta=delta: F.layer_norm(x.double() + delta.double(), x.shape[-1:]))


# -- pictures --------------------------------------------------------------------------------------------------------------


def check_pictures(setting: Setting) -> dict[str, Any]:
    """Whole pictures against one in float32 by the plain operators, of both libraries, from the same noise and weights."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # the reference is to be one
    made: dict[str, np.ndarray] = {}
    libraries = [("diffusers", False)] if setting.diffusers else []
    spread = {}
    for library, fast in (("calotype", True), ("calotype", False), *libraries):
        for dtype in dict.fromkeys((setting.dtype, torch.float32)):
            pipe = setting.load(library, fast, dtype)
            name = f"{library}{', fast' if fast else ''}, {str(dtype)[6:]}"
            made[name] = np.asarray(picture(setting, pipe, output_type="np"))
            spread[name] = {"picture": float(made[name].std()), "prediction": float(prediction(setting, pipe)().float().std()),
                            "clipped": float(((made[name] <= 0) | (made[name] >= 1)).mean())}
            del pipe
    decibels = {name: psnr(picture, made["calotype, float32"]) for name, picture in made.items()}
    varied = all(each["picture"] > 0.02 and each["clipped"] < 0.5 for each in spread.values())
    return {"psnr_db": decibels, "spread": spread, "varied": varied,
            "passed": varied and all(value > ENOUGH_DB for value in decibels.values())}


def check_recordings(setting: Setting) -> dict[str, Any]:
    """One pipeline, asked for one thing after another: does it still give what it gives without recordings and kernels?

    Each case must also differ from the one before it by more than the two ways do, or it would show nothing.
    """
    pipe, steps, rows = setting.load(), max(4, setting.size.steps // 5), []
    side = pipe.unet.config.sample_size

    def made(batch: int, prompt: str, height: int, seed: int) -> np.ndarray:
        noise = torch.randn(batch, 4, height, side, generator=torch.Generator().manual_seed(seed))
        given = {"latents": noise.to(setting.device, pipe.unet.dtype), "guidance_scale": 7.5, "output_type": "np"}
        return np.asarray(pipe([prompt] * batch, height * pipe.vae_scale_factor, num_inference_steps=steps, **given).images)

    @torch.no_grad()
    def change_in_place() -> None:
        pipe.unet.conv_in.weight.mul_(-1)

    @torch.no_grad()
    def replace_weight() -> None:
        layer = pipe.unet.down_blocks[0].resnets[0].conv1
        layer.weight = nn.Parameter(layer.weight.flip(0).clone())

    def reschedule() -> None:
        pipe.scheduler = calotype.EulerDiscreteScheduler.from_config(pipe.scheduler.config)

    cases: list[tuple[str, Callable[[], None] | None, tuple[int, str, int, int]]] = [
        ("first", None, (1, "a red apple", side, 0)), ("again", None, (1, "a red apple", side, 0)),
        ("another prompt", None, (1, "seven blue ships in a storm at night", side, 0)),
        ("other noise", None, (1, "a red apple", side, 1)), ("another size", None, (1, "a red apple", side // 2, 1)),
        ("a batch", None, (2, "a red apple", side, 2)), ("the first size", None, (1, "a red apple", side, 0)),
        ("another scheduler", reschedule, (1, "a red apple", side, 0)),
        ("a weight changed in place", change_in_place, (1, "a red apple", side, 0)),
        ("a weight replaced", replace_weight, (1, "a red apple", side, 0)),
    ]
    before = None
    for name, change, asked in cases:
        if change is not None:
            change()
        pipe._fast = True
        fast = made(*asked)
        pipe._fast = False  # `fast` would drop what is checked
        same = psnr(fast, made(*asked))
        changed = psnr(fast, before) if before is not None and before.shape == fast.shape else None
        told = changed is None or name == "again" or changed < same - 3
        rows.append({"case": name, "same_db": same, "from_the_case_before_db": changed, "passed": same > ENOUGH_DB and told})
        before = fast
    kept = getattr(pipe.unet, "_recordings", None)
    return {"rows": rows, "recordings": len(kept.by_inputs) if kept else 0,
            "passed": all(row["passed"] for row in rows) and bool((kept and kept.by_inputs) or not setting.cuda)}


# -- ablation --------------------------------------------------------------------------------------------------------------
# Design switches: the library has no options for them, so each is a patch of something private, which says what it does.


def without_recordings() -> Any:
    """No CUDA graphs (on a CPU: no tapes): `recording.call` finds no device that it could record on."""
    return patch.object(recording, "_CALLS_BEFORE", {})


def without_kernels(setting: Setting, *names: str) -> Any:
    """The verdict that kernels give at their first use is set to no for these, on this device."""
    device = torch.empty(0, device=setting.device).device
    return patch.dict(fused._verdicts, {(name, device, dtype): False for name in names for dtype in BOUNDS})


def without_sharing() -> Any:
    """The loop gives the UNet its sample once for both halves of guidance; here it is doubled before the UNet sees it."""
    def doubled(unet: nn.Module, sample: Tensor, moment: Any, kept: Any = None, structure: Any = None) -> Tensor:
        return recording.call(unet, repeated(sample, len(kept.value)), moment, kept, structure)

    stack = ExitStack()
    stack.enter_context(patch.object(guided, "call", doubled))
    stack.enter_context(patch("gpu_setting.call", doubled))  # the prediction that is timed by itself
    return stack


def with_attention(backend: SDPBackend) -> Any:
    """PyTorch's attention prefers this back end, also while a graph is captured; what it cannot do, the others do."""
    rest = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH]
    return sdpa_kernel([backend, *(other for other in rest if other != backend)], set_priority=True)


def channels_last(setting: Setting, pipe: Any) -> float:
    """To which share of the UNet's convolutions of 3 x 3 pictures really come in channels-last memory."""
    seen: list[bool] = []
    hooks = [layer.register_forward_hook(
        lambda layer, given, made: seen.append(given[0].is_contiguous(memory_format=torch.channels_last)))
        for layer in pipe.unet.modules() if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3)]
    try:
        picture(setting, pipe, steps=1, output_type="latent")
    finally:
        for hook in hooks:
            hook.remove()
    return sum(seen) / len(seen)


LAYOUTS = {True: ("channels last", torch.channels_last), False: ("contiguous", torch.contiguous_format)}


def weights_last(pipe: Any) -> bool:
    """Whether weights lie in channels-last memory, so that convolutions make pictures that do."""
    return pipe.unet.mid_block.resnets[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)


@contextmanager
def with_weights(pipe: Any, last: bool) -> Iterator[None]:
    """The weights of convolutions in channels-last memory, or contiguous; and then in the other way again."""
    try:
        for model in (pipe.unet, pipe.vae):
            model.to(memory_format=LAYOUTS[last][1])
        yield
    finally:
        for model in (pipe.unet, pipe.vae):
            model.to(memory_format=LAYOUTS[not last][1])


def ablation(setting: Setting) -> dict[str, Any]:
    """The default, and the default with one thing changed: seconds of a picture and of a prediction. The default comes last
    once more, to show how far the machine drifts."""
    pipe, rows = setting.load(), []
    other = not weights_last(pipe)
    names = ("group_norm", "gated", "add_norm")
    cases: list[tuple[str, Callable[[], Any]]] = [
        ("default", ExitStack), ("without CUDA graphs", without_recordings),
        (f"weights {LAYOUTS[other][0]}", lambda: with_weights(pipe, other)),
        *((f"without the kernel {name}", partial(without_kernels, setting, name)) for name in names),
        ("without any kernel", lambda: without_kernels(setting, *names)), ("halves of guidance not shared", without_sharing),
        *((f"attention: {name}", partial(with_attention, backend)) for name, backend in (
            ("flash", SDPBackend.FLASH_ATTENTION), ("cuDNN", SDPBackend.CUDNN_ATTENTION),
            ("memory-efficient", SDPBackend.EFFICIENT_ATTENTION))),
        ("default again", ExitStack),
    ]
    rounds = min(3, setting.size.rounds)
    for name, change in cases:
        vars(pipe.unet).pop("_recordings", None)  # a graph repeats what was captured, whatever is changed since
        row: dict[str, Any] = {"case": name}
        rows.append(row)
        try:
            with change():
                row["channels_last"] = channels_last(setting, pipe)
                for _ in range(2):
                    picture(setting, pipe)
                row["picture"] = setting.median(lambda: picture(setting, pipe), rounds=rounds)
                row["prediction"] = setting.median(prediction(setting, pipe), setting.size.calls, rounds)
        except (RuntimeError, AttributeError) as error:  # a back end that is not there; or what is patched has another name now
            row["error"] = str(error).split("\n")[0]
    vars(pipe.unet).pop("_recordings", None)
    return {"rows": rows, "steps": setting.size.steps}
