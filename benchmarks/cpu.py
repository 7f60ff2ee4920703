"""The network alone on the CPU, beside Diffusers: one call with guidance, and what each part of the fast path gives.

    python benchmarks/cpu.py                       # a step of the bundled checkpoint, and of Stable Diffusion 1.5's size
    python benchmarks/cpu.py --only bundled --rounds 30
    python benchmarks/cpu.py --threads 1           # CPU time of one thread: steadier where a machine is shared

The compiled way takes a minute the first time; later its code is in `~/.cache/calotype`. All ways are measured in
turn in every round, on the same weights and inputs; figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import calotype
from calotype.runtime import packed, recording, winograd
from calotype.runtime.scope import fast_path
from calotype.runtime.structure import Structure
from calotype.runtime.weight_sums import weight_sums

Way = Callable[[], Tensor]


def bundled() -> tuple[calotype.UNet2DConditionModel, Tensor, Tensor]:
    unet = calotype.UNet2DConditionModel.from_pretrained("calotype/emoji", subfolder="unet")
    return unet, torch.randn(1, 4, 16, 16), torch.randn(2, 32, 256)


def stable_diffusion(latent: int) -> tuple[calotype.UNet2DConditionModel, Tensor, Tensor]:
    """Stable Diffusion 1.5's UNet with random weights."""
    with torch.device("meta"):
        unet = calotype.UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    unet = unet.to_empty(device="cpu").eval()
    for parameter in unet.parameters():
        parameter.data.normal_(std=0.02)
    return unet, torch.randn(1, 4, latent, latent), torch.randn(2, 77, 768)


def again(unet: calotype.UNet2DConditionModel, kind: Any) -> Any:
    """The network once more, of another class perhaps, on the same memory."""
    with torch.device("meta"):
        made = kind.from_config(dict(unet.config))
    made.load_state_dict(unet.state_dict(), assign=True)
    return made.eval()


def peer(unet: calotype.UNet2DConditionModel) -> torch.nn.Module:
    """Diffusers' model on the same memory."""
    import diffusers

    return again(unet, diffusers.UNet2DConditionModel)


# -- what is left out in the lines of the table --------------------------------------------------------------------------


@contextlib.contextmanager
def without_recording() -> Iterator[None]:
    with mock.patch.dict(recording._CALLS_BEFORE, clear=True):
        yield


def without_winograd() -> contextlib.AbstractContextManager:
    return mock.patch.object(winograd, "LEAST_CHANNELS", 10**9)


def without_preparing() -> contextlib.AbstractContextManager:
    return mock.patch.object(packed, "PREPARE", False)


LEFT_OUT = {
    "without the tape": without_recording, "without Winograd's convolutions": without_winograd,
    "without prepared weights": without_preparing,
}


def ways(unet: calotype.UNet2DConditionModel, sample: Tensor, text: Tensor) -> dict[str, Way]:
    """What is measured, by name: each a call of the network on a sample and two texts."""
    theirs, at = peer(unet), torch.tensor(500)
    twice = sample.repeat(2, 1, 1, 1)

    def ours(
        given: Tensor, left_out: Callable = contextlib.nullcontext, fast: bool = True, compiled: bool = False
    ) -> Way:
        own = again(unet, calotype.UNet2DConditionModel)  # with prepared weights and recordings of its own
        own.compiled_steps = compiled
        kept, moment, scope = own.keep(text), own.moments(torch.tensor([500]))[0], set()

        def call() -> Tensor:
            with left_out(), fast_path(fast, scope):
                return recording.call(own, given, moment, kept) if fast else own(given, at, text, return_dict=False)[0]

        return call

    return {
        "calotype": ours(sample),
        "compiled": ours(sample, compiled=True),
        **{name: ours(sample, left_out) for name, left_out in LEFT_OUT.items()},
        "with the sample given twice": ours(twice),
        "plain (fast = False)": ours(twice, fast=False),
        "diffusers": lambda: theirs(twice, 500, text, return_dict=False)[0],
    }


def measure(name: str, made: dict[str, Way], rounds: int, clock: Callable[[], float]) -> None:
    seconds: dict[str, list[float]] = {way: [] for way in made}
    results = {}
    for _ in range(8 if name == "bundled" else 1):  # until all have prepared what they prepare
        results = {way: call() for way, call in made.items()}
    for _ in range(rounds):
        for way, call in made.items():
            started = clock()
            call()
            seconds[way].append(clock() - started)
    print(f"\n{name}, milliseconds a call\n")
    print("| | ms | Diffusers / this | furthest from Diffusers, of its largest value |\n|---|---|---|---|")
    theirs, reference = seconds["diffusers"], results["diffusers"]
    for way, took in seconds.items():
        ratio = statistics.median(other / own for other, own in zip(theirs, took, strict=True))
        distance = float((results[way] - reference).abs().max() / reference.abs().max())
        print(f"| {way} | {1000 * statistics.median(took):.1f} | {ratio:.2f} | {distance:.1e} |", flush=True)


def precision() -> None:
    """How far from double precision a prediction of the bundled checkpoint is, before and after guidance of 7.5."""
    unet, _, text = bundled()
    theirs, exact = peer(unet), copy.deepcopy(unet).double()
    print("\nrelative distance from double precision: the prediction, and guided by 7.5\n")
    print("| timestep | calotype | plain | diffusers |\n|---|---|---|---|")

    def guided(output: Tensor) -> Tensor:
        unwanted, wanted = output.double().chunk(2)
        return unwanted + 7.5 * (wanted - unwanted)

    for timestep in (981, 700, 400, 100, 1):
        sample, moment = torch.randn(1, 4, 16, 16), unet.moments(torch.tensor([timestep]))[0]
        twice = sample.repeat(2, 1, 1, 1)
        reference = exact(twice.double(), timestep, text.double(), return_dict=False)[0]
        with fast_path():
            fast = recording.call(unet, sample, moment, unet.keep(text))
        plain = unet(twice, moment, unet.keep(text), return_dict=False)[0]
        outputs = fast, plain, theirs(twice, timestep, text, return_dict=False)[0]
        apart = [(float((output.double() - reference).norm() / reference.norm()),
                  float((guided(output) - guided(reference)).norm() / reference.norm())) for output in outputs]
        print(f"| {timestep} | " + " | ".join(f"{alone:.1e}, {both:.1e}" for alone, both in apart) + " |", flush=True)


def texts(rounds: int) -> None:
    """What it takes to encode a prompt and no negative one: new ones, the empty text known, and both known."""
    pipe = calotype.StableDiffusionPipeline.from_pretrained("calotype/emoji", safety_checker=None)
    seconds: dict[str, list[float]] = {"nothing is remembered": [], "another prompt": [], "the same prompt": []}
    for i in range(rounds):
        for way, took in seconds.items():
            pipe._fast = way != "nothing is remembered"  # `fast = False` would forget what the others remember
            started = time.perf_counter()
            pipe.encode_prompt("a cat" if way == "the same prompt" else f"a cat, {i}")
            took.append(time.perf_counter() - started)
    print("\nencoding a prompt and no negative one, milliseconds\n\n| | ms |\n|---|---|")
    for way, took in seconds.items():
        print(f"| {way} | {1000 * statistics.median(took):.1f} |", flush=True)


def checks(rounds: int) -> None:
    """What it costs to tell that a network is still what it was: before every step, and once a generation."""
    with torch.device("meta"):
        large = calotype.UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    small, _, _ = bundled()
    convolutions = [layer.weight for layer in small.modules() if isinstance(layer, torch.nn.Conv2d)]

    def milliseconds(call: Callable[[], object]) -> float:
        took = []
        for _ in range(rounds):
            started = time.perf_counter()
            call()
            took.append(time.perf_counter() - started)
        return 1000 * statistics.median(took)

    print("\n| | ms |\n|---|---|")
    for name, network in (("the bundled network", small), ("Stable Diffusion 1.5's", large)):
        known = Structure(network)
        print(f"| structure of {name} | {milliseconds(lambda known=known, network=network: known.holds(network)):.2f} |")
    size = sum(weight.numel() for weight in convolutions) * 4 / 2**20
    print(f"| sums of the bundled network's convolutions, {size:.0f} MiB | "
          f"{milliseconds(lambda: [weight_sums(weight) for weight in convolutions]):.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("bundled", "stable-diffusion", "precision", "texts", "checks"))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--latent", type=int, default=64, help="height and width of Stable Diffusion's latents")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    clock = time.thread_time if options.threads == 1 else time.perf_counter
    print(f"{platform.processor() or platform.machine()}, {options.threads} threads, torch {torch.__version__}, "
          f"{'CPU time' if options.threads == 1 else 'time'}")
    with torch.no_grad():
        if options.only in (None, "precision"):
            precision()
        if options.only in (None, "texts"):
            texts(options.rounds)
        if options.only in (None, "checks"):
            checks(options.rounds)
        if options.only in (None, "bundled"):
            measure("bundled", ways(*bundled()), options.rounds, clock)
        if options.only in (None, "stable-diffusion"):
            made = ways(*stable_diffusion(options.latent))
            few = ("calotype", "compiled", "without Winograd's convolutions", "with the sample given twice",
                   "plain (fast = False)", "diffusers")
            short = {name: made[name] for name in few}
            measure("stable-diffusion", short, max(options.rounds // 6, 1), clock)


if __name__ == "__main__":
    main()
