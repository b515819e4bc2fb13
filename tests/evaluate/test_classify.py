import jax
import jax.numpy as jnp
import numpy as np
import pytest

from can_jax.config.evaluation import default_evaluation
from can_jax.data.pipeline.batch import Batch
from can_jax.distributed.sharding_rules import path_name
from can_jax.evaluate.protocols.classifier_step import ClassifierStep
from can_jax.models.vit import drop_path
from tests.helpers.configs import small_config

PLAIN = {
    "drop_path": 0.0, "mixup": 0.0, "cutmix": 0.0, "label_smoothing": 0.0, "random_erasing": 0.0,
    "randaugment": (0, 0.0, 0.0),
}  # fmt: skip


def classifier(features="patches", depth=3, rate=0.1, **settings):
    config = small_config(augment__views=1, model__depth=depth, objective__contrastive__weight=0.0)
    block = default_evaluation().classify
    block.update(PLAIN | settings)
    return ClassifierStep(config, block, features, 5, lambda _: rate)


def state_of(step, seed=0):
    """A state whose parameters are all random."""
    state = step.fresh()
    leaves, structure = jax.tree.flatten(state.parameters)
    rng = np.random.default_rng(seed)
    drawn = [jnp.asarray(0.3 * rng.normal(size=x.shape), jnp.float32) for x in leaves]
    state.parameters = jax.tree.unflatten(structure, drawn)
    return state


def batch(seed=0, images=8):
    rng = np.random.default_rng(seed)
    views = jnp.asarray(rng.integers(0, 256, (images, 1, 16, 16, 3), dtype=np.uint8))
    return Batch(
        views, jnp.arange(images, dtype=jnp.uint32), jnp.arange(images, dtype=jnp.int32) % 5
    )


def flat(tree):
    return {path_name(p): np.asarray(x) for p, x in jax.tree_util.tree_leaves_with_path(tree)}


def test_layers_further_down_learn_slower():
    """Adam's first update has the size of the learning rate: what is left are factors."""
    step = classifier(layer_decay=0.5, weight_decay=0.0, depth=3)
    before = state_of(step)
    old = flat(before.parameters)
    new = flat(jax.jit(step.train)(before, batch())[0].parameters)
    moved = {name: np.abs(new[name] - old[name]) for name in old}

    def size(array):
        return np.median(array[array > 0]) / 0.1

    assert size(moved["head/head/kernel"]) == pytest.approx(1, rel=1e-3)
    assert size(moved["encoder/patch_embed/kernel"]) == pytest.approx(0.5**4, rel=1e-2)
    assert size(moved["encoder/class_token"]) == pytest.approx(0.5**4, rel=1e-2)
    for layer in range(3):
        found = size(moved["encoder/blocks/layers/mlp/expand/kernel"][layer])
        assert found == pytest.approx(0.5 ** (3 - layer), rel=1e-2)


def test_lars_is_maes():
    step = classifier("class", freeze_encoder=True, head_norm="batch", optimizer="lars",
                      weight_decay=0.01)  # fmt: skip
    state = state_of(step)
    old = flat(state.parameters)
    momentum = {}
    for number in range(3):
        parameters = flat(state.parameters)

        shown = batch(number)

        def loss(head, state=state, shown=shown):
            images, targets, key = step._inputs(shown, state.step)
            logits, _ = step._logits(
                state.parameters | {"head": head}, state.batch_stats, images, key
            )
            return -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(logits), axis=1))

        gradient = flat({"head": jax.grad(loss)(state.parameters["head"])})
        state, _ = step.train(state, shown)
        for name, g in gradient.items():
            p = parameters[name]
            if g.ndim > 1:  # biases have neither decay nor trust ratio
                g = g + 0.01 * p
                g = g * 0.001 * np.linalg.norm(p) / np.linalg.norm(g)
            momentum[name] = 0.9 * momentum.get(name, 0) + g
            wanted = p - 0.1 * momentum[name]
            np.testing.assert_allclose(flat(state.parameters)[name], wanted, rtol=2e-5, atol=1e-7)
    for name, array in flat(state.parameters).items():
        if name.startswith("encoder/"):
            np.testing.assert_array_equal(array, old[name])
    assert "mean" in state.batch_stats


@pytest.mark.parametrize("features", ["patches", "all", "class", "both"])
@pytest.mark.parametrize("norm", ["layer", "batch", "none"])
def test_logits_of_every_kind_of_features(features, norm):
    step = classifier(features, head_norm=norm)
    state = state_of(step)
    found = step.logits(state, batch().views[:, 0])
    assert found.shape == (8, 5) and np.isfinite(np.asarray(found)).all()
    again = step.logits(state, batch().views[::-1, 0])  # no image's logits depend on another's
    np.testing.assert_allclose(found, again[::-1], atol=1e-5)


def test_average_of_parameters_is_what_is_evaluated():
    step = classifier(ema_decay=0.75)
    state = step.starting_from(state_of(step).parameters["encoder"], step.fresh())
    start = flat(state.parameters)
    np.testing.assert_array_equal(
        flat(state.optimizer["average"])["encoder/norm/scale"], start["encoder/norm/scale"]
    )
    new, _ = jax.jit(step.train)(state, batch())
    average = flat(new.optimizer["average"])
    for name, array in flat(new.parameters).items():
        np.testing.assert_allclose(average[name], 0.75 * start[name] + 0.25 * array, atol=1e-6)
    other = classifier(ema_decay=0.0)
    plain = other.fresh()
    plain.parameters, plain.batch_stats = new.optimizer["average"], new.batch_stats
    images = batch().views[:, 0]
    np.testing.assert_allclose(step.logits(new, images), other.logits(plain, images), atol=1e-6)


def test_all_that_is_done_to_images_and_an_update_that_is_not_finite():
    step = classifier(drop_path=0.3, mixup=0.8, cutmix=1.0, label_smoothing=0.1,
                      random_erasing=0.5, randaugment=(2, 9.0, 0.5), clip_norm=1.0)  # fmt: skip
    train = jax.jit(step.train)
    one, metrics = train(state_of(step), batch())
    same, _ = train(state_of(step), batch())
    for name, array in flat(one.parameters).items():
        np.testing.assert_array_equal(array, flat(same.parameters)[name])
    assert np.isfinite(float(metrics["loss/total"])) and int(one.skipped) == 0
    broken = state_of(step)
    broken.parameters["head"]["head"]["bias"] = jnp.full(5, jnp.nan)
    after, _ = train(broken, batch())
    assert int(after.skipped) == 1 and int(after.step) == 1
    np.testing.assert_array_equal(
        flat(after.parameters)["encoder/norm/scale"], flat(broken.parameters)["encoder/norm/scale"]
    )


def test_drop_path_keeps_the_mean_and_grows_with_depth():
    drop = np.asarray(drop_path(jax.random.key(0), 0.4, 5, 4000))
    assert drop.shape == (5, 4000, 2) and (drop[0] == 1).all()
    np.testing.assert_allclose(drop.mean(axis=(1, 2)), 1, atol=0.05)
    np.testing.assert_allclose((drop == 0).mean(axis=(1, 2)), [0, 0.1, 0.2, 0.3, 0.4], atol=0.02)


def test_dropped_branches_leave_the_input_as_it_is():
    step = classifier(depth=2)
    state = state_of(step)
    from flax import nnx

    from can_jax.train.step import encoder_network

    model = nnx.merge(
        nnx.graphdef(encoder_network(step.config)), {"encoder": state.parameters["encoder"]}, {}
    )
    images = jnp.asarray(np.random.default_rng(0).normal(size=(3, 16, 16, 3)), jnp.float32)
    kept = model.encode(images, drop=jnp.ones((2, 3, 2)))
    np.testing.assert_allclose(kept, model.encode(images), atol=1e-6)
    drop = jnp.ones((2, 3, 2)).at[:, 1].set(0.0)
    mixed = model.encode(images, drop=drop, norm=False)
    assert np.abs(np.asarray(mixed - model.encode(images, norm=False))).max(axis=(1, 2))[1] > 0.1
    # Without any branch the tokens are those that went in: the class token is its parameter.
    np.testing.assert_allclose(mixed[1, 0], state.parameters["encoder"]["class_token"], atol=1e-6)
    np.testing.assert_allclose(mixed[0], model.encode(images, norm=False)[0], atol=1e-5)
