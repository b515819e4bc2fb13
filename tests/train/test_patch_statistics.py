"""The fixed map of the patch embedding in a run: measured once, stored, and folded for others."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

import can_jax
from can_jax.augment.photometric import Photometric
from can_jax.checkpoint.run_directory import newest_state, read_run
from can_jax.data.pipeline.loader import open_loader
from can_jax.data.sources.registry import open_source
from can_jax.distributed.mesh import make_mesh
from can_jax.export.formats import FORMATS
from can_jax.export.model import open_model
from can_jax.export.verify import check
from can_jax.train.init_from import initial_weights
from can_jax.train.losses import prepare
from can_jax.train.patch_statistics import patch_moments
from can_jax.train.step import abstract_state, make_step, stored_step
from tests.helpers import oracle
from tests.helpers.configs import small_config
from tests.helpers.runs import counting_steps, metrics, run_in_process

ON = ("model.patch_embed=whitened", "noise.linear_bound=True", "probe.every_steps=0",
      "figures.every_steps=0", "model.decoder.noise_output=True",
      "optimizer.warmup_steps=1")  # fmt: skip


def drawn(number, state, found):
    """Let a run that only counts end with parameters as if trained."""
    rng = np.random.default_rng(number)

    def draw(x):
        return jax.device_put(
            np.float32(0.2) * rng.normal(size=x.shape).astype(x.dtype), x.sharding
        )

    return dataclasses.replace(state, parameters=jax.tree.map(draw, state.parameters)), found


@pytest.fixture(scope="module")
def whitened(recipe, tmp_path_factory):
    """A run directory with a measured map, and the output of its first start and of a resume."""
    workdir = tmp_path_factory.mktemp("whitened") / "run"
    with counting_steps(drawn):
        first = run_in_process(recipe, workdir, *ON, "total_steps=2")
        assert first.returncode == 0, first.stderr
        before = state_of(workdir).batch_stats["encoder"]["patch_embed"]
        second = run_in_process(recipe, workdir, *ON, "total_steps=3")
    assert second.returncode == 0, second.stderr
    return workdir, first.stdout, second.stdout, before


def state_of(workdir):
    step = stored_step(read_run(epath.Path(workdir)))
    mesh = make_mesh(step.config.mesh, jax.devices()[:1])
    return newest_state(epath.Path(workdir), abstract_state(step, mesh))[1]


def inputs_of_first_step(config, mesh, source, batches):
    loader = open_loader(config, source, mesh, 0, batches)
    settings = Photometric.from_settings(config.augment.to_dict())
    prepared = jax.jit(lambda batch: prepare(config, batch, jnp.int32(0), settings).clean)
    return np.concatenate([np.asarray(prepared(next(loader))) for _ in range(batches)])


def test_moments_are_those_of_the_first_inputs_on_any_mesh():
    config = small_config(batch_size=16, accumulation__microbatches=2)
    source = open_source(config.data, "train")
    one, eight = (make_mesh(config.mesh, jax.devices()[:count]) for count in (1, 8))
    rows = inputs_of_first_step(config, one, source, 4).reshape(-1, 48).astype(float)
    for mesh in (one, eight):
        found = patch_moments(config, source, mesh)
        assert found.images == 64  # all that there are
        np.testing.assert_allclose(found.mean, rows.mean(0), atol=1e-5)
        np.testing.assert_allclose(found.covariance, np.cov(rows.T, bias=True), atol=1e-4)


def test_run_measures_the_map_once_and_keeps_it(whitened):
    workdir, first, second, before = whitened
    assert "patches are whitened by the statistics of 64 images" in first
    assert "are whitened" not in second and "resumed from" in second
    after = state_of(workdir).batch_stats["encoder"]["patch_embed"]
    for name in ("map", "map_mean"):
        np.testing.assert_array_equal(before[name], after[name])
    config = read_run(epath.Path(workdir))
    source = open_source(config.data, "train")
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    rows = inputs_of_first_step(config, mesh, source, 4).reshape(-1, 48)
    mean, root = oracle.whitening(rows.astype(float), 0.05**2 / 3)
    np.testing.assert_allclose(after["map_mean"], mean, atol=1e-4)
    np.testing.assert_allclose(after["map"], root, rtol=1e-2, atol=2e-2)
    lines = [line for line in metrics(workdir) if "denoising/linear_bound" in line]
    assert len(lines) == 1 and lines[0]["step"] == 0 and 0 < lines[0]["denoising/linear_bound"] < 1
    assert "the best linear denoiser of a patch explains" in first


def test_features_of_the_folded_embedding_are_those_of_the_run(whitened, tmp_path):
    workdir = whitened[0]
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    step, state = stored_step(read_run(epath.Path(workdir))), state_of(workdir)
    wanted = np.asarray(step.features(state, jnp.asarray(images)))
    assert wanted.std() > 0.1
    encoder = can_jax.load(workdir)
    np.testing.assert_allclose(encoder(images), wanted, atol=2e-5)
    model = open_model(str(workdir))
    assert "encoder" not in model.batch_stats
    assert not any("map" in name for name in model.everything())
    for contents in ("encoder", "full"):
        folder = epath.Path(tmp_path / contents)
        folder.mkdir()
        file = FORMATS["huggingface"](model, contents, folder)
        check(model, "huggingface", contents, folder, file)
    arrays = can_jax.load(tmp_path / "encoder", mean=model.config.augment.mean,
                          std=model.config.augment.std)  # fmt: skip
    np.testing.assert_allclose(arrays(images), wanted, atol=2e-5)


def test_initial_weights_keep_their_embedding_of_plain_patches(whitened):
    workdir = whitened[0]
    theirs = open_model(str(workdir)).parameters["encoder"]["patch_embed"]  # of plain patches
    config = small_config(data__image_size=16, model__patch_embed="dct")
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    step = make_step(config, lambda _: 0.0)
    state = jax.jit(step.fresh)()
    taken, _ = initial_weights(str(workdir), state.parameters, mesh, statistics=state.batch_stats)
    fixed = state.batch_stats["encoder"]["patch_embed"]
    kernel = np.asarray(fixed["map"], float) @ np.asarray(taken["encoder"]["patch_embed"]["kernel"])
    scale = np.abs(theirs["kernel"]).max()
    np.testing.assert_allclose(kernel, theirs["kernel"], atol=1e-4 * scale)


def test_stored_configuration_names_the_map(whitened):
    stored = json.loads((whitened[0] / "config.json").read_text())
    assert stored["model"]["patch_embed"] == "whitened"
