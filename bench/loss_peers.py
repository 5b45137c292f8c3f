#!/usr/bin/env python3
"""The loss layer as PyTorch computes it, eager and compiled, beside `lapidary bench loss`: time and memory of forward and
backward at the vocabulary and width of Gemma 4 12B, and errors against float32 from the same inputs. Needs a GPU.
usage: loss_peers.py [TOKENS...]"""
import sys

import torch
import torch.nn.functional as F

WIDTH, VOCABULARY, CAP = 3840, 262144, 30.0
CHUNK = 256  # tokens that the float32 reference holds logits of


def inputs(tokens):
    torch.manual_seed(0)
    hidden = torch.randn(tokens, WIDTH, device="cuda").bfloat16().requires_grad_()
    table = (torch.randn(VOCABULARY, WIDTH, device="cuda") * 0.02).bfloat16().requires_grad_()
    return hidden, table, torch.randint(0, VOCABULARY, (tokens,), device="cuda")


def peaked(table, targets):
    """Hidden states as `lapidary bench loss --errors` makes them: they point at their target's row and nearly as much at
    another one's, more or less strongly, so that logits reach from 15 to beyond the cap."""
    rivals = torch.randint(0, VOCABULARY, targets.shape, device="cuda")
    level = torch.arange(len(targets), device="cuda") * 8 // len(targets)
    logit = (15.0 + 6.0 * level).unsqueeze(1)
    rival = logit - 0.2 - 0.25 * level.unsqueeze(1)
    square = 0.02**2 * WIDTH
    rows = table.detach().float()
    return ((rows[targets] * logit + rows[rivals] * rival) / square).bfloat16().requires_grad_()


def make_loss(hidden, table, targets):
    def loss():
        logits = CAP * torch.tanh(F.linear(hidden, table) / CAP)
        return F.cross_entropy(logits.float(), targets)
    return loss


def step(hidden, table, loss):
    hidden.grad = table.grad = None
    value = loss()
    value.backward()
    return value.item()


def median_ms(run, rounds=7):
    times = []
    for _ in range(rounds):
        start, end = torch.cuda.Event(True), torch.cuda.Event(True)
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times[2:])[(rounds - 2) // 2]


def reference(hidden, table, targets):
    """Loss and gradients in float32 without TF32, in chunks of tokens."""
    torch.backends.cuda.matmul.allow_tf32 = False
    table = table.detach().float()
    d_table, loss = torch.zeros_like(table), 0.0
    d_hidden = torch.empty(hidden.shape, device="cuda")
    for begin in range(0, len(targets), CHUNK):
        part = slice(begin, begin + CHUNK)
        h = hidden.detach()[part].float().requires_grad_()
        w = table.requires_grad_()
        w.grad = None
        value = F.cross_entropy(CAP * torch.tanh(F.linear(h, w) / CAP), targets[part], reduction="sum") / len(targets)
        value.backward()
        loss += value.item()
        d_hidden[part] = h.grad
        d_table += w.grad
    return loss, d_hidden, d_table


def relative(got, expected):
    return ((got.float() - expected).norm() / expected.norm()).item()


def main():
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    for tokens in [int(x) for x in sys.argv[1:]] or [4096, 8192]:
        hidden, table, targets = inputs(tokens)
        plain = make_loss(hidden, table, targets)
        for name, loss in ("eager", plain), ("compile", torch.compile(plain)):
            ms = median_ms(lambda: step(hidden, table, loss))
            hidden.grad = table.grad = None
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            value = step(hidden, table, loss)
            beyond = torch.cuda.max_memory_allocated() - before - (hidden.numel() + table.numel()) * 2
            print(f"{tokens:6d} tokens  torch {name:8s} {ms:8.2f} ms  {beyond / 2**20:8.0f} MiB beyond its gradients"
                  f"  loss {value:.6f}", flush=True)
        hidden.grad = table.grad = None
        torch.cuda.empty_cache()
    hidden, table, targets = inputs(2048)
    for data in "random", "peaked":
        if data == "peaked":
            hidden = peaked(table, targets)
        loss, d_hidden, d_table = reference(hidden, table, targets)
        plain = make_loss(hidden, table, targets)
        for name, run in ("eager", plain), ("compile", torch.compile(plain)):
            value = step(hidden, table, run)
            print(f"  2048 tokens  {data} data  torch {name:8s} loss {value:.6f} relative {abs(value - loss) / loss:.1e}"
                  f"  d(hidden) {relative(hidden.grad, d_hidden):.2e}  d(table) {relative(table.grad, d_table):.2e}", flush=True)


if __name__ == "__main__":
    main()
