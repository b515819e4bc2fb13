import json
import runpy
import warnings

import pytest
from etils import epath
from ml_collections import ConfigDict

from can_jax.evaluate.config import default_evaluation
from can_jax.monitoring.console import duration
from can_jax.study import plots
from can_jax.study.driver import Driver, check_data, curves_of
from can_jax.study.plan import Plan, settings_of
from can_jax.study.report import Report
from can_jax.train.flops import train_flops_per_image as flops
from can_jax.utils.errors import UserError
from tests.helpers.configs import small_config
from tests.helpers.runs import ROOT, main_in_process


def small_study(**changes):
    evaluation = default_evaluation()
    evaluation.protocol = "linear"
    evaluation.linear.update(learning_rates=(0.1,), weight_decays=(0.0,), epochs=2)
    evaluation.linear.features = ("patches",)
    recipe = small_config()
    recipe.probe.update(every_steps=2, bank=32, queries=16)
    recipe.log_every_steps = 2
    arms = (
        {"name": "CAN", "group": "methods", "tuned": True, "pictured": True},
        {"name": "mask ratio 0.75", "group": "mask", "like": "CAN",
         "changes": {"model.mask_ratio": 0.75}},
        {"name": "untrained", "group": "methods", "like": "CAN", "untrained": True},
    )  # fmt: skip
    return ConfigDict(
        {
            "name": "small",
            "recipe": recipe,
            "evaluation": evaluation,
            "reference": "CAN",
            "learning_rates": (1e-3,),
            "arms": arms,
        }
        | changes
    )


def test_key_is_of_what_bears_on_the_result():
    plan = Plan(small_study())
    arm = plan.arms["CAN"]
    keys = {plan.run(arm, rate, seed).key for rate in (1e-3, 1e-2) for seed in (0, 1)}
    assert len(keys) == 4
    moved = small_study()
    moved.recipe.data.path = "/elsewhere"
    assert Plan(moved).run(arm, 1e-3, 0).key in keys
    assert plan.run(plan.arms["untrained"], 1e-3, 0).config.total_steps == 1


def test_equal_flops_are_those_of_the_reference():
    arms = (*small_study().arms, {"name": "equal", "group": "", "like": "mask ratio 0.75",
            "equal_flops": True})  # fmt: skip
    study = small_study(arms=arms)
    study.recipe.total_steps = 1000
    plan = Plan(study)
    reference, equal = (plan.run(plan.arms[name], 1e-3, 0).config for name in ("CAN", "equal"))
    assert equal.total_steps > 1000 and equal.model.mask_ratio == 0.75
    ratio = equal.total_steps * flops(equal) / (reference.total_steps * flops(reference))
    assert ratio == pytest.approx(1, abs=1e-3)


def test_lengths_in_epochs_are_scaled_or_replaced_too():
    arms = (*small_study().arms, {"name": "equal", "group": "", "like": "mask ratio 0.75",
            "equal_flops": True})  # fmt: skip
    study = small_study(arms=arms)
    study.recipe.update(total_steps=None, total_epochs=10.0)
    plan = Plan(study)
    equal, untrained = (plan.run(plan.arms[n], 1e-3, 0).config for n in ("equal", "untrained"))
    assert equal.total_epochs > 10 and equal.total_steps is None
    assert untrained.total_steps == 1 and untrained.total_epochs is None


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ({"name": "CAN", "group": "", "tuned": True}, "two arms are named 'CAN'"),
        (
            {"name": "a", "group": "", "like": "b"},
            "'a': like='b' is not the name of an earlier arm",
        ),
        (
            {"name": "a", "group": ""},
            "'a': tuned=False takes the learning rate of the arm that `like` names: set `like`",
        ),
        ({"name": "a", "group": "", "colour": 1}, "unexpected keyword argument"),
        ({"name": "a", "group": "", "like": "CAN", "seeds": 0}, "a: seeds=0: give a whole number"),
    ],
)
def test_arms_that_do_not_fit(arm, message):
    with pytest.raises(UserError, match=message):
        Plan(small_study(arms=(*small_study().arms, arm)))


@pytest.mark.parametrize("rates", [(), (0.0,), (1e-3, "1e-3")])
def test_learning_rates_of_a_study_are_numbers(rates):
    with pytest.raises(
        UserError, match="config.learning_rates=.*: give a nonempty tuple of numbers"
    ):
        Plan(small_study(learning_rates=rates))


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        ("knn", "'knn' does not define the metrics that a study compares: use linear, disent"),
        ("disentanglement", "'disentanglement' has no held-out accuracy .* give one learning rate"),
    ],
)
def test_protocols_that_a_study_cannot_use(protocol, message):
    study = small_study(learning_rates=(1e-3, 2e-3))
    study.evaluation.protocol = protocol
    with pytest.raises(UserError, match=message):
        Plan(study)


def test_report_compares_the_metrics_of_the_protocol(tmp_path):
    study = small_study()
    study.evaluation.protocol = "disentanglement"
    driver = Driver(Plan(study), epath.Path(tmp_path), epath.Path(tmp_path))
    for arm, dci in zip(driver.plan.arms.values(), (0.25, 0.5, 0.125), strict=True):
        run = driver.chosen(arm)  # without a trial, since there is one learning rate
        assert run.config.optimizer.learning_rate == 1e-3
        names = driver.plan.measures
        result = {
            "seed": 0, "steps": 4, "flops_per_image": 1,
            "metrics": {measure.metric: 0.75 for measure in names} | {"disentanglement/dci": dci},
            "examples": {"train": 32, "test": 16}, "config": settings_of(run.config),
            "curves": [{"step": step, "probe/knn": 12.0} for step in (0, 2, 4)],
            "environment": {"commit": None, "processor": ""},
        }  # fmt: skip
        (tmp_path / f"{run.name}.json").write_text(json.dumps(result))
    Report(driver, epath.Path(tmp_path / "page.md")).write()
    page = (tmp_path / "page.md").read_text()
    head = "| DCI | completeness | informativeness | MIG | mean squared correlation | kNN (%) |"
    assert f"| method | seeds {head}" in page
    assert "| CAN | 1 | 0.250 | 0.750 | 0.750 | 0.750 | 0.750 | 12.0 |" in page
    assert "| mask | mask ratio 0.75 | 0.500 | +0.250 | 0.750 |" in page
    assert "Learning rates" not in page


LOGGED = {"explained": "denoising/explained", "gradient": "grad_norm"}


def test_report_compares_metrics_that_training_logs(tmp_path):
    arms = small_study().arms[:2]
    plan = Plan(small_study(logged=LOGGED, headline="explained", arms=arms))
    driver = Driver(plan, epath.Path(tmp_path), epath.Path(tmp_path))
    logged = {
        "CAN": [{"step": step, "denoising/explained": step / 1000} for step in (80, 90, 100)],
        "mask ratio 0.75": [{"step": 100, "denoising/explained": None, "grad_norm": 2.0}],
    }
    for name, points in logged.items():
        run = driver.chosen(plan.arms[name])
        result = {
            "seed": 0, "steps": 100, "flops_per_image": 1, "metrics": {"linear/top1": 50.0},
            "examples": {"train": 32, "test": 16}, "config": settings_of(run.config),
            "curves": [*points, {"step": 100, "probe/knn": 12.0}],
            "environment": {"commit": None, "processor": ""},
        }  # fmt: skip
        (tmp_path / f"{run.name}.json").write_text(json.dumps(result))
    Report(driver, epath.Path(tmp_path / "page.md")).write()
    page = (tmp_path / "page.md").read_text()
    assert "| method | seeds | explained | linear top-1 (%) | kNN (%) | gradient |" in page
    # The mean over the last tenth of the steps, and nothing where nothing finite was logged.
    assert "|  | CAN | 0.095 |  | 50.0 | 12.0 |  |" in page
    assert "| mask | mask ratio 0.75 |  |  | 50.0 | 12.0 | 2.000 |" in page
    lacking = Plan(small_study(logged=LOGGED, headline="gradient", arms=arms))
    with pytest.raises(UserError, match="headline='gradient': the results of .* 'CAN' lack"):
        Report(Driver(lacking, driver.workdir, driver.results), epath.Path(tmp_path / "page.md"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logged": {"speed": "images_per_second"}}, "do not store 'images_per_second'; choose fr"),
        ({"headline": "explained"}, "headline='explained': choose from linear top-1"),
    ],
)
def test_metrics_that_a_study_cannot_compare(changes, message):
    with pytest.raises(UserError, match=message):
        Plan(small_study(**changes))


def test_curves_of_a_run_that_skipped_an_update():
    logged = [{"step": 2, "loss/total": 1.2345678, "grad_norm": None}, {"step": 2, "probe/knn": 9}]
    assert curves_of(logged) == [
        {"step": 2, "loss/total": 1.2346, "grad_norm": None, "probe/knn": 9}
    ]


def test_study_without_a_probe_is_refused():
    study = small_study()
    study.recipe.probe.every_steps = 0
    with pytest.raises(UserError, match="config.recipe.probe is off, but the report"):
        Plan(study)


def test_arm_sets_its_own_learning_rate_but_no_seed():
    arms = small_study().arms
    rate = {"name": "fast", "group": "", "like": "CAN", "changes": {"optimizer.learning_rate": 0.5}}
    plan = Plan(small_study(arms=(*arms, rate)))
    assert plan.run(plan.arms["fast"], 1e-3, 0).config.optimizer.learning_rate == 0.5
    with pytest.raises(UserError, match="'fast': `changes` cannot set the seed"):
        Plan(small_study(arms=(*arms, rate | {"changes": {"seed": 1}})))
    heir = {"name": "heir", "group": "", "like": "fast", "tuned": True}
    for tuned in ((rate | {"tuned": True},), (rate, heir)):
        with pytest.raises(UserError, match="`changes`, or those of `like`, set optim"):
            Plan(small_study(arms=(*arms, *tuned)))


def test_each_of_many_arms_has_a_curve(tmp_path):
    points = [{"step": step, "probe/knn": 10.0 + step} for step in (0, 300)]
    result = {"curves": points, "config": {"batch_size": 1}, "flops_per_image": 1}
    arms = {f"arm {i}": [result] for i in range(20)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Matplotlib warns of a legend without curves.
        plots.curves(arms, epath.Path(tmp_path / "curves.svg"))
    assert "<!-- arm 19 -->" in (tmp_path / "curves.svg").read_text()


def shipped(name):
    study = runpy.run_path(str(ROOT / f"configs/study/{name}.py"))["get_config"]()
    study.recipe.data.path = "/data"
    return study


@pytest.mark.parametrize(
    ("name", "repeated"),
    [
        ("cifar10", ("can", "mae", "simclr", "can_koleo", "can_without_noise")),
        ("paper_noise", ("CAN", "CAN without noise", "MAE", "SimCLR")),
    ],
)
def test_the_shipped_study_is_whole(name, repeated):
    plan = Plan(shipped(name))
    names = {plan.run(arm, 2e-3, 0).name for arm in plan.arms.values()}
    assert len(names) == len(plan.arms) > 20
    assert all(plan.arms[arm].seeds >= 3 for arm in repeated)


def test_results_from_before_a_setting_was_added_are_found(tmp_path):
    plan = Plan(small_study())
    driver = Driver(plan, epath.Path(tmp_path), epath.Path(tmp_path))
    run = plan.run(plan.arms["CAN"], 1e-3, 0)
    older = {"config": settings_of(run.config), "evaluation": settings_of(plan.evaluation)}
    del older["config"]["probe"]["k"], older["evaluation"]["fewshot"]
    (tmp_path / "CAN-0123456789.json").write_text(json.dumps(older | {"held_out_top1": 1.0}))
    assert driver.known(run)["file"] == driver.name_of(run) == "CAN-0123456789"
    for changed in (plan.run(plan.arms["CAN"], 1e-3, 1), plan.run(plan.arms["CAN"], 2e-3, 0)):
        assert driver.name_of(changed) is None
    del older["config"]["noise"]["level_tokens"]  # which then was what is `visible` now
    (tmp_path / "CAN-0123456789.json").write_text(json.dumps(older))
    visible = small_study()
    visible.recipe.noise.level_tokens = "visible"
    for study, name in ((small_study(), None), (visible, "CAN-0123456789")):
        own = Plan(study)
        assert driver.name_of(own.run(own.arms["CAN"], 1e-3, 0)) == name
    other = small_study()
    other.recipe.probe.k = 7  # which the result has at its default
    own = Plan(other)
    assert driver.name_of(own.run(own.arms["CAN"], 1e-3, 0)) is None


def test_remaining_time_is_that_of_the_finished_runs(tmp_path):
    plan = Plan(small_study())
    driver = Driver(plan, epath.Path(tmp_path), epath.Path(tmp_path))
    run = plan.run(plan.arms["CAN"], 1e-3, 0)
    steps, batch = run.config.total_steps, run.config.batch_size
    result = {
        "config": settings_of(run.config), "steps": steps, "images_per_second": 0.5,
        "flops_per_image": flops(run.config),
    }  # fmt: skip
    (tmp_path / f"{run.name}.json").write_text(json.dumps(result))
    (other,) = (missing for missing in driver.missing() if not missing.arm.untrained)
    seconds = steps * batch / 0.5 * flops(other.config) / flops(run.config)
    assert list(driver.progress())[-1] == (
        f"remaining runs: 2, about {duration(seconds)} of training at the speed of the finished "
        "runs"
    )


@pytest.mark.parametrize(("name", "reference"), [("cifar10", "can"), ("paper_noise", "CAN")])
def test_our_results_are_those_of_the_shipped_study(name, reference, tmp_path):
    ours = epath.Path(ROOT / "benchmarks" / "results" / "study" / name)
    driver = Driver(Plan(shipped(name)), epath.Path(tmp_path), ours)
    found = driver.made(driver.plan.arms[reference])
    assert [result["seed"] for result in found] == [0, 1, 2]
    assert {result["learning_rate"] for result in found} == {2e-3}


def test_results_of_other_data_do_not_share_a_folder(tmp_path):
    (tmp_path / "cost.json").write_text('{"milliseconds": {}}')
    (tmp_path / "can-0.json").write_text(json.dumps({"data": {"train": "a", "test": "b"}}))
    check_data("can-1", {"data": {"train": "a", "test": "b"}}, epath.Path(tmp_path))
    with pytest.raises(UserError, match=r"can-1 was evaluated on other data than .*can-0\.json"):
        check_data("can-1", {"data": {"train": "a", "test": "c"}}, epath.Path(tmp_path))


def test_equal_flops_need_a_length_that_flops_scale():
    arm = {"name": "equal", "group": "", "like": "CAN", "equal_flops": True}
    study = small_study(arms=(*small_study().arms, arm))
    study.recipe.update(total_steps=None, total_minutes=5.0)
    with pytest.raises(UserError, match="'equal': equal_flops=True needs a length in steps"):
        Plan(study)


def test_rates_go_on_until_the_best_is_between_others(tmp_path):
    plan = Plan(small_study(learning_rates=(1e-3, 2e-3), arms=small_study().arms[:2]))
    driver = Driver(plan, epath.Path(tmp_path), epath.Path(tmp_path))
    arm, rates = plan.arms["CAN"], []
    accuracy = {1e-3: 40.0, 2e-3: 42.0, 4e-3: 43.0, 8e-3: 41.0}
    while driver.chosen(arm) is None:
        assert next(iter(driver.progress())).startswith(f"CAN: {len(rates)} of ")
        run = next(iter(driver.missing()))
        rates.append(run.config.optimizer.learning_rate)
        found = {"held_out_top1": accuracy[rates[-1]]}
        (tmp_path / f"{run.name}.json").write_text(json.dumps(found))
    assert rates == [1e-3, 2e-3, 4e-3, 8e-3] and driver.tried(arm) == accuracy
    assert driver.chosen(plan.arms["mask ratio 0.75"]).config.optimizer.learning_rate == 4e-3


@pytest.mark.slow
def test_runs_are_made_once_and_laid_out_on_a_page(tmp_path, capsys):
    study = small_study()
    study.recipe.update(total_steps=None, total_epochs=0.5)  # 4 steps
    plan = Plan(study)
    driver = Driver(plan, epath.Path(tmp_path / "runs"), epath.Path(tmp_path / "results"))
    assert list(driver.progress())[2].endswith(": 0 of 1 runs, learning rate 0.001")
    assert list(driver.progress())[-1] == "remaining runs: 3"
    with pytest.raises(UserError, match="lacks results of the arm 'CAN' for at least one"):
        Report(driver, epath.Path(tmp_path / "study.md"))
    driver.work()
    found = {arm.name: driver.made(arm) for arm in plan.arms.values()}
    files = sorted((tmp_path / "results").glob("*.json"))
    assert len(files) == 3  # one change, one that is not trained
    result = found["mask ratio 0.75"][0]
    assert result["learning_rate"] == found["CAN"][0]["learning_rate"] == 1e-3
    assert result["config"]["model"]["mask_ratio"] == 0.75 and result["environment"]["commit"]
    assert [point["step"] for point in result["curves"]] == [0, 2, 4]
    assert {"loss/total", "probe/knn", "embedding/effective_rank"} <= result["curves"][-1].keys()

    assert "; remaining runs: 2" in capsys.readouterr().out
    assert list(driver.progress())[-1] == "remaining runs: 0"

    before = [path.stat().st_mtime_ns for path in files]
    again = Driver(plan, epath.Path(tmp_path / "nowhere"), driver.results)
    again.work()
    assert {arm.name: again.made(arm) for arm in plan.arms.values()} == found
    assert [path.stat().st_mtime_ns for path in files] == before
    assert not (tmp_path / "nowhere").exists()
    assert list(driver.progress())[1].startswith("mask ratio 0.75: 1 of 1 runs")

    cost = {
        "command": "python -m can_jax.benchmark step", "batch_size": 8,
        "milliseconds": {"can": 4.0, "simclr": 6.0}, "environment": {"processor": "an abacus"},
        "simclr_over_can": {"analytic_flops": 1.7, "time": 1.5},
    }  # fmt: skip
    (tmp_path / "results" / "cost.json").write_text(json.dumps(cost))
    (tmp_path / "results" / "FINDINGS.md").write_text("What did not reproduce: nothing yet.\n")
    Report(driver, epath.Path(tmp_path / "study.md")).write()
    page = (tmp_path / "study.md").read_text()
    assert page.index("did not reproduce") < page.index("| mask | mask ratio 0.75 |")
    assert f"{result['metrics']['linear/top1']:.1f}" in page
    assert "| simclr | 0.75 | 1.50 |" in page and "an abacus" in page
    assert all(path.stem in page for path in files)
    assert (tmp_path / "study" / "choices.svg").exists()


def test_results_are_beside_the_runs_unless_they_are_named(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(
        "from tests.study.test_study import small_study\n\n"
        "def get_config():\n    return small_study(arms=small_study().arms[:1])\n"
    )
    plan = Plan(small_study())

    def study(*options):
        done = main_in_process("can_jax.study", f"--config={file}", *options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    runs = f"--workdir={tmp_path / 'runs'}"
    assert "CAN: 0 of 1 runs" in study("--pending", runs)
    (tmp_path / "runs" / "results").mkdir(parents=True)
    run = plan.run(plan.arms["CAN"], 1e-3, 0)
    text = json.dumps({"held_out_top1": 2.0})
    (tmp_path / "runs" / "results" / f"{run.name}.json").write_text(text)
    assert "CAN: 1 of 1 runs" in study("--pending", runs)
    assert "nothing to do" in study(runs)
    elsewhere = f"--results={tmp_path / 'none'}"
    assert "CAN: 0 of 1 runs" in study("--pending", runs, elsewhere)
    listed = ["--pending", f"--report={tmp_path / 'page.md'}", elsewhere]
    done = main_in_process("can_jax.study", f"--config={file}", *listed)
    assert "CAN: 0 of 1" in done.stdout and "lacks results of the arm 'CAN'" in done.stderr
    refused = main_in_process("can_jax.study", f"--config={file}", "--pending")
    assert "give one of them to locate the results" in refused.stderr


def test_cells_of_the_noise_study_are_what_their_arms_train():
    from can_jax.config.baselines import changed
    from can_jax.config.resolve import resolve
    from can_jax.study.cells import CELLS

    study = shipped("cifar10")
    plan = Plan(study)
    shared = {name: changes for name, changes in CELLS.items() if name in plan.arms}
    assert len(shared) >= 5
    for name, changes in shared.items():
        own = {"optimizer.learning_rate": 1e-3, "seed": 0}
        found = plan.run(plan.arms[name], 1e-3, 0).config
        wanted = resolve(changed(study.recipe, changes | own))
        for key in ("noise", "objective", "augment"):
            if key != "noise" or wanted.noise.sigma_max:
                assert found[key].to_dict() == wanted[key].to_dict(), name
        assert found.model.patch_embed == wanted.model.patch_embed, name
