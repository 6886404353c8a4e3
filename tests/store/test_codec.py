"""What the store writes of a value it reads back."""

import json
from dataclasses import fields

from scheduler.core.model import GpuClass, NodeName, PoolName, Shape
from scheduler.store.codec import shape_json, shape_of


def test_every_field_of_a_shape_comes_back_as_it_was() -> None:
    full = Shape(
        (GpuClass("H100"), GpuClass("A100")),
        nodes=2,
        gpu_units=12_600,
        cpu_millicores=4000,
        memory_bytes=1 << 30,
        pool=PoolName("ib"),
        only_nodes=(NodeName("n1"), NodeName("n2")),
        exclude_nodes=(NodeName("n3"),),
        constraints=(("disk", "nvme"),),
        topology=("rack", True),
        most_nodes=8,
    )
    least = Shape((GpuClass("H100"),), 1, 6300)
    for shape in (full, least):
        assert shape_of(json.loads(json.dumps(shape_json(shape)))) == shape
    assert all(getattr(full, each.name) != getattr(least, each.name) for each in fields(Shape)), "a field is not tried"
