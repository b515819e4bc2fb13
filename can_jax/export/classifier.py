"""The linear head of a fine-tuned classifier, for export to PyTorch libraries."""

import dataclasses
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import Float

from can_jax.distributed.mesh import make_mesh
from can_jax.evaluate.config import default_evaluation, resolve_evaluation
from can_jax.evaluate.protocols.classifier import open_classifier
from can_jax.evaluate.protocols.classifier_step import BATCH_NORM_EPS, ClassifierStep
from can_jax.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class Head:
    """A linear classification head on pooled tokens.

    Attributes:
        step: The object that defines the classifier's forward pass.
        state: The training state of the classifier, on the host.
        pool: The pooled tokens that the head reads: ``patches``, ``all``, ``class`` or ``both``.
        normalizes: Whether the head applies a LayerNorm to the pooled tokens.
        kernel, bias: The parameters of the linear layer, into which a BatchNorm of the head is
            folded.
        norm: The scale and bias of the head's LayerNorm; None without LayerNorm.
        names: The name of each class, or its label as text if classes have no names.
    """

    step: ClassifierStep
    state: Any
    pool: str
    normalizes: bool
    kernel: Float[np.ndarray, "width classes"]
    bias: Float[np.ndarray, " classes"]
    norm: dict[str, np.ndarray] | None
    names: tuple[str, ...]

    @property
    def normalizes_tokens(self) -> bool:
        """Whether the encoder's final LayerNorm is applied to the tokens before pooling."""
        return not (self.normalizes and self.pool in ("patches", "all"))

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Return the logits of uint8 images, computed by can_jax's network."""
        with jax.default_matmul_precision("highest"):
            return np.asarray(jax.jit(self.step.logits)(self.state, images))

    def arrays(self, names: tuple[str, str]) -> dict[str, np.ndarray]:
        """Return the head's arrays in PyTorch's layout.

        Args:
            names: The names of the linear layer and of the LayerNorm.
        """
        layer, norm = names
        arrays = {f"{layer}.weight": self.kernel.T, f"{layer}.bias": self.bias}
        if self.norm is not None:
            arrays |= {f"{norm}.weight": self.norm["scale"], f"{norm}.bias": self.norm["bias"]}
        return arrays

    def timm_arguments(self) -> dict[str, Any]:
        """Return the arguments of timm's `VisionTransformer` for this head.

        Raises:
            UserError: timm has no equivalent head.
        """
        if self.pool not in ("patches", "class") or (self.normalizes and self.normalizes_tokens):
            raise UserError(
                f"--format=timm does not support a head on features={self.pool} with head_norm="
                f"{self.step.settings.head_norm}; use --format=stablehlo"
            )
        pool = "avg" if self.pool == "patches" else "token"
        return {"global_pool": pool, "fc_norm": self.normalizes}


def open_head(path: epath.Path, step: int | None) -> tuple[Any, Any, int, Head]:
    """Restore the classifier of a finished run of the protocol `classify`.

    Args:
        path: The run directory.
        step: The step of the checkpoint; None for the latest.

    Returns:
        The configuration, the parameters of the encoder, the step, and the head.

    Raises:
        UserError: The run cannot be restored.
    """
    changes = resolve_evaluation(default_evaluation())
    with changes.ignore_type():
        changes.model.dtype = "float32"
    mesh = make_mesh(changes.mesh, jax.local_devices()[:1])
    subject = open_classifier(path, changes, mesh, step)
    state = jax.device_get(subject.parameters)
    parameters = state.optimizer.get("average", state.parameters)
    head, settings = parameters["head"], subject.step.settings
    kernel, bias = head["head"]["kernel"], head["head"]["bias"]
    if settings.head_norm == "batch":
        factor = 1 / np.sqrt(state.batch_stats["var"] + BATCH_NORM_EPS)
        bias = bias - (state.batch_stats["mean"] * factor) @ kernel
        kernel = factor[:, None] * kernel
    names = tuple(map(str, subject.classes.display_names))
    own = Head(
        subject.step, state, subject.step.features, settings.head_norm == "layer", kernel, bias,
        head.get("norm"), names,
    )  # fmt: skip
    return subject.config, {"encoder": parameters["encoder"]}, subject.identity["step"], own
