"""CAN in NumPy, written from the formulas alone and sharing no line with the package.

Everything is analytic in the weights (no conjugate, no absolute value of a complex number), so a
gradient can be had by a complex step, exact to rounding: Im f(w + ih) / h.
"""

import json
from pathlib import Path

import numpy as np
from scipy.fft import dct, dctn, idctn
from scipy.linalg import fractional_matrix_power
from scipy.special import erf

LN_EPS = 1e-6


def sincos_2d(height: int, width: int, channels: int) -> np.ndarray:
    """MAE's table: first half from the column, second from the row; sines before cosines."""
    table = np.zeros((height * width, channels))
    quarter = channels // 4
    for row in range(height):
        for column in range(width):
            for i in range(quarter):
                frequency = 1.0 / 10000 ** (i / quarter)
                entry = table[row * width + column]
                entry[i], entry[quarter + i] = (
                    np.sin(column * frequency),
                    np.cos(column * frequency),
                )
                entry[2 * quarter + i] = np.sin(row * frequency)
                entry[3 * quarter + i] = np.cos(row * frequency)
    return table.astype(np.float32).astype(np.float64)


def sincos_level(sigma: np.ndarray, channels: int) -> np.ndarray:
    half = channels // 2
    angles = sigma[:, None] * 10000.0 ** (-np.arange(half) / half)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def layer_norm(x, weight, bias):
    mean = x.sum(-1, keepdims=True) / x.shape[-1]
    variance = ((x - mean) ** 2).sum(-1, keepdims=True) / x.shape[-1]
    return (x - mean) / np.sqrt(variance + LN_EPS) * weight + bias


def gelu(x):
    return 0.5 * x * (1 + erf(x / np.sqrt(2)))


def relu(x):
    return np.where(x.real > 0, x, 0)


def log_sum_exp(x):
    shift = x.real.max(-1, keepdims=True)
    return (np.log(np.exp(x - shift).sum(-1, keepdims=True)) + shift)[..., 0]


def linear(w, name, x):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def attention(w, name, x, heads):
    rows, tokens, width = x.shape
    qkv = linear(w, f"{name}.qkv", x).reshape(rows, tokens, 3, heads, width // heads)
    q, k, v = (qkv[:, :, i].transpose(0, 2, 1, 3) for i in range(3))
    scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(width // heads)
    weights = np.exp(scores - log_sum_exp(scores)[..., None])
    return linear(w, f"{name}.proj", (weights @ v).transpose(0, 2, 1, 3).reshape(x.shape))


def block(w, name, x, heads):
    x = x + attention(
        w, f"{name}.attn", layer_norm(x, w[f"{name}.norm1.weight"], w[f"{name}.norm1.bias"]), heads
    )
    y = layer_norm(x, w[f"{name}.norm2.weight"], w[f"{name}.norm2.bias"])
    return x + linear(w, f"{name}.mlp.fc2", gelu(linear(w, f"{name}.mlp.fc1", y)))


def patchify(images, size):
    rows, height, width, channels = images.shape
    out = []
    for top in range(0, height, size):
        for left in range(0, width, size):
            out.append(images[:, top : top + size, left : left + size].reshape(rows, -1))
    return np.stack(out, axis=1)


def info_nce(projection: np.ndarray, temperature: float) -> np.ndarray:
    """Rows ordered by view: row i and row i + n are one image's."""
    z = projection / np.sqrt((projection**2).sum(-1, keepdims=True))
    rows, n = len(z), len(z) // 2
    total = 0
    for i in range(rows):
        others = np.array([z[i] @ z[j] / temperature for j in range(rows) if j != i])
        total = total + log_sum_exp(others) - z[i] @ z[(i + n) % rows] / temperature
    return total / rows


def sup_con(projection: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    """L_out of the paper; ``labels`` is one a row."""
    z = projection / np.linalg.norm(projection, axis=-1, keepdims=True)
    total = 0.0
    for i in range(len(z)):
        others = [j for j in range(len(z)) if j != i]
        denominator = np.log(sum(np.exp(z[i] @ z[a] / temperature) for a in others))
        positives = [j for j in others if labels[j] == labels[i]]
        total += np.mean([denominator - z[i] @ z[p] / temperature for p in positives])
    return total / len(z)


def reconstruction(prediction, clean, mask, normalize=True):
    """Rows of patches; ``mask`` is 1 where hidden."""
    target = clean
    if normalize:
        mean = clean.mean(-1, keepdims=True)
        target = (clean - mean) / np.sqrt(clean.var(-1, ddof=1, keepdims=True) + 1e-6)
    errors = ((prediction - target) ** 2).sum(-1) / clean.shape[-1]
    return (errors * mask).sum() / mask.sum()


def denoising(prediction, noise, mask):
    errors = ((prediction - noise) ** 2).sum(-1) / noise.shape[-1]
    return (errors * (1 - mask)).sum() / (1 - mask).sum()


def whitening(patches: np.ndarray, floor: float) -> tuple[np.ndarray, np.ndarray]:
    """The mean of patches, one a row, and the inverse root of their covariance plus a floor."""
    covariance = np.cov(patches.T, bias=True) + floor * np.eye(patches.shape[1])
    return patches.mean(0), fractional_matrix_power(covariance, -0.5).real


def dct_scaling(size: int, channels: int, floor: float) -> np.ndarray:
    """The matrix that scales the DCT coefficients of a patch, as a map of its pixels."""
    models = [np.array([[0.95 ** abs(i - j) for j in range(size)] for i in range(size)])] * 2
    models.append(np.full((channels, channels), 0.93) + 0.07 * np.eye(channels))
    spectra = [np.diag(dct(dct(m, axis=0, norm="ortho"), axis=1, norm="ortho")) for m in models]
    variances = spectra[0][:, None, None] * spectra[1][:, None] * spectra[2]
    shape, count = variances.shape, variances.size
    pixels = np.eye(count).reshape(count, *shape)
    coefficients = dctn(pixels, axes=(1, 2, 3), norm="ortho") / np.sqrt(variances + floor)
    return idctn(coefficients, axes=(1, 2, 3), norm="ortho").reshape(count, count)


def forward(w: dict, meta: dict, inputs: dict) -> dict:
    """All outputs and losses of a reference file, by name."""
    size, views = meta["patch_size"], inputs["views"]
    rows = len(views)
    grid = (views.shape[1] // size, views.shape[2] // size)
    clean = patchify(views, size)
    noise = patchify(inputs["sigma"][:, None, None, None] * inputs["unit_noise"], size)
    unit = patchify(inputs["unit_noise"], size)
    rms = np.sqrt(meta["sigma_max"] ** 2 / 3)  # of sigma e, sigma uniform in [0, sigma_max]
    target = {"scaled": noise, "normalized": noise / rms, "unit": unit}[meta["noise_target"]]
    keep, every = meta["keep"], np.arange(rows)[:, None]
    visible = inputs["shuffle"][:, :keep]
    mask = np.ones(clean.shape[:2])
    mask[every, visible] = 0

    # A convolution with stride = kernel size is a product with each patch, channels first.
    kernel = w["patch_embed.proj.weight"].transpose(2, 3, 1, 0).reshape(clean.shape[-1], -1)
    x = (clean + noise)[every, visible]
    if meta["patch_embed"] != "linear":
        x = (x - inputs["patch_mean"]) @ inputs["patch_map"]
    x = x @ kernel + w["patch_embed.proj.bias"]
    x = x + sincos_2d(*grid, meta["width"])[visible]
    token = np.broadcast_to(w["cls_token"], (rows, 1, meta["width"]))
    x = np.concatenate([token, x], axis=1)
    for i in range(meta["depth"]):
        x = block(w, f"blocks.{i}", x, meta["heads"])
    latent = layer_norm(x, w["norm.weight"], w["norm.bias"])
    pooled = latent[:, 1:].sum(1) / keep

    projection = pooled
    layers = sorted({int(k.split(".")[1]) for k in w if k.startswith("projection_head")})
    for i in layers:
        projection = linear(w, f"projection_head.{i}", projection)
        projection = relu(projection) if i != layers[-1] else projection

    sinusoid = sincos_level(meta["sigma_scale"] * inputs["sigma"], meta["width"])
    level = linear(w, "noise_pe_mlp.2", relu(linear(w, "noise_pe_mlp.0", sinusoid)))

    of_all = meta["level_tokens"] == "all"
    shown = latent[:, 1:] if of_all else latent[:, 1:] + level[:, None]
    y = linear(w, "decoder_embed", np.concatenate([latent[:, :1], shown], axis=1))
    width = meta["decoder_width"]
    places = np.tile(w["mask_token"], (rows, clean.shape[1], 1)).astype(
        np.result_type(y, w["mask_token"])
    )
    places[every, visible] = y[:, 1:]
    if of_all:
        places = places + (level @ w["decoder_embed.weight"].T)[:, None]
    y = np.concatenate([y[:, :1], places + sincos_2d(*grid, width)], axis=1)
    for i in range(meta["decoder_depth"]):
        y = block(w, f"decoder_blocks.{i}", y, meta["decoder_heads"])
    y = layer_norm(y, w["decoder_norm.weight"], w["decoder_norm.bias"])
    prediction = linear(w, "decoder_pred", y)[:, 1:]
    if meta.get("noise_output"):
        of_noise = linear(w, "decoder_noise_pred", y)[:, 1:]
        prediction = mask[:, :, None] * prediction + (1 - mask[:, :, None]) * of_noise

    found = {
        "out/latent": latent, "out/pooled": pooled, "out/projection": projection,
        "out/noise_level_sinusoid": sinusoid, "out/noise_level_embedding": level,
        "out/mask": mask, "out/prediction": prediction,
        "loss/contrastive": info_nce(projection, meta["temperature"]),
        "loss/reconstruction": reconstruction(prediction, clean, mask, meta["normalize_targets"]),
        "loss/denoising": denoising(prediction, target, mask),
        "loss/denoising_unit_noise": denoising(prediction, unit, mask),
    }  # fmt: skip
    terms = (found[f"loss/{n}"] for n in ("contrastive", "reconstruction", "denoising"))
    found["loss/total"] = sum(k * t for k, t in zip(meta["weights"], terms, strict=True) if k)
    return found


def shapes_of(meta: dict) -> dict[str, tuple[int, ...]]:
    """Every weight of a network, by name."""
    pixels, size = meta["channels"], meta["patch_size"]
    shapes = {
        "cls_token": (1, 1, meta["width"]), "mask_token": (1, 1, meta["decoder_width"]),
        "patch_embed.proj.weight": (meta["width"], pixels, size, size),
        "patch_embed.proj.bias": (meta["width"],),
    }  # fmt: skip

    def add(name, outputs, inputs):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outputs, inputs), (outputs,)

    def norm(name, width):
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    for prefix, stem in (("", "blocks"), ("decoder_", "decoder_blocks")):
        width = meta[f"{prefix}width"]
        for i in range(meta[f"{prefix}depth"]):
            norm(f"{stem}.{i}.norm1", width)
            norm(f"{stem}.{i}.norm2", width)
            add(f"{stem}.{i}.attn.qkv", 3 * width, width)
            add(f"{stem}.{i}.attn.proj", width, width)
            add(f"{stem}.{i}.mlp.fc1", 4 * width, width)
            add(f"{stem}.{i}.mlp.fc2", width, 4 * width)
        norm(f"{prefix}norm", width)
    for i, outputs in ((0, meta["width"]), (2, 10)):
        add(f"projection_head.{i}", outputs, meta["width"])
        add(f"noise_pe_mlp.{i}", meta["width"], meta["width"])
    add("decoder_embed", meta["decoder_width"], meta["width"])
    add("decoder_pred", size * size * pixels, meta["decoder_width"])
    if meta.get("noise_output"):
        add("decoder_noise_pred", size * size * pixels, meta["decoder_width"])
    return shapes


META = {
    "patch_size": 2, "width": 8, "depth": 2, "heads": 2, "decoder_width": 4, "decoder_depth": 1,
    "decoder_heads": 1, "images": 3, "views": 2, "mask_ratio": 0.7, "keep": 3, "temperature": 0.2,
    "weights": [0.1, 0.6, 0.3], "sigma_max": 0.5, "sigma_scale": 3.0, "channels": 1,
    "level_tokens": "all", "normalize_targets": True, "noise_target": "scaled",
    "noise_output": False, "patch_embed": "linear",
}  # fmt: skip


def write_reference(
    path: Path, *, gradients: bool = True, height: int = 4, width: int = 10, **changes
) -> dict:
    """Write a reference file of a random tiny network on non-square images of one channel.

    ``changes`` are entries of its `META`.
    """
    rng = np.random.default_rng(0)
    meta, rows = META | changes, META["images"] * META["views"]
    weights = {k: 0.5 * rng.normal(size=s) for k, s in shapes_of(meta).items()}
    patches = (height // meta["patch_size"]) * (width // meta["patch_size"])
    assert meta["keep"] == int(patches * (1 - meta["mask_ratio"]))
    inputs = {
        "views": rng.normal(size=(rows, height, width, meta["channels"])),
        "sigma": rng.uniform(0, meta["sigma_max"], rows),
        "unit_noise": rng.normal(size=(rows, height, width, meta["channels"])),
        "shuffle": np.stack([rng.permutation(patches) for _ in range(rows)]),
    }
    pixels = meta["patch_size"] ** 2 * meta["channels"]
    if meta["patch_embed"] == "whitened":
        clean = patchify(inputs["views"], meta["patch_size"]).reshape(-1, pixels)
        inputs["patch_mean"], inputs["patch_map"] = whitening(clean, 0.01)
    elif meta["patch_embed"] == "dct":
        inputs["patch_mean"] = np.zeros(pixels)
        inputs["patch_map"] = dct_scaling(meta["patch_size"], meta["channels"], 0.01)
    content = {"meta": np.array(json.dumps(meta | {"image_size": height}))}
    content |= {f"in/{k}": v for k, v in inputs.items()}
    content |= {f"param/{k}": v for k, v in weights.items()}
    content |= forward(weights, meta, inputs)
    if gradients:
        for name, weight in weights.items():
            gradient = np.zeros_like(weight)
            for place in np.ndindex(weight.shape):
                stepped = weight.astype(complex)
                stepped[place] += 1e-30j
                total = forward(weights | {name: stepped}, meta, inputs)["loss/total"]
                gradient[place] = total.imag / 1e-30
            content[f"grad/{name}"] = gradient
    np.savez(path, **content)
    return content
