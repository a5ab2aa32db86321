#!/usr/bin/env python3
"""
Makes digits.hdf and the three sequence lists of this demo. They are in the repository, so nobody needs to run this again.

Source: "Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak, 1998), UCI Machine Learning Repository,
https://doi.org/10.24432/C50P49, licence CC BY 4.0; in the form of its test part that scikit-learn ships (1797 images of
8x8 pixels, values 0 to 16). Changes: each image is stored as a sequence of 8 rows; split at random into three parts.

usage: pip install scikit-learn && python demos/digits/make_data.py
"""

from __future__ import annotations

import os
import sys

import numpy

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(os.path.dirname(HERE)))

from returnn.datasets.hdf import SimpleHDFWriter  # noqa: E402


def main() -> None:
    """Write all files into the folder of this script."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = digits.images.astype("uint8")  # [N, 8 rows, 8 pixels]
    labels = digits.target.astype("uint8")  # [N]
    assert images.shape == (1797, 8, 8) and (images == digits.images).all()

    hdf_file = os.path.join(HERE, "digits.hdf")
    if os.path.exists(hdf_file):
        os.remove(hdf_file)
    tags = [f"digit-{i:04}" for i in range(len(images))]
    with SimpleHDFWriter(hdf_file, dim=8, ndim=2, extra_type={"classes": (10, 1, "uint8")}) as writer:
        for image, label, tag in zip(images, labels, tags, strict=True):
            writer.insert_batch(image[None], [8], [tag], extra={"classes": numpy.array([[label]], dtype="uint8")})

    order = numpy.random.RandomState(1).permutation(len(tags))
    for name, part in (("train", order[:1197]), ("dev", order[1197:1497]), ("test", order[1497:])):
        with open(os.path.join(HERE, f"{name}.seqs.txt"), "w") as f:
            f.write("".join(tags[i] + "\n" for i in sorted(part)))


if __name__ == "__main__":
    main()
