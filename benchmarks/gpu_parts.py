"""The measurements of `gpu.py`, each a function of a `Setting` that returns figures."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from gpu_checks import psnr
from gpu_setting import GIB, Setting, arithmetic, decoding, picture, prediction

import calotype


def environment(setting: Setting) -> dict[str, Any]:
    """The machine and its software; how fast it multiplies 8192 x 8192 matrices of random numbers, and copies."""
    found: dict[str, Any] = {
        "python": platform.python_version(), "torch": torch.__version__,
        **{name: _version(name) for name in ("triton", "diffusers", "transformers")}, "cpus": os.cpu_count(),
        "device": platform.machine(), "driver": None, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    if setting.cuda:
        properties = torch.cuda.get_device_properties(setting.device)
        found |= {"device": properties.name, "memory_gib": properties.total_memory / GIB,
                  "capability": f"{properties.major}.{properties.minor}", "multiprocessors": properties.multi_processor_count}
        try:
            said = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
                                  capture_output=True, text=True, timeout=20)
            found["driver"] = said.stdout.strip().split("\n")[0]
        except (OSError, subprocess.TimeoutExpired):
            pass
    side, long = (8192, 2**31) if setting.cuda else (256, 2**22)
    found["matmul_side"] = side
    a, b = (torch.randn(side, side, device=setting.device, dtype=setting.dtype) for _ in range(2))
    source = torch.empty(long, dtype=torch.uint8, device=setting.device).random_()
    target = torch.empty_like(source)
    for function in (lambda: a @ b, lambda: target.copy_(source)):
        setting.seconds(function, 3)
    found["matmul_tflops"] = 2 * side**3 / setting.median(lambda: a @ b, 10) / 1e12
    found["copy_gb_per_s"] = 2 * long / setting.median(lambda: target.copy_(source), 10) / 1e9
    return found


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def steady(setting: Setting) -> dict[str, Any]:
    """Pictures one at a time: the first after loading, then all ways in turns; the UNet and the decoder by themselves.

    Where kernels were compiled by an earlier part, the first picture finds them in Triton's cache on the disk.
    """
    setting.wake()
    ways: dict[str, dict[str, Any]] = {}
    pipes: dict[str, Any] = {}
    for name, library, fast in setting.ways():
        found = ways[name] = {"seconds": []}
        setting.pipeline(library)  # imports are not what is measured

        def begin(name: str = name, library: str = library, fast: bool = fast, found: dict[str, Any] = found) -> None:
            found["load"] = setting.seconds(lambda: pipes.update({name: setting.load(library, fast)}))
            found["first"] = setting.seconds(lambda: picture(setting, pipes[name]))
            picture(setting, pipes[name])

        found |= setting.peak(begin)
    for _ in range(setting.size.rounds):
        for name, pipe in pipes.items():
            ways[name]["seconds"].append(setting.seconds(lambda pipe=pipe: picture(setting, pipe)))
    for name, pipe in pipes.items():
        ways[name]["prediction"] = setting.median(prediction(setting, pipe), setting.size.calls)
        decode = decoding(pipe, setting.latents(pipe))
        decode()
        ways[name]["decoding"] = setting.median(decode)
    return {"ways": ways, "steps": setting.size.steps, "tflop": arithmetic(setting)}


def steady_compiled(setting: Setting) -> dict[str, Any]:
    """Diffusers with its UNet compiled (reduce-overhead: CUDA graphs too), in channels-last memory, as its guide has it."""
    if not (setting.cuda and setting.diffusers):
        return {"skipped": "it needs a GPU, and Diffusers"}
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(setting.work / "inductor"))
    pipe = setting.load("diffusers")
    for model in (pipe.unet, pipe.vae):
        model.to(memory_format=torch.channels_last)
    pipe.unet = torch.compile(pipe.unet, mode="reduce-overhead")
    first = setting.seconds(lambda: picture(setting, pipe))
    second = setting.seconds(lambda: picture(setting, pipe))
    found = {"first": first, "second": second,
             "seconds": [setting.seconds(lambda: picture(setting, pipe)) for _ in range(setting.size.rounds)]}
    return {"ways": {"diffusers, compiled": found}, "steps": setting.size.steps, "tflop": arithmetic(setting)}


def own_compiled(setting: Setting) -> dict[str, Any]:
    """Calotype with `pipe.compile()`: the first picture with nothing compiled yet, further ones, and the first of a new pipeline,
    which finds the code in its folder. The picture must be that of the plain way, up to half precision.
    """
    if not setting.cuda:
        return {"skipped": "it needs a GPU"}
    plain = picture(setting, setting.load("calotype", False), output_type="np")
    with tempfile.TemporaryDirectory(dir=setting.work) as folder:
        os.environ |= {"CALOTYPE_CACHE": folder, "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor"}
        pipe = setting.load("calotype").compile()
        found: dict[str, Any] = {"first": setting.seconds(lambda: picture(setting, pipe))}
        apart = psnr(picture(setting, pipe, output_type="np"), plain)
        found["seconds"] = [setting.seconds(lambda: picture(setting, pipe)) for _ in range(setting.size.rounds)]
        again = setting.load("calotype").compile()
        other = {"first": setting.seconds(lambda: picture(setting, again)),
                 "seconds": [setting.seconds(lambda: picture(setting, again))]}
    if apart < 35:
        raise AssertionError(f"compiled, the picture is only {apart:.1f} dB from the plain one")
    return {"ways": {"calotype, compiled": found, "calotype, compiled before": other}, "psnr": apart}


def batch(setting: Setting) -> dict[str, Any]:
    """A large batch: pictures a second, and the arithmetic a second of one prediction for all of them."""
    ways, tflop, size = {}, arithmetic(setting), setting.size.batch
    for name, library, fast in setting.ways():
        pipe = setting.load(library, fast)
        predict = prediction(setting, pipe, size)
        seconds = setting.median(predict, max(2, setting.size.calls // 4))
        del predict
        picture(setting, pipe, size, steps=4)
        took: list[float] = []

        def whole(pipe: Any = pipe, took: list[float] = took) -> None:
            took.append(setting.seconds(lambda: picture(setting, pipe, size)))

        memory = setting.peak(whole)
        ways[name] = {"prediction": seconds, "tflops": size * tflop["prediction"] / seconds, "seconds": took[0],
                      "seconds_a_picture": took[0] / size, **memory}
        del pipe, whole
    return {"ways": ways, "batch": size, "steps": setting.size.steps}


def kernels(setting: Setting) -> dict[str, Any]:
    """Where the time of one prediction goes: the 25 kernels that take most of it, of every way, also as a text each."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if setting.cuda else [])]
    ways = {}
    for name, library, fast in setting.ways():
        pipe = setting.load(library, fast)
        predict = prediction(setting, pipe)
        with profile(activities=activities) as profiler:
            for _ in range(5):
                predict()
            setting.wait()
        events = profiler.key_averages()
        kind = "self_device_time_total" if setting.cuda else "self_cpu_time_total"
        listed = sorted((each for each in events if getattr(each, kind)), key=lambda each: -getattr(each, kind))
        if setting.cuda:  # operators that launch are listed with the time of what they launched
            listed = [each for each in listed if each.device_type != torch.autograd.DeviceType.CPU]
        table = events.table(sort_by=kind, row_limit=25, max_name_column_width=100)
        text = setting.out / f"kernels-{'plain' if library == 'calotype' and not fast else library}.txt"
        text.write_text(f"{name}: five predictions, batch 1, guided\n{table}\n")
        ways[name] = {
            "file": text.name, "microseconds": sum(getattr(each, kind) for each in listed) / 5,
            "top": [[each.key[:160], each.count / 5, getattr(each, kind) / 5] for each in listed[:25]]}
        del pipe, predict
    return {"ways": ways}


def memory(setting: Setting) -> dict[str, Any]:
    """Peaks of a picture, weights included, and of decoding 2048 x 2048 pixels, weights apart; as it is, in parts, offloaded."""
    setting.wake()
    found: dict[str, Any] = {}

    def noted(name: str, function: Callable[[], Any]) -> None:
        try:
            took: list[float] = []
            found[name] = setting.peak(lambda: took.append(setting.seconds(function)))
            found[name]["seconds"] = took[0]
        except (RuntimeError, ValueError) as error:  # no memory for it; or it cannot be on this device
            found[name] = {"error": str(error).split("\n")[0]}

    modes: list[tuple[str, str, bool, str | None]] = [(name, library, fast, None) for name, library, fast in setting.ways()]
    if hasattr(calotype.StableDiffusionPipeline, "offload"):
        modes += [(f"calotype, offload({mode!r})", "calotype", True, mode) for mode in ("model", "layers")]
    for name, library, fast, mode in modes:
        held: list[Any] = []

        def make(library: str = library, fast: bool = fast, mode: str | None = mode, held: list[Any] = held) -> None:
            if mode is None:
                held.append(setting.load(library, fast))
            else:
                held.append(replace(setting, device="cpu").load(dtype=setting.dtype).offload(mode, setting.device))
            picture(setting, held[0])

        noted(f"load and first picture: {name}", make)
        if held and library == "calotype":
            noted(f"further picture, beside the weights: {name}", lambda held=held: picture(setting, held[0]))
        held.clear()
    side = 256 if setting.cuda else 16
    for name, library, fast in setting.ways():
        pipe = setting.load(library, fast)
        large = torch.randn(1, 4, side, side, device=setting.device, dtype=setting.dtype)
        pixels = side * 2 ** (len(pipe.vae.config.block_out_channels) - 1)
        noted(f"decode {pixels} x {pixels}: {name}", decoding(pipe, large))
        pipe.vae.enable_tiling()
        noted(f"decode {pixels} x {pixels}, tiled: {name}", decoding(pipe, large))
        del pipe, large
    return {"modes": found, "steps": setting.size.steps}
