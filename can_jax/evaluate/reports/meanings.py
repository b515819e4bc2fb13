"""Explanations of the metrics of evaluations, which HTML pages show below the values of the
metrics."""

import re
from collections.abc import Sequence

from can_jax.monitoring.glossary import METRICS

# The meaning of each metric whose name matches a pattern.
MEANINGS = {
    r"knn/top1_fixed": "The accuracy of a k-nearest-neighbor (kNN) classifier on frozen features, "
    "with k = 20 and a temperature of 0.07. The fixed setting makes evaluations comparable.",
    r"knn/top1": "The accuracy of the kNN classifier with the k and the temperature that were "
    "best on held-out training images; in the protocol `health`, with those of its settings.",
    r"linear/top1": "The accuracy of a linear classifier on frozen features.",
    r"finetune/top1": "The accuracy after the encoder and a linear classifier were fine-tuned.",
    r"fewshot/.*/(\d+)shot": "The accuracy of {}-shot ridge regression, averaged over "
    "draws of the training images.",
    r"(.*/)?top5": "The fraction of images whose class is among the five most probable classes.",
    r"clean/top1": "The accuracy on the test images without corruption.",
    r"corrupted/top1": "The mean accuracy over all corruptions and severities.",
    r"(.*/)?mce": "The mean corruption error: the error of each corruption relative to that of "
    "AlexNet, averaged over the corruptions.",
    r"(.*/)?ece": "The expected calibration error: the mean absolute difference between the "
    "confidence and the accuracy of groups of images with similar confidence.",
    r"(.*/)?nll": "The mean negative log-likelihood of the true class, in nats.",
    r"(.*/)?brier": "The Brier score: the mean over images of the summed squared errors of the "
    "class probabilities.",
    r"health/effective_rank": "The exponential of the entropy of the normalized singular values "
    "of the features. It is at most the width.",
    r"health/alignment": "The mean squared distance between the normalized features of two "
    "augmented views of an image. It is 0 if the views have equal features.",
    r"health/uniformity": METRICS["probe/uniformity"].meaning,
    r"health/tolerance": METRICS["probe/tolerance"].meaning,
    r"health/dead_dimensions": "The number of feature dimensions that hardly vary.",
    r"health/width": "The number of feature dimensions.",
    r"disentanglement/dci": "The degree to which each feature depends on one factor only, from 0 "
    "to 1 (disentanglement of Eastwood and Williams).",
    r"disentanglement/completeness": "The degree to which each factor is held by one feature "
    "only, from 0 to 1.",
    r"disentanglement/informativeness": "The fraction of the factors' variance that a linear "
    "prediction from the features explains.",
    r"disentanglement/mig": "The mutual information gap: the difference in information about a "
    "factor between the two most informative features, as a fraction of the factor's entropy.",
    r"disentanglement/mean_square_correlation": "The mean squared correlation between different "
    "features. It is 0 if the features are uncorrelated.",
}


def meanings_of(metrics: Sequence[str]) -> dict[str, str]:
    """Return the meanings of metrics by name; metrics without a known meaning are omitted."""
    meanings = {}
    for name in metrics:
        for pattern, meaning in MEANINGS.items():
            if found := re.fullmatch(pattern, name):
                meanings[name] = meaning.format(*found.groups(default=""))
                break
    return meanings
