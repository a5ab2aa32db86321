"""Prints the option reference (``docs/options.md``) from the registry: ``python -m returnn.options.docs``."""

from __future__ import annotations

from returnn.options.registry import REQUIRED, Option, all_options
from returnn.options.sections import SECTION_MODULES

__all__ = ["render", "main"]

_INTRO = """\
# Config options

Made by `python -m returnn.options.docs > docs/options.md` from the declarations in `returnn/options/`; do not edit.

Each option is a global variable of the config file, or `++name value` on the command line. A name in the config that is
close to one of these, and that nothing uses, gives a warning; with `strict_config = True` an error.
"""
#: Order and titles of the sections; other modules follow under their own name.
_TITLES = {
    "task": "Run control",
    "logging": "Log",
    "data": "Datasets of a run",
    "datasets": "Defaults of datasets",
    "batching": "Batches",
    "loader": "Data loader",
    "model": "Model, steps, hooks",
    "training": "Training, evaluation, device, precision",
    "forward": "Forward",
    "optimizer": "Optimizer and gradients",
    "learning_rate": "Learning rate",
    "checkpoint": "Checkpoints",
}


def render() -> str:
    """:return: the reference of all options as Markdown text"""
    by_section: dict[str, list[Option]] = {}
    for option in all_options():
        if option.status == "supported":
            by_section.setdefault(option.section.rsplit(".", 1)[-1], []).append(option)
    parts = [_INTRO]
    for section in sorted(by_section, key=lambda s: (list(_TITLES).index(s) if s in _TITLES else len(_TITLES), s)):
        title = _TITLES.get(section, section.replace("_", " ").capitalize())
        parts.append(f"\n## {title}\n\n| option | type | default | meaning |\n|---|---|---|---|\n")
        parts += [_row(o) for o in by_section[section]]
    parts.append(
        "\n## Known, but without effect here\n\nSetting one of these gives a warning that says what to use.\n\n"
        "| option | in the peers | instead |\n|---|---|---|\n"
    )
    parts += [_row_unsupported(o) for o in _with_status("later")]
    parts.append(
        "\n## Refused\n\nA config that sets one of these does not run.\n\n| option | in the peers | instead |\n|---|---|---|\n"
    )
    parts += [_row_unsupported(o) for o in _with_status("refused")]
    parts.append("\n## Accepted without effect\n\n| option | why |\n|---|---|\n")
    parts += [f"| `{o.name}` | {_cell(o.doc)} |\n" for o in _with_status("ignored")]
    return "".join(parts)


def _with_status(status: str) -> list[Option]:
    return sorted((o for o in all_options() if o.status == status), key=lambda o: o.name)


def _row(option: Option) -> str:
    names = f"`{option.name}`"
    if option.aliases:
        names += " (also " + ", ".join(f"`{a}`" for a in option.aliases) + ")"
    default = "required" if option.default is REQUIRED else f"`{_cell(repr(option.default))}`"
    tasks = f" Tasks: {', '.join(option.tasks)}." if option.tasks else ""
    return f"| {names} | {_cell(option.types)} | {default} | {_cell(option.doc)}{tasks} |\n"


def _row_unsupported(option: Option) -> str:
    return f"| `{option.name}` | {_cell(option.doc)} | {_cell(option.instead.rstrip('.') + '.')} |\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def main() -> None:
    """Print the reference."""
    assert SECTION_MODULES, "no option sections found"
    print(render(), end="")


if __name__ == "__main__":
    main()
