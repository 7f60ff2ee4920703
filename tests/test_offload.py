"""Which weights come to the device when, and that none is used before it is there."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from resting import Recorder
from torch import nn

from calotype.runtime import offload


class Chain(nn.Module):
    """Three blocks, of which the second holds another; `log` hears of each that works."""

    def __init__(self, log):
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.blocks = nn.ModuleList([nn.Linear(2, 2), nn.Module(), nn.Linear(2, 2)])
        self.blocks[1].own, self.blocks[1].inner = nn.Linear(2, 2), nn.ModuleList([nn.Linear(2, 2)])
        self.blocks[1].forward = lambda x: self.blocks[1].own(self.blocks[1].inner[0](self.blocks[1].own(x)))
        self.log = log

    def forward(self, x):
        x = self.first(x)
        for i, block in enumerate(self.blocks):
            x = block(x)
            self.log.append(f"{i} worked")
        return x


class Named(offload.Mover):
    """Logs what is fetched, under the name of its first weight."""

    def __init__(self, model, log):
        super().__init__(torch.device("cpu"))
        self.log = log
        self.names = {weight.data_ptr(): name.removesuffix(".weight") for name, weight in model.named_parameters()}

    def fetch(self, resting):
        name = self.names[resting[0].data_ptr()]
        self.log.append(f"{name} fetched")
        weights = [one.clone() for one in resting]

        def arrived():
            self.log.append(f"{name} arrived")
            return weights

        return arrived


def chain():
    log: list[str] = []
    model = Chain(log)
    offload.offload([model], "layers", Named(model, log))
    return model, log


def test_blocks_are_fetched_ahead():
    model, log = chain()
    assert log == ["first fetched", "first arrived"]
    x = torch.randn(1, 2)
    with torch.no_grad():
        expected = model(x)
        log.clear()
        assert torch.equal(model(x), expected)
        log.clear()
        assert torch.equal(model(x), expected)
    assert log == [  # the first block was under way since the last one's work
        "blocks.0 arrived", "blocks.1.own fetched", "0 worked",
        "blocks.1.own arrived", "blocks.1.inner.0 fetched",
        "blocks.1.inner.0 arrived", "blocks.2 fetched", "1 worked",
        "blocks.2 arrived", "blocks.0 fetched", "2 worked"]


def test_what_was_fetched_in_vain_has_arrived_before_it_goes():
    """Else its memory could be written to when it is another's."""
    model, log = chain()
    x = torch.randn(1, 2)
    with torch.no_grad():
        model(x), model(x)
        log.clear()
        model.blocks[2](x)
        assert log == []  # it is there
        model.blocks[1](x)
    assert log == ["blocks.0 arrived", "blocks.1.own fetched", "blocks.1.own arrived", "blocks.1.inner.0 fetched",
                   "blocks.1.inner.0 arrived", "blocks.2 fetched"]


class FakeStream:
    """Stands for a CUDA stream, and logs what it waits for."""

    def __init__(self, name, log):
        self.name, self.log = name, log

    def wait_stream(self, other):
        self.log.append(f"{self.name} waits for {other.name}")

    def wait_event(self, event):
        self.log.append(f"{self.name} waits for {event}")

    def record_event(self):
        return f"the copies of {self.name}"


def test_streams_of_cuda_wait_for_each_other(monkeypatch, caplog):
    """The copies for the memory's last use, the computation for the copies. Without CUDA, only the order can be seen."""
    log: list[str] = []
    main = FakeStream("main", log)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: FakeStream("side", log))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext(log.append(f"on {stream.name}")))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: (_ for _ in ()).throw(RuntimeError("no pages")))
    mover = offload.CudaMover(torch.device("cpu"))
    weights = [torch.randn(3), torch.randn(4, 4, 3, 3).to(memory_format=torch.channels_last)]
    resting = [mover.rest(weight) for weight in weights]
    assert [record.message for record in caplog.records] == [
        "no more memory can be page-locked (no pages): blocks will come more slowly"]
    arrival = mover.fetch(resting)
    assert log == ["side waits for main", "on side"]
    there = arrival()
    assert log[2:] == ["main waits for the copies of side"]
    for copied, weight in zip(there, weights, strict=True):
        assert torch.equal(copied, weight)
        assert copied.stride() == weight.stride()
        assert copied.data_ptr() != weight.data_ptr()


class Narrow(Recorder):
    """Has room for one block."""

    refused = 0

    def fetch(self, resting):
        self.alive = [group for group in self.alive if not all(ref.expired() for ref in group)]
        if self.alive:
            self.refused += 1
            raise torch.OutOfMemoryError("no room")
        return super().fetch(resting)


def test_without_room_for_two_blocks_they_come_one_by_one():
    model = nn.ModuleList([nn.Linear(2, 2) for _ in range(3)])
    x, mover = torch.randn(1, 2), Narrow()
    with torch.no_grad():
        expected = model[2](model[1](model[0](x)))
        offload.offload([model], "layers", mover)
        for _ in range(3):
            assert torch.equal(model[2](model[1](model[0](x))), expected)
    assert (mover.most, mover.refused) == (1, 2 * 3)  # the first time, none is expected


def test_shared_weights_stay():
    """A weight of two blocks is there all the time."""
    model = nn.Module()
    model.blocks = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    model.blocks[1].weight = model.blocks[0].weight
    x = torch.randn(1, 2)
    with torch.no_grad():
        expected = model.blocks[1](model.blocks[0](x))
        mover = Recorder()
        offload.offload([model], "layers", mover)
        assert torch.equal(model.blocks[1](model.blocks[0](x)), expected)
    assert [len(group) for group in mover.fetched] == [1, 1, 1]
    offload.restore([model])
    assert model.blocks[1].weight is model.blocks[0].weight
    assert not model.blocks[0]._forward_pre_hooks
