#!/usr/bin/env python3
"""tools/tensorboard_events.py: what it writes, read back by a reader of its own, in one go, in pieces and after kills."""
import json
import os
import struct
import subprocess
import sys
import tempfile

TOOL = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../tools/tensorboard_events.py")
sys.path.insert(0, os.path.dirname(TOOL))
import tensorboard_events  # noqa: E402

LINES = [
    {"event": "start", "step": 0, "time": 10.5, "restarts": 0, "device": "CPU", "total_steps": 4},
    {"event": "validation", "step": 0, "time": 10.75, "validation_loss": 5.5, "accuracy": 0.25},
    {"event": "step", "step": 1, "time": 11.0, "loss": 5.0, "lr": 0.5, "tokens": 300, "data_hash": "ab"},
    {"event": "step", "step": 2, "time": 12.0, "loss": None, "lr": 0.25, "tokens": 300},
    {"event": "start", "step": 1, "time": 13.0, "restarts": 1},
    {"event": "step", "step": 2, "time": 14.0, "loss": 4.5, "lr": 0.25, "tokens": 70000},
    {"event": "checkpoint", "step": 200, "time": 15.0, "path": "a/b", "seconds": 2.0},
    {"event": "end", "step": 200, "time": 16.0, "reason": "finished"},
]
EXPECTED = [  # wall time, step, what else
    (0.0, 0, "brain.Event:2"),
    (10.5, 1, "start"),
    (10.75, 0, {"validation/loss": 5.5, "validation/accuracy": 0.25}),
    (11.0, 1, {"train/loss": 5.0, "train/lr": 0.5, "train/tokens": 300.0}),
    (12.0, 2, {"train/lr": 0.25, "train/tokens": 300.0}),
    (13.0, 2, "start"),
    (14.0, 2, {"train/loss": 4.5, "train/lr": 0.25, "train/tokens": 70000.0}),
    (15.0, 200, {"checkpoint/seconds": 2.0}),
    (16.0, 200, {}),
]


def check(ok, message):
    if not ok:
        sys.exit(f"FAILED: {message}")


def masked_crc(data):
    """Bit by bit, not by the tool's table."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0x82F63B78 * (crc & 1)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def message(data):
    """A protobuf message's fields in order: (number, value)."""
    fields, at = [], 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = varint()
        kind = key & 7
        if kind == 0:
            fields.append((key >> 3, varint()))
            continue
        size = {1: 8, 5: 4}.get(kind) or varint()
        piece = data[at:at + size]
        check(len(piece) == size, "a field that ends behind its message")
        at += size
        fields.append((key >> 3, struct.unpack({1: "<d", 5: "<f"}[kind], piece)[0] if kind in (1, 5) else piece))
    return fields


def events(path):
    data = open(path, "rb").read()
    found, at = [], 0
    while at < len(data):
        head = data[at:at + 8]
        length = struct.unpack("<Q", head)[0]
        body = data[at + 12:at + 12 + length]
        check(struct.unpack("<I", data[at + 8:at + 12])[0] == masked_crc(head), "the length's checksum")
        check(struct.unpack("<I", data[at + 12 + length:at + 16 + length])[0] == masked_crc(body), "the record's checksum")
        at += 16 + length
        fields = dict(message(body))
        rest = {}
        if 3 in fields:
            rest = fields[3].decode()
        elif 7 in fields:
            check(message(fields[7]) == [(1, 1)], "a session's status")
            rest = "start"
        else:
            for number, value in message(fields[5]):
                scalar = dict(message(value))
                check(number == 1 and set(scalar) == {1, 2}, "a summary's value")
                rest[scalar[1].decode()] = scalar[2]
        found.append((fields[1], fields[2], rest))
    return found


def run(folder, expect=0):
    done = subprocess.run([sys.executable, TOOL, folder], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    check(done.returncode == expect, f"exit code {done.returncode}, expected {expect}: {done.stdout}")
    return done.stdout


check(tensorboard_events.crc32c(b"123456789") == 0xE3069283, "CRC-32C's check value")
text = "".join(json.dumps(line) + "\n" for line in LINES)
with tempfile.TemporaryDirectory() as folder:
    metrics, out = f"{folder}/metrics.jsonl", f"{folder}/tensorboard/events.out.tfevents.lapidary"
    open(metrics, "w").write(text)
    check("8 new records" in run(folder), "all lines at once")
    check(events(out) == EXPECTED, f"other events: {events(out)}")
    whole = open(out, "rb").read()
    check("0 new records" in run(folder) and open(out, "rb").read() == whole, "a second time")

    # The file as it grows, lines cut anywhere; and with the end of a record that a kill cut off.
    os.remove(out)
    for end in range(0, len(text) + 1, 37):
        open(metrics, "w").write(text[:end])
        run(folder)
    open(metrics, "w").write(text)
    run(folder)
    check(open(out, "rb").read() == whole, "in pieces")
    for lost in (1, 15, 40, len(whole) - 20, len(whole)):
        os.truncate(out, len(whole) - lost)
        run(folder)
        check(open(out, "rb").read() == whole, f"after a kill that lost {lost} bytes")

    open(metrics, "w").write(text[:200])
    check("of another run" in run(folder, expect=1), "fewer lines than records")
    open(metrics, "w").write(text + "nonsense\n")
    check("not a line of a run's metrics" in run(folder, expect=1), "a line that is no JSON")
    os.remove(metrics)
    check("no such file, expected a run's folder" in run(folder, expect=1), "no metrics")
print("passed")
