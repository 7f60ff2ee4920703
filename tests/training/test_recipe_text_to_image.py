"""The recipe "text-to-image": what is trained and what is not, from settings to a pipeline that Diffusers runs too."""

from __future__ import annotations

import json
from itertools import islice

import pytest
import torch
from torch.utils.data import DataLoader

import calotype
from calotype.training.batches import Batches, Draw
from calotype.training.caches import LatentCache
from calotype.training.captions import Captions
from calotype.training.recipes.data import open_pictures
from calotype.training.task import Place
from calotype.training.trainer import Trainer

from .made_pictures import (
    assert_same_bits,
    assert_same_picture,
    held_out,
    make_pictures,
    make_tiny,
    save_tiny,
    settings_of,
    state_of,
    task_of,
    train,
)


@pytest.fixture
def told(tiny_folder, pictures_folder, tmp_path):
    return {"pretrained_model_name_or_path": str(tiny_folder), "train_data_dir": pictures_folder, "output_dir": tmp_path / "out",
            "train_batch_size": 8, "max_train_steps": 3, "learning_rate": 4e-3}


@pytest.fixture(scope="module")
def trained(tiny_folder, pictures_folder, tmp_path_factory):
    """A run of some length, with the text encoder."""
    folder = tmp_path_factory.mktemp("text-to-image") / "out"
    task = task_of("text-to-image", pretrained_model_name_or_path=str(tiny_folder), train_data_dir=pictures_folder,
                   output_dir=folder, train_batch_size=8, max_train_steps=60, learning_rate=6e-3, train_text_encoder=True)
    before, _, after = train(task)
    return folder, before, after


def test_learns(trained):
    _, before, after = trained
    assert after < 0.5 * before  # measured: 0.30


def test_makes_the_same_pictures_here_and_in_diffusers(trained, diffusers):
    made = []
    for library in (calotype, diffusers):
        pipeline = library.StableDiffusionPipeline.from_pretrained(trained[0], safety_checker=None, requires_safety_checker=False)
        pipeline.set_progress_bar_config(disable=True)
        made.append(pipeline("a red disc", generator=torch.Generator().manual_seed(0), num_inference_steps=4,
                             output_type="np").images)
    assert made[0].shape == (1, 16, 16, 3)
    assert_same_picture(*made)


@pytest.mark.parametrize("with_text", [False, True])
def test_what_is_frozen_is_saved_bit_for_bit(told, tiny_folder, with_text):
    train(task_of("text-to-image", **told | {"train_text_encoder": with_text, "use_ema": True}))
    before, after = (calotype.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
                     for folder in (tiny_folder, told["output_dir"]))
    frozen = ["vae"] if with_text else ["vae", "text_encoder"]
    for part in frozen:
        assert_same_bits(state_of(getattr(before, part)), state_of(getattr(after, part)))
    for part in {"unet", "text_encoder"} - set(frozen):
        old, new = state_of(getattr(before, part)), state_of(getattr(after, part))
        changed = {key for key in old if not torch.equal(old[key], new[key])}
        assert len(changed) > 0.9 * len(old)
    for part in ("tokenizer", "scheduler"):
        for file in (tiny_folder / part).iterdir():
            assert json.loads(file.read_text()) == json.loads((told["output_dir"] / part / file.name).read_text()) \
                if file.suffix == ".json" else file.read_bytes() == (told["output_dir"] / part / file.name).read_bytes()


def test_the_same_weights_with_and_without_caches(told, tmp_path):
    ends = []
    for cached in (True, False):
        task = task_of("text-to-image", **told | {
            "cache_latents": cached, "output_dir": tmp_path / str(cached), "random_flip": True, "caption_dropout": 0.3,
            "learning_rate": 1e-3, "max_train_steps": 8, "optimizer": "sgd"})
        train(task)
        assert isinstance(task.data, LatentCache) == cached == (task.texts is not None)
        ends.append(state_of(task.pipeline.unet))
    for key, one in ends[0].items():
        torch.testing.assert_close(one, ends[1][key], rtol=1e-4, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")


def test_captions_are_dropped(told):
    task = task_of("text-to-image", **told | {"caption_dropout": 0.25})
    drawn = [task.data[Draw(ticket % 24, ticket)]["caption"] for ticket in range(800)]
    assert 0.2 < drawn.count("") / 800 < 0.3  # of 800 draws at 0.25, the standard deviation is 0.015
    task.start(lambda text: None)
    batch = task.collate([task.data[Draw(ticket % 24, ticket)] for ticket in range(8)])
    assert batch["caption"] == drawn[:8] and "" in drawn[:8]
    for text, caption in zip(batch["text"], drawn, strict=False):
        expected = task.pipeline.encode_prompt(caption, "cpu", 1, False)[0][0]
        torch.testing.assert_close(text, expected)


def test_random_crops_are_not_kept(told):
    said = []
    settings = settings_of("text-to-image", **told | {"center_crop": False})
    task = task_of("text-to-image", **told | {"center_crop": False})
    trainer = Trainer(task, settings, said.append)
    assert not isinstance(task.data, LatentCache) and task.texts is not None
    assert [one for one in said if "random crops" in one and "cache_latents" in one]
    trainer.run()


def test_start_can_be_called_again(told):
    task = task_of("text-to-image", **told)
    for _ in range(2):
        task.start(lambda text: None)
    assert isinstance(task.data, LatentCache) and not isinstance(task.data.pictures, LatentCache)


def test_a_loss_computed_by_hand(told):
    """What is trained on: scaled latents, noised as the scheduler says, under the texts that the pipeline would encode."""
    task = task_of("text-to-image", **told | {"cache_latents": False, "noise_offset": 0.1})
    batch = next(iter(DataLoader(task.data, batch_sampler=Batches(task.groups, 4, 0), collate_fn=task.collate)))
    with torch.no_grad():
        loss, _ = task.loss(batch, Place(1, 2))
        generator, pipeline = Place(1, 2).generator, task.pipeline
        latents = pipeline.vae.encode(batch["pixel_values"]).latent_dist.sample(generator) * 0.18215
        noised = task.objective.noised(latents, generator)
        text = pipeline.encode_prompt(batch["caption"], "cpu", 1, False)[0]
        sample = pipeline.scheduler.add_noise(latents, noised.noise, noised.timesteps)
        expected = (pipeline.unet(sample, noised.timesteps, text).sample - noised.noise).square().mean()
    torch.testing.assert_close(loss, expected)


def test_text_encoders_that_go_by_a_mask(told, tmp_path):
    pipeline = make_tiny()
    pipeline.text_encoder.register_to_config(use_attention_mask=True)
    pipeline.save_pretrained(tmp_path / "masked")
    losses = []
    for cached, trained in ((True, False), (False, False), (True, True)):
        task = task_of("text-to-image", **told | {
            "pretrained_model_name_or_path": str(tmp_path / "masked"), "caption_dropout": 0.0, "cache_latents": cached,
            "train_text_encoder": trained})
        task.start(lambda text: None)
        losses.append(held_out(task, 1))
    task.denoiser.text_encoder.register_to_config(use_attention_mask=False)
    unmasked = held_out(task, 1)
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5) and abs(unmasked - losses[0]) > 1e-5 * losses[0]


# -- the model ----------------------------------------------------------------------------------------------------------


def test_new_weights(told, tiny_folder):
    given = told | {"new_weights": ["unet", "text_encoder"], "train_text_encoder": True}
    tiny = calotype.StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None)
    one, same, other = (task_of("text-to-image", **given | {"seed": seed}).pipeline for seed in (0, 0, 1))
    assert_same_bits(state_of(one.unet, one.text_encoder), state_of(same.unet, same.text_encoder))
    assert_same_bits(state_of(one.vae), state_of(tiny.vae))
    for part in ("unet", "text_encoder"):
        assert {key: value.shape for key, value in getattr(one, part).state_dict().items()} \
            == {key: value.shape for key, value in getattr(tiny, part).state_dict().items()}
        for peer in (tiny, other):
            mine, theirs = (next(p for p in getattr(pipeline, part).parameters() if p.dim() > 1) for pipeline in (one, peer))
            assert not torch.equal(mine, theirs)


def test_another_unet_and_another_autoencoder(told, tmp_path):
    unet = dict(make_tiny(block_out_channels=(16, 16), layers_per_block=2).unet.config)
    (tmp_path / "unet.json").write_text(json.dumps({key: value for key, value in unet.items() if not key.startswith("_")}))
    torch.manual_seed(7)
    vae = calotype.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, scaling_factor=0.5, latent_channels=4,
                                 down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",))
    vae.save_pretrained(tmp_path / "vae")
    task = task_of("text-to-image", **told | {
        "new_weights": ["unet"], "unet_config": tmp_path / "unet.json",
        "pretrained_vae_model_name_or_path": str(tmp_path / "vae")})
    assert task.pipeline.unet.config.block_out_channels == [16, 16] and (task.factor, task.size) == (1, 8)
    train(task)
    saved = calotype.StableDiffusionPipeline.from_pretrained(told["output_dir"], safety_checker=None)
    assert_same_bits(state_of(saved.vae), state_of(vae))
    assert saved.vae.config.scaling_factor == 0.5 and saved.unet.config.layers_per_block == 2
    assert saved("a red disc", num_inference_steps=1, output_type="np").images.shape == (1, 8, 8, 3)


def test_what_it_predicts_is_saved(told, trained):
    task = task_of("text-to-image", **told | {"prediction_type": "v_prediction", "snr_gamma": 5.0, "max_train_steps": 1})
    train(task)
    saved = calotype.StableDiffusionPipeline.from_pretrained(told["output_dir"], safety_checker=None)
    assert saved.scheduler.config.prediction_type == "v_prediction" and saved.scheduler.config.skip_prk_steps is True
    assert json.loads((trained[0] / "scheduler" / "scheduler_config.json").read_text())["prediction_type"] == "epsilon"


def test_samples_are_of_the_prompts(told):
    task = task_of("text-to-image", **told | {
        "validation_prompt": ["a red disc", "a blue disc"], "num_validation_images": 2, "validation_inference_steps": 2,
        "validation_seed": 4})
    made = task.samples()
    assert [picture.size for picture in made] == [(16, 16)] * 4
    again = task.pipeline("a blue disc", generator=torch.Generator().manual_seed(5), num_inference_steps=2).images[0]
    assert again.tobytes() == made[1].tobytes()


# -- the pictures -------------------------------------------------------------------------------------------------------


def test_pictures_of_many_shapes(told, tmp_path):
    told["train_data_dir"] = make_pictures(tmp_path / "wide", 6, (32, 16))
    make_pictures(told["train_data_dir"] / "square", 6)
    task = task_of("text-to-image", **told | {"aspect_buckets": True, "train_batch_size": 3})
    Trainer(task, task.settings, lambda text: None).run()
    shapes = {tuple(task.collate([task.data[index] for index in group])["moments"].shape[2:]) for group in task.groups}
    assert shapes == {(8, 8), (6, 10)}


def test_fewer_pictures(told):
    def names(**changes):
        pictures = open_pictures(settings_of("text-to-image", **told | changes), 16, Captions())
        return [pictures.entry(i)["file_name"] for i in range(len(pictures))]

    few, same, other = (names(max_train_samples=5, split="train", seed=seed) for seed in (0, 0, 1))
    assert few == same != other and few == sorted(set(few)) and len(few) == 5 and set(few) < set(names(split="train"))
    assert names(max_train_samples=99) == names() and len(names()) == 24


# -- the optimisation ---------------------------------------------------------------------------------------------------


def test_learning_rates_of_a_step(told):
    told |= {"learning_rate": 1e-3, "gradient_accumulation_steps": 2, "train_batch_size": 4, "lr_scheduler": "polynomial"}
    for changes, expected in (({}, 1e-3), ({"scale_lr": True}, 8e-3)):
        task = task_of("text-to-image", **told | changes | {
            "lr_power": 2.0, "max_train_steps": 2, "resume_from_checkpoint": "none"})
        trainer = Trainer(task, task.settings, lambda text: None)
        trainer.run()
        last = trainer.optimizers["denoiser"].param_groups[0]["lr"]
        assert last == pytest.approx((expected - 1e-7) / 4 + 1e-7)  # after half of two steps, squared, down to 1e-7
    task = task_of("text-to-image", **told | {"lr_scheduler": "cosine_with_restarts", "lr_num_cycles": 3, "max_train_steps": 12,
                                            "resume_from_checkpoint": "none"})
    rate = Trainer(task, task.settings, lambda text: None).rate
    assert [step for step in range(12) if rate(step) == 1] == [0, 4, 8]


@pytest.mark.parametrize(("allowed", "precision"), [(True, "high"), (False, "highest")])
def test_tensor_float_32(told, allowed, precision):
    task, seen = task_of("text-to-image", **told | {"allow_tf32": allowed, "max_train_steps": 1}), []
    loss = task.players[0].loss

    def watched(*given):
        seen.append(torch.get_float32_matmul_precision())
        return loss(*given)

    task.players[0].loss = watched
    Trainer(task, task.settings, lambda text: None).run()
    assert seen == [precision] and torch.get_float32_matmul_precision() == "highest"


# -- what cannot be -----------------------------------------------------------------------------------------------------


def test_refuses_what_cannot_be(told, tmp_path):
    def refused(words, kind=ValueError, **changes):
        with pytest.raises(kind, match=words):
            task_of("text-to-image", **{name: value for name, value in (told | changes).items() if value is not None})

    (tmp_path / "empty").mkdir()
    refused("there are no pictures in", FileNotFoundError, train_data_dir=tmp_path / "empty")
    refused("no column 'label_'.*did you mean 'label'", caption_column="label_")
    refused("split = 'tst'; there are test, train", split="tst")
    refused("resolution is 17, but must be a multiple of 2.*16 or 18", resolution=17)
    refused("new_weights does not ask for one", unet_config=tmp_path / "unet.json")
    refused("train_text_encoder must be true", new_weights=["text_encoder"])
    refused("takes 5 channels.*must be 4", pretrained_model_name_or_path=str(save_tiny(tmp_path / "depth", in_channels=5)))
    wider = dict(make_tiny(cross_attention_dim=24).unet.config)
    (tmp_path / "unet.json").write_text(json.dumps({key: value for key, value in wider.items() if not key.startswith("_")}))
    refused("takes texts of 24 channels.*gives 16", new_weights=["unet"], unet_config=tmp_path / "unet.json")
    calotype.DDPMPipeline(calotype.UNet2DModel(
        sample_size=8, block_out_channels=(8,), norm_num_groups=4, down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",)), calotype.DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    refused("is a DDPMPipeline, and no text-to-image pipeline: it has no vae, text_encoder, tokenizer",
            pretrained_model_name_or_path=str(tmp_path / "ddpm"))
    refused("not-there", FileNotFoundError, pretrained_model_name_or_path=str(tmp_path / "not-there"))
    with pytest.raises(ValueError, match="caption_drop: there is no such setting; did you mean 'caption_dropout'"):
        settings_of("text-to-image", **told | {"caption_drop": 0.1})


def test_batches_of_epochs(told):
    given = {name: value for name, value in told.items() if name != "max_train_steps"}
    task = task_of("text-to-image", **given | {"num_train_epochs": 2})
    assert Trainer(task, task.settings, lambda text: None).steps == 6
    drawn = [draw.index for few in islice(Batches(task.groups, 8, 0), 6) for draw in few]
    assert sorted(drawn) == sorted([*range(24), *range(24)])
