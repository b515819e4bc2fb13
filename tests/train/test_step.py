"""The train step: what it reduces to, what it leaves out, and known defects it must not have."""

import contextlib
import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from can_jax import objectives
from can_jax.augment.photometric import Photometric
from can_jax.data.pipeline.batch import Batch
from can_jax.distributed.mesh import batch_sharding, make_mesh
from can_jax.distributed.sharding_rules import path_name
from can_jax.models.can import CAN, Forward, grid_of, has_noise_output
from can_jax.models.heads import Projector
from can_jax.models.masking import unpatchify
from can_jax.models.patch_embed import embedding_kind, fixed_map
from can_jax.objectives import contrastive
from can_jax.optimizers.transforms import is_bounded
from can_jax.train.compute_copy import compute_copy, compute_types
from can_jax.train.losses import Inputs, forward, losses, prepare
from can_jax.train.microbatches import accumulate_gradients
from can_jax.train.step import TrainState, abstract_state, compile_train_step, gradients, make_step
from can_jax.weights.torch_layout import to_torch
from tests.helpers import oracle
from tests.helpers.configs import COLOURS, small_config
from tests.train.states import random_state

SLOW = pytest.mark.slow
TERMS = ("contrastive", "reconstruction", "denoising")  # the order of the oracle's weights
PLAIN = {"layers": 2, "hidden": 24, "outputs": 10, "batch_norm": False}


def random_batch(config, seed=0):
    rng = np.random.default_rng(seed)
    shape = (config.batch_size, config.augment.views, *config.data.image_size, config.data.channels)
    return Batch(
        jnp.asarray(rng.integers(0, 256, shape, np.uint8)),
        jnp.arange(config.batch_size, dtype=jnp.uint32),
        jnp.asarray(rng.integers(0, 3, config.batch_size), jnp.int32),
    )


def described(config, devices=1):
    """The step and the shapes of its state, without any numbers."""
    mesh = make_mesh(config.mesh, jax.devices()[:devices])
    step = make_step(config, lambda _: jnp.float32(0.01))
    return step, abstract_state(step, mesh)


def start(config, devices=1):
    """The step, its mesh, a random state on it, and the shapes of that state."""
    step, abstract = described(config, devices)
    mesh = make_mesh(config.mesh, jax.devices()[:devices])
    return step, mesh, random_state(abstract), abstract


def prepared(config, batch=None, step=0):
    """The inputs of a batch without augmentation, as one program."""
    batch = random_batch(config) if batch is None else batch
    prepare_batch = jax.jit(lambda *arrays: prepare(config, *arrays, Photometric()))
    return prepare_batch(batch, jnp.int32(step))


class Same(nnx.Module):
    """A head that returns its input."""

    def __call__(self, rows, train):
        return rows


def without_projector(config):
    """A network, with shapes in place of arrays, whose projection is the pooled embedding."""
    heads = {"projector": lambda config, width, **_: Same()}
    return nnx.eval_shape(lambda: CAN(config, heads, nnx.Rngs(0)))


def metrics_of(config, outputs, inputs):
    model = without_projector(config)
    return jax.jit(lambda *arrays: losses(config, model, *arrays)[1])(outputs, inputs)


def outputs_of(config, prediction, **changes):
    """Outputs of the network that say nothing but a prediction."""
    rows = config.batch_size * config.augment.views
    names = {"latent": jnp.zeros((rows, 9, 24)), "pooled": jnp.ones((rows, 24))}
    names |= {"noise_level": None, "prediction": prediction}
    return Forward(**names | changes)


def place(batch, mesh):
    return Batch(*(jax.device_put(array, batch_sharding(mesh)) for array in batch))


def lowered_loss(config):
    """The text of the loss of a batch, before it is compiled."""
    step, abstract = described(config)

    def loss(state, batch):
        inputs = prepare(config, batch, state.step, Photometric())
        model = step.model(state)
        return losses(config, model, forward(config, model, inputs), inputs)

    return jax.jit(loss).lower(abstract, random_batch(config)).as_text()


def oracle_total(config, step, state, batch):
    """The oracle's total loss, and its derivative in a random direction, from our weights.

    Returns them with our own loss and our gradient along the same direction.
    """

    @jax.jit
    def compute(parameters):
        found = gradients(config, step.network, parameters, state.batch_stats, batch, state.step)
        settings = Photometric.from_settings(config.augment.to_dict())
        return found.total, found.gradients, prepare(config, batch, state.step, settings)

    ours, gradient, inputs = compute(state.parameters)
    weights = {k: v.astype(float) for k, v in to_torch(state.parameters, 4).items()}
    slopes = to_torch(gradient, 4)
    model, decoder = config.model, config.model.decoder
    views, rows = config.augment.views, inputs.clean.shape[0]
    order = np.arange(rows).reshape(-1, views).T.reshape(-1)  # the oracle's rows go by view
    patches = inputs.clean.shape[1]
    meta = {
        "patch_size": 4, "width": model.width, "depth": model.depth, "heads": model.heads,
        "decoder_width": decoder.width, "decoder_depth": decoder.depth,
        "decoder_heads": decoder.heads, "channels": 3, "temperature": 0.1, "sigma_scale": 1.0,
        "keep": int(patches * (1 - model.mask_ratio)),
        "weights": [config.objective[k].weight for k in TERMS],
        "level_tokens": config.noise.level_tokens,
        "normalize_targets": config.objective.reconstruction.normalize,
        "noise_target": config.noise.target, "sigma_max": config.noise.sigma_max,
        "noise_output": has_noise_output(config), "patch_embed": embedding_kind(config),
    }  # fmt: skip
    # Heads that we have not built take no part: zeros serve.
    weights = {k: weights.get(k, np.zeros(s)) for k, s in oracle.shapes_of(meta).items()}
    rows = inputs.clean.shape[0]
    sigma, unit = np.zeros(rows), jnp.zeros_like(inputs.clean)
    if inputs.noise is not None:
        sigma, unit = np.asarray(inputs.noise.sigma, float), inputs.noise.unit
    images = [inputs.clean, unit]
    grid = grid_of(config)
    views_and_noise = (
        np.asarray(unpatchify(array, grid, 4))[order].astype(float) for array in images
    )
    arrays = dict(zip(("views", "unit_noise"), views_and_noise, strict=True))
    arrays |= {"sigma": sigma[order], "shuffle": np.asarray(inputs.shuffle)[order]}
    if fixed := fixed_map(state.batch_stats):
        arrays |= {"patch_mean": fixed.mean, "patch_map": fixed.map}
    rng = np.random.default_rng(3)
    direction = {k: rng.normal(size=weights[k].shape) for k in slopes}
    moved = weights | {k: weights[k] + 1e-30j * v for k, v in direction.items()}
    with np.errstate(invalid="ignore"):  # a mean over no hidden patch, with weight 0
        total = oracle.forward(moved, meta, arrays)["loss/total"]
    slope = sum(float((slopes[k] * v).sum()) for k, v in direction.items())
    return (total.real, total.imag / 1e-30), (float(ours), slope)


REDUCTIONS = {
    "mae": {
        "objective__contrastive__weight": 0.0,
        "objective__denoising__weight": 0.0,
        "objective__reconstruction__weight": 1.0,
        "noise__sigma_max": 0.0,
        "augment__views": 1,
        "model__mask_ratio": 0.75,
    },
    "simclr": {
        "objective__reconstruction__weight": 0.0,
        "objective__denoising__weight": 0.0,
        "objective__contrastive__weight": 1.0,
        "noise__sigma_max": 0.0,
        "model__mask_ratio": 0.0,
    },
    "noise as augmentation": {"objective__denoising__weight": 0.0, "noise__sigma_max": 0.5},
    "noise and loss without sigma": {"noise__embed_level": False, "noise__sigma_max": 0.5},
    "can": {"noise__level_scale": 1.0, "noise__sigma_max": 0.5},
    "level for visible patches, raw targets": {
        "noise__level_scale": 1.0,
        "noise__sigma_max": 0.5,
        "noise__level_tokens": "visible",
        "objective__reconstruction__normalize": False,
    },
    "can, unscanned and scanned alike": {"noise__level_scale": 1.0, "model__scan": True},
    "can, recomputed blocks": {"noise__level_scale": 1.0, "model__remat": "full"},
}


# Cases that others cover: the self-check has the same oracle, the tests of the blocks run them in
# every way, and noise and a loss without weight are both among the cases that stay.
ALIKE = (
    "noise as augmentation", "level for visible patches, raw targets",
    "can, unscanned and scanned alike", "can, recomputed blocks",
)  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [name if name not in ALIKE else pytest.param(name, marks=SLOW) for name in REDUCTIONS],
)
def test_step_is_the_method_by_an_independent_oracle(name):
    config = small_config(batch_size=4, **REDUCTIONS[name])
    config.model.projector.update(PLAIN)
    step, _, state, _ = start(config)
    (total, slope), (our_total, our_slope) = oracle_total(config, step, state, random_batch(config))
    assert our_total == pytest.approx(total, rel=1e-5)
    assert our_slope == pytest.approx(slope, rel=1e-3)


def test_supervised_contrast_learns_from_the_labels_and_only_then():
    batch = random_batch(small_config())
    totals = {}
    for supervised in (False, True):
        config = small_config(objective__contrastive__supervised=supervised)
        pooled = jax.random.normal(jax.random.key(0), (16, 24))
        outputs = outputs_of(config, jnp.zeros((16, 16, 48)), pooled=pooled)
        model = without_projector(config)

        @jax.jit
        def loss(label, config=config, model=model, outputs=outputs):
            inputs = prepare(config, batch._replace(label=label), jnp.int32(0), Photometric())
            return losses(config, model, outputs, inputs)[1]["loss/contrastive"]

        totals[supervised, "given"] = float(loss(batch.label))
        totals[supervised, "other"] = float(loss((batch.label + jnp.arange(8)) % 3))
    assert totals[False, "given"] == totals[False, "other"]
    assert len(set(totals.values())) == 3


def test_branches_without_weight_are_not_in_the_lowered_loss():
    # Widths that occur nowhere else betray the branch they belong to.
    decoder = {"width": 44, "depth": 1, "heads": 2}
    projector = {"layers": 3, "hidden": 52, "outputs": 68, "batch_norm": True}
    traces = {"decoder": "44x", "projector": "52x", "noise": "erf_inv"}

    def found(**changes):
        config = small_config(**changes)
        config.model.decoder.update(decoder)
        config.model.projector.update(projector)
        text = lowered_loss(config)
        return {part for part, trace in traces.items() if trace in text}

    assert found() == {"decoder", "projector", "noise"}
    assert found(**REDUCTIONS["mae"]) == {"decoder"}
    assert found(**REDUCTIONS["simclr"]) == {"projector"}


def test_only_the_heads_that_are_needed_have_parameters():
    def built(**changes):
        return set(described(small_config(**changes))[1].parameters)

    assert built() == {"encoder", "projector", "noise_level", "decoder"}
    assert built(**REDUCTIONS["mae"]) == {"encoder", "decoder"}
    assert built(**REDUCTIONS["simclr"]) == {"encoder", "projector"}
    assert built(**REDUCTIONS["noise as augmentation"]) == {"encoder", "projector", "decoder"}


def test_reconstruction_target_is_the_clean_view():
    config = small_config(noise__sigma_max=1.0)
    inputs = prepared(config)
    clean = np.asarray(inputs.clean)
    perfect = (clean - clean.mean(-1, keepdims=True)) / np.sqrt(
        clean.var(-1, ddof=1, keepdims=True) + 1e-6
    )
    metrics = metrics_of(config, outputs_of(config, jnp.asarray(perfect)), inputs)
    assert float(metrics["loss/reconstruction"]) < 1e-9


def test_noise_target_is_not_normalised():
    for sigma_max in (0.1, 0.4):
        config = small_config(noise__sigma_max=sigma_max, noise__target="scaled")
        inputs = prepared(config)
        metrics = metrics_of(config, outputs_of(config, jnp.zeros((16, 16, 48))), inputs)
        # The unit noise has mean square 1, so what is left is that of sigma.
        expected = float(jnp.mean(inputs.noise.sigma**2))
        assert float(metrics["loss/denoising"]) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("kind", ["scaled", "normalized", "unit"])
def test_target_is_the_noise_on_another_scale(kind):
    config = small_config(batch_size=64, noise__target=kind, noise__sigma_max=0.2)
    inputs = prepared(config)
    target, scale = inputs.noise.target(kind, 0.2)
    np.testing.assert_allclose(target * scale[:, None, None], inputs.noise.scaled, atol=1e-6)
    size = {"scaled": 0.2 / 3**0.5, "normalized": 1.0, "unit": 1.0}[kind]
    assert float(jnp.sqrt(jnp.mean(target**2))) == pytest.approx(size, rel=0.2)
    found = metrics_of(config, outputs_of(config, 0.75 * target), inputs)
    residual = float(found["denoising/residual"] / found["denoising/energy"])
    assert residual == pytest.approx(0.0625, rel=1e-4)  # whatever the scale
    assert float(metrics_of(config, outputs_of(config, target), inputs)["loss/denoising"]) < 1e-9


def test_sigma_reaches_input_and_network_as_configured():
    config = small_config(batch_size=256, noise__sigma_max=0.2)
    inputs = prepared(config)
    sigma = np.asarray(inputs.noise.sigma)
    assert 0 <= sigma.min() < 0.01 and 0.19 < sigma.max() <= 0.2
    assert sigma.mean() == pytest.approx(0.1, abs=0.01)
    added = np.asarray(inputs.noisy - inputs.clean).reshape(512, -1)
    np.testing.assert_allclose(added.std(1), sigma, rtol=0.15, atol=1e-3)

    step, _, state, _ = start(config)

    @jax.jit
    def level_of(sigma):
        noise = inputs.noise._replace(sigma=sigma)
        model = step.model(state)
        return forward(config, model, inputs._replace(noise=noise)).noise_level

    quiet, loud = (level_of(jnp.full(512, sigma)) for sigma in (0.01, 0.2))
    assert float(jnp.abs(quiet - loud).max()) > 0.01


def test_no_mask_is_repeated_over_rows_views_or_steps():
    config = small_config(batch_size=32)
    batch = random_batch(config)
    shuffle = jax.jit(lambda step: prepare(config, batch, step, Photometric()).shuffle)
    every = np.concatenate([np.asarray(shuffle(jnp.int32(i))) for i in range(3)])
    assert len(np.unique(every, axis=0)) == len(every) == 3 * 64
    assert (np.sort(every, axis=1) == np.arange(16)).all()
    # Every patch is visible about half of the time.
    visible = (np.argsort(every, axis=1) < 8).mean(0)
    np.testing.assert_allclose(visible, 0.5, atol=0.15)


BOUNDLESS = 7  # a step at which the learning rate of `compiled_step` is infinite
# SGD-like epsilon: Adam's first step is a sign, which magnifies the rounding of zeros.
COMPARED = {"batch_size": 32, "model__heads": 4, "optimizer__epsilon": 1e-2}


@pytest.fixture(scope="module")
def compiled_step():
    """A step on one device, as a function of a state and a batch that it does not donate."""
    config = small_config(**COMPARED)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    step = make_step(config, lambda step: jnp.where(step == BOUNDLESS, jnp.inf, 0.01))
    return jax.jit(step.train), random_state(abstract_state(step, mesh)), random_batch(config)


def assert_skipped(before, after, metrics):
    """Nothing changed but the counters."""
    assert (int(after.step), int(after.skipped)) == (int(before.step) + 1, 1)
    assert float(metrics["skipped_steps"]) == 1
    for a, b in zip(
        jax.tree.leaves((before.parameters, before.optimizer, before.batch_stats)),
        jax.tree.leaves((after.parameters, after.optimizer, after.batch_stats)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_every_parameter_is_trained(compiled_step):
    train, state, batch = compiled_step
    new, metrics = train(state, batch)
    assert (int(new.step), int(metrics["skipped_steps"])) == (1, 0)
    still = [
        jax.tree_util.keystr(path)
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(state.parameters),
            jax.tree.leaves(new.parameters),
            strict=True,
        )
        if np.array_equal(a, b)
    ]
    assert not still


def test_update_that_is_not_finite_is_skipped_and_counted(compiled_step):
    train, state, batch = compiled_step

    def spoilt(path, leaf):
        return jnp.full_like(leaf, jnp.nan) if path_name(path) == "decoder/norm/bias" else leaf

    parameters = jax.tree_util.tree_map_with_path(spoilt, state.parameters)
    state = dataclasses.replace(state, parameters=parameters)
    new, metrics = train(state, batch)
    assert np.isnan(metrics["loss/total"])
    assert_skipped(state, new, metrics)


def test_update_that_ends_in_what_is_not_finite_is_left_out(compiled_step):
    """Loss and gradient are finite, the new parameters are not."""
    train, state, batch = compiled_step
    state = dataclasses.replace(state, step=jnp.full_like(state.step, BOUNDLESS))
    new, metrics = train(state, batch)
    assert np.isfinite(metrics["loss/total"]) and np.isfinite(metrics["grad_norm"])
    assert_skipped(state, new, metrics)


@pytest.mark.parametrize("bounded", [False, True])
def test_updates_are_checked_unless_the_optimizer_is_bounded(bounded):
    old = TrainState(jnp.int32(3), jnp.ones(2), jnp.ones(2), jnp.ones(2), jnp.int32(0))
    given = jnp.array([1.0, jnp.inf]), jnp.zeros(2), jnp.zeros(2)
    new = old.updated(jnp.array(True), *given, bounded=bounded)
    assert new.skipped == (not bounded) and new.step == 4
    np.testing.assert_array_equal(new.parameters, given[0] if bounded else old.parameters)
    spoilt = old.updated(jnp.array(True), jnp.ones(2), given[0], jnp.ones(2), bounded=bounded)
    assert spoilt.skipped == 1  # the running statistics are always checked


def test_only_known_optimizers_are_bounded():
    names = {"adamw": True, "lion": True, "sgd": False}
    for name, expected in names.items():
        assert is_bounded(small_config(optimizer__name=name).optimizer) is expected
    changed = small_config(optimizer__options=(("eps_root", 1e-8),)).optimizer
    assert not is_bounded(changed)


def tokens_of_a_class(arrays):
    """A loss of tokens and labels: those of a class shall be alike."""
    mean = arrays.tokens.mean(axis=(1, 2))
    same = arrays.labels[:, None] == arrays.labels
    return jnp.mean(jnp.where(same, jnp.square(mean[:, None] - mean).sum(-1), 0.0)), {}


def label_of_the_embedding(arrays):
    """A mean over images of pooled embeddings and labels."""
    found = arrays.pooled.sum(axis=-1)
    return jnp.mean(jnp.square(found - arrays.labels[:, None])), {}


OTHERS = {
    "alike": objectives.Objective(
        frozenset({"tokens", "labels"}), tokens_of_a_class, relates_rows=True
    ),
    "label": objectives.Objective(frozenset({"pooled", "labels"}), label_of_the_embedding),
}


@pytest.mark.parametrize(
    "chosen",
    [
        (
            "koleo",
            "alike",
            "label",
            "contrastive",
            "dense",
            "siglip",
            "vicreg",
            "barlow_twins",
            "mec",
            "disentangle",
        ),
        pytest.param(("koleo", "label"), marks=SLOW),
    ],
)
def test_objectives_are_given_the_same_with_and_without_microbatches(chosen):
    found = []
    with contextlib.ExitStack() as registered:
        for name, objective in OTHERS.items():
            registered.enter_context(objectives.OBJECTIVES.temporarily(name, objective))
        for count in (1, 4):
            config = small_config(accumulation__microbatches=count, noise__sigma_max=0.2)
            for name, block in config.objective.items():
                block.weight = 0.1 * (name in chosen)
            step, _, state, _ = start(config)
            compute = jax.jit(functools.partial(gradients, config, step.network))
            batch = random_batch(config)
            found.append(compute(state.parameters, state.batch_stats, batch, state.step))
            assert {f"loss/{name}" for name in chosen} <= set(found[-1].metrics)
        assert_agree(found[1].gradients, found[0].gradients, floor=5e-6)
        assert float(found[1].total) == pytest.approx(float(found[0].total), rel=1e-5)


def test_statistics_of_every_head_follow_the_microbatches():
    """A head with BatchNorm of a loss that is a mean over images, beside the contrastive loss."""

    def head(config, width, **options):
        return Projector(width, 8, 4, 2, batch_norm=True, final_norm=False, **options)

    def loss(arrays, head):
        rows = arrays.pooled.reshape(-1, arrays.pooled.shape[-1])
        return jnp.mean(jnp.square(head(rows, train=True))), {}

    objective = objectives.Objective(frozenset({"pooled"}), loss, head=head)
    found = {}
    with objectives.OBJECTIVES.temporarily("normed", objective):
        for negatives in ("batch", "microbatch"):
            config = small_config(accumulation__microbatches=4, accumulation__negatives=negatives)
            config.objective.normed.weight = 1.0
            step, _, state, _ = start(config)
            compute = jax.jit(functools.partial(gradients, config, step.network))
            outputs = compute(state.parameters, state.batch_stats, random_batch(config), state.step)
            before, found[negatives] = state.batch_stats, outputs.batch_stats
    of_head = {name: tree["normed_head"] for name, tree in found.items()}
    assert_agree(of_head["batch"], of_head["microbatch"], floor=1e-6)
    changed = jax.tree.map(
        lambda a, b: bool(jnp.any(a != b)), before["normed_head"], of_head["batch"]
    )
    assert all(jax.tree.leaves(changed)), changed


def test_corrected_and_excluded_negatives_are_those_of_the_batch_under_microbatches():
    found = []
    for count in (1, 4):
        config = small_config(
            accumulation__microbatches=count, augment__views=3, **REDUCTIONS["simclr"]
        )
        config.objective.contrastive.update(
            decoupled=True, positive_prior=0.1, hardness=1.0, exclude_copies=True
        )
        step, _, state, _ = start(config)
        # Copies are in different microbatches.
        content = jnp.array([4, 7, 1, 2, 3, 7, 9, 4], jnp.uint32)
        batch = random_batch(config)._replace(content=content)
        compute = jax.jit(functools.partial(gradients, config, step.network))
        found.append(compute(state.parameters, state.batch_stats, batch, state.step))
    assert_agree(found[1].gradients, found[0].gradients, 1e-4, floor=5e-6)
    for name in ("loss/contrastive", "contrastive/excluded_negatives"):
        assert float(found[1].metrics[name]) == pytest.approx(float(found[0].metrics[name]), 1e-5)
    assert float(found[0].metrics["contrastive/excluded_negatives"]) == pytest.approx(4 / 8 / 7)


def test_objective_that_reads_what_it_cannot_is_refused():
    with pytest.raises(ValueError, match="cannot read 'prediction'; it can read contents, labels"):
        objectives.Objective(frozenset({"prediction"}), len, relates_rows=True)
    with pytest.raises(ValueError, match="relates_rows=False cannot read 'pixels'"):
        objectives.Objective(frozenset({"pixels"}), len)


def trained(batches, devices=8, **changes):
    """What two steps compute: metrics of the last and the state after it, in whose first moments
    every gradient is seen."""
    config = small_config(**COMPARED, **changes)
    step, mesh, state, abstract = start(config, devices)
    batches = [place(batch, mesh) for batch in batches(config)]
    train = compile_train_step(step, abstract, batches[0], mesh)
    state, _ = train(state, batches[0])
    state, metrics = train(state, batches[1])
    return jax.device_get((metrics, state))


def two_batches(config):
    return [random_batch(config, seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def on_one_device(compiled_step):
    """What `trained` returns for one device and no changes."""
    train, state, first = compiled_step
    state, _ = train(state, first)
    state, metrics = train(state, random_batch(small_config(**COMPARED), seed=1))
    return jax.device_get((metrics, state))


def assert_agree(found, wanted, tolerance=1e-5, floor=1e-9):
    """Every array within a share of its largest entry; the floor is for what ought to be zero."""
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted), strict=True
    ):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max() + floor, name


@SLOW
@pytest.mark.parametrize("mesh", [(8, 1, 1), (1, 8, 1), (2, 4, 1), (2, 2, 2)])
def test_numbers_do_not_depend_on_the_mesh(on_one_device, mesh):
    """Losses, every gradient and every parameter, with masks and noise."""
    axes = dict(zip(("mesh__data", "mesh__fsdp", "mesh__tensor"), mesh, strict=True))
    assert_agree(trained(two_batches, **axes), on_one_device)


@SLOW
def test_numbers_do_not_depend_on_how_the_state_is_stored(on_one_device):
    assert_agree(trained(two_batches, mesh__shard_state=True, model__scan=False), on_one_device)


def test_numbers_do_not_depend_on_mesh_microbatches_and_recomputation_together(on_one_device):
    """The quick form of the tests beside it, which tell what of it is wrong."""
    axes = {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2, "mesh__shard_state": True}
    others = {"accumulation__microbatches": 2, "model__remat": "full", "model__scan": True}
    assert_agree(trained(two_batches, **axes, **others), on_one_device)


MENDED = {
    "noise__target": "normalized",
    "model__decoder__noise_output": True,
    "model__decoder__zero_output": True,
    "model__patch_embed": "whitened",
}


def test_mended_noise_branch_does_not_depend_on_mesh_and_microbatches():
    split = {"mesh__data": 2, "mesh__fsdp": 4, "accumulation__microbatches": 2}
    metrics, state = trained(two_batches, devices=1, **MENDED)
    assert np.abs(state.batch_stats["encoder"]["patch_embed"]["map_mean"]).max() > 0.01
    assert_agree(trained(two_batches, **MENDED, **split), (metrics, state))


@SLOW
def test_colours_do_not_depend_on_mesh_and_microbatches():
    split = {"mesh__data": 2, "mesh__fsdp": 4, "accumulation__microbatches": 2}
    wanted = trained(two_batches, devices=1, **COLOURS)
    assert_agree(trained(two_batches, **COLOURS, **split), wanted)


@SLOW
@pytest.mark.parametrize(("count", "remat"), [(2, False), (2, True), (4, False), (4, True)])
def test_microbatches_change_nothing(on_one_device, count, remat):
    changes = {"model__remat": "full", "model__scan": True} if remat else {}
    assert_agree(trained(two_batches, accumulation__microbatches=count, **changes), on_one_device)


@SLOW
def test_blocks_of_keys_change_nothing(on_one_device):
    assert_agree(trained(two_batches, objective__contrastive__block=5), on_one_device)


@SLOW
@pytest.mark.parametrize("reduction", ["mae", "simclr"])
def test_microbatches_of_the_baselines(reduction):
    changes = REDUCTIONS[reduction]
    wanted = trained(two_batches, **changes)
    found = trained(two_batches, accumulation__microbatches=4, **changes)
    assert_agree(found, wanted, floor=5e-6)  # BatchNorm takes the norm's bias away


@SLOW
def test_negatives_of_a_part_of_the_batch_would_be_noticed(on_one_device, monkeypatch):
    """The comparison above fails where a loss sees less than the whole batch."""
    cheaper = {"accumulation__microbatches": 2, "accumulation__negatives": "microbatch"}
    with pytest.raises(AssertionError, match="loss/contrastive|grad_norm|contrastive/"):
        assert_agree(trained(two_batches, **cheaper), on_one_device)

    def local(unit, label, views, temperature, block):
        parts = [whole(rows, None, views, temperature, len(rows)) for rows in jnp.split(unit, 8)]
        loss = sum(part[0] for part in parts) / 8
        return loss, jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *(p[1] for p in parts))

    whole = contrastive.contrast
    monkeypatch.setattr(contrastive, "contrast", local)
    with pytest.raises(AssertionError, match="contrastive"):
        assert_agree(trained(two_batches), on_one_device)


def test_compute_type_is_bfloat16_but_parameters_losses_and_softmax_are_float32():
    config = small_config(model__dtype="bfloat16")
    step, state = described(config)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.parameters)} == {jnp.dtype("float32")}
    traced, (new, metrics) = jax.make_jaxpr(step.train, return_shape=True)(
        state, random_batch(config)
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(new.parameters)} == {jnp.dtype("float32")}
    assert {value.dtype for value in metrics.values()} <= {jnp.dtype("float32"), jnp.dtype("int32")}
    jaxpr = str(traced)
    # The exponentials of attention have a (rows, heads, tokens, tokens) result.
    softmax = [
        line for line in jaxpr.splitlines() if re.search(r"\[16,\d+,(\d+),\1\] = exp ", line)
    ]
    assert softmax and all("f32[" in line and "bf16" not in line for line in softmax)
    products = [line for line in jaxpr.splitlines() if "dot_general" in line]
    assert any("bf16" in line for line in products)


@pytest.mark.parametrize("negatives", ["batch", "microbatch"])
def test_gradients_of_microbatches_are_summed_in_float32(negatives):
    """The sum of 1024 gradients in bfloat16 has an error of up to a half."""
    config = small_config(
        model__dtype="bfloat16", accumulation__microbatches=4, accumulation__negatives=negatives
    )
    step, state = described(config)

    def summed(state, batch):
        copied = compute_copy(config, state.parameters, compute_types(step.model(state)))
        found, _ = accumulate_gradients(
            config, step.network, copied, state.batch_stats, batch, state.step
        )
        return copied, found.gradients

    copied, sums = jax.eval_shape(summed, state, random_batch(config))
    assert jnp.dtype("bfloat16") in {leaf.dtype for leaf in jax.tree.leaves(copied)}
    assert {leaf.dtype for leaf in jax.tree.leaves(sums)} == {jnp.dtype("float32")}


def test_initial_parameters_follow_from_the_seed():
    def kernel(seed):
        step = make_step(small_config(seed=seed), lambda _: 0.0)
        return np.asarray(jax.jit(lambda: step.fresh().parameters["decoder"]["embed"]["kernel"])())

    one, again, other = map(kernel, (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def test_network_is_described_without_allocating_it():
    step = make_step(
        small_config(model__size="H", model__width=1280, model__heads=16), lambda _: 0.0
    )
    assert isinstance(step.network, nnx.GraphDef)


def test_inputs_without_noise_are_the_clean_patches():
    clean = jnp.ones((2, 4, 12))
    inputs = Inputs(clean, None, jnp.zeros((2, 4), jnp.int32), jnp.zeros(1, jnp.int32))
    assert inputs.noisy is clean
