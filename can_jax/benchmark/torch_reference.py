"""CAN in idiomatic PyTorch: a baseline for speed, and a reference for numerical tests.

Parameters have the names and layouts of the published MAE, so that `can_jax.weights` can read a
saved state dict. The model uses `F.scaled_dot_product_attention` and a fused AdamW.
`torch.compile` and autocast to bfloat16 are optional.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Sizes(NamedTuple):
    """The layer sizes of the encoder, decoder and projector. ``projector`` holds the output width
    of each projector layer."""

    width: int
    depth: int
    heads: int
    decoder_width: int
    decoder_depth: int
    decoder_heads: int
    patch_size: int
    channels: int
    grid: tuple[int, int]
    projector: tuple[int, ...]
    batch_norm: bool


class Settings(NamedTuple):
    """The settings of the losses and the noise."""

    visible: int
    sigma_max: float
    level_scale: float
    level_tokens: str  # all | visible
    normalize: bool  # Normalize reconstruction targets by patch.
    temperature: float
    weights: tuple[float, float, float]  # contrastive, reconstruction, denoising


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        rows, tokens, width = x.shape
        qkv = self.qkv(x).reshape(rows, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).reshape(rows, tokens, width))


class Mlp(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """MAE's patch convolution, applied as a linear layer to extracted patches."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        patch = sizes.patch_size
        self.proj = nn.Conv2d(sizes.channels, sizes.width, patch, patch)

    def forward(self, patches: Tensor) -> Tensor:
        weight = self.proj.weight.permute(0, 2, 3, 1).flatten(1)
        return F.linear(patches, weight, self.proj.bias)


def sincos(grid: tuple[int, int], width: int) -> Tensor:
    """Return MAE's fixed position embeddings, of shape (1, 1 + patches, width).

    The embedding of the class token is zero.
    """
    frequencies = 10000 ** -(np.arange(width // 4) / (width // 4))
    rows, columns = np.meshgrid(*(np.arange(n) for n in grid), indexing="ij")
    halves = []
    for position in (columns, rows):
        angles = position.reshape(-1, 1) * frequencies
        halves += [np.sin(angles), np.cos(angles)]
    table = np.concatenate(halves, axis=1)
    return torch.tensor(np.concatenate([np.zeros((1, width)), table])[None], dtype=torch.float32)


def sincos_level(level: Tensor, width: int) -> Tensor:
    """Return the sinusoidal embeddings of noise levels, of shape (rows, width)."""
    half = width // 2
    frequencies = torch.exp(
        -math.log(10000) / half * torch.arange(half, device=level.device, dtype=level.dtype)
    )
    angles = level[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def patchify(images: Tensor, patch: int) -> Tensor:
    """Split images (rows, height, width, channels) into patches (rows, patches, pixels)."""
    rows, height, width, channels = images.shape
    cut = images.reshape(rows, height // patch, patch, width // patch, patch, channels)
    return cut.permute(0, 1, 3, 2, 4, 5).reshape(rows, -1, patch * patch * channels)


def full(x: Tensor) -> Tensor:
    """Convert a bfloat16 tensor to float32, in which losses are computed; leave float64
    unchanged."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def taken(x: Tensor, index: Tensor) -> Tensor:
    """Return, for each row of ``x``, the tokens at the indices in the same row of ``index``."""
    return torch.gather(x, 1, index[:, :, None].expand(-1, -1, x.shape[2]))


class CAN(nn.Module):
    """The encoder, projector, noise-level embedding and decoder of CAN.

    A batch holds the first views of all images, followed by the second views.
    """

    def __init__(self, sizes: Sizes, settings: Settings):
        super().__init__()
        width, small = sizes.width, sizes.decoder_width
        self.sizes, self.settings = sizes, settings
        self.patch_embed = PatchEmbed(sizes)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList(Block(width, sizes.heads) for _ in range(sizes.depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        layers: list[nn.Module] = []
        inputs = width
        for i, outputs in enumerate(sizes.projector):
            layers.append(nn.Linear(inputs, outputs))
            if i + 1 < len(sizes.projector):
                layers += [nn.BatchNorm1d(outputs)] if sizes.batch_norm else []
                layers.append(nn.ReLU())
            inputs = outputs
        self.projection_head = nn.Sequential(*layers)
        self.noise_pe_mlp = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)
        )
        self.decoder_embed = nn.Linear(width, small)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, small))
        self.decoder_blocks = nn.ModuleList(
            Block(small, sizes.decoder_heads) for _ in range(sizes.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(small, eps=1e-6)
        self.decoder_pred = nn.Linear(small, sizes.patch_size**2 * sizes.channels)
        self.register_buffer("pos_embed", sincos(sizes.grid, width))
        self.register_buffer("decoder_pos_embed", sincos(sizes.grid, small))

    def encode(self, patches: Tensor, indices: Tensor) -> Tensor:
        """Return the encoder's tokens, the class token first.

        Args:
            patches: The pixels of the visible patches, (rows, visible, pixels).
            indices: The position of each visible patch in the grid, (rows, visible).
        """
        positions = self.pos_embed[0, 1:][indices]
        x = self.patch_embed(patches) + positions
        x = torch.cat([self.cls_token.expand(len(x), -1, -1).to(x.dtype), x], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def decode(self, latent: Tensor, level: Tensor, shuffle: Tensor) -> Tensor:
        """Return the predicted pixels of every patch, (rows, patches, pixels)."""
        of_all = self.settings.level_tokens == "all"
        if not of_all:
            latent = torch.cat(
                [latent[:, :1], latent[:, 1:] + level[:, None].to(latent.dtype)], dim=1
            )
        x = self.decoder_embed(latent)
        hidden = shuffle.shape[1] + 1 - x.shape[1]
        masks = self.mask_token.expand(len(x), hidden, -1).to(x.dtype)
        placed = taken(torch.cat([x[:, 1:], masks], dim=1), shuffle.argsort(dim=1))
        if of_all:
            placed = placed + F.linear(level, self.decoder_embed.weight)[:, None]
        x = torch.cat([x[:, :1], placed], dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x))[:, 1:]

    def forward(
        self, clean: Tensor, sigma: Tensor, unit_noise: Tensor, shuffle: Tensor
    ) -> dict[str, Tensor]:
        """Return the losses, the encoder's tokens, the projections and the predictions.

        Args:
            clean, unit_noise: The noise-free patches, and standard normal noise of the same shape
                (rows, patches, pixels).
            sigma: The standard deviation of the noise of each row, (rows,).
            shuffle: A permutation of the patch indices, (rows, patches), whose first
                ``settings.visible`` entries are the visible patches.
        """
        settings = self.settings
        noise = sigma[:, None, None] * unit_noise
        shown = shuffle[:, : settings.visible]
        latent = self.encode(taken(clean, shown) + taken(noise, shown), shown)
        pooled = full(latent[:, 1:]).mean(dim=1)
        projection = self.projection_head(pooled)
        sinusoid = sincos_level(sigma * settings.level_scale, self.sizes.width)
        level = self.noise_pe_mlp(sinusoid)
        prediction = full(self.decode(latent, level, shuffle))
        hidden = torch.ones(shuffle.shape, device=shuffle.device).scatter(1, shown, 0.0)
        target = clean
        if settings.normalize:
            mean, variance = clean.mean(-1, keepdim=True), clean.var(-1, keepdim=True)
            target = (clean - mean) / (variance + 1e-6).sqrt()
        error = (prediction - target).square().mean(-1)
        noise_error = (prediction - noise).square().mean(-1)
        losses = {
            "contrastive": info_nce(full(projection), settings.temperature),
            "reconstruction": (error * hidden).sum() / hidden.sum(),
            "denoising": (noise_error * (1 - hidden)).sum() / (1 - hidden).sum(),
        }
        weighted = zip(settings.weights, losses.values(), strict=True)
        return losses | {
            "total": sum(weight * loss for weight, loss in weighted),
            "latent": latent,
            "projection": projection,
            "prediction": prediction,
        }


def info_nce(projection: Tensor, temperature: float) -> Tensor:
    """Return the InfoNCE loss, averaged over all rows.

    The positive example of a row is the other view of the same image, in the other half of the
    batch.
    """
    unit = F.normalize(projection, dim=1)
    logits = unit @ unit.T / temperature
    logits.fill_diagonal_(-torch.inf)
    images = len(unit) // 2
    positive = (torch.arange(2 * images, device=unit.device) + images) % (2 * images)
    return F.cross_entropy(logits, positive)


class Trainer:
    """A train step on uint8 images: normalization, noise, masks, losses, gradients and AdamW.

    Args:
        network: The CAN network, already on its device.
        mean, std: The mean and standard deviation of each channel, for pixels between 0 and 1.
        learning_rate, weight_decay: The learning rate and weight decay of AdamW.
        bfloat16: Whether to use autocast to bfloat16 for the forward pass.
        compiled: Whether to compile the forward pass and the losses with `torch.compile`.
    """

    def __init__(
        self,
        network: CAN,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        learning_rate: float,
        weight_decay: float,
        *,
        bfloat16: bool,
        compiled: bool,
    ):
        self.network, self.bfloat16 = network, bfloat16
        self.device = network.cls_token.device
        self.mean, self.std = (torch.tensor(x, device=self.device) for x in (mean, std))
        matrices = [p for p in network.parameters() if p.ndim > 1 and 1 not in p.shape[:1]]
        chosen = {id(p) for p in matrices}
        others = [p for p in network.parameters() if id(p) not in chosen]
        groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others}]
        self.optimizer = torch.optim.AdamW(
            groups, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
        )
        self.losses: Any = torch.compile(self._losses) if compiled else self._losses

    def _losses(self, views: Tensor) -> Tensor:
        sizes, settings = self.network.sizes, self.network.settings
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            clean = patchify((views / 255 - self.mean) / self.std, sizes.patch_size)
            sigma = settings.sigma_max * torch.rand(len(clean), device=self.device)
            noise = torch.randn_like(clean)
            shuffle = torch.rand(clean.shape[:2], device=self.device).argsort(dim=1)
            return self.network(clean, sigma, noise, shuffle)["total"]

    def step(self, views: Tensor) -> Tensor:
        """Apply one optimizer update, and return the loss.

        Args:
            views: The uint8 images, (rows, height, width, channels): the first views of all images,
                followed by the second views.
        """
        loss = self.losses(views)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss
