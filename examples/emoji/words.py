"""Teach the text encoder what people type: `python examples/emoji/words.py` trains that of calotype/emoji on, on a CPU.

The model knows captions ("an emoji of a chipmunk") better than words ("squirrel"). Its text encoder learns to say of words what
it says of the caption of the same picture: not the same hidden states, but such that what the UNet reads from them is the same.
The UNet stays what it was and no picture is noised, so that a step costs a small part of one with the usual loss, and says more
of each word. A killed run goes on by the same command.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from asking import Question, questions_of
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from calotype import DiffusionPipeline
from calotype.prompts.encode import tokenized
from calotype.training import Optimisation, Pictures, Player, Run, Task, Trainer, generator_for
from calotype.training.batches import Draw
from calotype.training.task import Batch, Place, parameter_count

CONFIG = Path(__file__).with_name("words.yaml")


class Settings(Run, Optimisation):
    """What the run is told."""

    pretrained_model_name_or_path: str = Field("calotype/emoji", description="The pipeline to begin with.")
    train_data_dir: Path = Field(description="What prepare.py wrote.")
    asked_together: int = Field(3, ge=1, description="How many ways of asking for one thing are in a batch.")
    blend: float = Field(1.0, gt=0, le=1, description=(
        "How much of what was learned is kept: the result lies so far between the weights before and after."))
    looks: int = Field(32, ge=1, description="Places of pictures, for each attention, from which a text is read in a step.")


class Questions:
    """Captions with some of the ways to ask for the same: which, says a draw's ticket."""

    takes_draws = True

    def __init__(self, questions: Sequence[Question], together: int, seed: int) -> None:
        self.questions, self.together, self.seed = questions, together, seed

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        question = self.questions[draw.index]
        places = torch.randint(len(question.asked), (self.together,), generator=generator_for(self.seed, draw.ticket))
        return {"known": question.known, "asked": [question.asked[place] for place in places.tolist()]}


class Words(Task):
    """Trains a pipeline's text encoder on what its UNet reads from texts."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.pipeline: Any = DiffusionPipeline.from_pretrained(settings.pretrained_model_name_or_path, torch_dtype=torch.float32)
        self.pipeline.fast = False
        self.pipeline.set_progress_bar_config(disable=True)
        self.teacher = copy.deepcopy(self.pipeline.text_encoder).requires_grad_(False).eval()
        self.pipeline.unet.requires_grad_(False)
        self.pipeline.vae.requires_grad_(False)
        self.players = [Player("text_encoder", self.pipeline.text_encoder.requires_grad_(True), self.loss)]
        lines = (settings.train_data_dir / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
        self.data = Questions(questions_of([json.loads(line) for line in lines]), settings.asked_together, settings.seed)
        self.groups = len(self.data)

    def place(self, device: torch.device) -> None:
        self.pipeline.to(device)
        self.teacher.to(device)

    def start(self, say: Callable[[str], None]) -> None:
        say("looking at noised pictures")
        self.seen = seen_by_attention(self.pipeline, self.settings.train_data_dir, self.settings.seed)

    def collate(self, items: Sequence[Any]) -> Batch:
        asked = [text for item in items for text in item["asked"]]
        return {"known": self._ids([item["known"] for item in items]), "asked": self._ids(asked)}

    def _ids(self, texts: list[str]) -> Tensor:
        tokenizer = self.pipeline.tokenizer
        return tokenized(tokenizer, texts, tokenizer.model_max_length).input_ids

    def loss(self, batch: Batch, place: Place) -> tuple[Tensor, dict[str, Tensor]]:
        """How unlike what the UNet reads from words is to what it reads from captions; 1 if it could not tell captions apart."""
        with torch.no_grad():
            known = self.teacher(batch["known"]).last_hidden_state
        asked = self.players[0].module(batch["asked"]).last_hidden_state
        losses = []
        for attention, places in self.seen:
            chosen = torch.randint(len(places), (self.settings.looks,), generator=place.generator, device=places.device)
            looks = places[chosen][None]
            with torch.no_grad():
                right = attention(looks.expand(len(known), -1, -1), known)
                spread = (right - right.mean(0)).square().mean().clamp_min(1e-8)  # 0 if all captions are one
            read = attention(looks.expand(len(asked), -1, -1), asked).unflatten(0, (len(known), -1))
            losses.append(F.mse_loss(read, right[:, None].expand_as(read)) / spread)
        return torch.stack(losses).mean(), {}

    @torch.no_grad()
    def save(self, folder: Path) -> None:
        """Between before and after (Wortsman et al. 2022): most of what was learned, and nearly all of what was known."""
        self.pipeline.text_encoder = copy.deepcopy(self.players[0].network)
        for new, old in zip(self.pipeline.text_encoder.parameters(), self.teacher.parameters(), strict=True):
            new.copy_(old.lerp(new, self.settings.blend))
        self.pipeline.to(torch.float16).save_pretrained(folder)

    def facts(self) -> Iterable[tuple[str, str]]:
        yield "text encoder", f"{parameter_count(self.players[0].parameters()) / 1e6:.2f} million parameters"


@torch.no_grad()
def seen_by_attention(pipeline: Any, folder: Path, seed: int, count: int = 64) -> list[tuple[nn.Module, Tensor]]:
    """The attentions of a UNet to texts, each with what comes to it of `count` noised pictures under their captions: [N, C].

    Timesteps are spread evenly, so every step of a generation has its share.
    """
    pictures = Pictures.open(folder, resolution=pipeline.unet.config.sample_size * pipeline.vae_scale_factor).where(
        split="train").sample(count)
    generator = generator_for(seed)
    caught: dict[nn.Module, list[Tensor]] = {
        module: [] for name, module in pipeline.unet.named_modules() if name.endswith("attn2")}
    hooks = [module.register_forward_pre_hook(lambda module, given: caught[module].append(given[0].flatten(0, 1)))
             for module in caught]
    for number, picture in enumerate(pictures[index] for index in range(len(pictures))):
        latents = pipeline.vae.encode(picture["pixel_values"][None]).latent_dist.mode() * pipeline.vae.config.scaling_factor
        noise = torch.randn(latents.shape, generator=generator)
        timestep = torch.tensor([(2 * number + 1) * pipeline.scheduler.config.num_train_timesteps // (2 * len(pictures))])
        states = pipeline.encode_prompt(picture["caption"], do_classifier_free_guidance=False)[0]
        pipeline.unet(pipeline.scheduler.add_noise(latents, noise, timestep), timestep, encoder_hidden_states=states)
    for hook in hooks:
        hook.remove()
    return [(module, torch.cat(places)) for module, places in caught.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=CONFIG, help="settings")
    settings = Settings.read(file=parser.parse_args().config)
    Trainer(Words(settings), settings).run()


if __name__ == "__main__":
    main()
