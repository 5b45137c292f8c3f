#!/usr/bin/env python3
"""Write a run's metrics as event files for TensorBoard, without TensorBoard or any other package.

    tensorboard_events.py RUN... [--follow SECONDS]
    tensorboard --logdir runs

RUN is a run's folder, which holds metrics.jsonl; RUN/tensorboard gets one record for each of its lines. The same
command goes on where it stopped; --follow looks for new lines every so many seconds until it is interrupted. Numbers
appear as train/loss, train/lr, validation/loss, checkpoint/stall_seconds and so on (docs/metrics.md). Steps that a restart
takes back disappear: TensorBoard drops what a session's start at an earlier step replaces.
"""
import argparse
import json
import os
import struct
import sys
import time

GROUPS = {"step": "train"}  # the other events give their own names to their numbers
NAMES = {"validation_loss": "loss"}


def crc_table():
    """Of CRC-32C, a byte at a time (Castagnoli's polynomial, reflected)."""
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


TABLE = crc_table()


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def masked(data):
    """TFRecord's checksum of a checksum: rotated and shifted, as records may hold records."""
    crc = crc32c(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def framed(data):
    length = struct.pack("<Q", len(data))
    return length + masked(length) + data + masked(data)


def varint(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number, data):
    """A protobuf field of bytes: text, or another message."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def event(seconds, step, rest):
    """tensorflow.Event: wall_time = 1, step = 2, and what it says."""
    return framed(b"\x09" + struct.pack("<d", seconds) + b"\x10" + varint(step) + rest)


def event_of(line):
    """One record for one line of metrics.jsonl."""
    kind, step, seconds = line["event"], line["step"], line["time"]
    if kind == "start":  # session_log = 7 {status = 1: START}: what was said of this step and later ones is void
        return event(seconds, step + 1, field(7, b"\x08\x01"))
    values = b""
    for key, value in line.items():
        if key in ("step", "time") or isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        tag = f"{GROUPS.get(kind, kind)}/{NAMES.get(key, key)}"
        values += field(1, field(1, tag.encode()) + b"\x15" + struct.pack("<f", value))  # tag = 1, simple_value = 2
    return event(seconds, step, field(5, values))  # summary = 5


def whole_records(data):
    """How many records the bytes hold, and where the last whole one ends."""
    count = end = 0
    while end + 12 <= len(data):
        next_end = end + 16 + struct.unpack_from("<Q", data, end)[0]
        if next_end > len(data):
            break
        count, end = count + 1, next_end
    return count, end


class Run:
    def __init__(self, folder):
        self.metrics = os.path.join(folder, "metrics.jsonl")
        if not os.path.isfile(self.metrics):
            sys.exit(f"tensorboard_events: {self.metrics}: no such file, expected a run's folder")
        self.read = 0  # bytes of whole lines
        os.makedirs(os.path.join(folder, "tensorboard"), exist_ok=True)
        path = os.path.join(folder, "tensorboard", "events.out.tfevents.lapidary")
        self.out = open(path, "r+b" if os.path.exists(path) else "w+b")
        records, end = whole_records(self.out.read())
        self.out.truncate(end)
        self.out.seek(end)
        if records == 0:
            self.out.write(event(0.0, 0, field(3, b"brain.Event:2")))  # file_version = 3
        self.known = max(0, records - 1)  # lines, from the first, that have their record

    def update(self):
        """Appends records for whole lines that have none; returns how many."""
        with open(self.metrics, "rb") as f:
            f.seek(self.read)
            lines = f.read()
        lines = lines[:lines.rfind(b"\n") + 1]  # a writer that was killed leaves the rest
        self.read += len(lines)
        lines = lines.split(b"\n")[:-1]
        if len(lines) < self.known:
            sys.exit(f"tensorboard_events: {self.metrics}: {len(lines)} lines, {self.out.name} has records of {self.known}: "
                     "of another run, remove it")
        new, self.known = lines[self.known:], 0
        for line in new:
            try:
                self.out.write(event_of(json.loads(line)))
            except (ValueError, KeyError, TypeError) as e:
                sys.exit(f"tensorboard_events: {self.metrics}: not a line of a run's metrics ({e!r}): {line[:80]!r}")
        self.out.flush()
        return len(new)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", metavar="RUN", nargs="+")
    parser.add_argument("--follow", metavar="SECONDS", type=float)
    arguments = parser.parse_args()
    runs = [Run(folder) for folder in arguments.runs]
    for folder, run in zip(arguments.runs, runs):
        print(f"{folder}/tensorboard: {run.update()} new records")
    while arguments.follow is not None:
        time.sleep(arguments.follow)
        for run in runs:
            run.update()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        pass
