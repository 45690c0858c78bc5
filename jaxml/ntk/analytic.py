"""Kernels of infinitely wide networks in closed form, by neural-tangents."""

import math
from collections.abc import Callable
from typing import Literal, get_args

from jaxml.compat import neural_tangents

Architecture = Literal["mlp", "cnn"]
Activation = Literal["relu", "gelu", "erf"]


def analytic_kernel_fn(
    architecture: Architecture = "mlp",
    *,
    depth: int = 3,
    activation: Activation = "relu",
    weight_std: float = math.sqrt(2),
    bias_std: float = 0.0,
) -> Callable:
    """Returns the kernel function of an infinitely wide network with one output.

    ``depth`` hidden layers, dense or 3x3 convolutions (SAME, then the mean over positions), each
    followed by the activation, and a dense head. In NTK parameterisation: a layer computes
    ``weight_std / sqrt(fan_in) W x + bias_std b`` of standard normal ``W`` and ``b``.

    Args:
      architecture: ``"mlp"`` takes ``[n, d]``, ``"cnn"`` ``[n, h, w, c]``.
      depth: hidden layers, positive.
      activation: ``"relu"``, ``"gelu"`` or ``"erf"``.
      weight_std: of every layer.
      bias_std: of every layer.

    Returns:
      ``kernel_fn(x1, x2=None, get="ntk") -> [n1, n2]`` of neural-tangents; ``get="nngp"`` is the
      covariance of the outputs at initialisation. Pure: jit (``get`` static) and grad pass through.

    Raises:
      ValueError: an argument that is none of the above.
      ImportError: neural-tangents does not load.
    """
    for name, value, legal in (
        ("architecture", architecture, get_args(Architecture)),
        ("activation", activation, get_args(Activation)),
    ):
        if value not in legal:
            raise ValueError(f"{name} must be one of {', '.join(legal)}; got {value!r}")
    if depth < 1:
        raise ValueError(f"depth must be positive, got {depth}")
    stax = neural_tangents.load().stax
    nonlinearity = {"relu": stax.Relu, "gelu": stax.Gelu, "erf": stax.Erf}[activation]
    scales = {"W_std": weight_std, "b_std": bias_std if bias_std else None}

    def hidden():
        # The kernel does not depend on the width.
        if architecture == "mlp":
            return stax.Dense(1, **scales)
        return stax.Conv(1, (3, 3), padding="SAME", **scales)

    layers = [layer for _ in range(depth) for layer in (hidden(), nonlinearity())]
    if architecture == "cnn":
        layers.append(stax.GlobalAvgPool())
    _, _, kernel_fn = stax.serial(*layers, stax.Dense(1, **scales))

    def scalar_kernel_fn(x1, x2=None, get: str = "ntk"):
        with neural_tangents.lenient():
            return kernel_fn(x1, x2, get)

    return scalar_kernel_fn
