"""Networks: convolutions against their matrices, Flax modules against themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxml import verify
from jaxml.nn import ConvNet
from jaxml.verify import models, network


def random_conv(rng, **options):
    shape, groups = options.get("shape", (5, 6, 4)), options.get("groups", 1)
    kernel = rng.normal(size=(3, 2, shape[2] // groups, 6))
    conv = verify.Conv(kernel, np.zeros(1), **{"shape": shape, **options})
    return conv.__class__(kernel, rng.normal(size=conv.n_out), **{"shape": shape, **options})


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"channels_last": False, "strides": (2, 1), "padding": ((1, 2), (0, 1))},
        {"groups": 2, "dilation": (2, 1), "padding": ((2, 2), (1, 0)), "strides": (1, 2)},
        {"groups": 2, "channels_last": False},
    ],
)
def test_a_convolution_is_its_matrix(options):
    rng = np.random.default_rng(0)
    conv = random_conv(rng, **options)
    x, y = rng.normal(size=(3, conv.n_in)), rng.normal(size=(3, conv.n_out))
    matrix = network.matrix(conv)
    assert matrix.shape == (conv.n_out, conv.n_in)
    with jax.enable_x64(True):
        forward, back = jax.jit(lambda c, x, y: (network.affine(c, x), network.transpose(c, y)))(
            conv, x, y
        )
    np.testing.assert_allclose(forward, x @ matrix.T.toarray() + conv.bias, atol=1e-12)
    np.testing.assert_allclose(back, y @ matrix, atol=1e-12)


def test_a_convolutional_network_has_the_bounds_of_its_unrolled_one():
    rng = np.random.default_rng(1)
    conv = random_conv(rng, shape=(5, 4, 2), padding=((1, 1), (0, 1)))
    net = (conv, verify.Dense(rng.normal(size=(6, conv.n_out)) / 10, rng.normal(size=6)),
           verify.Dense(rng.normal(size=(3, 6)), rng.normal(size=3)))  # fmt: skip
    box = verify.linf_box(rng.uniform(size=40), 0.05)
    spec = verify.margin_spec(0, 3)

    @jax.jit
    def bound(net):
        layers = verify.propagate(net, box, verify.crown_bounds(net, box))
        domains = verify.pair_domains(net, layers)
        rhos = verify.start(net, jax.tree.map(jnp.asarray, spec), layers.bounds, "crown")
        zd = verify.pair_dual_value(net, box, spec, domains, rhos)
        return [m(net, box, spec) for m in (verify.ibp, verify.crown, verify.deepz)], zd

    with jax.enable_x64(True):
        found, dense = jax.device_get((bound(net), bound(verify.unroll(net))))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), found, dense)
    for pairs in ("spatial", "depthwise"):
        with jax.enable_x64(True):
            z = verify.propagate(net, box).zonotopes[0]
            groups = verify.partition(z, pairs, layer=conv)
        verify.check_partition(groups, conv.n_out)
        # Neighbours: of one channel, or of one position.
        c = conv.out_shape[2]
        a, b = np.asarray(groups).T
        same = (a % c == b % c) if pairs == "spatial" else (a // c == b // c)
        assert same.all()
    certified = [verify.certify(n, box, spec, [np.zeros((2, n[0].n_out)), np.zeros((2, 6))]).lower
                 for n in (net, verify.unroll(net))]  # fmt: skip
    np.testing.assert_allclose(*certified, atol=1e-9)


@pytest.mark.parametrize(
    ("model", "shape", "kinds"),
    [
        (models.build("mlp", width=9, n_classes=3), (4, 3, 1), "DDD"),
        (ConvNet(3, (4, 6), norm="batch", conv="patches"), (6, 5, 2), "CCD"),
        (models.ConvStack(((3, 4, 2), (4, 3, 1)), 3), (7, 8, 1), "CCDD"),
        (nn.Sequential([nn.Dense(5), nn.relu, lambda x: nn.avg_pool(x[..., None], (2,), (2,)),
                        lambda x: x.reshape(len(x), -1), nn.Dense(4), nn.relu]), (6,), "DDD"),
    ],
)  # fmt: skip
def test_a_flax_module_is_read(model, shape, kinds):
    rng = np.random.default_rng(2)
    x = rng.normal(size=(3, *shape)).astype(np.float32)
    with jax.numpy_dtype_promotion("standard"):  # flax's pooling divides by an integer
        check_reading(model, shape, kinds, x)


def check_reading(model, shape, kinds, x):
    variables = jax.tree.map(
        lambda a: a + 0.1 * jnp.abs(jax.random.normal(jax.random.key(a.size), a.shape)),
        model.init(jax.random.key(0), x),
    )
    net = verify.from_flax(model, variables, shape)
    assert "".join(type(layer).__name__[0] for layer in net) == kinds
    found = [network.apply_on_host(net, row) for row in x.reshape(3, -1).astype(np.float64)]
    np.testing.assert_allclose(found, model.apply(variables, x), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(network.apply(net, jnp.asarray(x.reshape(3, -1))), found, atol=1e-4)


class Residual(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x + nn.relu(nn.Dense(3)(x)))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential([nn.Dense(3), nn.tanh]), "layer 0 has the operation 'tanh'"),
        (nn.Sequential([nn.Dense(3), nn.relu, nn.LayerNorm()]), "layer 1 has the operation"),
        (Residual(), "layer 1 .*skip connections are not supported"),
        (
            nn.Sequential([nn.Dense(3), lambda x: x.astype(int), lambda x: x.astype(float)]),
            "layer 0 has the operation 'convert_element_type'",
        ),
        (nn.Sequential([nn.Dense(3), lambda x: x * 0 / 0]), "layer 0 has 9 weights that are not"),
    ],
)
def test_what_is_no_relu_network_is_refused(model, message):
    variables = model.init(jax.random.key(0), jnp.zeros((1, 3)))
    with pytest.raises(ValueError, match=message):
        verify.from_flax(model, variables, (3,))


def test_bad_networks_and_boxes_are_named():
    dense = verify.Dense(np.zeros((3, 2)), np.zeros(3))
    for net, message in (
        ((), "net must be a tuple of Dense and Conv"),
        ([dense], "net must be a tuple of Dense and Conv, got list"),
        ((dense, "relu"), "layer 1 must be Dense or Conv, got str; relus are implied"),
        ((dense, dense), "layer 1 takes 2 inputs, layer 0 has 3 outputs"),
        ((dense._replace(bias=np.zeros(2)),), "layer 0 has 3 outputs and a bias of shape"),
        ((dense._replace(bias=np.full(3, np.inf)),), "layer 0 has 3 biases that are not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            verify.check_net(net)
    for call, message in (
        (lambda: verify.linf_box(np.zeros(2), -0.1), "eps must be finite and not negative"),
        (lambda: verify.linf_box(np.zeros(2), np.nan), "eps must be finite and not negative"),
        (lambda: verify.linf_box([np.inf], 0.1), "x has values that are not finite"),
        (lambda: verify.linf_box([2.0], 0.1), "x .- eps within clip is empty"),
        (lambda: verify.margin_spec(3, 3), r"label must lie in 0..2, got 3"),
        (lambda: verify.margin_spec(1, 3, targets=[1]), "differ from the label 1, got 1"),
        (lambda: verify.margin_spec(1, 3, targets=[3]), "target must lie in 0..2"),
        (lambda: models.build("resnet", n_classes=2), "model must be one of mlp, ffnet"),
        (lambda: models.build("mlp", n_classes=2, width=0), "width and depth must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    one, other = (verify.Box(*map(jnp.asarray, b)) for b in (([0.0], [1.0]), ([2.0], [3.0])))
    with pytest.raises(ValueError, match="intersection is empty at index 0"):
        verify.intersect(one, other)


def test_a_box_is_rounded_outward():
    box = verify.linf_box([0.3, 0.95], 0.1)
    assert box.lower[0] <= 0.3 - 0.1 and box.upper[0] >= 0.3 + 0.1
    assert box.upper[1] == 1.0
    spec = verify.margin_spec(1, 3)
    np.testing.assert_array_equal(spec.weight, [[-1, 1, 0], [0, 1, -1]])


def test_the_paper_networks_have_their_sizes():
    def sizes(name, shape):
        model = models.build(name, n_classes=10)
        x = jnp.zeros((1, *shape))
        shapes = jax.eval_shape(
            lambda: model.init_with_output(jax.random.key(0), x, capture_intermediates=True)
        )[1]["intermediates"]
        return [
            int(np.prod(value["__call__"][0].shape)) for name, value in shapes.items()
            if name != "__call__"
        ]  # fmt: skip

    assert sizes("ffnet", (28, 28, 1)) == [512, 256, 128, 64, 10]
    assert sizes("wide", (28, 28, 1)) == [3136, 1568, 100, 10]
    assert sizes("wide", (32, 32, 3)) == [4096, 2048, 100, 10]
    assert sizes("deep", (28, 28, 1)) == [1568, 1568, 1568, 392, 100, 10]


def test_adversarial_training_attacks_within_the_box():
    seen = []

    class Spy(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            if train:
                jax.debug.callback(lambda v: seen.append(np.asarray(v)), x)
            return nn.Dense(3)(x)

    model = verify.AdversarialTraining(Spy(), 0.1, 3)
    x = jnp.asarray(np.random.default_rng(3).uniform(size=(4, 5)), jnp.float32)
    variables = model.init(jax.random.key(0), x, train=True)
    seen.clear()
    plain, attacked = (model.apply(variables, x, train=t) for t in (False, True))
    jax.effects_barrier()
    assert len(seen) == 1 and seen[0].min() >= 0 and seen[0].max() <= 1
    assert 0.05 < np.abs(seen[0] - x).max() <= 0.1 + 1e-6
    labels = plain.argmax(1)
    loss = [-jax.nn.log_softmax(z)[jnp.arange(4), labels] for z in (plain, attacked)]
    assert (loss[1] > loss[0]).all()
