"""What others have measured on systems without tables, and which of our own errors stands for each of them."""

from __future__ import annotations

from aegis.planner.perf.efficiency import Band, Factor

# The curves of a GPU whose maker no table is of say 77 % (bfloat16) and 56 % (fp8) of the peak for a large product on
# mi300x, 72 to 79 % on mi250x (8192 x 8192 x 8192).
FACTORS = {
    "mi300x": Factor(
        compute=1.25,
        source="AMD, Measuring Max-Achievable FLOPs (ROCm blog, 2025), as others quote it: 708 of 1307 TFLOPS bfloat16, 1273 of 2615 fp8",
    ),
    "mi250x": Factor(
        compute=1.28,
        source="CoralGemm on Frontier, 111 TFLOPS fp16 of 191.5 for a GCD (system paper, SC 2023; not read again for this)",
    ),
}

# Whose error is taken as the band of an estimated system.
BANDS: dict[str, Band] = {
    # The same chip as a measured one, with other memory, clocks or links.
    "a100_40": "family",
    "a100_pcie": "family",
    "gh200": "family",
    "h100_pcie": "family",
    # A measured kind of core, but far fewer of them for their memory.
    "a30": "stranger",
    "h20": "stranger",
    "l4": "stranger",
    # A kind of core that was not measured.
    "a40": "stranger",
    # Makers that no table is of (AMD), or of one small card (Intel): the error on the latter without any of its maker.
    "mi250x": "maker",
    "mi300x": "maker",
    "pvc_tile": "maker",
}
