import functools
import json
import runpy
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from can_jax.benchmark import step
from can_jax.benchmark.step import BASELINE, check_baseline, counted_flops, measure_step
from can_jax.config.baselines import METHODS, changed
from can_jax.config.resolve import resolve
from can_jax.distributed.hardware import matmul_flops
from can_jax.train.flops import train_flops_per_image
from can_jax.utils.errors import UserError
from tests.helpers.configs import small_config
from tests.helpers.oracle import write_reference
from tests.helpers.runs import main_in_process


def measured(**options):
    settings = {"rounds": 2, "seconds": 0.1, "peer": False, "peer_compiled": False, "parts": False}
    return measure_step(small_config(), **(settings | options))


@pytest.mark.slow
def test_rates_and_parts():
    found = measured(parts=True)
    share = found["images_per_second"] * found["analytic_flops_per_image"]
    assert found["mfu_of_measured_peak"] == pytest.approx(share / found["measured_peak_flops"])
    assert 0 < found["mfu_of_measured_peak"] < 1 and found["compile_seconds"] > 0
    assert found["peak_memory_bytes"] > 1e5
    parts = {"augmentation", "noise", "contrastive head and loss", "decoder and its losses"}
    wanted = {"can", "mae", "simclr"} | {f"without {part}" for part in parts}
    assert found["milliseconds"].keys() == wanted and min(found["milliseconds"].values()) > 0


def train_flops(config):
    return train_flops_per_image(config)


def test_counted_flops_are_the_analytic_ones_and_what_they_leave_out():
    config = small_config(model__width=192, model__depth=2, data__image_size=32, model__scan=True)
    simclr = resolve(changed(config, METHODS["simclr"]))
    shares = [counted_flops(method) / train_flops(method) for method in (config, simclr)]
    assert all(1 < share < 1.3 for share in shares)
    assert shares[0] == pytest.approx(shares[1], rel=0.1)


def test_simclr_costs_what_the_paper_says_of_vit_l():
    config = small_config(
        model__size="L", model__width=None, model__depth=None, model__heads=None,
        model__patch_size=16, data__image_size=224, model__decoder__width=512,
        model__decoder__depth=8, model__decoder__heads=16, model__projector__hidden=4096,
        model__projector__outputs=128,
    )  # fmt: skip
    simclr = resolve(changed(config, METHODS["simclr"]))
    assert 1.65 < train_flops(simclr) / train_flops(config) < 1.75


def test_command_with_mistakes():
    def run(*arguments):
        return main_in_process("can_jax.benchmark", "step", *arguments)

    assert run().stderr.startswith("error: --config=NAME is missing: give a pretraining recipe")
    done = run("--config=configs/quickstart.py", "--batch=0")
    assert done.returncode and "batch" in done.stderr


def test_command_prints_json_and_reads_no_data(recipe, monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: jax.local_devices()[:1])
    monkeypatch.setattr(step, "measured_peak", functools.partial(matmul_flops, size=64))
    done = main_in_process(
        "can_jax.benchmark", "step", f"--config={recipe}", "--config.data.source=folder",
        "--config.objective.contrastive.weight=0.0", "--config.objective.denoising.weight=0.0",
        "--config.noise.sigma_max=0.0", "--config.augment.views=1",  # MAE, which compiles soon
        "--batch=8", "--rounds=1", "--seconds=0.1", "--json",
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["batch_size"] == 8 and found["images_per_second"] > 0
    assert found["command"].startswith("python -m can_jax.benchmark step --config=")
    assert found["model"].endswith(" px") and "cores" in found["environment"]["processor"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (METHODS["simclr"], "requires the objectives .* but the recipe has contrastive"),
        ({"objective.koleo.weight": 0.1}, "contrastive, .*koleo"),
        ({"objective.contrastive.decoupled": True}, "contrastive.decoupled=True: --peer requires"),
        ({"model.backbone_options": (("registers", 4),)}, "backbone_options=.*requires ()"),
        ({"augment.views": 4}, "config.augment.views=4: --peer requires 2"),
        ({"optimizer.ema_decay": 0.9}, "config.optimizer.ema_decay=0.9: --peer requires 0.0"),
    ],
)
def test_peer_refuses_what_pytorch_does_not_compute(changes, message):
    with pytest.raises(UserError, match=message):
        check_baseline(resolve(changed(small_config(), changes)))


@pytest.mark.parametrize(("level_tokens", "normalize"), [("all", True), ("visible", False)])
def test_peer_is_the_same_mathematics(tmp_path, level_tokens, normalize):
    torch = pytest.importorskip("torch")
    content = write_reference(
        tmp_path / "reference.npz", level_tokens=level_tokens, normalize_targets=normalize
    )
    meta = json.loads(str(content["meta"]))
    reference = SimpleNamespace(**runpy.run_path(str(BASELINE), run_name=BASELINE.stem))
    height, width, channels = content["in/views"].shape[1:]
    patch = meta["patch_size"]
    projector = sorted(k for k in content if k.startswith("param/projection_head.") and "wei" in k)
    sizes = reference.Sizes(
        *(meta[n] for n in ("width", "depth", "heads")),
        *(meta[f"decoder_{n}"] for n in ("width", "depth", "heads")),
        patch, channels, (height // patch, width // patch),
        tuple(content[name].shape[0] for name in projector), False,
    )  # fmt: skip
    settings = reference.Settings(
        meta["keep"], meta["sigma_max"], meta["sigma_scale"], level_tokens, normalize,
        meta["temperature"], tuple(meta["weights"]),
    )  # fmt: skip
    network = reference.CAN(sizes, settings).double()
    arrays = {k.removeprefix("param/"): v for k, v in content.items() if k.startswith("param/")}
    missing = network.load_state_dict(
        {name: torch.tensor(array) for name, array in arrays.items()}, strict=False
    )
    assert not missing.unexpected_keys
    assert {name.split(".")[0] for name in missing.missing_keys} <= {
        "pos_embed",
        "decoder_pos_embed",
    }
    views, noise = (
        reference.patchify(torch.tensor(content[name]), patch)
        for name in ("in/views", "in/unit_noise")
    )
    sigma, shuffle = torch.tensor(content["in/sigma"]), torch.tensor(content["in/shuffle"])
    found = network(views, sigma, noise, shuffle.long())
    for name in ("contrastive", "reconstruction", "denoising", "total"):
        np.testing.assert_allclose(found[name].item(), content[f"loss/{name}"], rtol=1e-6)
    found["total"].backward()
    for name, parameter in network.named_parameters():
        wanted = content[f"grad/{name}"]
        error = np.abs(parameter.grad.numpy().reshape(wanted.shape) - wanted).max()
        assert error <= 1e-6 * max(np.abs(wanted).max(), 1e-3), name


def test_peer_beside_ours():
    pytest.importorskip("torch")
    found = measured(peer=True)
    assert found["peer"].startswith("torch ") and found["peer_images_per_second"] > 0
    assert found["ratio"] > 0
