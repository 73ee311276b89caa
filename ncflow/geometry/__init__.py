"""Simplex frames and softmax codes, and the frames nearest to given class means, as tensors; only torch is needed."""

from ncflow.geometry.codes import FRAMES, code_bound, orthogonal_frame, softmax_code
from ncflow.geometry.frames import contrasts, from_contrasts, random_orthonormal, seli_frame, simplex_etf
from ncflow.geometry.nearest import etf_distance, nearest_etf
from ncflow.geometry.polar import polar_factor
from ncflow.geometry.seli_products import seli_product

__all__ = [
    "FRAMES",
    "code_bound",
    "contrasts",
    "etf_distance",
    "from_contrasts",
    "nearest_etf",
    "orthogonal_frame",
    "polar_factor",
    "random_orthonormal",
    "seli_frame",
    "seli_product",
    "simplex_etf",
    "softmax_code",
]
