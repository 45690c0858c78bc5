"""Certified bounds for relu networks: IBP, KW, CROWN, alpha-CROWN, DeepZ and ZonoDual."""

from jaxml.verify.attack import AdversarialTraining, Attack, pgd
from jaxml.verify.bounds import (
    STARTS,
    alpha_ascent,
    alpha_bounds,
    alpha_crown,
    box_dual_value,
    crown,
    crown_bounds,
    ibp,
    interval_bounds,
    kw,
    kw_bounds,
    start,
)
from jaxml.verify.dual import Ascent, ascent, dual_value, multipliers, relu_program_box
from jaxml.verify.exact import ExactResult, lp_all_layers, lp_bound, mip_bound
from jaxml.verify.groups import MipBound, merged_bound, relu_program_mip
from jaxml.verify.network import Conv, Dense, Net, apply, check_net, unroll
from jaxml.verify.onnx_file import from_onnx
from jaxml.verify.outward import Certificate, certify, certify_deepz, certify_ibp
from jaxml.verify.partitions import RULES, check_partition, merge_groups, partition
from jaxml.verify.polygons import PairDomain, pair_domain, relu_program_2d
from jaxml.verify.problem import Bounds, Box, Spec, intersect, linf_box, margin_spec
from jaxml.verify.reader import from_flax, from_function
from jaxml.verify.search import Answer, decide
from jaxml.verify.vnnlib import Case, load_vnnlib, parse_vnnlib
from jaxml.verify.zonodual import (
    Result,
    Solution,
    box_ascent,
    dual_ascent,
    pair_domains,
    pair_dual_value,
    zonodual_ascent,
    zonodual_bound,
)
from jaxml.verify.zonotope import Zonotope, deepz, deepz_bounds, propagate

__all__ = [
    "RULES",
    "STARTS",
    "AdversarialTraining",
    "Answer",
    "Ascent",
    "Attack",
    "Bounds",
    "Box",
    "Case",
    "Certificate",
    "Conv",
    "Dense",
    "ExactResult",
    "MipBound",
    "Net",
    "PairDomain",
    "Result",
    "Solution",
    "Spec",
    "Zonotope",
    "alpha_ascent",
    "alpha_bounds",
    "alpha_crown",
    "apply",
    "ascent",
    "box_ascent",
    "box_dual_value",
    "certify",
    "certify_deepz",
    "certify_ibp",
    "check_net",
    "check_partition",
    "crown",
    "crown_bounds",
    "decide",
    "deepz",
    "deepz_bounds",
    "dual_ascent",
    "dual_value",
    "from_flax",
    "from_function",
    "from_onnx",
    "ibp",
    "intersect",
    "interval_bounds",
    "kw",
    "kw_bounds",
    "linf_box",
    "load_vnnlib",
    "lp_all_layers",
    "lp_bound",
    "margin_spec",
    "merge_groups",
    "merged_bound",
    "mip_bound",
    "multipliers",
    "pair_domain",
    "pair_domains",
    "pair_dual_value",
    "parse_vnnlib",
    "partition",
    "pgd",
    "propagate",
    "relu_program_2d",
    "relu_program_box",
    "relu_program_mip",
    "start",
    "unroll",
    "zonodual_ascent",
    "zonodual_bound",
]
