"""What a run is told: typed settings, by the names that people's training scripts have, from a YAML file or flags."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..files import local_path, staged_file
from ..words import nearest
from .learning_rates import POLYNOMIAL_END
from .timesteps import timestep_sampler

_Self = TypeVar("_Self", bound="Settings")


class Settings(BaseModel):
    """Settings that are checked when they are made, and do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _at_home(cls, value: Any) -> Any:
        """`~` is the home folder, in a file of settings too, which no shell reads."""
        return local_path(value) if isinstance(value, Path) else value

    @classmethod
    def read(cls: type[_Self], given: Mapping[str, Any] | None = None, file: Path | str | None = None) -> _Self:
        """Settings from a YAML file, and on top of it those that are given.

        Raises:
            ValueError: a setting that there is not, is missing, or has a value that it cannot have; every one is named.
        """
        entries = dict(_read_yaml(local_path(file)) if file is not None else {}) | dict(given or {})
        try:
            return cls.model_validate(entries)
        except ValidationError as error:
            where = f" of {str(file)!r}" if file is not None else ""
            raise ValueError(f"settings{where} that cannot be:\n" + "\n".join(cls._faults(error))) from None

    @classmethod
    def _faults(cls, error: ValidationError) -> Iterator[str]:
        for fault in error.errors():
            name = str(fault["loc"][0]) if fault["loc"] else ""
            if fault["type"] == "extra_forbidden":
                yield f"  {name}: there is no such setting{nearest(name, cls.model_fields)}"
            elif fault["type"] == "missing":
                yield f"  {name}: is needed ({cls.model_fields[name].description})"
            else:
                told = fault["msg"].removeprefix("Value error, ")
                near = nearest(fault["input"], re.findall(r"'(\w+)'", told)) if fault["type"] == "literal_error" else ""
                yield f"  {name}: is {fault['input']!r:.60}, but {told[0].lower()}{told[1:]}{near}" if name else f"  {told}"

    def write(self, file: Path) -> None:
        """Write them as the YAML file that `read` reads."""
        with staged_file(file) as scratch:
            scratch.write_text(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False), encoding="utf-8")


def _read_yaml(file: Path) -> Mapping[str, Any]:
    try:
        entries = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(file)!r} is no YAML: {error}") from None
    if not isinstance(entries, Mapping):
        raise ValueError(f"{str(file)!r} must hold settings, `name: value` in each line")
    return entries


class Run(Settings):
    """The run."""

    output_dir: Path = Field(description="Where the result, its settings, samples and checkpoints go.")
    max_train_steps: int | None = Field(None, ge=1, description="How many steps; or say num_train_epochs.")
    num_train_epochs: int | None = Field(None, ge=1, description="How many times every picture is seen, or more.")
    seed: int = Field(0, ge=0, le=2**62, description="All that is random follows from it.")
    checkpointing_steps: int = Field(500, ge=1, description="A checkpoint after every so many steps, and at the end.")
    checkpoints_total_limit: int | None = Field(2, ge=1, description="How many checkpoints are kept: the last ones.")
    resume_from_checkpoint: str = Field("latest", description=(
        "latest: go on from the last checkpoint in output_dir if there is one; none: begin anew; or a checkpoint's folder."))
    validation_steps: int = Field(500, ge=1, description="Sample pictures after every so many steps.")
    validation_seed: int = Field(0, ge=0, le=2**62, description="Seed of the sample pictures.")
    num_validation_images: int = Field(4, ge=0, description="How many sample pictures, of each prompt; 0 for none.")
    validation_inference_steps: int = Field(25, ge=1, description="Steps in which they are made.")
    logging_steps: int = Field(10, ge=1, description="Loss and speed are read every so many steps.")
    report_to: Literal["none", "tensorboard", "wandb"] = Field("none", description="Who else is told.")
    dataloader_num_workers: int = Field(0, ge=0, description="Processes that read pictures.")

    @model_validator(mode="after")
    def _ends(self) -> Any:
        if (self.max_train_steps is None) == (self.num_train_epochs is None):
            raise ValueError("give either max_train_steps or num_train_epochs: one of them says when the run ends")
        return self


class Optimisation(Settings):
    """The optimisation."""

    train_batch_size: int = Field(16, ge=1, description="Pictures in a batch, for each process.")
    gradient_accumulation_steps: int = Field(1, ge=1, description="Batches that make one step together.")
    learning_rate: float = Field(1e-4, gt=0, description="The highest learning rate.")
    lr_scheduler: Literal[
        "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial", "inverse_sqrt",
        "warmup_stable_decay", "wsd"] = Field("constant", description="How it changes: constant, cosine, linear, …")
    lr_warmup_steps: int = Field(0, ge=0, description="Steps in which it rises from 0.")
    lr_num_cycles: int = Field(1, ge=1, description="How often cosine_with_restarts falls.")
    lr_power: float = Field(1.0, gt=0, description="The power by which polynomial falls.")
    scale_lr: bool = Field(False, description="learning_rate is of one picture: multiply it by the pictures of a step.")
    optimizer: Literal["adamw", "adam", "sgd", "adafactor", "adamw8bit"] = Field(
        "adamw", description="adamw, adam, sgd, adafactor or adamw8bit.")
    use_8bit_adam: bool = Field(False, description="The same as --optimizer adamw8bit.")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="Decay of the mean of gradients.")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="Decay of the mean of their squares.")
    adam_weight_decay: float = Field(1e-2, ge=0, description="Decay of weights.")
    adam_epsilon: float = Field(1e-8, gt=0, description="Added to the root of the mean of squares.")
    max_grad_norm: float = Field(1.0, gt=0, description="A longer gradient is shortened to it.")
    mixed_precision: Literal["no", "fp16", "bf16"] = Field("no", description="Type they work in; weights stay float32.")
    allow_tf32: bool = Field(False, description="Matrix products in TensorFloat-32: quicker on Nvidia's GPUs since Ampere.")
    gradient_checkpointing: bool = Field(False, description="Less memory, slower: activations are computed again.")
    channels_last: bool = Field(True, description="The memory layout in which convolutions are quicker.")
    shard: bool = Field(False, description="Divide weights and optimiser among the processes (FSDP).")
    use_ema: bool = Field(False, description="Keep an average of the weights, and save it as the result.")
    ema_decay: float = Field(0.9999, ge=0, lt=1, description="How slowly it follows.")
    ema_power: float = Field(0.75, gt=0, description="It follows more quickly at first: at most 1 - (1 + step)^-power.")

    @model_validator(mode="after")
    def _warms_up(self) -> Any:
        if self.lr_scheduler == "constant" and self.lr_warmup_steps:
            raise ValueError("lr_scheduler 'constant' has no warm-up: leave lr_warmup_steps out, or take 'constant_with_warmup'")
        if self.lr_scheduler == "inverse_sqrt" and not self.lr_warmup_steps:
            raise ValueError("lr_scheduler 'inverse_sqrt' falls from the end of its warm-up on: say lr_warmup_steps too")
        if self.lr_scheduler == "polynomial" and not self.learning_rate > POLYNOMIAL_END:
            raise ValueError(f"lr_scheduler 'polynomial' ends at the rate {POLYNOMIAL_END}: learning_rate must be greater")
        if self.use_8bit_adam and "optimizer" in self.model_fields_set and self.optimizer not in ("adamw", "adamw8bit"):
            raise ValueError(f"use_8bit_adam asks for the optimizer 'adamw8bit', and optimizer is {self.optimizer!r}: say one")
        return self


class Noise(Settings):
    """The objective."""

    prediction_type: Literal["epsilon", "v_prediction", "sample", "flow_prediction"] | None = Field(
        None, description="What the network learns to predict; by default what the scheduler says.")
    timestep_sampler: str = Field("uniform", description=(
        "How timesteps are drawn: uniform, stratified, logit_normal, mode, shifted, bounded, range, earlier, later, log_normal."))
    timestep_sampler_options: dict[str, bool | float] = Field({}, description=(
        "What that sampler takes, each as name=value: mean and std (logit_normal, log_normal), scale (mode), shift (shifted), "
        "low and high (bounded), begin, end and multiplier (range), multiplier and portion (earlier, later), stratified."))
    snr_gamma: float | None = Field(None, gt=0, description="Min-SNR weighting with this bound, mostly 5.")
    noise_offset: float = Field(0.0, ge=0, description="Noise that is one value a channel, so much of it.")
    input_perturbation: float = Field(0.0, ge=0, description="Noise on the noise that the network is shown.")


    @field_validator("timestep_sampler_options", mode="before")
    @classmethod
    def _options(cls, given: Any) -> Any:
        """Options as they are typed, `["begin=0.1", …]`, as a mapping."""
        if not isinstance(given, list):
            return given
        pairs = [str(one).partition("=") for one in given]
        if wrong := [one for one, parts in zip(given, pairs, strict=True) if not all(parts)]:
            raise ValueError(f"must be written as name=value, which {wrong[0]!r} is not")
        return {name.strip(): yaml.safe_load(value) for name, _, value in pairs}

    @model_validator(mode="after")
    def _draws(self) -> Any:
        try:
            timestep_sampler(self.timestep_sampler, **self.timestep_sampler_options)
        except TypeError as error:  # of an option, of which Pydantic would make a fault of ours
            raise ValueError(f"{error}: see timestep_sampler_options") from None
        return self


class Framed(Settings):
    """How pictures are framed."""

    resolution: int | None = Field(None, ge=8, description="Pixels that pictures are made to have, each way.")
    center_crop: bool = Field(True, description="Cut out the middle and not some part.")
    random_flip: bool = Field(False, description="Mirror half of the pictures.")
    image_interpolation_mode: Literal["lanczos", "bicubic", "bilinear", "nearest"] = Field(
        "lanczos", description="How they are resized.")


class Data(Framed):
    """The pictures."""

    train_data_dir: Path | None = Field(None, description="A folder of pictures; metadata.jsonl in it has captions.")
    dataset_name: str | None = Field(None, description="Or a data set of the Hub.")
    dataset_config_name: str | None = Field(None, description="Which configuration of it, if it has several.")
    cache_dir: Path | None = Field(None, description="Where it is downloaded to.")
    image_column: str = Field("image", description="Which column of it has the pictures.")
    caption_column: str = Field("text", description="Which column has the captions.")
    split: str | None = Field(None, description="Only pictures whose metadata say this `split`; of a data set, its split.")
    max_train_samples: int | None = Field(None, ge=1, description="Train on so many of them at most; the seed says which.")
    aspect_buckets: bool = Field(False, description="Keep the pictures' shapes, in batches of one shape.")

    @model_validator(mode="after")
    def _is_somewhere(self) -> Any:
        if (self.train_data_dir is None) == (self.dataset_name is None):
            raise ValueError("give either train_data_dir or dataset_name: one of them says where the pictures are")
        return self


class Text(Settings):
    """The captions."""

    caption_dropout: float = Field(0.1, ge=0, le=1, description="Share of captions left empty, so that guidance works.")
    cache_latents: bool = Field(True, description="Encode pictures and captions once, before the training.")
    validation_prompt: list[str] = Field([], description="What sample pictures are made of; can be given more than once.")
