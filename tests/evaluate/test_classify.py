import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from can_jax.data.pipeline.batch import Batch
from can_jax.distributed.sharding_rules import path_name
from can_jax.evaluate.config import default_evaluation
from can_jax.evaluate.protocols import classifier_step
from can_jax.evaluate.protocols.classifier_step import ClassifierStep
from can_jax.models.encoder import sincos_2d
from can_jax.models.vit import drop_path
from can_jax.train.network import encoder_network
from tests.helpers.configs import small_config

PLAIN = {
    "drop_path": 0.0, "mixup": 0.0, "cutmix": 0.0, "label_smoothing": 0.0, "random_erasing": 0.0,
    "randaugment": (0, 0.0, 0.0),
}  # fmt: skip


def classifier(features="patches", depth=1, rate=0.1, **settings):
    config = small_config(
        augment__views=1, model__depth=depth, objective__contrastive__weight=0.0,
        model__patch_embed="linear",
    )  # fmt: skip
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
    step = classifier(layer_decay=0.5, weight_decay=0.0, depth=2)
    before = state_of(step)
    old = flat(before.parameters)
    new = flat(jax.jit(step.train)(before, batch())[0].parameters)
    moved = {name: np.abs(new[name] - old[name]) for name in old}

    def size(array):
        return np.median(array[array > 0]) / 0.1

    assert size(moved["head/head/kernel"]) == pytest.approx(1, rel=1e-3)
    assert size(moved["encoder/patch_embed/kernel"]) == pytest.approx(0.5**3, rel=1e-2)
    assert size(moved["encoder/class_token"]) == pytest.approx(0.5**3, rel=1e-2)
    for layer in range(2):
        found = size(moved["encoder/blocks/layers/mlp/expand/kernel"][layer])
        assert found == pytest.approx(0.5 ** (2 - layer), rel=1e-2)


def tokens_of(step, state, images, **options):
    """The tokens of an encoder, which other tests compare with a reference."""
    graph = nnx.graphdef(encoder_network(step.config))

    @jax.jit
    def encode(parameters, images):
        model = nnx.merge(graph, {"encoder": parameters["encoder"]}, {}, copy=True)
        return model.encode(images, **options)

    return np.asarray(encode(state.parameters, images))


def normalized(step, images):
    """Bytes as the encoder gets them."""
    augment = step.config.augment
    pixels = np.asarray(images, np.float64) / 255
    return jnp.asarray((pixels - np.array(augment.mean)) / np.array(augment.std), jnp.float32)


def batch_norm(x):
    return (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-6)


def test_lars_is_maes():
    step = classifier("class", freeze_encoder=True, head_norm="batch", optimizer="lars",
                      weight_decay=0.01)  # fmt: skip
    state = state_of(step)
    old = flat(state.parameters)
    head = {name: old[f"head/head/{name}"] for name in ("kernel", "bias")}
    momentum = {"kernel": 0.0, "bias": 0.0}
    train = jax.jit(step.train)
    for number in range(3):
        shown = batch(number)
        # What is flipped by chance has to look the same then.
        views = jnp.concatenate([shown.views[:, :, :, :8], shown.views[:, :, :, 7::-1]], axis=3)
        shown = shown._replace(views=views)
        tokens = tokens_of(step, state, normalized(step, views[:, 0]))
        x = batch_norm(tokens[:, 0].astype(np.float64))
        logits = x @ head["kernel"] + head["bias"]
        shares = np.exp(logits - logits.max(1, keepdims=True))
        error = (shares / shares.sum(1, keepdims=True) - np.eye(5)[np.asarray(shown.label)]) / 8
        g = x.T @ error + 0.01 * head["kernel"]
        ratio = 0.001 * np.linalg.norm(head["kernel"]) / np.linalg.norm(g)
        # Biases have neither decay nor trust ratio.
        momentum["kernel"] = 0.9 * momentum["kernel"] + ratio * g
        momentum["bias"] = 0.9 * momentum["bias"] + error.sum(0)
        head = {name: array - 0.1 * momentum[name] for name, array in head.items()}
        state, _ = train(state, shown)
        for name, array in head.items():
            found = flat(state.parameters)[f"head/head/{name}"]
            np.testing.assert_allclose(found, array, rtol=2e-5, atol=1e-6)
    moved = {name for name, array in flat(state.parameters).items() if (array != old[name]).any()}
    assert moved == {"head/head/kernel", "head/head/bias"}
    assert "mean" in state.batch_stats


@pytest.mark.parametrize(
    ("features", "norm"),
    [
        ("patches", "layer"),
        ("class", "layer"),
        ("both", "layer"),
        ("all", "batch"),
        ("all", "none"),
    ],
)
def test_logits_of_every_kind_of_features(features, norm):
    step = classifier(features, head_norm=norm)
    state = state_of(step)
    images = batch().views[:, 0]
    # As in MAE: where the mean of patches is normalized in the head, the tokens are not.
    inner = (features, norm) != ("patches", "layer")
    tokens = tokens_of(step, state, normalized(step, images), norm=inner).astype(np.float64)
    first, mean = tokens[:, 0], tokens[:, 1:].mean(1)
    x = {
        "patches": mean, "class": first, "both": np.hstack([first, mean]), "all": tokens.mean(1)
    }[features]  # fmt: skip
    parameters = flat(state.parameters)
    if norm == "layer":
        deviation = np.sqrt(x.var(1, keepdims=True) + 1e-6)
        x = (x - x.mean(1, keepdims=True)) / deviation
        x = x * parameters["head/norm/scale"] + parameters["head/norm/bias"]
    if norm == "batch":  # by its running statistics
        state.batch_stats = {"mean": jnp.full(24, 0.5), "var": jnp.full(24, 4.0)}
        x = (x - 0.5) / 2
    wanted = x @ parameters["head/head/kernel"] + parameters["head/head/bias"]
    np.testing.assert_allclose(jax.jit(step.logits)(state, images), wanted, atol=1e-4)


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
    found = np.asarray(jax.jit(step.logits)(new, images))
    np.testing.assert_allclose(found, jax.jit(other.logits)(plain, images), atol=1e-6)
    plain.parameters = new.parameters
    assert np.abs(found - jax.jit(other.logits)(plain, images)).max() > 1e-4


def test_accumulated_gradients_are_those_of_the_batch():
    found = []
    for count in (1, 4):
        step = classifier(drop_path=0.0)
        with step.config.unlocked():
            step.config.accumulation.microbatches = count
        shown = batch()
        # Flips are drawn for each row of a microbatch, so both halves are alike.
        views = jnp.concatenate([shown.views[:, :, :, :8], shown.views[:, :, :, 7::-1]], axis=3)
        new, metrics = jax.jit(step.train)(state_of(step), shown._replace(views=views))
        found.append((flat(new.optimizer["transform"]), metrics))
    (one, metrics), (other, others) = found
    for name, array in one.items():
        np.testing.assert_allclose(other[name], array, rtol=1e-4, atol=1e-6)
    for name in ("loss/total", "train/top1", "grad_norm"):
        np.testing.assert_allclose(others[name], metrics[name], rtol=1e-5)


def test_positions_are_trained_from_the_table_on():
    step = classifier(depth=1)
    with step.config.unlocked(), step.config.ignore_type():
        step.config.model.backbone_options = (("positions", "learned"),)
    start = flat(step.fresh().parameters)
    encoder = {k: v for k, v in step.fresh().parameters["encoder"].items() if k != "positions"}
    state = step.starting_from(encoder, step.fresh())
    np.testing.assert_array_equal(state.parameters["encoder"]["positions"], sincos_2d((4, 4), 24))
    assert not start["encoder/positions"].any()
    new, _ = jax.jit(step.train)(state_of(step), batch())
    moved = (
        flat(new.parameters)["encoder/positions"]
        - flat(state_of(step).parameters)["encoder/positions"]
    )
    assert moved.any()


def one_operation(image, key, operations, magnitude, deviation, fill):
    """In place of RandAugment, which takes seconds to compile and has tests of its own."""
    assert image.shape == (3, 16, 16) and (operations, magnitude, deviation) == (1, 9.0, 0.5)
    return jnp.where(jax.random.bernoulli(key), 1 - image, image)


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_all_that_is_done_to_images_and_an_update_that_is_not_finite(monkeypatch, whole):
    if not whole:
        monkeypatch.setattr(classifier_step, "randaugment", one_operation)
    step = classifier(depth=2, drop_path=0.3, mixup=0.8, cutmix=1.0, label_smoothing=0.1,
                      random_erasing=0.5, randaugment=(1, 9.0, 0.5), clip_norm=1.0)  # fmt: skip
    train = jax.jit(step.train)
    one, metrics = train(state_of(step), batch())
    same, _ = train(state_of(step), batch())
    for name, array in flat(one.parameters).items():
        np.testing.assert_array_equal(array, flat(same.parameters)[name])
    assert np.isfinite(float(metrics["loss/total"])) and int(one.skipped) == 0
    before = flat(state_of(step).parameters)["encoder/patch_embed/kernel"]
    assert (flat(one.parameters)["encoder/patch_embed/kernel"] != before).any()
    broken = state_of(step)
    broken.parameters["head"]["head"]["bias"] = jnp.full(5, jnp.nan)
    after, _ = train(broken, batch())
    assert int(after.skipped) == 1 and int(after.step) == 1
    np.testing.assert_array_equal(flat(after.parameters)["encoder/patch_embed/kernel"], before)


def test_drop_path_keeps_the_mean_and_grows_with_depth():
    drop = np.asarray(drop_path(jax.random.key(0), 0.4, 5, 4000))
    assert drop.shape == (5, 4000, 2) and (drop[0] == 1).all()
    np.testing.assert_allclose(drop.mean(axis=(1, 2)), 1, atol=0.05)
    np.testing.assert_allclose((drop == 0).mean(axis=(1, 2)), [0, 0.1, 0.2, 0.3, 0.4], atol=0.02)


def test_dropped_branches_leave_the_input_as_it_is():
    step = classifier(depth=2)
    state = state_of(step)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(3, 16, 16, 3)), jnp.float32)
    graph = nnx.graphdef(encoder_network(step.config))

    @jax.jit
    def encode(drop):
        model = nnx.merge(graph, {"encoder": state.parameters["encoder"]}, {})
        return model.encode(images, drop=drop, norm=False)

    whole = tokens_of(step, state, images, norm=False)
    np.testing.assert_allclose(encode(jnp.ones((2, 3, 2))), whole, atol=1e-5)
    mixed = np.asarray(encode(jnp.ones((2, 3, 2)).at[:, 1].set(0.0)))
    assert np.abs(mixed - whole)[1].max() > 0.1
    # Without any branch the tokens are those that went in: the class token is its parameter.
    np.testing.assert_allclose(mixed[1, 0], state.parameters["encoder"]["class_token"], atol=1e-6)
    np.testing.assert_allclose(mixed[[0, 2]], whole[[0, 2]], atol=1e-5)
