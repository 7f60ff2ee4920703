"""Every option of loading works or is a clear error, of pipelines and of models."""

from __future__ import annotations

import shutil

import pytest
import torch

import calotype
from calotype import files

UNET = "unet/diffusion_pytorch_model"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from .conftest import make_tiny

    folder = tmp_path_factory.mktemp("tiny")
    make_tiny().save_pretrained(folder)
    return folder


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copied")


def load_pipeline(folder, **options):
    return calotype.DiffusionPipeline.from_pretrained(folder, **options)


def load_model(folder, **options):
    return calotype.UNet2DConditionModel.from_pretrained(folder, subfolder="unet", **options)


both = pytest.mark.parametrize("load", [load_pipeline, load_model])


@both
@pytest.mark.parametrize(("options", "told"), [
    ({"torch_dtype": torch.int8}, "torch.int8, but must be a torch dtype with a floating point"),
    ({"torch_dtype": torch.bool}, "torch.bool"), ({"dtype": "float16"}, "'float16', but must be"), ({"torch_dtype": 3}, "is 3"),
    ({"torch_dtype": torch.float16, "dtype": torch.float16}, "two names of one argument"),
    ({"device_map": "nonsense"}, "device_map is 'nonsense', but must be a device of this machine"),
    ({"device_map": "cuda:99"}, "device_map is 'cuda:99'"), ({"device_map": "meta"}, "'meta', where nothing"),
    ({"device_map": {"unet": "cpu"}}, "must be a device of this machine"), ({"device_map": -1}, "device_map is -1"),
    ({"use_flashpack": True}, "read from safetensors"), ({"custom_pipeline": "clip_guided"}, "never run"),
])
def test_what_cannot_be_is_an_error(folder, load, options, told):
    with pytest.raises(ValueError, match=told):
        load(folder, **options)


@both
def test_what_can_be_works(folder, load):
    assert load(folder, dtype=torch.bfloat16).dtype is torch.bfloat16
    assert load(folder, torch_dtype="auto").dtype is torch.float32
    for device in ("cpu", torch.device("cpu"), {"": "cpu"}, "auto", "balanced"):
        best = torch.accelerator.current_accelerator(check_available=True) if device in ("auto", "balanced") else None
        assert load(folder, device_map=device).device.type == (best.type if best else "cpu")
    assert load(folder, low_cpu_mem_usage=True, use_flashpack=None, disable_mmap=True).dtype is torch.float32


def test_a_file_that_is_not_mapped_is_let_go(copied):
    """Read at once, weights do not change with their file."""
    before = load_model(copied, disable_mmap=True)
    kept = before.conv_in.weight.detach().clone()
    path = copied / f"{UNET}.safetensors"
    with path.open("r+b") as file:
        file.seek(-4 * 50_000, 2)
        file.write(bytes(4 * 50_000))
    assert torch.equal(before.conv_in.weight, kept) and kept.any()


def test_a_dtype_for_a_component_that_there_is_not(folder):
    with pytest.raises(ValueError, match="a component in torch_dtype is 'unett'.*did you mean 'unet'"):
        load_pipeline(folder, torch_dtype={"unett": torch.float16})
    with pytest.raises(ValueError, match=r"torch_dtype\['unet'\] is torch.int8"):
        load_pipeline(folder, torch_dtype={"unet": torch.int8})
    with pytest.raises(ValueError, match="but must be a torch dtype"):
        load_model(folder, torch_dtype={"default": torch.float16})


@pytest.mark.parametrize("made", [calotype.DDIMScheduler, calotype.CLIPTokenizer, calotype.CLIPImageProcessor])
def test_other_components_name_what_they_do_not_take(folder, made):
    part = {calotype.CLIPTokenizer: "tokenizer"}.get(made, "scheduler")
    source = folder / part if made is not calotype.CLIPImageProcessor else folder
    if made is calotype.CLIPImageProcessor:
        calotype.CLIPImageProcessor().save_pretrained(source)
    for option in ("device_map", "torch_dtype", "variant", "nonsense"):
        with pytest.raises(TypeError, match=f"from_pretrained takes no argument '{option}'"):
            made.from_pretrained(source, **{option: "cpu"})


# -- variants -----------------------------------------------------------------------------------------------------------


@both
def test_a_variant_that_there_is_not(copied, load):
    with pytest.raises(FileNotFoundError, match="no weights of the variant 'fp61' .there are the plain ones"):
        load(copied, variant="fp61")
    (copied / f"{UNET}.safetensors").rename(copied / f"{UNET}.fp16.safetensors")
    with pytest.raises(FileNotFoundError, match="(?s)no weights of the variant 'fp61'|has no 'diffusion_pytorch_model.fp61"):
        load(copied, variant="fp61")


def test_a_variant_of_some_components(copied, caplog):
    """Of each component the variant where there is one, else the plain weights, and a line that says so."""
    half = load_model(copied, torch_dtype=torch.float16)
    half.conv_in.weight.data.fill_(2.0)
    half.save_pretrained(copied / "unet", variant="fp16")
    pipe = load_pipeline(copied, variant="fp16")
    assert torch.equal(pipe.unet.conv_in.weight, torch.full_like(pipe.unet.conv_in.weight, 2.0))
    assert "vae has no weights of the variant 'fp16'" in caplog.text and "unet has" not in caplog.text
    with pytest.raises(FileNotFoundError, match="no weights of the variant 'fp16'"):
        calotype.AutoencoderKL.from_pretrained(copied / "vae", variant="fp16")


# -- the home folder ----------------------------------------------------------------------------------------------------


def test_a_tilde_is_the_home_folder_wherever_one_saves_or_loads(folder, tmp_path, monkeypatch):
    from calotype.evaluation.data import read_prompts
    from calotype.inputs import read_input
    from calotype.training import recipe

    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir(), here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.chdir(here)
    pipe = load_pipeline(folder)
    for name, part in {"pipe": pipe, **pipe.components}.items():
        if part is not None:
            part.save_pretrained(f"~/{name}")
            type(part).from_pretrained(f"~/{name}")
            assert (home / name).is_dir()
    pipe.scheduler.save_config("~/config")
    assert calotype.PNDMScheduler.load_config("~/config/scheduler_config.json")["_class_name"] == "PNDMScheduler"
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    lora = {f"unet.{layer}.lora_A.weight": torch.ones(1, 8), f"unet.{layer}.lora_B.weight": torch.ones(8, 1)}
    pipe.load_lora_weights(lora)
    pipe.save_lora_weights("~/lora", {layer + ".lora_A.weight": torch.ones(1, 8), layer + ".lora_B.weight": torch.ones(8, 1)})
    pipe.unload_lora_weights()
    pipe.load_lora_weights("~/lora")
    with files.staged_file("~/words/prompts.txt") as scratch:
        scratch.write_text("a cat")
    assert read_prompts("~/words/prompts.txt")[0].prompt == "a cat"
    from PIL import Image
    from safetensors.torch import save_file

    Image.new("RGB", (8, 8)).save(home / "cat.png")
    assert read_input("~/cat.png").size == (8, 8)
    save_file({"<cat>": torch.ones(16)}, home / "cat.safetensors")
    pipe.load_textual_inversion("~/cat.safetensors")
    (home / "run.yaml").write_text("train_data_dir: ~/pictures\noutput_dir: ~/run\nmax_train_steps: 1\n")
    settings = recipe("unconditional").Settings.read(file="~/run.yaml")
    assert (settings.train_data_dir, settings.output_dir) == (home / "pictures", home / "run")
    assert not list(here.iterdir())
