"""`CLIPImageProcessor` against transformers' class, which prepares pictures with Pillow too."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from calotype.image_processor import CLIPImageProcessor
from calotype.registry import entry, find

SIZES = [(224, 224), (225, 224), (37, 91), (333, 100), (101, 7), (5, 64), (1, 3), (640, 427)]
OLD = {"crop_size": 224, "do_center_crop": True, "do_convert_rgb": True, "do_normalize": True, "do_resize": True,
       "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": [0.48145466, 0.4578275, 0.40821073],
       "image_std": [0.26862954, 0.26130258, 0.27577711], "resample": 3, "size": 224}  # as Stable Diffusion 1 has it


@pytest.fixture(scope="module")
def theirs():
    transformers = pytest.importorskip("transformers")
    return getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor


def picture(width, height, mode="RGB", seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)
    return Image.fromarray(pixels, "RGBA").convert(mode)


def assert_same(ours, theirs, images):
    mine, reference = ours(images, return_tensors="np").pixel_values, theirs(images, return_tensors="np").pixel_values
    assert mine.shape == reference.shape and mine.dtype == reference.dtype
    assert np.abs(mine.astype(float) - reference).max() <= 1e-6


@pytest.mark.parametrize("size", SIZES)
def test_sizes(size, theirs):
    assert_same(CLIPImageProcessor(), theirs(), picture(*size))


@pytest.mark.parametrize("mode", ["L", "RGBA", "LA", "P", "PA", "1", "CMYK", "YCbCr", "F", "I"])
def test_modes(mode, theirs):
    image = picture(50, 41, mode) if mode not in ("F", "I") else picture(50, 41, "L").convert(mode)
    for options in ({}, {"do_resize": False, "do_normalize": False, "do_rescale": False, "crop_size": 50}):
        assert_same(CLIPImageProcessor(**options), theirs(**options), image)
    if mode == "P":
        image.info["transparency"] = 3
        assert_same(CLIPImageProcessor(), theirs(), image)


@pytest.mark.parametrize("options", [
    {"size": 20}, {"size": {"height": 30, "width": 19}}, {"size": (30, 19)}, {"size": {"shortest_edge": 300}},
    {"crop_size": 17}, {"crop_size": {"height": 11, "width": 300}}, {"crop_size": 301}, {"do_center_crop": False},
    {"do_resize": False}, {"do_resize": False, "crop_size": {"height": 92, "width": 36}}, {"resample": 2}, {"resample": 0},
    {"do_normalize": False}, {"do_rescale": False}, {"do_rescale": False, "do_normalize": False},
    {"rescale_factor": 1 / 127.5, "image_mean": [1, 1, 1], "image_std": [1, 1, 1]},
    {"image_mean": (0.5, 0.4, 0.3), "image_std": (0.1, 0.2, 0.3)}, {"image_mean": 0.5, "image_std": 0.25},
])
def test_options(options, theirs):
    for image in (picture(37, 91), picture(90, 37)):
        assert_same(CLIPImageProcessor(**options), theirs(**options), image)
        mine = CLIPImageProcessor()(image, return_tensors="np", **options).pixel_values  # as arguments of a call
        assert np.array_equal(mine, CLIPImageProcessor(**options)(image, return_tensors="np").pixel_values)


def test_what_a_picture_may_be(theirs):
    ours, theirs = CLIPImageProcessor(), theirs()
    image = picture(37, 91)
    array = np.asarray(image)
    for same in (image, [image], array, array.transpose(2, 0, 1), array[None], [array], torch.tensor(array.transpose(2, 0, 1)),
                 torch.tensor(array.transpose(2, 0, 1))[None], array[:, :, :1]):
        assert_same(ours, theirs, same)
    assert_same(ours, theirs, [picture(37, 91), picture(224, 224, "L"), picture(91, 30, "RGBA")])
    grey = ours(array[..., 0], return_tensors="np").pixel_values
    assert np.array_equal(grey, ours(array[..., :1], return_tensors="np").pixel_values)


def test_floats(theirs):
    """From 0 to 1 they are the same picture, whether told to rescale (theirs would do it twice) or not."""
    array = np.asarray(picture(37, 91))
    reference = theirs()(array, return_tensors="np").pixel_values
    for floats in (np.float32(array / 255), array / 255, torch.tensor(array / 255).permute(2, 0, 1)):
        for rescale in (True, False):
            mine = CLIPImageProcessor(do_rescale=rescale)(floats, return_tensors="np").pixel_values
            assert np.abs(mine - reference).max() <= 1e-6
        assert_same(CLIPImageProcessor(do_rescale=False), theirs(do_rescale=False), floats)


def test_other_arrays():
    """Booleans, 16 bits, transparency and tensors of any type, and PIL images of more than 8 bits, are what they show."""
    ours, image = CLIPImageProcessor(do_normalize=False), picture(37, 41)
    array = np.asarray(image)
    expected = ours(image, return_tensors="np").pixel_values
    opaque = np.dstack([array, np.full((41, 37), 255, np.uint8)])
    for same in (array.astype(np.uint16) * 257, array.astype(np.uint16), opaque, opaque.transpose(2, 0, 1), opaque / 255,
                 torch.tensor(array / 255, dtype=torch.bfloat16, requires_grad=True)):
        assert np.abs(ours(same, return_tensors="np").pixel_values - expected).max() <= 0.01
    grey = picture(37, 41, "L")
    shown = ours(grey, return_tensors="np").pixel_values
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    for same in (deep, Image.fromarray(np.asarray(deep).astype(np.int32)), Image.fromarray(np.asarray(grey) / np.float32(255))):
        assert np.abs(ours(same, return_tensors="np").pixel_values - shown).max() <= 0.01
    assert ours(np.eye(8, dtype=bool), return_tensors="np", do_resize=False, crop_size=8).pixel_values.max() == 1
    for wrong in (array[..., :2], array[None, None], np.full((4, 4, 3), np.nan)):
        with pytest.raises(ValueError, match="a picture is"):
            ours([wrong])


def test_what_comes_back():
    ours = CLIPImageProcessor()
    output = ours([picture(30, 40), picture(40, 30)], return_tensors="pt")
    assert output.pixel_values is output["pixel_values"] and output.pixel_values.shape == (2, 3, 224, 224)
    assert output.pixel_values.dtype == torch.float32 and dict(**output).keys() == {"pixel_values"}
    assert output.to(torch.float16).pixel_values.dtype == torch.float16
    several = ours.preprocess([picture(30, 40), picture(40, 30)], do_center_crop=False).pixel_values
    assert [array.shape for array in several] == [(3, 298, 224), (3, 224, 298)]
    assert isinstance(ours(picture(9, 9)).pixel_values[0], np.ndarray)


def test_files(theirs, tmp_path, caplog):
    options = {"size": {"height": 30, "width": 19}, "crop_size": 17, "resample": 2, "image_mean": [0.1, 0.2, 0.3]}
    theirs(**options).save_pretrained(tmp_path / "theirs")
    CLIPImageProcessor(**options).save_pretrained(tmp_path / "ours")
    image = picture(37, 91)
    for folder in ("theirs", "ours"):
        assert_same(CLIPImageProcessor.from_pretrained(tmp_path / folder), theirs.from_pretrained(tmp_path / folder), image)
    assert CLIPImageProcessor.from_pretrained(tmp_path, subfolder="ours", crop_size=5).crop_size == {"height": 5, "width": 5}
    written, new = (json.loads((tmp_path / folder / "preprocessor_config.json").read_text()) for folder in ("ours", "theirs"))
    assert written == {**new, "feature_extractor_type": "CLIPFeatureExtractor"}
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "preprocessor_config.json").write_text(json.dumps(OLD))
    old = find("CLIPFeatureExtractor").from_pretrained(tmp_path / "old")
    assert type(old) is CLIPImageProcessor and entry(old)[0] == "transformers"
    assert old.size == {"shortest_edge": 224} and old.crop_size == {"height": 224, "width": 224}
    assert_same(old, theirs(), image)
    for name in ("CLIPImageProcessor", "CLIPImageProcessorPil", "CLIPImageProcessorFast"):
        assert find(name) is CLIPImageProcessor
    assert not [record for record in caplog.records if record.name.startswith("calotype")]


def test_wrong_calls():
    ours = CLIPImageProcessor()
    with pytest.raises(ValueError, match="a size is 0, but must be a number of pixels"):
        CLIPImageProcessor(crop_size=0)
    with pytest.raises(ValueError, match="a size is {'width': 3}, but must be .* shortest_edge or height, width"):
        ours(picture(3, 3), size={"width": 3})
    with pytest.raises(TypeError, match="no argument 'do_rezise'; did you mean 'do_resize'"):
        ours(picture(3, 3), do_rezise=False)
    with pytest.raises(ValueError, match="return_tensors is 'tf', but must be"):
        ours(picture(3, 3), return_tensors="tf")
    with pytest.raises(ValueError, match="these are no pictures"):
        ours([], return_tensors="pt")
    with pytest.raises(ValueError, match="pictures of one size"):
        ours([picture(3, 4), picture(4, 3)], return_tensors="pt", do_center_crop=False)
    with pytest.raises(ValueError, match="floats from 0 to 1, and this is array"):
        ours(np.full((4, 4, 3), -0.5))
    with pytest.raises(ValueError, match="a picture is a PIL image"):
        ours("cat.png")
    with pytest.raises(ValueError, match="image_mean is for 2 channels, image_std for 3; these are 3"):
        ours(picture(3, 3), image_mean=[0.5, 0.5])
    with pytest.raises(AttributeError, match="has no entry 'sizes'"):
        ours.sizes  # noqa: B018


def test_it_needs_no_torch():
    code = ("import sys; from calotype import CLIPImageProcessor as P; import numpy as np;"
            "P()(np.zeros((4, 4, 3), np.uint8), return_tensors='np'); assert 'torch' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True)
