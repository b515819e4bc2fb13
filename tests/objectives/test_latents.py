"""Prediction of a teacher's latents: the loss by the oracle, and the teacher that the step runs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from can_jax.augment.photometric import Photometric
from can_jax.models.can import grid_of
from can_jax.models.masking import hidden_mask, unpatchify
from can_jax.objectives import OBJECTIVES
from can_jax.objectives.base import Arrays
from can_jax.optimizers.average import update_average
from can_jax.train.flops import train_flops_per_image
from can_jax.train.losses import forward, prepare
from can_jax.train.memory import constant_bytes
from can_jax.train.step import gradients, make_step
from can_jax.utils.errors import UserError
from tests.helpers import objective_oracle as oracle
from tests.helpers.configs import small_config
from tests.train.states import random_state
from tests.train.test_step import TERMS, assert_agree, described, random_batch, trained, two_batches

ONLY = {f"objective__{name}__weight": 0.0 for name in TERMS}
LATENTS = {**ONLY, "objective__latents__weight": 1.0, "optimizer__ema_decay": 0.9}


@pytest.mark.parametrize(
    ("dtype", "value_error", "gradient_error"), [("float32", 1e-5, 1e-4), ("float64", 1e-10, 1e-10)]
)
def test_loss_is_the_oracle_s(dtype, value_error, gradient_error):
    rng = np.random.default_rng(0)
    given = [rng.normal(size=size) for size in ((3, 5, 4), (4, 6), (6,))]
    teacher = rng.normal(2, 3, size=(3, 4, 6))
    teacher[1, 2] = 7  # a token without variance
    hidden = np.array([[1, 0, 0, 1], [0, 1, 1, 0], [1, 1, 0, 0]], bool)

    def loss(decoded, kernel, bias):
        arrays = Arrays(decoded=decoded, teacher=jnp.asarray(teacher, dtype), hidden=hidden)
        return OBJECTIVES.get("latents").loss(arrays, lambda rows: rows @ kernel + bias)

    with jax.enable_x64(dtype == "float64"):
        compute = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
        (value, metrics), slopes = compute(*(jnp.asarray(array, dtype) for array in given))
    assert value.dtype == dtype
    assert float(value) == pytest.approx(oracle.latents(*given, teacher, hidden), rel=value_error)
    for index, slope in enumerate(slopes):

        def moved(array, index=index):
            arrays = [array if i == index else other for i, other in enumerate(given)]
            return oracle.latents(*arrays, teacher, hidden)

        wanted = oracle.gradient(moved, given[index])
        np.testing.assert_allclose(slope, wanted, atol=gradient_error * np.abs(wanted).max())
    centered = teacher - teacher.mean(-1, keepdims=True)
    target = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-5)
    assert float(metrics["latents/deviation"]) == pytest.approx(
        target[hidden].std(axis=0).mean(), rel=1e-5
    )


def start(**changes):
    config = small_config(**LATENTS, **changes)
    step, abstract = described(config)
    state = random_state(abstract)
    # The teacher is neither the initial nor the trained encoder.
    average = jax.tree.map(lambda leaf: 0.5 * leaf + 0.01, state.parameters)
    optimizer = state.optimizer | {"average": average}
    return config, step, dataclasses.replace(state, optimizer=optimizer)


def test_targets_are_the_average_s_tokens_of_whole_clean_views_with_and_without_microbatches():
    config, step, state = start(noise__sigma_max=0.3)
    batch = random_batch(config)
    assert "predict" not in state.parameters["decoder"]  # nothing reads its output

    @jax.jit
    def expected(parameters, average):
        settings = Photometric.from_settings(config.augment.to_dict())
        inputs = prepare(config, batch, state.step, settings)
        views = unpatchify(inputs.clean, grid_of(config), config.model.patch_size)
        teacher = step.model(dataclasses.replace(state, parameters=average)).encode(views)[:, 1:]
        target = nnx.LayerNorm(24, epsilon=1e-5, use_bias=False, use_scale=False, rngs=nnx.Rngs(0))(
            teacher
        )

        def loss(parameters):
            model = step.model(dataclasses.replace(state, parameters=parameters))
            outputs = forward(config, model, inputs)
            found = model.latents_head(outputs.decoded[:, 1:])
            hidden = hidden_mask(inputs.shuffle, outputs.latent.shape[1] - 1)
            return jnp.mean(jnp.square(found - target).mean(-1), where=hidden)

        return jax.value_and_grad(loss)(parameters)

    value, slopes = expected(state.parameters, state.optimizer["average"])
    for count in (1, 2):
        config.accumulation.microbatches = count
        found = jax.jit(functools.partial(gradients, config, step.network))(
            state.parameters, state.batch_stats, batch, state.step, step.teacher(state)
        )
        assert float(found.metrics["loss/latents"]) == pytest.approx(float(value), rel=1e-5)
        assert_agree(found.gradients, slopes, floor=1e-7)


def test_decay_rate_of_the_teacher_is_limited_by_a_warmup_or_constant(monkeypatch):
    old, new = {"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([3.0, -2.0])}
    for warmup, decay in ((True, 3 / 12), (False, 0.9)):
        found = update_average(old, new, 0.9, jnp.asarray(2), warmup)["w"]
        np.testing.assert_allclose(found, decay * old["w"] + (1 - decay) * new["w"], rtol=1e-6)

    given = []

    def spy(average, parameters, decay, step, warmup):
        given.append((decay, warmup))
        return average

    monkeypatch.setattr("can_jax.train.step.update_average", spy)
    config, step, state = start(optimizer__ema_warmup=False)
    jax.eval_shape(step.train, state, random_batch(config))
    assert given == [(0.9, False)]


def test_only_an_objective_that_reads_it_has_a_teacher():
    _, step, state = start()
    assert set(step.teacher(state)) == {"encoder"}
    assert make_step(small_config(optimizer__ema_decay=0.9)).teacher(state) is None


def test_no_teacher_or_nothing_to_predict_is_refused():
    with pytest.raises(
        UserError, match=r"optimizer.ema_decay=0 disables the moving .*objective.latents"
    ):
        small_config(**LATENTS | {"optimizer__ema_decay": 0.0})
    with pytest.raises(UserError, match=r"mask_ratio=0.0 hides none.*objective.latents.weight=0"):
        small_config(**LATENTS, model__mask_ratio=0.0)


def test_cost_of_a_teacher_is_one_forward_pass_of_all_patches():
    pixels = small_config(**ONLY | {"objective__reconstruction__weight": 1.0}, noise__sigma_max=0.0)
    latents = small_config(**LATENTS, noise__sigma_max=0.0)
    patches, inputs, width, inner = 16, 48, 24, 16
    tokens = patches + 1
    teacher = 24 * tokens * width**2 + 4 * tokens**2 * width + 2 * patches * inputs * width
    outputs = 3 * 2 * inner * patches * (width - inputs)
    more = train_flops_per_image(latents) - train_flops_per_image(pixels)
    assert more == pixels.augment.views * (teacher + outputs)
    stored = [constant_bytes(config, 1000, devices=1) for config in (pixels, latents)]
    assert stored[1] - stored[0] == 4000  # the moving average in float32


@pytest.mark.slow
def test_teacher_does_not_depend_on_mesh_and_microbatches():
    split = {"mesh__data": 2, "mesh__fsdp": 4, "mesh__shard_state": True}
    split["accumulation__microbatches"] = 2
    wanted = trained(two_batches, devices=1, **LATENTS)
    found = trained(two_batches, **LATENTS, **split)
    # It is logged for each microbatch, and averaged.
    deviations = [metrics.pop("latents/deviation") for metrics, _ in (wanted, found)]
    assert deviations[0] > 0.1 and deviations[1] == pytest.approx(deviations[0], rel=0.01)
    assert_agree(found, wanted)
