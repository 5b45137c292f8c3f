#!/usr/bin/env python3
"""Write the pictures and the expected results that tests/data compares the image code with.

    make_image_goldens.py OUT      (OUT: tests/data/assets; needs pillow, torch, torchvision, transformers, xxhash)

OUT/*.jpg, *.png, *.webp: small pictures in every mode, made here from a formula. OUT/images.json: for each of them the
XXH3-128 of what Pillow decodes (EXIF orientation applied, converted to RGB). OUT/resize.json: for generated noise of
many sizes the grid and the XXH3-128 of the patches that the processor of transformers makes.
"""
import io
import json
import pathlib
import struct
import sys
import zlib

import numpy as np
import torch
import xxhash
from PIL import Image, ImageOps
from transformers.models.gemma4_unified.image_processing_gemma4_unified import Gemma4UnifiedImageProcessor

BUDGETS = (70, 140, 280, 560, 1120)
SIZES = ((1, 1), (1, 2), (2, 1), (5, 3), (47, 47), (48, 48), (95, 49), (144, 96), (131, 97), (300, 1), (1, 300),
         (640, 480), (960, 672), (1920, 1080), (40, 6000), (6000, 40), (5000, 50), (3000, 200))


def noise(width, height):
    """[height, width, 3]: byte i of an image is a hash of i; tests/data/image_test.cpp makes the same."""
    with np.errstate(over="ignore"):
        v = np.arange(width * height * 3, dtype=np.uint32) * np.uint32(2654435761)
        v = (v ^ (v >> np.uint32(15))) * np.uint32(2246822519)
        v = (v ^ (v >> np.uint32(13))) * np.uint32(3266489917)
    return (v >> np.uint32(24)).astype(np.uint8).reshape(height, width, 3)


def drawing(width, height):
    """A picture with smooth and sharp parts, so that every decoder's chroma and edge rules show."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    red = 127 + 120 * np.sin(x / 5.0) * np.cos(y / 7.0)
    green = 255 * ((x // 6 + y // 4) % 2)
    blue = 255 * (x + y) / (width + height)
    return np.stack([red, green, blue], -1).astype(np.uint8)


def resize_goldens():
    processor = Gemma4UnifiedImageProcessor()
    cases = []
    for width, height in SIZES:
        image = torch.from_numpy(noise(width, height)).permute(2, 0, 1).contiguous()
        for budget in BUDGETS if width * height < 500_000 else (70, 280):
            out = processor(images=[image], max_soft_tokens=budget, return_tensors="pt")
            count = int(out["num_soft_tokens_per_image"][0])
            positions = out["image_position_ids"][0, :count]
            columns, rows = (int(n) + 1 for n in positions.max(0).values)
            expected = torch.tensor([[t % columns, t // columns] for t in range(count)])
            assert count == columns * rows and torch.equal(positions, expected)
            patches = (out["pixel_values"][0, :count] * 255).round().to(torch.uint8).contiguous().numpy()
            cases.append({"width": width, "height": height, "budget": budget, "columns": columns, "rows": rows,
                          "xxh3": xxhash.xxh3_128_hexdigest(patches.tobytes())})
    return cases


def exif_with(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def pictures():
    """Name, and arguments of Image.save."""
    rgb = Image.fromarray(drawing(37, 29))
    grey = rgb.convert("L")
    alpha = grey.resize(rgb.size)
    rgba = rgb.copy()
    rgba.putalpha(alpha)
    yield "baseline.jpg", rgb, {"quality": 85}
    yield "progressive.jpg", rgb, {"quality": 70, "progressive": True}
    yield "full_chroma.jpg", rgb, {"quality": 95, "subsampling": 0}
    yield "half_chroma.jpg", rgb, {"quality": 90, "subsampling": 1}
    yield "grey.jpg", grey, {"quality": 85}
    yield "cmyk.jpg", rgb.convert("CMYK"), {"quality": 85}
    for orientation in range(1, 9):
        yield f"orientation{orientation}.jpg", rgb, {"quality": 85, "exif": exif_with(orientation)}
    yield "rgb.png", rgb, {}
    yield "rgba.png", rgba, {}
    yield "grey.png", grey, {}
    yield "grey_alpha.png", rgba.convert("LA"), {}
    yield "palette.png", rgb.quantize(30), {}
    yield "palette_transparent.png", rgb.quantize(14), {"transparency": 3}
    yield "bilevel.png", grey.convert("1"), {}
    yield "orientation6.png", rgb, {"exif": exif_with(6)}
    yield "lossy.webp", rgb, {"quality": 80}
    yield "lossless.webp", rgb, {"lossless": True}
    yield "alpha.webp", rgba, {"quality": 80}
    yield "orientation8.webp", rgb, {"quality": 80, "exif": exif_with(8)}


def interlaced_png_16(pixels):
    """A PNG with 16-bit samples in the seven passes of Adam7, which Pillow reads but does not write."""
    wide = (pixels.astype(np.uint16) * 257).astype(">u2")
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    rows = b"".join(b"\0" + row.tobytes() for x, y, dx, dy in passes for row in wide[y::dy, x::dx] if row.size)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, 2, 0, 0, 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def encoded_pictures():
    for name, image, options in pictures():
        buffer = io.BytesIO()
        image.save(buffer, format={"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[name.rpartition(".")[2]], **options)
        yield name, buffer.getvalue()
    yield "rgb16_interlaced.png", interlaced_png_16(drawing(19, 13))


def picture_goldens(out):
    goldens = {}
    for name, data in encoded_pictures():
        (out / name).write_bytes(data)
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
        goldens[name] = {"width": upright.width, "height": upright.height,
                         "xxh3": xxhash.xxh3_128_hexdigest(upright.tobytes())}
    return goldens


def write(path, value):
    rows = value if isinstance(value, list) else [{"name": name, **row} for name, row in value.items()]
    path.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


out = pathlib.Path(sys.argv[1])
write(out / "images.json", picture_goldens(out))
write(out / "resize.json", resize_goldens())
