"""Blocks that version 0.2.0 wrote: they are accepted, and compute what they did, to the bit."""

from __future__ import annotations

import base64
import zlib

import numpy as np
import pytest
from helpers.kernels import run_linear

from mindone.models.share4v.kernels.library import Library
from mindone.models.share4v.kernels.packing import BlockSpec, MatrixSpec, NormSpec, check_block

# dtype -> a block [3, 40] with a norm and a bias, and the bits of its outputs for two rows, on AVX2.
WRITTEN = {
    "int8": (
        "c-kw@FeyvQ$u@N0WWWm;fq2bPb#o1v01E?2fC)-7Lur^f4y;fHls-VBxuakdi~@>){k$8T_SPGP?QeF<+LtA%+lyEm+HVxLw)cPI"
        "V*lodpMBTd2z&LiB>SU&Ird5FW%djV4M4dTpuSF^d>>HnWT2WEK>c%p>J|abSPoRX258Pkp!#h<vvvdZ902M$0@QO7sOKC|&t;&V"
        "8$dmGfqEVR^*jgac>~n*5vb=IP|t6BQ1L+6`3)d-2SENH$Me2QI!eAuxaG4IS1Z0z#4X==-*%Q}%VXyYdfhL{vHwTd7NNO+W4F66"
        "WlkVRf5BPpPVw@KhWliyu9Ktxx$7c^?$_Q+O(%c!Cr5wWZpm`i)cx{nxH68BqyMV$gm?8fEhno01Ckv5KC3v=J_oPmodpa?a`Yco"
        "tiO|cT)j~U7?9-XcWM8Uc+Y*(ug0gIbI8%ZM5z8y@;dQ)hLr8nqeaos0|1ujitY",
        [[3230470958, 3248201827, 1104822331], [3240294851, 3236119454, 1100066212]],
    ),
    "int4": (
        "c-kw@FeyvQ$u@LgXTS>>fq2bPb#o1v01E?2fEkU3nd86;WkBfzB$_)4M!_hc2-wfN!D(;3QP}=wr>uQhlDfT!wW0k+VQYK;H!k*X"
        "j`-Pk&5f{EFH5pN>X&1mq+Vvvz|a7cYXR!(1j_dT^-cz=nE}*47pQI#(2V6kwQGRpYy_&`1~h9oP|pFNo+Cg#CxLp-0rgx4>bU{b"
        "a~G)R5m3)_pq@8CJs*L3z5(_8wg(jtgq`02Qg;C44{|(TXLM*&yb(hKE?Bj3&&F~?-0~0H)_iKyKb2xS`=NUW86aY>aHZUe;5TcS"
        "GR~2s|GsJW!|8^%OI5n=o06j+====*ohg53e+=JCj{cVZ&Ze%G{*H#W-bQlt_q8|lH1)PObo4iObqqlO0C{F_Py",
        [[3230977735, 3248015327, 1104632262], [3240458127, 3236797587, 1099774709]],
    ),
}


@pytest.mark.parametrize("dtype", WRITTEN)
def test_a_block_of_0_2_0_computes_what_it_did(kernels: Library, kind: str, dtype: str) -> None:
    text, bits = WRITTEN[dtype]
    block = np.frombuffer(bytearray(zlib.decompress(base64.b85decode(text))), np.uint8)
    aligned = np.zeros(len(block) + 64, np.uint8)
    aligned = aligned[-aligned.ctypes.data % 64 :][: len(block)]
    aligned[:] = block
    check_block(aligned, BlockSpec((MatrixSpec(3, 40, dtype, True),), (NormSpec("rms", 40, 1e-5),)), "block")
    x = ((np.arange(80) * 23 % 61 - 30) / 16).astype(np.float32).reshape(2, 40)
    y, expected = run_linear(kernels, x, aligned, 3), np.array(bits, np.uint32).view(np.float32)
    if kind == "portable":  # whose multiply-adds round twice
        assert np.allclose(y, expected, rtol=1e-5)
    else:
        assert np.array_equal(y, expected)
