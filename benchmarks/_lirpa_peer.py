"""Bounds by auto_LiRPA, in a Python of its own: reads a problem, writes bounds and CPU seconds.

    python _lirpa_peer.py problem.npz result.json

Needs torch and auto_LiRPA 0.3 (what `pip install --no-deps auto-LiRPA` gives) with numpy < 2,
ninja and the small packages that it names. That release was written for torch 1.x: the first lines
lend it three names that torch has moved since.
"""

# ruff: noqa: E402

import json
import sys
import time
import warnings

warnings.filterwarnings("ignore")

import numpy as np
import torch
import torch.onnx.symbolic_helper
import torch.onnx.utils
from torch.onnx._internal.torchscript_exporter import _globals, utils

torch.onnx.symbolic_helper._set_opset_version = lambda v: setattr(
    _globals.GLOBALS, "_export_onnx_opset_version", v
)
torch.onnx.utils._optimize_graph = utils._optimize_graph
torch._C.Node.__getitem__ = lambda node, key: getattr(node, node.kindOf(key))(key)

from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm


def main(problem: str, result: str) -> None:
    """Bounds every row of the problem by CROWN and by alpha-CROWN with 20 and 100 iterations."""
    torch.set_num_threads(1)
    arrays = np.load(problem)
    layers = []
    for i in range(int(arrays["n_layers"])):
        weight, bias = (torch.tensor(arrays[f"{k}{i}"], dtype=torch.float32) for k in "wb")
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
        layer.weight.data, layer.bias.data = weight, bias
        layers += [layer, torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers[:-1])
    found = {}
    for name, method, steps in (
        ("CROWN", "CROWN", 0),
        ("alpha-CROWN, 20 iterations", "CROWN-Optimized", 20),
        ("alpha-CROWN, 100 iterations", "CROWN-Optimized", 100),
    ):
        found[name] = {"lower": [], "seconds": []}
        for low, high, row in zip(arrays["lower"], arrays["upper"], arrays["rows"], strict=True):
            low, high, row = (torch.tensor(a[None], dtype=torch.float32) for a in (low, high, row))
            options = {"optimize_bound_args": {"iteration": steps, "lr_alpha": 0.1}}
            bounded = BoundedModule(model, low, bound_opts=options)
            ball = PerturbationLpNorm(norm=np.inf, x_L=low, x_U=high)
            x = BoundedTensor((low + high) / 2, ball)
            clock = time.process_time()
            lower, _ = bounded.compute_bounds(
                x=(x,), C=row[:, None], method=method, bound_upper=False
            )
            found[name]["seconds"].append(time.process_time() - clock)
            found[name]["lower"].append(float(lower))
    with open(result, "w", encoding="utf-8") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
