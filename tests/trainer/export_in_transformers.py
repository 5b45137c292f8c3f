#!/usr/bin/env python3
"""Hugging Face in and out, with transformers (>= 5.17, CPU) on the other side: export_in_transformers.py PROGRAM [CASE...]

For every reference case (default: all of tests/reference): the folder that transformers saved is imported and exported;
the export is the same bytes; transformers loads it and computes the loss that the case records, to 1e-6; so does what
transformers saved in small files, what a state_dict of in-memory names was saved as, and the export cut anew. Run by hand:
CI has no torch.
"""
import filecmp
import inspect
import json
import os
import subprocess
import sys
import tempfile

import torch
from safetensors.torch import load_file, save_file
from transformers import Gemma4UnifiedForConditionalGeneration

PROGRAM = os.path.abspath(sys.argv[1])
SOURCE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
CASES = sys.argv[2:] or sorted(os.path.join(SOURCE, "tests/reference", d) for d in os.listdir(f"{SOURCE}/tests/reference"))


def lapidary(*words):
    done = subprocess.run([PROGRAM, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, f"{words}: {done.stdout}"
    return done.stdout


def load(folder):
    model, info = Gemma4UnifiedForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not info.get(kind), f"{folder}: {kind}: {info[kind]}"
    return model.eval()


def loss_of(model, inputs):
    # Later versions want to know how many frames belong to each video: all of them to one.
    if "pixel_values_videos" in inputs and "num_frames_per_video" in inspect.signature(model.forward).parameters:
        inputs = inputs | {"num_frames_per_video": torch.tensor([len(inputs["pixel_values_videos"])])}
    with torch.no_grad():
        return model(**inputs, use_cache=False).loss.item()


def same_files(a, b):
    names = sorted(os.listdir(a))
    assert names == sorted(os.listdir(b)), f"{names} and {sorted(os.listdir(b))}"
    _, differ, wrong = filecmp.cmpfiles(a, b, names, shallow=False)
    assert not differ and not wrong, f"{a} and {b} differ in {differ + wrong}"


def through(folder, scratch, name, *options):
    """Imported and exported."""
    lapidary("checkpoint", "import", folder, "-o", f"{scratch}/{name}.checkpoint")
    lapidary("checkpoint", "export", f"{scratch}/{name}.checkpoint", "-o", f"{scratch}/{name}", *options)
    return f"{scratch}/{name}"


for case in CASES:
    name = os.path.basename(case.rstrip("/"))
    with tempfile.TemporaryDirectory(prefix="lapidary-export-") as scratch:
        kind = json.load(open(f"{case}/case.json")).get("image_attention", "all")
        inputs = load_file(f"{case}/inputs.safetensors")
        original = load(case)
        expected = loss_of(original, inputs)
        recorded = load_file(f"{case}/outputs.safetensors")["loss"].item()
        if kind == "all":  # the others were computed with masks that forward() does not make by itself
            assert abs(expected - recorded) <= 1e-6 * abs(recorded), (expected, recorded)

        # What transformers writes: in small files, and under in-memory names.
        original.save_pretrained(f"{scratch}/small", max_shard_size="200KB")
        os.makedirs(f"{scratch}/memory")
        state = {k: v.contiguous() for k, v in original.state_dict().items() if k != "lm_head.weight"}
        save_file(state, f"{scratch}/memory/model.safetensors", {"format": "pt"})
        original.config.save_pretrained(f"{scratch}/memory")
        os.makedirs(f"{scratch}/source")
        for file in ("config.json", "model.safetensors"):
            with open(f"{case}/{file}", "rb") as read, open(f"{scratch}/source/{file}", "wb") as write:
                write.write(read.read())

        losses = {}
        for folder in ("source", "small"):
            out = through(f"{scratch}/{folder}", scratch, f"from-{folder}")
            same_files(f"{scratch}/{folder}", out)
            losses[folder] = loss_of(load(out), inputs)
        losses["memory names"] = loss_of(load(through(f"{scratch}/memory", scratch, "from-memory")), inputs)
        losses["cut anew"] = loss_of(load(through(f"{scratch}/small", scratch, "cut", "--max-file", "500KiB")), inputs)
        worst = max(abs(loss - expected) / abs(expected) for loss in losses.values())
        assert worst <= 1e-6, (expected, losses)
        files = len([f for f in os.listdir(f"{scratch}/small") if f.endswith(".safetensors")])
        print(f"{name}: loss {expected:.7f} (recorded {recorded:.7f}); 4 exports differ by at most {worst:.1e}; "
              f"the same bytes as transformers' 1 file and its {files} files with index", flush=True)
print("passed")
