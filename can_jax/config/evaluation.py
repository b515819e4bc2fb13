"""The table of all keys that an evaluation recipe can set, and the checks of its values."""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from can_jax.config.defaults import COUNT, DATA, HEADS, MESH, MODEL, RECIPE
from can_jax.config.resolve import as_range, as_size, expand_paths
from can_jax.config.validate_evaluation import (
    check_classifier,
    check_datasets,
    check_evaluation_data,
    check_shifts,
    corruptions_of,
)
from can_jax.models.can import POOLS
from can_jax.utils.errors import UserError
from can_jax.utils.settings import (
    Blocks,
    Choice,
    Key,
    Number,
    Several,
    Special,
    Switch,
    Table,
    Text,
    Whole,
    check_table,
    configuration,
)

PROTOCOLS = ("knn", "linear", "fewshot", "health", "robustness", "classify")
FEATURES = (*POOLS, "both")

INSIDE = Number(above=0, below=1)
BELOW_ONE = Number(0, below=1)
TEMPERATURE = Number(1e-3, 1000)
RATE = Number(above=0, high=1e4)
FACTOR = Number(0, 1e4)
ALPHA = Number(1e-3, 1e3, also=(0,))


def _is_randaugment(value: Any) -> bool:
    kinds = (Whole(0, 15), Number(0, 10), Number(0, 10))
    return (
        isinstance(value, tuple | list)
        and len(value) == len(kinds)
        and all(kind.accepts(x) for kind, x in zip(kinds, value, strict=True))
    )


def _per_channel(kind: Number) -> Special:
    """Return the kind of value that is a number, or one number for each channel."""
    each = Several(kind, empty=False)
    words = f"{kind.describe()}, or one for each channel, of images in [0, 1]"
    return Special(words, lambda value: kind.accepts(value) or each.accepts(value))


CORRUPTIONS = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur",
    "zoom_blur", "snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate",
    "jpeg_compression",
)  # fmt: skip


def _are_corruptions(value: Any) -> bool:
    try:
        corruptions_of(value, CORRUPTIONS)
    except (UserError, AttributeError):
        return False
    return True


# An entry of `robustness.shifts`; see `can_jax.evaluate.protocols.shifts`.
SHIFT: Table = {
    "kind": Key(
        "classes", Choice(("classes", "numbered", "real", "objectnet", "imagenet_c")),
        "The relation of its classes to those of the training set.",
    ),
    "path": Key(None, Text(), "The folder of its images."),
    "name": Key(None, Text(), "Its name in the results; by default its kind."),
    "labels": Key(None, Text(), "The file of labels; only for the kind `real`."),
}  # fmt: skip
# An entry of `fewshot.datasets`. All of them are read at one size, with random access.
SHARED = (
    "channels", "examples", "held_out", "image_size", "streaming", "test_examples",
    "train_examples", "window",
)  # fmt: skip
DATASET: Table = {name: key for name, key in DATA.items() if name not in SHARED} | {
    "test_split": Key(None, Text(), "The split to test on."),
    "name": Key(None, Text(), "Its name in the results, and in TFDS if it is a TFDS data set."),
}

EVALUATION: Table = {
    "protocol": Key("knn", Choice(PROTOCOLS), "The evaluation protocol."),
    "seed": Key(0, Whole(0, 2**31 - 1), "The random seed of the evaluation."),
    "batch_size": Key(
        256, Whole(1, 2**24), "Images per forward pass; for `classify`, images per train step."
    ),
    "features": Key(
        "patches", Choice(FEATURES),
        "The tokens whose mean is the feature; `both` concatenates class and patches.",
    ),
    "held_out": Key(
        0.1, INSIDE, "The fraction of the training examples on which hyperparameters are selected."
    ),
    # The defaults of this block are the values of the run.
    "data": {
        **DATA,
        "source": dataclasses.replace(DATA["source"], default=None),
        "image_size": dataclasses.replace(DATA["image_size"], required=False),
        "test_split": Key(
            None, Text(),
            "The split to test on; by default that of the run's probe, `test`, `val` or "
            "`validation`, whichever exists first.",
        ),
        "held_out": Key(
            None, INSIDE, "The fraction of training examples to test on without a test split."
        ),
        "train_examples": Key(
            None, COUNT, "The number of training examples, evenly spaced; by default all."
        ),
        "test_examples": Key(
            None, COUNT, "The number of test examples, evenly spaced; by default all."
        ),
    },
    "mesh": MESH,
    # Settings that weight files may lack; by default those of the files or their library.
    "model": {
        "heads": Key(None, HEADS, "The encoder's attention heads."),
        "mean": Key(None, _per_channel(Number(0, 1)), "The mean that is subtracted from images."),
        "std": Key(
            None, _per_channel(Number(1e-3, 1)), "The standard deviation that divides images."
        ),
        "dtype": Key(None, MODEL["dtype"].kind, "The type of activations and matrix products."),
    },
    "knn": {
        "k": Key(
            (1, 5, 10, 20, 50, 100, 200), Several(COUNT, empty=False),
            "The numbers of neighbors to compare.",
        ),
        "temperature": Key(
            (0.02, 0.07, 0.2), Several(TEMPERATURE, empty=False), "The temperatures to compare."
        ),
    },
    # One head for each combination; all heads train at once.
    "linear": {
        "learning_rates": Key(
            (0.01, 0.03, 0.1, 0.3, 1.0, 3.0), Several(RATE, empty=False),
            "The learning rates to compare.",
        ),
        "weight_decays": Key(
            (0.0, 1e-6, 1e-5, 1e-4), Several(FACTOR, empty=False), "The weight decays to compare."
        ),
        "features": Key(
            ("patches", "class", "both"), Several(Choice(FEATURES), empty=False),
            "The features to compare.",
        ),
        "batch_size": Key(1024, COUNT, "The number of features per step.", unit="images"),
        "epochs": Key(50, Whole(1, 10**6), "The length of the training.", unit="epochs"),
    },
    "fewshot": {
        "shots": Key(
            (1, 5, 10, 25), Several(COUNT, empty=False), "The numbers of training images per class."
        ),
        "draws": Key(5, Whole(1, 10**6), "The number of random draws of these images."),
        "ridge": Key(
            1024.0, Number(1e-6, 1e15), "The L2 penalty of ridge regression, as in big_vision."
        ),
        "datasets": Key(
            (), Blocks(DATASET, elsewhere={name: f"data.{name}" for name in SHARED}),
            "Data sets to use instead: for each, changes to `data` and a `name`.",
        ),
    },
    "health": {
        "examples": Key(5000, Whole(2, 2**31 - 1), "The number of test images."),
        "k": Key(20, COUNT, "The number of neighbors that vote."),
        "temperature": Key(0.07, TEMPERATURE, "The temperature of the votes' weights."),
    },
    "robustness": {
        "corruptions": Key(
            "all",
            Special(f"all, none, or a comma-separated list of {', '.join(CORRUPTIONS)}",
                    _are_corruptions, str),
            "The corruptions of the test split.",
        ),
        "severities": Key(
            (1, 2, 3, 4, 5), Several(Whole(1, 5), empty=False), "The severities of each corruption."
        ),
        "shifts": Key(
            (), Blocks(SHIFT, needed=("kind", "path")),
            "Further test sets; see `can_jax.evaluate.protocols.shifts`.",
        ),
        "bins": Key(15, Whole(1, 10**6), "The number of bins of the calibration error."),
    },
    # A classification head, trained with the encoder or on frozen features.
    "classify": {
        "freeze_encoder": Key(False, Switch(), "Whether only the head is trained."),
        "head_norm": Key(
            "layer", Choice(("layer", "batch", "none")),
            "The normalization between features and head.",
        ),
        "total_epochs": Key(
            100.0, Number(above=0, high=1e9), "The length of the training.", unit="epochs"
        ),
        "warmup_epochs": Key(5.0, Number(0, 1e9), "The length of the warm-up.", unit="epochs"),
        "optimizer": Key("adamw", Choice(("adamw", "lars")), "The optimizer."),
        "learning_rate": Key(
            5e-4, RATE,
            "The peak learning rate for a batch of 256; it scales linearly with the batch size.",
        ),
        "weight_decay": Key(0.05, FACTOR, "The weight decay."),
        "layer_decay": Key(
            0.75, Number(above=0, high=1),
            "The ratio of a block's learning rate to that of the block above it.",
        ),
        "beta2": Key(
            0.999, RECIPE["optimizer"]["beta2"].kind, "The decay rate of the second moment."
        ),
        "clip_norm": Key(
            0.0, Number(0, 1e9), "The largest global norm of the gradient; 0 disables clipping."
        ),
        "drop_path": Key(
            0.1, BELOW_ONE,
            "The drop probability of the last block, falling linearly to 0 at the first.",
        ),
        "mixup": Key(0.8, ALPHA, "The alpha of mixup's Beta distribution; 0 disables mixup."),
        "cutmix": Key(1.0, ALPHA, "The alpha of CutMix's Beta distribution; 0 disables CutMix."),
        "label_smoothing": Key(
            0.1, BELOW_ONE, "The probability mass that is spread over all classes."
        ),
        "randaugment": Key(
            (2, 9.0, 0.5), Special("(operations, magnitude up to 10, its deviation)",
                                   _is_randaugment, tuple),
            "The parameters of RandAugment; 0 operations disable it.",
        ),
        "random_erasing": Key(0.25, BELOW_ONE, "The probability of erasing a random rectangle."),
        "crop_area": dataclasses.replace(RECIPE["augment"]["crop_area"], default=(0.08, 1.0)),
        "ema_decay": Key(
            0.0, BELOW_ONE,
            "The decay rate of the parameters' moving average, which is evaluated; 0 is none.",
        ),
        "test_every_epochs": Key(5.0, Number(0, 1e9), "The interval of tests; 0 disables them."),
        "save_every_steps": Key(500, COUNT, "The interval of checkpoints.", unit="steps"),
        "remat": Key(
            "none", MODEL["remat"].kind,
            "The rematerialization policy; see `model.remat` of pretraining.",
        ),
    },
}  # fmt: skip


def default_evaluation() -> ConfigDict:
    """Return the default evaluation: kNN on the data and at the image size of pretraining."""
    return configuration(EVALUATION).lock()


def resolve_evaluation(config: ConfigDict) -> ConfigDict:
    """Return a checked copy of an evaluation's configuration, with sizes and ranges as tuples.

    Raises:
        UserError: A setting is wrong; the one-line message names the first one.
    """
    check_table(config, EVALUATION, "can_jax.config.evaluation.default_evaluation()")
    config = expand_paths(config)
    with config.ignore_type():
        config.data.range = as_range(config.data.range)
        if config.data.image_size is not None:
            config.data.image_size = as_size(config.data.image_size)
        config.fewshot.datasets = tuple(
            {**block, "range": as_range(block["range"])} if "range" in block else block
            for block in config.fewshot.datasets
        )
    check_evaluation_data(config, EVALUATION["data"])
    check_datasets(config)
    check_shifts(config, CORRUPTIONS)
    check_classifier(config)
    return config
