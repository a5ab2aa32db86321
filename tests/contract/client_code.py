"""
What job systems do with our files, as plain functions: the other side of the contract.

They are deliberately as strict, and as careless, as such jobs are: they ``eval`` texts with few names, take the first key,
and count on names of files. None of them uses our package, unless the job does.
"""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any  # results of eval, and dicts of a config

import numpy

#: Only these names, and literals, may stand in a learning-rate file.
LEARNING_RATE_NAMES = {"EpochData": dict, "nan": float("nan"), "inf": float("inf"), "np": numpy}


def read_learning_rates(path: Path) -> dict[int, dict[str, Any]]:
    """As the progress display: epoch -> {"learningRate": ..., "error": {...}}."""
    res = eval(path.read_text().strip(), dict(LEARNING_RATE_NAMES))
    assert isinstance(res, dict)
    return res


def finished_epochs(data: Mapping[int, Mapping[str, Any]]) -> list[int]:
    """An epoch counts when it has scores."""
    return [epoch for epoch, values in data.items() if values["error"]]


def plot_keys(data: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """The plot task draws these keys of the first epoch."""
    return [k for k in data[1]["error"] if k.startswith(("train_score", "dev_score", "dev_error"))]


def best_checkpoint(model_dir: Path, learning_rates: Path, key: str, index: int, out_dir: Path) -> Path:
    """Sort the epochs that have the key, and link the checkpoint."""
    data = read_learning_rates(learning_rates)
    last_epoch = max(finished_epochs(data))
    if key not in data[last_epoch]["error"]:
        raise KeyError(f"{key} is not in {list(data[last_epoch]['error'])}")
    scores = [(epoch, values["error"][key]) for epoch, values in data.items() if key in values["error"]]
    epoch, _ = sorted(scores, key=lambda pair: pair[1])[index]
    out = out_dir / "checkpoint.pt"
    out.unlink(missing_ok=True)
    os.link(model_dir / f"epoch.{epoch:03}.pt", out)
    return out


def merge_ogg_zips(parts: Iterable[Path], out: Path, work_dir: Path) -> None:
    """Concatenate the line-wise meta texts, move the audio together, zip."""
    name = out.name[: -len(".zip")]
    (work_dir / name).mkdir(parents=True)
    lines = []
    for part in parts:
        part_name = part.name[: -len(".zip")]
        with zipfile.ZipFile(part) as file:
            file.extractall(work_dir)
        for line in (work_dir / f"{part_name}.txt").read_text().splitlines(keepends=True):
            if not line.startswith(("[", "]")):
                lines.append(line)
        for path in (work_dir / part_name).iterdir():
            shutil.move(path, work_dir / name)
        (work_dir / f"{part_name}.txt").unlink()
        (work_dir / part_name).rmdir()
    (work_dir / f"{name}.txt").write_text("[\n" + "".join(lines) + "]\n")
    with zipfile.ZipFile(out, "w") as file:
        for path in sorted(work_dir.rglob("*")):
            file.write(path, path.relative_to(work_dir))


def onnx_names(entries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Names of inputs or outputs, from extern_data or model_outputs of the config. The job uses our Tensor for that."""
    from returnn.tensor import Tensor

    names = []
    for key, entry in entries.items():
        if entry.get("available_for_inference") is False:
            continue
        tensor = Tensor(name=key, **entry)
        names.append(key)
        for i, dim in enumerate(tensor.dims):
            if dim.dyn_size_ext is None or not dim.dyn_size_ext.dims:
                continue
            names.append(f"{key}:size{i}")
    return names


def from_file_args(config: Path, args: Mapping[str, Any]) -> list[str]:
    """Command line with options: sorted, negative numbers behind a plus, lists and dicts without blanks."""
    res = [str(config)]
    for key, value in sorted(args.items()):
        text = str(value).replace(" ", "") if isinstance(value, (list, dict, tuple)) else str(value)
        if isinstance(value, (int, float)) and value < 0:
            text = "+" + text
        res += [f"++{key}", text]
    return res


def read_search_out(path: Path) -> dict[str, Any]:
    """tag -> text, or n-best list of (score, text)."""
    res = eval(path.read_text(), {"nan": float("nan"), "inf": float("inf")})
    assert isinstance(res, dict)
    return res


def write_n_best(path: Path, n_best: Mapping[str, Sequence[tuple[float, str]]]) -> None:
    """As the jobs that change n-best lists write them."""
    with open(path, "w") as file:
        file.write("{\n")
        for tag, hyps in n_best.items():
            file.write(f"{tag!r}: [\n")
            for score, text in hyps:
                file.write(f"({score:f}, {text!r}),\n")
            file.write("],\n")
        file.write("}\n")


def take_best(path: Path, out: Path) -> None:
    """The best of each n-best list; ties are decided by the text."""
    best = {tag: max(hyps) for tag, hyps in read_search_out(path).items()}
    out.write_text("{\n" + "".join(f"{tag!r}: {text!r},\n" for tag, (_, text) in best.items()) + "}\n")


def bpe_to_words(path: Path, out: Path) -> None:
    """Joins "sub@@ words"."""
    texts = {tag: text.replace("@@ ", "") for tag, text in read_search_out(path).items()}
    out.write_text("{\n" + "".join(f"{tag!r}: {text!r},\n" for tag, text in texts.items()) + "}\n")


def words_to_ctm_recordings(path: Path) -> dict[str, list[str]]:
    """Recording -> its segments; a tag with a second name is cut at "#"."""
    res: dict[str, list[str]] = {}
    for tag in read_search_out(path):
        corpus, recording, segment = (
            tag.split("#")[0].split("/") if "#" not in tag else (*tag.split("#")[0].split("/"), "")
        )
        res.setdefault(f"{corpus}/{recording}", []).append(segment)
    return res
