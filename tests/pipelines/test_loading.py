"""Pipelines as folders: ours, the oracle's, and old ones."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from hub_server import HubServer

import calotype

from .conftest import make_tiny, seeded

BUNDLED = calotype.hub.BUNDLED["calotype/emoji"]


def draw(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe("a cat", num_inference_steps=2, generator=seeded(0)[0], output_type="np").images


def edit_index(folder, **entries):
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, **entries}))


def test_the_class_is_found_by_the_index(tiny, tmp_path):
    tiny.save_pretrained(tmp_path)
    pipe = calotype.DiffusionPipeline.from_pretrained(tmp_path)
    assert type(pipe) is calotype.StableDiffusionPipeline
    assert np.allclose(draw(pipe), draw(tiny), atol=1e-5)
    assert pipe.name_or_path == str(tmp_path)
    assert json.loads(repr(pipe).removeprefix("StableDiffusionPipeline "))["scheduler"] == ["diffusers", "PNDMScheduler"]


def test_both_ways_with_the_oracle(tiny, tmp_path, diffusers):
    """What we save, Diffusers loads and draws the same; what it saves, we load and draw the same."""
    tiny.save_pretrained(tmp_path / "ours")
    theirs = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "ours", torch_dtype=torch.float32)
    assert np.allclose(draw(theirs), draw(tiny), atol=1e-5)
    theirs.save_pretrained(tmp_path / "theirs")
    again = calotype.DiffusionPipeline.from_pretrained(tmp_path / "theirs")
    assert np.allclose(draw(again), draw(tiny), atol=1e-5)
    for name in ("unet", "vae", "scheduler"):  # nothing of a config is lost on the way
        file = next((tmp_path / "ours" / name).glob("*config.json")).name
        first, last = (json.loads((tmp_path / who / name / file).read_text()) for who in ("ours", "theirs"))
        assert {k: v for k, v in first.items() if k[0] != "_"} == {k: v for k, v in last.items() if k[0] != "_"}


def test_the_bundled_checkpoint_goes_round(tmp_path, diffusers):
    pipe = calotype.DiffusionPipeline.from_pretrained("calotype/emoji")
    pipe.save_pretrained(tmp_path)
    theirs = diffusers.DiffusionPipeline.from_pretrained(tmp_path, torch_dtype=torch.float32)
    assert np.abs(draw(theirs) - draw(pipe)).max() < 1e-3


def test_old_checkpoints(tiny, tmp_path):
    """The index of Stable Diffusion 1.x as it was published, without its checker's files where it is set to None."""
    tiny.save_pretrained(tmp_path)
    edit_index(tmp_path, safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"], _diffusers_version="0.6.0",
               feature_extractor=["transformers", "CLIPFeatureExtractor"], requires_safety_checker=True)
    pipe = calotype.StableDiffusionPipeline.from_pretrained(tmp_path, safety_checker=None, feature_extractor=None)
    assert pipe.safety_checker is None
    assert pipe.config.requires_safety_checker is True
    edit_index(tmp_path, safety_checker=[None, None], feature_extractor=[None, None])
    index = json.loads((tmp_path / "model_index.json").read_text())
    for name in ("image_encoder", "requires_safety_checker", "_diffusers_version"):
        del index[name]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert np.allclose(draw(calotype.DiffusionPipeline.from_pretrained(tmp_path)), draw(tiny), atol=1e-5)


def test_components_can_be_given(tiny, tmp_path):
    tiny.save_pretrained(tmp_path)
    shutil.rmtree(tmp_path / "unet")
    scheduler = calotype.EulerDiscreteScheduler.from_pretrained(tmp_path, subfolder="scheduler")
    pipe = calotype.DiffusionPipeline.from_pretrained(tmp_path, unet=tiny.unet, scheduler=scheduler)
    assert pipe.unet is tiny.unet
    assert pipe.scheduler is scheduler
    assert sorted(pipe.components) == sorted(tiny.components)
    with pytest.raises(TypeError, match="no argument 'schedular'; did you mean 'scheduler'"):
        calotype.DiffusionPipeline.from_pretrained(tmp_path, schedular=scheduler)


def test_from_pipe_shares_weights(tiny):
    other = calotype.StableDiffusionPipeline.from_pipe(tiny, scheduler=calotype.DDIMScheduler())
    assert other.unet is tiny.unet
    assert isinstance(other.scheduler, calotype.DDIMScheduler)
    with pytest.raises(ValueError, match="has no 'vae', 'text_encoder' or 'tokenizer'"):
        calotype.StableDiffusionPipeline.from_pipe(calotype.DDPMPipeline(tiny.unet, tiny.scheduler))


def test_variant_and_dtypes(tiny, tmp_path):
    tiny.to(torch.float16).save_pretrained(tmp_path, variant="fp16")
    assert (tmp_path / "unet" / "diffusion_pytorch_model.fp16.safetensors").is_file()
    pipe = calotype.DiffusionPipeline.from_pretrained(tmp_path, variant="fp16", torch_dtype={"unet": torch.bfloat16})
    assert (pipe.unet.dtype, pipe.vae.dtype) == (torch.bfloat16, torch.float32)
    assert pipe.to(torch.float32).unet.dtype is torch.float32
    half = calotype.DiffusionPipeline.from_pretrained(tmp_path, variant="fp16", torch_dtype=torch.bfloat16)
    assert np.isfinite(draw(half)).all()


def test_moving(tiny):
    assert tiny.to("cpu", torch.float64).dtype is torch.float64
    assert tiny.to(device=torch.device("cpu"), dtype=torch.float32) is tiny
    assert (tiny.device, tiny.dtype) == (torch.device("cpu"), torch.float32)
    with pytest.raises(TypeError, match="3.5 is neither"):
        tiny.to(3.5)
    with pytest.raises(TypeError, match="did you mean 'device'"):
        tiny.to(devise="cpu")


def test_calls_that_scripts_make(tiny):
    before = draw(tiny)
    tiny.enable_attention_slicing()
    tiny.disable_attention_slicing()
    tiny.enable_xformers_memory_efficient_attention()
    tiny.enable_vae_slicing()
    assert np.allclose(draw(tiny), before, atol=1e-6)


def test_saving_over_an_earlier_division_leaves_no_mixture(tiny, tmp_path):
    tiny.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list((tmp_path / "unet").glob("*.safetensors"))) > 1
    tiny.save_pretrained(tmp_path)
    assert len(list((tmp_path / "unet").glob("*.safetensors"))) == 1
    assert np.allclose(draw(calotype.DiffusionPipeline.from_pretrained(tmp_path)), draw(tiny), atol=1e-5)


def test_a_failed_save_leaves_nothing(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(tiny.scheduler, "save_pretrained", lambda folder: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tiny.save_pretrained(tmp_path / "new")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("entries", "message"), [
    ({"_class_name": "StableDifusionPipeline"}, "did you mean 'StableDiffusionPipeline'"),
    ({"unet": ["diffusers", "UNet2DConditionModl"]}, "did you mean 'UNet2DConditionModel'"),
    ({"unet": ["os", "system"]}, "no class 'system'"),
])
def test_classes_in_a_file_are_looked_up_and_never_imported(tiny, tmp_path, entries, message):
    tiny.save_pretrained(tmp_path)
    edit_index(tmp_path, **entries)
    with pytest.raises(ValueError, match=message):
        calotype.DiffusionPipeline.from_pretrained(tmp_path)


def test_what_is_lacking_is_named(tiny, tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint 'calotype/emojy'.*did you mean 'calotype/emoji'"):
        calotype.DiffusionPipeline.from_pretrained("calotype/emojy", local_files_only=True)
    tiny.save_pretrained(tmp_path)
    (tmp_path / "vae" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="config.json"):
        calotype.DiffusionPipeline.from_pretrained(tmp_path)
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged: it is not JSON"):
        calotype.DiffusionPipeline.from_pretrained(tmp_path)


# -- what a folder or a repository lacks --------------------------------------------------------------------------------


@pytest.fixture
def server(monkeypatch, tmp_path):
    server = HubServer()
    server.reach(monkeypatch, tmp_path / "home")
    yield server
    server.close()


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_a_local_folder_lacks_is_not_asked_of_the_hub(tiny, tmp_path, server, monkeypatch):
    """Though the folder is named by one word, so that the path of a component could be a repository's name."""
    monkeypatch.chdir(tmp_path)
    tiny.save_pretrained("mymodel")
    for part in ("vae", "scheduler", "tokenizer"):
        server.add(f"mymodel/{part}", contents(tmp_path / "mymodel" / part))  # somebody else's
        (tmp_path / "mymodel" / part).rename(tmp_path / f"away {part}")
        with pytest.raises(FileNotFoundError, match=f"'mymodel' has no folder '{part}'"):
            calotype.DiffusionPipeline.from_pretrained("mymodel")
        made = type(getattr(tiny, part))
        for name, options in (("mymodel", {"subfolder": part}), (f"mymodel/{part}", {})):
            with pytest.raises(FileNotFoundError, match=f"'mymodel'.* has no (folder|file)? ?'{part}"):
                made.from_pretrained(name, **options)
        (tmp_path / f"away {part}").rename(tmp_path / "mymodel" / part)
    for path in (tmp_path.relative_to(tmp_path) / "mymodel" / "gone", "loras/cat.safetensors", "cat.bin"):
        with pytest.raises(FileNotFoundError):
            tiny.load_lora_weights(path)
        with pytest.raises(FileNotFoundError):
            tiny.load_textual_inversion(path)
    assert not server.requests


def test_a_pipeline_in_a_subfolder(tiny, tmp_path, server):
    """Of a folder and of a repository; of that, only what the components are loaded from is fetched."""
    tiny.save_pretrained(tmp_path / "here" / "models" / "tiny")
    draw_again = draw(calotype.DiffusionPipeline.from_pretrained(tmp_path / "here", subfolder="models/tiny"))
    assert np.allclose(draw_again, draw(tiny), atol=1e-5)
    files = contents(tmp_path / "here")
    weights = "unet/diffusion_pytorch_model"
    needless = ["README.md", f"{weights}.safetensors", "models/tiny/README.md", f"models/tiny/{weights}.bin",
                f"models/tiny/{weights}.fp16.safetensors"]
    server.add("owner/many", files | dict.fromkeys(needless, b""))
    pipe = calotype.DiffusionPipeline.from_pretrained("owner/many", subfolder="models/tiny")
    assert np.allclose(draw(pipe), draw(tiny), atol=1e-5)
    assert sorted(server.fetched) == sorted(f"owner/many/{name}" for name in files)
    with pytest.raises(FileNotFoundError, match="subfolder 'models/tinny'"):
        calotype.DiffusionPipeline.from_pretrained("owner/many", subfolder="models/tinny")


def test_half_a_folder_is_no_model(tiny, tmp_path):
    """Whichever file is lacking, an error names it or its folder; nothing is loaded with some layers at random."""
    tiny.save_pretrained(tmp_path, max_shard_size="20KB")
    spare = {"added_tokens.json", "special_tokens_map.json", "tokenizer_config.json", "vocab.json", "merges.txt"}
    for path in sorted(path for path in tmp_path.rglob("*") if path.is_file() and path.name not in spare):
        path.rename(tmp_path / "away")
        if path.name != "tokenizer.json":  # the old format says the same
            with pytest.raises(FileNotFoundError) as caught:
                calotype.DiffusionPipeline.from_pretrained(tmp_path)
            stem = path.name.partition(".")[0].partition("-0")[0]
            assert stem in str(caught.value) and str(path.parent) in str(caught.value)
        (tmp_path / "away").rename(path)


# -- saving where something is ----------------------------------------------------------------------------------------------


def test_saving_leaves_the_files_of_others(tiny, tmp_path):
    """Only what the save takes the place of goes: the same weights in another layout, in the component's own folder."""
    tiny.save_pretrained(tmp_path, max_shard_size="20KB")
    own = ["model.safetensors", "diffusion_pytorch_model.bin", "notes.txt", "unet/model.safetensors", "unet/notes.bin",
           "unet/diffusion_pytorch_model.fp16.safetensors", "text_encoder/diffusion_pytorch_model.safetensors", "other/model.bin"]
    stale = ["unet/diffusion_pytorch_model.bin", "text_encoder/pytorch_model.bin"]
    (tmp_path / "other").mkdir()
    for name in own + stale:
        (tmp_path / name).write_text(name)
    tiny.save_pretrained(tmp_path)
    assert all((tmp_path / name).read_text() == name for name in own)
    assert not any((tmp_path / name).exists() for name in stale)
    assert not list(tmp_path.rglob("*-of-*"))


# -- an index that is damaged -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("entries", "message"), [
    ({"unet": ["diffusers"]}, "is damaged: 'unet' is .'diffusers'."), ({"unet": "UNet2DConditionModel"}, "'unet' is 'UNet2D"),
    ({"vae": ["diffusers", 3]}, "'vae' is .'diffusers', 3."), ({"safety_checker": [1, 2, 3]}, "'safety_checker' is .1, 2, 3."),
    ({"scheduler": {"_class_name": "DDIMScheduler"}}, "'scheduler' is {"),
    ({"_class_name": ["a", "b"]}, "a pipeline that there is not"),
    ({"_class_name": "DDIMScheduler"}, "is a checkpoint for 'DDIMScheduler', a pipeline that there is not"),
])
def test_a_damaged_index_is_named(tiny, tmp_path, entries, message):
    tiny.save_pretrained(tmp_path)
    edit_index(tmp_path, **entries)
    with pytest.raises(ValueError, match=message):
        calotype.DiffusionPipeline.from_pretrained(tmp_path)


def test_an_index_names_no_folder_outside(tiny, tmp_path):
    tiny.save_pretrained(tmp_path / "model")
    edit_index(tmp_path / "model", **{"../elsewhere": ["diffusers", "AutoencoderKL"], "self": ["diffusers", "VQModel"]})
    assert sorted(calotype.DiffusionPipeline.from_pretrained(tmp_path / "model").components) == sorted(tiny.components)


def test_components_that_are_none_come_back(tiny, tmp_path):
    calotype.StableDiffusionPipeline(**{**tiny.components, "text_encoder": None, "tokenizer": None},
                                     requires_safety_checker=False).save_pretrained(tmp_path)
    pipe = calotype.DiffusionPipeline.from_pretrained(tmp_path)
    assert (pipe.text_encoder, pipe.tokenizer) == (None, None) and pipe.unet is not None
# -- registering components ------------------------------------------------------------------------------------------------------


def test_registering_more_keeps_what_there_is(tmp_path):
    """Once, a second call of `register_modules` forgot the components of the first."""
    pipe = make_tiny()
    pipe.set_progress_bar_config(disable=True)
    names, unet, stop = [*pipe.components], pipe.unet, pipe._stop
    other = calotype.DDIMScheduler()
    pipe.register_modules(low_res_scheduler=calotype.DDPMScheduler(), scheduler=other)
    assert [*pipe.components] == [*names, "low_res_scheduler"]
    assert pipe.scheduler is other and pipe.unet is unet and pipe._stop is stop
    assert pipe.config.scheduler == ("diffusers", "DDIMScheduler")
    assert pipe.config.low_res_scheduler == ("diffusers", "DDPMScheduler")
    assert pipe._progress == {"disable": True}
    assert pipe.to(torch.float64).unet.dtype == torch.float64
    pipe.register_modules(low_res_scheduler=None)
    assert pipe.config.low_res_scheduler == (None, None) and pipe.components["low_res_scheduler"] is None
    pipe.to(torch.float32).save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {
        "vae", "text_encoder", "tokenizer", "unet", "scheduler"}
    loaded = calotype.DiffusionPipeline.from_pretrained(tmp_path, requires_safety_checker=False)
    assert type(loaded.scheduler).__name__ == "DDIMScheduler"


def test_a_pipeline_of_ones_own_registers_in_parts():
    class Own(calotype.StableDiffusionPipeline):
        def __init__(self, vae, text_encoder, tokenizer, unet, scheduler, extra):
            super().__init__(vae, text_encoder, tokenizer, unet, scheduler, requires_safety_checker=False)
            self.register_modules(extra=extra)

    parts = {name: part for name, part in make_tiny().components.items() if part is not None}
    own = Own(**parts, extra=calotype.DDPMScheduler())
    assert {*parts, "extra"} <= own.components.keys()
    assert own("a cat", num_inference_steps=1, output_type="latent").images.shape == (1, 4, 8, 8)
