"""What a product is sold as: NVML's product names to short GPU classes, and MIG profiles of them.

`NVIDIA H100 80GB HBM3` is `H100`; `NVIDIA A100-SXM4-80GB` is `A100-80GB`, because two sizes of it are in the field; a
MIG instance adds its profile, `H100-3g.40gb`. An installation overrides single names by a mapping (setting).
"""

import re
from collections.abc import Mapping

from scheduler.core.model import GpuClass

# The first pattern that matches decides; `{}` takes the memory size in the name. Names as `nvidia-smi -L` prints them.
_SIZED_MODELS = ("A100", "V100", "P100")  # sold in two memory sizes under one name
_MODELS = (
    "GB300", "GB200", "GH200", "B300", "B200", "H200", "H100", "H800", "H20", "A800", "A100", "V100", "P100",
    "L40S", "L40", "L20", "L4", "A40", "A30", "A16", "A10G", "A10", "A2", "T4",
)  # fmt: skip
_MODEL = re.compile(r"(?<![A-Z0-9])(" + "|".join(_MODELS) + r")(?![0-9A-Z])")
_SIZE = re.compile(r"(\d+) ?GB")
_FORM_FACTOR = re.compile(r"\b(NVL|PCIe)\b", re.IGNORECASE)
_NOISE = re.compile(r"^(NVIDIA|Tesla|Quadro|GeForce)\s+", re.IGNORECASE)
_NOT_A_WORD = re.compile(r"[^A-Za-z0-9.]+")


def gpu_class_of(name: str, overrides: Mapping[str, str] | None = None) -> GpuClass:
    """Returns the class of a product by its name in NVML. `overrides` maps whole names to classes and wins.

    Names that are not known give a slug: `NVIDIA GeForce RTX 4090` is `RTX-4090`. Never empty. PCIe and NVL boards of a
    model have less power or fewer links than the SXM ones, so they are classes of their own: `H100-PCIe`, `H100-NVL`.
    """
    if overrides and name in overrides:
        return GpuClass(overrides[name])
    model = _MODEL.search(name)
    if model is None:
        return GpuClass(_slug(name))
    parts = [model.group(1)]
    form = _FORM_FACTOR.search(name)
    if form is not None and model.group(1).startswith(("H", "A100", "A800", "V100")):
        parts.append("NVL" if form.group(1).upper() == "NVL" else "PCIe")
    size = _SIZE.search(name)
    if size is not None and model.group(1) in _SIZED_MODELS:
        parts.append(f"{size.group(1)}GB")
    return GpuClass("-".join(parts))


def mig_class(parent: GpuClass, profile: str) -> GpuClass:
    """Returns the class of a MIG instance: its GPU's class and its profile."""
    return GpuClass(f"{parent}-{profile}")


def mig_profile_of(name: str) -> str | None:
    """Returns the profile at the end of a MIG instance's product name (`… MIG 1g.10gb`), or None if it has none."""
    _, found, profile = name.rpartition(" MIG ")
    return profile.strip() or None if found else None


def mig_profile(gpu_slices: int, compute_slices: int, instance_bytes: int, gpu_bytes: int) -> str:
    """Returns the profile of a MIG instance from its size, for drivers whose product names leave it out.

    Memory is cut in eighths, and the profile's name rounds its eighths of the GPU's whole GiB: on a GPU of 140.4 GiB an
    instance of 16 GiB is one eighth of 141, `1g.18gb`.
    """
    eighths = -(-instance_bytes * 8 // gpu_bytes)
    whole_gib = -(-gpu_bytes // 1024**3)
    size_gb = (eighths * whole_gib + 4) // 8
    shared = f"{compute_slices}c." if compute_slices != gpu_slices else ""
    return f"{shared}{gpu_slices}g.{size_gb}gb"


def _slug(name: str) -> str:
    bare = name.strip()
    while (shorter := _NOISE.sub("", bare)) != bare:
        bare = shorter
    return _NOT_A_WORD.sub("-", bare).strip("-.") or "unknown-gpu"
