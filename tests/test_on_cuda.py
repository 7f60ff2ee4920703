"""What only a CUDA device can show: that copies and computation do not overtake each other, and what memory is really used."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn

import calotype
from calotype.runtime import offload
from calotype.runtime.cuda_graph import CudaGraph

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@pytest.mark.parametrize("mode", offload.MODES)
def test_offloaded_pictures_are_those_without(mode):
    pipe = calotype.DiffusionPipeline.from_pretrained("calotype/emoji").to("cuda")
    pipe.set_progress_bar_config(disable=True)

    def draw():
        return pipe("a cat", num_inference_steps=5, generator=torch.Generator("cuda").manual_seed(0), output_type="np").images

    expected = draw()
    pipe.offload(mode)
    assert pipe.device.type == "cuda"
    assert all(weight.device.type == "cpu" for weight in pipe.unet.parameters())
    for _ in range(3):
        assert np.abs(draw() - expected).max() <= 1 / 255
    pipe.offload(None)
    for model in pipe._models():
        assert all(weight.device.type == "cpu" and not weight.is_pinned() for weight in model.parameters())
    pipe.to("cuda")
    assert np.abs(draw() - expected).max() <= 1 / 255


def test_copies_and_computation_keep_their_order():
    """Many blocks, each slow to copy or slow to compute, and memory that is used again at once."""
    torch.manual_seed(0)
    sizes = [4096 if i % 3 else 256 for i in range(24)]
    model = nn.Module()
    model.blocks = nn.ModuleList(nn.Linear(before, after) for before, after in itertools.pairwise(sizes))
    there, x = copy.deepcopy(model).cuda(), torch.randn(64, sizes[0], device="cuda")

    def through(blocks):
        y = x
        for block in blocks:
            y = block(y)
            for _ in range(5):
                y = y + torch.matmul(y, y.T).mean() * 0
        return y

    with torch.no_grad():
        expected = through(there.blocks)
        del there
        offload.offload([model], "layers", offload.CudaMover(torch.device("cuda", torch.cuda.current_device())))
        torch.cuda.reset_peak_memory_stats()
        for _ in range(20):
            assert torch.equal(through(model.blocks), expected)
            model.blocks[7](torch.zeros(1, sizes[7], device="cuda"))  # out of turn: what was on its way is dropped
    assert torch.cuda.max_memory_allocated() < 5 * 4 * 4096 * 4096
    offload.restore([model])


def test_2048_pixels_in_less_than_four_gigabytes():
    levels = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    with torch.device("cuda"):
        model = calotype.AutoencoderKL(block_out_channels=(128, 256, 512, 512), layers_per_block=2, **levels).half()
    model.requires_grad_(False).eval().enable_tiling()
    z = torch.randn(1, 4, 256, 256, device="cuda").half()
    torch.cuda.reset_peak_memory_stats()
    striped = model.decode(z).sample
    assert torch.cuda.max_memory_allocated() < 4e9
    model.disable_tiling()
    plain = model.decode(z).sample
    assert (striped - plain).abs().max() <= 2e-2 * plain.abs().max()


def test_compiled_steps_are_captured_too(tmp_path, monkeypatch):
    monkeypatch.setenv("CALOTYPE_CACHE", str(tmp_path))
    pipe = calotype.DiffusionPipeline.from_pretrained("calotype/emoji").to("cuda")
    pipe.set_progress_bar_config(disable=True)

    def draw():
        return pipe("a cat", num_inference_steps=6, generator=torch.Generator("cuda").manual_seed(0), output_type="np").images

    pipe.fast = False
    expected = draw()
    pipe.fast = True
    pipe.compile()
    for _ in range(2):
        assert np.abs(draw() - expected).max() <= 3 / 255
    (held,) = vars(pipe.unet)["_recordings"].by_inputs.values()
    assert isinstance(held.run, CudaGraph) and len(list((tmp_path / "compiled").iterdir())) == 1
