"""Comparison of data fingerprints, by which a resumed run detects that its data has changed.

`Source.fingerprint` computes them. Images in memory are compared by content. Image files and shards
are compared by their paths relative to the data folder, their sizes, and the byte offsets of their
examples. The content of files is compared only if both fingerprints come from an index with content
digests. Known labels and the weights of a mixture are compared as well.

The order of examples is a function of the seed and the number of examples. Adding or removing one
file therefore changes the images of nearly every step.
"""

from can_jax.data.sources.base import Fingerprint

# The phrase that describes a difference in each entry.
WORDS = {
    "names": "other files",
    "sizes": "other file sizes",
    "places": "other example offsets",
    "labels": "other labels",
    "content": "other content",
    "weights": "other mixture weights",
}


def differences(stored: Fingerprint, current: Fingerprint) -> list[str]:
    """Return a phrase for each difference between two fingerprints; an empty list if they agree.

    A key of `WORDS` is ignored if one of the fingerprints lacks it. Content digests, for
    example, are missing from the fingerprint of a run that began before the index was built.
    """
    if ("parts" in stored) != ("parts" in current):
        return [
            "a mixture instead of one source"
            if "parts" in current
            else "one source instead of a mixture"
        ]
    old, new = stored.get("parts", []), current.get("parts", [])
    if len(old) != len(new):
        return [f"{len(new)} parts instead of {len(old)}"]
    result = [
        f"part {index}: {phrase}"
        for index, parts in enumerate(zip(old, new, strict=True))
        for phrase in differences(*parts)
    ]
    if stored.get("examples") != current.get("examples"):
        result.append(f"{current.get('examples')} examples instead of {stored.get('examples')}")
    common = (key for key in WORDS if key in stored and key in current)
    return result + [WORDS[key] for key in common if stored[key] != current[key]]
