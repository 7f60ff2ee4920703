"""Training beside Diffusers: steps of the same model on the same pictures in turn, by ours and by the loop that everybody has.

    python benchmarks/training.py                              # all parts
    python benchmarks/training.py --only step --threads 1      # CPU time of one thread: steadier where a machine is shared
    python benchmarks/training.py --device cuda --batch 64     # in bfloat16 there

Ours runs by its recipes and its trainer; theirs has Diffusers' models, scheduler and EMAModel, and torch's AdamW. Figures are
medians over the rounds. Peak memory is that of a process (on a GPU: of tensors) that trains in one way only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

Step = Callable[[], object]
PARTS = {
    "text-to-image": "text to image, as users run it", "uncached": "… with pictures and captions encoded in every step",
    "step": "the step alone: forward, backward, clipping, AdamW, EMA", "unconditional": "unconditional, 64 pixels",
    "lora": "LoRA, rank 4",
}
LEFT_OUT = {"without Winograd's gradients": "winograd_training.convolve"}
PIXELS, COUNT = {"unconditional": 64}, 64


def pictures(folder: Path, size: int) -> Path:
    """A folder of random pictures with captions."""
    import numpy as np
    from PIL import Image

    folder.mkdir()
    drawn = np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8, 3), dtype=np.uint8)
    with (folder / "metadata.jsonl").open("w") as file:
        for i, values in enumerate(drawn):
            Image.fromarray(values).resize((size, size)).save(folder / f"{i}.png")
            file.write(json.dumps({"file_name": f"{i}.png", "text": f"picture number {i} of a cat"}) + "\n")
    return folder


# -- ours ----------------------------------------------------------------------------------------------------------------


def recipe(part: str, options: argparse.Namespace, folder: Path) -> Step:
    """Steps of our trainer on a recipe's task, batches included."""
    from torch.utils.data import DataLoader

    from calotype.training.recipes.lora import Lora
    from calotype.training.recipes.text_to_image import TextToImage
    from calotype.training.recipes.unconditional import Unconditional
    from calotype.training.trainer import Trainer

    Recipe: Any = {"lora": Lora, "unconditional": Unconditional}.get(part, TextToImage)
    told: dict[str, Any] = {"resolution": PIXELS[part]} if part in PIXELS else {"cache_latents": part != "uncached"}
    settings = Recipe.Settings(
        output_dir=folder / f"run-{part}", train_data_dir=folder / "pictures", max_train_steps=10**6, use_ema=part != "lora",
        train_batch_size=options.batch, mixed_precision="bf16" if options.device == "cuda" else "no", **told)
    trainer = Trainer(Recipe(settings), settings, say=lambda text: None)
    loader = iter(DataLoader(trainer.task.data, batch_sampler=trainer.batches, collate_fn=trainer.task.collate,
                             pin_memory=options.device == "cuda"))
    numbers = iter(range(10**6))
    return lambda: trainer.step(next(numbers), [next(loader)])


# -- both, on fixed inputs -----------------------------------------------------------------------------------------------


def fixed(library: str, options: argparse.Namespace, left_out: str | None = None) -> Step:
    """Forward, backward, clipping, AdamW and EMA of the bundled UNet."""
    import torch

    from calotype.hub import BUNDLED

    folder = BUNDLED["calotype/emoji"]
    if library == "calotype":
        from calotype import UNet2DConditionModel
        from calotype.training.ema import EMAModel
        from calotype.training.optimizers import make_optimizer

        unet: Any = UNet2DConditionModel.from_pretrained(str(folder), subfolder="unet").to(options.device)
        unet.to(memory_format=torch.channels_last)
        optimizer = make_optimizer("adamw", unet.parameters(), 1e-4)
    else:
        from diffusers import UNet2DConditionModel
        from diffusers.training_utils import EMAModel

        unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet").to(options.device)
        optimizer = torch.optim.AdamW(unet.parameters(), 1e-4)
    average = EMAModel(unet.parameters(), use_ema_warmup=True, power=0.75)
    generator = torch.Generator().manual_seed(0)
    sample, target = torch.randn(2, options.batch, 4, 16, 16, generator=generator).to(options.device)
    text = torch.randn(options.batch, 32, 256, generator=generator).to(options.device)
    timesteps = torch.randint(1000, (options.batch,), generator=generator).to(options.device)
    unet.train()

    def step() -> None:
        with autocast(options):
            output = unet(sample, timesteps, text).sample
        descend(torch.nn.functional.mse_loss(output.float(), target), optimizer, list(unet.parameters()), average)

    def without() -> None:
        with mock.patch(f"calotype.runtime.{left_out}", return_value=None):
            step()

    return without if left_out else step


# -- theirs --------------------------------------------------------------------------------------------------------------


def autocast(options: argparse.Namespace) -> Any:
    import torch

    return torch.autocast(options.device, torch.bfloat16, enabled=options.device == "cuda")


def descend(loss: Any, optimizer: Any, parameters: list[Any], average: Any) -> None:
    """What follows the loss in everybody's loop."""
    import torch

    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    if average is not None:
        average.step(parameters)


def endless(folder: Path, batch: int) -> Iterator[tuple[Any, list[str]]]:
    """Shuffled batches of pixel values and captions, read as everybody does."""
    import numpy as np
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]

    class Read(Dataset):
        def __len__(self) -> int:
            return len(lines)

        def __getitem__(self, i: int) -> tuple[Any, str]:
            values = np.asarray(Image.open(folder / lines[i]["file_name"]).convert("RGB"), dtype=np.float32)
            return torch.from_numpy(values / 127.5 - 1).permute(2, 0, 1), lines[i]["text"]

    while True:
        for values, captions in DataLoader(Read(), batch, shuffle=True, drop_last=True):
            yield values, list(captions)


def loop(part: str, options: argparse.Namespace, folder: Path) -> Step:
    """Everybody's loop on the bundled checkpoint, all of its UNet or an adapter of it; or on a new UNet without text."""
    import diffusers
    import torch
    import transformers
    from diffusers.training_utils import EMAModel

    from calotype.hub import BUNDLED

    torch.manual_seed(0)
    text_guided, device, checkpoint = part != "unconditional", options.device, BUNDLED["calotype/emoji"]
    if text_guided:
        tokenizer = transformers.CLIPTokenizer.from_pretrained(checkpoint, subfolder="tokenizer")
        text_encoder = transformers.CLIPTextModel.from_pretrained(checkpoint, subfolder="text_encoder").float().to(device)
        vae = diffusers.AutoencoderKL.from_pretrained(checkpoint, subfolder="vae").to(device)
        unet = diffusers.UNet2DConditionModel.from_pretrained(checkpoint, subfolder="unet").to(device)
        scheduler = diffusers.DDPMScheduler.from_pretrained(checkpoint, subfolder="scheduler")
        for frozen in (text_encoder, vae):
            frozen.requires_grad_(False)
    else:  # what the recipe makes by default
        unet = diffusers.UNet2DModel(
            sample_size=64, block_out_channels=(64, 128, 128, 256),
            down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D")).to(device)
        scheduler = diffusers.DDPMScheduler()
    if part == "lora":
        import peft

        unet.requires_grad_(False)
        unet.add_adapter(peft.LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    unet.train()
    parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, 1e-4)
    average = None if part == "lora" else EMAModel(parameters, use_ema_warmup=True, power=0.75)
    batches = endless(folder / "pictures", options.batch)

    def step() -> None:
        values, captions = next(batches)
        clean = values.to(device)
        with autocast(options):
            text = ()
            if text_guided:
                ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt",
                                max_length=tokenizer.model_max_length).input_ids.to(device)
                with torch.no_grad():
                    clean = vae.encode(clean).latent_dist.sample() * vae.config.scaling_factor
                    text = (text_encoder(ids)[0],)
            clean = clean.float()
            noise, timesteps = torch.randn_like(clean), torch.randint(1000, (len(clean),), device=device)
            output = unet(scheduler.add_noise(clean, noise, timesteps), timesteps, *text).sample
        descend(torch.nn.functional.mse_loss(output.float(), noise), optimizer, parameters, average)

    return step


# -- in turns ------------------------------------------------------------------------------------------------------------


def made(part: str, way: str, options: argparse.Namespace, folder: Path) -> Step:
    if part == "step":
        return fixed("diffusers" if way == "diffusers" else "calotype", options, LEFT_OUT.get(way))
    return loop(part, options, folder) if way == "diffusers" else recipe(part, options, folder)


def resident() -> float:
    """MiB that this process held at most; `getrusage` would tell those of the process that began it, if that held more."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def alone(part: str, way: str, options: argparse.Namespace, folder: Path) -> float:
    """MiB at most in three steps by one way; on a CPU of all of the process."""
    import torch

    step = made(part, way, options, folder)
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(3):
        step()
    return torch.cuda.max_memory_allocated() / 2**20 if options.device == "cuda" else resident()


def memory(part: str, way: str, options: argparse.Namespace) -> str:
    """`alone`, in a process of its own."""
    command = [sys.executable, __file__, "--only", part, "--alone", way, "--batch", str(options.batch), "--device",
               options.device, "--threads", str(options.threads)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{part}, {way} failed:\n{done.stderr}")
    return f"{float(done.stdout.split()[-1]):.0f}"


def measure(part: str, options: argparse.Namespace, folder: Path) -> None:
    import torch

    ways = ["calotype", *(LEFT_OUT if part == "step" else ()), "diffusers"]
    steps = {way: made(part, way, options, folder) for way in ways}
    clock = time.process_time if options.threads == 1 and options.device == "cpu" else time.perf_counter

    def seconds(step: Step) -> float:
        if options.device == "cuda":
            torch.cuda.synchronize()
        started = clock()
        for _ in range(options.steps):
            step()
        if options.device == "cuda":
            torch.cuda.synchronize()
        return (clock() - started) / options.steps

    for step in steps.values():
        for _ in range(2):
            step()
    took: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(options.rounds):
        for way, step in steps.items():
            took[way].append(seconds(step))
    for way in ways:
        middle = statistics.median(took[way])
        ratio = statistics.median(took["diffusers"]) / middle
        held = memory(part, way, options) if options.memory and way in ("calotype", "diffusers") else ""
        print(f"| {PARTS[part] if way == 'calotype' else ''} | {way} | {1000 * middle:.0f} | {options.batch / middle:.1f} | "
              f"{ratio:.2f} | {held} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=1, help="steps a round")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="leave out peak memory; on a CPU it needs Linux")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "OMP_NUM_THREADS": str(options.threads)}
    import torch

    torch.set_num_threads(options.threads)
    if not options.alone:
        where = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or platform.machine()
        counted = "CPU time" if options.threads == 1 and options.device == "cpu" else "time"
        print(f"{where}, {options.threads} threads, torch {torch.__version__}, batches of {options.batch}, {counted}\n")
        print("| | | ms a step | pictures/s | Diffusers / this | peak MiB |\n|---|---|---|---|---|---|", flush=True)
    for part in (options.only,) if options.only else PARTS:
        with tempfile.TemporaryDirectory() as name:
            pictures(Path(name) / "pictures", PIXELS.get(part, 128))
            if options.alone:
                print(alone(part, options.alone, options, Path(name)))
            else:
                measure(part, options, Path(name))


if __name__ == "__main__":
    main()
