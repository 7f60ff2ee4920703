"""From a command to a picture, beside Diffusers: cold start, warm generation, loading a large checkpoint.

Every figure is taken in turns (A B A B …), each run in a process of its own, and reported as a median with its range.
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
from pathlib import Path

PROMPT = "An image of a squirrel in Picasso style"
HERE = Path(__file__).resolve()
PARTS = ("cold", "command", "warm", "compiled", "load")
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}


def bundled() -> Path:
    from calotype.hub import BUNDLED

    return BUNDLED["calotype/emoji"]


# -- what runs in a process of its own -----------------------------------------------------------------------------------


def load(library: str, folder: str, dtype: str):
    import torch

    if library == "calotype":
        from calotype import StableDiffusionPipeline
    else:
        from diffusers import StableDiffusionPipeline
    pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=getattr(torch, dtype), safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def cold(library: str, out: str) -> None:
    """What a script of five lines does, from its first import to the saved picture."""
    import torch

    pipe = load(library, str(bundled()), "float32")
    pipe(PROMPT, generator=torch.Generator().manual_seed(0)).images[0].save(out)


def warm(library: str, compiled: str = "") -> None:
    """Seconds of the third and fourth picture of 50 steps."""
    import torch

    pipe = load(library, str(bundled()), "float32")
    if compiled and library == "calotype":
        pipe.compile()
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        pipe(PROMPT, generator=torch.Generator().manual_seed(0))
        seconds.append(time.perf_counter() - started)
    print(json.dumps(seconds[1:]))


def loading(library: str, folder: str) -> None:
    """Seconds of a second `from_pretrained`, the imports being done, and the memory resident after it."""
    import resource

    load(library, str(bundled()), "float16")
    started = time.perf_counter()
    pipe = load(library, folder, "float16")
    seconds = time.perf_counter() - started
    assert pipe.unet.dtype is not None
    print(json.dumps({"seconds": seconds, "resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}))


def make_large(folder: str) -> None:
    """A checkpoint of Stable Diffusion 1.5's size, random weights, float16: 2 GB."""
    import torch

    import calotype

    tokens = {"vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
              "num_attention_heads": 12, "max_position_embeddings": 77}
    levels = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
    torch.set_default_dtype(torch.float16)
    with torch.device("meta"):
        models = {
            "unet": calotype.UNet2DConditionModel(sample_size=64, cross_attention_dim=768),
            "vae": calotype.AutoencoderKL(down_block_types=("DownEncoderBlock2D",) * 4,
                                          up_block_types=("UpDecoderBlock2D",) * 4, sample_size=512, **levels),
            "text_encoder": calotype.CLIPTextModel(**tokens),
        }
    for model in models.values():
        model.to_empty(device="cpu")
        for parameter in model.parameters():
            parameter.data.normal_(std=0.02)
    tokenizer = calotype.CLIPTokenizer.from_pretrained("calotype/emoji", subfolder="tokenizer")
    calotype.StableDiffusionPipeline(**models, tokenizer=tokenizer, scheduler=calotype.PNDMScheduler(skip_prk_steps=True),
                                     requires_safety_checker=False).save_pretrained(folder)


# -- in turns --------------------------------------------------------------------------------------------------------------


def process(*arguments: str) -> tuple[float, str]:
    """Wall-clock seconds and output of this script, run on `arguments` in a process of its own."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, str(HERE), *arguments], capture_output=True, text=True, env=ENVIRONMENT)
    if done.returncode:
        sys.exit(f"{arguments} failed:\n{done.stderr}")
    return time.perf_counter() - started, done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""


def report(name: str, figures: dict[str, list[float]], unit: str = "s") -> None:
    medians = {library: statistics.median(values) for library, values in figures.items()}
    ranges = {library: f"{medians[library]:7.2f} {unit} ({min(values):.2f} to {max(values):.2f})"
              for library, values in figures.items()}
    ratio = medians["diffusers"] / medians["calotype"]
    print(f"{name:<44} calotype {ranges['calotype']}   diffusers {ranges['diffusers']}   ratio {ratio:.2f}", flush=True)


def in_turns(runs: int, measure):
    """`measure(library)` for both libraries in turn, `runs` times."""
    figures: dict[str, list[float]] = {"calotype": [], "diffusers": []}
    for _ in range(runs):
        for library, values in figures.items():
            values.append(measure(library))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", choices=PARTS)
    options = parser.parse_args()
    wanted = (options.only,) if options.only else PARTS
    import torch

    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
          f"torch {torch.__version__}, {options.runs} runs each")
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/squirrel.png"
        if "cold" in wanted:
            report("script to saved picture, 50 steps", in_turns(options.runs, lambda name: process("cold", name, out)[0]))
        if "command" in wanted:
            command = [str(Path(sys.executable).with_name("calotype")), "generate", PROMPT, "-o", out, "--overwrite"]

            def whole(name: str) -> float:
                if name == "diffusers":
                    return process("cold", name, out)[0]
                started = time.perf_counter()
                subprocess.run(command, capture_output=True, check=True, env=ENVIRONMENT)
                return time.perf_counter() - started

            report("command to saved picture, 50 steps", in_turns(options.runs, whole))
        if "warm" in wanted:
            seconds = in_turns(options.runs, lambda name: min(json.loads(process("warm", name)[1])))
            report("50 steps, warm", seconds)
        if "compiled" in wanted:  # the first of these takes a minute more
            seconds = in_turns(options.runs, lambda name: min(json.loads(process("warm", name, "compiled")[1])))
            report("50 steps, warm, pipe.compile()", seconds)
        if "load" in wanted:
            process("make", folder)
            found: dict[str, list[float]] = {"calotype": [], "diffusers": []}

            def measure(name: str) -> float:
                figures = json.loads(process("load", name, folder)[1])
                found[name].append(figures["resident"])
                return figures["seconds"]

            report("load a 2 GB checkpoint", in_turns(options.runs, measure))
            report("memory resident after that", found, "GiB")


if __name__ == "__main__":
    tasks = {"cold": cold, "warm": warm, "load": loading, "make": make_large}
    if len(sys.argv) > 1 and sys.argv[1] in tasks:
        tasks[sys.argv[1]](*sys.argv[2:])
    else:
        main()
