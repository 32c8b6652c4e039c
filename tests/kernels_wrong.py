"""A kernel with a fault that only a backward pass with the joined log-sum-exp shows: it computes its own."""

from mvtrain.attention import kernels_cpu
from mvtrain.attention.kernels_cpu import forward, unsupported

__all__ = ["NAME", "backward", "forward", "unsupported"]

NAME = "wrong"


def backward(dout_QHD, q_QHD, k_SKD, v_SKD, out_QHD, lse_HQ, call, scale):
    out_QHD, lse_HQ = kernels_cpu.forward(q_QHD, k_SKD, v_SKD, call, scale)
    return kernels_cpu.backward(dout_QHD, q_QHD, k_SKD, v_SKD, out_QHD, lse_HQ, call, scale)
