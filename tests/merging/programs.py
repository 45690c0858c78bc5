"""Random small programs, on which the soundness of derived permutation specs is tested.

A program draws operations by a seeded generator while it is traced, so it is a function of
``(params, x)`` like any other; nothing about it is known to the code under test.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

SIZES = (2, 3, 4, 6, 8, 12)
MAX_SIZE = 4000


class _Draw:
    """The generator, and parameters handed out in the order in which the program asks for them."""

    def __init__(self, seed, params):
        self.rng = np.random.default_rng(seed)
        self._params = params
        self.shapes = []

    def param(self, *shape):
        name = f"p{len(self.shapes)}"
        self.shapes.append(shape)
        return jnp.zeros(shape) if self._params is None else self._params[name]

    def size(self):
        return int(self.rng.choice(SIZES))

    def axis(self, x):
        return int(self.rng.integers(x.ndim))

    def coin(self):
        return bool(self.rng.integers(2))

    def choice(self, items):
        return items[self.rng.integers(len(items))]

    def constant(self, *shape):
        return jnp.asarray(self.rng.normal(size=shape), jnp.result_type(float))


def _index(x, n):
    """An integer below ``n`` that depends on the data and on no order."""
    return (10 * jnp.abs(x).sum()).astype(jnp.int32) % n


def _along(v, axis, ndim):
    return v.reshape([-1 if d == axis else 1 for d in range(ndim)])


def dense(d, x, pool):
    axis = d.axis(x)
    y = jnp.tensordot(x, d.param(x.shape[axis], d.size()), ((axis,), (0,)))
    return jnp.moveaxis(y, -1, axis) if d.coin() else y


def dense_two_axes(d, x, pool):
    i, j = sorted(d.rng.choice(x.ndim, 2, replace=False).tolist())
    return jnp.tensordot(x, d.param(x.shape[i], x.shape[j], d.size()), ((i, j), (0, 1)))


def square_residual(d, x, pool):
    axis = d.axis(x)
    n = x.shape[axis]
    y = jnp.tensordot(x, d.param(n, n), ((axis,), (0,)))
    return x + jnp.tanh(jnp.moveaxis(y, -1, axis))


def scale_and_shift(d, x, pool):
    axis = d.axis(x)
    n = x.shape[axis]
    return x * _along(d.param(n), axis, x.ndim) + _along(d.param(n), axis, x.ndim)


def constant_along_axis(d, x, pool):
    axis = d.axis(x)
    return x + _along(d.constant(x.shape[axis]), axis, x.ndim)


def elementwise(d, x, pool):
    fn = d.choice(
        [jnp.tanh, jnp.sin, jax.nn.relu, jnp.abs, jax.nn.gelu, jax.nn.silu, jnp.square,
         lambda v: jnp.clip(v, -0.5, 0.7), lambda v: jnp.where(v > 0, v, 0.1 * v),
         lambda v: lax.integer_pow(v, 3), jax.nn.softplus]
    )  # fmt: skip
    return fn(x)


def combine(d, x, pool):
    others = [v for v in pool if v.shape == x.shape] or [x]
    fn = d.choice([jnp.add, jnp.multiply, jnp.maximum, lambda a, b: jnp.where(a > b, a, 2 * b)])
    return fn(x, d.choice(others))


def combine_transposed(d, x, pool):
    others = [v.T for v in pool if v.T.shape == x.shape]
    return x + d.choice(others) if others else x


def outer(d, x, pool):
    n = d.size()
    v = d.choice([d.param(n), jnp.tanh(d.param(n)) * d.constant(n)])
    return jnp.expand_dims(x, -1) * v.reshape(*[1] * x.ndim, n)


def reshape(d, x, pool):
    n, shape = x.size, []
    while n > 1:
        divisors = [k for k in range(2, n + 1) if n % k == 0 and k <= 24] or [n]
        shape.append(int(d.choice(divisors)))
        n //= shape[-1]
    return x.reshape(shape or (1,))


def merge_axes(d, x, pool):
    i = int(d.rng.integers(x.ndim - 1))
    return x.reshape(*x.shape[:i], -1, *x.shape[i + 2 :])


def split_axis(d, x, pool):
    i = d.axis(x)
    n = x.shape[i]
    k = d.choice([k for k in range(1, n + 1) if n % k == 0])
    return x.reshape(*x.shape[:i], k, n // k, *x.shape[i + 1 :])


def transpose(d, x, pool):
    return x.transpose(d.rng.permutation(x.ndim).tolist())


def slice_(d, x, pool):
    i = d.axis(x)
    n = x.shape[i]
    if d.coin():
        k = d.choice([k for k in range(1, n + 1) if n % k == 0])
        start, stop, stride = k * int(d.rng.integers(n // k)), None, 1
        stop = start + k
    else:
        start = int(d.rng.integers(n))
        stop, stride = int(d.rng.integers(start + 1, n + 1)), int(d.rng.integers(1, 3))
    return lax.slice_in_dim(x, start, stop, stride, axis=i)


def split_and_recombine(d, x, pool):
    i = d.axis(x)
    n = x.shape[i]
    k = d.choice([k for k in range(1, n + 1) if n % k == 0])
    parts = jnp.split(x, k, axis=i)
    mode = d.rng.integers(4)
    if mode == 0:
        return sum(parts[1:], parts[0])
    if mode == 1:
        return parts[0] * jnp.tanh(parts[-1])
    if mode == 2:
        return jnp.concatenate(parts[::-1], axis=i)
    return jnp.concatenate([parts[0], *parts[:0:-1]], axis=d.axis(x))


def unequal_split(d, x, pool):
    i = d.axis(x)
    if x.shape[i] < 3:
        return x
    parts = jnp.split(x, [1], axis=i)
    return jnp.concatenate([jnp.sin(parts[1]), parts[0]], axis=i)


def concatenate(d, x, pool):
    i = d.axis(x)
    fits = [v for v in pool if v.ndim == x.ndim
            and all(a == b for k, (a, b) in enumerate(zip(v.shape, x.shape, strict=True))
                    if k != i)]  # fmt: skip
    return jnp.concatenate([x, d.choice([*fits, jnp.cos(x), d.param(*x.shape)])], axis=i)


def stack_and_reduce(d, x, pool):
    axis = int(d.rng.integers(x.ndim + 1))
    y = jnp.stack([x, jnp.sin(x), d.param(*x.shape)], axis=axis)
    return d.choice([jnp.sum, jnp.max])(y, axis=axis) if d.coin() else y


def pad(d, x, pool):
    i = d.axis(x)
    low, high, inside = d.choice([(1, 0, 0), (0, 1, 0), (1, 1, 0), (0, 0, 1), (-1, 1, 0)])
    if x.shape[i] == 1:
        return x
    return lax.pad(x, jnp.zeros((), x.dtype), [(low, high, inside) if k == i else (0, 0, 0)
                                               for k in range(x.ndim)])  # fmt: skip


def reduce(d, x, pool):
    fn = d.choice([jnp.sum, jnp.mean, jnp.max, jnp.std, jax.nn.logsumexp])
    return fn(x, axis=d.axis(x), keepdims=d.coin())


def normalise(d, x, pool):
    axis = d.axis(x)
    return d.choice([jax.nn.softmax, jax.nn.standardize])(x, axis=axis)


def broadcast(d, x, pool):
    n = d.size()
    axis = int(d.rng.integers(x.ndim + 1))
    y = jnp.expand_dims(x, axis)
    return jnp.broadcast_to(y, (*y.shape[:axis], n, *y.shape[axis + 1 :]))


def tile(d, x, pool):
    axis = d.axis(x)
    reps = [2 if k == axis else 1 for k in range(x.ndim)]
    return jnp.tile(x, reps) if d.coin() else jnp.repeat(x, 2, axis=axis)


def gather_constant(d, x, pool):
    axis = d.axis(x)
    return jnp.take(x, d.rng.integers(x.shape[axis], size=d.size()), axis=axis)


def gather_by_data(d, x, pool):
    axis, from_ = d.axis(x), d.choice(pool)
    index = jnp.argmax(from_, axis=d.axis(from_)) % x.shape[axis]
    y = jnp.take(x, index.reshape(-1)[:6] if d.coin() else index, axis=axis)
    return y


def embed(d, x, pool):
    index = jnp.argmax(x, axis=d.axis(x)) % 5
    return d.param(5, d.size())[index]


def take_along(d, x, pool):
    axis = d.axis(x)
    return jnp.take_along_axis(x, jnp.argsort(d.choice([x, jnp.sin(x)]), axis=axis), axis=axis)


def one_hot(d, x, pool):
    axis = d.axis(x)
    hot = jax.nn.one_hot(jnp.argmax(x, axis=axis), x.shape[axis], axis=axis, dtype=x.dtype)
    return x * hot


def dynamic_slice(d, x, pool):
    axis = d.axis(x)
    start = _index(x, x.shape[axis])
    return lax.dynamic_slice_in_dim(x, start, max(1, x.shape[axis] // 2), axis=axis)


def dynamic_update(d, x, pool):
    axis = d.axis(x)
    n = max(1, x.shape[axis] // 2)
    update = jnp.cos(lax.slice_in_dim(x, 0, n, axis=axis))
    return lax.dynamic_update_slice_in_dim(x, update, _index(x, 3), axis=axis)


def scatter(d, x, pool):
    return x.at[d.rng.integers(x.shape[0], size=2)].add(1.0)


def positional(d, x, pool):
    axis = d.axis(x)
    fn = d.choice([jnp.cumsum, jnp.sort, jnp.flip, lax.cummax, lambda v, axis: jnp.roll(v, 1, axis),
                   jax.nn.log_softmax])  # fmt: skip
    return fn(x, axis=axis)


def iota_mask(d, x, pool):
    axis = d.axis(x)
    i = lax.broadcasted_iota(jnp.int32, x.shape, axis)
    if d.coin():
        j = lax.broadcasted_iota(jnp.int32, x.shape, d.axis(x))
        return jnp.where(i <= j, x, 0.0)
    return jnp.where(i % 2 == 0, x, 0.5 * x)


def scan_rows(d, x, pool):
    w = d.param(*x.shape[1:])
    init = d.choice([jnp.zeros(x.shape[1:], x.dtype), d.param(*x.shape[1:])])

    def step(h, row):
        h = jnp.tanh(h * w + row)
        return h, jnp.sin(h)

    carry, ys = lax.scan(step, init, x, reverse=d.coin())
    return d.choice([carry, ys, ys + carry[None]]) if x.ndim > 1 else ys


def scan_cell(d, x, pool):
    if x.ndim < 2:
        return x
    n, k = x.shape[-1], d.size()
    wi, wh, b = d.param(n, k), d.param(k, k), d.param(k)
    lead = x.shape[1:-1]

    def step(h, row):
        h = jnp.tanh(row @ wi + h @ wh + b.reshape(*[1] * len(lead), k))
        return h, h

    carry, ys = lax.scan(step, jnp.zeros((*lead, k), x.dtype), x)
    return d.choice([carry, ys])


def scan_layers(d, x, pool):
    n = x.shape[-1]
    w, b = d.param(3, n, n), d.param(3, n)

    def layer(h, p):
        return h + jnp.tanh(h @ p[0] + p[1].reshape(*[1] * (x.ndim - 1), n)), None

    return lax.scan(layer, x, (w, b))[0]


def scan_shuffled_carry(d, x, pool):
    u, v = jnp.sin(x), d.param(*x.shape)

    def step(carry, _):
        a, b, c = carry
        return (b, c, jnp.tanh(a + 0.5 * b)), None

    (a, b, c), _ = lax.scan(step, (x, u, v), length=2)
    return d.choice([a, b, a + c])


def loop(d, x, pool):
    w = d.param(x.shape[-1])
    steps = 1 + _index(x, 3)
    return lax.fori_loop(0, steps, lambda _, h: jnp.tanh(h * _along(w, h.ndim - 1, h.ndim)), x)


def branch(d, x, pool):
    v = d.param(*x.shape)
    return lax.cond(x.sum() > 0, lambda a, b: jnp.sin(a), lambda a, b: a + b, x, v)


def switch_by_axis(d, x, pool):
    axis = d.axis(x)
    return lax.switch(_index(x, 2), [jnp.tanh, lambda a: jnp.flip(a, axis)], x)


def nested(d, x, pool):
    w = d.param(x.shape[-1], d.size())
    fn = d.choice([jax.jit, jax.checkpoint, lambda f: jax.vmap(f, in_axes=(0, None)),
                   lambda f: lambda a, w: lax.map(lambda r: f(r, w), a)])  # fmt: skip
    return fn(lambda a, w: jnp.tanh(a @ w))(x, w) if x.ndim > 1 else x


def window(d, x, pool):
    axis = d.axis(x)
    dims = [2 if k == axis and n > 1 else 1 for k, n in enumerate(x.shape)]
    strides = [d.choice([1, 2]) if k == axis else 1 for k in range(x.ndim)]
    kind, init = d.choice([(lax.max, -jnp.inf), (lax.add, 0.0)])
    return lax.reduce_window(x, np.asarray(init, x.dtype), kind, dims, strides,
                             d.choice(["SAME", "VALID"]))  # fmt: skip


def convolve(d, x, pool):
    if x.ndim != 3:
        return x
    c = x.shape[-1]
    groups = d.choice([k for k in range(1, c + 1) if c % k == 0])
    out = groups * d.choice([1, 2, 3])
    return lax.conv_general_dilated(
        x, d.param(2, c // groups, out), (1,), "SAME", feature_group_count=groups,
        dimension_numbers=("NTC", "TIO", "NTC"),
    )  # fmt: skip


def attention(d, x, pool):
    if x.ndim != 3:
        return x
    h, k = 2, d.choice([2, 3])
    q, key, v = (jnp.tensordot(x, d.param(x.shape[-1], h, k), ((2,), (0,))) for _ in range(3))
    weights = jax.nn.softmax(jnp.einsum("bqhk,bphk->bhqp", q, key), axis=-1)
    y = jnp.einsum("bhqp,bphk->bqhk", weights, v)
    return jnp.tensordot(y, d.param(h, k, x.shape[-1]), ((2, 3), (0, 1)))


def gram(d, x, pool):
    axis = d.axis(x)
    y = jnp.moveaxis(x, axis, -1).reshape(-1, x.shape[axis])
    return y.T @ y


def batched_product(d, x, pool):
    others = [v for v in pool if v.shape == x.shape] or [x]
    y = d.choice(others)
    if x.ndim < 2:
        return x * y
    return jnp.einsum("...ij,...kj->...ik", x, y) if x.ndim < 4 else x + y


def weight_by_weight(d, x, pool):
    w = d.param(x.shape[-1], d.size())
    return d.choice([lambda: x @ w @ w.T, lambda: x @ jnp.tanh(w @ w.T),
                     lambda: x @ (w @ d.param(w.shape[1], d.size()))])()  # fmt: skip


def diagonal(d, x, pool):
    if x.ndim < 2 or x.shape[-1] != x.shape[-2]:
        return x
    return d.choice([lambda v: jnp.diagonal(v, axis1=-2, axis2=-1),
                     lambda v: jnp.trace(v, axis1=-2, axis2=-1)[..., None, None] * v,
                     jnp.tril])(x)  # fmt: skip


ANY_RANK = (
    dense, dense, dense, square_residual, scale_and_shift, constant_along_axis, elementwise,
    elementwise, combine, combine, combine_transposed, outer, reshape, reshape, split_axis,
    split_axis, transpose, slice_, slice_, split_and_recombine, split_and_recombine, unequal_split,
    concatenate, concatenate, stack_and_reduce, pad, reduce, normalise, broadcast, tile,
    gather_constant, gather_by_data, embed, take_along, one_hot, dynamic_slice, dynamic_update,
    scatter, positional, iota_mask, scan_rows, scan_cell, scan_layers, scan_shuffled_carry, loop,
    branch, switch_by_axis, nested, window, convolve, attention, gram, batched_product,
    weight_by_weight, diagonal,
)  # fmt: skip
TWO_AXES = (merge_axes, merge_axes, dense_two_axes)


def make_program(seed, *, n_ops=8, operations=None):
    """Returns (fn, params, x): ``fn(params, x)`` draws ``n_ops`` operations by ``seed``."""
    operations = operations or (*ANY_RANK, *TWO_AXES)

    def run(params, x, draw):
        pool = [x]
        axis = int(draw.rng.integers(1, x.ndim))
        pool.append(jnp.tensordot(x, draw.param(x.shape[axis], 12), ((axis,), (0,))))
        for _ in range(n_ops):
            value = pool[-1] if draw.rng.random() < 0.7 else draw.choice(pool)
            op = draw.choice(operations)
            if value.ndim < 2 and op in TWO_AXES:
                continue
            result = op(draw, value, pool)
            if 0 < result.ndim <= 5 and 1 < result.size <= MAX_SIZE:
                pool.append(result)
        # Contract everything that is left, so that inner axes can be free.
        out = []
        for v in pool[-2:]:
            axes = tuple(range(v.ndim)) if draw.coin() else tuple(range(1, v.ndim))
            w = draw.param(*(v.shape[i] for i in axes), 2)
            y = jnp.tensordot(jnp.tanh(v), w, (axes, tuple(range(len(axes)))))
            out.append(y.reshape(-1))
        return jnp.concatenate(out)

    x_shape = (2, *np.random.default_rng(seed + 10**6).choice(SIZES[:4], size=2).tolist())
    planner = _Draw(seed, None)
    jax.eval_shape(lambda x: run(None, x, planner), jax.ShapeDtypeStruct(x_shape, float))
    rng = np.random.default_rng(seed)
    params = {
        f"p{i}": rng.normal(size=shape) / np.sqrt(max(1, np.prod(shape[:-1])))
        for i, shape in enumerate(planner.shapes)
    }
    x = rng.normal(size=x_shape)
    return lambda params, x: run(params, x, _Draw(seed, params)), params, x
