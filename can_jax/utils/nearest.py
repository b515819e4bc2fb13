"""Suggestions for an option that is mistyped, or has the name that another library uses."""

import difflib
from collections.abc import Collection, Iterable, Sequence

# The last parts of option names, the preferred first, and their names in timm, MAE and PyTorch
# Lightning.
CALLED: dict[tuple[str, ...], str] = {
    ("learning_rate", "learning_rates"): "lr blr base_lr learningrate",
    ("weight_decay", "weight_decays"): "wd decay",
    ("batch_size",): "bs bsz batch batch_size_per_gpu",
    ("total_epochs", "epochs"): "epoch epochs num_epochs max_epochs",
    ("total_steps",): "step steps num_steps max_steps iters iterations",
    ("warmup_share", "warmup_epochs"): "warmup warm_up",
    ("ema_decay",): "ema model_ema model_ema_decay",
    ("contrastive.temperature", "temperature"): "tau temp temperature",
    ("clip_norm",): "clip clip_grad grad_clip max_grad_norm",
    ("microbatches",): "accum accum_iter grad_accum accumulation_steps",
    ("image_size",): "img_size input_size resolution crop_size",
    ("model.dtype",): "precision amp fp16 bf16 fp32 half",
    ("model.size",): "arch architecture model",
    ("patch_size",): "patch",
    ("model.width",): "dim embed_dim hidden_size hidden_dim",
    ("model.depth",): "layers num_layers blocks",
    ("model.heads",): "num_heads",
    ("data.source",): "dataset data_set",
    ("data.path",): "data data_path data_dir root dataset_path",
    ("data.threads",): "workers num_workers num_threads",
    ("classify.optimizer", "optimizer.name"): "optim opt",
    ("workdir",): "output output_dir out outdir log_dir logdir save_dir",
    ("checkpoint", "init_from"): "checkpoint ckpt weights pretrained finetune",
    ("sigma_max",): "sigma noise_std",
    ("drop_path",): "drop_path_rate",
    ("label_smoothing",): "smoothing",
    ("config",): "recipe cfg",
}
OTHER_NAMES = {name: ends for ends, names in CALLED.items() for name in names.split()}
LIKE = 0.7  # the minimum similarity, from 0 to 1, at which a name counts as a misspelling


def nearest(
    name: str, options: Sequence[str], prefix: str = "", others: Collection[str] = ()
) -> str | None:
    """Return the option that a name most likely means, or None.

    Options that equal the name or a synonym come first, then options that contain all words of the
    name, then options spelled similarly. For a dotted name, such as ``optimizer.lr``, options in
    the block ``optimizer`` are preferred.

    Args:
        name: The name that the user gave, such as ``lr`` or ``config.optimizer.lr``.
        options: The names of the valid options.
        prefix: A prefix of options, such as ``config.``, which the name can omit.
        others: The names of blocks whose options come last, except for the block with which
            ``name`` begins.
    """
    name = name.replace("-", "_").lower().removeprefix(prefix)
    keys = {option.removeprefix(prefix): option for option in options}
    block, _, last = name.rpartition(".")
    ends = [*OTHER_NAMES.get(last, ()), last]
    if name in keys:
        return keys[name]

    def cost(key: str) -> tuple[float, bool, int, int, int]:
        own = key.rpartition(".")[0]
        elsewhere = 0.0
        if block and f".{block}." not in f".{key}":  # A block that is misspelled is similar.
            alike = difflib.SequenceMatcher(None, block, own).ratio()
            elsewhere = 1.0 if alike < LIKE else 1.0 - alike
        unlikely = key.split(".")[0] in others and not key.startswith(f"{block.split('.')[0]}.")
        rank = next((i for i, end in enumerate(ends) if _ends(key, end)), len(ends))
        return elsewhere, unlikely, rank, key.count("."), len(key)

    matching = [key for key in keys if any(_ends(key, end) for end in ends) or _contains(key, last)]
    if matching:
        return keys[min(matching, key=cost)]
    if last in OTHER_NAMES:
        return None
    inside = {key.rpartition(".")[2]: key for key in keys if f".{block}." in f".{key}"}
    if block and inside:
        return next((keys[inside[form]] for form in _alike(last, inside)), None)
    for form in _alike(name, keys):
        return keys[form]
    synonyms = [
        other for other, ends in OTHER_NAMES.items() for e in ends for k in keys if _ends(k, e)
    ]
    lasts = [key.rpartition(".")[2] for key in keys]
    return next(
        (nearest(form, options, prefix, others) for form in _alike(last, synonyms + lasts)), None
    )


def _ends(key: str, end: str) -> bool:
    """Return whether the last components of a dotted key are ``end``."""
    return key == end or key.endswith(f".{end}")


def _contains(key: str, name: str) -> bool:
    """Return whether the last component of a dotted key contains all words of a name."""
    return set(name.split("_")) <= set(key.rpartition(".")[2].split("_"))


def _alike(name: str, forms: Iterable[str]) -> list[str]:
    """Return a list with the form most similar to a name, or an empty list if none is similar."""
    return difflib.get_close_matches(name, sorted(set(forms)), n=1, cutoff=LIKE)
