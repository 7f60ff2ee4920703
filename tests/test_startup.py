"""What is imported when: names load what they need, and nothing more."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import calotype

REPORT = "import json, sys; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"


def imported(code: str) -> set[str]:
    """The top-level modules that are loaded after `code`, in a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", f"{code}\n{REPORT}"], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_the_package_loads_no_torch():
    heavy = {"torch", "numpy", "PIL", "safetensors", "tokenizers", "huggingface_hub", "tqdm", "typer", "rich", "scipy"}
    assert not imported("import calotype; dir(calotype)") & heavy


def test_importing_a_pipeline_loads_no_peer():
    loaded = imported("from calotype import StableDiffusionPipeline")
    assert "torch" in loaded
    assert not loaded & {"transformers", "accelerate", "diffusers", "huggingface_hub", "tokenizers", "scipy", "PIL", "rich"}


def test_generating_loads_no_peer():
    loaded = imported(
        "from calotype import DiffusionPipeline\n"
        "pipe = DiffusionPipeline.from_pretrained('calotype/emoji')\n"
        "pipe('a cat', num_inference_steps=1)")
    assert not loaded & {"transformers", "accelerate", "diffusers", "huggingface_hub", "scipy", "sympy"}  # sympy: a compiler


def test_every_public_name_loads():
    assert len(calotype.__all__) > 15
    for name in calotype.__all__:
        assert getattr(calotype, name) is not None
    assert set(calotype.__all__) <= set(dir(calotype))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="EulerDiscret"):
        _ = calotype.EulerDiscret
