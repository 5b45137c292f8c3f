#!/usr/bin/env python3
"""Compare our tokenizer with Hugging Face's `tokenizers` on generated strings, ids and speed.

    compare_tokenizer.py TOKENIZER.json [--strings N] [--seed N] [--program build/tests/data/encode_strings]
    compare_tokenizer.py TOKENIZER.json --write GOLDEN.json     (N strings with their ids, for the tests)

Needs the package `tokenizers`. The strings are code, prose in many scripts, emoji, runs of spaces and newlines,
unassigned characters and special tokens spelled out in text; every tenth has bytes that are not UTF-8, which have to be
replaced as Python does, and counted. Exits non-zero at the first difference.
"""
import argparse
import codecs
import json
import os
import random
import subprocess
import sys
import time

os.environ["RAYON_NUM_THREADS"] = "1"  # one core, as ours
from tokenizers import Tokenizer  # noqa: E402

SCRIPTS = ((0x20, 0x7E), (0xA0, 0x24F), (0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x4FF), (0x530, 0x58F), (0x590, 0x5FF),
           (0x600, 0x6FF), (0x900, 0x97F), (0xB80, 0xBFF), (0xE00, 0xE7F), (0x10A0, 0x10FF), (0x1200, 0x137F),
           (0x1780, 0x17FF), (0x1E00, 0x1FFF), (0x2000, 0x206F), (0x20A0, 0x22FF), (0x2580, 0x27BF), (0x3040, 0x30FF),
           (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xE000, 0xE0FF), (0xFE00, 0xFE0F), (0x10330, 0x1034A),
           (0x1D400, 0x1D7FF), (0x1F300, 0x1F6FF), (0x20000, 0x2A6DF), (0xF0000, 0xF00FF), (0x10FF00, 0x10FFFF))
WORDS = ("the of and to in a is that it was for on are as with his they at be this from have or by one had not but what all "
         "were when we there can an your which their said if do will each about how up out them then she many some so these "
         "would other into has more her two like him see time could no make than first been its who now people my made over "
         "did down only way find use may water long little very after words called just where most know internationalization "
         "Donaudampfschifffahrt l'homme aujourd'hui señor naïve Straße смысл привет мир 你好世界 こんにちは 안녕하세요 สวัสดี مرحبا "
         "नमस्ते Ελλάδα").split()
CODE = ("for (int i = 0; i < n; ++i) {", "\treturn x[i] * 3.14159;", "def __init__(self, *args, **kwargs):", "    ", "}\n\n",
        "#include <vector>", "SELECT * FROM t WHERE a >= 10;", "<table><tr><td>1</td></tr></table>", "https://example.org/a?b=c&d",
        "0xDEADBEEF", "1234567890", "{\"key\": [1, 2, null]}", "\r\n", "\\frac{a}{b}", "x_1 != y_2", "// ---------", "=====", "...")
EMOJI = ("\U0001F600", "\U0001F468\u200D\U0001F469\u200D\U0001F467", "\U0001F1E9\U0001F1EA", "\u2764\uFE0F", "\U0001F44D\U0001F3FD")


def make_string(rng, specials):
    def characters():
        low, high = rng.choice(SCRIPTS)
        return "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 12)))

    makers = (lambda: " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 20))), characters, lambda: rng.choice(CODE),
              lambda: rng.choice(EMOJI), lambda: rng.choice(" \n\t\u2581\u00A0\r") * rng.randint(1, 40),
              lambda: rng.choice(specials), lambda: str(rng.randint(0, 10 ** rng.randint(1, 20))),
              lambda: chr(rng.choice((0, 1, 7, 0x7F, 0x200B, 0xFEFF, 0xFFFD, 0xFFFF))),
              lambda: "".join(rng.choice("aeiou.,<|>xX ") for _ in range(rng.randint(1, 60))))
    weights = (30, 20, 12, 6, 10, 4, 6, 3, 9)
    count = rng.choice((1, 1, 2, 3, 5, 8, 20))
    return "".join(rng.choices(makers, weights)[0]() + rng.choice(("", "", " ", "\n")) for _ in range(count))


def break_utf8(rng, text):
    """The text's bytes with stray, missing and changed ones."""
    data = bytearray(text.encode())
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(data))
        kind = rng.randrange(3)
        if kind == 0:
            data[at:at] = bytes(rng.randint(0x80, 0xFF) for _ in range(rng.randint(1, 4)))
        elif kind == 1:
            del data[at:at + 1]
        else:
            data[at:at + 1] = bytes([rng.randint(0x80, 0xFF)])
    return bytes(data)


def json_string(data):
    """Any bytes as a JSON string: what has to be escaped is, the rest stays."""
    escaped = {0x22: b'\\"', 0x5C: b"\\\\", **{i: b"\\u%04x" % i for i in range(0x20)}}
    return b'"' + b"".join(escaped.get(byte, bytes([byte])) for byte in data) + b'"'


repairs = 0


def count_repair(error):
    global repairs
    repairs += 1
    return "\uFFFD", error.end


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("tokenizer")
parser.add_argument("--strings", type=int, default=100_000)
parser.add_argument("--seed", type=int, default=1)
parser.add_argument("--program", default="build/tests/data/encode_strings")
parser.add_argument("--write")
options = parser.parse_args()

reference = Tokenizer.from_file(options.tokenizer)
reference.encode_special_tokens = True  # special tokens in a text are text
rng = random.Random(options.seed)
added = [t["content"] for t in json.load(open(options.tokenizer, encoding="utf-8"))["added_tokens"]]
specials = [t for t in added if not t.startswith("<unused")] or ["<eos>"]
made = [make_string(rng, specials) for _ in range(options.strings)] + ["", " ", "a"]
raw = [break_utf8(rng, s) if i % 10 == 0 else s.encode() for i, s in enumerate(made)]
codecs.register_error("counted", count_repair)
strings = [data.decode("utf-8", "counted") for data in raw]
size = sum(len(s.encode()) for s in strings)

start = time.perf_counter()
expected = [reference.encode(s, add_special_tokens=False).ids for s in strings]
their_speed = size / (time.perf_counter() - start) / 1e6
if options.write:
    with open(options.write, "w", encoding="ascii") as out:
        rows = (json.dumps({"text": s, "ids": ids}) for s, ids in zip(strings, expected))
        out.write("[\n" + ",\n".join(rows) + "\n]\n")
    sys.exit()

run = subprocess.run([options.program, options.tokenizer], input=b"\n".join(map(json_string, raw)),
                     capture_output=True, check=False)
if run.returncode:
    sys.exit(run.stderr.decode(errors="replace"))
lines = run.stdout.decode().split("\n")
for text, want, line in zip(strings, expected, lines):
    got = [int(i) for i in line.split()]
    if got != want:
        sys.exit(f"different: {text!r}\n  ours     {got}\n  expected {want}")
our_speed, our_repairs = float(run.stderr.split()[0]), int(run.stderr.split()[1])
if our_repairs != repairs:
    sys.exit(f"{our_repairs} ill-formed UTF-8 sequences counted, expected {repairs}")
print(f"{len(strings)} strings, {size / 1e6:.1f} MB, {sum(map(len, expected))} ids: all equal; {repairs} ill-formed UTF-8 sequences replaced")
print(f"one core: ours {our_speed:.1f} MB/s, tokenizers {their_speed:.1f} MB/s, ratio {our_speed / their_speed:.1f}")
