"""The process and its devices: platform, precision, caches, other processes, the mesh."""

import os

from absl import flags

from launch._flags import UserError


def set_environment(values: flags.FlagValues) -> None:
    """Sets what jax and tensorflow-datasets read from the environment when they are imported."""
    # The second entry keeps the host's own device at hand beside the accelerator.
    platforms = {"cpu": "cpu", "gpu": "cuda,cpu", "tpu": "tpu,cpu"}
    if values.platform != "auto":
        os.environ["JAX_PLATFORMS"] = platforms[values.platform]
    if values.num_devices is not None:
        os.environ["JAX_NUM_CPU_DEVICES"] = str(values.num_devices)
    if values.x64:
        os.environ["JAX_ENABLE_X64"] = "1"
    if values.cache_dir:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.expanduser(values.cache_dir)
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    else:
        os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
    if values.data_dir is not None:
        os.environ["TFDS_DATA_DIR"] = os.path.abspath(os.path.expanduser(values.data_dir))


def join_processes(values: flags.FlagValues) -> None:
    """Joins the other processes, if asked to; this has to precede every other use of jax.

    Raises:
      UserError: they cannot be found.
    """
    if not values.distributed:
        return
    import jax

    numbers = (os.environ.get(f"JAX_{name}") for name in ("NUM_PROCESSES", "PROCESS_ID"))
    local = None if values.num_devices is None else range(values.num_devices)
    try:
        count, index = (None if number is None else int(number) for number in numbers)
        jax.distributed.initialize(None, count, index, local_device_ids=local)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"--distributed: {error}") from error


def make_mesh(values: flags.FlagValues):
    """Makes the mesh of the devices that are asked for.

    Raises:
      UserError: there is no such platform, or there are fewer devices.
    """
    import jax

    from jaxml.core import sharding

    extras = {"gpu": "'.[cuda12]' (or '.[cuda13]')", "tpu": "'.[tpu]'"}
    try:
        found, reason = jax.default_backend(), ""
    except RuntimeError as error:
        found, reason = "none", str(error)
    if values.platform in extras and found != values.platform:
        raise UserError(
            f"--platform={values.platform}: jax finds none on this machine; where there is one, "
            f"install its support with pip install -e {extras[values.platform]}"
        )
    if reason:
        raise UserError(f"--platform={values.platform}: {reason}")
    try:
        # With several processes the mesh is all that they have together.
        return sharding.make_mesh(None if values.distributed else values.num_devices)
    except ValueError as error:
        raise UserError(f"--{error}") from error


def is_leader() -> bool:
    """Says whether this process is the one that prints and writes."""
    import jax

    return jax.process_index() == 0
