"""The table of all keys that a recipe can set, with their defaults, allowed values, meanings and
units."""

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
    "source": Key("folder", Choice(SOURCES), "The type of the data source, such as `folder`."),
    "path": Key(None, Text(),
        "The path or URL of the data: a folder, or a pattern that matches shards."),
    "name": Key(None, Text(), "The name of the data set, for the source `tfds`."),
    "split": Key("train", Text(), "The name of the split to train on."),
    "image_size": Key(
        None, SIZE,
        "The size of a view: the side of a square, or (height, width); required for pretraining.",
        unit="pixels", required=True,
    ),
    "channels": Key(3, Whole(1, 8), "The number of channels to which images are decoded."),
    "shapes_count": Key(8192, COUNT, "The number of images of the source `shapes`.", unit="images"),
    "image_key": Key("image/encoded", Text(), "The TFRecord feature that holds the encoded image."),
    "label_key": Key("image/class/label", Text(), "The TFRecord feature that holds the label."),
    "mixture": Key(
        (),
        Special("a dict for each part, with the keys of `data` to change and `weight`", are_blocks,
                tuple),
        "The parts of the source `mixture`, one dict for each data set.",
    ),
    "options": Key((), OPTIONS, "The options of a registered data source, as (name, value) pairs."),
    "labels": Key(None, Text(), "A CSV, TSV or JSON Lines list of labels, for an image folder."),
    "index": Key(None, Text(), "The folder of the split's index; by default in the data folder."),
    "streaming": Key(False, Switch(), "Whether to read shards sequentially, without an index."),
    "shards_at_once": Key(
        8, Whole(1, 1024), "The number of shards that a process streams concurrently.", before=1
    ),
    "window": Key(4096, COUNT, "The number of streamed examples that are shuffled together."),
    "examples": Key(
        None, COUNT, "The approximate number of images in an epoch of streamed data."
    ),
    "exif_orientation": Key(
        False, Switch(), "Whether to apply the EXIF orientation of images; that of TIFFs always is."
    ),
    "max_pixels": Key(
        50_000_000, COUNT, "The maximum area of an image; larger images count as undecodable.",
        unit="pixels",
    ),
    "range": Key(
        None,
        Special(RANGE, is_range),
        "The pixel values (low, high) that become black and white in images of more than 8 bits "
        "per channel. By default, a 16-bit image is decoded only if a value is at least 32768.",
    ),
    "skip_limit": Key(0.25, SHARE, "The fraction of undecodable images above which the run stops."),
    "cache_gb": Key(
        0.0, Number(0, 1e6), "The size of each process's cache of encoded images; 0 disables it.",
        unit="GB",
    ),
    "disk_cache": Key(None, Text(), "A folder that caches images; several hosts may share it."),
    "disk_cache_gb": Key(100.0, Number(0, 1e6), "The approximate size of `disk_cache`.", unit="GB"),
    "threads": Key(None, Whole(1, 4096), "The number of loader threads; by default one per core."),
}  # fmt: skip

AUGMENT: Table = {
    "views": Key(2, Whole(1, 64), "The number of random augmented views of each image in a step."),
    "crop_area": Key(
        (0.2, 1.0), Several(Number(1e-4, 1), length=2, ascending=True),
        "The range of the fraction of the image area that a random crop covers.",
    ),
    "crop_aspect": Key(
        (3 / 4, 4 / 3), Several(Number(0.01, 100), length=2, ascending=True),
        "The range of a random crop's aspect ratio (width / height), relative to the view's ratio.",
    ),
    "crop_interpolation": Key("bilinear", Choice(("bilinear", "bicubic")),
        "The interpolation of crops; `bicubic` is slower, and antialiased as in Pillow."),
    "crop_fit": Key("redraw", Choice(("redraw", "clamp")),
        "Whether to redraw a crop that exceeds the image (redraw), or to cut it to fit (clamp)."),
    "flip": Key(0.5, SHARE, "The probability of a horizontal flip."),
    "jitter": Key(0.8, SHARE, "The probability of color jitter."),
    "brightness": Key(
        0.4, STRENGTH, "The jitter strength s; brightness factors are in [max(0, 1 - s), 1 + s]."),
    "contrast": Key(0.4, STRENGTH, "The jitter strength of contrast, as for `brightness`."),
    "saturation": Key(0.4, STRENGTH, "The jitter strength of saturation, as for `brightness`."),
    "hue": Key(
        0.1, Number(0, 0.5), "The jitter strength s; hue shifts are in [-s, s].", unit="turns"
    ),
    "grayscale": Key(0.2, SHARE, "The probability of conversion to grayscale."),
    "blur": Key(0.5, SHARE, "The probability of a Gaussian blur."),
    "blur_sigma": Key(
        (0.1, 2.0), Several(Number(0.01, 1000), length=2, ascending=True),
        "The range of the standard deviation of the Gaussian blur.", unit="pixels",
    ),
    "solarize": Key(0.0, SHARE, "The probability of inverting all pixel values of at least 0.5."),
    "mean": Key(
        (0.485, 0.456, 0.406), Several(Number(-10, 10)),
        "The mean of each channel for normalization, with pixels in [0, 1].",
    ),
    "std": Key(
        (0.229, 0.224, 0.225), Several(Number(1e-3, 10)),
        "The standard deviation of each channel for normalization, with pixels in [0, 1].",
    ),
}  # fmt: skip

DTYPES = ("bfloat16", "float32", "float64")
WIDTH = Whole(4, 2**16, multiple=4)  # the 2-D position embedding needs a multiple of 4
DEPTH = Whole(1, 1024)
HEADS = Whole(1, 2**14)
NOW_ON = functools.partial(Key, True, Switch(), before=False, was_default=True)  # formerly off

MODEL: Table = {
    "size": Key("B", Choice(tuple(SIZES)), "The preset of the encoder's width, depth and heads."),
    "width": Key(None, WIDTH, "The width of the encoder; by default that of `size`."),
    "depth": Key(None, DEPTH, "The encoder's depth; by default that of `size`.", unit="blocks"),
    "heads": Key(None, HEADS, "The number of attention heads; by default that of `size`."),
    "backbone": Key("vit", Choice(BACKBONES), "The architecture of the encoder."),
    "backbone_options": Key(
        (), OPTIONS, "The options of the encoder architecture that `backbone` selects."
    ),
    "patch_size": Key(16, Whole(1, 2**15), "The side length of a square patch.", unit="pixels"),
    "patch_embed": Key(
        "auto", Choice(PATCH_EMBEDS),
        "The transform of patches before the learned, linear embedding: none for `linear`; "
        "`whitened` whitens the data's patches; `dct` scales their DCT coefficients. `auto` is "
        "`whitened` for a ViT that predicts noise, and `linear` otherwise.",
        before="linear", was_default=True,
    ),
    "mask_ratio": Key(0.5, Number(0, below=1), "The fraction of masked patches."),
    "decoder": {
        "width": Key(512, WIDTH, "The width of the decoder."),
        "depth": Key(8, DEPTH, "The number of blocks of the decoder.", unit="blocks"),
        "heads": Key(16, HEADS, "The number of attention heads of the decoder."),
        "noise_output": NOW_ON("Whether a separate zero-initialized layer predicts the noise."),
        "zero_output": NOW_ON("Whether the decoder's pixel layer is initialized with zeros."),
    },
    "projector": {
        "layers": Key(3, Whole(1, 64), "The number of linear layers of the projector."),
        "hidden": Key(4096, Whole(2, 2**20), "The width of the hidden layers of the projector."),
        "outputs": Key(128, Whole(2, 2**20), "The width of the output of the projector."),
        "batch_norm": Key(True, Switch(), "Whether BatchNorm follows each hidden projector layer."),
        "final_norm": Key(
            False, Switch(),
            "Whether BatchNorm without bias follows the last layer of the projector, as in "
            "google-research/simclr.",
        ),
    },
    "dtype": Key(
        "bfloat16", Choice(DTYPES),
        "The dtype of activations and matrix products; parameters and losses are at least float32.",
    ),
    "residual_dtype": Key(
        None, Choice(DTYPES),
        "The dtype of the residual stream and the LayerNorms; by default `model.dtype`.",
    ),
    "scan": Key(
        AUTO, AUTO_OR_SWITCH,
        "Whether to compile one transformer block and run it in a loop over the layers, to shorten "
        "compilation. `auto` is True on CPUs, and False on accelerators, where such a loop copies "
        "parameters and activations.",
    ),
    "attention": Key(
        AUTO, Choice(ATTENTION),
        "The implementation of attention on GPUs. `cudnn` is NVIDIA's fused kernel, which `auto` "
        "selects for bfloat16 on Ampere and later GPUs; `xla` uses plain matrix products.",
    ),
    "remat": Key(
        "none", Choice(tuple(REMAT_POLICIES)),
        "The rematerialization policy: which activations the backward pass recomputes.",
    ),
}  # fmt: skip

OPTIMIZER: Table = {
    "name": Key(
        "adamw", Text(), "The optimizer: adamw, another optimizer of optax, or a registered one."
    ),
    "options": Key((), OPTIONS, "Further arguments of the optimizer, as (name, value) pairs."),
    "learning_rate": Key(
        2.5e-4, Number(1e-9, 10),
        "The peak learning rate for a batch of 256. It is scaled in proportion to the batch size.",
    ),
    "weight_decay": Key(0.05, Number(0, 1e6), "The weight decay, which applies to kernels only."),
    "learning_rate_scale": Key(
        (), SCALES,
        "Learning-rate factors, as (regular expression, factor) pairs such as ('encoder/', 0.1). "
        "The first expression that matches part of a parameter's path applies.",
    ),
    "freeze": Key((), Several(Text()), "Regular expressions of the paths of parameters to freeze."),
    "warmup_share": Key(
        0.05, Number(0, below=1),
        "The length of the linear learning-rate warm-up as a fraction of the run. Only one of the "
        "keys warmup_* can be set.",
        optional=True, before=None,
    ),
    "warmup_steps": Key(None, OR_NEVER, "The length of the warm-up.", unit="steps"),
    "warmup_epochs": Key(None, Number(0, 1e9), "The length of the warm-up.", unit="epochs"),
    "warmup_examples": Key(None, Whole(0, 10**15), "The length of the warm-up.", unit="images"),
    "beta1": Key(0.9, Number(0, 0.99999), "The decay rate of the first moment in the optimizer."),
    "beta2": Key(0.95, Number(0, 0.99999), "The decay rate of the second moment in the optimizer."),
    "epsilon": Key(1e-8, Number(1e-16, 1), "The constant added to the root of the second moment."),
    "clip_norm": Key(
        None, Number(1e-6, 1e15),
        "The maximum global norm of gradients; by default, they are not clipped.",
    ),
    "moment_dtype": Key(
        "float32", Choice(("float32", "bfloat16")), "The dtype of the optimizer's first moment."
    ),
    "ema_decay": Key(
        0.0, Number(0, below=1),
        "The decay rate of an exponential moving average (EMA) of the parameters; 0 disables it. "
        "With an EMA, the probe, evaluations and exports use the averaged parameters.",
    ),
    "ema_warmup": Key(True, Switch(),
        "Whether to limit the EMA's decay rate to (1 + t) / (10 + t), where t counts the steps."),
}  # fmt: skip

MESH: Table = {
    "data": Key(-1, AXIS, "The number of devices to split the batch over; -1 means all remaining."),
    "fsdp": Key(1, AXIS, "The number of devices over which batch and parameters are split."),
    "tensor": Key(1, AXIS, "The number of devices over which matrix products are split."),
    "shard_state": Key(
        AUTO,
        AUTO_OR_SWITCH,
        "Whether parameters and optimizer state are also split over the mesh axis `data` (ZeRO). "
        "Each step then gathers the parameters in `model.dtype`. `auto` is True on accelerators.",
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
        4096, Whole(1, 2**24), "The number of images in a batch, summed over all devices.",
        unit="images",
    ),
    "total_steps": Key(None, COUNT, "The length of the run.", unit="steps"),
    "total_epochs": Key(None, Number(above=0, high=1e9), "The length of the run.", unit="epochs"),
    "total_examples": Key(None, Whole(1, 10**15), "The length of the run.", unit="images"),
    "total_minutes": Key(
        None, Number(above=0, high=1e7),
        "The training time of the run, summed over all starts. The learning rate depends on the "
        "measured speed, so such a run cannot be reproduced bit for bit.",
        unit="minutes",
    ),
    "log_every_steps": Key(50, COUNT, "The interval at which metrics are logged.", unit="steps"),
    "trackers": Key(
        ("tensorboard",), Several(Text()),
        "Trackers besides metrics.jsonl: tensorboard, wandb, mlflow, aim, or a registered one.",
    ),
    "skipped_updates_limit": Key(
        20, OR_NEVER,
        "The number of consecutive non-finite updates at which the run stops; 0 means never.",
    ),
    "spike": {
        "deviations": Key(
            6.0, Number(0, 1e6),
            "The threshold of a loss spike, in running standard deviations above the running mean.",
        ),
        "steps": Key(
            10, OR_NEVER,
            "The minimum length of a spike, in steps above the threshold; 0 disables detection.",
            unit="steps",
        ),
        "rewinds": Key(
            0, Whole(0, 10**6),
            "The maximum number of rollbacks. Each restores a checkpoint from before a spike, and "
            "skips the images up to the spike. A further spike stops the run. 0 only logs spikes.",
        ),
    },
    "check_replicas": Key(
        True, Switch(),
        "Whether to check before each checkpoint that replicated arrays are equal on all devices.",
    ),
    "stuck_after_seconds": Key(
        1800.0, Number(1, 1e7, also=(0,)),
        "The time without a completed step after which a run aborts; 0 means never. A notebook "
        "with a single process prints its thread stacks instead, and continues.",
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
            "Whether contrastive negatives come from the whole batch, or from one microbatch.",
        ),
    },
    "noise": {
        "sigma_max": Key(
            0.05, Number(1e-6, 1000, also=(0,)),
            "The largest standard deviation of the noise, in normalized pixels; 0 disables noise.",
        ),
        "embed_level": Key(
            True, Switch(), "Whether the decoder is conditioned on the noise's standard deviation."
        ),
        "level_scale": Key(
            None, Number(1e-3, 1e9),
            "The factor that scales the noise level before embedding; by default 1000 / sigma_max.",
        ),
        "level_tokens": Key(
            "all",
            Choice(LEVEL_TOKENS),
            "The patch tokens to which the decoder adds the embedding of the noise level.",
            before="visible",
        ),
        "target": Key(
            "normalized", Choice(("scaled", "normalized", "unit")),
            "The target of denoising for noise sigma * e, where e is standard normal: `scaled` is "
            "sigma * e, `normalized` sigma * e * sqrt(3) / sigma_max, and `unit` e.",
            before="scaled", was_default=True,
        ),
        "linear_bound": NOW_ON(
            "Whether to log the fraction of the noise that the best linear denoiser explains."
        ),
    },
    "optimizer": OPTIMIZER,
    "schedule": {
        "name": Key(
            "cosine", Text(),
            "The learning-rate schedule after the warm-up: cosine, linear, constant, another "
            "schedule of optax, or a registered one.",
        ),
        "options": Key((), OPTIONS, "Further arguments of the schedule, as (name, value) pairs."),
    },
    "mesh": MESH,
    "checkpoint": {
        "every_steps": Key(
            1000, COUNT, "The interval of checkpoints; one is also saved before a probe or figure.",
            unit="steps",
        ),
        "every_minutes": Key(
            30.0, Number(0.01, 1e6, also=(0,)),
            "The time without a checkpoint after which a temporary one is saved. The next "
            "checkpoint replaces it. 0 disables temporary checkpoints.",
            before=0.0, unit="minutes",
        ),
        "keep_last": Key(3, Whole(1, 10**6), "The number of latest checkpoints to retain."),
        "keep_every_steps": Key(
            None, COUNT, "Checkpoints of multiples of this number are saved, and never deleted.",
            unit="steps",
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
            "The split that the probe classifies; `val` replaces a missing or unlabeled `test`.",
        ),
        "held_out": Key(
            0.05, Number(above=0, below=1),
            "The fraction of data.split that the kNN probe holds out if no test split can be used.",
        ),
        "bank": Key(10000, COUNT, "The maximum number of training images that serve as neighbors."),
        "queries": Key(5000, COUNT, "The maximum number of images that the kNN probe classifies."),
        "k": Key(20, COUNT, "The number of nearest neighbors that vote on the class of an image."),
        "temperature": Key(0.07, Number(1e-3, 1000), "The softmax temperature of the kNN votes."),
    },
    "figures": {
        "every_steps": Key(
            None, OR_NEVER, "The interval of figures of reconstructions; 0 disables them.",
            unit="steps",
        ),
        "images": Key(6, Whole(1, 1000), "The number of images in a figure of reconstructions."),
    },
}  # fmt: skip
