"""The model to export: a run's parameters under MAE's names, and the facts required to use them."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from flax import nnx
from ml_collections import ConfigDict

from can_jax.checkpoint.identity import saved_steps
from can_jax.checkpoint.run_directory import find_checkpoint, newest_state, read_run
from can_jax.distributed.mesh import make_mesh
from can_jax.distributed.sharding_rules import named_leaves
from can_jax.encoders.pretrained import config_of_facts, from_arrays
from can_jax.evaluate.protocols.classifier import CARD
from can_jax.export.classifier import Head, open_head
from can_jax.models.backbones import encoder_size, require_vit
from can_jax.models.can import BUILDERS, CAN, grid_of
from can_jax.models.encoder import positions_with_class
from can_jax.models.patch_embed import fold
from can_jax.models.variant import variant_of
from can_jax.train.network import encoder_network
from can_jax.train.step import abstract_state, stored_step
from can_jax.utils.errors import UserError
from can_jax.weights.descriptions import is_run
from can_jax.weights.library_configs import FORMS
from can_jax.weights.read_weights import complete, read_weights
from can_jax.weights.torch_layout import to_torch

FIXED = "fixed 2-D sin-cos: first half of the width for the column; zero for the class token"
LEARNED = "learned; the class token already includes its own position"
NORMALIZED = "each patch normalized by its own mean and standard deviation"
PIXELS = "pixels of the normalized image"


@dataclasses.dataclass(frozen=True)
class Model:
    """A pretrained model with its arrays in host memory.

    Attributes:
        config: The configuration of the run, or an equivalent one for imported weights.
        step: The step of the checkpoint; None if unknown.
        parameters, batch_stats: The trees of parameters and BatchNorm statistics. For classifiers
            and imported weights, ``parameters`` and ``batch_stats`` hold only the encoder. A
            fixed linear map before the patch embedding is folded into the embedding.
        source: The run directory, or the path of the imported weights.
        imported: Whether the weights come without a run; their training is then unknown.
        head: The head of a fine-tuned classifier; None for other models.
    """

    config: ConfigDict
    step: int | None
    parameters: Any
    batch_stats: Any
    source: str
    imported: bool = False
    head: Head | None = None

    @property
    def run(self) -> epath.Path:
        """The run directory of a model that does not come from imported weights."""
        return epath.Path(self.source)

    @property
    def is_latest(self) -> bool:
        """Whether the weights are those of the run's latest checkpoint."""
        return self.step == max(saved_steps(self.run), default=None)

    @property
    def heads(self) -> int:
        """The number of attention heads of the encoder."""
        return encoder_size(self.config.model).heads

    def encoder(self) -> dict[str, np.ndarray]:
        """Return the encoder's arrays under MAE's names, including the position embeddings."""
        parameters = {"encoder": self.parameters["encoder"]}
        arrays = to_torch(parameters, self.config.model.patch_size)
        return {"pos_embed": self._positions(encoder_size(self.config.model).width), **arrays}

    def autoencoder(self) -> dict[str, np.ndarray]:
        """Return the arrays of encoder and decoder under MAE's names.

        MAE's decoder predicts pixels only, so an output layer for the noise is omitted. MAE's
        decoder has no input for the noise level, so the level is fixed at zero. If the noise-level
        embedding is added to all patches, it is folded into the position embeddings. If the
        noise-level embedding is added only to visible patches, it is folded into the bias of
        ``decoder_embed``. The class token also receives this bias, so the added term is subtracted
        from the position embedding of the class token.

        Raises:
            UserError: The run has no decoder that predicts pixels.
        """
        if "predict" not in self.parameters.get("decoder", {}):
            raise UserError(
                f"{self.source} has no decoder that predicts pixels: set --contents=encoder"
            )
        arrays = to_torch(self._trees("decoder"), self.config.model.patch_size)
        positions = self._positions(self.config.model.decoder.width)
        if "noise_level" in self.parameters:
            added = arrays["decoder_embed.weight"] @ self._no_noise()
            if self.config.noise.level_tokens == "all":
                positions[0, 1:] += added
            else:
                arrays["decoder_embed.bias"] = arrays["decoder_embed.bias"] + added
                positions[0, 0] -= added
        return {**self.encoder(), **arrays, "decoder_pos_embed": positions}

    def everything(self) -> dict[str, np.ndarray]:
        """Return all parameters and BatchNorm statistics under can_jax's own names."""
        trees = (("", self.parameters), ("batch_stats/", self.batch_stats))
        return {
            prefix + name: np.asarray(leaf)
            for prefix, tree in trees
            for name, leaf in named_leaves(tree).items()
        }

    def facts(self) -> dict[str, Any]:
        """Return the facts required to use the weights, as stored in the manifest."""
        config, size = self.config, encoder_size(self.config.model)
        variant = variant_of(config.model)
        return {
            **dataclasses.asdict(size),
            "mlp_width": 4 * size.width,
            "patch_size": config.model.patch_size,
            "image_size": list(config.data.image_size),
            "channels": config.data.channels,
            "mean": list(config.augment.mean),
            "std": list(config.augment.std),
            "pooling": self.head.pool if self.head else config.objective.contrastive.pool,
            **({} if self.imported or self.head else self._of_pretraining()),
            "layer_norm_eps": variant.epsilon,
            "gelu": FORMS[variant.gelu],
            "positions": LEARNED if variant.positions == "learned" else FIXED,
            "options": dict(config.model.backbone_options),
            "step": self.step,
            "source": epath.Path(self.source).name,  # Its folder is of no use to others.
            **({"classes": list(self.head.names)} if self.head else {}),
        }

    def _of_pretraining(self) -> dict[str, Any]:
        """Return the mask ratio of the pretraining, and the form of the reconstruction targets."""
        normalize = self.config.objective.reconstruction.normalize
        return {
            "mask_ratio": self.config.model.mask_ratio,
            "patch_targets": NORMALIZED if normalize else PIXELS,
        }

    def network(self, *modules: str) -> tuple[Any, Any]:
        """Return the graph and the parameters of the encoder in float32, for `nnx.merge`.

        Args:
            modules: The modules to include besides the encoder: ``decoder``, ``noise_level``.
        """
        config = self.config.copy_and_resolve_references()
        with config.unlocked():
            config.model.update(dtype="float32", remat="none", patch_embed="linear")
            config.model.decoder.noise_output = False
        heads = {name: BUILDERS[name] for name in modules}
        network = nnx.eval_shape(lambda: CAN(config, heads, nnx.Rngs(0)))
        return nnx.graphdef(network), self._trees("encoder", *modules)

    def _trees(self, *modules: str) -> dict[str, Any]:
        """Return the parameters of some modules, without the decoder's noise output layer."""
        return {
            module: {k: v for k, v in self.parameters[module].items() if k != "predict_noise"}
            for module in modules
        }

    def _no_noise(self) -> np.ndarray:
        """Return the embedding (width,) of the noise level zero."""
        network = nnx.merge(*self.network("noise_level"), {}, copy=True)
        with jax.default_matmul_precision("highest"):
            return np.asarray(network.noise_level(jnp.zeros(1)))[0]

    def _positions(self, width: int) -> np.ndarray:
        return positions_with_class(grid_of(self.config), width)[None]


class Given(NamedTuple):
    """Facts that a caller states about weights of another library; None for a fact that is not
    stated."""

    heads: Any = None
    mean: Any = None
    std: Any = None
    image_size: tuple[int, int] | None = None
    gelu: str | None = None


def open_model(checkpoint: str, given: Given = Given()) -> Model:  # noqa: B008, it is immutable
    """Restore the model to export.

    Args:
        checkpoint: A run directory, whose latest valid checkpoint is used; the path of one of its
            checkpoints; an export; or a folder or file of weights.
        given: Facts that the weight files do not state, such as the number of heads.

    Raises:
        UserError: The model cannot be read or is not a ViT, a required fact about it is unknown, or
            ``given`` states a fact although ``checkpoint`` is a run.
    """
    path, step = find_checkpoint(checkpoint, "--checkpoint=")
    if not is_run(path):
        return _open_weights(path, given)
    if given != Given():
        raise UserError(
            f"--checkpoint={checkpoint} is a run: leave out --heads, --gelu, --mean and "
            "--std, since its config.json states these settings"
        )
    if (path / CARD).exists():
        config, parameters, step, head = open_head(path, step)
        require_vit(config, "an export")
        return Model(config, step, parameters, {}, str(path), head=head)
    config = read_run(path)
    require_vit(config, "an export")
    mesh = make_mesh(ConfigDict({"data": -1, "fsdp": 1, "tensor": 1}), jax.local_devices()[:1])
    stored = stored_step(config)
    step, state = newest_state(path, abstract_state(stored, mesh), step=step)
    arrays = jax.device_get((stored.evaluated(state), state.batch_stats))
    parameters, statistics = fold(*arrays)
    return Model(config, step, parameters, statistics, str(path))


def _open_weights(path: epath.Path, given: Given) -> Model:
    """Read an encoder from an export, or from weights in the format of another library."""
    weights = complete(read_weights(path), *given)
    for line in weights.warnings:
        logging.warning("%s", line)
    config = config_of_facts(weights.facts)
    if pooling := weights.facts.get("pooling"):
        config.objective.contrastive.pool = pooling
    expected = nnx.to_pure_dict(nnx.state(encoder_network(config), nnx.Param))
    try:
        parameters = from_arrays(weights.arrays, expected)
    except UserError as error:
        raise UserError(f"{weights.place}: {error}") from error
    return Model(config, weights.facts.get("step"), parameters, {}, str(path), imported=True)
