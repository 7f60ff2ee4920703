"""Downloaded files that ask for more than numbers: nothing connects, nothing of theirs is imported, nothing runs."""

from __future__ import annotations

import inspect
import json
import shutil
import socket
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

import calotype
from calotype import checked_config
from calotype.depth import DPTForDepthEstimation, DPTImageProcessor
from calotype.registry import _HOMES, COMPONENTS, PIPELINES, find

PLAIN = {
    "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 32,
    "patch_size": 16, "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8] * 4, "fusion_hidden_size": 8}
HYBRID = PLAIN | {
    "is_hybrid": True, "neck_hidden_sizes": [8, 16, 8, 8], "backbone_featmap_shape": [1, 32, 2, 2], "neck_ignore_stages": [0, 1],
    "backbone_config": {
        "model_type": "bit", "global_padding": "same", "layer_type": "bottleneck", "depths": [1, 1, 1],
        "hidden_sizes": [8, 16, 32], "embedding_size": 8, "num_groups": 4,
        "out_features": ["stage1", "stage2", "stage3"], "embedding_dynamic_padding": True}}
PIXELS = torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)


@pytest.fixture(autouse=True)
def asked(monkeypatch):
    """Whom the code under test wanted to connect to; it could not."""
    wanted = []

    def refuse(*args, **kwargs):
        wanted.append(args[-1] if args else kwargs)
        raise OSError("no network here")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield wanted
    assert not wanted


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """A module that can be imported, and leaves a file behind when it is."""
    where = tmp_path / "importable"
    where.mkdir()
    (where / "planted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Planted:\n    pass\n")
    monkeypatch.syspath_prepend(where)
    yield where / "planted.py"
    assert not (tmp_path / "ran").exists() and "planted" not in sys.modules


@pytest.fixture(scope="module", params=["plain", "hybrid"])
def published(request, tmp_path_factory):
    """A depth estimator as transformers saves it, and what it gives."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(5)
    config = transformers.DPTConfig(**{"plain": PLAIN, "hybrid": HYBRID}[request.param])
    folder = tmp_path_factory.mktemp("estimator")
    model = transformers.DPTForDepthEstimation(config).eval()
    model.save_pretrained(folder)
    with torch.no_grad():
        return folder, model(PIXELS).predicted_depth


@pytest.fixture
def folder(published, tmp_path, marker):
    """A copy of it, with code beside that nobody wants."""
    shutil.copytree(published[0], tmp_path / "copy")
    shutil.copy(marker, tmp_path / "copy")
    return tmp_path / "copy"


def edit(file, **entries):
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | entries))


@torch.no_grad()
def depth(folder, **options):
    return DPTForDepthEstimation.from_pretrained(folder, **options)(PIXELS).predicted_depth


# -- what is handed to transformers ----------------------------------------------------------------------------------------

ENTRIES = {
    "kernels": {"_attn_implementation": "someone/kernels"},
    "kernels, by the new name": {"attn_implementation": "someone/kernels@main:planted"},
    "experts": {"_experts_implementation": "someone/kernels"},
    "a backbone of the Hub": {"backbone": "someone/backbone", "use_pretrained_backbone": True},
    "a backbone of timm": {"backbone": "resnet50", "use_timm_backbone": True, "backbone_kwargs": {"pretrained": True}},
    "code": {"auto_map": dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForDepthEstimation"), "planted.Planted")},
    "code of the Hub": {"auto_map": {"AutoModelForDepthEstimation": "someone/code--planted.Planted"}, "trust_remote_code": True},
    "quantisation": {"quantization_config": {"quant_method": "planted", "load_in_4bit": True}},
    "types": {"torch_dtype": "planted.Planted", "dtype": "float16"},
    "another kind": {"model_type": "planted", "architectures": ["Planted"], "base_model_tp_plan": {"*": "planted"}},
    "itself": {"_name_or_path": "someone/else", "name_or_path": "someone/else", "_commit_hash": "main"},
}


def test_an_honest_estimator_is_what_it_is_to_transformers(published):
    folder, expected = published
    transformers = pytest.importorskip("transformers")
    model = DPTForDepthEstimation.from_pretrained(folder)
    assert torch.equal(depth(folder), expected)
    theirs = transformers.DPTForDepthEstimation.from_pretrained(folder).config.to_dict()
    assert {name: value for name, value in model.config.to_dict().items() if theirs[name] != value}.keys() <= {
        "architectures", "_name_or_path"}
    assert DPTForDepthEstimation.from_pretrained(folder, torch_dtype=torch.float16).dtype == torch.float16


@pytest.mark.parametrize("name", ENTRIES)
def test_no_entry_of_a_config_is_handed_on_that_is_not_known(published, folder, name):
    edit(folder / "config.json", **ENTRIES[name])
    model = DPTForDepthEstimation.from_pretrained(folder)
    assert torch.equal(depth(folder), published[1]) and model.dtype == torch.float32
    said = model.config.to_dict()
    assert not {entry for entry, value in ENTRIES[name].items() if entry in said and said[entry] == value}
    assert model.config._attn_implementation in ("sdpa", "eager", None)


@pytest.mark.parametrize(("entries", "message"), [
    ({"hidden_size": "16"}, "hidden_size is '16', but must be a whole number from 1 to 65536"),
    ({"hidden_size": True}, "hidden_size is True"),
    ({"hidden_size": 2**40}, "hidden_size is"),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, but must be a whole number from 1 to 1024"),
    ({"layer_norm_eps": float("nan")}, "layer_norm_eps is nan, but must be a number from 0 to 1"),
    ({"hidden_act": "someone/kernels"}, "hidden_act is 'someone/kernels', but must be 'gelu'"),
    ({"backbone_out_indices": {"0": 1}}, "backbone_out_indices is"),
    ({"neck_hidden_sizes": [8, 8, 8, "8"]}, "neck_hidden_sizes is"),
    ({"is_hybrid": "yes"}, "is_hybrid is 'yes', but must be true or false"),
    ({"backbone_config": {"model_type": "timm_backbone", "backbone": "someone/backbone"}}, "an object of 'model_type': 'bit'"),
    ({"backbone_config": {"model_type": "bit", "layer_type": "planted"}}, "backbone_config' cannot be used:\n  layer_type is"),
    ({"backbone_config": {"model_type": "bit", "out_features": ["../stage"]}}, "out_features is"),
    ({"hidden_size": 17}, "cannot be used|do not fit its config"),
    ({"intermediate_size": 32}, "do not fit its config"),
])
def test_entries_of_another_kind_are_refused(folder, entries, message):
    edit(folder / "config.json", **entries)
    with pytest.raises(ValueError, match=message):
        DPTForDepthEstimation.from_pretrained(folder)


def test_entries_of_a_backbone_are_not_handed_on_either(published, folder):
    config = json.loads((folder / "config.json").read_text())
    if config["backbone_config"] is None:
        pytest.skip("it has no backbone")
    planted = {"_attn_implementation": "someone/kernels", "quantization_config": {"quant_method": "planted"},
               "use_pretrained_backbone": True, "auto_map": {"AutoBackbone": "planted.Planted"}}
    edit(folder / "config.json", backbone_config=config["backbone_config"] | planted)
    assert torch.equal(depth(folder), published[1])


def test_weights_are_read_by_our_reader(published, folder, tmp_path):
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    save_file({name: weights[name] for name in names[:9]}, folder / "model-00001-of-00002.safetensors")
    save_file({name: weights[name] for name in names[9:]}, folder / "model-00002-of-00002.safetensors")
    (folder / "model.safetensors").rename(tmp_path / "model-00002-of-00002.safetensors")

    def index(last):
        placed = {name: "model-00001-of-00002.safetensors" if name in names[:9] else last for name in names}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))

    index("../model-00002-of-00002.safetensors")
    with pytest.raises(ValueError, match="which is not a shard in its own folder"):
        DPTForDepthEstimation.from_pretrained(folder)
    index("model-00002-of-00002.safetensors")
    assert torch.equal(depth(folder), published[1])
    save_file({name: weights[name] for name in names[9:-1]}, folder / "model-00002-of-00002.safetensors")
    with pytest.raises(ValueError, match="do not fit its config; missing: "):
        DPTForDepthEstimation.from_pretrained(folder)


class Planted:
    """What imports the marker when it is unpickled."""

    def __reduce__(self):
        return __import__, ("planted",)


def test_pickled_weights_are_tensors_or_nothing(published, folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="use_safetensors=False"):
        DPTForDepthEstimation.from_pretrained(folder)
    assert torch.equal(depth(folder, use_safetensors=False), published[1])
    torch.save({"dpt.weight": Planted()}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="is damaged or holds more than tensors"):
        DPTForDepthEstimation.from_pretrained(folder, use_safetensors=False)


def test_what_prepares_pictures(tmp_path, marker):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.DPTImageProcessorPil(size={"height": 32, "width": 32}, keep_aspect_ratio=True, ensure_multiple_of=16)
    theirs.save_pretrained(tmp_path)
    picture = calotype.images.postprocess(PIXELS)[0].resize((50, 40))
    expected = theirs(images=picture, return_tensors="pt").pixel_values
    file = tmp_path / "preprocessor_config.json"
    edit(file, auto_map={"AutoImageProcessor": "someone/code--planted.Planted"}, processor_class="Planted", device="planted",
         image_processor_type="Planted", feature_extractor_type="Planted", _from_auto=True)
    ours = DPTImageProcessor.from_pretrained(tmp_path)
    assert torch.equal(ours(picture, return_tensors="pt").pixel_values, expected)
    assert not hasattr(ours.processor, "auto_map") and type(ours.processor) is type(theirs)
    for entries, message in (({"resample": "planted"}, "resample is 'planted'"), ({"size": {"depth": 3}}, "size is {'depth': 3}"),
                             ({"image_mean": [0.5] * 9}, "image_mean is"),
                             ({"ensure_multiple_of": 0}, "ensure_multiple_of is 0")):
        text = file.read_text()
        edit(file, **entries)
        with pytest.raises(ValueError, match=message):
            DPTImageProcessor.from_pretrained(tmp_path)
        file.write_text(text)


def test_kinds_of_values():
    kinds = checked_config
    listed = kinds.list_of(kinds.either(kinds.whole(0, 3), kinds.one_of("a", "b")), 2)
    for value, fits in (([0, "a"], True), ([3], True), ([4], False), ([0, 0, 0], False), ([True], False), (["c"], False),
                        ("ab", False), (None, False)):
        assert listed.fits(value) is fits
    assert kinds.number(0, 1).fits(1) and not kinds.number(0, 1).fits(float("inf")) and not kinds.number(0, 1).fits(True)
    assert kinds.optional(kinds.FLAG).fits(None) and not kinds.FLAG.fits(None) and not kinds.FLAG.fits(1)
    assert kinds.by_name(kinds.FLAG, "x").fits({"x": True}) and not kinds.by_name(kinds.FLAG, "x").fits({"y": True})
    with pytest.raises(ValueError, match=r"'f' cannot be used:\n  a is 1, but must be true or false\n  b is 2"):
        kinds.checked({"a": 1, "b": 2, "c": 3}, {"a": kinds.FLAG, "b": kinds.FLAG}, "f")
    assert kinds.checked({"a": True, "c": 3}, {"a": kinds.FLAG, "b": kinds.FLAG}, "f") == {"a": True}


# -- which class stands where ----------------------------------------------------------------------------------------------


def components_of(pipeline):
    """The arguments that are components: all but the options."""
    options = {"requires_safety_checker", "max_noise_level", "id2label"}
    return [name for name in inspect.signature(find(pipeline).__init__).parameters if name not in {"self", *options}]


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_classes_stand_only_where_they_belong(pipeline, tmp_path):
    """Every component of every pipeline, with a class of every other component."""
    samples = {classes[0] for classes in COMPONENTS.values() if classes} | {"StableDiffusionPipeline", "DPTFeatureExtractor"}
    aliases = {"DPTFeatureExtractor": "DPTImageProcessor"}
    for component in components_of(pipeline):
        for name in sorted(samples):
            if aliases.get(name, name) in COMPONENTS[component]:
                continue
            index = {"_class_name": pipeline, component: ["transformers", name]}
            (tmp_path / "model_index.json").write_text(json.dumps(index))
            with pytest.raises(ValueError, match=f"names the class '{name}' for '{component}', which must be "):
                calotype.DiffusionPipeline.from_pretrained(tmp_path)
            with pytest.raises(ValueError, match=f"names the class '{name}' for '{component}'"):
                find(pipeline).from_pretrained(tmp_path)


def test_every_class_that_is_no_pipeline_belongs_somewhere():
    assert {name for names in COMPONENTS.values() for name in names} == _HOMES.keys() - PIPELINES


@pytest.mark.parametrize("said", ["UNet2DModel", {"_class_name": "UNet2DModel"}, ["diffusers", "UNet2DModel", "x"], 3,
                                  ["diffusers", ["UNet2DModel"]], [["diffusers"], "UNet2DModel"], True])
def test_what_an_index_says_of_a_component_is_a_library_and_a_class(said, tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "DDPMPipeline", "unet": said}))
    with pytest.raises(ValueError, match="'unet' is .*, but must be a library and a class"):
        calotype.DiffusionPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["UNet2DModel", "DPTForDepthEstimation", "DDPMScheduler", "planted.Planted", None])
def test_a_checkpoint_is_for_a_pipeline(name, tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
    with pytest.raises(ValueError, match="a pipeline that there is not"):
        calotype.DiffusionPipeline.from_pretrained(tmp_path)


def test_what_a_user_hands_over_may_be_anything(tmp_path):
    shutil.copytree(calotype.hub.BUNDLED["calotype/emoji"], tmp_path, dirs_exist_ok=True)
    edit(tmp_path / "model_index.json", vae=["transformers", "DPTForDepthEstimation"])
    mine = SimpleNamespace(config=SimpleNamespace(block_out_channels=[1, 1]))
    pipe = calotype.StableDiffusionPipeline.from_pretrained(tmp_path, vae=mine, safety_checker=None)
    assert pipe.vae is mine


def test_a_pipeline_of_somebody_elses_has_components_of_its_own(tmp_path):
    class Mine(calotype.DDPMPipeline):
        def __init__(self, unet, scheduler, another=None):
            super().__init__(unet, scheduler)
            self.register_modules(unet=unet, scheduler=scheduler, another=another)

    shutil.copytree(calotype.hub.BUNDLED["calotype/cats"], tmp_path, dirs_exist_ok=True)
    shutil.copytree(tmp_path / "scheduler", tmp_path / "another")
    edit(tmp_path / "model_index.json", another=["diffusers", "DDIMScheduler"])
    given = dict.fromkeys(("unet", "scheduler"))
    assert isinstance(Mine.from_pretrained(tmp_path, **given).another, calotype.DDIMScheduler)
    edit(tmp_path / "model_index.json", another=["diffusers", "DDIMPipeline"])
    with pytest.raises(ValueError, match="names the class 'DDIMPipeline' for 'another'"):
        Mine.from_pretrained(tmp_path, **given)


# -- elsewhere -------------------------------------------------------------------------------------------------------------


def test_a_pickled_adapter_runs_nothing(tmp_path, marker):
    torch.save({"unet.mid_block.lora_A.weight": Planted()}, tmp_path / "pytorch_lora_weights.bin")
    pipe = calotype.DiffusionPipeline.from_pretrained("calotype/emoji")
    for options in ({"use_safetensors": False}, {"weight_name": "pytorch_lora_weights.bin"}):
        with pytest.raises(ValueError, match="is damaged or holds more than tensors"):
            pipe.load_lora_weights(tmp_path, **options)
    with pytest.raises(FileNotFoundError):
        pipe.load_lora_weights(tmp_path)


def test_a_data_set_is_not_asked_for_code(monkeypatch):
    from calotype.training.pictures import _load_dataset

    told = []
    library = ModuleType("datasets")
    library.load_dataset = lambda path, name=None, trust_remote_code=None, **how: told.append(trust_remote_code)
    monkeypatch.setitem(sys.modules, "datasets", library)
    _load_dataset("someone/pictures", None)
    library.load_dataset = lambda path, name=None, **how: told.append(how)
    _load_dataset("someone/pictures", None, split="train")
    assert told == [False, {"split": "train"}]


def test_settings_of_training_are_data(tmp_path, marker):
    pytest.importorskip("accelerate")
    from calotype.training.settings import _read_yaml

    file = Path(tmp_path / "settings.yaml")
    file.write_text("seed: !!python/object/apply:__import__ [planted]\n")
    with pytest.raises(ValueError, match=r"settings\.yaml"):
        _read_yaml(file)
