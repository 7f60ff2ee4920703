"""The safety checker and CLIP's picture encoder, against the classes of these names in Diffusers and transformers."""

import json
import logging

import numpy as np
import pytest
import torch
from near import assert_near, assert_same_output
from safetensors.torch import load_file, save_file

import calotype
from calotype.image_processor import CLIPImageProcessor
from calotype.models.clip_vision import CLIPVisionModel, CLIPVisionModelWithProjection
from calotype.models.safety_checker import StableDiffusionSafetyChecker
from calotype.registry import entry, find

VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 28,
          "patch_size": 8, "projection_dim": 24}  # 28 is no multiple of 8: what is over is not seen
TEXT = {"vocab_size": 100, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "bos_token_id": 98, "eos_token_id": 99, "pad_token_id": 99}
PICTURES = torch.randn(5, 3, 28, 28, generator=torch.Generator().manual_seed(0))
CLASSES = [CLIPVisionModel, CLIPVisionModelWithProjection]


def randomise(model, deviation=0.05):
    """So that no bias is zero and no norm the identity."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            parameter.add_(deviation * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@torch.no_grad()
def set_concepts(checker, images, most=0.1, care=0.1):
    """Random concepts, of which each is seen in the fraction `most` of `images`, and "special care" ones in `care`."""
    seen = checker.visual_projection(checker.vision_model(images)[1])
    generator = torch.Generator().manual_seed(2)
    for concepts, thresholds, fraction in ((checker.concept_embeds, checker.concept_embeds_weights, most),
                                           (checker.special_care_embeds, checker.special_care_embeds_weights, care)):
        concepts.copy_(seen.mean(0) + seen.std() * torch.randn(concepts.shape, generator=generator))
        cosine = torch.cosine_similarity(seen[:, None], concepts[None], -1)
        thresholds.copy_(cosine.quantile(1 - fraction, 0))


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def their_class():
    return pytest.importorskip("diffusers.pipelines.stable_diffusion.safety_checker").StableDiffusionSafetyChecker


@pytest.fixture
def whole_config(transformers):
    return transformers.CLIPConfig(vision_config=VISION, text_config=TEXT, projection_dim=20)


# -- CLIP's picture encoder -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CLASSES)
@torch.no_grad()
def test_encoder_and_files_are_those_of_transformers(kind, transformers, tmp_path, caplog):
    config = transformers.CLIPVisionConfig(**VISION, hidden_act="gelu", layer_norm_eps=1e-4)
    theirs = randomise(getattr(transformers, kind.__name__)(config))
    theirs.save_pretrained(tmp_path / "theirs")
    ours = kind.from_pretrained(tmp_path / "theirs")
    assert not ours.training and entry(ours)[0] == "transformers" and find(kind.__name__) is kind
    assert_same_output(ours(PICTURES, output_hidden_states=True), theirs(PICTURES, output_hidden_states=True))
    assert type(ours(PICTURES, return_dict=False)) is tuple
    ours.save_pretrained(tmp_path / "ours")
    assert all(name.startswith(("vision_model.", "visual_projection."))
               for name in load_file(tmp_path / "ours" / "model.safetensors"))
    again = getattr(transformers, kind.__name__).from_pretrained(tmp_path / "ours")
    assert {**again.config.to_dict(), "_name_or_path": 0} == {**theirs.config.to_dict(), "_name_or_path": 0}
    assert_same_output(ours(PICTURES), again.eval()(PICTURES))
    assert not [record for record in caplog.records if record.name.startswith("calotype")]


@torch.no_grad()
def test_a_whole_clip(transformers, whole_config, tmp_path, caplog):
    whole = randomise(transformers.CLIPModel(whole_config))
    whole.save_pretrained(tmp_path)
    ours = CLIPVisionModelWithProjection.from_pretrained(tmp_path)
    assert ours.config.projection_dim == 20
    assert_near(ours(PICTURES).image_embeds, whole.get_image_features(PICTURES).pooler_output)
    text = calotype.CLIPTextModelWithProjection.from_pretrained(tmp_path)
    assert text.config.hidden_size == 8 and text.config.projection_dim == 20
    assert not [record for record in caplog.records if record.name.startswith("calotype")]


def test_encoder_defaults(transformers):
    ours = CLIPVisionModel.from_config({"num_hidden_layers": 0}).config
    theirs = transformers.CLIPVisionConfig(num_hidden_layers=0).to_dict()
    shared = ours.keys() & theirs.keys()
    assert len(shared) > 12 and {name: ours[name] for name in shared} == {name: theirs[name] for name in shared}


def test_encoder_gradients():
    ours = CLIPVisionModel(**VISION).train()
    gradients = []
    for _ in range(2):
        ours.zero_grad()
        ours(PICTURES).pooler_output.square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in ours.parameters()])
        ours.enable_gradient_checkpointing()
    assert all(torch.allclose(one, other) for one, other in zip(*gradients, strict=True))


def test_encoder_wrong_calls():
    with pytest.raises(ValueError, match=r"pixel_values is \[1, 3, 28, 30\], but must be \[B, 3, 28, 28\]"):
        CLIPVisionModel(**VISION)(torch.zeros(1, 3, 28, 30))
    with pytest.raises(ValueError, match="hidden_size is 32, which 5 attention heads do not divide"):
        CLIPVisionModel(**{**VISION, "num_attention_heads": 5})


# -- the rule ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def both(their_class, whole_config, tmp_path):
    """The same checker of random weights, ours and theirs."""
    theirs = randomise(their_class(whole_config))
    set_concepts(theirs, PICTURES)
    theirs.save_pretrained(tmp_path / "theirs")
    return StableDiffusionSafetyChecker.from_pretrained(tmp_path / "theirs"), theirs


def test_flags_are_those_of_diffusers(both):
    ours, theirs = both
    many, pictures = torch.randn(100, 3, 28, 28, generator=torch.Generator().manual_seed(3)), torch.rand(100, 3, 2, 2) + 0.1
    found = []
    for care in (0.0, 0.3, 1.0):
        set_concepts(ours, many, 0.02, care)
        theirs.load_state_dict({name.replace("vision_model.vision_model.", "vision_model."): tensor
                                for name, tensor in ours.state_dict().items()})
        mine, flags = ours(clip_input=many, images=pictures)
        reference, expected = theirs(clip_input=many, images=pictures.clone())
        assert flags == list(expected) and all(type(flag) is bool for flag in flags)
        assert torch.equal(mine, reference) and pictures.min() > 0  # the caller's pictures stay as they are
        found.append(sum(flags))
    assert 0 < found[0] < found[1] < found[2] < 100


@torch.no_grad()
def test_thresholds_care_and_rounding(both):
    """One concept, exactly what the picture looks like, so that what is over is one less the threshold."""
    ours, theirs = both
    picture, image = PICTURES[:1], np.full((1, 2, 2, 3), 0.7)
    seen = ours.visual_projection(ours.vision_model(picture).pooler_output)
    overs = (-0.0111, -0.0104, -0.0096, -0.0094, -0.009, -0.001, -0.0004, 0.0, 0.0004, 0.0006, 0.002)
    table = {}
    for checker in (ours, theirs):
        checker.concept_embeds.copy_(2 * seen.expand(17, -1))
        checker.special_care_embeds.copy_(3 * seen.expand(3, -1))
        checker.concept_embeds_weights.fill_(2)
        checker.special_care_embeds_weights.fill_(2)
        for special in overs:
            for over in overs:
                checker.special_care_embeds_weights[1], checker.concept_embeds_weights[4] = 1 - special, 1 - over
                flag = bool(checker(clip_input=picture, images=image.copy())[1][0])
                assert flag == table.setdefault((special, over), flag)
                assert flag == (over >= (-0.0095 if special >= 0.0005 else 0.0005))


def test_what_comes_back(both, caplog):
    ours, _ = both
    set_concepts(ours, PICTURES, 0.5, 0.0)
    with torch.no_grad():
        ours.concept_embeds_weights[1:] = 2  # the first concept alone, seen in two or three pictures
    flags = ours.is_unsafe(PICTURES)
    assert len(set(flags)) == 2
    for images in (torch.rand(5, 3, 4, 4) - 2, np.random.rand(5, 4, 4, 3) - 2, list(np.random.rand(5, 4, 4, 3) - 2)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            shown, again = ours(PICTURES, images)
        assert again == flags and [(one == 0).all() for one in shown] == flags
        assert all((one == 0).all() or (one == other).all() for one, other in zip(shown, images, strict=True))
        (record,) = caplog.records
        assert record.getMessage().startswith(f"{sum(flags)} of 5 pictures are withheld")
    caplog.clear()
    safe = flags.index(False)
    for one in (torch.ones(1, 3, 4, 4), images[:1]):
        assert (ours(PICTURES[safe, None], one)[0][0] == one[0]).all()
    assert not caplog.records
    with pytest.raises(ValueError, match="there are 2 images, but 5 pictures in clip_input"):
        ours(PICTURES, images[:2])
    assert not ours.concept_embeds.requires_grad
    assert len(ours.to(torch.bfloat16)(PICTURES, images)[1]) == 5  # a float32 picture in a bfloat16 checker


# -- files ------------------------------------------------------------------------------------------------------------


def test_files_of_all_times(both, their_class, tmp_path, caplog):
    ours, _ = both
    flags = ours.is_unsafe(PICTURES)
    ours.save_pretrained(tmp_path / "ours")
    tensors = load_file(tmp_path / "ours" / "model.safetensors")
    assert {name: list(tensors[name].shape) for name in tensors if "vision_model" not in name} == {
        "concept_embeds": [17, 20], "concept_embeds_weights": [17], "special_care_embeds": [3, 20],
        "special_care_embeds_weights": [3], "visual_projection.weight": [20, 32]}
    assert "vision_model.vision_model.pre_layrnorm.weight" in tensors  # as the published files have it
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config["model_type"] == "clip" and config["architectures"] == ["StableDiffusionSafetyChecker"]
    old_config = {**config, "_name_or_path": "x", "torch_dtype": "float32", "transformers_version": None,
                  "vision_config": {**config["vision_config"], "hidden_size": 7, "top_k": 50, "bad_words_ids": None},
                  "vision_config_dict": {**VISION, "hidden_size": 32}, "text_config_dict": TEXT}
    old = {**tensors, "vision_model.vision_model.embeddings.position_ids": torch.arange(10)[None]}
    new = {name.replace("vision_model.vision_model.", "vision_model."): tensor for name, tensor in tensors.items()}
    for layout, held, said in (("old", old, old_config), ("new", new, config), ("ours", tensors, config)):
        (tmp_path / layout).mkdir(exist_ok=True)
        save_file(held, tmp_path / layout / "model.safetensors", metadata={"format": "pt"})
        (tmp_path / layout / "config.json").write_text(json.dumps(said))
        mine = StableDiffusionSafetyChecker.from_pretrained(tmp_path / layout)
        theirs = their_class.from_pretrained(tmp_path / layout)
        assert mine.is_unsafe(PICTURES) == flags == list(theirs(clip_input=PICTURES, images=np.zeros((5, 2, 2, 3)))[1])
        mine.save_pretrained(tmp_path / "again")
        again = their_class.from_pretrained(tmp_path / "again")
        assert again.config.vision_config.to_dict() == theirs.config.vision_config.to_dict()
        assert again.config.text_config.vocab_size == 100 and again.config.projection_dim == 20
    assert not [r for r in caplog.records if r.name.startswith("calotype") and "withheld" not in r.getMessage()]


# -- in a pipeline ----------------------------------------------------------------------------------------------------


PROMPTS = ["a red heart", "a yellow smiling face", "a blue fish"]


def seeded(pipe, output_type="np"):
    pipe.set_progress_bar_config(disable=True)
    return pipe(PROMPTS, num_inference_steps=2, guidance_scale=1.0, height=64, width=64, output_type=output_type,
                generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def pipeline():
    """The bundled checkpoint with a checker that knows one concept: what sets its first picture apart."""
    pipe = calotype.StableDiffusionPipeline.from_pretrained("calotype/emoji")
    torch.manual_seed(0)
    checker = randomise(StableDiffusionSafetyChecker(VISION, projection_dim=20, text_config=TEXT))
    processor = CLIPImageProcessor(size=28, crop_size=28)
    with torch.no_grad():
        images = processor(seeded(pipe, "pil").images, return_tensors="pt").pixel_values
        seen = checker.visual_projection(checker.vision_model(images).pooler_output)
        checker.concept_embeds[3] = seen[0] - seen.mean(0)
        first, *others = torch.cosine_similarity(seen, checker.concept_embeds[3:4]).tolist()
        checker.special_care_embeds_weights.fill_(2)
        checker.concept_embeds_weights.fill_(2)[3] = (first + max(others)) / 2
    assert first - max(others) > 0.02
    return calotype.StableDiffusionPipeline(**pipe.components | {"safety_checker": checker, "feature_extractor": processor})


def test_pipeline_with_a_checker(pipeline, tmp_path, caplog):
    diffusers = pytest.importorskip("diffusers")
    ours = seeded(pipeline)
    assert ours.nsfw_content_detected == [not image.any() for image in ours.images] == [True, False, False]
    pipeline.save_pretrained(tmp_path / "ours")
    index = json.loads((tmp_path / "ours" / "model_index.json").read_text())
    assert index["safety_checker"] == ["stable_diffusion", "StableDiffusionSafetyChecker"]
    assert index["feature_extractor"] == ["transformers", "CLIPImageProcessor"]
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "ours", torch_dtype=torch.float32)
    reference = seeded(theirs)
    assert list(reference.nsfw_content_detected) == [True, False, False]
    assert np.abs(ours.images - reference.images).max() < 1e-4 and not reference.images[0].any()
    theirs.save_pretrained(tmp_path / "theirs")
    old = {**index, "feature_extractor": ["transformers", "CLIPFeatureExtractor"]}
    (tmp_path / "ours" / "model_index.json").write_text(json.dumps(old))
    caplog.clear()
    for folder in ("theirs", "ours"):
        again = calotype.DiffusionPipeline.from_pretrained(tmp_path / folder)
        assert type(again.safety_checker) is StableDiffusionSafetyChecker
        assert type(again.feature_extractor) is CLIPImageProcessor
        output = seeded(again)
        assert output.nsfw_content_detected == [True, False, False]
        assert np.abs(ours.images - output.images).max() < 1e-4 and not output.images[0].any()
    assert not [r for r in caplog.records if r.name.startswith("calotype") and "withheld" not in r.getMessage()]


def test_output_types_and_checkers_of_ones_own(pipeline):
    own = calotype.StableDiffusionPipeline(**pipeline.components)
    pictures = 2 * torch.rand(3, 3, 32, 32) - 1
    for kind in ("pil", "np", "pt"):

        def check(kind=kind):
            checked, flags = own._check_safety(pictures)
            return calotype.images.postprocess(checked, kind), flags

        own.safety_checker = None
        plain, flags = check()
        assert flags is None
        for answer in ([False] * 3, None):
            own.safety_checker = lambda images, clip_input, answer=answer: (images, answer)
            images, flags = check()
            assert flags == answer and all(np.array_equal(*pair) for pair in zip(images, plain, strict=True))
        own.safety_checker = lambda images, clip_input: (0 * images, [True, False, True])  # as Diffusers shows them:
        images, flags = check()  # from 0 to 1 what is withheld, from -1 to 1 what is not
        assert [float(np.asarray(image).mean()) for image in images] == [0, 128 if kind == "pil" else 0.5, 0]
