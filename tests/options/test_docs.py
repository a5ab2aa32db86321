"""The option reference is in step with the registry."""

from __future__ import annotations

from pathlib import Path

from returnn.options.docs import render
from returnn.options.registry import all_options

DOCS = Path(__file__).parents[2] / "docs" / "options.md"


def test_options_md_is_up_to_date() -> None:
    assert DOCS.read_text(encoding="utf8") == render(), "run: python -m returnn.options.docs > docs/options.md"


def test_each_option_has_one_row() -> None:
    text = render()
    for option in all_options():
        assert sum(line.startswith(f"| `{option.name}` ") for line in text.splitlines()) == 1, option.name


def test_rows_have_the_number_of_cells_of_their_table() -> None:
    num_cells = 0
    for line in render().splitlines():
        if line.startswith("|---"):
            num_cells = line.count("|")
        elif line.startswith("| `"):
            assert line.replace("\\|", "").count("|") == num_cells, line
