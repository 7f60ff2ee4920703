"""Caches: what is read is what would have been made, and is made again where it would be something else."""

from __future__ import annotations

import json
import os
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader

from calotype import AutoencoderKL
from calotype.training.batches import Batches, Draw
from calotype.training.caches import LatentCache, TextCache, sample_moments
from calotype.training.captions import Captions
from calotype.training.pictures import Pictures

KINDS = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}


@pytest.fixture
def vae():
    torch.manual_seed(0)
    return AutoencoderKL(block_out_channels=[8, 8], norm_num_groups=4, latent_channels=2, **KINDS)


@pytest.fixture
def folder(tmp_path):
    """Five pictures, all of another size."""
    for i in range(5):
        values = np.random.default_rng(i).integers(0, 256, (20 + i, 24, 3), dtype=np.uint8)
        (tmp_path / "pictures").mkdir(exist_ok=True)
        Image.fromarray(values).save(tmp_path / "pictures" / f"{i}.png")
        (tmp_path / "pictures" / f"{i}.txt").write_text(f"picture {i}\nnumber {i}")
    return tmp_path


def pictures_in(folder, **how):
    return Pictures.open(folder / "pictures", **{"resolution": 16, "center_crop": True, "random_flip": True} | how)


class Counting:
    """An autoencoder that counts what it encodes and may be killed at it."""

    def __init__(self, vae, most=1000):
        self.vae, self.count, self.most = vae, 0, most
        self.config, self.parameters, self.state_dict = vae.config, vae.parameters, vae.state_dict

    def encode(self, x):
        if self.count + len(x) > self.most:
            raise KeyboardInterrupt
        self.count += len(x)
        return self.vae.encode(x)


def encodings(pictures, vae, folder, **how):
    """How many pictures a build encodes."""
    counting = Counting(vae)
    LatentCache.build(pictures, counting, folder / "cache", **how)
    return counting.count


# -- latents ----------------------------------------------------------------------------------------------------------


def test_the_same_latents_as_without_a_cache(folder, vae):
    pictures = pictures_in(folder, captions=Captions(dropout=0.3), seed=2)
    cache = LatentCache.build(pictures, vae, folder / "cache", batch_size=1, per_shard=2)
    assert len(cache) == 5 and cache.groups == pictures.groups
    for ticket in range(12):
        draw = Draw(ticket % 5, ticket)
        plain, cached = pictures[draw], cache[draw]
        assert (cached["caption"], cached["index"]) == (plain["caption"], plain["index"])
        with torch.no_grad():
            expected = vae.encode(plain["pixel_values"][None]).latent_dist.sample(torch.Generator().manual_seed(ticket))
        assert torch.equal(sample_moments(cached["moments"][None], torch.Generator().manual_seed(ticket)), expected)
        assert torch.equal(sample_moments(cached["moments"], torch.Generator().manual_seed(ticket)), expected[0])
    assert cache[3]["caption"] == "picture 3"


def test_batches_change_no_more_than_rounding(folder, vae):
    alone, together = (LatentCache.build(pictures_in(folder), vae, folder / str(n), batch_size=n) for n in (1, 4))
    for draw in (Draw(i, i + t) for i in range(5) for t in range(3)):
        torch.testing.assert_close(alone[draw]["moments"], together[draw]["moments"], rtol=1e-5, atol=1e-6)


def test_in_a_loader_with_workers(folder, vae):
    pictures = pictures_in(folder)
    cache = LatentCache.build(pictures, vae, folder / "cache", num_workers=1, per_shard=2)
    loaders = [DataLoader(cache, batch_sampler=Batches(cache.groups, 2, 0), num_workers=n) for n in (0, 2)]
    for alone, shared in islice(zip(*loaders, strict=True), 4):
        assert torch.equal(alone["moments"], shared["moments"]) and alone["caption"] == shared["caption"]
        assert alone["moments"].shape == (2, 4, 8, 8)


def test_what_is_read_may_be_changed(folder, vae):
    cache = LatentCache.build(pictures_in(folder), vae, folder / "cache")
    before = cache[0]["moments"].clone()
    cache[0]["moments"].zero_()
    assert torch.equal(cache[0]["moments"], before)


def test_half_precision_is_near(folder, vae):
    full, half = (LatentCache.build(pictures_in(folder), vae, folder / "cache", dtype=dtype)[0]["moments"]
                  for dtype in (torch.float32, torch.float16))
    assert half.dtype == torch.float16 and 0 < (full - half.float()).abs().max() < 1e-3 * full.abs().max()
    assert sample_moments(half).dtype == torch.float32


def test_buckets_are_encoded_by_size(folder, vae):
    image = Image.fromarray(np.zeros((10, 40, 3), np.uint8))
    image.save(folder / "pictures" / "wide.png")
    pictures = pictures_in(folder, buckets=True, bucket_step=8, resolution=32)
    cache = LatentCache.build(pictures, vae, folder / "cache")
    for i in range(6):
        _, height, width = pictures[i]["pixel_values"].shape
        assert cache[i]["moments"].shape == (4, height // 2, width // 2)
    assert len(cache.groups) > 1
    assert encodings(pictures_in(folder, resolution=32), vae, folder) == 12  # squares are others


def test_made_once(folder, vae):
    seen, before = [], torch.get_rng_state()
    assert encodings(pictures_in(folder), vae, folder, progress=lambda *places: seen.append(places), batch_size=4) == 10
    assert seen == [(2, 5), (4, 5), (5, 5)] and torch.equal(torch.get_rng_state(), before)
    assert encodings(pictures_in(folder), vae, folder) == 0
    assert encodings(pictures_in(folder, seed=9, captions=Captions(dropout=0.5)), vae, folder) == 0  # not of the pixels


@pytest.mark.parametrize(
    "how", [{"resolution": 18}, {"interpolation": "bilinear"}, {"random_flip": False}, {"background": "black"}])
def test_made_again_for_other_settings(folder, vae, how):
    encodings(pictures_in(folder), vae, folder)
    assert encodings(pictures_in(folder, **how), vae, folder) >= 5


def test_made_again_for_other_weights_and_pictures(folder, vae):
    encodings(pictures_in(folder), vae, folder)
    file = folder / "pictures" / "2.png"
    os.utime(file, ns=(0, 0))
    assert encodings(pictures_in(folder), vae, folder) == 10
    with torch.no_grad():
        vae.quant_conv.bias[0] += 1e-3
    assert encodings(pictures_in(folder), vae, folder) == 10
    file.unlink()
    assert encodings(pictures_in(folder), vae, folder) == 8
    described = [json.loads(path.read_text()) for path in (folder / "cache").glob("*/cache.json")]
    assert len(described) == 4 and all(one["framing"]["resolution"] == 16 for one in described)


def test_pictures_in_memory_are_known_by_their_pixels(folder, vae):
    images = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    assert encodings(Pictures.of(images, resolution=16, center_crop=True), vae, folder) == 2
    assert encodings(Pictures.of([image.copy() for image in images], resolution=16, center_crop=True), vae, folder) == 0
    images[0].putpixel((0, 0), (0, 0, 0))
    assert encodings(Pictures.of(images, resolution=16, center_crop=True), vae, folder) == 2


def test_a_killed_build_goes_on(folder, vae):
    pictures = pictures_in(folder)
    with pytest.raises(KeyboardInterrupt):
        LatentCache.build(pictures, Counting(vae, most=7), folder / "cache", per_shard=2, batch_size=2)
    assert len(list((folder / "cache").glob("*/*.safetensors"))) == 1  # of three: the second was half done
    assert encodings(pictures, vae, folder, per_shard=2) == 6
    whole = LatentCache.build(pictures, vae, folder / "other", per_shard=2)
    gone_on = LatentCache.build(pictures, vae, folder / "cache", per_shard=2)
    for draw in (Draw(i, i) for i in range(5)):
        torch.testing.assert_close(gone_on[draw]["moments"], whole[draw]["moments"], rtol=1e-5, atol=1e-6)


def test_a_damaged_file_is_made_again(folder, vae):
    pictures = pictures_in(folder)
    encodings(pictures, vae, folder, per_shard=2)
    shard = sorted((folder / "cache").glob("*/*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-10])
    assert encodings(pictures, vae, folder, per_shard=2) == 4
    save_file({"2": torch.zeros(4, 8, 8)}, shard)
    assert encodings(pictures, vae, folder, per_shard=2) == 4


def test_what_cannot_be_cached(folder, vae):
    with pytest.raises(ValueError, match="cropped at random: give Pictures center_crop=True"):
        LatentCache.build(pictures_in(folder, center_crop=False), vae, folder / "cache")
    for how, words in (({"dtype": torch.int8}, "dtype is torch.int8"), ({"batch_size": 0}, "batch_size is 0"),
                       ({"per_shard": 0}, "per_shard is 0")):
        with pytest.raises(ValueError, match=words):
            LatentCache.build(pictures_in(folder), vae, folder / "cache", **how)
    with torch.no_grad():
        vae.quant_conv.bias[0] = torch.nan
    with pytest.raises(FloatingPointError, match="NaN"):
        LatentCache.build(pictures_in(folder), vae, folder / "cache")
    with pytest.raises(TypeError, match="Plain gives no distribution"):
        LatentCache.build(pictures_in(folder), Plain(), folder / "cache")
    with pytest.raises(ValueError, match="moments are"):
        sample_moments(torch.zeros(1, 3, 4, 4))


class Plain(nn.Linear):
    def __init__(self):
        super().__init__(1, 1)

    def encode(self, x):
        return x


# -- texts ------------------------------------------------------------------------------------------------------------


class Encoder(nn.Linear):
    """Hidden states [3, 2] of a text: its length, and that through a layer."""

    def __init__(self):
        super().__init__(1, 2)
        self.texts = []

    def __call__(self, texts):
        self.texts += texts
        return super().__call__(torch.tensor([[[len(text) + i] for i in range(3)] for text in texts], dtype=torch.float32))


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return Encoder()


def test_texts_are_encoded_once(tmp_path, encoder):
    seen = []
    cache = TextCache.build(["a cat", "a dog", "a cat"], encoder, tmp_path, text_encoder=encoder, batch_size=2, per_shard=2,
                            progress=lambda *places: seen.append(places))
    assert sorted(encoder.texts) == ["", "a cat", "a dog"] and len(cache) == 3 and "a cat" in cache and "a cow" not in cache
    assert seen == [(2, 3), (3, 3)]
    with torch.no_grad():
        assert torch.equal(cache.stacked(["a dog", ""]), encoder(["a dog", ""]))
    assert not cache["a cat"].requires_grad and cache["a cat"].shape == (3, 2)
    encoder.texts.clear()
    TextCache.build(["a dog", "a cat"], encoder, tmp_path, text_encoder=encoder, batch_size=1, per_shard=2)
    assert encoder.texts == []
    with pytest.raises(KeyError, match="'a cow' was not encoded; 3 others"):
        cache["a cow"]


def test_texts_are_encoded_again(tmp_path, encoder):
    def encoded(texts=("a cat",), **how):
        encoder.texts.clear()
        TextCache.build(texts, encoder, tmp_path, text_encoder=encoder, **how)
        return len(encoder.texts)

    assert [encoded(), encoded()] == [2, 0]
    assert [encoded(settings={"max_length": 8}), encoded(settings={"max_length": 9}), encoded(dtype=torch.float16)] == [2, 2, 2]
    assert encoded(("a cat", "a dog")) == 3
    with torch.no_grad():
        encoder.weight[0] += 1
    assert encoded() == 2


def test_a_killed_build_of_texts_goes_on(tmp_path, encoder):
    texts = [f"text {i}" for i in range(7)]

    def dying(few):
        if "text 5" in few:
            raise KeyboardInterrupt
        return encoder(few)

    with pytest.raises(KeyboardInterrupt):
        TextCache.build(texts, dying, tmp_path, text_encoder=encoder, batch_size=1, per_shard=2)
    encoder.texts.clear()
    TextCache.build(texts, encoder, tmp_path, text_encoder=encoder, batch_size=1, per_shard=2)
    assert encoder.texts == ["text 5", "text 6"]  # the last of four files


def test_what_is_no_encoder(tmp_path, encoder):
    for encode, words in ((lambda few: torch.zeros(1, 2), r"gives \[1, 2\] for 1 captions"), (lambda few: few, "gives list")):
        with pytest.raises(ValueError, match=words):
            TextCache.build([], encode, tmp_path, text_encoder=encoder)
    with pytest.raises(FloatingPointError):
        TextCache.build([], lambda few: torch.full((1, 2, 2), torch.inf), tmp_path, text_encoder=encoder)
    with pytest.raises(ValueError, match="dtype is torch.int8"):
        TextCache.build([], encoder, tmp_path, text_encoder=encoder, dtype=torch.int8)
