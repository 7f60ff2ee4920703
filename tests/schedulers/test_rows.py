"""Samples of one batch at different rows: generations that started at different times share every step."""

from __future__ import annotations

import pytest
import torch

import calotype.schedulers as schedulers

from .plans import PLANS

SHAPE = (1, 3, 4, 4)
LATE = 3


def model(x: torch.Tensor, clocks: torch.Tensor) -> torch.Tensor:
    return torch.tanh(0.7 * x + 0.1 * torch.sin(clocks.view(-1, 1, 1, 1) / 100))


def output_of(table, x, rows, learned):
    scale = torch.tensor([table.input_scale[row] for row in rows]).view(-1, 1, 1, 1)
    output = model(x * scale, torch.stack([table.timesteps[row].float() for row in rows]))
    return torch.cat([output, 0.5 * output.flip(1) + 0.5], 1) if learned else output


def alone(table, seed, learned):
    """One generation by row numbers, and its noise, drawn beforehand."""
    generator = torch.Generator().manual_seed(seed)
    x, noises = torch.randn(SHAPE, generator=generator), torch.randn(len(table), *SHAPE, generator=generator)
    state, first = table.new_state(), x
    for row in range(len(table)):
        noise = noises[row] if table.draws_noise(row) else None
        x = table.step(row, output_of(table, x, [row], learned), x, state, noise)
    return first, noises, x


def configs():
    for name in PLANS:
        yield name, {}
    yield "DDPMScheduler", {"variance_type": "learned_range"}
    yield "DDIMScheduler", {"thresholding": True}
    yield "PNDMScheduler", {"skip_prk_steps": True}


@pytest.mark.parametrize(("name", "config"), configs(), ids=lambda value: value if isinstance(value, str) else None)
def test_generations_that_started_apart(name, config):
    """Each comes out as it does alone; one joins at step 3, the other leaves three steps before the end."""
    scheduler = getattr(schedulers, name)(**config)
    table, learned = scheduler.table(8), "learned" in str(config)
    (x_early, noise_early, expected_early), (x_late, noise_late, expected_late) = (alone(table, seed, learned) for seed in (1, 2))
    count, state = len(table), table.new_state()
    x = torch.cat([x_early, x_late])
    for step in range(count + LATE):
        rows = [min(step, count - 1), max(step - LATE, 0)]
        noise = torch.cat([noise_early[rows[0]], noise_late[rows[1]]])
        moved = table.step(torch.tensor(rows), output_of(table, x, rows, learned), x, state, noise)
        waiting, done = step < LATE, step >= count
        x = torch.cat([x[:1] if done else moved[:1], x[1:] if waiting else moved[1:]])
    for got, expected in ((x[:1], expected_early), (x[1:], expected_late)):
        assert torch.allclose(got, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("name", PLANS)
def test_a_step_by_row_tensor_is_one_graph(name):
    """No tensor is read back and nothing branches on one: a traced step is right for other rows."""
    from torch.fx.experimental.proxy_tensor import make_fx

    table = getattr(schedulers, name)().table(6)
    x = torch.randn(2, 3, 4, 4)
    state = [torch.zeros_like(x) for _ in table.new_state()]
    table.columns(x.device)  # made before, as a captured graph has them

    def step(rows, output, x, noise, *held):
        held = list(held)
        return table.step(rows, output, x, held, noise), *held

    given = torch.tensor([0, 2]), torch.randn_like(x), x, torch.randn_like(x), *state
    graph = make_fx(step, tracing_mode="real")(*given)
    other = torch.tensor([4, 1]), *given[1:]
    for made, expected in zip(graph(*other), step(*other), strict=True):
        assert torch.allclose(made, expected, atol=1e-6)


COMPILED = [*((name, {}, {}) for name in PLANS),
            ("DDIMScheduler", {"thresholding": True}, {"eta": 1.0}),
            ("DDIMScheduler", {"clip_sample": True}, {"eta": 0.5, "use_clipped_model_output": True}),
            ("DDPMScheduler", {"variance_type": "learned_range"}, {}), ("DDPMScheduler", {"variance_type": "learned"}, {}),
            ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "thresholding": True}, {}),
            ("DPMSolverMultistepScheduler", {"variance_type": "learned_range", "solver_order": 3}, {}),
            ("EulerDiscreteScheduler", {"prediction_type": "v_prediction"}, {"s_churn": 20.0}),
            ("HeunDiscreteScheduler", {"clip_sample": True}, {}), ("EDMEulerScheduler", {}, {"s_churn": 20.0}),
            ("PNDMScheduler", {"skip_prk_steps": True}, {}), ("TCDScheduler", {"thresholding": True}, {"eta": 1.0})]


@pytest.mark.parametrize(("name", "config", "options"), COMPILED, ids=str)
def test_steps_compile_whole(name, config, options):
    """Three steps are one graph of `torch.compile`, by row numbers and by rows of each sample, and it is right."""
    table = getattr(schedulers, name)(**config).table(6, **options)
    x, generator = torch.randn(2, 3, 4, 4), torch.Generator().manual_seed(0)
    channels = 6 if str(config.get("variance_type")).startswith("learned") else 3
    outputs, noises = torch.rand(3, 2, channels, 4, 4, generator=generator), torch.randn(3, *x.shape, generator=generator)
    table.columns(x.device)

    def steps(x, outputs, noises, state, of_rows):
        alone = together = x
        for i in range(3):
            alone = table.step(i, outputs[i], alone, state, noises[i] if table.draws_noise(i) else None)
            together = table.step(torch.tensor([i, i]), outputs[i], together, of_rows, noises[i])
        return alone, together

    expected, _ = steps(x, outputs, noises, table.new_state(), table.new_state())
    torch._dynamo.reset()
    compiled = torch.compile(steps, fullgraph=True, backend="eager")
    for made in compiled(x, outputs, noises, list(table.new_state()), list(table.new_state())):
        torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)
