"""Installation: ``pip install .`` gives the package ``returnn`` and the console command ``returnn`` (= rnn.py)."""

import os
import re

from setuptools import find_packages, setup

here = os.path.dirname(os.path.abspath(__file__))


def read(name: str) -> str:
    """:return: text of a file beside this one"""
    with open(os.path.join(here, name), encoding="utf8") as f:
        return f.read()


match = re.search(r'^VERSION = "(.+)"$', read("returnn/__setup__.py"), re.M)
assert match, "returnn/__setup__.py has no VERSION"

setup(
    name="mini-returnn",
    version=match.group(1),
    description="Train and run sequence-to-sequence models from one Python config",
    long_description=read("README.md") if os.path.exists(os.path.join(here, "README.md")) else "",
    long_description_content_type="text/markdown",
    license="MIT",
    packages=find_packages(include=["returnn", "returnn.*"]),
    python_requires=">=3.10",
    install_requires=[line for line in read("requirements.txt").splitlines() if line and not line.startswith("#")],
    entry_points={"console_scripts": ["returnn = returnn.__main__:console_main"]},
)
