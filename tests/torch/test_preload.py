"""Tests of ``preload_from_files``."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch

from returnn.errors import CheckpointError, ConfigError
from returnn.torch.checkpoint import load_model_state
from returnn.torch.preload import Preloads


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = torch.nn.LSTM(2, 3)
        self.out = torch.nn.Linear(3, 4)


def value_of(model: torch.nn.Module, name: str) -> torch.Tensor:
    return dict(model.named_parameters())[name]


def save(path: pathlib.Path, state: dict[str, torch.Tensor], key: str | None = "model") -> str:
    torch.save(state if key is None else {key: state, "epoch": 1}, path)
    return str(path)


def filled(names: dict[str, tuple[int, ...]], value: float) -> dict[str, torch.Tensor]:
    return {name: torch.full(shape, value) for name, shape in names.items()}


OUT = {"weight": (4, 3), "bias": (4,)}


def apply(model: torch.nn.Module, opts: dict[str, Any], *, train: bool = True, first: bool = True) -> Preloads:
    preloads = Preloads(opts, train=train, first_train_epoch=first)
    preloads.apply(model)
    return preloads


def test_prefix(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = Model()
    encoder = value_of(model, "encoder.weight_ih_l0").clone()
    path = save(tmp_path / "a.pt", filled(OUT, 2.0))
    apply(model, {"out": {"filename": path.removesuffix(".pt"), "prefix": "out.", "init_for_train": True}})
    assert (model.out.weight == 2).all() and (model.out.bias == 2).all()
    assert torch.equal(value_of(model, "encoder.weight_ih_l0"), encoder)
    assert "Pre-load weights for key 'out' from " in capsys.readouterr().out


def test_smallest_key_wins(tmp_path: pathlib.Path) -> None:
    opts = {
        f"{i}_x": {
            "filename": save(tmp_path / f"{i}.pt", filled(OUT, float(i))),
            "prefix": "out.",
            "init_for_train": True,
        }
        for i in (2, 1, 3)
    }
    model = Model()
    apply(model, opts)
    assert (model.out.weight == 1).all()


@pytest.mark.parametrize(
    ("init_for_train", "train", "first", "loaded"),
    [
        (True, True, True, True),
        (True, True, False, False),
        (True, False, False, False),
        (False, True, True, False),
        (False, False, False, True),
        ("always", True, True, True),
        ("always", True, False, True),
        ("always", False, False, True),
    ],
)
def test_when(tmp_path: pathlib.Path, init_for_train: bool | str, train: bool, first: bool, loaded: bool) -> None:
    model = Model()
    opts = {
        "x": {"filename": save(tmp_path / "a.pt", filled(OUT, 2.0)), "prefix": "out.", "init_for_train": init_for_train}
    }
    preloads = apply(model, opts, train=train, first=first)
    assert bool(preloads) == loaded
    assert bool((model.out.weight == 2).all()) == loaded


def test_missing_keys(tmp_path: pathlib.Path) -> None:
    path = save(tmp_path / "a.pt", filled({"weight": (4, 3)}, 2.0))
    opts: dict[str, Any] = {"filename": path, "prefix": "out.", "init_for_train": True}
    with pytest.raises(AssertionError, match=r"Missing keys and ignore_missing=False: \{'out.bias'\}.*a\.pt"):
        apply(Model(), {"x": opts})
    apply(Model(), {"x": {**opts, "ignore_missing": True}})
    apply(Model(), {"x": {**opts, "ignore_params": ["out.bias"]}})


def test_ignore(tmp_path: pathlib.Path) -> None:
    state = Model().state_dict()
    path = save(tmp_path / "a.pt", {name: torch.full_like(v, 2.0) for name, v in state.items()})
    model = Model()
    apply(
        model,
        {
            "x": {
                "filename": path,
                "init_for_train": True,
                "ignore_params": ["out.bias"],
                "ignore_params_prefixes": ["encoder."],
            }
        },
    )
    assert (model.out.weight == 2).all()
    assert not (model.out.bias == 2).any() and not (value_of(model, "encoder.weight_hh_l0") == 2).any()


def test_mapping_and_keys(tmp_path: pathlib.Path) -> None:
    state = {**filled({"w_old": (4, 3), "bias": (4,)}, 2.0)}
    for key in ("net", None):
        path = save(tmp_path / "a.pt", state, key)
        opts = {
            "filename": path,
            "checkpoint_key": key,
            "prefix": "out.",
            "var_name_mapping": {"out.weight": "out.w_old"},
            "init_for_train": True,
        }
        model = Model()
        apply(model, {"x": opts})
        assert (model.out.weight == 2).all() and (model.out.bias == 2).all()
    with pytest.raises(CheckpointError, match=r"var_name_mapping names parameters .*out.weight \(from out.none\)"):
        apply(Model(), {"x": {**opts, "var_name_mapping": {"out.weight": "out.none"}}})


def test_custom_missing_load_func(tmp_path: pathlib.Path) -> None:
    path = save(tmp_path / "a.pt", filled({"weight": (4, 3)}, 2.0))
    asked: list[str] = []

    def func(
        *, name: str, shape: torch.Size, preload_model_state: dict[str, torch.Tensor], **_other: Any
    ) -> torch.Tensor | None:
        assert list(preload_model_state) == ["out.weight"]
        asked.append(name)
        return torch.full(shape, 3.0)

    model = Model()
    opts = {"filename": path, "prefix": "out.", "init_for_train": True, "custom_missing_load_func": func}
    apply(model, {"x": opts})
    assert asked == ["out.bias"] and (model.out.bias == 3).all()
    with pytest.raises(ConfigError, match=r"returned \[1\] for out.bias, expected None or a tensor of shape \[4\]"):
        apply(Model(), {"x": {**opts, "custom_missing_load_func": lambda **_: torch.zeros(1)}})


def test_always_keeps_them_out_of_own_checkpoints(tmp_path: pathlib.Path) -> None:
    model = Model()
    path = save(
        tmp_path / "a.pt",
        {k.removeprefix("encoder."): v for k, v in model.state_dict().items() if k.startswith("encoder.")},
    )
    opts = {"x": {"filename": path, "prefix": "encoder.", "init_for_train": "always"}}
    apply(model, opts)
    assert list(model.state_dict()) == ["out.weight", "out.bias"]
    assert [n for n, _ in model.named_parameters()] == ["out.weight", "out.bias"]
    x = torch.randn(4, 1, 2)
    expected = model.out(model.encoder(x)[0])

    # A restart: own checkpoint without the encoder, the encoder from its file.
    again = Model()
    preloads = Preloads(opts, train=True, first_train_epoch=False)
    load_model_state(again, model.state_dict(), filename="own.pt", provided_elsewhere=preloads.provided_names(again))
    preloads.apply(again)
    assert torch.equal(again.out(again.encoder(x)[0]), expected)
    again.double()  # buffers are moved and converted like parameters
    assert again.out(again.encoder(x.double())[0]).dtype == torch.float64


def test_filename_none_allows_random_parameters() -> None:
    model = Model()
    state = {k: v for k, v in model.state_dict().items() if k.startswith("encoder.")}
    for opts in ({"pattern": "out.*"}, {"prefix": "out."}):
        preloads = Preloads(
            {"x": {"filename": None, "init_for_train": True, **opts}}, train=True, first_train_epoch=True
        )
        provided = preloads.provided_names(model)
        assert provided == {"out.weight", "out.bias"}
        load_model_state(Model(), state, filename="f", provided_elsewhere=provided)
        assert preloads.apply(model) == []


@pytest.mark.parametrize(
    ("opts", "text"),
    [
        ({"filename": "a", "prefx": "b"}, "unknown key 'prefx'. Did you mean 'prefix'"),
        ({"prefix": "b"}, '"filename" is missing'),
        ({"filename": None}, 'needs "prefix" or "pattern"'),
        ({"filename": "a", "pattern": "b"}, '"pattern" is only possible with filename = None'),
        ({"filename": "a", "init_for_train": "never"}, "init_for_train"),
        ({"filename": "a", "ignore_params": "out.bias"}, "a list of names as ignore_params"),
        ("a.pt", "expected a dict"),
    ],
)
def test_wrong_options(opts: object, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Preloads({"x": opts}, train=True, first_train_epoch=True)


def test_files_that_do_not_fit(tmp_path: pathlib.Path) -> None:
    path = save(tmp_path / "a.pt", filled({"weight": (4, 3)}, 2.0))
    with pytest.raises(CheckpointError, match=r'preload_from_files\["x"\]: no parameter of .*a\.pt fits'):
        apply(Model(), {"x": {"filename": path, "prefix": "decoder.", "init_for_train": True}})
    path = save(tmp_path / "b.pt", filled({"weight": (5, 3)}, 2.0))
    with pytest.raises(CheckpointError, match=r"out.weight: file \[5, 3\], model \[4, 3\]"):
        apply(Model(), {"x": {"filename": path, "prefix": "out.", "init_for_train": True}})
    with pytest.raises(CheckpointError, match="not found"):
        apply(Model(), {"x": {"filename": str(tmp_path / "none.pt"), "init_for_train": True}})


def test_from_config(tmp_path: pathlib.Path) -> None:
    path = save(tmp_path / "a.pt", filled(OUT, 2.0))
    config = {"preload_from_files": {"x": {"filename": path, "prefix": "out."}}}
    model = Model()
    preloads = Preloads.from_config(config, is_training=False, is_first_train_epoch=False)
    names = preloads.provided_names(model)
    assert names == {"out.weight", "out.bias"} and not (model.out.weight == 2).any()
    preloads.apply(model)
    assert (model.out.weight == 2).all()
