"""The registry of evaluation protocols.

User code adds a protocol with ``PROTOCOLS.register("name", EvalProtocol(…))``.
"""

from can_jax.evaluate.protocols import (
    disentanglement,
    fewshot,
    finetune,
    health,
    knn,
    linear,
    robustness,
)
from can_jax.evaluate.protocols.base import EvalProtocol
from can_jax.utils.registry import Registry

PROTOCOLS: Registry[EvalProtocol] = Registry("evaluation protocol")
PROTOCOLS.register("knn", knn.PROTOCOL)
PROTOCOLS.register("linear", linear.PROTOCOL)
PROTOCOLS.register("fewshot", fewshot.PROTOCOL)
PROTOCOLS.register("health", health.PROTOCOL)
PROTOCOLS.register("disentanglement", disentanglement.PROTOCOL)
PROTOCOLS.register("robustness", robustness.PROTOCOL)
PROTOCOLS.register("classify", finetune.PROTOCOL)
