"""`VaeImageProcessor` against the oracle's, and what it does with pictures that are odd or bad."""

from __future__ import annotations

import inspect
import itertools
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from calotype import VaeImageProcessor, images
from calotype.images import reading
from calotype.images.vae_processor import RESIZE_MODES

OPTIONS = [
    {}, {"do_normalize": False}, {"do_convert_rgb": True}, {"do_convert_grayscale": True}, {"do_resize": False},
    {"do_normalize": False, "do_binarize": True, "do_convert_grayscale": True}, {"vae_scale_factor": 16},
    {"resample": "bicubic"}, {"resample": "nearest", "reducing_gap": 2},
]
METHODS = [
    "__init__", "preprocess", "postprocess", "resize", "blur", "get_crop_region", "apply_overlay", "get_default_height_width",
    "pil_to_numpy", "numpy_to_pt", "pt_to_numpy", "numpy_to_pil", "normalize", "denormalize", "convert_to_rgb",
    "convert_to_grayscale",
]


@pytest.fixture(scope="module")
def theirs(diffusers):
    return diffusers.image_processor.VaeImageProcessor


def picture(width, height, mode="RGB", seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)
    return Image.fromarray(pixels, "RGBA").convert(mode)


def floats(*shape, seed=0):
    return np.random.default_rng(seed).random(shape).astype(np.float32)


def assert_same(mine, reference):
    assert mine.shape == reference.shape and mine.dtype == reference.dtype
    assert (mine.double() - reference.double()).abs().max() <= 1e-6


# -- the same as the oracle ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", METHODS)
def test_signatures(name, theirs):
    mine, reference = (inspect.signature(getattr(one, name)).parameters for one in (VaeImageProcessor, theirs))
    assert [(one.name, one.default) for one in mine.values()] == [(one.name, one.default) for one in reference.values()]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_pil_images(options, theirs):
    mine, reference = VaeImageProcessor(**options), theirs(**options)
    for mode, size, (height, width), resize_mode in itertools.product(
            ("RGB", "L"), [(37, 29), (64, 40), (17, 130)], [(None, None), (40, 64), (33, None)], RESIZE_MODES):
        one = picture(*size, mode)
        box = (2, 3, 30, 27) if resize_mode == "fill" else None
        for given in (one, [one, one.transpose(0)]):
            assert_same(mine.preprocess(given, height, width, resize_mode, box),
                        reference.preprocess(given, height, width, resize_mode, box))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_floats(options, theirs):
    mine, reference = VaeImageProcessor(**options), theirs(**options)
    grey = options.get("do_convert_grayscale", False)
    if grey:
        given = [floats(37, 29), floats(2, 37, 29, 1), floats(2, 37, 29), [floats(37, 29)] * 2,
                 torch.from_numpy(floats(2, 37, 29))]
    else:
        given = [floats(37, 29, 3), floats(2, 37, 29, 3), [floats(37, 29, 3)] * 2, floats(37, 29, 3) * 2 - 1,
                 floats(37, 29, 3).astype(np.float64), torch.from_numpy(floats(3, 37, 29))]
        given += [] if options.get("do_convert_rgb") else [floats(37, 29)]  # the oracle leaves it grey
    batch = torch.from_numpy(floats(2, 1 if grey else 3, 37, 29))
    given += [batch, batch.half(), [batch[0], batch[1]], torch.randn(2, 4, 16, 24)]
    for one, size in itertools.product(given, [(None, None), (16, 80)]):
        assert_same(mine.preprocess(one, *size), reference.preprocess(one, *size))


def test_opaque_alpha_changes_nothing(theirs):
    opaque = picture(37, 29).convert("RGBA")
    for options in ({"do_convert_rgb": True}, {"do_convert_grayscale": True}):
        assert_same(VaeImageProcessor(**options).preprocess(opaque), theirs(**options).preprocess(opaque))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_out(dtype, channels, theirs):
    given = torch.randn(2, channels, 8, 12, generator=torch.Generator().manual_seed(0)).to(dtype)
    for which in (None, [True, False], [True, True]):
        mine, reference = (one().postprocess(given, "pt", which) for one in (VaeImageProcessor, theirs))
        assert_same(mine, reference)
        mine, reference = (one().postprocess(given, "np", which) for one in (VaeImageProcessor, theirs))
        assert mine.dtype == reference.dtype and np.array_equal(mine, reference)
    mine, reference = (one().postprocess(given) for one in (VaeImageProcessor, theirs))
    assert [one.mode for one in mine] == [one.mode for one in reference]
    assert all(np.array_equal(one, other) for one, other in zip(mine, reference, strict=True))
    assert VaeImageProcessor().postprocess(given, "latent") is given
    assert torch.equal(VaeImageProcessor(do_normalize=False).postprocess(given, "pt"), given)


def test_small_steps(theirs):
    mine, one, batch = VaeImageProcessor(), picture(37, 29), torch.rand(2, 3, 10, 11)
    reference = theirs()
    assert np.array_equal(mine.pil_to_numpy([one] * 2), reference.pil_to_numpy([one] * 2))
    assert np.array_equal(mine.pil_to_numpy(one.convert("L")), reference.pil_to_numpy(one.convert("L")))
    assert torch.equal(mine.numpy_to_pt(floats(2, 5, 6, 3)), reference.numpy_to_pt(floats(2, 5, 6, 3)))
    assert torch.equal(mine.numpy_to_pt(floats(2, 5, 6)), reference.numpy_to_pt(floats(2, 5, 6)))
    assert np.array_equal(mine.pt_to_numpy(batch), reference.pt_to_numpy(batch))
    assert torch.equal(mine.normalize(batch), reference.normalize(batch))
    assert torch.equal(mine.denormalize(batch * 4 - 2), reference.denormalize(batch * 4 - 2))
    assert mine.blur(one, 3) == reference.blur(one, 3)
    assert torch.equal(mine.resize(batch, 5, 7), reference.resize(batch, 5, 7))
    assert np.array_equal(mine.resize(floats(2, 5, 6, 3), 9, 4), reference.resize(floats(2, 5, 6, 3), 9, 4))
    edge = torch.tensor([0.0, 0.4999, 0.5, 1.0])
    assert torch.equal(mine.binarize(edge), reference.binarize(edge.clone())) and edge[1] > 0
    assert mine.binarize(np.array([0.2, 0.5])).tolist() == [0, 1]
    for given in (one, floats(2, 37, 29, 3), batch):
        assert mine.get_default_height_width(given, 50) == reference.get_default_height_width(given, 50)


def test_config_round_trip(tmp_path, theirs):
    mine = VaeImageProcessor(vae_scale_factor=16, do_convert_rgb=True)
    mine.save_config(tmp_path)
    assert VaeImageProcessor.from_config(tmp_path).to_json_string() == mine.to_json_string()
    read = theirs.from_config(theirs.load_config(tmp_path))
    assert {name: read.config[name] for name in mine._arguments()} == {name: mine.config[name] for name in mine._arguments()}
    read.save_config(tmp_path)
    assert VaeImageProcessor.from_config(tmp_path).config.vae_scale_factor == 16


# -- odd pictures ---------------------------------------------------------------------------------------------------

def test_fill_leaves_no_black_edge():
    """Where the rest is odd the oracle leaves a line black."""
    white = Image.new("RGB", (29, 37), "white")
    assert VaeImageProcessor().resize(white, 47, 33, "fill").getextrema() == ((255, 255),) * 3
    assert VaeImageProcessor().resize(Image.new("RGB", (7, 90)), 3, 40, "fill").size == (40, 3)


def test_bytes_are_read_as_the_picture_is():
    processor, one = VaeImageProcessor(), picture(37, 29)
    pixels = np.asarray(one)
    expected = processor.preprocess(one, 16, 24, "crop")
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    for given in (pixels, tensor, pixels.astype(np.int64), pixels.astype(np.uint16) * 257):
        assert torch.equal(processor.preprocess(given, 16, 24, "crop"), expected)
    assert torch.equal(processor.preprocess(np.stack([pixels, pixels]), 16, 24, "crop"), expected.repeat(2, 1, 1, 1))
    mirrored = one.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert torch.equal(processor.preprocess(np.flip(pixels, 1)), processor.preprocess(mirrored))
    assert processor.preprocess(np.eye(8, dtype=bool)).unique().tolist() == [-1, 1]


def test_transparent_parts_are_laid_on_white_and_said_once(caplog):
    reading._say_laid.cache_clear()
    clear = Image.new("RGBA", (16, 8), (0, 0, 0, 0))
    clear.paste((255, 0, 0, 255), (0, 0, 8, 8))
    flat = VaeImageProcessor(do_normalize=False)
    with caplog.at_level(logging.WARNING):
        pixels = flat.preprocess([clear, clear])
    assert pixels.shape == (2, 3, 8, 16) and len(caplog.records) == 1 and "white" in caplog.text
    assert pixels[0, :, 0, 0].tolist() == [1, 0, 0] and pixels[0, :, 0, -1].tolist() == [1, 1, 1]
    assert torch.equal(flat.preprocess(np.asarray(clear)), pixels[:1])
    assert flat.preprocess(clear.convert("LA"))[0, :, 0, -1].tolist() == [1]
    palette = Image.new("P", (8, 8))
    palette.putpalette([0, 0, 0, 0, 0, 255])
    palette.info["transparency"] = 0
    assert flat.preprocess(palette).min() == 1
    mask = VaeImageProcessor(do_convert_grayscale=True, do_normalize=False, do_binarize=True)
    assert mask.preprocess(clear)[..., 8:].max() == 0


@pytest.mark.parametrize("mode", ["1", "P", "CMYK", "HSV", "YCbCr"])
def test_modes_become_what_they_show(mode):
    one = picture(24, 16).convert(mode)
    shown = one.convert("L" if mode == "1" else "RGB")
    assert torch.equal(VaeImageProcessor().preprocess(one), VaeImageProcessor().preprocess(shown))


@pytest.mark.parametrize(("array", "mode", "top"), [
    (np.arange(64, dtype=np.uint16) * 1040, "I;16", 65535), (np.arange(64, dtype=np.int32) * 1040, "I", 65535),
    (np.arange(64, dtype=np.int32) * 4, "I", 255), (np.arange(64, dtype=np.float32) * 4, "F", 255),
    (np.arange(64, dtype=np.float32) / 64, "F", 1)])
def test_more_than_eight_bits_are_scaled(array, mode, top):
    one = Image.fromarray(array.reshape(8, 8))
    assert one.mode == mode
    values = VaeImageProcessor(do_normalize=False).preprocess(one)
    assert (values.flatten() - torch.from_numpy(array.astype(np.float32)) / top).abs().max() <= 0.51 / 255


def test_orientation_is_left_alone():
    one = picture(16, 8)
    one.getexif()[0x0112] = 6
    assert VaeImageProcessor().preprocess(one).shape == (1, 3, 8, 16)


def test_grey_and_rgb_of_arrays():
    colours = floats(2, 8, 16, 3)
    grey = VaeImageProcessor(do_convert_grayscale=True, do_normalize=False)
    expected = torch.from_numpy(colours @ np.array([0.299, 0.587, 0.114], np.float32))[:, None]
    assert torch.allclose(grey.preprocess(colours), expected, atol=1e-6)
    assert torch.allclose(grey.preprocess(colours[0]), expected[:1], atol=1e-6)
    assert VaeImageProcessor(do_convert_rgb=True).preprocess(floats(8, 16)).shape == (1, 3, 8, 16)


def test_the_callers_picture_is_not_changed():
    mask = torch.rand(1, 1, 8, 8)
    before = mask.clone()
    VaeImageProcessor(do_normalize=False, do_binarize=True, do_convert_grayscale=True).preprocess(mask)
    assert torch.equal(mask, before)


def test_pictures_of_several_sizes_with_a_size_given():
    assert VaeImageProcessor().preprocess([picture(20, 30), floats(9, 9, 3)], 16, 24).shape == (2, 3, 16, 24)


# -- each by itself, and latents -------------------------------------------------------------------------------------

SHOWN = np.asarray(picture(16, 8))
UNIT, SIGNED = SHOWN / np.float32(255), SHOWN / np.float32(127.5) - 1
KINDS = {
    "PIL": Image.fromarray(SHOWN), "bytes": SHOWN, "floats": UNIT, "signed": SIGNED,
    "a tensor": torch.from_numpy(UNIT).permute(2, 0, 1), "a tensor of bytes": torch.tensor(SHOWN).permute(2, 0, 1),
    "a signed batch": torch.from_numpy(SIGNED).permute(2, 0, 1)[None], "RGBA": Image.fromarray(SHOWN).convert("RGBA"),
    "RGBA floats": np.dstack([UNIT, np.ones((8, 16), np.float32)]), "uint16": SHOWN.astype(np.uint16) * 257,
    "bytes in 16 bits": SHOWN.astype(np.uint16)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other", KINDS)
def test_a_list_is_read_as_its_pictures_are_alone(kind, other):
    """Range, channels and alpha of one do not change the others: what the oracle tells of the whole batch, or refuses."""
    processor = VaeImageProcessor(do_convert_rgb=True)
    expected = processor.preprocess(KINDS["PIL"])
    together = processor.preprocess([KINDS[kind], KINDS[other]])
    assert (together - torch.cat([expected, expected])).abs().max() <= 1e-5


def test_grey_and_colours_in_one_list():
    grey = picture(16, 8, "L")
    mixed = [grey, KINDS["floats"], np.asarray(grey), grey.convert("LA")]
    batch = VaeImageProcessor(do_convert_rgb=True).preprocess(mixed)
    assert batch.shape == (4, 3, 8, 16) and torch.equal(batch[0], batch[2]) and torch.equal(batch[0], batch[3])
    masks = VaeImageProcessor(do_convert_grayscale=True, do_normalize=False).preprocess(mixed)
    assert masks.shape == (4, 1, 8, 16)


def test_transparent_floats_are_laid_on_white():
    """As Matplotlib reads a PNG: [H, W, 4] in [0, 1]."""
    clear = picture(16, 8, "RGBA")
    expected = VaeImageProcessor(do_convert_rgb=True).preprocess(clear)
    array = np.asarray(clear) / np.float32(255)
    for channels in (4, 16):
        processor = VaeImageProcessor(do_convert_rgb=True, vae_latent_channels=channels)
        tensor = torch.from_numpy(array).permute(2, 0, 1)
        for given in (array, array[None], array.astype(float), tensor, [tensor], *([tensor[None]] if channels == 16 else [])):
            assert (processor.preprocess(given) - expected).abs().max() <= 2 / 255
    mask = VaeImageProcessor(do_convert_grayscale=True, do_normalize=False)
    array[..., 3] = 0
    assert mask.preprocess(array).max() == 0


@pytest.mark.parametrize("channels", [3, 4, 16])
def test_what_is_latents(channels, theirs):
    """Tensors of as many channels; where pictures have as many, those beyond what pictures can be."""
    mine, reference = (one(vae_latent_channels=channels, do_convert_rgb=True) for one in (VaeImageProcessor, theirs))
    latents = torch.randn(2, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    for given in (latents, latents[0], [latents[0], latents[1]], latents.half(), [latents[:1], latents[1:]]):
        assert_same(mine.preprocess(given), reference.preprocess(given))
    if channels == 4:
        inside = latents.clamp(0, 1)
        assert mine.preprocess(inside) is not None and torch.equal(mine.preprocess(inside), inside)
        assert reading.are_latents(inside, 4) and not reading.are_latents(inside[0], 4)
    with pytest.raises(ValueError, match="pictures and latents"):
        mine.preprocess([latents[0], picture(8, 8)])
    with pytest.raises(ValueError, match="latents are .* with NaN"):
        mine.preprocess(latents * torch.nan if channels == 4 else latents.masked_fill(latents > 1, torch.inf))


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_no_latents_of_as_many_channels(channels):
    processor = VaeImageProcessor(vae_latent_channels=channels, do_normalize=True)
    shown = torch.rand(2, channels, 8, 16, generator=torch.Generator().manual_seed(0))
    array = shown.permute(0, 2, 3, 1).numpy()
    for given in (shown, 2 * shown - 1, array, [array[0], array[1]], [shown[0], shown[1]]):
        assert (processor.preprocess(given) - (2 * shown - 1)).abs().max() <= 1e-6


def test_the_range_of_16_bits_is_told_by_the_values():
    processor, dark = VaeImageProcessor(do_normalize=False), np.full((8, 8), 255, np.uint16)
    for whole in (dark, Image.fromarray(dark), torch.from_numpy(dark), dark * 257, Image.fromarray(dark * 257)):
        assert processor.preprocess(whole).unique().tolist() == [1]
    assert processor.preprocess(np.array([[0, 256]] * 8, np.uint16).repeat(8, 1)).max() < 0.005


# -- bad pictures ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("given", "words"), [
    ("cat.png", "calotype.load_image"), ([], "empty"), (None, "NoneType"), (3, "int"), ([3], "int"),
    (np.full((8, 8, 3), np.nan), "NaN"), (torch.full((3, 8, 8), torch.inf), "NaN or infinite"),
    (floats(8, 8, 3) * 255, "divide by 255"), (torch.rand(3, 8, 8) * 2 - 1.5, "from -1"),
    (np.full((8, 8, 3), 300), "300"), (np.full((8, 8, 3), -1), "-1"), (np.zeros((8, 8), complex), "complex"),
    (floats(3, 8, 16), "H, W, C"), (torch.rand(8, 16, 3), "C, H, W"), (floats(1, 1, 8, 8, 3), r"\(1, 1, 8, 8, 3\)"),
    (np.full((8, 8, 4), -0.5), r"in \[0, 1\], since it has transparency"), (torch.rand(5), "torch.Size"),
    (np.zeros((0, 8, 3)), r"\(0, 8, 3\)"), (floats(8, 8, 2), "1, 3, 4"),
    ([picture(16, 16), picture(24, 16)], "16 x 16, 24 x 16"),
    ([picture(16, 16), picture(16, 16, "L")], r"\[1, 16, 16\], \[3, 16, 16\]"),
    (picture(7, 16), "at least 8"), (Image.fromarray(np.full((8, 8), -1.0, np.float32)), "'F'"),
    (Image.fromarray(np.full((8, 8), np.nan, np.float32)), "nan"), (Image.fromarray(np.full((8, 8), 70000, np.int32)), "65535")])
def test_bad_pictures(given, words):
    with pytest.raises(ValueError, match=words):
        VaeImageProcessor().preprocess(given)


def test_bad_arguments():
    both = {"do_convert_rgb": True, "do_convert_grayscale": True}
    for options, words in (({"resample": "lanczo"}, "lanczos"), (both, "exclude"), ({"vae_scale_factor": 0}, "at least 1")):
        with pytest.raises(ValueError, match=words):
            VaeImageProcessor(**options)
    processor = VaeImageProcessor()
    with pytest.raises(ValueError, match="did you mean 'crop'"):
        processor.preprocess(picture(8, 8), resize_mode="crops")
    for how in ({"resize_mode": "fill"}, {"crops_coords": (0, 0, 8, 8)}):
        with pytest.raises(ValueError, match="numpy_to_pil"):
            processor.preprocess(floats(16, 16, 3), **how)
    with pytest.raises(ValueError, match="cannot be resized"):
        processor.resize("a", 8, 8)
    with pytest.raises(ValueError, match="at least 8"):
        processor.get_default_height_width(picture(16, 16), 7)
    with pytest.raises(ValueError, match="none"):
        processor.pil_to_numpy([])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
def test_no_picture_of_nan(value, output_type):
    pictures = torch.zeros(2, 3, 8, 8)
    pictures[1, 0, 0, 0] = value
    for post in (images.postprocess, VaeImageProcessor().postprocess):
        with pytest.raises(FloatingPointError, match="1 of 384 .*bfloat16"):
            post(pictures, output_type)
    assert images.postprocess(pictures, "latent") is pictures
    with pytest.raises(FloatingPointError):
        images.numpy_to_pil(pictures.permute(0, 2, 3, 1).numpy())


def test_postprocess_refuses_other_shapes():
    with pytest.raises(ValueError, match="B, C, H, W"):
        images.postprocess(torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match="B, C, H, W"):
        VaeImageProcessor().postprocess(np.zeros((1, 3, 8, 8)))
    with pytest.raises(ValueError, match="for 1 pictures"):
        VaeImageProcessor().postprocess(torch.zeros(2, 3, 8, 8), do_denormalize=[True])
    with pytest.raises(ValueError, match="'pil'"):
        images.postprocess(torch.zeros(1, 3, 8, 8), "pill")


def test_numpy_to_pil_stays_in_range():
    assert np.asarray(images.numpy_to_pil(np.array([[[[-0.2], [1.2]]]]))[0]).tolist() == [[0, 255]]
    assert images.numpy_to_pil(np.full((1, 2, 2, 3), 7, np.uint8))[0].getpixel((0, 0)) == (7, 7, 7)


def test_pil_to_tensor_is_the_same_way_in():
    one = picture(24, 16)
    assert torch.equal(images.pil_to_tensor([one, one]), VaeImageProcessor().preprocess([one, one]))
    tensor = images.pil_to_tensor(one)
    assert torch.equal(images.postprocess(tensor, "pt"), images.conversion.denormalized(tensor))
    assert images.postprocess(images.pil_to_tensor(one))[0] == one
