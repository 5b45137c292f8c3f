#!/usr/bin/python3
"""Makes configs/sample anew from the contents of a few Debian 12 packages, which it downloads and unpacks in a
temporary folder. Needed only to change the sample: the result is committed, and training needs no Python.

    apt-get install python3-numpy python3-pil && tools/make_sample.py

Every picture and sound belongs to one example, so a held-out example's media were never trained on. The same
command gives the same files.
"""
import gzip
import json
import pathlib
import random
import re
import shutil
import subprocess
import tempfile
import wave

import numpy
from PIL import Image, ImageEnhance, ImageOps

OUTPUT = pathlib.Path(__file__).resolve().parent.parent / "configs" / "sample"
PACKAGES = ["asterisk-core-sounds-en-wav", "crm114", "golang-github-colinmarc-hdfs-dev", "openclipart-png",
            "python3-skimage", "python3-sklearn"]
SIDE = 96           # pixels: two by two squares of 48, so the smallest budget of soft tokens needs no resizing
FRAME = 320         # samples of one audio token at 8 kHz
PASSAGE = 380       # bytes of a passage, so that it fits a short row with its markup

SKIMAGE = "python3-skimage/usr/lib/python3/dist-packages/skimage/data/"
SKLEARN = "python3-sklearn/usr/lib/python3/dist-packages/sklearn/datasets/images/"
CLIPART = "openclipart-png/usr/share/openclipart/png/"
# name: (file, square around the subject as left, top, side in parts of the shorter edge; None: anywhere), answer
PHOTOGRAPHS = {
    "cat": (SKIMAGE + "chelsea.png", (0.3, 0.0, 1.0), "The face of a cat."),
    "coffee": (SKIMAGE + "coffee.png", (0.25, 0.0, 1.0), "A cup of coffee on a red saucer."),
    "rocket": (SKIMAGE + "rocket.jpg", (0.25, 0.0, 1.0), "A rocket on its launch pad at dusk."),
    "bricks": (SKIMAGE + "brick.png", None, "A wall of grey bricks."),
    "grass": (SKIMAGE + "grass.png", None, "Blades of grass from above."),
    "stars": (SKIMAGE + "hubble_deep_field.jpg", None, "Galaxies in the night sky."),
    "tower": (SKLEARN + "china.jpg", (0.15, 0.0, 1.0), "A tower with curved roofs by a lake."),
    "dahlia": (SKLEARN + "flower.jpg", (0.22, 0.0, 1.0), "An orange dahlia."),
}
DRAWINGS = {
    "apple": (CLIPART + "food/fruit/applf.png", "A red apple."),
    "orange": (CLIPART + "food/fruit/orange_dave_pena_01.png", "An orange with a leaf."),
    "banana": (CLIPART + "food/fruit/banana.png", "A yellow banana."),
    "strawberry": (CLIPART + "food/fruit/strawberry_simple.png", "A strawberry."),
    "pear": (CLIPART + "food/fruit/pear_simple.png", "A pear."),
    "bus": (CLIPART + "transportation/vehicles/bus2_jarno_vasamaa_01.png", "A light blue bus."),
    "sailboat": (CLIPART + "transportation/boating/sailboat_illustration.png", "A boat with blue sails."),
    "tulips": (CLIPART + "plants/tulips_ganson.png", "Three pink tulips."),
}
WORDS = {**{name: f"digits/{i}.wav" for i, name in enumerate(
            "zero one two three four five six seven eight nine".split())},
         **{name: f"digits/day-{i}.wav" for i, name in enumerate(
             "Sunday Monday Tuesday Wednesday Thursday Friday Saturday".split())}}
PICTURES_EACH, PAIRS_EACH, SOUNDS_EACH, JOINT = 12, 1, 6, 17


def unpack(folder):
    subprocess.run(["apt-get", "download", "-qq", *PACKAGES], cwd=folder, check=True)
    for package in PACKAGES:
        (archive,) = folder.glob(package + "_*.deb")
        subprocess.run(["dpkg", "-x", archive, folder / package], check=True)


def photograph(source, subject, chance):
    image = Image.open(source).convert("RGB")
    edge = min(image.size)
    if subject is None:
        side = edge * chance.uniform(0.35, 0.5)
        left, top = chance.uniform(0, image.width - side), chance.uniform(0, image.height - side)
    else:
        side = edge * subject[2] * chance.uniform(0.82, 1.0)
        left = edge * subject[0] + chance.uniform(0, edge * subject[2] - side)
        top = edge * subject[1] + chance.uniform(0, edge * subject[2] - side)
    image = image.resize((SIDE, SIDE), Image.LANCZOS, (left, top, left + side, top + side))
    if chance.random() < 0.5:
        image = ImageOps.mirror(image)
    return ImageEnhance.Brightness(image).enhance(chance.uniform(0.8, 1.2))


def drawing(source, chance):
    """On paper of a random light tint, a little larger or smaller, anywhere where it fits."""
    image = Image.open(source).convert("RGBA")
    image = image.crop(image.getbbox())
    image.thumbnail([int(SIDE * chance.uniform(0.75, 0.98))] * 2, Image.LANCZOS)
    if chance.random() < 0.5:
        image = ImageOps.mirror(image)
    paper = Image.new("RGBA", (SIDE, SIDE), tuple(chance.randint(215, 255) for _ in range(3)))
    paper.alpha_composite(image, (chance.randint(0, SIDE - image.width), chance.randint(0, SIDE - image.height)))
    return paper.convert("RGB").quantize(32, dither=Image.Dither.NONE)


def sound(source, chance):
    """The word between its silences, delayed by whole frames, at another volume and with a little noise."""
    with wave.open(str(source)) as file:
        samples = numpy.frombuffer(file.readframes(file.getnframes()), "<i2").astype(float)
    loud = numpy.flatnonzero(numpy.abs(samples) > 300)
    samples = samples[loud[0] - loud[0] % FRAME:loud[-1] + 1]
    samples = numpy.concatenate([numpy.zeros(FRAME * chance.randint(0, 3)), samples])
    samples = numpy.pad(samples, (0, -len(samples) % FRAME))
    noise = numpy.random.default_rng(chance.getrandbits(32)).normal(0, chance.uniform(5, 60), len(samples))
    return numpy.clip(numpy.round(samples * chance.uniform(0.5, 1.0) + noise), -32768, 32767).astype("<i2")


def passages(text):
    """Whole sentences of each paragraph, as many as fit."""
    for paragraph in re.split(r"\n\s*\n", text):
        passage = ""
        for sentence in re.split(r"(?<=[.!?;:])\s+", " ".join(paragraph.split())):
            if passage and len(passage) + 1 + len(sentence) > PASSAGE:
                yield passage
                passage = ""
            passage = (passage + " " + sentence).strip()
            while len(passage) > PASSAGE:  # a sentence longer than that is cut at a space
                cut = passage.rindex(" ", 0, PASSAGE)
                yield passage[:cut]
                passage = passage[cut + 1:]
        if passage:
            yield passage


def texts(folder):
    alice = gzip.open(next(folder.glob("crm114/usr/share/doc/crm114/Alice*.gz")), "rt").read()
    whale = next(folder.glob("golang-*/**/mobydick.txt")).read_text(encoding="utf-8-sig")
    whale = whale[whale.index("CHAPTER 1. Loomings."):whale.index("CHAPTER 4. The Counterpane.")]
    for number, passage in enumerate([*passages(alice), *passages(whale)]):
        words = passage.split(" ")
        if number % 6 == 5 and len(words) > 20:
            half = len(words) // 2
            yield {"prompt": "Continue: " + " ".join(words[:half]), "completion": " " + " ".join(words[half:])}
        else:
            yield {"text": passage}


def main():
    chance = random.Random(20251)
    examples = []
    for kind in ("pictures", "sounds"):
        shutil.rmtree(OUTPUT / kind, ignore_errors=True)
        (OUTPUT / kind).mkdir(parents=True)
    counts = {}

    def numbered(folder, name, suffix):
        counts[name] = counts.get(name, 0) + 1
        return f"{folder}/{name}-{counts[name]:02}.{suffix}"

    def conversation(*turns):
        roles = ["user", "assistant"] * (len(turns) // 2)
        examples.append({"messages": [{"role": r, "content": c} for r, c in zip(roles, turns)]})

    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        unpack(folder)
        examples.extend(texts(folder))

        def picture(name):
            if name in PHOTOGRAPHS:
                path = numbered("pictures", name, "jpg")
                photograph(folder / PHOTOGRAPHS[name][0], PHOTOGRAPHS[name][1], chance).save(
                    OUTPUT / path, quality=80, optimize=True)
            else:
                path = numbered("pictures", name, "png")
                drawing(folder / DRAWINGS[name][0], chance).save(OUTPUT / path, optimize=True)
            return {"type": "image", "image": path}

        def word(name):
            path = numbered("sounds", name.lower(), "wav")
            with wave.open(str(OUTPUT / path), "wb") as file:
                file.setparams((1, 2, 8000, 0, "NONE", ""))
                file.writeframes(sound(folder / "asterisk-core-sounds-en-wav/usr/share/asterisk/sounds/"
                                       "en_US_f_Allison" / WORDS[name], chance).tobytes())
            return {"type": "audio", "audio": path}

        def say(text):
            return {"type": "text", "text": text}

        answers = {**{n: v[-1] for n, v in PHOTOGRAPHS.items()}, **{n: v[-1] for n, v in DRAWINGS.items()}}
        names, words = list(answers), list(WORDS)
        for name in names:
            for _ in range(PICTURES_EACH):
                conversation([picture(name), say("What is in the picture?")], answers[name],
                             "Is it a photograph or a drawing?",
                             "A photograph." if name in PHOTOGRAPHS else "A drawing.")
            for _ in range(PAIRS_EACH):
                other = chance.choice(names)
                conversation([say("First"), picture(name), say("then"), picture(other), say("What do they show?")],
                             f"{answers[name]} {answers[other]}")
        for name in words:
            for _ in range(SOUNDS_EACH):
                conversation([word(name), say("What is said?")], name)
        for i in range(JOINT):
            shown = chance.choice(names)
            conversation([picture(shown), word(words[i]), say("What do you see and hear?")],
                         f"{answers[shown]} A voice says {words[i]}.")

    chance.shuffle(examples)
    with open(OUTPUT / "sample.jsonl", "w", encoding="utf-8", newline="\n") as file:
        for example in examples:
            file.write(json.dumps(example, ensure_ascii=False) + "\n")
    print(f"{len(examples)} examples")


main()
