#!/usr/bin/env python3
"""Compare what `lapidary data build` stores of pictures, sounds and videos with the processors of transformers.

    compare_media.py [--program build/lapidary] [--images N] [--seed N]

Needs torch, torchvision, transformers (5.17 or later), av, h5py, numpy and pillow. Makes files (pictures of noise and of
gradients from 1 x 1 to 6000 x 40 pixels, sounds of awkward lengths, videos with and without reordered frames), builds
them, and reads the shards with h5py. Exits non-zero unless grids, positions and counts are equal, pictures within 2 levels
with at least 99 % of the values equal, 16 kHz sounds bit for bit, frames of videos within 3 levels (av brings an FFmpeg of
its own) with the times that the processor writes.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import wave

import av
import h5py
import numpy as np
import torch
from PIL import Image
from transformers.models.gemma4_unified.feature_extraction_gemma4_unified import Gemma4UnifiedAudioFeatureExtractor
from transformers.models.gemma4_unified.image_processing_gemma4_unified import Gemma4UnifiedImageProcessor
from transformers.models.gemma4_unified.video_processing_gemma4_unified import Gemma4UnifiedVideoProcessor
from transformers.video_utils import read_video_pyav

SIZES = ((1, 1), (1, 2), (2, 1), (3, 700), (700, 3), (47, 49), (48, 48), (49, 47), (640, 480), (1920, 1080), (6000, 40),
         (40, 6000), (5000, 50), (90, 200), (960, 672))
LENGTHS = (1, 2, 639, 640, 641, 1500, 16000, 16001, 480000)
FIRST_BYTE = 4  # of the byte tokenizer


def check(condition, message):
    if not condition:
        sys.exit(f"compare_media: {message}")


def build(folder, name, samples, *options):
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    subprocess.run([arguments.program, "data", "build", "--input", path, "--output", folder / name, "--tokenizer", "bytes",
                    *options], check=True, stdout=subprocess.DEVNULL)
    return [h5py.File(shard) for shard in sorted((folder / name / "train").glob("shard-*.h5"))]


def stored_images(shards):
    for shard in shards:
        patches = shard["patches"]
        for _, _, columns, rows, first in shard["images"][:]:
            yield columns, rows, patches[first:first + columns * rows]


def make_picture(rng, width, height):
    if rng.random() < 0.5:
        return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // max(width - 1, 1), y * 255 // max(height - 1, 1), (x // 3 + y // 5) % 2 * 255],
                    -1).astype(np.uint8)


def compare_images(folder, rng):
    sizes = list(SIZES) + [tuple(int(2 ** rng.uniform(0, 11)) for _ in range(2)) for _ in range(arguments.images)]
    pictures = [make_picture(rng, *size) for size in sizes]
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{i}.png", compress_level=1)
    samples = [{"text": [{"type": "image", "image": f"{i}.png"}, "x"]} for i in range(len(pictures))]
    processor = Gemma4UnifiedImageProcessor()
    worst, different, values = 0, 0, 0
    for budget in (70, 140, 280, 560, 1120):
        shards = build(folder, f"images{budget}", samples, "--image-tokens", str(budget))
        for size, picture, (columns, rows, patches) in zip(sizes, pictures, stored_images(shards), strict=True):
            tensor = torch.from_numpy(picture).permute(2, 0, 1).contiguous()
            out = processor(images=[tensor], max_soft_tokens=budget, input_data_format="channels_first",
                            return_tensors="pt")
            count = int(out["num_soft_tokens_per_image"][0])
            check(count == columns * rows, f"{size}, budget {budget}: {columns} x {rows} soft tokens, expected {count}")
            grid = torch.tensor([[t % columns, t // columns] for t in range(count)])
            check(torch.equal(out["image_position_ids"][0, :count], grid), f"{size}, budget {budget}: positions")
            expected = (out["pixel_values"][0, :count] * 255).round().to(torch.int16).numpy()
            difference = np.abs(expected - patches)
            worst = max(worst, int(difference.max()))
            different += int((difference != 0).sum())
            values += difference.size
    print(f"images: {len(sizes)} pictures with 5 budgets, {values / 1e6:.0f} million values: "
          f"largest difference {worst}, {100 * different / values:.4f} % different")
    check(worst <= 2 and different <= 0.01 * values, "pictures differ too much")


def compare_sounds(folder, rng):
    sounds = [rng.integers(-32768, 32768, length, dtype=np.int16) for length in LENGTHS]
    for i, sound in enumerate(sounds):
        with wave.open(str(folder / f"{i}.wav"), "wb") as out:
            out.setparams((1, 2, 16000, 0, "NONE", ""))
            out.writeframes(sound.astype("<i2").tobytes())
    samples = [{"text": [{"type": "audio", "audio": f"{i}.wav"}, "x"]} for i in range(len(sounds))]
    shards = build(folder, "sounds", samples)
    extractor = Gemma4UnifiedAudioFeatureExtractor()
    stored = [shard["frames"][first:first + frames] for shard in shards for _, _, frames, first in shard["sounds"][:]]
    for sound, frames in zip(sounds, stored, strict=True):
        out = extractor([sound.astype(np.float32) / 32768], sampling_rate=16000, return_tensors="np")
        expected = out["input_features"][0][out["input_features_mask"][0].astype(bool)]
        ours = frames.astype(np.float32) / 32768
        check(ours.shape == expected.shape and ours.tobytes() == expected.astype(np.float32).tobytes(),
              f"a sound of {len(sound)} samples differs")
    print(f"sounds: {len(sounds)} of up to {max(LENGTHS)} samples: equal bit for bit")


def make_video(path, codec, frames, rate, size, rng):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        y, x = np.mgrid[0:size[1], 0:size[0]]
        for i in range(frames):
            picture = np.stack([(x * 2 + 5 * i) % 256, (y * 3 + 9 * i) % 256, np.full_like(x, 6 * i % 256)], -1)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture.astype(np.uint8), format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def video_text(times, tokens):
    soft = "<|image>" + "<|video|>" * tokens + "<image|>"
    return " ".join(f"{int(t // 60):02d}:{int(t % 60):02d} {soft}" for t in times)


def compare_videos(folder, rng):
    clips = (("a.mp4", "libx264", 40, 2, (96, 64)), ("b.mp4", "mpeg4", 200, 30, (320, 180)),
             ("c.mp4", "libx264", 33, 1, (178, 322)), ("d.mp4", "libx265", 64, 25, (128, 128)))
    for name, codec, frames, rate, size in clips:
        make_video(folder / name, codec, frames, rate, size, rng)
    samples = [{"prompt": [{"type": "video", "video": clip[0]}], "completion": "x"} for clip in clips]
    shards = build(folder, "videos", samples)
    images = stored_images(shards)
    ids = [shard["tokens"][shard["document_offsets"][d]:shard["document_offsets"][d + 1]]
           for shard in shards for d in range(len(shard["document_offsets"]) - 1)]
    processor = Gemma4UnifiedVideoProcessor()
    names = {264: "<|image>", 266: "<image|>", 270: "<|video|>", 2: "", 1: ""}
    worst, mean = 0, 0
    for clip, tokens in zip(clips, ids, strict=True):
        frames, metadata = read_video_pyav(str(folder / clip[0]), lambda metadata: np.arange(32) * metadata.total_num_frames // 32)
        metadata.frames_indices = [int(k) * clip[2] // 32 for k in range(32)]
        out = processor(videos=[torch.from_numpy(np.asarray(frames)).permute(0, 3, 1, 2)], do_sample_frames=False,
                        return_tensors="pt")
        count = int(out["num_soft_tokens_per_video"][0]) if "num_soft_tokens_per_video" in out else int(
            (out["video_position_ids"][0, 0, :, 0] >= 0).sum())
        for frame in range(32):
            columns, rows, patches = next(images)
            check(columns * rows == count, f"{clip[0]}: {columns} x {rows} soft tokens, expected {count}")
            expected = (out["pixel_values_videos"][0, frame, :count] * 255).round().to(torch.int16).numpy()
            difference = np.abs(expected - patches)
            worst, mean = max(worst, int(difference.max())), max(mean, float(difference.mean()))
        text = "".join(names.get(int(i), chr(i - FIRST_BYTE) if FIRST_BYTE <= i < FIRST_BYTE + 256 else "?") for i in tokens)
        check(text == video_text(metadata.timestamps, count) + "x", f"{clip[0]}: the text differs:\n{text}")
    check(worst <= 3, f"frames of videos differ by up to {worst} levels, {mean:.3f} in the mean of a frame")
    print(f"videos: {len(clips)} clips, 32 frames each: times and counts equal, largest difference {worst} levels, "
          f"at most {mean:.3f} in the mean of a frame")


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--program", default="build/lapidary")
parser.add_argument("--images", type=int, default=20, help="of random sizes, besides the fixed ones")
parser.add_argument("--seed", type=int, default=1)
arguments = parser.parse_args()
with tempfile.TemporaryDirectory() as work:
    for compare in (compare_images, compare_sounds, compare_videos):
        compare(pathlib.Path(work), np.random.default_rng(arguments.seed))
