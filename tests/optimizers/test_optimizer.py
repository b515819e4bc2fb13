import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from can_jax.distributed.sharding_rules import path_name
from can_jax.optimizers.optimizer import make_optimizer, peak_learning_rate
from can_jax.optimizers.schedules import learning_rate_schedule
from can_jax.optimizers.transforms import check_updates, unused_settings
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
        ({"optimizer__freeze": ("encodr",)}, "freeze: 'encodr' matches no parameter's path"),
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


# Two stacked layers, and parameters outside of the stack.
STACK = {
    "encoder": {
        "blocks": {
            "layers": {
                "mlp": {"expand": {"kernel": np.array([np.eye(3, 4), 5 * np.ones((3, 4))])}},
                "norm1": {"scale": np.full((2, 3), 2.0)},
            }
        },
        "patch_embed": {"kernel": np.full((4, 3), 0.5)},
    },
    "projector": {"layers": [{"kernel": np.full((3, 2), 0.5), "bias": np.ones(2)}]},
}
EXPAND = "encoder/blocks/layers/mlp/expand/kernel"


def stacked_updates(gradients, **changes):
    optimizer = make_optimizer(small_config(**changes))
    update = jax.jit(lambda g, p: optimizer.update(g, optimizer.init(p), p)[0])
    return by_path(update(gradients, STACK))


@pytest.mark.parametrize(("name", "coefficient"), [("lars", 0.001), ("lamb", 1.0)])
def test_trust_ratio_is_of_each_layer(name, coefficient):
    rng = np.random.default_rng(0)
    gradients = jax.tree.map(lambda x: rng.normal(size=x.shape), STACK)
    values, given = by_path(STACK), by_path(gradients)
    found = stacked_updates(gradients, optimizer__name=name, optimizer__weight_decay=0.1)
    for path, update in found.items():
        # The first step of Adam is the sign of the gradient.
        expected = given[path] if name == "lars" else np.sign(given[path])
        if path.endswith("kernel"):
            expected = expected + 0.1 * values[path]
            layers = zip(values[path], expected, strict=True) if "blocks" in path else ()
            for value, layer in layers:
                layer *= coefficient * np.linalg.norm(value) / np.linalg.norm(layer)
            if "blocks" not in path:
                expected *= coefficient * np.linalg.norm(values[path]) / np.linalg.norm(expected)
        np.testing.assert_allclose(update, expected, rtol=1e-5, err_msg=path)


def test_muon_orthogonalizes_each_layer_and_leaves_the_rest_to_adam():
    rng = np.random.default_rng(0)
    gradients = jax.tree.map(lambda x: rng.normal(size=x.shape), STACK)
    given = by_path(gradients)
    found = stacked_updates(gradients, optimizer__name="muon", optimizer__weight_decay=0.0)
    matrices = [*found[EXPAND], found["projector/layers/0/kernel"]]
    for matrix in matrices:
        values = np.linalg.svd(matrix / (0.2 * max(matrix.shape) ** 0.5), compute_uv=False)
        assert values.min() > 0.5 and values.max() < 1.3  # five steps end near 1
    left, _, right = np.linalg.svd(given[EXPAND][1], full_matrices=False)
    assert np.vdot(found[EXPAND][1], left @ right) > 0
    others = [path for path in found if path not in (EXPAND, "projector/layers/0/kernel")]
    for path in others:
        np.testing.assert_allclose(found[path], np.sign(given[path]), rtol=1e-5, err_msg=path)
    zero = jax.tree.map(np.zeros_like, STACK)
    decayed = stacked_updates(zero, optimizer__name="muon", optimizer__weight_decay=0.5)
    values = by_path(STACK)
    for path, update in decayed.items():
        decay = 0.5 * values[path] if path.endswith("kernel") else np.zeros_like(values[path])
        np.testing.assert_allclose(update, decay, rtol=1e-5, atol=1e-7, err_msg=path)


@pytest.mark.parametrize(
    ("name", "moments"),
    [("adamw", 2), ("lamb", 2), ("lars", 1), ("lion", 1), ("muon", 1), ("adafactor", 0.6)],
)
def test_memory_of_each_optimizer(name, moments):
    """What the plan counts: the state over the parameters."""
    weight = {
        "encoder": {"blocks": {"layers": {"mlp": {"expand": {"kernel": jnp.zeros((2, 256, 512))}}}}}
    }
    state = jax.eval_shape(make_optimizer(small_config(optimizer__name=name)).init, weight)
    stored = sum(leaf.size for leaf in jax.tree.leaves(state))
    assert stored <= moments * 2 * 256 * 512 + 8 and (stored or moments < 1)


def test_adafactor_normalizes_small_gradients():
    """Its `eps` is added to the square of a gradient, so that of Adam would turn this off."""
    gradient = {"kernel": jnp.full((256, 256), 1e-6)}
    updates = [
        optimizer.update(gradient, optimizer.init(gradient), gradient)[0]["kernel"]
        for optimizer in (
            make_optimizer(small_config(optimizer__name="adafactor", optimizer__weight_decay=0.0)),
            optax.adafactor(1.0),
        )
    ]
    np.testing.assert_allclose(updates[0], -updates[1], rtol=1e-5)
    settings = small_config(optimizer__name="adafactor").optimizer
    assert "epsilon" in unused_settings(settings)


@pytest.mark.parametrize("name", ["sgd", "prodigy"])
def test_updates_are_those_of_optax_at_rate_1(name):
    """Prodigy estimates the rate from the distance to the start: it must move to train."""
    options = {"weight_decay": 0.0} if name == "prodigy" else {}
    settings = {"optimizer__weight_decay": 0.0, "optimizer__epsilon": 1e-8}
    ours = make_optimizer(small_config(optimizer__name=name, **settings))
    theirs = getattr(optax, name, None) or getattr(optax.contrib, name)
    theirs = theirs(learning_rate=1.0, **options)

    def distance(optimizer, sign):
        def step(_, carry):
            x, state = carry
            updates, state = optimizer.update(0.1 * (x - 3.0), state, x)
            return x + sign * updates, state

        start = jnp.zeros(4)
        return jax.lax.fori_loop(0, 300, step, (start, optimizer.init(start)))[0][0] - 3.0

    found, expected = jax.jit(lambda: (distance(ours, -1.0), distance(theirs, 1.0)))()
    assert float(found) == pytest.approx(float(expected), rel=1e-4, abs=1e-6)
    assert abs(float(found)) < 1.0
    check_updates(small_config(optimizer__name=name).optimizer)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("schedule_free_sgd", "updates are not proportional to the learning rate"),
        ("momo", "argument: 'value'. The train step passes only gradients, state and parameters"),
    ],
)
def test_optimizer_that_the_train_step_cannot_use_is_refused(name, message):
    config = small_config(optimizer__name=name, optimizer__weight_decay=0.0)
    with pytest.raises(UserError, match=f"config.optimizer.name='{name}': .*{message}"):
        make_step(config, lambda _: 1.0)


def rates(name, options, steps=100):
    settings = small_config(schedule__name=name, schedule__options=options).schedule
    schedule = learning_rate_schedule(1.0, 10, 10 + steps, settings)
    return np.array([float(schedule(step)) for step in range(10 + steps + 1)])


def test_cosine_that_is_not_finite_is_refused():
    with pytest.raises(UserError, match="learning rate that is not finite: nan at its first step"):
        rates("cosine", (("alpha", float("nan")),))


def test_negative_learning_rate_is_refused():
    with pytest.raises(UserError, match="has a negative learning rate: .* at its last"):
        rates("cosine", (("alpha", -1.0),))


def test_stable_schedule_decays_at_the_end_or_in_a_branch():
    found = rates("stable", (("decay_share", 0.2),))
    np.testing.assert_allclose(found[10:91], 1.0)
    assert found[95] == pytest.approx(1 - 0.25**0.5, rel=1e-5) and found[-1] == 0
    assert (rates("stable", (("decay_share", 0.0),))[10:] == 1).all()
    # A branch of 10 steps at step 60 of a stable run.
    branch = rates("stable", (("decay_share", 10 / 60),), steps=60)
    np.testing.assert_allclose(branch[:60], rates("stable", (("decay_share", 0.0),))[:60])
    assert branch[-1] == 0


def test_restarts_are_cosines_of_growing_length():
    found = rates("restarts", (("cycles", 2), ("growth", 3.0), ("decay", 0.5)))
    np.testing.assert_allclose(found[[10, 35, 85, 110]], [1, 0.5, 0.125, 0], atol=1e-6)
    with pytest.raises(UserError, match="cycles=0, growth=1.0, decay=1.0: cycles must be at least"):
        rates("restarts", (("cycles", 0),))
    with pytest.raises(UserError, match="growth=inf, decay=1.0: .* must be positive and finite"):
        rates("restarts", (("growth", float("inf")),))
    for options in ((("cycles", 1000),), (("growth", 0.01),)):
        with pytest.raises(UserError, match="some cycle would have no step, since only 100"):
            rates("restarts", options)
