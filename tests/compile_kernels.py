"""Compile every kernel of `mgct.kernels` for a GPU, on any machine that has Triton; prints a line for each."""

import sys
from itertools import product

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mgct import kernels

TILE = {"BLOCK_P": 64, "BLOCK_C": 64}
GROUPS = {"GROUPS": 32, "EACH": 3, "BLOCK_S": 8, "BLOCK_G": 32, "BLOCK_E": 4}
SILU = [{**TILE, "SILU": silu} for silu in (False, True)]
FACTORS = [{**TILE, "HEIGHT": height, "WIDTH": width} for height, width in ((2, 2), (1, 4))]
NORM = [
    {
        **GROUPS,
        "FILM": film,
        "OFFSET": offset,
        **({} if film else {"film_ptr": None, "grad_film_ptr": None}),
        **({} if offset else {"offset_ptr": None, "means_ptr": None}),
    }
    for film, offset in product((False, True), repeat=2)
]
CASES = {
    "_sums_kernel": [{**TILE, "TILES": 16}],
    "_affine_kernel": SILU,
    "_gradient_sums_kernel": [{**case, "TILES": 16} for case in SILU],
    "_gradient_kernel": SILU,
    "_statistics_kernel": NORM,
    "_finish_kernel": NORM,
    "_down_kernel": FACTORS,
    "_up_kernel": FACTORS,
    "_take_kernel": [{**TILE, "EACH": each} for each in (1, 4)],
}
"""Kernel → the constants that it is compiled with."""
HALF = {"x_ptr", "y_ptr", "grad_ptr", "film_ptr", "grad_film_ptr"}


def kind(name: str, constants: dict, kernel: str) -> str:
    """Type of an argument."""
    if name in constants:
        return "constexpr"
    if name == "index_ptr":
        return "*i64"
    if name.endswith("_ptr"):
        return "*bf16" if name in HALF or (kernel == "_gradient_kernel" and name == "out_ptr") else "*fp32"
    return "fp32" if name in ("eps", "scale") else "i32"


def main() -> None:
    """Compile them all."""
    target = GPUTarget("cuda", int(sys.argv[1]), 32)
    for name, cases in CASES.items():
        kernel = getattr(kernels, name)
        for case in cases:
            constants = {key: value for key, value in case.items() if key in kernel.arg_names}
            signature = {argument: kind(argument, constants, name) for argument in kernel.arg_names}
            made = triton.compile(ASTSource(kernel, signature, constants), target=target, options={"num_warps": 8})
            assert made.asm["ptx"]
            print(name, len(made.asm["ptx"]))


if __name__ == "__main__":
    main()
