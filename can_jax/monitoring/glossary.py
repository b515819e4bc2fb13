"""The metrics of a run: their units, their definitions, and how to interpret them.

The run report and the list of metrics in the documentation are generated from `METRICS`.
"""

from typing import NamedTuple


class Metric(NamedTuple):
    """A description of a metric in `metrics.jsonl`.

    Attributes:
        meaning: The definition of the metric.
        reading: How to interpret the value, for example the usual trend; can be empty.
        unit: The unit, such as ``%``; empty for a dimensionless value.
        log: Whether charts of the metric have a logarithmic axis.
    """

    meaning: str
    reading: str = ""
    unit: str = ""
    log: bool = False


METRICS = {
    "loss/total": Metric(
        "The weighted sum of all losses.",
        "The total loss falls quickly during the warm-up, then slowly. Compare it only between "
        "runs with the same loss weights.",
    ),
    "loss/contrastive": Metric(
        "The InfoNCE loss.",
        "A uniform guess has the loss log(N), where N is the number of other views in the batch. "
        "In a healthy run, the loss falls below log(N) during the warm-up.",
    ),
    "loss/reconstruction": Metric(
        "The mean squared error of the predicted masked patches.",
        "If target patches are normalized, predicting the mean of each patch has a loss of about "
        "1.",
    ),
    "loss/denoising": Metric(
        "The mean squared error of the predicted noise, in the units that `noise.target` sets.",
        "See `denoising/explained` for a comparison with a prediction of zeros.",
    ),
    "loss/vicreg": Metric(
        "The weighted sum of VICReg's three terms.",
        "Read the three terms separately, since one can rise while another falls.",
    ),
    "vicreg/invariance": Metric("The mean squared difference of two views' projections."),
    "vicreg/variance": Metric(
        "The mean of max(0, 1 - s), where s is the standard deviation of a dimension of the "
        "projection.",
        "The term decreases to near 0. A value near 1 means that the embedding collapses.",
    ),
    "vicreg/covariance": Metric(
        "The sum of squared covariances between different dimensions, divided by the width and "
        "summed over two views."
    ),
    "loss/barlow_twins": Metric(
        "The squared distance of the views' cross-correlation matrix from the identity matrix, "
        "with off-diagonal entries weighted by `redundancy`.",
        "The loss starts near the width of the projection, and falls.",
    ),
    "barlow_twins/invariance": Metric(
        "The part of the Barlow Twins loss from the diagonal of the cross-correlation matrix."
    ),
    "barlow_twins/redundancy": Metric(
        "The sum of the squared off-diagonal entries of the cross-correlation matrix, before it is "
        "multiplied by `redundancy`."
    ),
    "barlow_twins/correlation": Metric(
        "The correlation of a dimension between two views, averaged over dimensions.",
        "The correlation rises towards 1.",
    ),
    "loss/mec": Metric(
        "The negative coding length of maximum entropy coding (MEC), scaled so that its "
        "first-order term is the negative of `mec/similarity`.",
        "The loss falls towards the negative of `mec/similarity` as the higher-order terms shrink.",
    ),
    "mec/similarity": Metric("The mean cosine similarity of two views of an image."),
    "loss/siglip": Metric(
        "The pairwise sigmoid loss of a view, summed over all other views in the batch.",
        "With two views per image and the default bias, the loss starts near 10 if similarities "
        "are near 0.",
    ),
    "siglip/scale": Metric("The learned factor by which cosine similarities are multiplied."),
    "siglip/bias": Metric("The learned bias that is added to the logits."),
    "loss/koleo": Metric(
        "The mean negative logarithm of the distance of an embedding to its nearest neighbor.",
        "The loss falls as embeddings spread, and is 18.4 if all embeddings are equal.",
    ),
    "koleo/nearest": Metric(
        "The mean distance of a normalized embedding to its nearest neighbor in the batch.",
        "The distance is at most 2. A value near 0 means that embeddings collapse.",
    ),
    "loss/dense": Metric(
        "The InfoNCE loss of patch tokens matched between two views.",
        "A uniform guess has the loss log(N + 1), where N is the number of views of other images.",
    ),
    "dense/top1": Metric(
        "The fraction of patch tokens that are more similar to their match than to any negative.",
        "The fraction rises towards 1.",
    ),
    "dense/positive_similarity": Metric(
        "The mean cosine similarity of a projected patch token to its match in another view."
    ),
    "loss/latents": Metric(
        "The mean squared error of the predicted latents of masked patches.",
        "Predicting the mean of all targets has a loss of about the square of `latents/deviation`. "
        "The loss can rise while the teacher learns.",
    ),
    "latents/deviation": Metric(
        "The standard deviation of the teacher's latents over masked patches, averaged over "
        "features.",
        "A fall to 0 means collapse: all patches have equal latents.",
    ),
    "loss/disentangle": Metric(
        "The penalty on dependence between dimensions of the pooled embedding."
    ),
    "disentangle/mean_square_correlation": Metric(
        "The mean squared correlation between different dimensions of the pooled embedding.",
        "The value is 0 if dimensions are uncorrelated, and 1 if all are copies of one dimension.",
    ),
    "contrastive/excluded_negatives": Metric(
        "The fraction of negatives that are excluded as copies or as too similar.",
        "A few in a thousand is common. If most are excluded, embeddings can collapse.",
    ),
    "contrastive/top1": Metric(
        "The fraction of views whose most similar other view shows the same image.",
        "The fraction rises from near 0. A value near 1 after a few epochs means that the task is "
        "too easy, often because the augmentations are too weak.",
    ),
    "contrastive/positive_similarity": Metric(
        "The mean cosine similarity of two views of one image.",
        "Untrained embeddings are similar, so the value starts high. The difference from "
        "`contrastive/negative_similarity` grows. If both approach 1, the embedding collapses.",
    ),
    "contrastive/negative_similarity": Metric(
        "The mean cosine similarity of views of different images.",
        "The similarity falls towards 0.",
    ),
    "denoising/energy": Metric(
        "The mean square of the noise in the visible patches, in normalized pixels.",
    ),
    "denoising/residual": Metric(
        "The mean squared error of the predicted noise, in normalized pixels.",
        "A value below `denoising/energy` is better than that of predicting zeros.",
    ),
    "denoising/explained": Metric(
        "1 minus the ratio of `denoising/residual` to `denoising/energy`.",
        "The value is 1 for a perfect prediction, 0 for predicting zeros, and negative if worse.",
    ),
    "denoising/linear_bound": Metric(
        "The fraction of the noise energy that the best linear denoiser of a patch explains.",
        "The value is logged once, before the first step, if `noise.linear_bound` is on.",
    ),
    "embedding/std": Metric(
        "The standard deviation of L2-normalized embeddings, averaged over dimensions and "
        "multiplied by the square root of the width.",
        "The value is 1 if embeddings are spread evenly over the sphere, and 0 if they are all "
        "equal. A fall to 0 means collapse.",
    ),
    "embedding/alignment": Metric(
        "The mean squared distance of the L2-normalized embeddings of two views of an image.",
        "The value is 0 for equal embeddings and 2 for orthogonal ones. It falls as views of an "
        "image become similar, and is 0 after collapse.",
    ),
    "embedding/effective_rank": Metric(
        "The exponential of the entropy of the normalized singular values of the embeddings.",
        "The rank can fall in the warm-up, then grows. A value near 1 means collapse: all "
        "embeddings lie on a line.",
    ),
    "probe/knn": Metric(
        "The accuracy of a k-nearest-neighbor (kNN) classifier on frozen features.",
        "The value at step 0 is the accuracy with the untrained encoder.",
        unit="%",
    ),
    "probe/effective_rank": Metric(
        "The effective rank of the encoder's features of unmasked images.",
        "The rank is at most the encoder's width. A fall to a few dimensions means collapse.",
    ),
    "probe/uniformity": Metric(
        "The logarithm of the mean of exp(-2 d^2), where d is the distance between the normalized "
        "features of two test images.",
        "The value is 0 if all features are equal, and near -4 if they are spread evenly.",
    ),
    "probe/tolerance": Metric(
        "The mean cosine similarity of the features of two test images of the same class.",
        "A low temperature of the contrastive loss reduces the similarity, since the loss then "
        "pushes images of the same class apart.",
    ),
    "probe/dead_dimensions": Metric(
        "The fraction of feature dimensions that hardly vary over the test images.",
        "The fraction is 0 in a healthy run.",
    ),
    "probe/knn_pixels": Metric(
        "The accuracy of the kNN classifier on raw pixels, measured at step 0.", unit="%"
    ),
    "train/top1": Metric("The accuracy on the training batch during fine-tuning.", unit="%"),
    "test/top1": Metric("The accuracy on the test split during fine-tuning.", unit="%"),
    "learning_rate": Metric("The learning rate of the step."),
    "grad_norm": Metric(
        "The global norm of the gradient, before clipping.",
        "A jump to more than ten times the usual value often precedes a loss spike.",
        log=True,
    ),
    "param_norm": Metric(
        "The global norm of the parameters.",
        "In a healthy run, the norm changes slowly.",
    ),
    "skipped_steps": Metric(
        "The number of updates skipped so far because the loss, a gradient or a result was not "
        "finite.",
        "The number is 0, or small with 16-bit types.",
    ),
    "images_per_second": Metric(
        "The throughput of training over all devices. An image with several views counts once.",
        "In a healthy run, the throughput is steady. A slow file system or another program can "
        "cause dips.",
        unit="images/s",
    ),
    "mfu": Metric(
        "The model FLOPs utilization: model FLOP/s divided by the peak FLOP/s of the devices.",
        "The peak is that of the data sheet for 16-bit floats, also if a run computes in float32. "
        "For CPUs and unknown devices, the peak is measured.",
    ),
    "data_wait": Metric(
        "The fraction of the time that training waited for images.",
        "Above 0.1 the input pipeline limits the speed, and the run logs a message once.",
    ),
    "skipped_images": Metric(
        "The number of images so far that could not be decoded and were replaced by others.",
    ),
    "time": Metric("The date and time at which the line was written, in ISO 8601."),
    "elapsed_seconds": Metric(
        "The time since the run began, without the time between a stop and the resume.", unit="s"
    ),
    "examples": Metric("The number of images trained on. Steps repeated by a resume count once."),
    "epoch": Metric(
        "The number of images trained on, divided by the number of images in an epoch."
    ),
}
