"""Packaging of deel-lip; tool settings are in pyproject.toml.

With `DEEL_LIP_CORE=1` in the environment the same files are packed under the
name `deel-lip-core`, which requires no backend: an extra cannot take the
TensorFlow of `deel-lip` away. (`deel-lip` cannot be an empty package that
requires `deel-lip-core` either. pip would write the files of the latter, and
then remove them with those of the 1.x that it replaces.)
"""

import os
import re
from pathlib import Path

from setuptools import find_namespace_packages
from setuptools import setup

HERE = Path(__file__).parent

# The address of the project. The site, the notebooks and the links of the
# README on PyPI are made from these, or tested against them.
REPOSITORY = "https://github.com/deel-ai/deel-lip"
BRANCH = "main"
DOCUMENTATION = f"{REPOSITORY}/tree/{BRANCH}/doc"

CORE = os.environ.get("DEEL_LIP_CORE") == "1"
TENSORFLOW = ["tensorflow>=2.16"]

FIGURES = ["matplotlib>=3.7", "scikit-learn>=1.3"]


def requirements(name):
    """Lists the requirements in a file that pip and tox read as well."""
    lines = (HERE / f"requirements/{name}.txt").read_text().splitlines()
    return [line for line in lines if not line.startswith("#")]


def readme():
    """The README, with addresses that work outside of the repository."""
    text = (HERE / "README.md").read_text(encoding="utf-8")
    raw = REPOSITORY.replace("//github.com", "//raw.githubusercontent.com")
    for pattern, address in (
        (r"(!\[[^\]]*\]\()(?!https?:)", f"{raw}/{BRANCH}/"),
        (r"((?<!!)\[[^\]]*\]\()(?!https?:|#)", f"{REPOSITORY}/blob/{BRANCH}/"),
    ):
        text = re.sub(pattern, rf"\g<1>{address}", text)
    return text


setup(
    name="deel-lip-core" if CORE else "deel-lip",
    version=(HERE / "deel/lip/VERSION").read_text().strip(),
    description="Keras layers and losses with a known Lipschitz constant",
    long_description=readme(),
    long_description_content_type="text/markdown",
    author="The deel.lip authors",
    license="MIT",
    url=REPOSITORY,
    project_urls={
        "Documentation": DOCUMENTATION,
        "Source": REPOSITORY,
        "Changelog": f"{REPOSITORY}/blob/{BRANCH}/CHANGELOG.md",
        "Issues": f"{REPOSITORY}/issues",
    },
    keywords=[
        "adversarial robustness",
        "certified robustness",
        "keras",
        "lipschitz",
        "neural network",
        "optimal transport",
        "orthogonal",
        "wasserstein",
    ],
    packages=find_namespace_packages(include=["deel", "deel.*"]),
    package_data={"deel.lip": ["VERSION"]},
    include_package_data=True,
    python_requires=">=3.10",
    install_requires=[
        "keras>=3.4",
        "numpy>=1.26",
        *([] if CORE else TENSORFLOW),
    ],
    extras_require={
        "tensorflow": TENSORFLOW,
        "jax": ["jax>=0.4.26"],
        "torch": ["torch>=2.2"],
        # Converters and neighbours that the tests show once, where installed.
        "formats": [
            "ai-edge-litert>=1.0",
            "keras-tuner>=1.4",
            "onnx>=1.16",
            "onnxruntime>=1.18",
            "openvino>=2025.0",
            "tf2onnx>=1.16",
        ],
        "demo": FIGURES,
        "test": [
            *requirements("test"),
            *requirements("lint"),
            "tensorboard>=2.16",
        ],
        "docs": [
            *FIGURES,
            "furo>=2024.8",
            "myst-nb>=1.1",
            "sphinx>=7.3",
            "sphinx-copybutton>=0.5",
            "sphinx-design>=0.6",
            "sphinx-mathjax-offline==0.0.2",
        ],
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
