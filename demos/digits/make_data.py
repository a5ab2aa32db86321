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

from returnn.datasets.hdf import HDFDatasetWriter  # noqa: E402
from returnn.datasets.map import MapDatasetBase, MapDatasetWrapper  # noqa: E402


class Digits(MapDatasetBase):
    """The images of scikit-learn as sequences of rows."""

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        super().__init__(
            data_types={
                "data": {"dim": 8, "shape": (None, 8), "dtype": "uint8"},
                "classes": {"dim": 10, "shape": (None,), "sparse": True, "dtype": "uint8"},
            }
        )
        digits = load_digits()
        self.images = digits.images.astype("uint8")  # [N, 8 rows, 8 pixels]
        self.labels = digits.target.astype("uint8")  # [N]
        assert self.images.shape == (1797, 8, 8) and (self.images == digits.images).all()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, seq_idx: int) -> dict[str, numpy.ndarray]:
        return {"data": self.images[seq_idx], "classes": self.labels[seq_idx : seq_idx + 1]}

    def get_seq_tag(self, seq_idx: int) -> str:
        """:return: name of the image"""
        return f"digit-{seq_idx:04}"


def main() -> None:
    """Write all files into the folder of this script."""
    digits = Digits()
    writer = HDFDatasetWriter(os.path.join(HERE, "digits.hdf"))
    writer.dump_from_dataset(MapDatasetWrapper(digits), use_progress_bar=False)
    writer.close()

    order = numpy.random.RandomState(1).permutation(len(digits))
    for name, part in (("train", order[:1197]), ("dev", order[1197:1497]), ("test", order[1497:])):
        with open(os.path.join(HERE, f"{name}.seqs.txt"), "w") as f:
            f.write("".join(digits.get_seq_tag(i) + "\n" for i in sorted(part)))


if __name__ == "__main__":
    main()
