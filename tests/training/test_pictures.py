"""Pictures: where they come from, how they are framed, and that a draw is a function of its ticket."""

from __future__ import annotations

import json
import sys
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from calotype.training.batches import Batches, Draw
from calotype.training.captions import Captions
from calotype.training.framing import Chance, Framing, covering
from calotype.training.pictures import Pictures


def picture(width=40, height=24, seed=0, mode="RGB"):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)
    return Image.fromarray(values, "RGBA").convert(mode)


@pytest.fixture
def folder(tmp_path):
    for i, name in enumerate(["b.png", "a.jpg", "deep/c.webp", "deep/d.bmp", "deep/E.JPEG"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture(20 + 8 * i, 24, i).save(tmp_path / name)
    (tmp_path / "notes.md").write_text("no picture")
    (tmp_path / ".hidden").mkdir()
    picture().save(tmp_path / ".hidden" / "x.png")
    return tmp_path


def with_metadata(folder, *rows, name="metadata.jsonl"):
    (folder / name).write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return folder


def rows(**more):
    return [{"file_name": "b.png", "text": "a b", **more}, {"file_name": "deep/c.webp", "text": ["a c", "see"], "style": "flat"}]


# -- sources ----------------------------------------------------------------------------------------------------------


def test_a_folder_in_the_order_of_its_names(folder):
    pictures = Pictures.open(folder, caption_column=None, resolution=16)
    assert [pictures.entry(i)["file_name"] for i in range(len(pictures))] == [
        "a.jpg", "b.png", "deep/E.JPEG", "deep/c.webp", "deep/d.bmp"]
    item = pictures[1]
    assert set(item) == {"pixel_values", "caption", "index", "original_size", "crop_top_left"}
    assert item["pixel_values"].shape == (3, 16, 16) and item["pixel_values"].dtype == torch.float32
    assert item["caption"] == "" and item["index"] == 1 and item["original_size"].tolist() == [24, 20]
    assert len(list(pictures)) == 5


def test_captions_beside_pictures(folder, caplog):
    (folder / "a.txt").write_text("\n a cat, tabby \n\nsecond\n")
    pictures = Pictures.open(folder, resolution=16)
    assert pictures.captions(0) == ["a cat, tabby", "second"] and pictures[0]["caption"] == "a cat, tabby"
    assert pictures.captions(1) == [] and "4 of 5 pictures" in caplog.text
    assert pictures.distinct_captions() == ["", "a cat, tabby", "second"]


def test_metadata(folder, caplog):
    pictures = Pictures.open(with_metadata(folder, *rows(), ""), resolution=16)
    assert len(pictures) == 2 and pictures.captions(1) == ["a c", "see"] and pictures.captions(0) == ["a b"]
    assert pictures.entry(1) == rows()[1] and "3 pictures" in caplog.text
    named = Pictures.open(with_metadata(folder, *rows(label=None)), caption_column="label", captions=Captions(constant="x"))
    assert named[0]["caption"] == "x" and named.captions(1) == ["x"]


def test_metadata_of_its_own_folder_and_as_csv(folder):
    with_metadata(folder / "deep", "file_name,text,style", 'd.bmp,"a d, with comma",flat', name="metadata.csv")
    pictures = Pictures.open(folder)
    assert len(pictures) == 1 and pictures.captions(0) == ["a d, with comma"] and pictures.entry(0)["style"] == "flat"
    assert pictures.entries[0].image == folder / "deep" / "d.bmp"


def test_pictures_in_memory():
    rows = [{"split": "train"}, {"split": "test"}]
    pictures = Pictures.of([picture(), picture(seed=1)], ["one", ["two", "zwei"]], rows, resolution=8)
    assert pictures.captions(1) == ["two", "zwei"] and pictures.where(split="test")[0]["caption"] == "two"
    assert torch.equal(pictures.where(split="test")[0]["pixel_values"], pictures[1]["pixel_values"])


class FakeDataset:
    """As much of `datasets.Dataset` as is used."""

    def __init__(self, **columns):
        self.columns, self.column_names = columns, list(columns)

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, key):
        return self.columns[key] if isinstance(key, str) else {name: values[key] for name, values in self.columns.items()}


def test_a_data_set(tmp_path):
    one = tmp_path / "one.png"
    picture(seed=1).save(one)
    held = [picture(), {"bytes": one.read_bytes(), "path": None}, {"bytes": None, "path": str(one)}]
    dataset = FakeDataset(image=held, text=["a", "b", ["c", "d"]], label=[1, 2, 3])
    pictures = Pictures.from_dataset(dataset, resolution=16, center_crop=True)
    assert [pictures.captions(i) for i in range(3)] == [["a"], ["b"], ["c", "d"]] and pictures.entry(2)["label"] == 3
    assert torch.equal(pictures[1]["pixel_values"], pictures[2]["pixel_values"])
    assert not torch.equal(pictures[0]["pixel_values"], pictures[1]["pixel_values"])
    with pytest.raises(ValueError, match="no column 'txt'; its columns are image, text, label; did you mean 'text'"):
        Pictures.from_dataset(dataset, caption_column="txt")


def test_without_the_library_a_data_set_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ModuleNotFoundError, match="pip install datasets"):
        Pictures.open(dataset_name="someone/pictures")


def test_filters(folder):
    pictures = Pictures.open(with_metadata(folder, *rows(style="round")), resolution=16)
    assert len(pictures.where(style="flat")) == 1 == len(pictures.select(lambda row: row["text"] == "a b"))
    assert len(pictures.where(style=["flat", "round"])) == 2 and pictures.where(style="flat")[0]["index"] == 0
    with pytest.raises(ValueError, match="no column 'styl'.*did you mean 'style'"):
        pictures.where(styl="flat")
    with pytest.raises(ValueError, match="there are flat, round"):
        pictures.where(style="square")
    with pytest.raises(ValueError, match="none fits"):
        pictures.select(lambda row: False)


# -- framing ----------------------------------------------------------------------------------------------------------


def test_white_shows_through_in_every_mode(tmp_path):
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.info["transparency"] = 1
    palette.save(tmp_path / "palette.png")
    for image in (clear, Image.new("LA", (8, 8), (0, 0)), Image.open(tmp_path / "palette.png")):
        assert Framing(8)(image).pixel_values.unique().tolist() == [1.0]
        assert Framing(8, background="black")(image).pixel_values.unique().tolist() == [-1.0]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"])
def test_all_modes(mode):
    deep = Image.fromarray(np.full((8, 8), 65535, np.uint16))
    values = Framing(8)(deep if mode == "I;16" else Image.new("RGB", (8, 8), "white").convert(mode)).pixel_values
    assert values.shape == (3, 8, 8) and values.dtype == torch.float32 and values.min() > 0.98


def test_turned_as_exif_says(tmp_path):
    upright = picture(24, 40)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    turned, = Pictures.open(tmp_path, caption_column=None, resolution=24)
    assert turned["original_size"].tolist() == [40, 24]
    assert torch.equal(turned["pixel_values"], Framing(24)(upright).pixel_values)
    assert Pictures.open(tmp_path, caption_column=None).entries[0].size() == (24, 40)


@pytest.mark.parametrize("size", [(40, 24), (24, 41), (17, 53), (32, 32)])
def test_resized_and_cropped_as_torchvision_does(size):
    image = picture(*size)
    short = min(size)
    expected = (16 * size[0] // short, 16) if size[0] >= size[1] else (16, 16 * size[1] // short)
    assert covering(size, (16, 16)) == expected
    framed = Framing(16, center_crop=True, interpolation="bilinear")(image)
    resized = image.resize(expected, Image.Resampling.BILINEAR)
    top, left = framed.crop_top_left
    assert (left, top) == (round((expected[0] - 16) / 2), round((expected[1] - 16) / 2))
    values = np.asarray(resized.crop((left, top, left + 16, top + 16)), np.float32) / 255
    assert torch.equal(framed.pixel_values, torch.from_numpy((values - 0.5) / 0.5).permute(2, 0, 1))


def test_crops_reach_every_place_and_flips_are_mirrors():
    framing, image = Framing(24, random_flip=True), picture(27, 24)
    lefts = {framing(image, chance=Chance(0.9, across, 0.5)).crop_top_left for across in np.linspace(0, 0.999, 30)}
    assert lefts == {(0, 0), (0, 1), (0, 2), (0, 3)}
    plain, flipped = (Framing(24, random_flip=True)(picture(24, 24), chance=Chance(flip, 0, 0)) for flip in (0.6, 0.4))
    assert torch.equal(plain.pixel_values.flip(-1), flipped.pixel_values)


def test_a_draw_is_a_function_of_its_ticket(folder):
    (folder / "a.txt").write_text("one\ntwo")
    pictures = Pictures.open(folder, resolution=16, random_flip=True, captions=Captions(dropout=0.2), seed=5)
    items = [pictures[Draw(0, ticket)] for ticket in range(40)]
    assert {item["caption"] for item in items} == {"", "one", "two"}
    assert len({item["pixel_values"].numpy().tobytes() for item in items}) == 6  # 3 crops of 18 x 16, mirrored or not
    assert items[7]["caption"] == pictures[Draw(0, 7)]["caption"]
    assert torch.equal(items[7]["pixel_values"], pictures[Draw(0, 7)]["pixel_values"])
    assert torch.equal(pictures[0]["pixel_values"], pictures[0]["pixel_values"]) and pictures[0]["caption"] == "one"


def test_workers_change_nothing(folder):
    pictures = Pictures.open(folder, caption_column=None, resolution=16, random_flip=True)
    loaders = [DataLoader(pictures, batch_sampler=Batches(pictures.groups, 3, 0), num_workers=n) for n in (0, 2)]
    for alone, shared in islice(zip(*loaders, strict=True), 4):
        assert alone["index"].tolist() == shared["index"].tolist() and alone["caption"] == shared["caption"]
        assert torch.equal(alone["pixel_values"], shared["pixel_values"]) and alone["crop_top_left"].shape == (3, 2)


def test_buckets(folder):
    for i, size in enumerate([(64, 20), (20, 64)]):
        picture(*size).save(folder / f"z{i}.png")
    pictures = Pictures.open(folder, caption_column=None, resolution=32, buckets=True, bucket_step=8)
    assert sorted(index for group in pictures.groups for index in group) == list(range(7)) and len(pictures.groups) > 2
    for group in pictures.groups:
        shapes = {pictures[Draw(index, 3)]["pixel_values"].shape for index in group}
        assert len(shapes) == 1
        _, height, width = shapes.pop()
        assert height % 8 == 0 == width % 8 and height * width <= 32 * 32
    wide, high = (pictures[i]["pixel_values"].shape for i in (5, 6))
    assert wide[2] > wide[1] and high[1] > high[2]
    assert pictures.select(lambda row: row["file_name"] == "z0.png")[0]["pixel_values"].shape == wide


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lines", "kind", "words"), [
    ([{"file_name": "b.png", "txt": "x"}], ValueError, "no column 'text'; its columns are file_name, txt; did you mean 'txt'"),
    ([{"file": "b.png", "text": "x"}], ValueError, "no column 'file_name'"),
    ([rows()[0], {"file_name": "B.png", "text": "x"}], FileNotFoundError, "line 2 of .* names 'B.png'.*did you mean 'b.png'"),
    ([rows()[0], "{"], ValueError, "line 2 of .*metadata.jsonl' is damaged"),
    (["[1]"], ValueError, "line 1 of .* is a JSON list"),
    ([rows()[0], {"file_name": "a.jpg"}], ValueError, "line 2 of .* has no 'text'"),
    ([{"file_name": "b.png", "text": 3}], ValueError, "caption of line 1 of .* is 3"),
    ([{"file_name": "", "text": "x"}], ValueError, "line 1 of .* names no picture"),
    ([""], FileNotFoundError, "no pictures in")])
def test_bad_metadata(folder, lines, kind, words):
    with pytest.raises(kind, match=words):
        Pictures.open(with_metadata(folder, *lines))


def test_bad_tables(folder):
    with_metadata(folder, "file_name,text", "b.png", name="metadata.csv")
    with pytest.raises(ValueError, match="line 2 of .* another number of columns"):
        Pictures.open(folder)
    with pytest.raises(ValueError, match="both metadata.jsonl and metadata.csv"):
        Pictures.open(with_metadata(folder, *rows()))


def test_no_pictures(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no pictures in .*looked for \.png, \.jpg"):
        Pictures.open(tmp_path)
    with pytest.raises(FileNotFoundError, match="is not there; a folder"):
        Pictures.open(tmp_path / "none")
    with pytest.raises(ValueError, match="no pictures"):
        Pictures.of([])
    with pytest.raises(ValueError, match="either train_data_dir"):
        Pictures.open()


def test_no_captions(folder):
    with pytest.raises(ValueError, match="have no captions.*caption_column=None"):
        Pictures.open(folder)
    assert Pictures.open(folder, captions=Captions(constant="a photo of sks dog"))[0]["caption"] == "a photo of sks dog"
    (folder / "a.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ValueError, match=r"a\.txt' is damaged"):
        Pictures.open(folder)


def test_a_broken_picture_is_named(folder):
    whole = (folder / "b.png").read_bytes()
    pictures = Pictures.open(folder, caption_column=None)
    for content in (whole[:200], b"nothing", b""):
        (folder / "b.png").write_bytes(content)
        with pytest.raises(ValueError, match=r"b\.png' cannot be read as a picture"):
            pictures[1]
    with pytest.raises(ValueError, match=r"b\.png' cannot be read as a picture"):
        Pictures.open(folder, caption_column=None, buckets=True)
    with pytest.raises(ValueError, match=r"images\[0\] is a str"):
        Pictures.of(["b.png"])[0]


@pytest.mark.parametrize(("how", "kind", "words"), [
    ({"resolution": 0}, ValueError, "resolution is 0"), ({"interpolation": "lancos"}, ValueError, "did you mean 'lanczos'"),
    ({"background": "whit"}, ValueError, "background is 'whit'"),
    ({"centre_crop": True}, TypeError, "did you mean 'center_crop'"),
    ({"texts": ["a", "b"]}, ValueError, "1 pictures and 2 texts")])
def test_bad_settings(how, kind, words):
    with pytest.raises(kind, match=words):
        Pictures.of([picture()], **how)


def test_no_such_picture():
    pictures = Pictures.of([picture()], resolution=8)
    assert pictures[-1]["index"] == 0 == pictures[np.int64(0)]["index"]
    for index in (1, -2, Draw(1, 0)):
        with pytest.raises(IndexError, match="there are 1"):
            pictures[index]
    with pytest.raises(ValueError, match="shuffle_tags"):
        Pictures.of([picture()], ["a, b"], captions=Captions(shuffle_tags=True)).distinct_captions()
