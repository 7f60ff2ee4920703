"""A tape repeats what a function does: the function, called again on what is in memory now, is its oracle."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from calotype.runtime.tape import CannotRecord, Tape

X, W = torch.empty(4, 6), torch.empty(6, 6)  # what functions read: a sample, and a weight


@pytest.fixture(autouse=True)
def ungraded() -> Iterator[None]:
    with torch.no_grad():
        draw(0)
        yield


def draw(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    X.copy_(torch.randn(X.shape, generator=generator))
    W.copy_(torch.randn(W.shape, generator=generator))


def assert_repeats(function: Callable[[], Tensor]) -> Tape:
    """On new values, twice over, bit by bit."""
    tape = Tape(function)
    for seed in (1, 2):
        draw(seed)
        expected = function()
        for _ in range(2):
            made = tape.replay()
            assert made.dtype == expected.dtype and made.stride() == expected.stride()
            assert torch.equal(made, expected)
    return tape


def filled(function: Callable[[Tensor], object], *shape: int) -> Tensor:
    made = torch.empty(shape)
    function(made)
    return made


FUNCTIONS: dict[str, Callable[[], Tensor]] = {
    "views of views": lambda: (X + 1).t().unflatten(0, (2, 3))[1, 1:].flatten().view(2, 4).expand(3, 2, 4)[:, ::2, 1:],
    "a view is the result": lambda: X.exp()[1:, ::3].t(),
    "views of constants": lambda: W.t()[2:].unsqueeze(0) * X[0].view(1, 6)[..., 2:3],
    "in place": lambda: (X * 2).add_(1).mul_(X).clamp_(-1, 1),
    "in place, through a view": lambda: filled(
        lambda made: (made.zero_(), made[1:3, ::2].add_(X[:2, 3:]), made.t()[0].fill_(7)), 4, 6),
    "assigned": lambda: filled(
        lambda made: (made.copy_(X), made.__setitem__(X > 0, 5.0), made.__setitem__((0, slice(2)), X[1, 1])), 4, 6),
    "out=": lambda: filled(lambda made: (torch.mul(X, X, out=made[:4]), torch.add(X, made[:4], out=made[4:])), 8, 6),
    "out=, resized": lambda: filled(lambda made: torch.add(X, 1, out=made), 0).t() * 2,
    "cat": lambda: torch.cat([X, W, (X + 1)[1:], X[:0] * 2]),
    "stack": lambda: torch.stack([X * 2, X, X.flip(0)], 1),
    "split": lambda: torch.add(*(X * 2).split([2, 2])) - torch.cat((X * 3).chunk(3, 1)[1:])[:2, :1],
    "unbind": lambda: torch.stack([row * i for i, row in enumerate((X + 1).unbind(1))]),
    "norms": lambda: F.layer_norm(F.group_norm(X.view(2, 4, 3), 2), (3,)),
    "largest, and where": lambda: X.max(1)[0] * X.max(1)[1],
    "sorted by": lambda: W[:, X[0].argsort()[:2]],  # None and a computed index in one list
    "as many as there are": lambda: X[X > 0],
    "made anew": lambda: torch.full((6,), 2.0).add_(X[0]) + torch.arange(6).mul_(2) + torch.zeros_like(X),
    "numbers": lambda: torch.tensor([0.0, 1.0]).add_(X[0, :2]),  # not the sum of all replays
    "composite": lambda: torch.einsum("ab,cb->ac", X.sin(), W) @ F.linear(W, W.cos(), X[0]).softmax(0),
    "attention": lambda: F.scaled_dot_product_attention(X.view(1, 2, 4, 3), X.view(1, 2, 4, 3) + 1, W.view(1, 2, 6, 3)[:, :, :4]),
    "convolution": lambda: F.conv2d(X.view(1, 2, 2, 6), W[:, :4].reshape(2, 2, 2, 3), W[0, :2], padding=1),
    "resampled": lambda: F.avg_pool2d(F.interpolate(X[None, None], scale_factor=2.0), 3) + F.pad(X, (1, 1, 1, 1)).mean(),
    "as other types": lambda: (X * 2).view(torch.int32) + X.double().to(torch.bfloat16),
    "complex": lambda: torch.complex(X, X * 2).conj().imag + torch.view_as_real(torch.complex(X, X + 1).conj() * 2j)[..., 0],
    "lists in place": lambda: filled(lambda made: torch._foreach_copy_([made[:4], made[4:]], [X + 1, W[:4]]), 8, 6),
    "without autograd": lambda: (X + 1).detach().data.mul_(2),
    "nothing to do": lambda: (X + 1).to(torch.float32).contiguous().float() * 2,
    "nothing is read": lambda: torch.ones(3) * 2,
}


@pytest.mark.parametrize("without_gradients", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_tape_repeats(name, without_gradients):
    with without_gradients():
        assert_repeats(FUNCTIONS[name])


def test_a_network():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(6, 8), nn.LayerNorm(8), nn.SiLU(), nn.Unflatten(1, (2, 4)), nn.GroupNorm(1, 2), nn.Flatten(),
        nn.BatchNorm1d(8).eval(), nn.Linear(8, 3))
    assert_repeats(lambda: network(X))


def test_a_weight_changed_in_place_is_seen():
    weight = torch.ones(6, 6)
    tape = Tape(lambda: F.linear(X, weight[:3]) + weight.t()[0, :3])
    weight.mul_(2)[1] = 5
    assert torch.equal(tape.replay(), F.linear(X, weight[:3]) + weight.t()[0, :3])


def test_what_is_done_to_others_is_done_again():
    count = torch.zeros(2)
    tape = Tape(lambda: count[1:].add_(1) + X[0, 0])
    tape.replay()
    assert count.tolist() == [0, 2]


# programs: (operation, the tensors that it takes); each sees X, W[:4] and what those before it made
OPERATIONS: list[Callable[[Tensor, Tensor], Tensor]] = [
    lambda a, b: a + b,
    lambda a, b: torch.stack([a, b]).amax(0),
    lambda a, b: torch.cat([a[:2], b[2:]]),
    lambda a, b: a.t().reshape(4, 6),
    lambda a, b: a.add_(b).tanh_(),
    lambda a, b: a[::2].mul_(2).repeat(2, 1),
    lambda a, b: a.flip(1).copy_(b),
    lambda a, b: torch.sub(a, b, out=torch.empty(4, 6)),
    lambda a, b: a.view(2, 12).view(4, 6),
    lambda a, b: torch.cat(a.chunk(2, 1)[::-1], 1),
    lambda a, b: F.group_norm(a[:, :, None], 3)[..., 0],
    lambda a, b: (a @ b.t()).softmax(-1) @ b,
    lambda a, b: torch.where(a > b, a, b.mean()),
    lambda a, b: a.max(1, keepdim=True)[0] - b,
    lambda a, b: a.view(torch.int32).clone().view(torch.float32),
    lambda a, b: b.clone(memory_format=torch.contiguous_format).index_put_((torch.tensor([1, 3]),), a[:2]),
]
STEP = st.tuples(st.sampled_from(range(len(OPERATIONS))), st.integers(0, 50), st.integers(0, 50))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(program=st.lists(STEP, min_size=1, max_size=10))
def test_random_programs(program):
    def function() -> Tensor:
        pool = [X.clone(), W[:4]]
        for operation, first, second in program:
            a = pool[first % len(pool)]
            a = a.clone() if a is pool[1] or not a.is_contiguous() else a  # W is not to be written to
            pool.append(OPERATIONS[operation](a, pool[second % len(pool)]))
        return torch.stack(pool[2:])

    with torch.no_grad():
        tape = Tape(function)
        for seed in (1, 2):
            draw(seed)
            assert torch.equal(tape.replay(), function())


# -- what cannot be ---------------------------------------------------------------------------------------------------------


def _given_data() -> Tensor:
    made = X + 1
    made.data = X * 3
    return made * 2


@pytest.mark.parametrize("function", [
    lambda: X * X.sum().item(), lambda: X + 1 if X.sum() > 0 else X, lambda: X * float(X[0, 0]), lambda: X[int(X[0, 0] > 0):] + 1,
    lambda: X * sum((X + 1)[0].tolist()), lambda: X * float(X.numpy().sum()), lambda: X + np.asarray(X + 1),
    lambda: X * len(str(X)),
    lambda: X, lambda: X[1:], lambda: W.add_(1),
    lambda: (X + 1).resize_(3, 2) * 2, lambda: (X + 1).set_(X.clone()) * 2, lambda: (X + 1).transpose_(0, 1) * 2, _given_data,
])
def test_what_cannot_be_repeated_is_not_recorded(function):
    with pytest.raises(CannotRecord, match=r"cannot be repeated without Python|not computed in the call"):
        Tape(function)


def test_the_function_s_own_errors_are_passed_on():
    with pytest.raises(ZeroDivisionError):
        Tape(lambda: X / (1 // 0))
    assert X.tolist()  # and no mode is left on


# -- random numbers ---------------------------------------------------------------------------------------------------------


def test_random_numbers_are_drawn_anew_and_none_by_the_recording():
    """A replay draws what a call would: with one seed, both drop the same."""
    torch.manual_seed(3)
    state = torch.get_rng_state()
    tape = Tape(lambda: F.dropout(X, 0.5, training=True) + torch.randn(6))
    assert torch.equal(torch.get_rng_state(), state)
    expected = [F.dropout(X, 0.5, training=True) + torch.randn(6) for _ in range(2)]
    torch.set_rng_state(state)
    for each in expected:
        assert torch.equal(tape.replay(), each)
    assert not torch.equal(*expected)


# -- memory -----------------------------------------------------------------------------------------------------------------


class Living(TorchDispatchMode):
    """The most results of operations that lived at once, in distinct memory."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, weakref.ref] = {}
        self.most = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nor import it

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **kwargs or {})
        for tensor in made if isinstance(made, (list, tuple)) else (made,):
            self.made[id(tensor)] = weakref.ref(tensor)
        del tensor
        living = [tensor() for tensor in self.made.values() if tensor() is not None]
        self.most = max(self.most, len({tensor.untyped_storage().data_ptr() for tensor in living}))
        return made


def test_a_replay_needs_no_more_memory_than_a_call():
    def function() -> Tensor:
        x = X
        for i in range(10):
            wide = torch.cat([x, x * 2])
            first, second = wide.chunk(2)
            x = F.group_norm((first + second).view(2, 2, 6), 2).view(4, 6)
            if i % 3 == 0:
                kept = x.t()
                x = (x @ W).add_(kept.t())
        return x

    tape = Tape(function)
    with Living() as of_call:
        function()
    with Living() as of_replay:
        tape.replay()
    assert 2 <= of_replay.most <= of_call.most


def test_nothing_but_the_result_is_kept():
    """Results of a recording and of a replay are freed; what they were made of is not kept by registers or lists."""
    made: list[weakref.ref] = []

    def function() -> Tensor:
        first = X * 2
        second = torch.cat([first, first.t().reshape(4, 6)])
        third, fourth = second.max(1)
        made.extend(map(weakref.ref, (first, second, third, fourth)))
        return third + fourth

    tape = Tape(function)
    gc.collect()
    assert not any(tensor() is not None for tensor in made)
    with Living() as living:
        result = tape.replay()
    assert [tensor() is result for tensor in living.made.values() if tensor() is not None] == [True]
    assert all(tensor is None for tensor in tape._registers)


def test_results_are_no_one_s_memory_but_their_own():
    tape = Tape(lambda: (X + 1)[1:])
    first = tape.replay()
    copy = first.clone()
    X.add_(1)
    tape.replay().zero_()
    assert torch.equal(first, copy)


def test_no_compiler_is_imported():
    code = """
import sys, torch
from torch.nn import functional as F
from calotype.runtime.tape import Tape
x = torch.ones(2, 4, 3)
with torch.no_grad():
    tape = Tape(lambda: F.interpolate(F.dropout(F.group_norm(torch.einsum("abc,cd->abd", x, x[0, :3]), 2), 0.5, True), 6))
    tape.replay()
sys.exit("torch._dynamo" in sys.modules or "torch._inductor" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
