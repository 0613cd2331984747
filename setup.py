"""Installs the library, with the top-level folders `evals/`, `launch/` and `configs/` as parts of
`jepa_wm`."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
ROOMS_AT_THE_TOP = (
    "evals",
    "launch",
    "configs",
)  # live beside jepa_wm/, install as jepa_wm.<name>
DOCS = ["mkdocs-material", "mkdocstrings[python]"]  # what `mkdocs build` takes
WORLDS = {  # physics, and what tests compare it and its pictures with
    "gym": ["gymnasium[classic-control]"],  # what draws Pendulum and CartPole
    "mazes": ["gymnasium-robotics", "mujoco<4"],
    "pusht": ["gym-pusht", "pymunk<7"],
    "reacher": ["dm_control", "mujoco<4"],
    "minigrid": ["minigrid"],
}


def packages() -> list[str]:
    """All packages by the name they are imported under."""
    names = find_packages(str(HERE), include=["jepa_wm", "jepa_wm.*"])
    for room in ROOMS_AT_THE_TOP:
        names += [
            f"jepa_wm.{name}" for name in find_packages(str(HERE), include=[room, f"{room}.*"])
        ]
    return names


def version() -> str:
    """The one place that states the version is jepa_wm/__init__.py; it is read, not imported."""
    text = (HERE / "jepa_wm" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE)
    assert match, "jepa_wm/__init__.py states no __version__"
    return match.group(1)


def long_description() -> str:
    """The README; empty while a source tree has none."""
    readme = HERE / "README.md"
    return readme.read_text(encoding="utf-8") if readme.exists() else ""


setup(
    name="jepa-wm",
    version=version(),
    description="Masked latent prediction, latent dynamics and planning, without a pixel decoder.",
    long_description=long_description(),
    long_description_content_type="text/markdown",
    python_requires=">=3.10",
    packages=packages(),
    package_dir={f"jepa_wm.{room}": room for room in ROOMS_AT_THE_TOP},
    package_data={
        "jepa_wm": ["py.typed"],
        "jepa_wm.configs": ["*.yaml"],
        "jepa_wm.report": ["templates/*"],
    },
    install_requires=[
        "torch>=2.6",
        "torchvision",
        "timm",
        "submitit",
        "pyyaml",
        "faiss-cpu",
        "pydantic>=2",
        "h5py",
        "safetensors",
        "gymnasium",
        "tensorboard",
        "rich",
        "matplotlib",
        "jinja2",
        "huggingface_hub",
        "numpy",
        "av",
        "pillow",
    ],
    extras_require={
        **WORLDS,
        "worlds": sorted({package for extra in WORLDS.values() for package in extra}),
        "zarr": ["zarr"],
        "lerobot": ["pyarrow"],
        "docs": DOCS,
        # setuptools and wheel: one test builds a wheel without asking the registry for a builder.
        "dev": [
            "pytest",
            "pytest-xdist",
            "hypothesis",
            "ruff",
            "mypy",
            "types-PyYAML",
            "setuptools>=68",
            "wheel",
        ]
        + ["zarr", "pyarrow"]
        + DOCS,
    },
    entry_points={"console_scripts": ["jepa-wm = jepa_wm.cli:main"]},
)
