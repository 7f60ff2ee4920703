"""Masks for inpainting against the oracle's processor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from calotype import VaeImageProcessor
from calotype.images.masks import composite, crop_region, masked_picture, prepare_mask

HARD = {"do_normalize": False, "do_binarize": True, "do_convert_grayscale": True}
SOFT = HARD | {"do_binarize": False}


@pytest.fixture(scope="module")
def theirs(diffusers):
    return diffusers.image_processor.VaeImageProcessor


def picture(width, height, mode="RGB", seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8), "RGBA").convert(mode)


def painted(width=40, height=32, box=(8, 8, 24, 16), value=255):
    mask = Image.new("L", (width, height))
    mask.paste(value, box)
    return mask


@pytest.mark.parametrize("size", [(48, 32), (37, 29), (96, 80)])
@pytest.mark.parametrize("resize_mode", ["default", "fill", "crop"])
def test_same_masks(size, resize_mode, theirs):
    reference = theirs(**HARD)
    for given in (picture(*size), picture(*size, "L"), [picture(*size, "L", seed) for seed in (1, 2)]):
        mine = prepare_mask(given, 32, 48, VaeImageProcessor(**HARD), resize_mode=resize_mode, crops_coords=(1, 2, 30, 28))
        expected = reference.preprocess(given, 32, 48, resize_mode, (1, 2, 30, 28))
        assert torch.equal(mine, expected) and set(mine.unique().tolist()) <= {0, 1}


def test_masks_of_arrays_and_tensors(theirs):
    reference = theirs(**HARD)
    values = np.random.default_rng(0).random((2, 32, 48)).astype(np.float32)
    tensor = torch.from_numpy(values)
    for given in (values, values[0], values[..., None], [values[0], values[1]], tensor, tensor[:, None]):
        assert torch.equal(prepare_mask(given, 16, 24, VaeImageProcessor(**HARD)), reference.preprocess(given, 16, 24))
    assert prepare_mask(torch.ones(1, 4, 8, 8)[:, :1].bool(), 8, 8, VaeImageProcessor(**HARD)).unique().tolist() == [1]
    assert prepare_mask(np.eye(8, dtype=np.uint8) * 255, 8, 8, VaeImageProcessor(**HARD)).sum() == 8
    assert prepare_mask(picture(16, 16, "1"), 16, 16, VaeImageProcessor(**HARD)).unique().tolist() == [0, 1]


def test_soft_masks_keep_greys():
    mask = prepare_mask(painted(16, 8, (0, 0, 8, 8), 51), 8, 16, VaeImageProcessor(**SOFT))
    assert mask.shape == (1, 1, 8, 16) and torch.allclose(mask[..., :8], torch.tensor(0.2)) and mask[..., 8:].max() == 0


@pytest.mark.parametrize("how", [HARD, SOFT], ids=["hard", "soft"])
def test_strokes_on_a_transparent_layer(how):
    """What is not painted is kept, whatever colour its transparent pixels hide."""
    for hidden in (0, 255):
        layer = Image.new("RGBA", (16, 8), (hidden, hidden, hidden, 0))
        layer.paste((255, 255, 255, 255), (0, 0, 8, 8))
        mask = prepare_mask(layer, 8, 16, VaeImageProcessor(**how))
        assert mask[..., :8].min() == 1 and mask[..., 8:].max() == 0


KINDS = {
    "uint8": lambda mask: mask, "int64": lambda mask: mask.astype(np.int64), "uint16": lambda mask: mask.astype(np.uint16),
    "bool": lambda mask: mask > 0, "floats": lambda mask: mask.astype(np.float32), "float64": lambda mask: mask.astype(float),
    "[H, W, 1]": lambda mask: mask[..., None], "[B, H, W]": lambda mask: mask[None], "RGB": lambda mask: np.dstack([mask] * 3),
    "RGBA": lambda mask: np.dstack([mask] * 4), "opaque": lambda mask: np.dstack([mask] * 3 + [np.full_like(mask, 255)]),
    "RGBA floats": lambda mask: np.dstack([mask] * 4).astype(np.float32),
    "tensor uint8": torch.tensor, "tensor int64": lambda mask: torch.tensor(mask).long()[None, None],
    "tensor uint16": lambda mask: torch.tensor(mask.astype(np.uint16)), "tensor bool": lambda mask: torch.tensor(mask > 0)[None],
    "tensor half": lambda mask: torch.tensor(mask).half(),
    "L": Image.fromarray, "1": lambda mask: Image.fromarray(mask * 255).convert("1"),
    "I": lambda mask: Image.fromarray(mask.astype(np.int32)), "I;16": lambda mask: Image.fromarray(mask.astype(np.uint16)),
    "F": lambda mask: Image.fromarray(mask.astype(np.float32)), "P": lambda mask: Image.fromarray(mask).convert("P"),
    "LA": lambda mask: Image.fromarray(mask).convert("LA"), "PIL RGB": lambda mask: Image.fromarray(mask).convert("RGB")}


@pytest.mark.parametrize("how", [HARD, SOFT], ids=["hard", "soft"])
@pytest.mark.parametrize("kind", KINDS)
def test_masks_of_zeros_and_ones(kind, how):
    """One is white, whatever holds it; so are 255 and 65535. In a list each mask is read by itself."""
    ones = np.zeros((16, 24), np.uint8)
    ones[4:12, 8:16] = 1
    expected = torch.from_numpy(ones).float()[None, None]
    processor = VaeImageProcessor(**how)
    mask = prepare_mask(KINDS[kind](ones), 16, 24, processor)
    assert torch.allclose(mask.float(), expected)
    several = [KINDS[kind](ones), Image.fromarray(ones * 255), ones.astype(np.uint16) * 65535, ones * 0]
    assert torch.allclose(prepare_mask(several, 16, 24, processor).float(), torch.cat([expected] * 3 + [expected * 0]))


def test_boxes_and_overlays_of_zeros_and_ones():
    ones = Image.fromarray(np.kron(np.eye(2, dtype=np.uint8), np.ones((8, 8), np.uint8)))
    white = ones.point(lambda value: 255 * value)
    assert crop_region(ones.crop((0, 0, 16, 8)), 16, 8) == crop_region(white.crop((0, 0, 16, 8)), 16, 8)
    kept, new = picture(16, 16, seed=1), picture(16, 16, seed=2)
    assert composite(kept, new, ones).tobytes() == composite(kept, new, white).tobytes()


def test_what_is_nearly_black_is_no_mask_of_ones():
    grey = np.zeros((8, 8), np.uint8)
    grey[0, 0], grey[0, 1] = 1, 2
    assert prepare_mask(grey, 8, 8, VaeImageProcessor(**HARD)).max() == 0
    faint = Image.new("RGBA", (8, 8), (255, 255, 255, 1))  # a stroke of no strength, not a one
    assert prepare_mask(faint, 8, 8, VaeImageProcessor(**HARD)).max() == 0
    picture_of_ones = VaeImageProcessor(do_normalize=False).preprocess(np.ones((8, 8, 3), np.uint8))  # is no mask
    assert picture_of_ones.max() < 0.01


def test_bad_masks():
    with pytest.raises(ValueError, match=r"from -1.*\[0, 1\]"):
        prepare_mask(-torch.ones(1, 8, 8), 8, 8, VaeImageProcessor(**HARD))
    with pytest.raises(ValueError, match="mask_image is None"):
        prepare_mask(None, 8, 8, VaeImageProcessor(**HARD))
    with pytest.raises(ValueError, match="channels of latents, but must have 1, 3"):
        prepare_mask(torch.rand(1, 4, 8, 8), 8, 8, VaeImageProcessor(**HARD))
    with pytest.raises(ValueError, match="calotype.load_image"):
        prepare_mask("mask.png", 8, 8, VaeImageProcessor(**HARD))
    with pytest.raises(ValueError, match="do_convert_grayscale=True"):
        prepare_mask(painted(), 8, 8, VaeImageProcessor())


def test_masked_picture():
    values, mask = torch.rand(2, 3, 8, 8) + 0.1, (torch.rand(1, 1, 8, 8) > 0.5).float()
    kept = masked_picture(values, mask)
    assert torch.equal(kept, torch.where(mask.bool(), torch.zeros(()), values))
    for wrong in (mask[0], mask.expand(1, 3, 8, 8), torch.zeros(1, 1, 4, 8), torch.zeros(3, 1, 8, 8)):
        with pytest.raises(ValueError, match=r"\[2, 1, 8, 8\]"):
            masked_picture(values, wrong)


def test_crop_regions(theirs):
    rng = np.random.default_rng(0)
    for _ in range(300):
        width, height = rng.integers(8, 60, 2).tolist()
        left, top = int(rng.integers(0, width)), int(rng.integers(0, height))
        right, bottom = int(rng.integers(left + 1, width + 1)), int(rng.integers(top + 1, height + 1))
        mask = painted(width, height, (left, top, right, bottom), int(rng.choice([1, 127, 255])))
        how = *rng.integers(8, 80, 2).tolist(), int(rng.integers(0, 20))
        expected = theirs.get_crop_region(mask, *how)
        mine = VaeImageProcessor.get_crop_region(mask, *how)
        assert mine == tuple(int(edge) for edge in expected)
        assert 0 <= mine[0] <= left and right <= mine[2] <= width and 0 <= mine[1] <= top and bottom <= mine[3] <= height
    with pytest.raises(ValueError, match="black everywhere"):
        crop_region(Image.new("L", (8, 8)), 8, 8)


@pytest.mark.parametrize("box", [None, (3, 2, 15, 12), (0, 0, 24, 9)])
def test_overlays(box, theirs):
    """Within a grey level: the oracle multiplies by the mask and divides again."""
    kept, new, mask = picture(24, 16, seed=1), picture(*((24, 16) if box is None else (32, 32)), seed=2), picture(24, 16, "L", 3)
    mine = VaeImageProcessor().apply_overlay(mask, kept, new, box)
    expected = theirs().apply_overlay(mask, kept, new, box)
    assert mine.size == expected.size and mine.mode == expected.mode
    assert np.abs(np.asarray(mine).astype(int) - np.asarray(expected)).max() <= 1


def test_overlay_ends():
    kept, new = picture(24, 16, seed=1), picture(24, 16, seed=2)
    assert composite(kept, new, Image.new("L", (24, 16), 0)) == kept
    assert composite(kept, new, Image.new("L", (24, 16), 255)) == new
    with pytest.raises(ValueError, match=r"\(16, 16\)"):
        VaeImageProcessor().apply_overlay(painted(24, 16), kept, picture(16, 16))
