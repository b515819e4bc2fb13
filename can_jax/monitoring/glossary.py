"""The metrics of a run: units, meanings, and how to read them.

The run report and the reference of metrics in the documentation are made from `METRICS`.
"""

from typing import NamedTuple


class Metric(NamedTuple):
    """A metric of `metrics.jsonl`.

    Attributes:
        meaning: What the value is.
        reading: How a healthy value differs from one that needs attention; empty if none does.
        unit: The unit; empty for a loss or a ratio.
        log: Whether charts have a logarithmic axis.
    """

    meaning: str
    reading: str = ""
    unit: str = ""
    log: bool = False


METRICS = {
    "loss/total": Metric(
        "The weighted sum of all losses.",
        "It falls quickly during the warm-up, then slowly. Compare it only between runs with equal "
        "weights.",
    ),
    "loss/contrastive": Metric(
        "The InfoNCE loss.",
        "A uniform guess costs the logarithm of the number of other views in the batch. A healthy "
        "run leaves that value within the warm-up.",
    ),
    "loss/reconstruction": Metric(
        "The squared error of the predicted masked patches.",
        "With normalized patches, predicting the mean costs 1.",
    ),
    "loss/denoising": Metric(
        "The squared error of the predicted noise, in the units of `noise.target`.",
        "Compare it with predicting zeros: see `denoising/explained`.",
    ),
    "loss/vicreg": Metric(
        "The weighted sum of VICReg's three terms.",
        "Read the terms: they move against each other.",
    ),
    "vicreg/invariance": Metric("The mean squared difference of two views' projections."),
    "vicreg/variance": Metric(
        "How far the standard deviations of the projection are below 1, on average.",
        "It falls to near 0. A value near 1 means that the embedding collapses.",
    ),
    "vicreg/covariance": Metric("The sum of squared covariances of different dimensions."),
    "loss/barlow_twins": Metric(
        "The squared distance of the views' cross-correlation from the identity, weighted.",
        "It starts near the number of outputs, and falls.",
    ),
    "barlow_twins/invariance": Metric("The part of the loss on the diagonal."),
    "barlow_twins/redundancy": Metric("The part off the diagonal, before its weight."),
    "barlow_twins/correlation": Metric(
        "The mean correlation of a dimension between two views.", "It rises towards 1."
    ),
    "loss/mec": Metric(
        "The negative coding length of the embeddings, over its first factor.",
        "It falls below minus the mean cosine similarity as terms of higher order shrink.",
    ),
    "mec/similarity": Metric("The mean cosine similarity of two views of an image."),
    "loss/siglip": Metric(
        "The pairwise sigmoid loss, summed over the other rows.",
        "With the initial bias it starts near 10, the cost of each positive.",
    ),
    "siglip/scale": Metric("The learned factor of the similarities."),
    "siglip/bias": Metric("The learned bias of the logits."),
    "loss/koleo": Metric(
        "Minus the logarithm of the distance to the nearest other image.",
        "It falls as embeddings spread. Equal embeddings cost 18.4.",
    ),
    "koleo/nearest": Metric(
        "The mean distance to the nearest other image, on the sphere.",
        "It is at most 2; a value near 0 means that embeddings collapse.",
    ),
    "loss/disentangle": Metric("The penalty on dependent dimensions of the pooled embedding."),
    "disentangle/mean_square_correlation": Metric(
        "The mean squared correlation of two dimensions of the pooled embedding.",
        "It is 0 for uncorrelated dimensions, and 1 for copies of one.",
    ),
    "contrastive/excluded_negatives": Metric(
        "The fraction of negatives left out as copies or as too similar.",
        "A few in a thousand is common. If most are left out, nothing keeps images apart.",
    ),
    "contrastive/top1": Metric(
        "The fraction of views whose most similar other view is one of the same image.",
        "It rises from near 0. A value near 1 after a few epochs means that the task is too easy, "
        "often because the views share too much.",
    ),
    "contrastive/positive_similarity": Metric(
        "The mean cosine similarity of two views of one image.",
        "Untrained embeddings are alike, so it starts high. The gap to "
        "`contrastive/negative_similarity` grows; if both approach 1, the embedding collapses.",
    ),
    "contrastive/negative_similarity": Metric(
        "The mean cosine similarity of views of different images.",
        "It falls towards 0.",
    ),
    "denoising/energy": Metric(
        "The mean square of the noise in the visible patches, in normalized pixels.",
    ),
    "denoising/residual": Metric(
        "The mean square error of the predicted noise, in normalized pixels.",
        "Below `denoising/energy`, the branch predicts better than zeros.",
    ),
    "denoising/explained": Metric(
        "1 minus the ratio of the residual to the energy of the noise.",
        "0 is as good as predicting zeros, and less is worse.",
    ),
    "denoising/linear_bound": Metric(
        "The share of the noise that the best linear denoiser of a patch explains.",
        "Logged once, before the first step, with `noise.linear_bound`.",
    ),
    "embedding/std": Metric(
        "The standard deviation of the embeddings at unit length, scaled by the root of their "
        "width.",
        "1 is an even spread over the sphere, 0 a single point. A fall to 0 is collapse.",
    ),
    "embedding/effective_rank": Metric(
        "The exponential of the entropy of the singular values of the embeddings.",
        "It can fall in the warm-up, then grows. Near 1, all embeddings lie on a line: collapse.",
    ),
    "probe/knn": Metric(
        "The accuracy of a kNN classifier on frozen features.",
        "The value at step 0 is that of the untrained encoder.",
        unit="%",
    ),
    "probe/effective_rank": Metric(
        "The effective rank of the probe's features of whole images.",
        "It is at most the encoder's width. A fall to a few dimensions is a collapse.",
    ),
    "probe/uniformity": Metric(
        "The log mean of exp(-2 d^2) over pairs of test images at a distance d on the sphere.",
        "It is 0 if all features are equal, and near -4 if they are spread evenly.",
    ),
    "probe/tolerance": Metric(
        "The mean cosine similarity of two test images of one class.",
        "A low temperature lowers it together with uniformity: images of a class are pushed apart.",
    ),
    "probe/dead_dimensions": Metric(
        "The fraction of features that hardly vary over the test images.",
        "It is 0 in a healthy run.",
    ),
    "probe/knn_pixels": Metric(
        "The accuracy of the same classifier on raw pixels, measured at step 0.", unit="%"
    ),
    "train/top1": Metric("The accuracy on the training batch, in fine-tuning.", unit="%"),
    "test/top1": Metric("The accuracy on the test split, in fine-tuning.", unit="%"),
    "learning_rate": Metric("The learning rate of the step."),
    "grad_norm": Metric(
        "The global norm of the gradient, before clipping.",
        "Jumps of more than ten times the usual value announce a loss spike.",
        log=True,
    ),
    "param_norm": Metric(
        "The global norm of the parameters.",
        "It changes slowly.",
    ),
    "skipped_steps": Metric(
        "The number of updates so far that were skipped, as a loss or gradient was not finite.",
        "0, or a few with 16-bit types.",
    ),
    "images_per_second": Metric(
        "The images that the step processes, over all devices; one image is all of its views.",
        "It is steady. Dips can come from a slow file system or from another program.",
        unit="images/s",
    ),
    "mfu": Metric(
        "The model FLOP/s over the peak of the devices in the type of computation.",
    ),
    "data_wait": Metric(
        "The fraction of the time that the devices waited for images.",
        "Above 0.1 the input limits the speed, and the run logs it.",
    ),
    "skipped_images": Metric(
        "The number of images so far that could not be decoded and were replaced.",
    ),
    "time": Metric("The time of day at which the line was written, in ISO 8601."),
    "elapsed_seconds": Metric(
        "The time since the run began, without the pauses between its starts.", unit="s"
    ),
    "examples": Metric("The number of images seen, without repeats of resumed steps."),
    "epoch": Metric("The number of images seen over the images of an epoch."),
}
