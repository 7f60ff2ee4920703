"""Features by name, and what they are of."""

from __future__ import annotations

import math
import sys
from types import ModuleType

import pytest
import torch

import calotype
from calotype.evaluation import make_features
from calotype.evaluation.features import InceptionFeatures, edge_histogram

PICTURES = torch.rand(3, 3, 40, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_edges_by_their_direction():
    ramp = torch.linspace(-1, 1, 32)
    for turn, (across, down) in enumerate([(1, 0), (1, 1), (0, 1), (-1, 1)]):
        picture = (across * ramp[None, :] + down * ramp[:, None]).expand(1, 3, 32, 32)
        cells = edge_histogram(picture, directions=4)[0, :, 2:-2, 2:-2]
        assert (cells.argmax(0) == turn).all()
        assert cells.sum(0).mean() == pytest.approx(2 * math.hypot(across, down) * 2 / 31, rel=1e-4)
        assert torch.allclose(edge_histogram(-picture), edge_histogram(picture), atol=1e-6)
    between = (2 * ramp[None, :] + math.tan(math.pi / 8) * 2 * ramp[:, None]).expand(1, 3, 32, 32)
    shares = edge_histogram(between, directions=4)[0, :, 4, 4]
    assert shares[0] == pytest.approx(float(shares[1]), rel=1e-4)
    assert shares[2:].tolist() == pytest.approx([0, 0], abs=1e-6)


@pytest.mark.parametrize("projects", [True, False])
def test_clip(tmp_path, projects):
    cls = calotype.CLIPVisionModelWithProjection if projects else calotype.CLIPVisionModel
    torch.manual_seed(0)
    model = cls(hidden_size=8, intermediate_size=16, projection_dim=6, num_hidden_layers=1, num_attention_heads=2, image_size=16,
                patch_size=8)
    model.save_pretrained(tmp_path)
    features = make_features(clip=tmp_path)
    seen = features([PICTURES[:2], PICTURES[2:]])
    assert features.name == "clip"
    assert seen.all.shape == (3, 6 if projects else 8)
    assert torch.allclose(seen.shape.norm(dim=1), torch.ones(3))
    small = [image.resize((16, 16), 2) for image in calotype.images.postprocess(PICTURES)]
    given = calotype.CLIPImageProcessor(do_resize=False, do_center_crop=False)(small, return_tensors="pt").pixel_values
    output = model.eval()(given)
    right = output.image_embeds if projects else output.pooler_output
    assert torch.nn.functional.cosine_similarity(seen.all, right).min() > 0.99


def test_inception(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(FileNotFoundError, match="not downloaded here; the features 'encoder' need nothing"):
        make_features("inception")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / InceptionFeatures.file).write_bytes(b"weights")
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(ImportError, match="pip install torch-fidelity"):
        make_features("inception")

    class Extractor(torch.nn.Module):
        def __init__(self, name, features_list, feature_extractor_weights_path=None):
            super().__init__()
            assert (features_list, feature_extractor_weights_path[-4:]) == (["2048"], ".pth")

        def forward(self, pictures):
            assert pictures.dtype == torch.uint8
            return (pictures.float().flatten(2).mean(2),)

    module = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = Extractor
    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with pytest.raises(ValueError, match="is damaged or holds more than tensors"):
        make_features("inception")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "checkpoints" / InceptionFeatures.file)
    said = make_features("inception")([torch.ones(1, 3, 8, 8), -torch.ones(1, 3, 8, 8)])
    assert said.all.flatten().tolist() == pytest.approx([255.0] * 3 + [0.0] * 3, abs=1e-3)


@pytest.mark.parametrize(("given", "said"), [
    ({"name": "inceptoin"}, "did you mean 'inception'"), ({"name": "clip"}, "need the folder of a CLIP picture encoder"),
    ({"name": "encoder", "clip": "x"}, "no others take one")])
def test_what_is_wrong(given, said):
    with pytest.raises(ValueError, match=said):
        make_features(**given)
    with pytest.raises(ValueError, match="no pictures to look at"):
        make_features("encoder")([])
