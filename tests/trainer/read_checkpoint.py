#!/usr/bin/python3
"""Reads a checkpoint of the tests with h5py alone and compares every element: read_checkpoint.py FOLDER STEP."""
import json
import os
import sys

import h5py
import numpy

folder, step = sys.argv[1], int(sys.argv[2])
parameters = [
    ("model.language_model.embed_tokens.weight", (37, 12)),
    ("model.language_model.layers.0.mlp.gate_proj.weight", (20, 9)),
    ("model.language_model.layers.0.input_layernorm.weight", (9,)),
    ("model.language_model.layers.0.layer_scalar", (1,)),
    ("model.vision_embedder.pos_embedding", (7, 2, 5)),
]
parts = [("", 2, "f"), (".master", 4, "f"), (".exp_avg", 4, "f"), (".exp_avg_sq", 4, "f"), (".remainder", 2, "i")]

os.chdir("/")  # the shards are found beside the index, wherever the reader works
with h5py.File(os.path.join(folder, "index.h5"), "r") as index:
    expected = {name + part for name, _ in parameters for part, _, _ in parts} | {"state.json"}
    assert set(index) == expected, set(index) ^ expected
    assert index.attrs["step"] == step and index.attrs["format"] == b"lapidary checkpoint", dict(index.attrs)
    assert json.loads(index["state.json"][()].tobytes()) == {"position": [1, 2]}
    number = 0
    for name, shape in parameters:
        for part, size, kind in parts:
            dataset = index[name + part]
            assert dataset.is_virtual and dataset.shape == shape, (dataset, dataset.shape)
            assert dataset.id.get_type().get_size() == size and dataset.dtype.kind == kind, dataset.dtype
            count = int(numpy.prod(shape))
            values = ((numpy.arange(count) * 7 + number * 13 + step * 29) % 251).reshape(shape)
            assert (dataset[()] == values).all(), (name, part)
            number += 1
print("equal:", number, "tensors")
