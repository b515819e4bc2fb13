"""The table of all keys that a recipe can set: default, allowed values, meaning and unit."""

import functools

from can_jax import objectives
from can_jax.config.image_settings import RANGE, SIZE, is_range
from can_jax.config.kinds import (
    AUTO,
    AUTO_OR_SWITCH,
    AXIS,
    COUNT,
    MOST,
    OPTIONS,
    OR_NEVER,
    SCALES,
    SHARE,
    STRENGTH,
    are_blocks,
)
from can_jax.data.sources.registry import SOURCES
from can_jax.models.backbones import BACKBONES, SIZES
from can_jax.models.can import LEVEL_TOKENS
from can_jax.models.ops import ATTENTION
from can_jax.models.patch_embed import PATCH_EMBEDS
from can_jax.models.vit import REMAT_POLICIES
from can_jax.utils.settings import Choice, Key, Number, Several, Special, Switch, Table, Text, Whole

# For an optional key without a default, the description states the behavior if it is not set.
DATA: Table = {
    "source": Key("folder", Choice(SOURCES), "The kind of data source."),
    "path": Key(None, Text(), "The folder or the glob pattern of the files."),
    "name": Key(None, Text(), "The name of a TFDS data set."),
    "split": Key("train", Text(), "The split to train on."),
    "image_size": Key(
        None, SIZE, "The size of the views; required for pretraining.",
        unit="pixels", required=True,
    ),
    "channels": Key(3, Whole(1, 8), "The number of channels of each image."),
    "shapes_count": Key(8192, COUNT, "The number of images of the source `shapes`.", unit="images"),
    "image_key": Key("image/encoded", Text(), "The TFRecord feature that holds the encoded image."),
    "label_key": Key("image/class/label", Text(), "The TFRecord feature that holds the label."),
    "mixture": Key(
        (),
        Special("a dict for each part: keys of this block to change, and `weight`", are_blocks,
                tuple),
        "The data sets of the source `mixture`.",
    ),
    "options": Key((), OPTIONS, "The options of a registered source, passed to its function."),
    "labels": Key(None, Text(), "A CSV or JSON-lines list of file names and labels, for a folder."),
    "index": Key(None, Text(), "The folder of the index; by default beside the data."),
    "streaming": Key(False, Switch(), "Whether to read shards sequentially, without an index."),
    "shards_at_once": Key(
        8, Whole(1, 1024), "The number of shards whose streamed examples are mixed.", before=1
    ),
    "window": Key(4096, COUNT, "The number of streamed examples in the shuffle buffer."),
    "examples": Key(
        None, COUNT, "The approximate size of a streamed data set, which defines its epochs."
    ),
    "exif_orientation": Key(
        False, Switch(), "Whether to rotate photographs upright by their EXIF orientation."
    ),
    "max_pixels": Key(
        50_000_000, COUNT, "The largest area of an image; larger images count as broken.",
        unit="pixels",
    ),
    "range": Key(
        None,
        Special(RANGE, is_range),
        "The values that become black and white in images of more than 8 bits. By default such "
        "images must use all 16 bits; other images count as broken.",
    ),
    "skip_limit": Key(0.25, SHARE, "The fraction of broken images above which the run stops."),
    "cache_gb": Key(
        0.0, Number(0, 1e6), "The memory of each process for a cache of encoded images.",
        unit="GB",
    ),
    "disk_cache": Key(None, Text(), "A cache folder for remote images, which hosts may share."),
    "disk_cache_gb": Key(100.0, Number(0, 1e6), "The size of `disk_cache`.", unit="GB"),
    "threads": Key(None, Whole(1, 4096), "Threads of the input pipeline; by default one per core."),
}  # fmt: skip

AUGMENT: Table = {
    "views": Key(2, Whole(1, 64), "The number of random views of each image."),
    "crop_area": Key(
        (0.2, 1.0), Several(Number(1e-4, 1), length=2, ascending=True),
        "The range of the fraction of the image area that a view covers.",
    ),
    "crop_aspect": Key(
        (3 / 4, 4 / 3), Several(Number(0.01, 100), length=2, ascending=True),
        "The range of the aspect ratio (width / height) of a view.",
    ),
    "flip": Key(0.5, SHARE, "The probability of a horizontal flip."),
    "jitter": Key(0.8, SHARE, "The probability of color jitter."),
    "brightness": Key(0.4, STRENGTH, "Strength s; factors are drawn from [max(0, 1 - s), 1 + s]."),
    "contrast": Key(0.4, STRENGTH, "Strength of the contrast factor, as for `brightness`."),
    "saturation": Key(0.4, STRENGTH, "Strength of the saturation factor, as for `brightness`."),
    "hue": Key(0.1, Number(0, 0.5), "Strength s; shifts are drawn from [-s, s].", unit="turns"),
    "grayscale": Key(0.2, SHARE, "The probability of conversion to grayscale."),
    "blur": Key(0.5, SHARE, "The probability of a Gaussian blur."),
    "blur_sigma": Key(
        (0.1, 2.0), Several(Number(0.01, 1000), length=2, ascending=True),
        "The range of the blur's standard deviation.", unit="pixels",
    ),
    "solarize": Key(0.0, SHARE, "The probability of inverting all pixel values of at least 0.5."),
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
NOW_ON = functools.partial(Key, True, Switch(), before=False, was_default=True)  # older: False

MODEL: Table = {
    "size": Key("B", Choice(tuple(SIZES)), "The preset of the encoder's width, depth and heads."),
    "width": Key(None, WIDTH, "The encoder's width; by default that of `size`."),
    "depth": Key(None, DEPTH, "The encoder's depth; by default that of `size`.", unit="blocks"),
    "heads": Key(None, HEADS, "The encoder's attention heads; by default those of `size`."),
    "backbone": Key("vit", Choice(BACKBONES), "The kind of encoder."),
    "backbone_options": Key(
        (), OPTIONS, "The options of the backbone, passed to its function."
    ),
    "patch_size": Key(16, Whole(1, 2**15), "The side length of a patch.", unit="pixels"),
    "patch_embed": Key(
        "auto", Choice(PATCH_EMBEDS),
        "The fixed map before the embedding: none (linear), whitening of the data's patches "
        "(whitened) or scaling of DCT coefficients (dct); auto whitens if a ViT predicts noise.",
        before="linear", was_default=True,
    ),
    "mask_ratio": Key(0.5, Number(0, below=1), "The fraction of masked patches."),
    "decoder": {
        "width": Key(512, WIDTH, "The decoder's width."),
        "depth": Key(8, DEPTH, "The decoder's depth.", unit="blocks"),
        "heads": Key(16, HEADS, "The decoder's attention heads."),
        "noise_output": NOW_ON("Whether a separate layer, zero at the start, predicts the noise."),
        "zero_output": NOW_ON("Whether the output layer of pixels starts at zero."),
    },
    "projector": {
        "layers": Key(3, Whole(1, 64), "The number of the projector's linear layers."),
        "hidden": Key(4096, Whole(2, 2**20), "The width of the projector's hidden layers."),
        "outputs": Key(
            128, Whole(2, 2**20), "The width of the projector's output, the embedding."
        ),
        "batch_norm": Key(True, Switch(), "Whether BatchNorm follows each hidden layer."),
        "final_norm": Key(
            False, Switch(),
            "Whether BatchNorm without bias follows the last layer, as in google-research/simclr.",
        ),
    },
    "dtype": Key(
        "bfloat16", Choice(DTYPES),
        "The type of activations and matrix products; parameters and losses are float32.",
    ),
    "residual_dtype": Key(
        None, Choice(DTYPES),
        "The type of the residual stream and the LayerNorms; by default `model.dtype`.",
    ),
    "scan": Key(
        AUTO, AUTO_OR_SWITCH,
        "Whether to compile one block and loop over it, for short compile times. `auto` is True on "
        "CPUs, and False on accelerators, where a loop copies parameters and activations.",
    ),
    "attention": Key(
        AUTO, Choice(ATTENTION),
        "The implementation of attention on GPUs. `cudnn` is NVIDIA's fused kernel, which `auto` "
        "selects from Ampere on, for 16-bit types; `xla` is compiled from plain operations.",
    ),
    "remat": Key(
        "none", Choice(tuple(REMAT_POLICIES)),
        "The rematerialization policy: which activations the backward pass recomputes.",
    ),
}  # fmt: skip

OPTIMIZER: Table = {
    "name": Key(
        "adamw", Text(), "The optimizer: adamw, or another one of optax or of a module."
    ),
    "options": Key(
        (), OPTIONS, "Further arguments of the optimizer, by parameter name."
    ),
    "learning_rate": Key(
        2.5e-4, Number(1e-9, 10),
        "The peak learning rate for a batch of 256; it scales linearly with the batch size.",
    ),
    "weight_decay": Key(0.05, Number(0, 1e6), "The weight decay, which applies to matrices only."),
    "learning_rate_scale": Key(
        (), SCALES,
        "Factors of the learning rate, such as (('encoder/', 0.1),). The first pattern that occurs "
        "in a parameter's path applies.",
    ),
    "freeze": Key((), Several(Text()), "Patterns of the paths of parameters that are not trained."),
    "warmup_share": Key(
        0.05, Number(0, below=1),
        "The length of the linear warm-up as a fraction of the run. Only one warmup_* can be set.",
        optional=True, before=None,
    ),
    "warmup_steps": Key(None, OR_NEVER, "The length of the warm-up.", unit="steps"),
    "warmup_epochs": Key(None, Number(0, 1e9), "The length of the warm-up.", unit="epochs"),
    "warmup_examples": Key(None, Whole(0, 10**15), "The length of the warm-up.", unit="images"),
    "beta1": Key(0.9, Number(0, 0.99999), "The decay rate of the first moment."),
    "beta2": Key(0.95, Number(0, 0.99999), "The decay rate of the second moment."),
    "epsilon": Key(1e-8, Number(1e-16, 1), "The constant added to the root of the second moment."),
    "clip_norm": Key(
        None, Number(1e-6, 1e15),
        "The global norm to which gradients are clipped; by default they are not clipped.",
    ),
    "moment_dtype": Key(
        "float32", Choice(("float32", "bfloat16")), "The type of the first moment."
    ),
    "ema_decay": Key(
        0.0, Number(0, below=1),
        "The decay rate of a moving average of all parameters, which the probe, evaluations and "
        "exports then read; 0 disables it.",
    ),
}  # fmt: skip

MESH: Table = {
    "data": Key(-1, AXIS, "Devices over which the batch is split; -1 means all remaining devices."),
    "fsdp": Key(1, AXIS, "Devices over which the batch and the parameters are split."),
    "tensor": Key(1, AXIS, "Devices over which each matrix product is split (tensor parallelism)."),
    "shard_state": Key(
        AUTO,
        AUTO_OR_SWITCH,
        "Whether parameters and optimizer state are split over `data`, too (ZeRO). A step gathers "
        "the parameters once, in the type of computation. `auto` is True on accelerators.",
    ),
}

RECIPE: Table = {
    "seed": Key(
        0, Whole(0, MOST), "The random seed of parameters, data order, views, noise and masks."
    ),
    "init_from": Key(
        None, Text(),
        "The initial weights of a new run: a run directory, an export, a Hugging Face or timm "
        "folder, or an npz, safetensors, pth, pt or bin file.",
    ),
    "batch_size": Key(
        4096, Whole(1, 2**24), "The global batch size; a step sees all views of each image.",
        unit="images",
    ),
    "total_steps": Key(None, COUNT, "The length of the run.", unit="steps"),
    "total_epochs": Key(None, Number(above=0, high=1e9), "The length of the run.", unit="epochs"),
    "total_examples": Key(None, Whole(1, 10**15), "The length of the run.", unit="images"),
    "total_minutes": Key(
        None, Number(above=0, high=1e7),
        "The length of the run as a time, over all its starts. The learning rate follows the time, "
        "so such a run cannot be reproduced bit for bit.",
        unit="minutes",
    ),
    "log_every_steps": Key(50, COUNT, "The interval of log lines.", unit="steps"),
    "trackers": Key(
        ("tensorboard",), Several(Text()),
        "Trackers besides metrics.jsonl: tensorboard, wandb, mlflow, aim, or a registered one.",
    ),
    "skipped_updates_limit": Key(
        20, OR_NEVER,
        "The number of consecutive non-finite updates at which the run stops; 0 disables this.",
    ),
    "spike": {
        "deviations": Key(
            6.0, Number(0, 1e6),
            "The threshold of a loss spike, in running standard deviations above the running mean.",
        ),
        "steps": Key(
            10, OR_NEVER, "The consecutive steps above the threshold of a spike; 0 disables this.",
            unit="steps",
        ),
        "rewinds": Key(
            0, Whole(0, 10**6),
            "How many times the run rewinds to a checkpoint before a spike and skips the images "
            "since, before it stops.",
        ),
    },
    "check_replicas": Key(
        True, Switch(), "Whether to compare the replicas of the state before each checkpoint."
    ),
    "stuck_after_seconds": Key(
        1800.0, Number(1, 1e7, also=(0,)),
        "The time without a completed step after which the run aborts; 0 disables this.",
        unit="seconds",
    ),
    "data": DATA,
    "augment": AUGMENT,
    "model": MODEL,
    "objective": objectives.Blocks(),
    "accumulation": {
        "microbatches": Key(
            1, Whole(1, 2**24), "The number of microbatches over which gradients are accumulated."
        ),
        "negatives": Key(
            "batch", Choice(("batch", "microbatch")),
            "The source of the contrastive loss's negatives; `microbatch` is cheaper.",
        ),
    },
    "noise": {
        "sigma_max": Key(
            0.05, Number(1e-6, 1000, also=(0,)),
            "The largest standard deviation of the noise, in normalized pixels; 0 disables noise.",
        ),
        "embed_level": Key(
            True, Switch(), "Whether the decoder is conditioned on the noise level."
        ),
        "level_scale": Key(
            None, Number(1e-3, 1e9),
            "The factor of the level before its sin-cos embedding; by default 1000 / sigma_max.",
        ),
        "level_tokens": Key(
            "all",
            Choice(LEVEL_TOKENS),
            "The patch tokens to which the decoder adds the embedding of the noise level.",
            before="visible",
        ),
        "target": Key(
            "normalized", Choice(("scaled", "normalized", "unit")),
            "The target: sigma * e (scaled), sigma * e over its rms (normalized), or e (unit).",
            before="scaled", was_default=True,
        ),
        "linear_bound": NOW_ON("Whether to log how much noise a linear denoiser explains."),
    },
    "optimizer": OPTIMIZER,
    "schedule": {
        "name": Key(
            "cosine", Text(),
            "The learning-rate schedule after the warm-up: cosine, linear, constant, another of "
            "optax, or one that is registered.",
        ),
        "options": Key((), OPTIONS, "Further arguments of the schedule."),
    },
    "mesh": MESH,
    "checkpoint": {
        "every_steps": Key(
            1000, COUNT, "The interval of checkpoints; each probe and figure saves one, too.",
            unit="steps",
        ),
        "every_minutes": Key(
            30.0, Number(0.01, 1e6, also=(0,)),
            "The time after which a temporary checkpoint is saved, which the next one replaces; "
            "0 disables this.",
            before=0.0, unit="minutes",
        ),
        "keep_last": Key(3, Whole(1, 10**6), "The number of latest checkpoints to retain."),
        "keep_every_steps": Key(
            None, COUNT, "Checkpoints at multiples of this step are never deleted.", unit="steps"
        ),
    },
    "probe": {
        "every_steps": Key(
            None, OR_NEVER, "The interval of the kNN probe; 0 disables it.", unit="steps"
        ),
        "every_epochs": Key(
            None, Number(0, 1e9), "The interval of the kNN probe; 0 disables it.", unit="epochs"
        ),
        "split": Key(
            "test", Text(),
            "The labeled split to classify; `val` or `validation` if `test` does not exist.",
        ),
        "held_out": Key(
            0.05, Number(above=0, below=1),
            "The fraction of data.split to classify if there is no other split.",
        ),
        "bank": Key(10000, COUNT, "The largest number of images of data.split in the bank."),
        "queries": Key(5000, COUNT, "The largest number of images of probe.split to classify."),
        "k": Key(20, COUNT, "The number of neighbors that vote."),
        "temperature": Key(0.07, Number(1e-3, 1000), "The softmax temperature of the votes."),
    },
    "figures": {
        "every_steps": Key(
            None, OR_NEVER, "The interval of figures of reconstructions; 0 disables them.",
            unit="steps",
        ),
        "images": Key(6, Whole(1, 1000), "The number of images in a figure."),
    },
}  # fmt: skip
