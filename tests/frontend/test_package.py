"""returnn.frontend has the run context; whatever else is asked for is answered with a sentence."""

from __future__ import annotations

import importlib
import pickle
from pathlib import Path

import pytest

import returnn.frontend as rf
from returnn.errors import NotSupportedError
from returnn.frontend._unsupported import FrontendImportError
from tests.helpers import run_rnn

SENTENCE = "layers of the frontend are out of scope; write the model with torch.nn"


def test_attributes() -> None:
    with pytest.raises(AttributeError, match=rf"returnn.frontend.Linear is not supported: {SENTENCE}") as info:
        _ = rf.Linear  # type: ignore[attr-defined]
    assert isinstance(info.value, NotSupportedError)
    assert not hasattr(rf, "encoder") and getattr(rf, "x", 3) == 3
    with pytest.raises(AttributeError, match="^module 'returnn.frontend' has no attribute '__wrapped__'$"):
        _ = rf.__wrapped__  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("from returnn.frontend import Linear", "Linear"),
        ("import returnn.frontend.encoder.conformer", "encoder"),
        ("from returnn.frontend.encoder.conformer import ConformerEncoder", "encoder"),
        ("from returnn.frontend.run_ctx import RunCtx, other", None),
    ],
)
def test_imports(code: str, name: str | None) -> None:
    with pytest.raises(
        ImportError, match=rf"returnn.frontend.{name} is not supported: {SENTENCE}" if name else "other"
    ):
        exec(code, {})


def test_other_imports_are_left_alone() -> None:
    with pytest.raises(ModuleNotFoundError, match="^No module named 'returnn.nothing'$"):
        importlib.import_module("returnn.nothing")
    with pytest.raises(ModuleNotFoundError, match="^No module named 'no_such_module'$"):
        importlib.import_module("no_such_module")
    assert pickle.loads(pickle.dumps(FrontendImportError("text", name="x"))).name == "x"


def test_config_that_imports_a_layer(tmp_path: Path) -> None:
    (tmp_path / "a.config").write_text("#!rnn.py\nfrom returnn.frontend import Linear\n")
    res = run_rnn("a.config", cwd=tmp_path, check=False)
    assert res.returncode == 1 and SENTENCE in res.stderr.splitlines()[-1]
