"""Every key that a recipe of an evaluation may set, and its default."""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from can_jax.config import as_range, as_size, check_against, default_config, expand_paths
from can_jax.errors import UserError
from can_jax.model.can import POOLS
from can_jax.validate import check, check_one_of, check_source

PROTOCOLS = ("knn", "linear", "fewshot", "health", "robustness", "classify")
FEATURES = (*POOLS, "both")


def default_evaluation() -> ConfigDict:
    """kNN on the data that the encoder was trained on, at the size it was trained at."""
    data = default_config().data
    with data.unlocked():
        del data.source
        data.source = placeholder(str)  # by default all of this block is that of the run
        # By default the run's `probe.split`; where there is no `test`, `val` or `validation`.
        data.test_split = placeholder(str)
        data.held_out = placeholder(float)  # of the training examples, where there is no test split
        data.train_examples = placeholder(int)  # of each split, evenly spread; all by default
        data.test_examples = placeholder(int)
    return ConfigDict(
        {
            "protocol": "knn",  # knn | linear | fewshot | health | robustness | classify
            "seed": 0,
            "batch_size": 256,  # images encoded at a time; for classify, those of a step
            # Of the tokens: patches (their mean) | all | class | both (class and patches, joined)
            "features": "patches",
            "held_out": 0.1,  # of the training examples, by which settings are chosen
            "data": data,
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
            "model": {  # what files of weights may not state; by default what is known of them
                "heads": placeholder(int),
                "mean": placeholder(object),  # of each channel of images in [0, 1]
                "std": placeholder(object),
                "dtype": placeholder(str),  # by default that of the run
            },
            "knn": {"k": (1, 5, 10, 20, 50, 100, 200), "temperature": (0.02, 0.07, 0.2)},
            "linear": {  # a head for each setting, all of them trained at once
                "learning_rates": (0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
                "weight_decays": (0.0, 1e-6, 1e-5, 1e-4),
                "features": ("patches", "class", "both"),
                "batch_size": 1024,
                "epochs": 50,
            },
            "fewshot": {
                "shots": (1, 5, 10, 25),  # images of a class
                "draws": 5,
                "ridge": 1024.0,  # as in big_vision
                "datasets": (),  # further ones: dicts of keys of `data` to change, and a `name`
            },
            "health": {"examples": 5000, "k": 20, "temperature": 0.07},
            "robustness": {
                "corruptions": "all",  # computed on the test split: all | none | names
                "severities": (1, 2, 3, 4, 5),
                # Other test sets: dicts with `kind`, `path`, perhaps a `name`; see shifts.py.
                "shifts": (),
                "bins": 15,  # of the calibration error
            },
            "classify": {  # train a head, with the encoder or on top of it
                "freeze_encoder": False,
                "head_norm": "layer",  # between features and head: layer | batch | none
                "total_epochs": 100.0,
                "warmup_epochs": 5.0,
                "optimizer": "adamw",  # adamw | lars
                "learning_rate": 5e-4,  # for 256 images
                "weight_decay": 0.05,
                "layer_decay": 0.75,  # of the learning rate, from a block to the one below it
                "beta2": 0.999,
                "clip_norm": 0.0,  # of the gradient; 0 is not at all
                "drop_path": 0.1,  # at the last block, falling to 0 at the first
                "mixup": 0.8,  # alpha of the Beta distribution; 0 is none
                "cutmix": 1.0,
                "label_smoothing": 0.1,
                "randaugment": (2, 9.0, 0.5),  # operations, magnitude of 10, its deviation
                "random_erasing": 0.25,  # a probability
                "crop_area": (0.08, 1.0),
                "ema_decay": 0.0,  # of an average of the parameters, which is then evaluated
                "test_every_epochs": 5.0,
                "save_every_steps": 500,
                "remat": "none",
            },
        }
    ).lock()


def resolve_evaluation(config: ConfigDict) -> ConfigDict:
    """A checked copy.

    Raises:
        UserError: the first thing found wrong, in one line.
    """
    check_against(config, default_evaluation(), "can_jax.evaluate.config.default_evaluation()")
    config = expand_paths(config)
    with config.ignore_type():
        config.data.range = as_range(config.data.range)
        if config.data.image_size is not None:
            config.data.image_size = as_size(config.data.image_size)
    if config.data.source is not None:
        check_source(config.data)
        check(not config.data.streaming, "data.streaming=True: an evaluation reads by number")
    check_one_of("protocol", config.protocol, PROTOCOLS)
    check_one_of("features", config.features, FEATURES)
    for kind in config.linear.features:
        check_one_of("linear.features", kind, FEATURES)
    check(0 < config.held_out < 1, f"held_out={config.held_out}: a share of the examples")
    share = config.data.held_out
    check(share is None or 0 < share < 1, f"data.held_out={share}: a share of the examples")
    for name in ("train_examples", "test_examples"):
        count = config.data[name]
        check(count is None or count >= 1, f"data.{name}={count}: at least 1")
    check(config.batch_size >= 1, f"batch_size={config.batch_size}: at least 1 image")
    _check_positive("knn", config.knn, ("k", "temperature"))
    _check_positive("linear", config.linear, ("learning_rates", "epochs", "batch_size"))
    _check_positive("health", config.health, ("examples", "k", "temperature"))
    _check_positive("fewshot", config.fewshot, ("shots", "draws"))
    settings = config.classify
    check_one_of("classify.optimizer", settings.optimizer, ("adamw", "lars"))
    check_one_of("classify.head_norm", settings.head_norm, ("layer", "batch", "none"))
    for name in ("drop_path", "label_smoothing", "random_erasing", "ema_decay"):
        check(0 <= settings[name] < 1, f"classify.{name}={settings[name]}: at least 0, below 1")
    _check_positive("classify", settings, ("total_epochs", "learning_rate", "layer_decay"))
    return config


def _check_positive(block: str, settings: ConfigDict, names: tuple[str, ...]) -> None:
    for name in names:
        values: Any = settings[name]
        for value in values if isinstance(values, tuple | list) else (values,):
            if not isinstance(value, int | float) or value <= 0:
                raise UserError(f"config.{block}.{name}: {value!r} is not above 0")
