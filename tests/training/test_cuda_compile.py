"""The CUDA step's kernels compile for an H100: Triton's compiler takes less than its interpreter does."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

POINTERS = {"applied_ptr": "*i64", "shadow_ptr": "*bf16"}
INTEGERS = ("batch", "d_sae", "d_in", "n")


@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="Triton is not installed (it comes for Linux on x86-64)",
)
def test_all_kernels_compile_for_an_h100(tmp_path: Path) -> None:
    # A process of its own: in this one kernels may be interpreted.
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 8


def compile_all() -> None:
    """Print each kernel's shared memory in bytes."""
    from fastzoo.training.steps import cuda
    from fastzoo.training.steps import cuda_kernels as kernels

    block = {"BLOCK_B": cuda.BLOCK_B, "BLOCK_F": cuda.BLOCK_F}
    update = {"BLOCK_B": cuda.UPDATE_B, "BLOCK_F": cuda.UPDATE_F, "BLOCK_D": cuda.UPDATE_D}
    exact = {"SHADOW": False, "PRECISION": "ieee", "UPCAST": False, **update}
    half = {"left_ptr": "*bf16", "right_ptr": "*bf16"}
    compiled(kernels.activate, {"JUMP": True, **block})
    compiled(kernels.reconstruction_error, {"BLOCK_B": cuda.BLOCK_B, "BLOCK_D": cuda.BLOCK_F})
    compiled(kernels.pre_activation_gradient, {"JUMP": True, "LOG": True, **block})
    compiled(kernels.conclude, {"BLOCK": 2048}, {"num_warps": 8})
    compiled(kernels.update_vector, {"CLAMP": True, "LOG": False, "BLOCK": cuda.VECTOR})
    for own in (
        {"FUSED": False, "UNIT_ROWS": False, **exact},
        {"FUSED": True, "UNIT_ROWS": True, **exact, "PRECISION": "tf32"},
    ):
        compiled(kernels.update_weight, own, cuda.UPDATE)
    own = {"FUSED": True, "UNIT_ROWS": True, **exact, "SHADOW": True}
    compiled(kernels.update_weight, own, cuda.UPDATE, half)


def compiled(
    kernel: Any,
    constants: dict[str, Any],
    options: dict[str, int] | None = None,
    types: dict[str, str] | None = None,
) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = POINTERS | (types or {})
    signature = {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            signature[name] = types.get(name, "*fp32")
        else:
            signature[name] = "i32" if name in INTEGERS or name.endswith("_size") else "fp32"
    values = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=values)
    done = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options or {})
    assert done.metadata.shared <= 100 * 1024  # at least two programs share a processor
    print(done.metadata.shared)


if __name__ == "__main__":
    compile_all()
