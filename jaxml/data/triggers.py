"""Backdoor triggers: what is put on an image so that a poisoned model answers the target class.

Each is a pure function of images ``[n, h, w, c]`` in [0, 1] and a key, and returns images of the
same shape in [0, 1]. Only ``patch`` at a random position draws from the key.
"""

import functools
import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxml.core.types import Key

Images = Float[Array, "n h w c"]
Trigger = Callable[[Images, Key], Images]

CORNERS = ("top_left", "top_right", "bottom_left", "bottom_right")
POSITIONS = ("random", "corners", *CORNERS)


def periodic(
    x: Images, key: Key | None = None, *, amplitude: float = 6 / 255, n_periods: float = 8
) -> Images:
    """Adds vertical stripes: column ``j`` of ``w`` gets ``amplitude * sin(2 pi n_periods j / w)``.

    Ref: Barni, Kallas & Tondi, "A New Backdoor Attack in CNNs by Training Set Corruption Without
    Label Poisoning", 2019.

    Args:
      x: images ``[n, h, w, c]``.
      key: ignored.
      amplitude: of the wave, of the range of a pixel.
      n_periods: periods across the image.
    """
    x = _images(x)
    width = x.shape[2]
    wave = amplitude * jnp.sin(2 * jnp.pi * n_periods * jnp.arange(width, dtype=x.dtype) / width)
    return jnp.clip(x + wave[None, None, :, None], 0, 1)


def patch(
    x: Images,
    key: Key | None = None,
    *,
    size: int = 3,
    amplitude: float = 1.0,
    position: str = "random",
) -> Images:
    """Adds a checkerboard of ``+amplitude`` and ``-amplitude``; 1 makes it white and black.

    Ref: Gu, Dolan-Gavitt & Garg, "BadNets", 2017; in all four corners with a small amplitude:
    Turner, Tsipras & Madry, "Label-Consistent Backdoor Attacks", 2019.

    Args:
      x: images ``[n, h, w, c]``.
      key: a typed key; needed when ``position`` is ``"random"``, where image ``i`` gets a place of
        its own from ``fold_in(key, i)``.
      size: side of the board in pixels.
      amplitude: of the change, of the range of a pixel.
      position: ``"random"``, ``"corners"`` (all four), or one corner such as ``"top_left"``.

    Raises:
      ValueError: a board larger than the image, an unknown position, or no key for a random one.
    """
    x = _images(x)
    height, width = x.shape[1:3]
    if not 1 <= size <= min(height, width):
        raise ValueError(f"size must lie in 1..{min(height, width)}, the image's, got {size}")
    if position not in POSITIONS:
        raise ValueError(f"position must be one of {', '.join(POSITIONS)}; got {position!r}")
    side = jnp.arange(size)
    board = (1 - 2 * ((side[:, None] + side[None]) % 2)).astype(x.dtype) * amplitude
    blank = jnp.zeros((height, width), x.dtype)
    if position == "random":
        if key is None:
            raise ValueError("key must be given for a patch at a random position")

        def place(index):
            last = jnp.array([height - size, width - size])
            corner = jax.random.randint(jax.random.fold_in(key, index), (2,), 0, last + 1)
            return jax.lax.dynamic_update_slice(blank, board, tuple(corner))

        mask = jax.vmap(place)(jnp.arange(x.shape[0]))
    else:
        mask = blank
        for name in CORNERS if position == "corners" else (position,):
            top = 0 if name.startswith("top") else height - size
            left = 0 if name.endswith("left") else width - size
            mask = mask.at[top : top + size, left : left + size].set(board)
        mask = mask[None]
    return jnp.clip(x + mask[..., None], 0, 1)


def pixel(
    x: Images,
    key: Key | None = None,
    *,
    pixels: tuple[tuple[int, int], ...] = ((-1, -1),),
    value: float | tuple[float, ...] = 1.0,
) -> Images:
    """Sets single pixels to one colour.

    Ref: Tran, Li & Madry, "Spectral Signatures in Backdoor Attacks", 2018.

    Args:
      x: images ``[n, h, w, c]``.
      key: ignored.
      pixels: ``(row, column)`` of each; negative ones count from the end.
      value: in [0, 1], one for all channels or one for each.

    Raises:
      ValueError: a pixel outside the image, or a value outside [0, 1].
    """
    x = _images(x)
    n, height, width, channels = x.shape
    if np.min(value) < 0 or np.max(value) > 1 or np.shape(value) not in ((), (channels,)):
        raise ValueError(f"value must be 1 or {channels} numbers in [0, 1], got {value}")
    colour = jnp.broadcast_to(jnp.asarray(value, x.dtype), (n, channels))
    for row, column in pixels:
        if not (-height <= row < height and -width <= column < width):
            raise ValueError(f"pixel {(row, column)} lies outside an image of {height} x {width}")
        x = x.at[:, row, column].set(colour)
    return x


def blend(
    x: Images, key: Key | None = None, *, ratio: float = 0.2, pattern_seed: int = 0
) -> Images:
    """Mixes each image with one fixed noise image: ``(1 - ratio) x + ratio * noise``.

    Ref: Chen et al., "Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning",
    2017.

    Args:
      x: images ``[n, h, w, c]``.
      key: ignored: the noise is the trigger, so it has a seed of its own.
      ratio: in [0, 1].
      pattern_seed: seed of the noise, uniform in [0, 1].

    Raises:
      ValueError: a ratio outside [0, 1].
    """
    x = _images(x)
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio must lie in [0, 1], got {ratio}")
    noise = jax.random.uniform(jax.random.key(pattern_seed), x.shape[1:], x.dtype)
    return (1 - ratio) * x + ratio * noise[None]


TRIGGERS = {"periodic": periodic, "patch": patch, "pixel": pixel, "blend": blend}


def make_trigger(name: str, **options) -> Trigger:
    """Returns ``trigger(x, key)`` by name, with its options set.

    Raises:
      ValueError: an unknown name.
      TypeError: an option that the trigger does not have.
    """
    if name not in TRIGGERS:
        raise ValueError(f"trigger must be one of {', '.join(TRIGGERS)}; got {name!r}")
    inspect.signature(TRIGGERS[name]).bind_partial(**options)
    return functools.partial(TRIGGERS[name], **options)


def _images(x: Images) -> Images:
    if x.ndim != 4 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x must be floating images [n, h, w, c], got {x.dtype} {tuple(x.shape)}")
    return jnp.asarray(x)
