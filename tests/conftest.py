"""The test rig: strict promotion, four CPU devices, a persistent compilation cache."""

import os
import tempfile

import jax
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update(
    "jax_compilation_cache_dir",
    os.environ.get("JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), "jaxml-tests")),
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def pytest_configure(config):
    """Compiles quickly what runs once: compilation is most of the unit suite's time."""
    if config.option.markexpr == "not heavy":
        jax.config.update("jax_disable_most_optimizations", True)
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # for processes that tests start


@pytest.fixture(scope="module", autouse=True)
def _few_programs():
    """Drops compiled programs after each file.

    A process may hold 65530 memory maps, by default, and each program takes some: thousands of them
    end in a segmentation fault inside the compiler.
    """
    yield
    jax.clear_caches()
