"""ONNX files against onnx's own evaluator and against the network in memory."""

import itertools

import jax
import numpy as np
import pytest

from jaxml import verify
from jaxml.verify import network, onnx_file

onnx = pytest.importorskip("onnx")


def write(path, nodes, weights, shape, *, opset=15, n_out=3):
    """Writes nodes ``(op, inputs, output, attributes)``; the first reads x, the last writes y."""
    made = [onnx.helper.make_node(op, inputs, [output], name=f"{op}_{i}", **attributes)
            for i, (op, inputs, output, attributes) in enumerate(nodes)]  # fmt: skip
    graph = onnx.helper.make_graph(
        made, "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, n_out])],
        [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()],
    )  # fmt: skip
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8
    )
    onnx.save(model, path)
    return path


def normal(rng, *shape):
    return (0.4 * rng.normal(size=shape)).astype(np.float32)


def convolutional(path, **options):
    rng = np.random.default_rng(0)
    weights = {
        "mean": np.full((1, 1, 1, 1), 0.5, np.float32), "std": np.full(1, 0.25, np.float32),
        "k": normal(rng, 4, 1, 3, 3), "b": normal(rng, 4), "scale": normal(rng, 4),
        "shift": normal(rng, 4), "mu": normal(rng, 4), "var": np.abs(normal(rng, 4)) + 0.5,
        "k2": normal(rng, 4, 2, 2, 2), "w": normal(rng, 4, 5), "c": normal(rng, 5),
        "v": normal(rng, 3, 5), "d": normal(rng, 3), "shape": np.array([0, -1]),
    }  # fmt: skip
    nodes = [
        ("Sub", ["x", "mean"], "s", {}),
        ("Div", ["s", "std"], "n", {}),
        ("Conv", ["n", "k", "b"], "c1", {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
        ("BatchNormalization", ["c1", "scale", "shift", "mu", "var"], "bn", {}),
        ("Relu", ["bn"], "r1", {}),
        ("Conv", ["r1", "k2"], "c2", {"auto_pad": "SAME_UPPER", "group": 2}),
        ("Relu", ["c2"], "r2", {}),
        ("AveragePool", ["r2"], "p", {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("GlobalAveragePool", ["p"], "gp", {}),
        ("Reshape", ["gp", "shape"], "f", {}),
        ("MatMul", ["f", "w"], "m", {}),
        ("Add", ["c", "m"], "a", {}),
        ("Relu", ["a"], "r3", {}),
        ("Dropout", ["r3"], "dr", {}),
        ("Gemm", ["dr", "v", "d"], "y", {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    ]
    return write(path, nodes, weights, ["batch", 1, 8, 8], **options)


@pytest.fixture(scope="module")
def convolutional_file(tmp_path_factory):
    return convolutional(tmp_path_factory.mktemp("onnx") / "conv.onnx")


def test_a_file_is_the_function_that_onnx_evaluates(convolutional_file):
    net = verify.from_onnx(convolutional_file)
    assert [type(layer).__name__ for layer in net] == ["Conv", "Conv", "Dense", "Dense"]
    evaluate = onnx_file.evaluator(convolutional_file)
    for x in np.random.default_rng(1).uniform(size=(10, 64)).astype(np.float32):
        found = network.apply_on_host(net, x.astype(np.float64))
        np.testing.assert_allclose(found, evaluate(x), atol=1e-4)


def test_old_files_are_replayed_in_evaluation_mode(tmp_path):
    path = convolutional(tmp_path / "old.onnx", opset=13)
    x = np.random.default_rng(2).uniform(size=64)
    found = network.apply_on_host(verify.from_onnx(path), x)
    np.testing.assert_allclose(found, onnx_file.evaluator(path)(x), atol=1e-4)


def test_a_dense_file_has_the_bound_of_the_network_in_memory(tmp_path):
    rng = np.random.default_rng(3)
    sizes = (4, 7, 8, 3)
    net = tuple(verify.Dense(normal(rng, b, a).astype(np.float64), normal(rng, b).astype(
        np.float64)) for a, b in itertools.pairwise(sizes))  # fmt: skip
    weights, nodes, last = {}, [], "x"
    for i, layer in enumerate(net):
        weights[f"w{i}"] = layer.weight.astype(np.float32)
        weights[f"b{i}"] = layer.bias.astype(np.float32)
        out = "y" if i == 2 else f"z{i}"
        nodes.append(("Gemm", [last, f"w{i}", f"b{i}"], out, {"transB": 1}))
        nodes += [] if i == 2 else [("Relu", [out], f"r{i}", {})]
        last = f"r{i}"
    path = write(tmp_path / "mlp.onnx", nodes, weights, [1, 4])
    read = verify.from_onnx(path)
    box, spec = verify.linf_box(rng.uniform(size=4), 0.2), verify.margin_spec(0, 3)
    found, wanted = (verify.zonodual_bound(n, box, spec, n_steps=60).lower for n in (read, net))
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    # The same as a property: there is a point with Y_t >= Y_0 just where the margin is not proved.
    ends = zip(*(end.tolist() for end in box), strict=True)
    text = "".join(f"(declare-const X_{i} Real)" for i in range(4))
    text += "".join(f"(declare-const Y_{i} Real)" for i in range(3))
    text += "".join(f"(assert (>= X_{i} {a!r}))(assert (<= X_{i} {b!r}))"
                    for i, (a, b) in enumerate(ends))  # fmt: skip
    text += "(assert (or (and (>= Y_1 Y_0)) (and (>= Y_2 Y_0))))"
    answer = verify.decide(
        jax.random.key(0), read, verify.parse_vnnlib(text), timeout=30, n_steps=60,
        replay=onnx_file.evaluator(path),
    )  # fmt: skip
    exact = [r.lower for r in verify.mip_bound(net, box, spec)]
    assert answer.result == ("unsat" if min(exact) > 1e-3 else "sat")


@pytest.mark.parametrize(
    ("nodes", "error", "message"),
    [
        ([("Sigmoid", ["x"], "y", {})], NotImplementedError, "operator Sigmoid .node 'Sigmoid_0'"),
        ([("MaxPool", ["x"], "y", {"kernel_shape": [2, 2]})], NotImplementedError,
         "operator MaxPool .node 'MaxPool_0'"),
        ([("AveragePool", ["x"], "y", {"kernel_shape": [2, 2], "ceil_mode": 1})],
         NotImplementedError, "AveragePool .node 'AveragePool_0'.*ceil_mode"),
        ([("Relu", ["x"], "r", {}), ("Add", ["x", "r"], "y", {})], ValueError, "skip connections"),
        ([("Mul", ["x", "x"], "y", {})], ValueError, "layer 0 has the operation 'mul'"),
        ([("Cast", ["x"], "i", {"to": onnx.TensorProto.INT64}),
          ("Cast", ["i"], "y", {"to": onnx.TensorProto.FLOAT})], ValueError,
         "layer 0 has the operation 'convert_element_type'"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_named(nodes, error, message, tmp_path):
    path = write(tmp_path / "bad.onnx", nodes, {}, [1, 1, 4, 4])
    with pytest.raises(error, match=message):
        verify.from_onnx(path)


def test_a_file_that_is_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        verify.from_onnx(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(ValueError, match="is no ONNX model"):
        verify.from_onnx(tmp_path / "text.onnx")
