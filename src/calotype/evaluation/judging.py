"""One checkpoint, judged: everything that a report says of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..models.latent_space import scaled
from ..tasks import defaults, native_size
from .data import TRAINED, Prompt, Row, evenly, fitted, read_pictures
from .distances import fid, kid, psnr, ssim
from .generating import generated, takes_prompts
from .held_out import HeldOutLoss, held_out_loss
from .reference import Reference

OnPart = Callable[[str, int, int], object]


def evaluate(
    pipeline: Any, reference: Reference, prompts: Sequence[Prompt], *, steps: int | None = None, guidance: float | None = None,
    seed: int = 0, batch: int = 8, measured: int = 128, split: str | None = None, pictures: str | Path | None = None,
    on_part: OnPart = lambda part, done, total: None,
) -> tuple[dict[str, Any], list[Any]]:
    """Judge a pipeline, of texts or of nothing.

    Args:
        reference: the data set.
        prompts: of the pictures that are made; an unconditional pipeline sees their seeds alone. At least 2.
        steps, guidance: of these; by default the pipeline's own.
        seed: of the noise of the loss, and of KID's subsets. batch: pictures at once; results do not depend on it.
        measured: pictures of the data set of which loss and reconstruction are measured, evenly chosen; 0: neither is.
        split: only of those with this `split`.
        pictures: a folder where the pictures made are kept, and found again: see `generated`.
        on_part: is told what is done, how much of it, and of how much.

    Returns:
        What a report says of it (see `docs/evaluation.md`), and the pictures in the order of the prompts.

    Raises:
        ValueError: fewer than two prompts, no pictures of `split`, or a pipeline of other things.
    """
    if len(prompts) < 2:
        raise ValueError(f"there are {len(prompts)} prompts, and pictures are judged by at least 2")
    conditional = takes_prompts(pipeline)
    own = defaults(pipeline)
    begun = time.perf_counter()
    result: dict[str, Any] = {
        "pipeline": type(pipeline).__name__, "scheduler": type(pipeline.scheduler).__name__, "count": len(prompts),
        "steps": own["steps"] if steps is None else steps,
        "guidance": (own["guidance"] if guidance is None else guidance) if conditional else None,
        "dtype": str(pipeline.dtype).removeprefix("torch."), "device": str(pipeline.device)}
    rows = evenly([row for row in reference.rows if split is None or row.split == split], measured) if measured else []
    if measured and not rows:
        raise ValueError(f"no picture of the data set has the split {split!r}; there is "
                         f"{sorted({str(row.split) for row in reference.rows})}")
    if rows:
        result |= _measured(pipeline, rows, seed, batch, on_part)
    made = generated(pipeline, prompts, steps=steps, guidance=guidance, batch=batch, folder=pictures,
                     on_done=lambda done, total: on_part("pictures", done, total))
    result["seconds"] = round(time.perf_counter() - begun, 2)
    told = prompts if conditional else [Prompt("", one.seed) for one in prompts]
    return result | judged_pictures(made, told, reference, seed), made


def judged_pictures(made: Sequence[Any], prompts: Sequence[Prompt], reference: Reference, seed: int = 0) -> dict[str, Any]:
    """What is said of PIL images, wherever they come from: FID, KID, and by their neighbours, for each split of the prompts."""
    size = reference.features.size
    seen = reference.features(fitted(picture, size, size) for picture in made)
    found = reference.search(seen.shape)
    among = reference.seen.all[reference.trained]
    mean, deviation = kid(seen.all, among, seed=seed)
    result: dict[str, Any] = {"fid": fid(seen.all, among), "kid": mean, "kid_deviation": deviation}
    parts = {"all": [*range(len(prompts))]}
    if len({one.split for one in prompts}) > 1:
        for name in ("train", "held_out"):
            parts[name] = [i for i, one in enumerate(prompts) if (one.split in TRAINED) == (name == "train")]
    result["prompts"] = {name: {"count": len(which), **reference.judged(
        type(found)(found.indices[which], found.distances[which]), seen.style[which], [prompts[i] for i in which])}
        for name, which in parts.items()}
    result["neighbours"] = [[Path(reference.rows[i].path).name for i in row] for row in found.indices.tolist()]
    return result


def _measured(pipeline: Any, rows: Sequence[Row], seed: int, batch: int, on_part: OnPart) -> dict[str, Any]:
    """The loss, and the autoencoder's likeness, where there is one."""
    height, width = native_size(pipeline)
    autoencoder = getattr(pipeline, "vae", None) or getattr(pipeline, "vqvae", None)
    clean, likeness = [], []
    for start in range(0, len(rows), batch):
        pictures = read_pictures(rows[start:start + batch], height, width)
        if autoencoder is None:
            clean.append(pictures)
        else:
            latents, again = reconstructed(autoencoder, pictures)
            clean.append(scaled(autoencoder, latents))
            likeness.append(torch.stack([psnr(again, pictures), ssim(again, pictures)]))
        on_part("reconstructions", start + len(pictures), len(rows))
    result: dict[str, Any] = {}
    if likeness:
        mean = torch.cat(likeness, 1).mean(1).tolist()
        result["autoencoder"] = {"psnr": mean[0], "ssim": mean[1], "count": len(rows)}
    on_part("loss", 0, len(rows))
    loss = pipeline_loss(pipeline, torch.cat(clean), [(row.texts or ("",))[0] for row in rows], seed=seed, batch=batch)
    return result | {"loss": loss.to_dict() | {"space": "pixels" if autoencoder is None else "latents"}}


@torch.no_grad()
def reconstructed(autoencoder: Any, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """The likeliest latents of pictures [B, 3, H, W] in [-1, 1], unscaled; and the pictures again. Both float32, on the CPU."""
    encoded = autoencoder.encode(pictures.to(autoencoder.device, autoencoder.dtype))
    latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
    return latents.float().cpu(), autoencoder.decode(latents).sample.float().clamp(-1, 1).cpu()


@torch.no_grad()
def pipeline_loss(
    pipeline: Any, clean: Tensor, texts: Sequence[str], *, bands: int = 10, seed: int = 0, batch: int = 8
) -> HeldOutLoss:
    """The `held_out_loss` of a pipeline's UNet, without guidance.

    Args:
        clean: [N, C, H, W] what the UNet denoises: pictures in [-1, 1], or scaled latents. texts: N; of a pipeline of texts.
    """
    unet, conditional = pipeline.unet, takes_prompts(pipeline)

    states = [pipeline.encode_prompt([*texts[start:start + batch]], do_classifier_free_guidance=False)[0]
              for start in range(0, len(texts), batch)] if conditional else []
    known = torch.cat(states) if states else None

    def predict(sample: Tensor, timesteps: Tensor, indices: Tensor) -> Tensor:
        told = {} if known is None else {"encoder_hidden_states": known[indices.to(known.device)]}
        return unet(sample.to(unet.dtype), timesteps, **told).sample

    return held_out_loss(predict, pipeline.scheduler, clean.to(unet.device), bands=bands, seeds=(seed,), batch=batch)
