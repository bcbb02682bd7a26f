"""What runs on the stand-in headers also compiles with CUDA's own."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent

SOURCE = """
#define SEGKERN_DYNAMIC_SHARED(type, name)                                \\
  extern __shared__ __align__(16) unsigned char segkern_dynamic_shared[]; \\
  type* const name = reinterpret_cast<type*>(segkern_dynamic_shared)
#include "planted.cuh"

namespace planted {
template __global__ void reverse_block<true>(const int*, int*);
template __global__ void atomic_sum<__half>(const __half*, __half*);
template __global__ void atomic_sum<__nv_bfloat16>(const __nv_bfloat16*, __nv_bfloat16*);
template __global__ void small_float_arithmetic<__half>(const __half*, const __half*, __half*, int);
template __global__ void small_float_arithmetic<__nv_bfloat16>(const __nv_bfloat16*,
                                                               const __nv_bfloat16*,
                                                               __nv_bfloat16*, int);
template __global__ void widen<__half>(const __half*, float*, int);
template __global__ void narrow<__nv_bfloat16>(const float*, __nv_bfloat16*, int);
}  // namespace planted
"""


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on the path")
def test_planted_kernels_compile_for_the_device(tmp_path):
    source = tmp_path / "planted.cu"
    source.write_text(SOURCE)
    command = ["nvcc", "-std=c++17", "-arch=sm_90", "-cubin", f"-I{HERE}"]
    command += ["-o", tmp_path / "planted.cubin", source]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
