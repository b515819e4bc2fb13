"""The table of all keys that a recipe can set: default, allowed values, meaning and unit."""

from typing import Any

from can_jax.config.image_settings import RANGE, SIZE, is_range
from can_jax.config.settings import (
    Choice,
    Key,
    Number,
    Several,
    Special,
    Switch,
    Table,
    Text,
    Whole,
)
from can_jax.data.sources.registry import SOURCES
from can_jax.models.can import LEVEL_TOKENS, POOLS, SIZES
from can_jax.models.vit import REMAT_POLICIES

MOST = 2**31 - 1  # the largest int32, the integers of the device
COUNT = Whole(1, MOST)
OR_NEVER = Whole(0, MOST)
SHARE = Number(0, 1)
STRENGTH = Number(0, 100)
WEIGHT = Number(1e-6, 1e4, also=(0,))  # smaller gradients vanish beside Adam's epsilon
AXIS = Whole(1, 2**20, also=(-1,))


def are_blocks(value: Any) -> bool:
    """Return whether a value is a sequence of dicts."""
    return isinstance(value, tuple | list) and all(isinstance(part, dict) for part in value)


def _is_scale(value: Any) -> bool:
    """Return whether a value is a (pattern, factor) pair."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        return False
    return Text().accepts(value[0]) and Number(0, 1000).accepts(value[1])


SCALES = Several(
    Special("(pattern, factor) pairs, each factor at least 0, at most 1,000", _is_scale, tuple)
)

# The meaning of an optional key without a default states what happens if it is not set.
DATA: Table = {
    "source": Key("folder", Choice(SOURCES), "The kind of data set."),
    "path": Key(None, Text(), "The folder or the pattern of the files."),
    "name": Key(None, Text(), "The name of a TFDS data set."),
    "split": Key("train", Text(), "The split to train on."),
    "image_size": Key(
        None, SIZE, "Size of the views; it has to be set for pretraining.", unit="pixels",
        required=True,
    ),
    "channels": Key(3, Whole(1, 8), "Channels of an image."),
    "shapes_count": Key(8192, COUNT, "Training images of the source `shapes`.", unit="images"),
    "image_key": Key("image/encoded", Text(), "The feature of TFRecords with the encoded image."),
    "label_key": Key("image/class/label", Text(), "The feature of TFRecords with the label."),
    "mixture": Key(
        (),
        Special("a dict for each part: keys of this block to change, and `weight`", are_blocks,
                tuple),
        "The parts of the source `mixture`.",
    ),
    "index": Key(None, Text(), "The folder of the index; beside the data by default."),
    "streaming": Key(
        False, Switch(), "Whether to read shards from start to end, where there can be no index."
    ),
    "window": Key(4096, COUNT, "Streamed examples that are shuffled together."),
    "examples": Key(
        None, COUNT, "Approximate size of a streamed data set, from which epochs are counted."
    ),
    "exif_orientation": Key(
        False, Switch(), "Whether to turn photographs upright as their camera recorded it."
    ),
    "max_pixels": Key(
        50_000_000, COUNT, "The largest image; larger ones count as broken.", unit="pixels"
    ),
    "range": Key(
        None,
        Special(RANGE, is_range),
        "The values that become black and white in images of more than 8 bits. By default such "
        "an image has to fill 16 bits, else it counts as broken.",
    ),
    "skip_limit": Key(0.25, SHARE, "The share of broken images above which the run stops."),
    "cache_gb": Key(
        0.0, Number(0, 1e6), "Encoded images that a process keeps in memory.", unit="GB"
    ),
    "threads": Key(None, Whole(1, 4096), "Threads of the input pipeline; one a core by default."),
}  # fmt: skip

AUGMENT: Table = {
    "views": Key(2, Whole(1, 64), "Random views of each image."),
    "crop_area": Key(
        (0.2, 1.0), Several(Number(1e-4, 1), length=2, ascending=True),
        "The range of the share of an image that a view covers.",
    ),
    "crop_aspect": Key(
        (3 / 4, 4 / 3), Several(Number(0.01, 100), length=2, ascending=True),
        "The range of the ratio of width to height of a view.",
    ),
    "flip": Key(0.5, SHARE, "The probability of a horizontal flip."),
    "jitter": Key(0.8, SHARE, "The probability of color jitter."),
    "brightness": Key(0.4, STRENGTH, "Factors are drawn from [max(0, 1 - s), 1 + s]."),
    "contrast": Key(0.4, STRENGTH, "Likewise."),
    "saturation": Key(0.4, STRENGTH, "Likewise."),
    "hue": Key(0.1, Number(0, 0.5), "Shifts are drawn from [-s, s].", unit="color circles"),
    "greyscale": Key(0.2, SHARE, "The probability of a grayscale view."),
    "blur": Key(0.5, SHARE, "The probability of a Gaussian blur."),
    "blur_sigma": Key(
        (0.1, 2.0), Several(Number(0.01, 1000), length=2, ascending=True),
        "The range of the blur's standard deviation.", unit="pixels",
    ),
    "solarize": Key(0.0, SHARE, "The probability of inverting all values from 0.5 on."),
    "mean": Key(
        (0.485, 0.456, 0.406), Several(Number(-10, 10)),
        "The mean of each channel of images in [0, 1].",
    ),
    "std": Key(
        (0.229, 0.224, 0.225), Several(Number(1e-3, 10)),
        "The standard deviation of each channel of images in [0, 1].",
    ),
}  # fmt: skip

DTYPES = ("bfloat16", "float32", "float64")
WIDTH = Whole(4, 2**16, multiple=4)  # the 2-D position embedding needs a multiple of 4
DEPTH = Whole(1, 1024)
HEADS = Whole(1, 2**14)

MODEL: Table = {
    "size": Key("B", Choice(tuple(SIZES)), "The measures of the encoder."),
    "width": Key(None, WIDTH, "Replaces the width of `size`."),
    "depth": Key(None, DEPTH, "Replaces the depth of `size`.", unit="blocks"),
    "heads": Key(None, HEADS, "Replaces the attention heads of `size`."),
    "patch_size": Key(16, Whole(1, 2**15), "The side of a patch.", unit="pixels"),
    "mask_ratio": Key(0.5, Number(0, below=1), "The share of patches hidden from the encoder."),
    "decoder": {
        "width": Key(512, WIDTH, "Width of the decoder."),
        "depth": Key(8, DEPTH, "Depth of the decoder.", unit="blocks"),
        "heads": Key(16, HEADS, "Attention heads of the decoder."),
    },
    "projector": {
        "layers": Key(3, Whole(1, 64), "Linear layers of the projector."),
        "hidden": Key(4096, Whole(2, 2**20), "Width of its hidden layers."),
        "outputs": Key(
            128, Whole(2, 2**20), "Width of its output. One number has no direction to compare."
        ),
        "batch_norm": Key(True, Switch(), "Whether BatchNorm follows each of its hidden layers."),
        "final_norm": Key(
            False, Switch(),
            "Whether BatchNorm without bias follows its last layer, as in google-research/simclr.",
        ),
    },
    "dtype": Key(
        "bfloat16", Choice(DTYPES),
        "The type of the computation. Parameters and losses are float32.",
    ),
    "residual_dtype": Key(
        None, Choice(DTYPES),
        "The type of the sum to which each block adds; that of `dtype` by default.",
    ),
    "scan": Key(True, Switch(), "Whether to compile one block and loop over it."),
    "remat": Key(
        "none", Choice(tuple(REMAT_POLICIES)), "Activations that the backward pass recomputes."
    ),
}  # fmt: skip

OBJECTIVE: Table = {
    "contrastive": {
        "weight": Key(0.03, WEIGHT, "Weight of the contrastive loss."),
        "temperature": Key(0.1, Number(1e-3, 100), "Divides the similarities."),
        "pool": Key("patches", Choice(POOLS), "The tokens whose mean is projected."),
        "directions": Key(
            "mean",
            Choice(("mean", "sum")),
            "How the losses that take each view as the query are put together. The sum, as in "
            "google-research/simclr, is as many times the mean as there are views.",
        ),
        "supervised": Key(
            False, Switch(), "Whether images of one label are positives of each other."
        ),
        "block": Key(None, COUNT, "Keys compared at a time; as memory allows by default."),
    },
    "reconstruction": {
        "weight": Key(0.67, WEIGHT, "Weight of the reconstruction loss."),
        "normalize": Key(
            True,
            Switch(),
            "Whether the target of each patch is normalized by its own mean and deviation.",
        ),
    },
    "denoising": {"weight": Key(0.30, WEIGHT, "Weight of the denoising loss.")},
}

OPTIMIZER: Table = {
    "learning_rate": Key(
        2.5e-4, Number(1e-9, 10),
        "The peak learning rate for 256 images; it is scaled linearly to the batch.",
    ),
    "weight_decay": Key(0.05, Number(0, 1e6), "AdamW's weight decay."),
    "learning_rate_scale": Key(
        (), SCALES,
        "Factors of the learning rate, such as (('encoder/', 0.1),). The first pattern found in "
        "a parameter's path holds.",
    ),
    "freeze": Key((), Several(Text()), "Patterns of parameters that are not trained."),
    "warmup_share": Key(
        0.05, Number(0, below=1),
        "Length of the linear warm-up, as a share of the run, unless one of the next three is set.",
        optional=True, before=None,
    ),
    "warmup_steps": Key(None, OR_NEVER, "Length of the warm-up.", unit="steps"),
    "warmup_epochs": Key(None, Number(0, 1e9), "Length of the warm-up.", unit="epochs"),
    "warmup_examples": Key(None, Whole(0, 10**15), "Length of the warm-up.", unit="images"),
    "beta1": Key(0.9, Number(0, 0.99999), "Decay of the first moment."),
    "beta2": Key(0.95, Number(0, 0.99999), "Decay of the second moment."),
    "epsilon": Key(1e-8, Number(1e-16, 1), "Added to the root of the second moment."),
    "clip_norm": Key(
        None, Number(1e-6, 1e15),
        "Gradients of a larger global norm are scaled down to it; never by default.",
    ),
    "moment_dtype": Key(
        "float32", Choice(("float32", "bfloat16")), "The type of the first moment."
    ),
}  # fmt: skip

MESH: Table = {
    "data": Key(-1, AXIS, "Devices over which the batch is split; -1 is all that are left."),
    "fsdp": Key(1, AXIS, "Devices over which parameters, too, are split."),
    "tensor": Key(1, AXIS, "Devices over which matrix products are split."),
}

RECIPE: Table = {
    "seed": Key(0, Whole(0, MOST), "The seed of parameters, order, views, noise and masks."),
    "init_from": Key(
        None, Text(),
        "Weights of a new run: a run directory, an export, a folder of Hugging Face or timm, or "
        "a file: npz, safetensors, pth, pt, bin.",
    ),
    "batch_size": Key(
        4096, Whole(1, 2**24), "Global batch; each image is seen in every view.", unit="images"
    ),
    "total_steps": Key(None, COUNT, "Length of the run.", unit="steps"),
    "total_epochs": Key(None, Number(above=0, high=1e9), "Length of the run.", unit="epochs"),
    "total_examples": Key(None, Whole(1, 10**15), "Length of the run.", unit="images"),
    "log_every_steps": Key(50, COUNT, "The interval of log lines.", unit="steps"),
    "skipped_updates_limit": Key(
        20, OR_NEVER, "Updates in a row that are not finite, at which a run stops; 0 is never."
    ),
    "spike": {
        "deviations": Key(
            6.0, Number(0, 1e6),
            "A spike is a loss that stays so many running deviations above its running mean.",
        ),
        "steps": Key(10, OR_NEVER, "For so many steps in a row; 0 is never.", unit="steps"),
        "rewinds": Key(
            0, Whole(0, 10**6),
            "How often the run goes back to before a spike and skips the images since; then it "
            "stops.",
        ),
    },
    "check_replicas": Key(
        True, Switch(), "Whether to compare the replicas of the state before each checkpoint."
    ),
    "stuck_after_seconds": Key(
        1800.0, Number(1, 1e7, also=(0,)),
        "Without a step for so long, a run ends itself; 0 is never.",
        unit="seconds",
    ),
    "data": DATA,
    "augment": AUGMENT,
    "model": MODEL,
    "objective": OBJECTIVE,
    "accumulation": {
        "microbatches": Key(
            1, Whole(1, 2**24), "Parts in which a batch is computed that does not fit the memory."
        ),
        "negatives": Key(
            "batch", Choice(("batch", "microbatch")),
            "Where the contrastive loss finds negatives. Those of the microbatch are cheaper.",
        ),
    },
    "noise": {
        "sigma_max": Key(
            0.05, Number(1e-6, 1000, also=(0,)),
            "Each view's noise has a deviation up to it, in units of normalized pixels; 0 is none.",
        ),
        "embed_level": Key(True, Switch(), "Whether the decoder is given the noise level."),
        "level_scale": Key(
            None, Number(1e-3, 1e9),
            "Factor of the level before its sin-cos embedding; 1000 / sigma_max by default.",
        ),
        "level_tokens": Key(
            "all",
            Choice(LEVEL_TOKENS),
            "The patch tokens to which the decoder adds the noise level.",
            before="visible",
        ),
        "target": Key(
            "scaled", Choice(("scaled", "unit")),
            "The target of denoising: sigma * e (scaled), or e (unit).",
        ),
    },
    "optimizer": OPTIMIZER,
    "mesh": MESH,
    "checkpoint": {
        "every_steps": Key(
            1000, COUNT, "The interval of checkpoints; each probe and figure makes one, too.",
            unit="steps",
        ),
        "every_minutes": Key(
            30.0, Number(0.01, 1e6, also=(0,)),
            "Also a checkpoint after so long without one, which the next one replaces; 0 is never.",
            before=0.0, unit="minutes",
        ),
        "keep_last": Key(3, Whole(1, 10**6), "How many checkpoints are retained."),
        "keep_every_steps": Key(
            None, COUNT, "Checkpoints at these steps are retained forever.", unit="steps"
        ),
    },
    "probe": {
        "every_steps": Key(
            None, OR_NEVER, "The interval of the kNN probe; 0 is never.", unit="steps"
        ),
        "every_epochs": Key(None, Number(0, 1e9), "The interval of the probe.", unit="epochs"),
        "split": Key(
            "test", Text(),
            "The labelled split to classify. Where there is no `test`, `val` or `validation` "
            "takes its place.",
        ),
        "held_out": Key(
            0.05, Number(above=0, below=1),
            "The share of the images of data.split to classify where there is no other split.",
        ),
        "bank": Key(10000, COUNT, "Images of data.split among which neighbors are sought."),
        "queries": Key(5000, COUNT, "Images of probe.split to classify."),
        "k": Key(20, COUNT, "Neighbors that vote."),
        "temperature": Key(0.07, Number(1e-3, 1000), "Of the votes' weights."),
    },
    "figures": {
        "every_steps": Key(
            None, OR_NEVER, "The interval of pictures of reconstructions; 0 is never.",
            unit="steps",
        ),
        "images": Key(6, Whole(1, 1000), "Images of a picture."),
    },
}  # fmt: skip
