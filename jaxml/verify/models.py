"""The networks of the ZonoDual paper, as Flax modules."""

from flax import linen as nn
from jaxtyping import Array, Float

from jaxml.nn import MLP

MODELS = ("mlp", "ffnet", "deep", "wide")


class ConvStack(nn.Module):
    """Convolutions with relu, one dense layer of 100 with relu, and a linear head.

    Attributes:
      convs: ``(features, kernel size, stride)`` of each, SAME-padded.
      n_classes: units of the head.
    """

    convs: tuple[tuple[int, int, int], ...]
    n_classes: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], train: bool = False
    ) -> Float[Array, "n n_classes"]:
        """Maps images to logits; ``train`` changes nothing."""
        for features, size, stride in self.convs:
            x = nn.relu(nn.Conv(features, (size, size), (stride, stride))(x))
        x = nn.relu(nn.Dense(100)(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.n_classes)(x)


def build(name: str, *, n_classes: int, width: int = 100, depth: int = 2) -> nn.Module:
    """Makes a network by name.

    Args:
      name: ``"mlp"``, or a network of the paper: ``"ffnet"`` (dense 512-256-128-64), ``"deep"``
        (four convolutions) or ``"wide"`` (two, also for CIFAR-10).
      n_classes: units of the head.
      width: of ``"mlp"``.
      depth: hidden layers of ``"mlp"``.

    Raises:
      ValueError: another name, or sizes that are not positive.
    """
    if name not in MODELS:
        raise ValueError(f"model must be one of {', '.join(MODELS)}; got {name!r}")
    if min(width, depth, n_classes) < 1:
        raise ValueError(f"width and depth must be positive, got {width} and {depth}")
    if name == "mlp":
        return MLP((width,) * depth, n_classes)
    if name == "ffnet":
        return MLP((512, 256, 128, 64), n_classes)
    convs = {
        "deep": ((8, 4, 2), (8, 3, 1), (8, 3, 1), (8, 4, 2)),
        "wide": ((16, 4, 2), (32, 4, 2)),
    }
    return ConvStack(convs[name], n_classes)
