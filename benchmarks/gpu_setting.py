"""What the parts of `gpu.py` share: the checkpoint, pipelines of either library, and how seconds, memory, arithmetic are taken.

All of it works on a CPU too, so that it can be tested where no GPU is; what only CUDA can tell is then `None`.
"""

from __future__ import annotations

import gc
import importlib.util
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import calotype
from calotype.hub import BUNDLED
from calotype.runtime.recording import call
from calotype.runtime.scope import fast_path

PROMPT = "An image of a squirrel in Picasso style"
GIB = 2**30


@dataclass(frozen=True)
class Size:
    """How much is done: solver steps a picture, pictures of the large batch, timed rounds, calls of a timed run."""

    steps: int
    batch: int
    rounds: int
    calls: int


SIZES = {"sd15": Size(50, 16, 5, 20), "bundled": Size(50, 16, 5, 20), "tiny": Size(4, 2, 1, 1)}


@dataclass(frozen=True)
class Setting:
    """Where and on what is measured.

    Attributes:
        size_name: a key of `SIZES`. work, out: folders of checkpoints, and of what is to be looked at later.
        alone: without Diffusers, even if it is installed.
    """

    device: str
    size_name: str
    work: Path
    out: Path
    alone: bool = False

    @property
    def size(self) -> Size:
        return SIZES[self.size_name]

    @property
    def cuda(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def dtype(self) -> torch.dtype:
        return torch.float16 if self.cuda else torch.float32  # on the CPU, the fast path is for single precision

    @property
    def diffusers(self) -> bool:
        return not self.alone and importlib.util.find_spec("diffusers") is not None

    def ways(self) -> list[tuple[str, str, bool]]:
        """What is compared: a name, the library, and whether Calotype's fast path is on."""
        ours = [("calotype", "calotype", True), ("calotype, fast=False", "calotype", False)]
        return [*ours, ("diffusers", "diffusers", False)] if self.diffusers else ours

    def folder(self) -> Path:
        """The checkpoint, made when first asked for."""
        if self.size_name == "bundled":
            return Path(BUNDLED["calotype/emoji"])
        folder = self.work / self.size_name
        if not (folder / "model_index.json").exists():
            make_checkpoint(folder, self.size_name, self.device)
        return folder

    def pipeline(self, library: str) -> Any:
        """The class of pipelines of a library."""
        if library == "calotype":
            return calotype.StableDiffusionPipeline
        import diffusers

        diffusers.utils.logging.set_verbosity_error()
        return diffusers.StableDiffusionPipeline

    def load(self, library: str = "calotype", fast: bool = True, dtype: torch.dtype | None = None) -> Any:
        pipe = self.pipeline(library).from_pretrained(
            str(self.folder()), torch_dtype=dtype or self.dtype, safety_checker=None)
        pipe.set_progress_bar_config(disable=True)
        if library == "calotype":
            pipe._fast = fast  # what the other way keeps stays
        return pipe.to(self.device)

    def latents(self, pipe: Any, batch: int = 1, seed: int = 0) -> Tensor:
        """The noise to begin with, the same in every precision and on every device."""
        side = pipe.unet.config.sample_size
        noise = torch.randn(batch, 4, side, side, generator=torch.Generator().manual_seed(seed))
        return noise.to(self.device, pipe.unet.dtype)

    # -- figures ---------------------------------------------------------------------------------------------------------

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def seconds(self, function: Callable[[], Any], calls: int = 1) -> float:
        """Seconds a call, from all queues empty to all queues empty."""
        self.wait()
        started = time.perf_counter()
        for _ in range(calls):
            function()
        self.wait()
        return (time.perf_counter() - started) / calls

    def median(self, function: Callable[[], Any], calls: int = 1, rounds: int | None = None) -> float:
        return statistics.median(self.seconds(function, calls) for _ in range(rounds or self.size.rounds))

    def captured(self, function: Callable[[], Any]) -> Callable[[], Any]:
        """On a GPU, `function` as a graph, so that its kernels are timed and not the launching of them."""
        if not self.cuda:
            return function
        graph, beside = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        with torch.cuda.stream(beside):
            function()
        self.wait()
        with torch.cuda.graph(graph):
            function()
        return graph.replay

    def peak(self, function: Callable[[], Any]) -> dict[str, float | None]:
        """GiB that `function` adds, at its peak, to what is held now: in tensors, and taken from the device for them."""
        if not self.cuda:
            function()
            return {"allocated_gib": None, "reserved_gib": None}
        gc.collect()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
        torch.cuda.reset_peak_memory_stats()
        function()
        self.wait()
        return {"allocated_gib": (torch.cuda.max_memory_allocated() - before[0]) / GIB,
                "reserved_gib": (torch.cuda.max_memory_reserved() - before[1]) / GIB}

    def wake(self) -> None:
        """Start what any program starts once, so that nobody's first picture is charged with it."""
        x = torch.randn(2, 8, 16, 16, device=self.device, dtype=self.dtype)
        torch.nn.functional.conv2d(x, x[:, :, :3, :3]) @ x[:, :2, :14]
        self.wait()


# -- the checkpoint --------------------------------------------------------------------------------------------------------


def make_checkpoint(folder: Path, size: str, device: str) -> None:
    """Random weights in float16, of Stable Diffusion 1.5's architecture (2 GB) or a tiny one, with the bundled tokenizer."""
    if size == "sd15":
        unet: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768}
        vae: dict[str, Any] = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 512}
        text = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    else:
        unet = {"sample_size": 8, "cross_attention_dim": 32, "block_out_channels": (32, 64), "layers_per_block": 1,
                "attention_head_dim": 2, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
                "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
        vae = {"block_out_channels": (32, 32), "layers_per_block": 1, "sample_size": 16}
        text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    levels = len(vae["block_out_channels"])
    with torch.device("meta"):
        models: dict[str, nn.Module] = {
            "unet": calotype.UNet2DConditionModel(**unet),
            "vae": calotype.AutoencoderKL(down_block_types=("DownEncoderBlock2D",) * levels,
                                          up_block_types=("UpDecoderBlock2D",) * levels, **vae),
            "text_encoder": calotype.CLIPTextModel(vocab_size=49408, **text),
        }
    torch.manual_seed(0)
    for model in models.values():
        fill(model.to(torch.float16).to_empty(device=device))
        model.cpu()
    tokenizer = calotype.CLIPTokenizer.from_pretrained("calotype/emoji", subfolder="tokenizer", model_max_length=77)
    scheduler = calotype.PNDMScheduler.from_pretrained("calotype/emoji", subfolder="scheduler")
    calotype.StableDiffusionPipeline(
        **models, tokenizer=tokenizer, scheduler=scheduler, requires_safety_checker=False).save_pretrained(folder)


@torch.no_grad()
def fill(model: nn.Module) -> None:
    """Weights with which signals keep their size: of deviation 1 / sqrt(fan-in), norms that do nothing more, no biases.

    A norm gives a branch numbers of deviation 1, and a product with such weights keeps that; so each of the two dozen branches
    adds less than 1 to the variance of the stream that they are summed to, which half precision holds with ease.
    """
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, (nn.GroupNorm, nn.LayerNorm)) or name == "bias":
                parameter.fill_(float(name == "weight"))
            else:
                embeds = isinstance(module, nn.Embedding)
                parameter.normal_(std=0.02 if embeds else parameter[0].numel() ** -0.5)


# -- what is timed ---------------------------------------------------------------------------------------------------------


def picture(setting: Setting, pipe: Any, batch: int = 1, steps: int | None = None, **options: Any) -> Any:
    """One call of a pipeline, of either library: guided by 7.5, from noise that is the same for all."""
    return pipe([PROMPT] * batch, num_inference_steps=steps or setting.size.steps, guidance_scale=7.5,
                **{"latents": setting.latents(pipe, batch), **options}).images


def prediction(setting: Setting, pipe: Any, batch: int = 1) -> Callable[[], Tensor]:
    """One guided prediction of the UNet as the pipeline's loop makes it, ready to be timed."""
    unet, sample = pipe.unet, setting.latents(pipe, batch)
    own = torch.Generator().manual_seed(1)
    text = torch.randn(2 * batch, 77, unet.config.cross_attention_dim, generator=own).to(sample)
    if isinstance(unet, calotype.UNet2DConditionModel):
        with torch.no_grad():
            kept, moment = unet.keep(text), unet.moments(torch.tensor([501, 481]))[0]
        scope: set[nn.Module] = set()

        def ours() -> Tensor:
            with torch.no_grad(), fast_path(pipe.fast, scope):
                return call(unet, sample, moment, kept)

        function = ours
    else:
        moment = torch.tensor(501, device=sample.device)

        def theirs() -> Tensor:
            with torch.no_grad():
                return unet(torch.cat([sample] * 2), moment, encoder_hidden_states=text, return_dict=False)[0]

        function = theirs
    for _ in range(8):  # until everything that is prepared at first calls is there
        function()
    return function


def decoding(pipe: Any, latents: Tensor) -> Callable[[], Tensor]:
    """Latents to pictures, as the pipeline does it."""
    def run() -> Tensor:
        with torch.no_grad(), fast_path(getattr(pipe, "fast", False)):
            return pipe.vae.decode(latents / pipe.vae.config.scaling_factor, return_dict=False)[0]
    return run


def arithmetic(setting: Setting) -> dict[str, float]:
    """TFLOP of a guided prediction with nothing shared (batch 2), of a decoded picture, and of a whole picture."""
    from torch.utils.flop_counter import FlopCounterMode

    folder, counted = setting.folder(), []
    with torch.device("meta"), torch.no_grad():
        unet = calotype.UNet2DConditionModel.from_config(calotype.UNet2DConditionModel.load_config(folder / "unet"))
        vae = calotype.AutoencoderKL.from_config(calotype.AutoencoderKL.load_config(folder / "vae"))
        sample = torch.empty(2, 4, *[unet.config.sample_size] * 2)
        text = torch.empty(2, 77, unet.config.cross_attention_dim)
        for run in (lambda: unet(sample, torch.empty(2), text), lambda: vae.decode(sample[:1])):
            with FlopCounterMode(display=False) as counter:
                run()
            counted.append(counter.get_total_flops() / 1e12)
    calls = len(calotype.PNDMScheduler.from_pretrained(folder, subfolder="scheduler").table(setting.size.steps))
    return {"prediction": counted[0], "decoding": counted[1], "picture": calls * counted[0] + counted[1]}
