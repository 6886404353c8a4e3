import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.gpu_classes import gpu_class_of, mig_profile, mig_profile_of

GIB = 1024**3
MIB = 1024**2


@pytest.mark.parametrize(
    ("name", "gpu_class"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100-PCIe"),
        ("NVIDIA H100 NVL", "H100-NVL"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA H200 NVL", "H200-NVL"),
        ("NVIDIA H20", "H20"),
        ("NVIDIA H800", "H800"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
        ("NVIDIA A100-PCIE-40GB", "A100-PCIe-40GB"),
        ("NVIDIA A100 80GB PCIe", "A100-PCIe-80GB"),
        ("A100-SXM4-40GB", "A100-40GB"),
        ("Tesla V100-SXM2-32GB", "V100-32GB"),
        ("Tesla V100-SXM2-16GB", "V100-16GB"),
        ("Tesla T4", "T4"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA GB200", "GB200"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("NVIDIA GeForce RTX 4090", "RTX-4090"),
        ("NVIDIA RTX A6000", "RTX-A6000"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX-6000-Ada-Generation"),
        ("Quadro P2000", "P2000"),
        ("Something New (2031)", "Something-New-2031"),
        ("NVIDIA 显卡", "unknown-gpu"),
    ],
)
def test_a_product_is_sold_under_a_short_class(name: str, gpu_class: str) -> None:
    assert gpu_class_of(name) == gpu_class


def test_an_installation_names_a_product_as_it_likes() -> None:
    assert gpu_class_of("NVIDIA H200", {"NVIDIA H200": "h200-green"}) == "h200-green"
    assert gpu_class_of("NVIDIA H100 PCIe", {"NVIDIA H200": "h200-green"}) == "H100-PCIe"


@given(st.text(max_size=60))
def test_any_name_gives_a_class_that_is_safe_in_labels_and_commands(name: str) -> None:
    gpu_class = gpu_class_of(name)
    assert gpu_class
    assert all(character.isascii() and (character.isalnum() or character in "-.") for character in gpu_class)
    assert not gpu_class.startswith(("-", "."))


def test_the_profile_is_taken_from_the_end_of_an_instances_name() -> None:
    assert mig_profile_of("NVIDIA A100-SXM4-40GB MIG 1g.5gb") == "1g.5gb"
    assert mig_profile_of("NVIDIA A100-SXM4-40GB") is None


@pytest.mark.parametrize(
    ("slices", "instance_mib", "gpu_mib", "profile"),
    [
        ((1, 1), 4864, 40_960, "1g.5gb"),
        ((2, 2), 9856, 40_960, "2g.10gb"),
        ((1, 1), 9856, 81_559, "1g.10gb"),
        ((3, 3), 40_448, 81_559, "3g.40gb"),
        ((7, 7), 81_038, 81_559, "7g.80gb"),
        ((1, 1), 16_384, 143_771, "1g.18gb"),
        ((3, 1), 40_448, 81_559, "1c.3g.40gb"),
    ],
)
def test_a_profile_follows_from_slices_and_memory_where_the_name_has_none(
    slices: tuple[int, int], instance_mib: int, gpu_mib: int, profile: str
) -> None:
    assert mig_profile(*slices, instance_mib * MIB, gpu_mib * MIB) == profile
