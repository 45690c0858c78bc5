"""Packaging of jaxml. Every lower bound is a version the test suite has run with."""

from setuptools import find_packages, setup

setup(
    name="jaxml",
    version="0.1.0",
    description="Merging, auditing, verifying and curating neural networks as pure JAX functions",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(
        include=["jaxml", "jaxml.*", "launch", "launch.*", "configs", "configs.*"]
    ),
    package_data={"jaxml": ["py.typed"], "jaxml.report": ["*.mplstyle"]},
    install_requires=[
        "jax>=0.10",
        "jaxlib>=0.10",
        "flax>=0.12",
        "optax>=0.2.8",
        "numpy>=2.0",
        "scipy>=1.15",
        "jaxtyping>=0.3",
        # It asks for TensorFlow, which nothing here imports: the README has the slim install.
        "neural-tangents>=0.6.5",
        "scikit-learn>=1.6",
        # tfds reads prepared sets without TensorFlow through array_record.
        "tensorflow-datasets>=4.9.9",
        "array-record>=0.8",
        "importlib_resources>=6.4",
        "pillow>=11.0",
        "absl-py>=2.1",
        "ml_collections>=1.0",
        "orbax-checkpoint>=0.12",
        "safetensors>=0.5",
        "tokenizers>=0.22",
        "matplotlib>=3.9",
        "rich>=13.9",
    ],
    extras_require={
        "cuda12": ["jax[cuda12]"],
        "cuda13": ["jax[cuda13]"],
        "tpu": ["jax[tpu]"],
        "onnx": ["onnx>=1.23"],
        "flower": ["flwr>=1.42"],
        "extraction": ["pydivsufsort>=0.0.20"],
        "datacomp": ["pyarrow>=26.0", "dask[distributed]>=2026.8"],
        "notebooks": ["jupyterlab>=4.4", "ipykernel>=7.0"],
        "test": [
            "pytest>=8.0",
            "pytest-xdist>=3.6",
            "chex>=0.1.90",
            "hypothesis>=6.100",
            "onnx>=1.23",
            "dask[distributed]>=2026.8",
            "nbformat>=5.10",
            "nbclient>=0.10",
            "ipykernel>=7.0",
            "ruff>=0.9",
        ],
    },
)
