#!/usr/bin/env python3
"""Whole runs of the program under mpirun: training_test.py PROGRAM SOURCE_DIR CASE (see CASES at the end).

Only Python's standard library is used. A case prints what it measured and exits with 1 if something does not hold.
"""
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

PROGRAM, SOURCE, CASE = sys.argv[1:4]
BF16 = 2e-3  # the same in bf16
FIRST, LATER = 1e-5, 1e-3  # relative difference of losses between rank counts: first ten steps, all steps

CONFIG = """
run: {{directory: {folder}/{name}, seed: 3, device: cpu, precision: float32}}
model: {{config: {source}/tests/launch/tiny-model.json}}
data: {{train: {folder}/data/train, validation: {folder}/data/validation, sequence_length: 192}}
train: {{steps: {steps}, rows_per_step: 5, rows_per_rank: 1}}
optimizer: {{lr: 1e-3}}
schedule: {{kind: cosine, warmup_steps: 5}}
validation: {{every: 20, rows: 12}}
checkpoint: {{every: {every}}}
"""


def check(ok, message):
    if not ok:
        print("FAILED:", message)
        sys.exit(1)


class Runs:
    """A folder with data and any number of runs."""

    def __init__(self, folder):
        self.folder = folder
        self.build_data(f"{folder}/data")

    def build_data(self, output, *more):
        subprocess.run([PROGRAM, "data", "build", "--input", f"{SOURCE}/configs/sample/sample.jsonl", "--output", output,
                        "--tokenizer", "bytes", "--image-tokens", "4", "--validation", "0.08", *more],
                       check=True, stdout=subprocess.DEVNULL)

    def command(self, name, ranks, *settings, steps=60, every=0, verb="train"):
        path = f"{self.folder}/{name}.yaml"
        with open(path, "w") as f:
            f.write(CONFIG.format(folder=self.folder, name=name, source=SOURCE, steps=steps, every=every))
        sets = [word for s in settings for word in ("--set", s)]
        return [f"{SOURCE}/tests/mpirun.sh", str(ranks), PROGRAM, verb, "-c", path, *sets]

    def run(self, name, ranks, *settings, expect=0, seconds=120, **options):
        """Returns (output, seconds it took)."""
        start = time.monotonic()
        done = subprocess.run(self.command(name, ranks, *settings, **options), stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, timeout=seconds,
                              env=dict(os.environ, LAPIDARY_FAULTS="1"))
        took = time.monotonic() - start
        check(done.returncode == expect, f"{name} on {ranks} ranks: exit code {done.returncode}, expected {expect}:\n{done.stdout}")
        return done.stdout, took

    def steps(self, name, event="step"):
        """The last record of every step, in order: what a reader of metrics.jsonl is to use after restarts."""
        records = {}
        with open(f"{self.folder}/{name}/metrics.jsonl") as f:
            for line in f:
                record = json.loads(line)
                if record["event"] == event:
                    records[record["step"]] = record
        return [records[s] for s in sorted(records)]


def compare(a, b, what):
    check([r["step"] for r in a] == [r["step"] for r in b], f"{what}: other steps")
    check([r["data_hash"] for r in a] == [r["data_hash"] for r in b], f"{what}: other samples")
    off = [abs(x["loss"] - y["loss"]) / abs(y["loss"]) for x, y in zip(a, b)]
    print(f"{what}: losses differ by at most {max(off[:10]):.1e} in the first 10 steps, {max(off):.1e} in all {len(off)}")
    check(max(off[:10]) <= FIRST and max(off) <= LATER, f"{what}: losses differ: {off}")


def same_bits(a, b, what):
    for x, y in zip(a, b):
        for key in ("step", "loss", "grad_norm", "data_hash"):
            check(x[key] == y[key], f"{what}: step {x['step']}: {key} {x[key]} and {y[key]}")
    check(len(a) == len(b), f"{what}: {len(a)} and {len(b)} steps")
    print(f"{what}: the same bits in {len(a)} steps")


def ranks(runs):
    """1, 2, 3 and 4 ranks see the same samples and compute the same losses; two runs give the same bits."""
    for n in (1, 2, 3, 4):
        runs.run(f"ranks{n}", n)
    for n in (2, 3, 4):
        compare(runs.steps(f"ranks{n}"), runs.steps("ranks1"), f"{n} ranks against 1")
    runs.run("again", 2)
    same_bits(runs.steps("again"), runs.steps("ranks2"), "2 ranks, twice")
    check(runs.steps("ranks1")[-1]["loss"] < 0.8 * runs.steps("ranks1")[0]["loss"], "the loss did not fall")
    evaluated(runs)


def evaluated(runs):
    """An evaluation of the last checkpoint says what the run's last validation said, on any number of ranks."""
    last = runs.steps("ranks2", "validation")[-1]
    for n in (1, 2, 3):
        output, _ = runs.run("ranks2", n, verb="eval")
        found = re.search(r"step 60: loss (\S+), negative log-likelihood (\S+), perplexity \S+, accuracy (\S+) %, entropy (\S+), "
                          r"(\d+) tokens", output)
        check(found, f"expected the evaluation of step 60:\n{output}")
        loss, nll, accuracy, entropy, tokens = map(float, found.groups())
        for name, value, bound in (("validation_loss", loss, 2e-6), ("nll", nll, 2e-6), ("entropy", entropy, 1e-5),
                                   ("accuracy", accuracy / 100, 6e-5), ("target_tokens", tokens, 0)):
            check(abs(value - last[name]) <= bound * max(1, last[name]), f"{name} on {n} ranks: {value}, expected {last[name]}")
    print(f"evaluations on 1, 2 and 3 ranks: loss {last['validation_loss']:.6f}, entropy {last['entropy']:.6f}")

    # An evaluation beside a run that saves leaves its hidden folder alone, and makes no folder where there is none.
    saving = f"{runs.folder}/ranks2/checkpoints/.tmp-99-1"
    os.mkdir(saving)
    runs.run("ranks2", 1, verb="eval")
    check(os.path.isdir(saving), "an evaluation removed the folder of a save under way")
    runs.run("ranks2", 1, steps=61)
    check(not os.path.exists(saving), "a start left what a killed run had been saving")
    runs.run("nowhere", 1, verb="eval", expect=1)
    check(not os.path.exists(f"{runs.folder}/nowhere"), "an evaluation of nothing made a folder")


def resume(runs):
    """A run that is stopped and resumed is the run that was not: bit for bit on as many ranks, else within the bounds."""
    runs.run("whole", 2)
    for n in (2, 3, 1):
        name = f"resumed{n}"
        runs.run(name, 2, "fault.kind=kill", "fault.step=31", "fault.rank=1", expect=137, every=15)
        runs.run(name, n, every=15)
        if n == 2:
            same_bits(runs.steps(name), runs.steps("whole"), "2 ranks, resumed on 2")
        else:
            compare(runs.steps(name), runs.steps("whole"), f"2 ranks, resumed on {n}")


def kills(runs):
    """SIGKILL at 20 random moments, saves included: a resume finds a whole checkpoint and goes on as if nothing happened."""
    _, took = runs.run("whole", 2, steps=200, every=3, seconds=900)
    rng = random.Random(5)
    killed = 0
    while killed < 20:
        process = subprocess.Popen(runs.command("killed", 2, steps=200, every=3), stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, text=True, start_new_session=True)
        try:
            # A start takes about a second on a quiet machine, and longer where a whole run does.
            output, _ = process.communicate(timeout=0.7 + max(1.3, took / 10) * rng.random())
            check(process.returncode == 0, f"a resumed run failed with {process.returncode}:\n{output}")
            # Faster than the whole run let expect: once more from the beginning.
            same_bits(runs.steps("killed"), runs.steps("whole"), f"after {killed} kills")
            shutil.rmtree(f"{runs.folder}/killed")
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # mpirun; its ranks find out by themselves, or here
            subprocess.run(["pkill", "-KILL", "-f", f"{runs.folder}/killed.yaml"])
            process.communicate()
            killed += 1
    runs.run("killed", 2, steps=200, every=3, seconds=900)
    same_bits(runs.steps("killed"), runs.steps("whole"), f"after {killed} kills")


def faults(runs):
    """A rank that fails ends all ranks within seconds, with one message and the right exit code."""
    output, took = runs.run("throws", 3, "fault.kind=throw", "fault.rank=1", "fault.step=3", expect=1)
    check(output.count("told to fail at step 3") == 1, f"expected one message:\n{output}")
    check(took < 20, f"took {took:.1f} s")
    output, _ = runs.run("nan", 2, "fault.kind=nan", "fault.rank=1", "fault.step=3", "checkpoint.every=1", expect=77)
    where = "step 3: the loss is not finite (first seen on rank 0; weights on rank 1 are not finite)"
    check(output.count(where) == 1, f"expected one message:\n{output}")
    check(os.listdir(f"{runs.folder}/nan/checkpoints") and not os.path.exists(f"{runs.folder}/nan/checkpoints/step-00000003"),
          "a step that is not finite was saved")
    output, took = runs.run("killed", 3, "fault.kind=kill", "fault.rank=2", "fault.step=3", expect=137)
    print(f"a killed rank ended the job after {took:.1f} s in all")
    check(took < 20, f"took {took:.1f} s")


def rank_processes(process):
    """The processes that mpirun started, by rank."""
    found = {}
    for pid in subprocess.run(["pgrep", "-P", str(process.pid)], stdout=subprocess.PIPE, text=True).stdout.split():
        with open(f"/proc/{pid}/environ") as f:
            rank = re.search(r"\0OMPI_COMM_WORLD_RANK=(\d+)\0", f.read())
        if rank:
            found[int(rank[1])] = int(pid)
    return found


def hangs(runs):
    """A rank that waits for ever, or is stopped at a random moment, is named and ends the job in time."""
    output, took = runs.run("hangs", 3, "fault.kind=hang", "fault.rank=1", "fault.step=3", "run.patience=3s", expect=76)
    check(output.count("rank 1 hangs") == 1 and "step 3, waits for data; rank 2 waits: step 3, counts its tokens" in output, f"expected one message:\n{output}")
    check(took < 20, f"took {took:.1f} s")
    output, _ = runs.run("alone", 1, "fault.kind=hang", "fault.rank=0", "fault.step=3", "run.patience=2s", expect=76)
    check(output.count("no rank goes on") == 1 and "step 3, waits for data" in output, f"expected one message:\n{output}")
    rng = random.Random(7)
    longest = 0
    for trial in range(6):
        ranks = 2 + trial % 3
        stopped = rng.randrange(ranks)
        process = subprocess.Popen(runs.command(f"stopped{trial}", ranks, "run.patience=3s", steps=100000, every=5),
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        while not os.path.exists(f"{runs.folder}/stopped{trial}/metrics.jsonl"):
            time.sleep(0.05)
            check(process.poll() is None, "the run ended before it was stopped")
        time.sleep(1 + rng.random())
        os.kill(rank_processes(process)[stopped], signal.SIGSTOP)
        start = time.monotonic()
        output, _ = process.communicate(timeout=60)
        took = time.monotonic() - start
        longest = max(longest, took)
        check(process.returncode == 76, f"rank {stopped} stopped: exit code {process.returncode}:\n{output}")
        check(output.count(f"rank {stopped} gave no sign of life") == 1, f"rank {stopped} of {ranks} stopped:\n{output}")
        check(took < 3 + 5, f"patience 3 s, took {took:.1f} s")
    print(f"6 stopped ranks named; at most {longest:.1f} s after they were stopped, with a patience of 3 s")


def bad_input(runs):
    """What cannot work is refused with exit code 1 and one message that names the place."""

    def refused(name, expected, *settings, ranks=2):
        output, _ = runs.run(name, ranks, *settings, expect=1)
        check(len(re.findall(expected, output)) == 1, f"{name}: expected once {expected!r}:\n{output}")

    refused("a", r"data\.train.*|/no/such/folder", "data.train=/no/such/folder")
    refused("b", r"optimizer\.learning_rte: unknown key", "optimizer.learning_rte=1")
    refused("c", r"/no/such/config\.json", "model.config=/no/such/config.json")
    refused("d", r"/no/such/weights", "model.weights=/no/such/weights")
    wrong = json.load(open(f"{SOURCE}/tests/launch/tiny-model.json"))
    wrong["text_config"]["vocab_size"] = 300
    path = f"{runs.folder}/wrong.json"
    json.dump(wrong, open(path, "w"))
    refused("e", r"(?s)288.*300|300.*288", f"model.config={path}")

    # A shard that lost its end, and a checkpoint that did.
    shard = f"{runs.folder}/data/train/shard-00000.h5"
    size = os.path.getsize(shard)
    content = open(shard, "rb").read()
    os.truncate(shard, size - 1000)
    refused("f", r"shard-00000\.h5")
    open(shard, "wb").write(content)
    runs.run("g", 2, steps=8, every=4)
    files = sorted(f for f in os.listdir(f"{runs.folder}/g/checkpoints/step-00000008") if f.endswith(".h5"))
    damaged = f"{runs.folder}/g/checkpoints/step-00000008/{files[-1]}"
    os.truncate(damaged, os.path.getsize(damaged) - 100)
    refused("g", re.escape(files[-1]), "checkpoint.fallback=false")
    output, _ = runs.run("g", 2, steps=10, every=4)
    check("step-00000004" in output, f"expected the one before:\n{output}")
    check("A step takes the time of 6 rows for its 5 (train.rows_per_step): a multiple of 2 would waste none" in output, output)
    names = set(os.listdir(f"{runs.folder}/g/checkpoints"))
    check({"step-00000008", "step-00000008.damaged-1"} <= names, f"expected the damaged one beside a new one: {names}")

    # A start that is refused leaves what the run's folder says; one that goes on says what is not as it was.
    refused("g", r"run\.seed is 4, but the checkpoint was written with seed 3", "run.seed=4")
    refused("g", r"cannot continue from row 50: it was counted in another order.*model\.weights", "data.sequence_length=256")
    check("seed: 3" in open(f"{runs.folder}/g/config.yaml").read(), "a start that was refused left its configuration")
    output, _ = runs.run("g", 1, "optimizer.beta2=0.9", steps=10, every=4)
    check("Changed since then: optimizer.beta2 0.9, was 0.95\n" in output and
          "Nothing is left to train: step 10 is reached, train.steps is 10\n" in output, output)
    output, _ = runs.run("h", 1, f"checkpoint.resume={runs.folder}/g", steps=11)
    check(f"Resuming from {runs.folder}/g/checkpoints/step-00000010 (" in output and "step 11: finished, " in output, output)


LAYOUTS = {  # of weights and optimizer, and how far losses may be off on another number of ranks
    "wide": (["run.precision=float32"], LATER),
    "float32": (["run.precision=bf16", "optimizer.state=float32"], BF16),
    "split": (["run.precision=bf16", "optimizer.state=split"], BF16),
    "bf16": (["run.precision=bf16", "optimizer.state=bf16"], BF16),
    "float8": (["run.precision=bf16", "optimizer.state=float8"], BF16),
}


def shapes_for(ranks):
    """The ways to spread weights over so many ranks: settings by name."""
    shard = max(n for n in range(1, ranks // 2 + 1) if ranks % n == 0) if ranks > 1 else 1
    return {"zero3": ["parallel.zero=3"], "zero2": ["parallel.zero=2"], "hybrid": [f"parallel.shard={shard}"]}


def one_pair(runs, layout, shape, writers, readers):
    """Saved on `writers`, resumed on `readers`: the same tensors, and the next 20 losses as without a break."""
    settings, bound = LAYOUTS[layout]
    base = f"{layout}-{shape}-{writers}"
    small = ["train.rows_per_step=7", "validation.every=0", "schedule.kind=constant", "schedule.warmup_steps=2"]
    if not os.path.exists(f"{runs.folder}/{base}"):
        runs.run(base, writers, *settings, *small, *shapes_for(writers)[shape], "checkpoint.keep_last=10", steps=24, every=4)
        for step in range(8, 25, 4):
            shutil.rmtree(f"{runs.folder}/{base}/checkpoints/step-{step:08}", ignore_errors=True)
    saved = f"{runs.folder}/{base}/checkpoints/step-00000004"
    name = f"{base}-{readers}"
    common = [*settings, *small, *shapes_for(readers)[shape], f"checkpoint.resume={saved}"]
    runs.run(f"{name}-same", readers, *common, steps=4)  # nothing to do but to save again
    again = f"{runs.folder}/{name}-same/checkpoints/step-00000004"
    done = subprocess.run([PROGRAM, "checkpoint", "diff", saved, again], stdout=subprocess.PIPE, text=True)
    check(done.returncode == 0, f"{name}: other tensors:\n{done.stdout}")
    runs.run(name, readers, *common, steps=24)
    a, b = runs.steps(name), runs.steps(base)[4:]
    check([(r["step"], r["data_hash"]) for r in a] == [(r["step"], r["data_hash"]) for r in b], f"{name}: other samples")
    off = max(abs(x["loss"] - y["loss"]) / abs(y["loss"]) for x, y in zip(a, b))
    check(len(a) == 20 and off <= (0 if writers == readers else bound), f"{name}: losses differ by {off:.1e}")
    print(f"{layout}, {shape}: {writers} to {readers} ranks: {done.stdout.split()[0]} tensors the same, losses off by {off:.1e}",
          flush=True)
    for folder in (f"{name}-same", name):
        shutil.rmtree(f"{runs.folder}/{folder}")


def elsewhere(runs):
    """A few pairs of rank counts (tests/trainer/resume_test.cpp has all). Then another layout, weights only, and a new run from a checkpoint."""
    for layout, shape, writers, readers in (("split", "zero2", 1, 3), ("float32", "hybrid", 4, 2), ("bf16", "zero3", 2, 2),
                                            ("float8", "zero2", 3, 2)):
        one_pair(runs, layout, shape, writers, readers)
    saved = f"{runs.folder}/split-zero2-1/checkpoints"
    wide = [*LAYOUTS["wide"][0], "train.rows_per_step=7", "validation.every=0", "schedule.warmup_steps=2"]
    output, _ = runs.run("converted", 2, *wide, f"checkpoint.resume={saved}/step-00000004", steps=8)
    check("Resuming from" in output and len(runs.steps("converted")) == 4, output)
    runs.run("fresh", 2, *wide, f"model.weights={saved}", steps=4)
    runs.run("weights", 2, *wide, steps=4)
    output, _ = runs.run("weights", 2, *wide, "checkpoint.resume=weights-only", steps=8)
    check("the moments begin at zero" in output and [r["step"] for r in runs.steps("weights")] == list(range(1, 9)), output)
    first = {name: runs.steps(name)[0]["loss"] for name in ("fresh", "weights")}
    check(first["fresh"] < first["weights"], f"trained weights begin no better than random ones: {first}")


def full_disk(runs):
    """Saves that fail: training goes on and says so, the end is code 76, and what was saved before is intact."""
    path = f"{runs.folder}/small"
    os.mkdir(path)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", path], stderr=subprocess.DEVNULL).returncode == 0
    check(mounted, "a tmpfs cannot be mounted here")
    try:
        output, _ = runs.run("full", 2, f"run.directory={path}/run", "checkpoint.keep_last=100", steps=12, every=2, expect=76)
        saved = sorted(os.listdir(f"{path}/run/checkpoints"))
        check(0 < len(saved) < 6 and all(s.startswith("step-") for s in saved), f"{saved}\n{output}")
        check(output.count("NOT SAVED, training goes on") == 6 - len(saved) and "GiB are free" in output, output)
        check(len([line for line in open(f"{path}/run/metrics.jsonl") if '"step"' in line]) > 0, output)
        done = subprocess.run([PROGRAM, "checkpoint", "verify", *(f"{path}/run/checkpoints/{s}" for s in saved)],
                              stdout=subprocess.PIPE, text=True)
        check(done.returncode == 0, done.stdout)
        print(f"{len(saved)} of 6 saves fitted, the others were refused")
    finally:
        subprocess.run(["umount", path])


CASES = dict(elsewhere=elsewhere, full_disk=full_disk, ranks=ranks, resume=resume, kills=kills, faults=faults, hangs=hangs, bad_input=bad_input)

with tempfile.TemporaryDirectory(prefix="lapidary-training-") as scratch:
    CASES[CASE](Runs(scratch))
print("passed")
