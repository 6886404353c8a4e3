"""What a node of each GPU class usually is: product name, memory, power, and CPU and memory per GPU.

For the simulated inventory, and as the default share per GPU where nothing better is known. Device memory is what
`nvidia-smi` shows; power limits are the boards' published ones. CPU and memory per GPU are those of the cloud machines
that carry the model eight at a time (four for GB200), less a sixteenth of the memory for the system: p5en.48xlarge
(H200: 192 vCPU, 2 TiB), p5.48xlarge (H100), p6-b200.48xlarge, p6e-gb200.36xlarge, p4de.24xlarge (A100-80GB: 96 vCPU,
1152 GiB), p4d.24xlarge, p3dn.24xlarge, g6e.48xlarge (L40S), g6.48xlarge (L4), g5.48xlarge (A10G), g4dn.metal (T4).
"""

from dataclasses import dataclass

MIB = 1024**2
GIB = 1024**3


@dataclass(frozen=True, slots=True)
class ReferenceHardware:
    """A GPU model and its part of the node around it."""

    product: str
    memory_bytes: int
    power_limit_milliwatts: int
    cpu_millicores_per_gpu: int
    memory_bytes_per_gpu: int


def _hardware(product: str, memory_mib: int, limit_watts: int, cores: int, memory_gib: int) -> ReferenceHardware:
    return ReferenceHardware(product, memory_mib * MIB, limit_watts * 1000, cores * 1000, memory_gib * GIB)


_BY_CLASS = {
    "GB200": _hardware("NVIDIA GB200", 189_471, 1200, 36, 225),
    "B200": _hardware("NVIDIA B200", 183_359, 1000, 24, 240),
    "H200": _hardware("NVIDIA H200", 143_771, 700, 24, 240),
    "H100": _hardware("NVIDIA H100 80GB HBM3", 81_559, 700, 24, 240),
    "H100-PCIe": _hardware("NVIDIA H100 PCIe", 81_559, 350, 24, 240),
    "A100-80GB": _hardware("NVIDIA A100-SXM4-80GB", 81_920, 400, 12, 135),
    "A100-40GB": _hardware("NVIDIA A100-SXM4-40GB", 40_960, 400, 12, 135),
    "V100-32GB": _hardware("Tesla V100-SXM2-32GB", 32_768, 300, 12, 90),
    "V100-16GB": _hardware("Tesla V100-SXM2-16GB", 16_384, 300, 8, 57),
    "L40S": _hardware("NVIDIA L40S", 46_068, 350, 24, 180),
    "L4": _hardware("NVIDIA L4", 23_034, 72, 24, 90),
    "A10G": _hardware("NVIDIA A10G", 23_028, 300, 24, 90),
    "T4": _hardware("Tesla T4", 15_360, 70, 12, 45),
    "RTX-4090": _hardware("NVIDIA GeForce RTX 4090", 24_564, 450, 16, 60),
}


def reference_hardware(gpu_class: str) -> ReferenceHardware:
    """Returns the usual hardware of a class; for one that is not listed, a middling one under that name."""
    known = _BY_CLASS.get(gpu_class)
    return known if known is not None else _hardware(gpu_class, 49_140, 300, 16, 120)
