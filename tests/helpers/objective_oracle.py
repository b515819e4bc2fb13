"""The objectives beside CAN's in NumPy, from the papers' formulas, in loops where these have sums.

Everything but a choice (a maximum, a nearest row, a threshold) is analytic, so that a gradient is
exact by a complex step. ``z`` has the axes images, views, width; no line of the package is used.
"""

import numpy as np


def on_sphere(z):
    squares = (z**2).sum(-1, keepdims=True)
    long = squares.real > 1e-24
    return np.where(long, z / np.sqrt(np.where(long, squares, 1)), 0)


def rows_of(z):
    return z.reshape(-1, z.shape[-1])


def contrastive(
    z,
    labels=None,
    temperature=0.1,
    decoupled=False,
    prior=0.0,
    hardness=0.0,
    above=None,
    contents=None,
):
    views, unit, total, left_out = z.shape[1], rows_of(on_sphere(z)), 0, []
    for i in range(len(unit)):
        s = unit @ unit[i]
        others = [j for j in range(len(unit)) if j != i]

        def alike(j, i=i):
            image, other = i // views, j // views
            return image == other or (labels is not None and labels[image] == labels[other] >= 0)

        positives = [j for j in others if alike(j)]
        apart = [j for j in others if not alike(j)]
        negatives = [j for j in apart if above is None or s[j].real <= above]
        if contents is not None:
            negatives = [j for j in negatives if contents[i // views] != contents[j // views]]
        left_out.append(1 - len(negatives) / max(len(apart), 1))
        pulls = np.exp(s[positives] / temperature)
        pushes = np.exp(s[negatives] / temperature)
        n = len(negatives)
        if n:
            weights = np.exp(hardness * s[negatives] / temperature)
            g = (weights * pushes).sum() / (weights.sum() / n)
            if prior:
                g = (g - prior * n * pulls.mean()) / (1 - prior)
                floor = n * np.exp(-1 / temperature)
                g = g if g.real > floor else floor
        elif decoupled:
            continue
        else:
            g = 0
        denominator = g if decoupled else g + pulls.sum()
        total = total + np.log(denominator) - s[positives].mean() / temperature
    return total / len(unit), np.mean(left_out)


def siglip(z, scale=10.0, bias=-10.0):
    views, unit, total = z.shape[1], rows_of(on_sphere(z)), 0
    for i in range(len(unit)):
        for j in range(len(unit)):
            if i != j:
                sign = 1 if i // views == j // views else -1
                total = total + np.log(1 + np.exp(-sign * (scale * unit[i] @ unit[j] + bias)))
    return total / len(unit)


def view_pairs(z):
    views = z.shape[1]
    return [(z[:, a], z[:, b]) for a in range(views) for b in range(views) if a < b]


def vicreg(z, invariance=25.0, variance=25.0, covariance=1.0):
    images, views, width = z.shape
    alike = np.mean([((a - b) ** 2).mean() for a, b in view_pairs(z)])
    hinges, shared = [], []
    for view in range(views):
        centered = z[:, view] - z[:, view].mean(0)
        matrix = centered.T @ centered / (images - 1)
        gap = 1 - np.sqrt(np.diag(matrix) + 1e-4)
        hinges.append(np.where(gap.real > 0, gap, 0).mean())
        shared.append(((matrix**2).sum() - (np.diag(matrix) ** 2).sum()) / width)
    return invariance * alike + variance * np.mean(hinges) + covariance * 2 * np.mean(shared)


def barlow_twins(z, redundancy=0.0051):
    def normed(view):
        centered = view - view.mean(0)
        return centered / np.sqrt((centered**2).mean(0) + 1e-5)

    losses = []
    for a, b in view_pairs(z):
        c = normed(a).T @ normed(b) / len(a)
        off = (c**2).sum() - (np.diag(c) ** 2).sum()
        losses.append(((1 - np.diag(c)) ** 2).sum() + redundancy * off)
    return np.mean(losses)


def mec(z, distortion=0.06, order=4):
    losses = []
    for a, b in view_pairs(on_sphere(z)):
        c = a @ b.T / (len(a) * distortion)  # images by images, as in the paper's listing
        powers = [np.linalg.matrix_power(c, k) for k in range(1, order + 1)]
        losses.append(sum((-1) ** k / (k + 1) * np.trace(p) for k, p in enumerate(powers)))
    return -distortion * np.mean(losses)


def koleo(z):
    images, views, _ = z.shape
    unit, total = on_sphere(z), 0
    for view in range(views):
        for i in range(images):
            squares = [((unit[i, view] - unit[j, view]) ** 2).sum() for j in range(images)]
            closest = min((j for j in range(images) if j != i), key=lambda j: squares[j].real)
            far = squares[closest].real > 1e-24
            total = total - np.log((np.sqrt(squares[closest]) if far else 0) + 1e-8)
    return total / (images * views)


def correlation(z):
    rows = rows_of(z)
    centered = rows - rows.mean(0)
    normed = centered / np.sqrt((centered**2).mean(0) + 1e-5)
    return normed.T @ normed / len(rows)


def decorrelation(z):
    matrix, width = correlation(z), z.shape[-1]
    return ((matrix**2).sum() - (np.diag(matrix) ** 2).sum()) / (width * (width - 1))


def total_correlation(z, shrinkage=0.1):
    matrix, width = correlation(z), z.shape[-1]
    shrunk = (1 - shrinkage) * matrix
    shrunk[np.arange(width), np.arange(width)] = 1
    return -np.log(np.linalg.det(shrunk)) / (2 * width)


def gradient(function, z, step=1e-30):
    """The gradient by a complex step, exact to rounding."""
    slopes = np.zeros_like(z)
    for index in np.ndindex(z.shape):
        moved = z.astype(complex)
        moved[index] += 1j * step
        slopes[index] = np.imag(function(moved)) / step
    return slopes


def latents(decoded, kernel, bias, teacher, hidden):
    """The squared error of hidden patches' tokens, for arrays of rows, patches and features."""
    total, count = 0, 0
    for row, patch in np.argwhere(hidden):
        target = teacher[row, patch] - teacher[row, patch].mean()
        target = target / np.sqrt((target**2).mean() + 1e-5)
        total = total + ((decoded[row, patch + 1] @ kernel + bias - target) ** 2).mean()
        count += 1
    return total / count


def dense(tokens, temperature=0.2):
    """DenseCL on tokens of the axes images, views, tokens, width; the class token is first."""
    tokens = tokens[:, :, 1:]
    images, views, patches, _ = tokens.shape
    unit, total, count = on_sphere(tokens), 0, 0
    pooled = on_sphere(tokens.mean(2))
    for i in range(images):
        negatives = rows_of(pooled[np.arange(images) != i])
        for v in range(views):
            pushes = np.exp(unit[i, v] @ negatives.T / temperature).sum(-1)
            for w in range(views):
                if v == w:
                    continue
                match = (unit[i, v].real @ unit[i, w].real.T).argmax(-1)
                s = (unit[i, v] * unit[i, w][match]).sum(-1) / temperature
                total = total + (np.log(np.exp(s) + pushes) - s).sum()
                count += patches
    return total / count
