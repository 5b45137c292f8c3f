#!/usr/bin/env python3
"""Write a small tokenizer.json with the structure of Gemma's: what the tests read.

    make_small_tokenizer.py OUT.json        (needs the package `tokenizers`)
    compare_tokenizer.py OUT.json --strings 300 --write GOLDEN.json

About 900 tokens learned from the README, Gemma 4's markers, the 256 byte tokens, runs of newlines and spaces.
"""
import json
import pathlib
import sys

from tokenizers import Tokenizer, models, normalizers, trainers

MARKERS = ("<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|image>", "<|image|>", "<image|>", "<|audio>", "<|audio|>",
           "<audio|>", "<|video|>")
CONTROL = ("<pad>", "<eos>", "<bos>", "<unk>")
PLAIN = ("<table>", "</table>", "\n", "\n\n", "\n\n\n", "\u2581\u2581", "\u2581\u2581\u2581", "\t")

root = pathlib.Path(__file__).parent.parent
words = " ".join((root / name).read_text() for name in ("README.md", "docs/architecture.md")).split()
tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
trainer = trainers.BpeTrainer(vocab_size=560, special_tokens=[*CONTROL, *(f"<0x{b:02X}>" for b in range(256))],
                              initial_alphabet=list("éüß你好мирा😀▁"), show_progress=False)
tokenizer.train_from_iterator([" " + word for word in words], trainer)

out = json.loads(tokenizer.to_str())
vocab, merges = out["model"]["vocab"], out["model"]["merges"]
for first, second in (("\u2581", "\u2581"), ("\u2581\u2581", "\u2581"), ("\u2581", "\u2581\u2581"), ("\n", "\n")):
    for piece in (first, second, first + second):
        vocab.setdefault(piece, len(vocab))
    merges.append([first, second])
for piece in (*PLAIN, *MARKERS):
    vocab.setdefault(piece, len(vocab))
out["added_tokens"] = [{"id": vocab[t], "content": t, "single_word": False, "lstrip": False, "rstrip": False,
                        "normalized": False, "special": t in CONTROL or t in MARKERS} for t in (*CONTROL, *MARKERS, *PLAIN)]
out["pre_tokenizer"] = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
out["decoder"] = {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                                                   {"type": "ByteFallback"}, {"type": "Fuse"}]}
pathlib.Path(sys.argv[1]).write_text(json.dumps(out, separators=(",", ":")) + "\n")
