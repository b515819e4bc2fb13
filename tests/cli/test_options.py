"""A mistake on the command line ends in one line that names the nearest right form."""

import importlib
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict

from can_jax.cli import flags
from can_jax.cli.recipe import load
from can_jax.config.resolve import default_config, resolve
from can_jax.evaluate.config import default_evaluation
from can_jax.train.callbacks import next_steps
from can_jax.utils.errors import UserError
from can_jax.utils.nearest import OTHER_NAMES, nearest
from can_jax.utils.nested import flatten
from tests.helpers.runs import ROOT, main_in_process

RECIPES = ", ".join(sorted(path.stem for path in (ROOT / "configs").glob("*.py")))


def refused(module, *arguments):
    """The line on stderr of a command that ends in one."""
    done = main_in_process(module, *arguments)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    line = done.stderr.removeprefix("error: ").rstrip("\n")
    assert not re.search(r"\w(Error|Exception)\b|\\'|<class|unexpected error;|\b0x", line), line
    return line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config=NAME is missing: give a pretraining recipe, as a file, or by one of "
         f"the names {RECIPES}"),
        (["--config.seed=1"], "--config=NAME is missing; --config.seed sets a key of that recipe"),
        (["--config=configs/quickstrat.py"], "did you mean configs/quickstart.py?"),
        (["--config=vit_x"], f"did you mean vit_s? shipped are {RECIPES}"),
        (["--config=tests"], "--config=tests is a folder, not a pretraining recipe"),
        (["--config=vit_b"], "--workdir=DIR is missing"),
        (["--config=vit_b", "--batch_size=64"],
         "unknown option --batch_size; did you mean --config.batch_size?"),
        (["--config=vit_b", "--batch-size=64"],
         "unknown option --batch-size; did you mean --config.batch_size?"),
        (["--config=vit_b", "--config.batch-size=64"],
         "unknown key --config.batch-size; did you mean --config.batch_size?"),
        (["--config=vit_b", "--Workdir=x"], "did you mean --workdir?"),
        (["--config=configs/healthy/quickstart.json"], "recipe must be a Python file"),
        (["--config=README.md"], "--config=README.md: a pretraining recipe must be a Python file"),
        (["--config=vit_b", "--modules=./README.md"], "a module must be a Python file"),
        (["--config=vit_b", "--data.path=/d"], "did you mean --config.data.path?"),
        (["--config=vit_b", "--learning_rat=1"], "did you mean --config.optimizer.learning_rate?"),
        (["--confg=vit_b"], "unknown option --confg; did you mean --config?"),
        (["--config=vit_b", "--config.batchsize=64"],
         "unknown key --config.batchsize; did you mean --config.batch_size?"),
        (["--config=vit_b", "--config.seed=1", "--config.model.size=S", "--config.augment.fli=1"],
         "unknown key --config.augment.fli; did you mean --config.augment.flip?"),
        (["--config="], "--config=NAME is missing"),
        (["--config=vit_b", "--config.modle.size=S"], "did you mean --config.model.size?"),
        (["--config=vit_b", "--config.batch_size=64.5"],
         "--config.batch_size=64.5 is not a whole number"),
        (["--config=vit_b", "--config.total_epochs", "ten"],
         "--config.total_epochs=ten is not a number"),
        (["--config=vit_b", "--config.noise.embed_level=maybe"], "is not true or false"),
        (["--config=vit_b", "--config.model=S"], "--config.model=S is a group of keys"),
        (["--config=vit_b", "--config.data.mixture=({'path': 'a b'"],
         "--config.data.mixture=({'path': 'a b' is not a tuple"),
        (["--config.seed=1", "--config=vit_b"], "--config=NAME must come before"),
        (["--config=vit_b", "--workdir"], "--workdir has no value"),
        (["--config=vit_b", "--workdir", "--config.seed=1"],
         "--workdir has no value, but --config.seed=1 follows; write --workdir=VALUE"),
        (["--config=vit_b", "--config.model.size", "--workdir=W"],
         "--config.model.size has no value, but --workdir=W follows"),
        (["--config=vit_b", "--config.seed", "--workdir=W"], "--config.seed has no value, but"),
        (["--config", "--workdir=W"], "--config has no value, but --workdir=W follows"),
        (["--config=vit_b", "--config.noise.embed_level", "--config.lr=1"], "unknown key"),
        (["--config=VIT_L"], "did you mean vit_l?"),
        (["--config=ViT-L"], "did you mean vit_l?"),
        (["--config=configs/VIT_L.py"], "did you mean configs/vit_l.py?"),
        (["--config=vit_b", "--chekpoint=x"], "did you mean --config.init_from?"),
        (["--config=vit_b", "--workdir=~nobody_/x"],
         "--workdir=~nobody_/x: there is no user 'nobody_'"),
        (["--config=vit_b", "--workdir="], "--workdir='' is not a path: give the path of"),
        (["--config=vit_b", "--workdir=foo://x"], "--workdir=foo://x: foo:// is not supported"),
        (["--config=vit_b", "--workdir=http://x"], "http:// is not supported; supported are gs://"),
        (["--data=foo://x"], "supported are gs://, s3://, az://, hf://, http://, https://"),
        (["--config=vit_b", "--config.objectiv.contrastive.weight=1"],
         "did you mean --config.objective.contrastive.weight?"),
        (["--config=vit_b", "--start_timeout=-4"], "--start_timeout=-4 is not a positive integer"),
        (["--config=vit_b", "--processes=0"], "--processes=0 is not a positive integer"),
        (["--config=vit_b", "stray"], "unexpected argument 'stray'; write options as"),
        (["--config=vit_b", "batch_size=64"], "did you mean --config.batch_size=64?"),
        (["--config=vit_b", "–config.batch_size=64"], "did you mean --config.batch_size=64?"),
        (["--config=eval/knn"], "is an evaluation protocol, for python -m can_jax.evaluate"),
        (["--config=knn"], "is an evaluation protocol, for python -m can_jax.evaluate"),
        (["--config=vit_b:large"], "the file takes no argument; leave :large out"),
        (["--config=noise_ablation:al"], "choose one of none, noise, loss, full"),
    ],
)  # fmt: skip
def test_mistake_in_training(arguments, message):
    assert message in refused("can_jax.main", *arguments)


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        ("evaluate", ["--config=quickstart"], "a pretraining recipe, for python -m can_jax.main; "
         "here an evaluation protocol is needed, such as eval/disentanglement"),
        ("evaluate", ["--config=configs/vit_l.py"], "is a pretraining recipe"),
        ("evaluate", ["--config=knm"], "did you mean knn?"),
        ("evaluate", ["--config=KNN"], "did you mean knn?"),
        ("evaluate", ["--config=finetune", "--config.epochs=3"],
         "did you mean --config.classify.total_epochs?"),
        ("evaluate", ["--config=linear", "--config.epochs=3"], "--config.linear.epochs?"),
        ("evaluate", ["--config=finetune", "--chekpoint=x"], "did you mean --checkpoint?"),
        ("export", ["--format", "--checkpoint=x"], "--format has no value, but --checkpoint=x"),
        ("evaluate", [], "--config=NAME is missing: give an evaluation protocol, as a file, or by"),
        ("evaluate", ["--config=knn", "--config.data.spilt=val"], "--config.data.split?"),
        ("study", ["--config=quickstart"], "here a study is needed, such as study/cifar10"),
        ("study", ["--config=cifar10", "--pending"], "give one of them to locate the results"),
        ("plan", ["--config=vit_l", "--mfu=x"], "--mfu=x is not a number"),
        ("export", ["--format=tim"], "--format=tim: did you mean timm? choose one of timm, "),
        ("export", ["--results=a,~nobody_/b"], "--results=~nobody_/b: there is no user"),
        ("data.index", ["x", "--workers=0"], "--workers=0 is not a positive integer"),
        ("data.index", ["~nobody_/x"], "~nobody_/x: there is no user 'nobody_'"),
        ("data.index", [""], "'' is not a path"),
        ("data.index", ["x", "--max_pixels=-1"], "--max_pixels=-1 is not a positive integer"),
        ("report", ["foo://x"], "foo://x: foo:// is not supported"),
        ("replay", ["http://x"], "http://x: http:// is not supported"),
        ("study.healthy", ["http://x", "--run=a"], "http://x: http:// is not supported"),
        ("data.index", ["foo://x"], "supported are gs://, s3://, az://, hf://, http://, https://"),
        ("evaluate.compare", ["--runs=a,"], "--runs='' is not a path"),
        ("recipes", ["nope"], "nope: there is no such file"),
        ("benchmark", ["step", "--config=vit_s", "--batch_size=8"],
         "--batch_size has no effect on `benchmark step`, only on `benchmark input`: leave it out"),
        ("benchmark", ["input", "--path=x", "--config=vit_s"], "--config has no effect on"),
        ("data.index", ["x", "--source=folder", "--name=a"], "--name has no effect on the source"),
        ("data.index", ["x", "--source=webdataset", "--label_key=a"],
         "--label_key has no effect on the source webdataset, only on tfrecord: leave it out"),
        ("data.index", ["x", "--source=folder", "--verify=none", "--drop_duplicates"],
         "--drop_duplicates has no effect with --verify=none, which reads no image"),
        ("embed", ["--checkpoint=x", "--output=a.npz", "--config=knn", "--config.data.path=y",
                   "--data=z"], "--data and --config.data.path set the same value: give one"),
        ("embed", ["--checkpoint=x", "--output=a.npz", "--config=knn", "--config.features=all",
                   "--features=class"], "--features and --config.features set the same value"),
        ("plan", ["--config=finetune", "--topology=cpu:1", "--encoder=vit_s", "--classes=0"],
         "--classes=0 is not a positive integer"),
        ("plan", ["--config=vit_s", "--topology=cpu:1", "--tries=-1"], "--tries=-1 is not"),
    ],
)  # fmt: skip
def test_mistake_in_another_command(module, arguments, message):
    assert message in refused(f"can_jax.{module}", *arguments)


FILE = "give the path of a folder"
FOLDER = "configs is a folder: give the path of a file"
INSIDE = "cannot be written: README.md is not a folder"


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        ("main", ["--config=quickstart", "--config.data.path=/no", "--workdir=README.md"], FILE),
        ("main", ["--data=/no", "--workdir=README.md/x"], INSIDE),
        ("evaluate", ["--config=knn", "--checkpoint=/no", "--workdir=README.md"], FILE),
        ("export", ["--checkpoint=/no", "--format=timm", "--output=README.md/x"], INSIDE),
        ("embed", ["--checkpoint=/no", "--output=README.md/x.npz"], INSIDE),
        ("evaluate.compare", ["--runs=/no", "--output=configs"], FOLDER),
        ("report", ["/no", "--output=configs"], FOLDER),
        ("report", ["/no", "--output=/no/page.html"], "there is no folder /no"),
        ("study", ["--config=cifar10", "--workdir=README.md"], FILE),
        ("study", ["--config=cifar10", "--workdir=/tmp", "--results=README.md"], FILE),
        ("study", ["--config=cifar10", "--results=/no", "--report=configs"], FOLDER),
        ("data.index", ["/no", "--out=README.md"], FILE),
        ("data.imagenet", ["configs", "README.md"], FILE),
        ("study.healthy", ["README.md/x", "--run=/no", "--write"], INSIDE),
        ("plan", ["--config=knn", "--topology=cpu:2", "--dump_hlo=configs"], FOLDER),
    ],
)
def test_output_is_refused_before_the_input_is_opened(module, arguments, message):
    assert message in refused(f"can_jax.{module}", *arguments)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("lr", "optimizer.learning_rate"), ("wd", "optimizer.weight_decay"),
        ("bs", "batch_size"), ("epochs", "total_epochs"), ("steps", "total_steps"),
        ("warmup", "optimizer.warmup_share"), ("tau", "objective.contrastive.temperature"),
        ("probe.temp", "probe.temperature"), ("optimizer.lr", "optimizer.learning_rate"),
        ("mask", "model.mask_ratio"), ("model.patch", "model.patch_size"),
        ("ema", "optimizer.ema_decay"),
        ("img-size", "data.image_size"), ("Resolution", "data.image_size"),
        ("dataset", "data.source"), ("num_workers", "data.threads"), ("precision", "model.dtype"),
        ("data.size", "data.image_size"), ("model.learning_rate", "optimizer.learning_rate"),
        ("decoder.depth", "model.decoder.depth"), ("checkpoint.keep", "checkpoint.keep_last"),
        ("optimiser.learning_rate", "optimizer.learning_rate"), ("optimizer.xyz", None),
        ("learningrate", "optimizer.learning_rate"), ("xyz", None), ("modle.sise", "model.size"),
    ],
)  # fmt: skip
def test_key_that_another_name_means(name, wanted):
    options = [f"config.{key}" for key in flatten(default_config().to_dict())]
    found = nearest(name, options, "config.")
    assert found == (wanted and f"config.{wanted}")


def test_unknown_key_of_a_configuration_gets_its_meaning():
    for key, wanted in (("optimizer.lr", "optimizer.learning_rate"), ("epochs", "total_epochs")):
        config = default_config().to_dict()
        *blocks, last = key.split(".")
        (config[blocks[0]] if blocks else config)[last] = 1
        with pytest.raises(UserError, match=rf"config\.{key}; did you mean config\.{wanted}\?$"):
            resolve(ConfigDict(config))


def test_every_other_name_leads_to_a_key():
    keys = {*flatten(default_config().to_dict()), *flatten(default_evaluation().to_dict())}
    keys |= {"checkpoint", "config", "workdir"}  # options of commands
    assert [name for name in OTHER_NAMES if nearest(name, sorted(keys)) is None] == []


START = "from can_jax.config import default_config, load_recipe\ndef get_config():\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{START}    c = default_config()\n    c.modle = 3\n", "line 4: unknown key modle; did"),
        (f"{START}    default_config().model.update(sise='B')\n", "line 3: unknown key sise; did"),
        (f"{START}    return {{}}['a b']\n", "line 3: KeyError: a b"),
        (f"{START}    return foo\n", "line 3: name 'foo' is not defined"),
        (f"{START}    load_recipe(__file__, 'vit_x')\n", "no pretraining recipe of that name"),
        ("def get_config(:\n", "line 1: invalid syntax"),
        ("import no_such_module\n", "line 1: No module named 'no_such_module'"),
        ("def get_config():\n    pass\n", "does not return a ConfigDict"),
        ("x = 1\n", "has no function get_config()"),
        ("get_config = 1\n", "has no function get_config()"),
        ("x = 1 / 0\n", "line 1: division by zero"),
        ("import sys\nsys.exit(3)\n", "line 2: the file ends the program with exit code 3"),
        ("\0", "source code string cannot contain null bytes"),
    ],
)
def test_recipe_that_fails_names_its_line(tmp_path, text, message):
    path = tmp_path / "own.py"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load(str(path), "recipe")
    assert message in str(error.value) and str(path) in str(error.value)
    with pytest.raises(UserError, match=f"did you mean {path}?"):
        load(str(path.with_suffix("")), "recipe")


def test_suggested_evaluation_reads_the_data_that_it_names(tmp_path, monkeypatch):
    module = importlib.import_module("can_jax.cli.commands.evaluate")
    configs = []

    def stop(config, *_):
        configs.append(config)
        raise UserError("stop")

    monkeypatch.setattr(module, "evaluate", stop)
    np.savez(tmp_path / "train.npz", images=np.zeros((2, 8, 8, 3), np.uint8))
    (line,) = (line for line in next_steps(epath.Path("runs/l")) if "LABELED_IMAGES" in line)
    words = shlex.split(line.partition("can-jax evaluate ")[2])
    words = [word.replace("LABELED_IMAGES", str(tmp_path)) for word in words]
    assert module.main(words) == 1
    assert configs[0].data.source == "arrays" and configs[0].data.path == str(tmp_path)
    assert module.main([*words, "--config.data.source=folder"]) == 1
    assert configs[1].data.source == "folder"


@pytest.mark.parametrize("module", ["evaluate", "embed"])
def test_data_of_an_encoder_is_given_once(module, tmp_path):
    options = ["--config=knn", f"--checkpoint={tmp_path}", "--data=/x", "--config.data.path=/y"]
    options += ["--output=a.npz"] if module == "embed" else [f"--workdir={tmp_path}"]
    assert "--data and --config.data.path set the same value" in refused(
        f"can_jax.{module}", *options
    )


def test_run_records_the_command_as_it_was_given(monkeypatch):
    """Without the recipe that stands in for the one that `--data` chooses."""
    command = importlib.import_module("can_jax.cli.commands.train").main
    seen = []
    monkeypatch.setattr(command, "_function", lambda: seen.append(sys.argv[1:]))
    argv = ["--data=photos", "--config.batch_size=8"]
    assert command(argv) == 0
    assert seen == [argv] and sys.argv[1:] != argv


def test_recipe_from_elsewhere_starts_from_a_shipped_one(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(f"{START}    return load_recipe(__file__, 'vit_h')\n")
    assert load(str(path), "recipe").model.size == "H"


def test_names_and_paths_of_shipped_recipes(tmp_path, monkeypatch):
    (tmp_path / "vit_l").mkdir()  # such as a run's
    monkeypatch.chdir(tmp_path)
    for name in ("vit_l", "vit_l.py", "configs/vit_l.py", "./configs/vit_l.py"):
        assert load(name, "recipe").model.size == "L"
    for name in ("knn", "eval/knn", "configs/eval/knn.py"):
        assert load(name, "protocol").protocol == "knn"
    for name in ("cifar10", "study/cifar10"):
        assert load(name, "study").name == "cifar10"
    assert not load("noise_ablation:noise", "recipe").noise.embed_level
    assert load("configs/noise_ablation.py", "recipe").noise.embed_level
    # A file of one's own wins, where its path is given.
    (tmp_path / "vit_l.py").write_text(f"{START}    return default_config()\n")
    assert load("vit_l.py", "recipe").model.size == default_config().model.size == "B"
    assert load("vit_l", "recipe").model.size == "L"


def test_home_in_the_path_of_a_recipe(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "own.py").write_text(f"{START}    return default_config()\n")
    assert load("~/own.py", "recipe").model.size == "B"


def test_home_in_flags(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert flags.PathParser().parse("~/x") == "/home/me/x"
    assert flags.PathParser().parse("gs://bucket/~x") == "gs://bucket/~x"
    assert flags.PathListParser().parse("~/a,b,~") == ["/home/me/a", "b", "/home/me"]


def test_shipped_files_are_listed():
    listed = main_in_process("can_jax.recipes").stdout
    assert all(f" {name} " in listed for name in (*RECIPES.split(", "), "eval/knn", "launch/slurm"))
    for name in ("vit_l", "knn", "study/cifar10", "healthy/quickstart", "launch/local.sh"):
        path = main_in_process("can_jax.recipes", name).stdout.strip()
        assert name.split("/")[-1].split(".")[0] in path and Path(path).is_file()
