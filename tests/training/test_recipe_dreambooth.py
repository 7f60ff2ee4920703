"""The recipe "dreambooth": a subject, with and without its class, of the whole network or of an adapter."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

import calotype
from calotype.training.batches import Draw
from calotype.training.recipes.dreambooth import Both
from calotype.training.task import Place

from .made_pictures import (
    assert_same_bits,
    assert_same_picture,
    make_pictures,
    settings_of,
    state_of,
    task_of,
    train,
)


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    """Five pictures of something."""
    return make_pictures(tmp_path_factory.mktemp("subject") / "disc", 5)


@pytest.fixture
def told(tiny_folder, subject, tmp_path):
    return {"pretrained_model_name_or_path": str(tiny_folder), "instance_data_dir": subject, "output_dir": tmp_path / "out",
            "instance_prompt": "a photo of sks disc", "train_batch_size": 4, "max_train_steps": 2, "learning_rate": 4e-3,
            "validation_inference_steps": 2}


PRIOR = {"with_prior_preservation": True, "class_prompt": "a photo of a disc", "num_class_images": 3}
ADAPTER = {"adapter": True, "learning_rate": 3e-2, "rank": 8,
           "lora_targets": ["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2"]}


@pytest.mark.parametrize(("changes", "factor"), [
    ({}, 0.6), (ADAPTER, 0.85), (PRIOR | {"train_text_encoder": True}, 0.6)],
    ids=["all", "adapter", "with its class"])
def test_learns_and_is_loaded_here_and_in_diffusers(told, tiny_folder, diffusers, changes, factor):
    task = task_of("dreambooth", **told | {"max_train_steps": 40} | changes)
    before, trained, after = train(task)
    assert after < factor * before  # measured: 0.48, 0.70, 0.47
    made = []
    for library in (calotype, diffusers):
        adapter = changes.get("adapter")
        pipeline = library.StableDiffusionPipeline.from_pretrained(
            tiny_folder if adapter else trained.folder, safety_checker=None, requires_safety_checker=False)
        if adapter:
            pipeline.load_lora_weights(str(trained.folder))
        pipeline.set_progress_bar_config(disable=True)
        made.append(pipeline("a photo of sks disc", generator=torch.Generator().manual_seed(0), num_inference_steps=3,
                             output_type="np").images)
    assert_same_picture(*made)


def test_the_adapter_leaves_the_base(told, tiny_folder):
    task = task_of("dreambooth", **told | {"adapter": True})
    before = {key: value for key, value in state_of(task.pipeline.unet).items() if "lora_" not in key}
    train(task)
    after = {key: value for key, value in state_of(task.pipeline.unet).items() if "lora_" not in key}
    assert_same_bits(before, after)
    assert (told["output_dir"] / "pytorch_lora_weights.safetensors").is_file()
    assert not (told["output_dir"] / "unet").exists()


def test_pictures_of_the_class_are_made_once(told, tmp_path):
    folder, said = tmp_path / "class", []
    task = task_of("dreambooth", **told | PRIOR | {"class_data_dir": folder})
    task.make_class(folder, said.append)
    names = [f"{i:05}.png" for i in range(3)]
    assert sorted(path.name for path in folder.glob("[!.]*")) == names and said == ["making 3 pictures of 'a photo of a disc'"]
    made = {name: (folder / name).read_bytes() for name in names}
    times = {name: (folder / name).stat().st_mtime_ns for name in names}
    task.make_class(folder, said.append)
    (folder / names[1]).unlink()
    task.make_class(folder, said.append)
    assert said[1:] == ["making 1 pictures of 'a photo of a disc'"]
    assert {name: (folder / name).read_bytes() for name in names} == made and len(set(made.values())) == 3
    assert all(times[name] == (folder / name).stat().st_mtime_ns for name in (names[0], names[2]))


def test_pictures_of_ones_own_are_counted(told, tmp_path):
    folder, said = make_pictures(tmp_path / "own" / "inside", 2).parent, []
    (folder / "inside" / "metadata.jsonl").unlink()
    task = task_of("dreambooth", **told | PRIOR)
    task.make_class(folder, said.append)
    assert [path.name for path in folder.glob("*.png")] == ["00000.png"]


def withholding(task, withheld):
    """Let the pipeline of a task withhold the pictures of the draws that are in `withheld`; the seeds that it is given."""
    seeds, pipeline = [], task.pipeline

    def call(prompt, generator, **how):
        made = pipeline(prompt, generator=generator, **how)
        seeds.append(generator.initial_seed())
        made.nsfw_content_detected = [len(seeds) - 1 in withheld]
        if made.nsfw_content_detected[0]:
            made.images = [Image.new("RGB", made.images[0].size)]
        return made

    task.pipeline = call
    return seeds


def test_what_the_safety_checker_withholds_is_drawn_again(told, tmp_path):
    folder, said = tmp_path / "class", []
    task = task_of("dreambooth", **told | PRIOR | {"class_data_dir": folder, "validation_inference_steps": 1})
    seeds = withholding(task, {1, 2})
    entries = task.make_class(folder, said.append)
    assert [entry.image.name for entry in entries] == ["00000.png", "00001.png", "00002.png"]
    assert all(entry.read().getbbox() is not None for entry in entries)
    assert len(seeds) == len(set(seeds)) == 5 and [seeds[0], seeds[1], seeds[4]] == [0, 1, 2]
    assert said.count("picture 1 of the class is drawn again: the safety checker withheld it") == 2
    withholding(task, range(100))
    (folder / "00002.png").unlink()
    with pytest.raises(ValueError, match=r"withheld picture 2 of class_prompt 'a photo of a disc', whatever the seed \(10 were"):
        task.make_class(folder, said.append)
    assert not (folder / "00002.png").exists()


def test_what_shows_nothing_is_no_picture_of_the_class(told, tmp_path, caplog):
    """Hidden and damaged files, and black pictures that an earlier run left."""
    folder = tmp_path / "class"
    made = make_pictures(folder, 1)
    (folder / "metadata.jsonl").unlink()
    (folder / "00.png").rename(folder / "own.png")
    whole = (folder / "own.png").read_bytes()
    for name in ("._own.png", ".0123.png", ".partial/x.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(whole)
    (folder / "torn.png").write_bytes(whole[:60])
    (folder / "00001.png").write_bytes(whole[:60])
    Image.new("RGB", (16, 16)).save(folder / "00000.png")
    Image.new("RGB", (16, 16)).save(folder / "night.png")  # somebody's own is what it is
    task = task_of("dreambooth", **told | PRIOR | {
        "class_data_dir": folder, "num_class_images": 4, "validation_inference_steps": 1})
    entries = task.make_class(made, lambda text: None)
    assert [entry.image.name for entry in entries] == ["00000.png", "00001.png", "night.png", "own.png"]
    assert "3 of 5 pictures" in caplog.text
    assert all(entry.read().convert("L").getbbox() for entry in entries if entry.image.name != "night.png")


def test_pictures_of_the_class_are_none_of_the_subject(told, subject, tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes((subject / f"0{i}.png").read_bytes())
    folder = tmp_path / "kind"
    given = told | PRIOR | {"instance_data_dir": tmp_path, "validation_inference_steps": 1}
    first = task_of("dreambooth", **given | {"class_data_dir": folder})
    first.make_class(folder, lambda text: None)
    for more in ({"class_data_dir": folder}, {}):
        later = task_of("dreambooth", **given | more)
        assert [entry.row["file_name"] for entry in later.pictures().entries] == ["0.png", "1.png", "2.png"]
    with pytest.raises(ValueError, match="class_data_dir and instance_data_dir are both"):
        task_of("dreambooth", **given | {"class_data_dir": f"{tmp_path}/kind/.."}).check()


@pytest.mark.parametrize("cached", [False, True])
def test_the_loss_is_that_of_the_subject_and_that_of_the_class(told, cached):
    task = task_of("dreambooth", **told | PRIOR | {"prior_loss_weight": 0.3, "cache_latents": cached})
    task.start(lambda text: None)
    assert isinstance(task.data, Both) and len(task.data) == 5
    batch = task.collate([task.data[Draw(ticket % 5, ticket)] for ticket in range(4)])
    assert batch["caption"] == ["a photo of sks disc"] * 4 + ["a photo of a disc"] * 4
    with torch.no_grad():
        loss, _ = task.loss(batch, Place(3, 1))
        generator = Place(3, 1).generator
        noised = task.objective.noised(task.latents(batch, Place(3, 1)), _after_latents(task, batch, generator))
        text = task.pipeline.encode_prompt(batch["caption"], "cpu", 1, False)[0]
        error = (task.pipeline.unet(noised.sample, noised.timesteps, text).sample - noised.noise).square().flatten(1).mean(1)
    torch.testing.assert_close(loss, error[:4].mean() + 0.3 * error[4:].mean())


def _after_latents(task, batch, generator):
    """The generator of a place as it is when latents are drawn."""
    torch.randn(task.latents(batch, Place(3, 1)).shape, generator=generator)
    return generator


def test_a_ticket_says_which_picture_of_the_class(told):
    task = task_of("dreambooth", **told | PRIOR | {"cache_latents": False})
    task.start(lambda text: None)
    drawn = [task.data[Draw(ticket % 5, ticket)][1]["index"] for ticket in range(30)]
    assert drawn == [task.data[Draw(0, ticket)][1]["index"] for ticket in range(30)]
    assert all(sorted(drawn[i : i + 3]) == [0, 1, 2] for i in range(0, 30, 3))  # all of them equally often


def test_refuses_what_cannot_be(told, tmp_path):
    def refused(words, kind=ValueError, **changes):
        with pytest.raises(kind, match=words):
            task_of("dreambooth", **told | changes)

    with pytest.raises(ValueError, match="with_prior_preservation needs class_prompt"):
        settings_of("dreambooth", **told | {"with_prior_preservation": True})
    with pytest.raises(ValueError, match="instance_prompt: is needed"):
        settings_of("dreambooth", **{name: value for name, value in told.items() if name != "instance_prompt"})
    (tmp_path / "empty").mkdir()
    refused("there are no pictures in", FileNotFoundError, instance_data_dir=tmp_path / "empty")
    refused("resolution is 15, but must be a multiple of 2", resolution=15)
    refused(r"is called \['to_z'\]", adapter=True, lora_targets=["to_z"])
    refused("train_data_dir: there is no such setting", train_data_dir=tmp_path)
