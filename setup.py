"""Packaging of deel-lip; tool settings are in pyproject.toml."""

from pathlib import Path

from setuptools import find_namespace_packages
from setuptools import setup

HERE = Path(__file__).parent

FIGURES = ["matplotlib>=3.7", "scikit-learn>=1.3"]


def requirements(name):
    """Lists the requirements in a file that pip and tox read as well."""
    lines = (HERE / f"requirements/{name}.txt").read_text().splitlines()
    return [line for line in lines if not line.startswith("#")]


setup(
    name="deel-lip",
    version=(HERE / "deel/lip/VERSION").read_text().strip(),
    description="Keras layers and losses with a known Lipschitz constant",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    packages=find_namespace_packages(include=["deel", "deel.*"]),
    package_data={"deel.lip": ["VERSION"]},
    include_package_data=True,
    python_requires=">=3.10",
    install_requires=[
        "keras>=3.4",
        "numpy>=1.26",
        "tensorflow>=2.16",
    ],
    extras_require={
        "jax": ["jax>=0.4.26"],
        "torch": ["torch>=2.2"],
        # Converters and neighbours that the tests show once, where installed.
        "formats": [
            "ai-edge-litert>=1.0",
            "keras-tuner>=1.4",
            "onnx>=1.16",
            "onnxruntime>=1.18",
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
