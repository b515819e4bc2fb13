"""Every objective beside CAN's three, by one table: value and gradient are those of the oracle."""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from can_jax.distributed.mesh import make_mesh
from can_jax.objectives import OBJECTIVES, mec
from can_jax.objectives.base import Arrays
from can_jax.objectives.negatives import contrast_corrected
from can_jax.utils.errors import UserError
from tests.helpers import objective_oracle as oracle
from tests.helpers.configs import small_config

IMAGES, WIDTH = 8, 4
CONTENTS = np.array([4, 7, 4, 7, 1, 2, 3, 2**32 - 1], np.uint32)
LABELS = np.array([0, 1, 0, -1, -1, 1, 2, 2])


class Plain:
    """A head without layers; what a head learns besides is given."""

    def __init__(self, log_scale=None, bias=None):
        self.log_scale, self.bias = log_scale, bias

    def __call__(self, rows, *, train):
        return rows


def family(**options):
    """A row for the contrastive loss with options of its negatives, and those of the oracle."""
    names = {"prior": "positive_prior", "above": "exclude_above"}
    settings = {names.get(name, name): value for name, value in options.items()}
    supervised = settings.pop("supervised", False)
    if settings.get("exclude_copies"):
        options = {k: v for k, v in options.items() if k != "exclude_copies"}
        options["contents"] = CONTENTS
    if supervised:
        options = {k: v for k, v in options.items() if k != "supervised"} | {"labels": LABELS}
    settings |= {"supervised": supervised, "temperature": 0.3, "block": 5, "directions": "mean"}
    return (
        "contrastive",
        settings,
        lambda z: oracle.contrastive(z, temperature=0.3, **options)[0],
    )


TABLE = {
    "dcl": family(decoupled=True),
    "debiased": family(prior=0.1),
    "debiased_to_the_floor": family(prior=0.8),
    "hard": family(hardness=1.0),
    "hard_debiased_labels": family(hardness=0.5, prior=0.1, supervised=True),
    "excluded": family(above=0.4),
    "dcl_excluded": family(decoupled=True, above=0.0),
    "excluded_copies": family(above=0.4, exclude_copies=True),
    "siglip": ("siglip", {"block": 5}, oracle.siglip),
    "vicreg": ("vicreg", {}, oracle.vicreg),
    "barlow_twins": ("barlow_twins", {}, oracle.barlow_twins),
    "mec": ("mec", {}, oracle.mec),
    "koleo": ("koleo", {"block": 5}, oracle.koleo),
    "dense": ("dense", {"block": 5}, oracle.dense),
    "decorrelation": ("disentangle", {}, oracle.decorrelation),
    "total_correlation": ("disentangle", {"form": "total_correlation"}, oracle.total_correlation),
}


def batches(views, field):
    """Random embeddings or tokens, such with a row of zeros, and such with duplicates."""
    width = (3, WIDTH) if field == "tokens" else (WIDTH,)
    z = np.random.default_rng(views).normal(size=(IMAGES, views, *width))
    zero, twice = z.copy(), z.copy()
    zero[2, 1] = 0
    twice[3], twice[5, 1] = twice[1], twice[5, 0]
    return {"random": z, "zero row": zero, "duplicates": twice}


def field_of(name):
    """The field of the arrays that the objective of a row reads."""
    return min(OBJECTIVES.get(TABLE[name][0]).reads & {"pooled", "tokens"})


def program(name):
    """The value and the gradient of an objective with its default settings and those of a row."""
    objective_name, settings, _ = TABLE[name]
    objective = OBJECTIVES.get(objective_name)
    keys = {key: objective.keys[key].default for key in objective.settings}
    labels = jnp.asarray(LABELS)

    def loss(z):
        head = (Plain(jnp.log(jnp.asarray(10.0, z.dtype)), jnp.asarray(-10.0, z.dtype)),)
        given = (
            Arrays(**{field_of(name): z}, labels=labels, contents=jnp.asarray(CONTENTS)),
            *(head if objective.head else ()),
        )
        return objective.loss(*given, **keys | settings)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def folded(gradient, kind):
    """The gradient, summed over equal rows: of two nearest rows that are equal any may be taken."""
    if kind == "duplicates":
        gradient = gradient.copy()
        gradient[1] += gradient[3]
        gradient[5, 0] += gradient[5, 1]
        gradient[3], gradient[5, 1] = 0, 0
    return gradient


@functools.cache
def expected(name, views, kind):
    z, function = batches(views, field_of(name))[kind], TABLE[name][2]
    return function(z), oracle.gradient(function, z)


def compare(name, compute, views, dtype, value_error, gradient_error, place=lambda z: z):
    for kind, z in batches(views, field_of(name)).items():
        value, slopes = expected(name, views, kind)
        (found, metrics), gradient = compute(place(jnp.asarray(z, dtype)))
        assert found.dtype == dtype and gradient.dtype == dtype
        assert float(found) == pytest.approx(float(value), rel=value_error, abs=value_error), kind
        scale = max(np.abs(slopes).max(), 1e-3)
        np.testing.assert_allclose(
            folded(np.asarray(gradient, np.float64), kind), folded(slopes, kind),
            atol=gradient_error * scale, rtol=0, err_msg=kind,
        )  # fmt: skip
        assert all(np.isfinite(metric).all() for metric in metrics.values())


@pytest.mark.parametrize("name", TABLE)
def test_two_views_on_one_device(name):
    compare(name, program(name), 2, np.float32, 1e-5, 1e-4)


@pytest.mark.parametrize("name", TABLE)
def test_three_views_on_eight_devices(name):
    mesh = make_mesh(small_config(mesh__data=4, mesh__fsdp=2).mesh)
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    with jax.set_mesh(mesh):
        compare(name, program(name), 3, np.float32, 1e-5, 1e-4, lambda z: jax.device_put(z, rows))


@pytest.mark.parametrize("name", TABLE)
def test_in_double_precision(name):
    with jax.enable_x64(True):
        compare(name, program(name), 2, np.float64, 1e-10, 1e-10)


def test_no_correction_is_info_nce_and_the_share_excluded_is_logged():
    z = jnp.asarray(batches(2, "pooled")["duplicates"], np.float32)
    objective, _, _ = family()
    loss = functools.partial(
        OBJECTIVES.get(objective).loss, Arrays(pooled=z), Plain(), 0.3, "mean", False, 5
    )
    plain, metrics = jax.jit(loss)()
    same, others = jax.jit(lambda: loss(exclude_above=1.0 + 1e-3))()
    assert float(same) == pytest.approx(float(plain), rel=1e-6)
    for key, value in metrics.items():
        assert float(others[key]) == pytest.approx(float(value), rel=1e-5), key
    assert others["contrastive/excluded_negatives"] == 0
    _, some = jax.jit(lambda: loss(exclude_above=0.4))()
    share = oracle.contrastive(batches(2, "pooled")["duplicates"], temperature=0.3, above=0.4)[1]
    assert float(some["contrastive/excluded_negatives"]) == pytest.approx(share, rel=1e-5)
    assert share > 0


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("temperature", [0.02, 0.01, 0.001])
def test_debiased_loss_of_aligned_views_is_finite(temperature, decoupled):
    unit = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
    rows = np.repeat(unit / np.linalg.norm(unit, axis=1, keepdims=True), 2, axis=0)

    def loss(rows):
        return contrast_corrected(
            rows, None, 2, temperature, 32,
            decoupled=decoupled, positive_prior=0.1, hardness=0.0, exclude_above=None,
        )[0]  # fmt: skip

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(rows))
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_every_negative_can_be_excluded():
    z = jnp.ones((4, 2, 3))
    for decoupled in (True, False):
        loss = functools.partial(
            OBJECTIVES.get("contrastive").loss, Arrays(pooled=z), Plain(), 0.3, "mean", False, 5,
            decoupled=decoupled, exclude_above=0.5, hardness=1.0, positive_prior=0.1,
        )  # fmt: skip
        found, metrics = jax.jit(loss)()
        assert float(found) == pytest.approx(0, abs=1e-6)
        assert metrics["contrastive/excluded_negatives"] == 1


def test_series_of_mec_approaches_the_log_determinant():
    rows = np.random.default_rng(0).normal(size=(64, 6))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    matrix = unit.T @ unit / (64 * 0.5)  # the eigenvalues of a code of this distortion are below 1
    exact = np.linalg.slogdet(np.eye(6) + matrix)[1]
    errors = [
        abs(float(mec.log_determinant(jnp.asarray(matrix), order)) / exact - 1)
        for order in (1, 2, 4, 16)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.1 and errors[2] < 0.01 and errors[3] < 1e-5


def test_dependent_dimensions_cost_more():
    base = np.random.default_rng(0).normal(size=(64, 1, 4)).astype(np.float32)
    mixed = base.copy()
    mixed[..., 1] = mixed[..., 0] + 0.1 * mixed[..., 1]
    for form in ("decorrelation", "total_correlation"):
        loss = functools.partial(OBJECTIVES.get("disentangle").loss, form=form, shrinkage=0.1)
        apart, together = (float(loss(Arrays(pooled=jnp.asarray(z)))[0]) for z in (base, mixed))
        assert together > 4 * apart >= 0


def test_equal_embeddings_are_at_distance_zero_for_koleo():
    """In float32, an optimized program rounds the equal rows of this batch differently."""
    z = np.random.default_rng(11).normal(size=(8, 1, 4))
    z[3] = z[1]
    objective = functools.partial(OBJECTIVES.get("koleo").loss, block=5)
    compute = jax.jit(
        jax.value_and_grad(lambda z: objective(Arrays(pooled=z)), has_aux=True),
        compiler_options={"xla_backend_optimization_level": 3},
    )
    (value, _), gradient = compute(jnp.asarray(z, np.float32))
    assert float(value) == pytest.approx(oracle.koleo(z), rel=1e-5)
    slopes = oracle.gradient(oracle.koleo, z)
    np.testing.assert_allclose(gradient[3], slopes[3], atol=1e-4 * np.abs(slopes).max())


def test_shrinkage_that_leaves_no_penalty_is_refused():
    with pytest.raises(UserError, match=r"shrinkage=1.0: give a number at least 0.0001, below 1"):
        small_config(objective__disentangle__shrinkage=1.0)


@pytest.mark.slow
def test_optimized_programs_agree_too():
    """XLA's optimizations reorder sums, and can treat equal rows differently."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "not slow", __file__]
    done = subprocess.run(
        command, env=os.environ | {"TEST_OPTIMIZED": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
