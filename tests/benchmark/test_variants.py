import threading
from concurrent.futures import wait

import jax
import pytest

from can_jax.benchmark import variants
from can_jax.benchmark.step import CompiledStep
from tests.helpers.configs import small_config


@pytest.fixture
def measured(monkeypatch):
    """A comparison of steps that are not compiled; their rates are those of a list."""
    monkeypatch.setattr(variants, "matmul_flops", lambda *_: 1e12)
    monkeypatch.setattr(variants, "peak_flops", lambda _: 1e12)
    monkeypatch.setattr(variants, "train_flops_per_image", lambda *_: 10)
    monkeypatch.setattr(variants, "TURNS_SECONDS", 0.0)

    def measure(build, names, left=lambda: 60.0, baseline=None, rounds=2):
        monkeypatch.setattr(variants, "our_step", build)
        monkeypatch.setattr(variants, "baseline_step", baseline)
        reports = []
        variants.measure_variants(
            small_config(), {name: {"seed": i} for i, name in enumerate(names)},
            peers=baseline is not None, rounds=rounds, seconds=1.0, product=8,
            describe=lambda ours: {"described": True},
            report=lambda result: reports.append(sorted(result["steps"])), left=left,
            )  # fmt: skip
        return reports

    return measure


def step_of(rate):
    return CompiledStep(lambda seconds: rate, 1.0, 0, jax.jit(lambda: 0).lower().compile())


def test_failures_and_late_programs_do_not_end_the_others(measured, monkeypatch):
    late, results = threading.Event(), {}
    monkeypatch.setattr(variants, "rated", lambda whole: results.update(whole) or whole)

    def build(config):
        if config.seed == 1:
            raise RuntimeError("RESOURCE_EXHAUSTED: too little\nmemory")
        if config.seed == 2:
            late.wait(30)
        return step_of(100.0)

    def waited(futures, timeout):
        assert timeout == 60.0
        ended = [future for future, name in futures.items() if name != "slow"]
        return wait(ended)[0], set(futures) - set(ended)

    monkeypatch.setattr(variants, "wait", waited)
    measured(build, ["good", "large", "slow"])
    late.set()
    steps = results["steps"]
    assert steps["good"]["rates"] == [100.0] * 3 and steps["good"]["described"]
    assert steps["large"]["error"] == "RuntimeError: RESOURCE_EXHAUSTED: too little memory"
    assert steps["slow"] == {"error": "no time was left to compile this variant"}


def test_ratios_are_of_the_same_rounds_and_the_same_work(measured, monkeypatch):
    results = {}
    rated = variants.rated
    monkeypatch.setattr(variants, "rated", lambda whole: results.update(rated(whole)) or whole)

    def baseline(config, compiled):
        assert not config.augment.jitter
        if compiled:
            raise RuntimeError("no compiler")
        return lambda seconds: 50.0, "torch 2"

    measured(lambda config: step_of(100.0), ["recipe"], baseline=baseline)
    assert results["ratio"] == {"PyTorch": 2.0}
    assert results["steps"]["PyTorch, compiled"]["error"] == "RuntimeError: no compiler"
    ours = results["steps"][variants.SAME_WORK]
    assert ours["milliseconds"] == pytest.approx(1000 * 8 / 100)
    assert ours["mfu"] == pytest.approx(100 * ours["analytic_flops_per_image"] / 1e12)
    assert results["steps"]["PyTorch"]["mfu"] == pytest.approx(ours["mfu"] / 2)
