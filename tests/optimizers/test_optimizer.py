import jax
import jax.numpy as jnp
import numpy as np
import pytest

from can_jax.distributed.sharding_rules import path_name
from can_jax.optimizers.optimizer import make_optimizer, peak_learning_rate
from can_jax.optimizers.schedules import learning_rate_schedule
from can_jax.train.step import make_step
from can_jax.utils.errors import UserError
from tests.helpers.configs import small_config


def test_rate_scales_with_the_batch():
    config = small_config(batch_size=4096, optimizer__learning_rate=2.5e-4)
    assert peak_learning_rate(config) == pytest.approx(4e-3)


def test_schedule_is_linear_then_half_a_cosine():
    schedule = learning_rate_schedule(2.0, warmup_steps=10, total_steps=110)
    found = [float(schedule(step)) for step in (0, 5, 10, 35, 60, 110)]
    expected = [0, 1, 2, 1 + np.cos(np.pi / 4), 1, 0]
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(("warmup", "total"), [(0, 5), (40, 20), (5, 5)])
def test_unusual_durations_stay_within_the_peak(warmup, total):
    schedule = learning_rate_schedule(1.0, warmup, total)
    rates = [float(schedule(step)) for step in range(total)]
    assert all(0 <= rate <= 1 for rate in rates)
    assert sum(rates) > 0


def test_update_is_adamw():
    config = small_config(optimizer__weight_decay=0.1, optimizer__epsilon=1e-8)
    optimizer = make_optimizer(config)
    weight = {"out": {"kernel": jnp.array([[2.0]]), "bias": jnp.array([2.0])}}
    state, m, v = optimizer.init(weight), 0.0, 0.0
    update = jax.jit(optimizer.update)
    for i, gradient in enumerate((0.5, -2.0, 1.0), start=1):
        gradients = jax.tree.map(lambda x, g=gradient: jnp.full_like(x, g), weight)
        updates, state = update(gradients, state, weight)
        m, v = 0.9 * m + 0.1 * gradient, 0.95 * v + 0.05 * gradient**2
        step = (m / (1 - 0.9**i)) / (np.sqrt(v / (1 - 0.95**i)) + 1e-8)
        assert float(updates["out"]["bias"][0]) == pytest.approx(step, rel=1e-5)
        assert float(updates["out"]["kernel"][0, 0]) == pytest.approx(step + 0.2, rel=1e-5)


def test_first_moment_may_be_bfloat16():
    state = make_optimizer(small_config(optimizer__moment_dtype="bfloat16")).init(
        {"out": {"kernel": jnp.zeros((2, 2))}}
    )
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(state) if leaf.ndim}
    assert dtypes == {jnp.dtype("bfloat16"), jnp.dtype("float32")}


# A network in small: parameters of each kind, and their values.
PARAMETERS = {
    "encoder": {
        "patch_embed": {"kernel": np.full((3, 2), 0.7), "bias": np.full(2, 0.3)},
        "norm": {"scale": np.full(2, 1.1), "bias": np.full(2, -0.4)},
    },
    "decoder": {"predict": {"kernel": np.full((2, 3), -0.6), "bias": np.full(3, 0.2)}},
}


def by_path(tree):
    return {
        path_name(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def updates_by_path(gradient=1.0, **changes):
    """What the optimizer makes of gradients that are all equal, by path."""
    optimizer = make_optimizer(small_config(optimizer__weight_decay=0.5, **changes))

    @jax.jit
    def update(parameters):
        gradients = jax.tree.map(lambda leaf: jnp.full_like(leaf, gradient), parameters)
        return optimizer.update(gradients, optimizer.init(parameters), parameters)[0]

    return by_path(update(PARAMETERS))


def test_weight_decay_shrinks_matrices_only():
    values = by_path(PARAMETERS)
    for name, update in updates_by_path(gradient=0.0).items():
        decay = 0.5 * values[name] if name.endswith("kernel") else np.zeros_like(values[name])
        np.testing.assert_allclose(update, decay, rtol=1e-6, err_msg=name)


def test_learning_rate_of_some_parameters_is_scaled_by_the_first_pattern():
    scales = (("encoder/patch_embed", 0.5), ("^encoder/", 0.1))
    plain, scaled = updates_by_path(), updates_by_path(optimizer__learning_rate_scale=scales)
    for name, update in plain.items():
        factor = 1.0
        if name.startswith("encoder/"):
            factor = 0.5 if "patch_embed" in name else 0.1
        np.testing.assert_allclose(scaled[name], factor * update, rtol=1e-6, err_msg=name)


def test_frozen_parameters_stay_and_have_no_moments():
    updates = updates_by_path(optimizer__freeze=("^encoder/",))
    assert all(
        (update == 0).all() == name.startswith("encoder/") for name, update in updates.items()
    )
    optimizer = make_optimizer(small_config(optimizer__freeze=("^encoder/",)))
    state = jax.eval_shape(optimizer.init, PARAMETERS)
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    assert not any("encoder/" in name for name in names)
    assert any("decoder/predict/kernel" in name for name in names)


@pytest.mark.parametrize("frozen", [(), ("^encoder/",)])
def test_gradients_are_clipped_by_the_norm_of_what_is_trained(frozen):
    changes = {"optimizer__epsilon": 1.0, "optimizer__freeze": frozen}

    def sizes(limit):
        updates = updates_by_path(optimizer__clip_norm=limit, **changes)
        return {name: u for name, u in updates.items() if u.any() and name.endswith("bias")}

    plain = updates_by_path(**changes)
    trained = [u for name, u in plain.items() if not (frozen and name.startswith("encoder/"))]
    norm = sum(update.size for update in trained) ** 0.5  # of gradients that are all 1
    # Adam's first step on a gradient g is g / (|g| + epsilon); biases do not decay.
    for limit, size in ((None, 1 / 2), (1.01 * norm, 1 / 2), (norm / 4, 0.25 / 1.25)):
        found = sizes(limit)
        assert found
        for name, update in found.items():
            np.testing.assert_allclose(update, size, rtol=1e-5, err_msg=name)


def test_clipping_can_be_set_when_a_run_resumes():
    states = [
        jax.eval_shape(make_optimizer(small_config(optimizer__clip_norm=norm)).init, PARAMETERS)
        for norm in (None, 1.0)
    ]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer__freeze": ("encodr",)}, "freeze: 'encodr' is found in no parameter's path"),
        ({"optimizer__learning_rate_scale": (("[", 1.0),)}, "learning_rate_scale: '\\['"),
        ({"optimizer__freeze": (".",)}, "freeze leaves nothing to train"),
        ({"optimizer__learning_rate_scale": ((".", 0.0),)}, "scale leaves nothing to train"),
    ],
)
def test_pattern_that_finds_nothing_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        make_step(small_config(**changes), lambda _: 1.0)


@pytest.mark.parametrize("pair", ["encoder", ("encoder",), (1, 2), ("encoder", -1.0)])
def test_scale_that_is_no_pair_is_refused(pair):
    with pytest.raises(UserError, match="learning_rate_scale"):
        small_config(optimizer__learning_rate_scale=(pair,))
