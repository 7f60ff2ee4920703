"""examples/emoji: from icon sets to a captioned data set, on packages made here."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import sys
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from cli.conftest import save_tiny
from drawings import save_drawings
from PIL import Image
from safetensors.torch import load_file

import calotype
from calotype.training import Trainer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples" / "emoji"))

import drawing
import packages
import prompts
import words as teaching
from asking import PLAIN, STYLED, questions_of
from captions import MOST, Vocabulary, captions_of, words_of
from labels import Emoji, icon_name, name_of, read_emoji, select, svg_of
from phrases import spoken, with_article
from prepare import main, prepare
from splits import FEWEST, split_of

STYLES = ("noto", "fluent", "flat", "twemoji")
LABELS = {"rocket": ("1F680", 5, 54, ["space"]), "red apple": ("1F34E", 4, 42, ["fruit"]), "cat face": ("1F431", 3, 12, ["cat"]),
          "left hand": ("1FAF2", 1, 16, ["hand"]), "flag: Japan": ("1F1EF-1F1F5", 9, 98, []), "red hair": ("1F9B0", 2, 33, [])}
MESSAGES = {"groups": [{"key": key, "order": order} for order, key in enumerate(
    ("smileys-emotion", "people-body", "component", "animals-nature", "food-drink", "travel-places", "activities", "objects",
     "symbols", "flags"))],
    "subgroups": [{"key": key, "order": order} for key, order in (
        ("cat-face", 12), ("hand-fingers-open", 16), ("food-fruit", 42), ("transport-air", 54), ("hair-style", 33),
        ("country-flag", 98))]}


def archive(folder: Path, name: str, members: dict[str, Any]) -> packages.Package:
    """A package as npm packs it, in `folder`."""
    package = packages.Package(name, "1.0.0", "MIT", "")
    with tarfile.open(folder / package.file_name, "w:gz") as tar:
        for member, content in members.items():
            data = json.dumps(content).encode()
            entry = tarfile.TarInfo(f"package/{member}")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    digest = hashlib.sha512((folder / package.file_name).read_bytes()).digest()
    return packages.Package(name, "1.0.0", "MIT", "sha512-" + base64.b64encode(digest).decode())


@pytest.fixture
def sets(tmp_path: Path) -> dict[str, Any]:
    """Keywords for `prepare`: four icon sets and the words, packed. The left half of every icon is red."""
    folder = tmp_path / "packed"
    folder.mkdir()
    body = {"body": '<path fill="#f00" d="M0 0h16v32H0z"/>'}
    icons = {"width": 32, "height": 32, "icons": dict.fromkeys(("rocket", "red-apple", "kitty"), body),
             "aliases": {"left-hand": {"parent": "rocket", "hFlip": True}}}
    characters = {"1f431": "kitty", "1f680": "rocket", "1fae0": "gone"}
    styles = {style: archive(folder, f"@icons/{style}", {
        "icons.json": icons, "chars.json": {} if style == "fluent" else characters}) for style in STYLES}
    data = [{"label": label, "hexcode": code, "group": group, "subgroup": subgroup, "tags": tags}
            for label, (code, group, subgroup, tags) in LABELS.items()] + [{"label": "regional indicator A", "hexcode": "1F1E6"}]
    short = {"1F34E": ["apple", "apple2"], "1F680": "rocket"}
    words = archive(folder, "words", {"en/data.json": data, "en/messages.json": MESSAGES, **{
        f"en/shortcodes/{name}.json": short for name in ("github", "emojibase", "iamcal")}})
    return {"packages": folder, "styles": styles, "words": words, "workers": 1}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was drawn, by a renderer that needs nothing installed."""
    names: list[str] = []

    def draw(svg: str, path: Path) -> None:
        names.append(f"{path.parent.name}/{path.name}")
        with drawing.staged_file(path) as scratch:
            Image.new("RGB", (8, 8), "white").save(scratch)

    monkeypatch.setattr(drawing, "draw", draw)
    monkeypatch.setattr(drawing, "find_spec", lambda name: object())
    return names


def emoji(label: str, group: str = "animals-nature", subgroup: str = "animal-mammal", tags: tuple[str, ...] = (),
          names: tuple[str, ...] = ()) -> Emoji:
    return Emoji(label, "0", tags, names, group, subgroup)


@pytest.mark.parametrize(("label", "name"), [
    ("red apple", "red-apple"), ("man: beard", "man-beard"), ("two o’clock", "two-oclock"), ("piñata", "pinata"),
    ("UP! button", "up-button"), ("A button (blood type)", "a-button-blood-type"), ("t-shirt", "t-shirt"),
    ("keycap: #", "keycap-pound"), ("Mrs. Claus", "mrs-claus")])
def test_a_label_becomes_a_file_name(label: str, name: str) -> None:
    assert name_of(label) == name


@pytest.mark.parametrize(("label", "phrase"), [
    ("red apple", "a red apple"), ("apple", "an apple"), ("unicorn", "a unicorn"), ("umbrella", "an umbrella"), ("ewe", "a ewe"),
    ("hourglass done", "an hourglass done"), ("SOS button", "an SOS button"), ("NEW button", "a NEW button"),
    ("x-ray", "an x-ray"), ("face holding back tears", "a face holding back tears"),
    ("chopsticks", "chopsticks"), ("women with bunny ears", "women with bunny ears"), ("cactus", "a cactus"), ("bread", "bread"),
    ("glass of milk", "a glass of milk"), ("person lifting weights", "a person lifting weights"), ("two o’clock", "two o'clock"),
    ("man: beard", "a man with beard"), ("woman: bald", "a bald woman"), ("keycap: 3", "keycap 3"), ("Aries", "Aries"),
    ("family: man, woman, boy", "a family of man, woman and boy"), ("Japanese “here” button", "a Japanese here button")])
def test_a_label_is_said_with_its_article(label: str, phrase: str) -> None:
    assert with_article(spoken(label)) == phrase


def test_people_find_a_picture_by_what_they_call_it() -> None:
    chipmunk = emoji("chipmunk", tags=("animal", "squirrel"))
    apple = emoji("red apple", "food-drink", "food-fruit", ("apple", "red"), ("apple",))
    cat = emoji("cat face", tags=("cat", "face"))
    words = Vocabulary([chipmunk, apple, cat, *(emoji(name, tags=("animal",)) for name in ("ox", "bat", "cow", "pig", "ram"))])
    assert {"a squirrel in flat style", "an emoji of a squirrel", "chipmunk squirrel, flat style", "a chipmunk in flat style",
            "an emoji of a chipmunk", "an image of a chipmunk in flat style"} <= set(captions_of(chipmunk, "flat", words))
    assert "an apple in noto style" in captions_of(apple, "noto", words)
    assert "a cat in noto style" in captions_of(cat, "noto", words)


def test_a_tag_of_many_or_of_another_is_no_caption_by_itself() -> None:
    faces = [emoji(f"{word} face", "smileys-emotion", "face-smiling", ("face", "mouth"))
             for word in ("sad", "wry", "odd", "shy", "hot", "icy")]
    astronaut = emoji("astronaut", "people-body", "person-role", ("rocket", "nasa"))
    dog = emoji("hot dog", "food-drink", "food-prepared", ("dog",))
    words = Vocabulary([*faces, astronaut, dog, emoji("rocket", "travel-places", "transport-air"), emoji("dog")])
    said = captions_of(faces[0], "noto", words)
    assert "sad face mouth, noto style" in said and not {"mouth", "mouth, noto style", "mouth in noto style"} & set(said)
    said = captions_of(astronaut, "noto", words)
    assert "nasa, noto style" in said and "astronaut rocket, noto style" in said
    assert not any(caption.startswith(("rocket", "a rocket")) for caption in said)
    assert not any("a dog" in caption for caption in captions_of(dog, "noto", words))


def test_captions_are_bounded_and_always_the_same() -> None:
    busy = emoji("busy bee", tags=tuple(f"tag{letter}" for letter in "abcdefghijk"), names=("bee", "worker", "busy one", "flier"))
    words = Vocabulary([busy])
    said = captions_of(busy, "twemoji", words)
    assert 6 <= len(said) <= MOST and len(set(said)) == len(said)
    shuffled = emoji("busy bee", tags=busy.tags[::-1], names=busy.names)
    assert captions_of(shuffled, "twemoji", Vocabulary([shuffled])) == said
    assert len(captions_of(emoji("ox"), "noto", Vocabulary([emoji("ox")]))) == 6


def test_a_word_means_one_emoji_and_may_be_of_many() -> None:
    car = emoji("automobile", "travel-places", "transport-ground", ("driving",), ("car",))
    rail = emoji("railway car", "travel-places", "transport-ground", ("driving",))
    apple = emoji("red apple", "food-drink", "food-fruit", ("fruit",), ("apple",))
    green = emoji("green apple", "food-drink", "food-fruit", ("fruit",))
    chipmunk = emoji("chipmunk", tags=("squirrel",))
    words = Vocabulary([rail, car, green, apple, chipmunk])
    assert words_of(car, words) == {"words": ["automobile", "car", "driving"], "called": ["automobile", "car"],
                                    "tagged": ["driving"]}  # by the shorter label
    assert words_of(rail, words) == {"words": ["railway car", "car", "driving"], "called": ["railway car"], "tagged": []}
    assert words_of(apple, words)["called"] == ["red apple", "apple"]  # a short name comes before a noun
    assert words_of(green, words) == {"words": ["green apple", "apple", "fruit"], "called": ["green apple"],
                                      "tagged": ["fruit"]}
    assert words_of(chipmunk, words)["called"] == ["chipmunk", "squirrel"]


def rows_of(*labels: str) -> list[dict[str, Any]]:
    return [{"label": label, "style": style, "group": "food-drink", "called": [label, f"{label}y"], "tagged": ["ripe"],
             "words": [label, f"{label}y", "ripe"], "split": "held_out" if style == "flat" else "train"}
            for label in labels for style in ("noto", "flat")]


def test_what_people_ask_is_answered_by_a_caption() -> None:
    questions = questions_of(rows_of(*(f"pear{letter}" for letter in "abcdefghijklmnopq")))
    assert {one.known for one in questions[:3]} == {"an emoji of a peara", "a peara in noto style"}  # "flat" is held out
    assert sum(one.known == "" == "".join(one.asked) for one in questions) == 1  # nothing stays nothing
    plain, styled = questions[0], questions[2]
    assert {"peara", "a peara", "pearay", "ripe", "an emoji of a pearay"} <= set(plain.asked)
    assert {"a ripe in noto style", "pearay, noto style", "noto peara"} <= set(styled.asked)
    assert (len(plain.asked), len(styled.asked)) == (4 * len(PLAIN), 4 * len(STYLED))
    assert plain.asked.count("peara") == 2 * plain.asked.count("ripe")  # the label is half of it
    assert not any("style" in text for text in plain.asked)


def test_the_text_encoder_learns_words_and_a_killed_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_drawings(tmp_path / "data")
    lines = (tmp_path / "data" / "metadata.jsonl").read_text().splitlines()
    rows = [json.loads(line) | row for line, row in zip(lines, rows_of(*"abcdef"), strict=True)]
    (tmp_path / "data" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = save_tiny(tmp_path / "tiny")
    before = calotype.DiffusionPipeline.from_pretrained(model)

    def run(folder: str, steps: int, blend: float = 1) -> Any:
        settings = teaching.Settings(
            pretrained_model_name_or_path=str(model), train_data_dir=tmp_path / "data", output_dir=tmp_path / folder,
            max_train_steps=steps, train_batch_size=4, learning_rate=1e-3, checkpointing_steps=2, num_validation_images=0,
            looks=4, logging_steps=1, blend=blend)
        return Trainer(teaching.Words(settings), settings, lambda text: None).run().losses

    losses = run("whole", 4)
    run("killed", 2)
    assert run("killed", 4)[4] == losses[4]
    run("half", 4, 0.5)
    whole, killed, half = (load_file(tmp_path / folder / "text_encoder" / "model.safetensors")
                           for folder in ("whole", "killed", "half"))
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    first = load_file(model / "text_encoder" / "model.safetensors")
    assert all(torch.allclose(half[name].float(), (whole[name] + first[name]) / 2, atol=1e-3) for name in whole)
    assert any((half[name].float() - first[name]).abs().max() > 2e-3 for name in whole)
    made = calotype.DiffusionPipeline.from_pretrained(tmp_path / "whole")
    assert not torch.equal(next(made.text_encoder.parameters()), next(before.text_encoder.parameters()).half().float())
    for part in ("unet", "vae"):  # those stay
        assert all(torch.equal(one, other.half().float()) for one, other in zip(
            getattr(made, part).parameters(), getattr(before, part).parameters(), strict=True))


def test_it_is_compared_what_the_unet_reads(tmp_path: Path) -> None:
    """In which order the places of a text stand, say, does not count, since nothing is read from it."""
    pipeline = calotype.DiffusionPipeline.from_pretrained(save_tiny(tmp_path / "tiny"))
    save_drawings(tmp_path / "data")
    seen = teaching.seen_by_attention(pipeline, tmp_path / "data", seed=0, count=3)
    assert len(seen) == 4 and all(places.ndim == 2 for _, places in seen)
    attention, places = seen[0]
    states = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(attention(places[None, :7], states), attention(places[None, :7], states.flip(1)), atol=1e-5)


def test_splits_hold_out_one_style_of_few_labels() -> None:
    labels = [f"label {number}" for number in range(3000)]
    held = Counter(label for label in labels for style in STYLES if split_of(label, style, STYLES) == "held_out")
    assert set(held.values()) == {1} and 0.02 < len(held) / (4 * len(labels)) < 0.04
    assert all(split_of(label, style, STYLES[:FEWEST - 1]) == "train" for label in labels for style in STYLES)
    assert all(split_of(label, style, STYLES[::-1]) == split_of(label, style, STYLES) for label in labels for style in STYLES)
    assert [style for style in STYLES if split_of("banana", style, STYLES) == "held_out"] == ["twemoji"]  # in every version


def test_emoji_are_chosen_by_group_subgroup_and_label(sets: dict[str, Any]) -> None:
    data = packages.read_member(packages.archive_of(sets["words"], sets["packages"]), "en/data.json")
    known = read_emoji(data, MESSAGES, [{"1F34E": ["apple", "apple2", "a_b"]}])
    assert [one.label for one in known] == ["rocket", "red apple", "cat face", "left hand"]  # no flags, no components
    assert known[1].names == ("apple",)
    assert [one.label for one in select(known, ["food-drink"], ["cat-face"])] == ["red apple", "cat face"]
    assert [one.label for one in select(known, labels=["*a*e*"])] == ["red apple", "cat face"]
    with pytest.raises(ValueError, match="no subgroup is 'cat-faces'; did you mean 'cat-face'"):
        select(known, subgroups=["cat-faces"])


def test_two_emoji_with_one_name_are_an_error() -> None:
    rows = [{"label": label, "hexcode": "1", "group": 3, "subgroup": 12} for label in ("a cat", "a: cat")]
    with pytest.raises(ValueError, match="a-cat"):
        read_emoji(rows, MESSAGES)


def test_a_character_finds_an_icon_whose_name_changed() -> None:
    icons = {"icons": {"pouting-face": {}, "enraged-face": {}}}
    one = Emoji("enraged face", "1F621-FE0F", (), (), "smileys-emotion", "face-negative")
    assert icon_name(one, icons, {"1f621": "pouting-face"}) == "pouting-face"
    assert icon_name(one, icons, {"1f621": "removed"}) == icon_name(one, icons) == "enraged-face"
    assert icon_name(emoji("ox"), icons) is None


def test_a_preparation_writes_pictures_and_captions(tmp_path: Path, sets: dict[str, Any], drawn: list[str]) -> None:
    rows = prepare(tmp_path / "data", 8, **sets)
    assert rows == [json.loads(line) for line in (tmp_path / "data" / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["label"] for row in rows[::4]] == ["rocket", "red apple", "cat face", "left hand"]
    assert {row["file_name"] for row in rows} == {f"pictures/{name}" for name in drawn}
    assert all((tmp_path / "data" / row["file_name"]).is_file() for row in rows)
    assert {key: rows[5][key] for key in ("label", "style", "tags", "group", "subgroup")} == {
        "label": "red apple", "style": "fluent", "tags": ["fruit"], "group": "food-drink", "subgroup": "food-fruit"}
    assert {row["split"] for row in rows} <= {"train", "held_out"} and "a red apple in fluent style" in rows[5]["text"]


def test_a_killed_preparation_is_gone_on_with(tmp_path: Path, sets: dict[str, Any], drawn: list[str],
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    usual, folder = drawing.draw, tmp_path / "data"

    def dies(svg: str, path: Path) -> None:
        if len(drawn) == 5:
            (path.parent / ".0123.png").write_bytes(b"half")
            raise KeyboardInterrupt
        usual(svg, path)

    monkeypatch.setattr(drawing, "draw", dies)
    with pytest.raises(KeyboardInterrupt):
        prepare(folder, 8, **sets)
    assert not (folder / "metadata.jsonl").exists()
    first = drawn.copy()
    monkeypatch.setattr(drawing, "draw", usual)
    rows = prepare(folder, 8, **sets)
    assert len(drawn) == len(set(drawn)) == len(rows) and drawn[:5] == first  # none twice
    assert not list(folder.rglob(".*"))
    assert prepare(folder, 8, **sets) == rows and len(drawn) == len(rows)


def test_a_folder_keeps_to_one_preparation(tmp_path: Path, sets: dict[str, Any], drawn: list[str]) -> None:
    prepare(tmp_path / "data", 8, **sets)
    before = (tmp_path / "data" / "metadata.jsonl").read_bytes()
    with pytest.raises(ValueError, match="size is 8 and groups is \\[\\]"):
        prepare(tmp_path / "data", 16, groups=["food-drink"], **sets)
    assert (tmp_path / "data" / "metadata.jsonl").read_bytes() == before


def test_a_missing_package_and_no_npm(tmp_path: Path, sets: dict[str, Any], drawn: list[str], monkeypatch: pytest.MonkeyPatch,
                                      capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(packages.shutil, "which", lambda name: None)
    (sets["packages"] / sets["styles"]["flat"].file_name).unlink()
    with pytest.raises(RuntimeError, match="npm, which fetches it, is not installed.*npm pack @icons/flat@1.0.0"):
        prepare(tmp_path / "data", 8, **sets)
    with pytest.raises(SystemExit, match="error: @iconify-json/noto@"):
        main([str(tmp_path / "data"), "--packages", str(tmp_path / "none")])
    assert not (tmp_path / "data").exists()


def test_another_package_than_the_pinned_one_is_refused(tmp_path: Path, sets: dict[str, Any], drawn: list[str]) -> None:
    with (sets["packages"] / sets["words"].file_name).open("ab") as file:
        file.write(b"more")
    with pytest.raises(ValueError, match="is not words 1.0.0: its checksum is sha512-"):
        prepare(tmp_path / "data", 8, **sets)


@pytest.mark.skipif(os.name == "nt", reason="npm is a shell script here")
def test_packages_are_fetched_with_npm(tmp_path: Path, sets: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\ncp {sets["packages"]}/*.tgz "$4"\n')
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{npm.parent}{os.pathsep}{os.environ['PATH']}")
    path = packages.archive_of(sets["words"], tmp_path / "fetched")
    assert path.is_file() and (tmp_path / "asked").read_text().split()[-1] == "words@1.0.0"
    npm.write_text('#!/bin/sh\necho half > "$4"/words-1.0.0.tgz\necho no such package >&2\nexit 1\n')
    with pytest.raises(RuntimeError, match="npm could not fetch words@1.0.0:\nno such package"):
        packages.archive_of(sets["words"], tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_icons_are_drawn_on_white(tmp_path: Path, sets: dict[str, Any]) -> None:
    pytest.importorskip("resvg_py", reason="draws SVGs")
    rows = prepare(tmp_path / "data", 64, labels=["rocket", "left hand"], **{**sets, "workers": 2})
    pictures = {row["label"]: Image.open(tmp_path / "data" / row["file_name"]) for row in rows}
    assert {(picture.size, picture.mode) for picture in pictures.values()} == {((64, 64), "RGB")}
    assert [pictures["rocket"].getpixel((x, 32)) for x in (8, 56)] == [(255, 0, 0), (255, 255, 255)]
    assert [pictures["left hand"].getpixel((x, 32)) for x in (8, 56)] == [(255, 255, 255), (255, 0, 0)]  # mirrored
    drawing.draw_sheet(rows, tmp_path / "data", tmp_path / "sheet.png", size=16)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (2 * (4 * 16 + 4), 20) and sheet.getpixel((2, 2)) == (255, 0, 0)


def test_icons_are_centred_turned_and_mirrored_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    pytest.importorskip("resvg_py", reason="draws SVGs")
    icons = {"width": 32, "height": 32, "icons": {"wide": {"body": '<path d="M0 0h32v16H0z"/>', "height": 16},
                                                  "bad": {"body": "<g"}, "top": {"body": '<path d="M0 0h32v16H0z"/>'}},
             "aliases": {"right": {"parent": "top", "rotate": 1}, "below": {"parent": "top", "vFlip": True}}}
    drawing.draw(svg_of("wide", icons, 32), tmp_path / "wide.png")
    with Image.open(tmp_path / "wide.png") as picture:
        assert [picture.getpixel((16, y)) for y in (4, 16, 28)] == [(255, 255, 255), (0, 0, 0), (255, 255, 255)]
    corners = (8, 8), (24, 8), (8, 24)
    for name, dark in (("top", [True, True, False]), ("right", [False, True, False]), ("below", [False, False, True])):
        drawing.draw(svg_of(name, icons, 32), tmp_path / f"{name}.png")
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert [picture.getpixel(corner) == (0, 0, 0) for corner in corners] == dark
    with pytest.raises(ValueError, match="cannot draw .*bad.png"):
        drawing.draw(svg_of("bad", icons, 32), tmp_path / "bad.png")
    assert not (tmp_path / "bad.png").exists()


def test_the_words_of_the_evaluation_are_what_people_type() -> None:
    rows = {row["prompt"]: row for row in map(json.loads, prompts.WORDS.read_text(encoding="utf-8").splitlines())}
    assert len(rows) >= 100 and [row["seed"] for row in rows.values()] == list(range(len(rows)))
    assert {spoken(label) for label in prompts.LABELS} <= rows.keys() and set(prompts.CALLED.values()) <= rows.keys()
    assert rows["squirrel"]["label"] == ["chipmunk"] and {"automobile", "police car"} <= set(rows["car"]["label"])
    assert not any("style" in row or "style" in prompt for prompt, row in rows.items())
    found = [{"label": label, "called": [label], "words": [label, "thing"]} for label in prompts.LABELS]
    made = {row["prompt"]: row["label"] for row in prompts.words_of(found)}
    assert made["rocket"] == ["rocket"] and made["squirrel"] == []


def test_the_evaluation_prompts_are_those_of_the_splits() -> None:
    rows = [json.loads(line) for line in prompts.FILE.read_text(encoding="utf-8").splitlines()]
    assert len(rows) >= 200 and [row["seed"] for row in rows] == list(range(len(rows)))
    assert len({row["prompt"] for row in rows}) == len(rows)
    asked = Counter(row["label"] for row in rows if row["label"] in prompts.LABELS and row["prompt"].split(" in ")[0].endswith(
        spoken(row["label"])))
    assert set(prompts.LABELS) == set(asked) and set(asked.values()) == {4}
    assert all(row["split"] == split_of(row["label"], row["style"], STYLES) for row in rows if row["label"] in prompts.LABELS)
    assert sum(row["split"] == "held_out" for row in rows) > 150
    assert any(row["prompt"] == "a squirrel in flat style" and row["label"] == "chipmunk" for row in rows)
    assert {row["style"] for row in rows[:4]} == set(STYLES)
    found = [{"label": label, "style": style, "split": split_of(label, style, STYLES)}
             for label in prompts.LABELS for style in STYLES]
    assert prompts.prompts_of(found) == rows[:len(prompts.LABELS) * 4 + len(prompts.CALLED) * 4]
