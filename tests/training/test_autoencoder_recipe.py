"""The recipe that trains autoencoders: its distances and its adversary by their formulas, its runs, and what they leave."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from calotype import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel
from calotype.training.adversary import Discriminator, balanced, fooling_loss, hinge_loss
from calotype.training.perceptual import PerceptualDistance, edge_distance, pixel_distance, signal_to_noise
from calotype.training.recipes import recipe
from calotype.training.trainer import Trainer

CONFIG = {
    "block_out_channels": [8, 16], "norm_num_groups": 4, "latent_channels": 3, "sample_size": 16, "layers_per_block": 1,
    "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}


def tiny(seed=0):
    torch.manual_seed(seed)
    return AutoencoderKL(**CONFIG).eval()


def smooth(seed, size=16):
    """A picture of a few soft colours, as an array of bytes."""
    coarse = torch.rand(1, 3, 3, 3, generator=torch.Generator().manual_seed(seed))
    large = F.interpolate(coarse, size=size, mode="bilinear", align_corners=True)[0]
    return (large.permute(1, 2, 0) * 255).round().numpy().astype(np.uint8)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    rows = []
    for i in range(12):
        Image.fromarray(smooth(i)).save(folder / f"{i}.png")
        rows.append(json.dumps({"file_name": f"{i}.png", "split": "train" if i < 10 else "held_out"}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    return folder


@pytest.fixture(scope="module")
def beginning(tmp_path_factory):
    """The folder of an autoencoder that was never trained."""
    folder = tmp_path_factory.mktemp("beginning")
    tiny().save_pretrained(folder)
    return folder


def settings(output, pictures, **given):
    return recipe("autoencoder").Settings.read({
        "output_dir": output, "train_data_dir": pictures, "split": "train", "max_train_steps": 6, "train_batch_size": 4,
        "num_validation_images": 0, **given})


def run(output, pictures, **given):
    told = settings(output, pictures, **given)
    return Trainer(recipe("autoencoder")(told), told, lambda text: None).run()


def batch(seed=0, size=16, count=2):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# -- distances ---------------------------------------------------------------------------------------------------------------


def test_distances_of_values_are_those_of_their_names():
    made, originals = batch(1), batch(2)
    difference = (made - originals).abs().double()
    torch.testing.assert_close(pixel_distance(made, originals).double(), difference.mean(), rtol=1e-5, atol=0)
    torch.testing.assert_close(pixel_distance(made, originals, "l2").double(), (difference**2).mean(), rtol=1e-5, atol=0)
    huber = torch.where(difference < 0.1, 5 * difference**2, difference - 0.05).mean()
    torch.testing.assert_close(pixel_distance(made, originals, "huber").double(), huber, rtol=1e-5, atol=0)
    with pytest.raises(ValueError, match="l1.*l2.*huber"):
        pixel_distance(made, originals, "l3")


def test_edges_are_compared_by_place_and_sign_and_not_by_brightness():
    step = torch.zeros(1, 1, 4, 4)
    step[..., 2:] = 1.0  # one edge down the middle: of 12 differences across, 4 are 1; none is down
    flat = torch.zeros(1, 1, 4, 4)
    assert edge_distance(step, step + 0.3).item() == pytest.approx(0, abs=1e-6)
    assert edge_distance(step, flat).item() == pytest.approx(0.5 * 4 / 12)
    assert edge_distance(step, -step).item() == pytest.approx(0.5 * 8 / 12)


def test_signal_to_noise_is_that_of_every_picture():
    originals = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)])
    made = torch.stack([torch.full((3, 8, 8), 0.02), torch.full((3, 8, 8), 1.5)])  # what is above 1 is shown as 1
    decibels = signal_to_noise(made, originals)
    assert decibels[0].item() == pytest.approx(20 * np.log10(2 / 0.02), abs=1e-3)
    assert decibels[1].item() == pytest.approx(10 * np.log10(4e10), abs=1e-3)


def test_perceptual_distance_is_none_between_equals_and_grows_with_blur():
    distance = PerceptualDistance(tiny().encoder)
    pictures = batch(3)

    def blurred(times):
        made = pictures
        for _ in range(times):
            made = F.avg_pool2d(F.pad(made, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        return made

    values = [distance(blurred(times), pictures).item() for times in range(4)]
    assert values[0] == 0
    assert values == sorted(values) and values[1] > 0.01 and values[3] > 1.2 * values[1]


def test_perceptual_distance_is_the_formula_on_features_of_every_level():
    vae = tiny()
    made, originals = batch(4), batch(5)
    seen = []
    hooks = [block.resnets[0].register_forward_hook(lambda _module, _args, out: seen.append(out)) for block in
             vae.encoder.down_blocks]
    with torch.no_grad():
        vae.encoder(torch.cat([made, originals]), lambda block, *args: block(*args))
    for hook in hooks:
        hook.remove()
    levels = []
    for features in seen:
        one, other = (features / features.square().sum(1, keepdim=True).sqrt()).chunk(2)
        levels.append((one - other).square().sum(1).mean())
    assert len(levels) == 2
    torch.testing.assert_close(PerceptualDistance(vae.encoder)(made, originals), torch.stack(levels).mean(), rtol=1e-4, atol=1e-6)


def test_perceptual_distance_moves_pictures_and_never_its_encoder():
    vae = tiny()
    distance = PerceptualDistance(vae.encoder)
    made = batch(6).requires_grad_()
    distance(made, batch(7)).backward()
    assert made.grad.abs().max() > 0
    assert all(p.grad is None for p in [*distance.parameters(), *vae.parameters()])
    assert all(p.requires_grad for p in vae.parameters())  # it is a copy that was frozen


# -- the adversary -----------------------------------------------------------------------------------------------------------


def test_hinge_losses_are_their_formulas():
    of_originals, of_made = torch.tensor([-1.0, 0.5, 2.0]), torch.tensor([-3.0, -0.5, 1.0])
    assert hinge_loss(of_originals, of_made).item() == pytest.approx((2 + 0.5 + 0) / 3 + (0 + 0.5 + 2) / 3)
    assert fooling_loss(of_made).item() == pytest.approx(2.5 / 3)


def test_the_discriminator_judges_patches_each_picture_by_itself():
    torch.manual_seed(0)
    judge = Discriminator(channels=8, layers=2)
    pictures = batch(8, 16, 3)
    verdicts = judge(pictures)
    assert verdicts.shape == (3, 1, 4, 4)
    torch.testing.assert_close(verdicts[1:2], judge(pictures[1:2]), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="multiple of 8"):
        Discriminator(channels=12)
    with pytest.raises(ValueError, match="layers is 0"):
        Discriminator(layers=0)


@pytest.mark.parametrize("strength", [1.0, 1e-8])
def test_both_losses_pull_equally_on_the_last_layer(strength):
    """The gradients of `balanced` are those of the formula written out; a weak adversary is made at most 10,000 times stronger."""
    torch.manual_seed(0)
    judge = Discriminator(channels=8, layers=2)
    body, last = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 3, 3, padding=1)
    pictures, originals = batch(9), batch(10)

    def losses():
        made = last(body(pictures).tanh())
        return made, (made - originals).abs().mean(), strength * fooling_loss(judge(made))

    made, error, fooling = losses()
    loss, balance = balanced(made, error, fooling, last.weight, 0.5)
    loss.backward()
    assert all(p.grad is None for p in judge.parameters())
    got = [p.grad.clone() for p in (body.weight, last.weight, last.bias)]

    _, error, fooling = losses()
    norms = [torch.autograd.grad(one, last.weight, retain_graph=True)[0].norm() for one in (error, fooling)]
    wanted = (norms[0] / (norms[1] + 1e-6)).clamp(max=1e4)
    torch.testing.assert_close(balance, wanted, rtol=1e-4, atol=0)
    expected = error + 0.5 * wanted * fooling
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-7)
    for one, other in zip(got, torch.autograd.grad(expected, [body.weight, last.weight, last.bias]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-7)


# -- runs --------------------------------------------------------------------------------------------------------------------


def test_a_new_autoencoder_learns_and_loads_in_diffusers(pictures, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    trained = run(tmp_path / "out", pictures, model_config_name_or_path=tmp_path / "config.json", max_train_steps=120,
                  learning_rate=5e-3, use_ema=True, ema_decay=0.9, validation_split="held_out", num_validation_images=2)
    losses = list(trained.losses.values())
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:3])
    sheet = Image.open(tmp_path / "out/samples/step-000120.png")
    assert sheet.size == (2 * (2 * 16 + 4) + 4, 16)  # two pairs side by side
    shown = np.asarray(sheet)[:, :16], np.asarray(sheet)[:, 20:36]
    assert np.abs(shown[0].astype(int) - smooth(10)).max() <= 1  # the first of those held out
    assert np.abs(shown[0].astype(float) - shown[1]).mean() < 40
    ours = AutoencoderKL.from_pretrained(tmp_path / "out")
    theirs = diffusers.AutoencoderKL.from_pretrained(tmp_path / "out")
    originals = torch.stack([torch.from_numpy(smooth(i)).permute(2, 0, 1) / 127.5 - 1 for i in range(12)])
    with torch.no_grad():
        torch.testing.assert_close(ours(originals).sample, theirs(originals).sample, rtol=1e-4, atol=1e-5)
        latents = ours.encode(originals[:10]).latent_dist.mode()
    assert (latents * ours.config.scaling_factor).std().item() == pytest.approx(1, rel=1e-3)


def test_a_decoder_alone_leaves_all_latents_as_they_were(pictures, beginning, tmp_path):
    vae = AutoencoderKL.from_pretrained(beginning)
    run(tmp_path / "out", pictures, pretrained_model_name_or_path=str(beginning), train_parts="decoder", edge_weight=0.5,
        perceptual_weight=0.1, use_ema=True)
    trained = AutoencoderKL.from_pretrained(tmp_path / "out")
    after = trained.state_dict()
    for name, tensor in vae.state_dict().items():
        is_decoders = name.startswith(("decoder.", "post_quant_conv."))
        assert torch.equal(after[name], tensor) != is_decoders, name
    with torch.no_grad():
        assert torch.equal(trained.encode(batch()).latent_dist.parameters, vae.encode(batch()).latent_dist.parameters)
    assert trained.config.scaling_factor == vae.config.scaling_factor


def test_cached_latents_give_the_run_that_encoding_gives(pictures, beginning, tmp_path):
    how = {"pretrained_model_name_or_path": str(beginning), "train_parts": "decoder", "random_flip": True}
    with_cache = run(tmp_path / "cached", pictures, **how)
    without = run(tmp_path / "not", pictures, cache_latents=False, **how)
    assert (tmp_path / "cached/cache").is_dir() and not (tmp_path / "not/cache").exists()
    assert list(with_cache.losses.values()) == pytest.approx(list(without.losses.values()), rel=1e-4)


def test_a_run_of_two_players_goes_on_exactly(pictures, beginning, tmp_path):
    how = {"pretrained_model_name_or_path": str(beginning), "adversarial_weight": 0.5, "adversarial_start": 4,
           "discriminator_channels": 8, "discriminator_layers": 2, "perceptual_weight": 0.1, "use_ema": True,
           "gradient_accumulation_steps": 2, "discriminator_learning_rate": 3e-4}
    run(tmp_path / "whole", pictures, **how)
    for steps in (3, 5, 6):  # ended before the adversary came in, and after
        run(tmp_path / "parts", pictures, **{**how, "max_train_steps": steps})
    from safetensors.torch import load_file

    files = sorted(path.name for path in (tmp_path / "whole/checkpoint-6").glob("*.safetensors"))
    assert files == ["autoencoder.average.safetensors", "autoencoder.optimizer.safetensors", "autoencoder.safetensors",
                     "discriminator.optimizer.safetensors", "discriminator.safetensors"]
    for file in files:
        one, other = (load_file(tmp_path / part / "checkpoint-6" / file) for part in ("whole", "parts"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one), file
    taken = load_file(tmp_path / "whole/checkpoint-6/discriminator.optimizer.safetensors")
    assert {int(value) for name, value in taken.items() if name.endswith("/step")} == {2}


def test_players_give_each_other_no_gradients(pictures, beginning, tmp_path):
    told = settings(tmp_path / "out", pictures, pretrained_model_name_or_path=str(beginning), adversarial_weight=0.5,
                    discriminator_channels=8, discriminator_layers=2, kl_weight=0.0)
    trainer = Trainer(recipe("autoencoder")(told), told, lambda text: None)
    task = trainer.task
    items = task.collate([task.data[i] for i in range(4)])
    from calotype.training.task import Place

    loss, told_of = task.players[0].loss(items, Place(0, 0))
    loss.backward()
    assert all(p.grad is None for p in task.players[1].parameters())
    assert {"error", "psnr", "fooling", "balance", "divergence"} <= told_of.keys()
    grads = [p.grad.clone() for p in task.players[0].parameters()]
    loss, _ = task.players[1].loss(items, Place(0, 0, 0, 1))
    loss.backward()
    assert all(torch.equal(p.grad, grad) for p, grad in zip(task.players[0].parameters(), grads, strict=True))
    assert all(p.grad.abs().sum() > 0 for p in task.players[1].parameters())


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory, beginning):
    """The bundled pipeline with a tiny autoencoder and UNet."""
    folder = tmp_path_factory.mktemp("pipeline")
    made = DiffusionPipeline.from_pretrained("calotype/emoji")
    torch.manual_seed(0)
    made.vae = AutoencoderKL.from_pretrained(beginning)
    made.unet = UNet2DConditionModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",), attention_head_dim=4,
        cross_attention_dim=made.unet.config.cross_attention_dim)
    made.save_pretrained(folder)
    return folder


def test_a_pipeline_gets_the_decoder_and_keeps_everything_else(pictures, pipeline, tmp_path):
    run(tmp_path / "out", pictures, pretrained_model_name_or_path=str(pipeline), train_parts="decoder", perceptual_weight=0.1,
        perceptual_model=str(pipeline))
    before, after = (DiffusionPipeline.from_pretrained(folder) for folder in (pipeline, tmp_path / "out"))
    how = {"prompt": "an apple", "num_inference_steps": 2, "height": 16, "width": 16, "output_type": "latent"}
    one, other = (pipe(**how, generator=torch.Generator().manual_seed(0)).images for pipe in (before, after))
    assert torch.equal(one, other)
    assert not torch.equal(before.vae.decoder.conv_out.weight, after.vae.decoder.conv_out.weight)


def test_what_cannot_be_is_named(pictures, beginning, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    both = {"pretrained_model_name_or_path": str(beginning), "model_config_name_or_path": tmp_path / "config.json"}
    with pytest.raises(ValueError, match="not both"):
        settings(tmp_path, pictures, **both)
    with pytest.raises(ValueError, match="random: train both"):
        settings(tmp_path, pictures, model_config_name_or_path=tmp_path / "config.json", train_parts="decoder")
    with pytest.raises(ValueError, match="perceptual_weight is 0"):
        settings(tmp_path, pictures, perceptual_model=str(beginning))
    with pytest.raises(ValueError, match=r"reconstruction.*'l1', 'l2' or 'huber'"):
        settings(tmp_path, pictures, reconstruction="l3")
    with pytest.raises(ValueError, match="discriminator_channels.*multiple of 8"):
        settings(tmp_path, pictures, discriminator_channels=12)
    task = recipe("autoencoder")
    with pytest.raises(ValueError, match="multiple of 2"):
        task(settings(tmp_path, pictures, pretrained_model_name_or_path=str(beginning), resolution=17))
    UNet2DConditionModel(
        block_out_channels=(8,), norm_num_groups=4, attention_head_dim=4, layers_per_block=1, cross_attention_dim=8,
        down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",)).save_pretrained(tmp_path / "unet")
    with pytest.raises(ValueError, match="UNet2DConditionModel, and no AutoencoderKL"):
        task(settings(tmp_path, pictures, pretrained_model_name_or_path=str(tmp_path / "unet")))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        task(settings(tmp_path, pictures, pretrained_model_name_or_path=str(tmp_path / "nowhere")))
