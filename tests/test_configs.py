"""A config is frozen: neither its owner's lists, nor those of whoever made it, change what it says."""

from __future__ import annotations

import copy
import inspect
import json
import pickle

import numpy as np
import pytest
import torch

import calotype
from calotype.config import Configured, FrozenConfig, FrozenList
from calotype.schedulers import ALL


def classes():
    found = [getattr(calotype, name) for name in sorted(calotype.__all__)]
    return [each for each in found if inspect.isclass(each) and issubclass(each, Configured)]


def parameters(each):
    return list(inspect.signature(each.__init__).parameters.values())[1:]


@pytest.mark.parametrize("each", classes(), ids=lambda each: each.__name__)
def test_no_default_can_be_changed(each):
    """Once, `disable_corrector=[]` was one list for all schedulers; what is kept on classes is shared as well."""
    for parameter in parameters(each):
        assert not isinstance(parameter.default, (list, dict, set, bytearray, np.ndarray, torch.Tensor)) or isinstance(
            parameter.default, (FrozenList, FrozenConfig)), parameter.name
    for base in each.__mro__:
        if base.__module__.startswith("calotype"):
            for name, value in vars(base).items():
                assert name.startswith("__") or type(value) not in (list, dict, set), f"{base.__name__}.{name}"


@pytest.mark.parametrize("each", ALL, ids=lambda each: each.__name__)
def test_schedulers_do_not_share_config_values(each):
    one, other = each(), each()
    for name, value in one.config.items():
        if isinstance(value, list):
            with pytest.raises(TypeError, match="a config is frozen"):
                value.append(1)
            assert value == other.config[name]


def test_a_list_that_was_given_is_the_givers():
    """Of schedulers, models and pipelines; in the config, and in what the object does."""
    betas, without, widths, blocks = np.linspace(1e-4, 0.02, 10), [0], [8, 16], ["DownBlock2D", "DownBlock2D"]
    unipc, ddim = calotype.UniPCMultistepScheduler(disable_corrector=without), calotype.DDIMScheduler(10, trained_betas=betas)
    unet = calotype.UNet2DModel(block_out_channels=widths, norm_num_groups=4, down_block_types=blocks,
                                up_block_types=["UpBlock2D"] * 2)
    without.append(5)
    betas[:] = 0
    widths.append(32)
    blocks[0] = "AttnDownBlock2D"
    assert unipc.config.disable_corrector == [0]
    assert ddim.config.trained_betas[-1] == 0.02
    assert unet.config.block_out_channels == [8, 16] and unet.config.down_block_types == ["DownBlock2D"] * 2
    again = [calotype.UniPCMultistepScheduler.from_config(unipc.config), calotype.UNet2DModel.from_config(unet.config)]
    assert again[0].config.disable_corrector == [0] and again[1].config.block_out_channels == [8, 16]
    names = {"0": "cat"}
    unet.register_to_config(names=names)
    names["1"] = "dog"
    assert unet.config.names == {"0": "cat"}


@pytest.mark.parametrize("change", [
    lambda x: x.append(1), lambda x: x.extend([1]), lambda x: x.insert(0, 1), lambda x: x.pop(), lambda x: x.remove(1),
    lambda x: x.clear(), lambda x: x.sort(), lambda x: x.reverse(), lambda x: x.__setitem__(0, 5), lambda x: x.__delitem__(0),
    lambda x: x.__iadd__([1]), lambda x: x.__imul__(2)], ids=range(12))
def test_lists_in_configs_are_frozen(change):
    config = FrozenConfig({"list": [1, [2, 3]], "dictionary": {"list": [1]}, "tuple": (1, [2])})
    for found in (config.list, config.dictionary["list"], config.tuple[1]):
        before = list(found)
        with pytest.raises(TypeError, match="a config is frozen, and so are its lists"):
            change(found)
        assert found == before
    with pytest.raises(TypeError, match="frozen"):
        config.list[1].append(4)
    with pytest.raises(TypeError, match="frozen"):
        config.dictionary["new"] = 1


def test_frozen_lists_are_lists():
    config = FrozenConfig({"list": [1, [2, 3]]})
    for same in (copy.copy(config), copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert same == {"list": [1, [2, 3]]} and isinstance(same["list"], list)
    assert json.dumps(config) == '{"list": [1, [2, 3]]}'
    assert [*config.list, 4] == [1, [2, 3], 4] and list(config.list) == [1, [2, 3]]
    with pytest.raises(TypeError):
        copy.deepcopy(config).list.append(1)
