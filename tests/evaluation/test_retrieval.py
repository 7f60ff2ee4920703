"""Nearest pictures: on made-up features, and on drawings by real ones."""

from __future__ import annotations

import math

import pytest
import torch
from drawings import SHAPES, STYLES, save_drawings
from PIL import ImageChops

from calotype.evaluation import EncoderFeatures, Prompt, Reference, fid, judged_pictures, nearest, read_rows, retrieval
from calotype.inputs import read_input


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Reference:
    rows = read_rows(save_drawings(tmp_path_factory.mktemp("data") / "drawings"))
    return Reference.of(rows, EncoderFeatures(), batch=5)


def test_the_nearest_are_found():
    reference = torch.arange(10.0)[:, None] * torch.ones(1, 3)
    found = nearest(torch.tensor([[2.9] * 3, [7.0] * 3]), reference, 3, batch=1)
    assert found.indices.tolist() == [[3, 2, 4], [7, 6, 8]] or found.indices.tolist() == [[3, 2, 4], [7, 8, 6]]
    assert found.distances[:, 0].tolist() == pytest.approx([0.1 * 3**0.5, 0], abs=1e-5)
    assert nearest(reference, reference[:2]).indices.shape == (10, 2)
    large = 1000 + torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    assert nearest(large, large, 1).distances.max() == 0  # a copy is a copy


def test_labels_among_the_nearest():
    indices = torch.tensor([[0, 1, 2, 3, 4, 5], [1, 0, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [0, 1, 2, 3, 4, 5]])
    found = retrieval(indices, ["a", "a", "a", "nowhere"], ["a", "b", "c", "d", "e", "f"])
    assert (found.count, found.top1, found.top5) == (3, pytest.approx(1 / 3), pytest.approx(2 / 3))  # "a" is sixth in the third
    assert math.isnan(retrieval(indices[:1], ["nowhere"], ["a"] * 6).top1)
    several = retrieval(indices[:3], [("e", "f"), ("b", "nowhere"), ("nowhere", "else")], ["a", "b", "c", "d", "e", None])
    assert (several.count, several.top1, several.top5) == (2, 0.5, 1.0)  # any of them is right


def test_a_copy_a_shift_and_a_stranger(reference):
    path = next(row.path for row in reference.rows if row.path.name == "bar-green.png")
    copy, shifted = read_input(path), ImageChops.offset(read_input(path), 1, 1)
    other = read_input(next(row.path for row in reference.rows if row.split == "held_out"))
    prompts = [Prompt("", 0, "bar", "green"), Prompt("", 1, "bar", "green"), Prompt("", 2, "disc", "red", "held_out")]
    said = judged_pictures([copy, shifted, other], prompts, reference)
    train, held = (said["prompts"][name] for name in ("train", "held_out"))
    assert train["least"] < 1e-5
    assert held["nearest"] > train["nearest"] > train["least"]
    assert said["neighbours"][0][0] == "bar-green.png"
    assert train["label"] == {"count": 2, "top1": 1.0, "top5": 1.0}
    assert held["label"] == {"count": 1, "top1": 1.0, "top5": 1.0}  # by the discs of other colours: its own is not among them
    assert "disc-red.png" not in said["neighbours"][2]
    assert (said["prompts"]["all"]["count"], train["count"], held["count"]) == (3, 2, 1)


def test_what_real_pictures_reach(reference):
    assert reference.baseline()["count"] == 1
    assert reference.baseline()["label"]["top5"] == 1
    trained = Reference([row for row in reference.rows if row.split == "train"],
                        type(reference.seen)(*(each[1:] for each in reference.seen)), reference.features)
    said = trained.baseline()
    assert said["count"] == 11
    assert said["least"] > 0.01  # none is its own nearest
    assert trained.baseline(most=4)["count"] == 4


def test_the_features_put_shapes_together(reference):
    """Of every drawing the nearest others of its colours are told by their shape."""
    indices = reference.search(reference.seen.shape, range(len(reference.rows))).indices
    labels = [row.label for row in reference.rows]
    found = retrieval(indices, labels, labels)
    assert found.top5 == 1
    assert found.top1 > 0.8


def test_features_of_one_picture_or_of_many(reference):
    rows = reference.rows[:4]
    again = Reference.of(rows, reference.features, batch=1)
    for one, many in zip(again.seen, reference.seen, strict=True):
        assert torch.allclose(one, many[:4], atol=1e-4)
    assert len({each.shape[0] for each in reference.seen}) == 1
    assert fid(reference.seen.all, reference.seen.all) == pytest.approx(0, abs=1e-6)
    assert fid(reference.seen.all[:6], reference.seen.all[6:]) > 0.01


def test_without_labels(reference):
    said = judged_pictures([read_input(row.path) for row in reference.rows[:2]], [Prompt("", 0), Prompt("", 1)], reference)
    assert said["prompts"]["all"]["label"] is None
    assert said["prompts"]["all"]["style"] is None
    assert list(said["prompts"]) == ["all"]


def test_styles():
    from calotype.evaluation.data import Row
    from calotype.evaluation.features import Seen

    rows = [Row(None, label=label, style=style) for label in SHAPES for style in STYLES]
    style = torch.nn.functional.one_hot(torch.arange(12) % 3, 3).float()
    made = Reference(rows, Seen(style, style, style), None)
    prompts = [Prompt("", 0, "disc", "green"), Prompt("", 1, "disc", "green"), Prompt("", 2, "disc")]
    assert made.styled(style[[1, 2, 0]], prompts) == 0.5
    assert made.styled(style[[1]], [Prompt("", 0)]) is None
    turned = torch.cat([style[:-3], style[-3:].roll(1, 0)])  # those of the last shape look like another style's
    made = Reference(rows, Seen(turned, turned, turned), None)
    shapes = [*SHAPES]
    assert made.styled(style[[1]], [Prompt("", 0, shapes[0], "green")]) == 1
    assert made.styled(style[[1]], [Prompt("", 0, tuple(shapes[:-1]), "green")]) == 0  # by the only shape that was not asked for


@pytest.mark.parametrize(("call", "said"), [
    (lambda: retrieval(torch.zeros(2, 5).long(), [None, None], ["a"]), "the prompts have no labels"),
    (lambda: retrieval(torch.zeros(2, 5).long(), ["a", "b"], [None]), "the data set's pictures have no labels"),
    (lambda: retrieval(torch.zeros(2, 5).long(), ["a"], ["a"]), "2 pictures and 1 labels"),
    (lambda: nearest(torch.zeros(2, 5), torch.zeros(2, 4)), "must be [N, D] and [M, D]"),
    (lambda: nearest(torch.zeros(2, 5), torch.zeros(0, 5)), "must be [N, D] and [M, D]"),
    (lambda: nearest(torch.full((2, 5), torch.nan), torch.zeros(2, 5)), "not finite"),
])
def test_what_is_wrong(call, said):
    with pytest.raises(ValueError) as error:
        call()
    assert said in str(error.value)
