#!/usr/bin/env python3
"""Write reference cases of Gemma 4 Unified computed by Hugging Face transformers (>= 5.17) on the CPU.

    make_reference.py OUTDIR [--set public|tiny|NAME=SEED]

`tiny` makes the cases under tests/reference.

Each case is a folder:
  config.json, model.safetensors   the model as `save_pretrained` writes it (float32, tied lm_head left out)
  inputs.safetensors               input_ids, labels, position_ids, mm_token_type_ids, and where the case has them
                                   pixel_values, image_position_ids, pixel_values_videos, video_position_ids,
                                   input_features, input_features_mask
  outputs.safetensors              loss, logits, token_nll (-1 where ignored), inputs_embeds, hidden.N, grad.<parameter name>
  trajectory.json                  losses and gradient norms of AdamW steps on these inputs in float32, the losses in float64,
                                   their largest relative difference, and the hyper-parameters
  case.json                        what the case is for, and its image_attention:
                                   "all": bidirectional inside an image in every layer, the window lifted there (what transformers' own
                                   forward does); "sliding": only in sliding layers, inside the window, full layers causal (what its
                                   generate does and the released model was made for)

Everything runs in float32 with the eager attention, so an fp32 implementation should agree to about 1e-5.
"""
import argparse, copy, inspect, json, os
import torch
from safetensors.torch import save_file
from transformers import Gemma4UnifiedConfig, Gemma4UnifiedForConditionalGeneration

TEXT, IMAGE, VIDEO, AUDIO = 0, 1, 2, 3


def base(vocab, hidden, layers, heads, kv, gkv, hd, ghd, inter, window, patch, pool, mm, pos, audio, softcap, layer_types=None, k_eq_v=True):
    return dict(
        text_config=dict(
            vocab_size=vocab, hidden_size=hidden, intermediate_size=inter, num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=kv, head_dim=hd, global_head_dim=ghd,
            num_global_key_value_heads=gkv, attention_k_eq_v=k_eq_v, sliding_window=window,
            final_logit_softcapping=softcap, max_position_embeddings=4096, rms_norm_eps=1e-6,
            use_bidirectional_attention="vision", layer_types=layer_types,
        ),
        vision_config=dict(patch_size=patch, pooling_kernel_size=pool, mm_embed_dim=mm, mm_posemb_size=pos,
                           output_proj_dims=mm),
        audio_config=dict(audio_embed_dim=audio),
        boi_token_id=vocab - 6, eoi_token_id=vocab - 5, image_token_id=vocab - 4,
        boa_token_id=vocab - 3, eoa_token_index=vocab - 2, audio_token_id=vocab - 1, video_token_id=vocab - 7,
    )


def row(vocab, segments, length, g):
    """One sequence: segments are ('text', n), ('image', n), ('video', n) (one frame), ('audio', n), ('bare', n) (an image
    without the tokens around it) or ('pad', n); filled up with text to `length`. Begins with bos, but not before 'bare'."""
    ids, types = ([], []) if segments[0][0] == "bare" else ([2], [TEXT])
    for kind, n in segments:
        if kind == "text":
            ids += torch.randint(4, vocab - 8, (n,), generator=g).tolist(); types += [TEXT] * n
        elif kind == "image":
            ids += [vocab - 6] + [vocab - 4] * n + [vocab - 5]; types += [TEXT] + [IMAGE] * n + [TEXT]
        elif kind == "bare":
            ids += [vocab - 4] * n; types += [IMAGE] * n
        elif kind == "video":
            ids += [vocab - 6] + [vocab - 7] * n + [vocab - 5]; types += [TEXT] + [VIDEO] * n + [TEXT]
        elif kind == "audio":
            ids += [vocab - 3] + [vocab - 1] * n + [vocab - 2]; types += [TEXT] + [AUDIO] * n + [TEXT]
        elif kind == "pad":
            ids += [0] * n; types += [TEXT] * n
    fill = length - len(ids)
    assert fill >= 0, (len(ids), length)
    ids += torch.randint(4, vocab - 8, (fill,), generator=g).tolist(); types += [TEXT] * fill
    return ids, types


def patches(counts, dim, g):
    """Pixels and places of one image (or frame) of each count, with some padding behind every one."""
    longest = max(counts) + 3
    pixels, places = torch.zeros(len(counts), longest, dim), torch.full((len(counts), longest, 2), -1)
    for j, n in enumerate(counts):
        w = max(d for d in range(1, int(n ** 0.5) + 1) if n % d == 0)
        pixels[j, :n] = torch.rand(n, dim, generator=g)
        places[j, :n] = torch.tensor([(k % w, k // w) for k in range(n)])
    return pixels, places


def masks_of_generate(types, window, dtype):
    """The masks that `generate()` prepares: full layers causal; sliding layers causal or same image, inside the window."""
    b, t = types.shape
    q, k = torch.arange(t)[:, None], torch.arange(t)[None]
    vision = (types == IMAGE) | (types == VIDEO)
    start = vision & ~torch.cat([torch.zeros(b, 1, dtype=torch.bool), vision[:, :-1]], 1)
    block = torch.where(vision, start.int().cumsum(1) - 1, -1)
    same = (block[:, :, None] == block[:, None]) & (block[:, :, None] >= 0)
    full = (k <= q).expand(b, t, t)
    sliding = ((k <= q) | same) & (k > q - window)
    low = torch.finfo(torch.float32).min
    return {n: torch.where(m, 0.0, low).to(dtype)[:, None] for n, m in (("full_attention", full), ("sliding_attention", sliding))}


def make(out, name, why, seed, config, rows, length, packed=None, prompt=0, steps=12, lr=1e-4, image_attention="all"):
    g = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    vocab = config["text_config"]["vocab_size"]
    cfg = Gemma4UnifiedConfig(**config)
    cfg._attn_implementation = "eager"
    model = Gemma4UnifiedForConditionalGeneration(cfg).float().eval()
    with torch.no_grad():
        for k, p in model.named_parameters():
            if p.ndim == 1:                       # norms and biases: away from 1 and 0, or their use is not tested
                p.copy_(1 + 0.2 * torch.randn(p.shape, generator=g) if "weight" in k else 0.1 * torch.randn(p.shape, generator=g))
            elif "pos_embedding" in k:
                p.copy_(0.3 * torch.randn(p.shape, generator=g))
            else:
                p.copy_(torch.randn(p.shape, generator=g) * (1.5 / p.shape[-1] ** 0.5))
        model.model.language_model.embed_tokens.weight.mul_(0.5)
        for k, b in model.named_buffers():
            if "layer_scalar" in k:
                b.copy_(0.6 + 0.8 * torch.rand(b.shape, generator=g))
    model.tie_weights()

    ids, types, images, frames, audios = [], [], [], [], []
    for segs in rows:
        i, t = row(vocab, segs, length, g)
        ids.append(i); types.append(t)
        images += [n for k, n in segs if k in ("image", "bare")]
        frames += [n for k, n in segs if k == "video"]; audios += [n for k, n in segs if k == "audio"]
    ids, types = torch.tensor(ids), torch.tensor(types)
    labels = ids.clone()
    labels[types != TEXT] = -100
    labels[ids == 0] = -100
    if prompt:
        labels[:, :prompt] = -100
    pos = torch.arange(length).repeat(len(rows), 1)
    if packed:                                    # several documents in one row: positions restart
        pos = torch.cat([torch.arange(n) for n in packed])[None]
        start = 0
        for n in packed:
            labels[0, start] = -100               # no document predicts the next one's first token
            start += n
    inputs = dict(input_ids=ids, labels=labels, position_ids=pos, mm_token_type_ids=types)
    if images or frames:
        v = config["vision_config"]
        dim = (v["patch_size"] * v["pooling_kernel_size"]) ** 2 * 3
    if images:
        pixels, places = patches(images, dim, g)
        inputs |= dict(pixel_values=pixels, image_position_ids=places)
    if frames:
        pixels, places = patches(frames, dim, g)
        inputs |= dict(pixel_values_videos=pixels[None], video_position_ids=places[None])
    if audios:
        a = config["audio_config"]["audio_embed_dim"]
        longest = max(audios) + 2
        f, m = torch.zeros(len(audios), longest, a), torch.zeros(len(audios), longest, dtype=torch.bool)
        for j, n in enumerate(audios):
            f[j, :n] = 0.3 * torch.randn(n, a, generator=g); m[j, :n] = True
        inputs |= dict(input_features=f, input_features_mask=m)

    if packed:                                    # the library must treat each document as if it stood alone
        with torch.no_grad():
            whole = model(input_ids=ids, position_ids=pos, mm_token_type_ids=types, use_cache=False).logits
            start = 0
            for n in packed:
                alone = model(input_ids=ids[:, start:start + n], mm_token_type_ids=types[:, start:start + n], use_cache=False).logits
                assert torch.allclose(whole[:, start:start + n], alone, atol=1e-3), "packing leaks between documents"
                start += n
    d = os.path.join(out, name); os.makedirs(d, exist_ok=True)
    model.save_pretrained(d)
    for extra in ("generation_config.json",):
        p = os.path.join(d, extra)
        if os.path.exists(p): os.remove(p)

    kwargs = {k: t for k, t in inputs.items() if k != "labels"}
    if frames and "num_frames_per_video" in inspect.signature(model.forward).parameters:  # of versions after 5.17
        kwargs["num_frames_per_video"] = torch.tensor([len(inputs["pixel_values_videos"])])
    if image_attention == "sliding":
        assert not packed
        kwargs["attention_mask"] = masks_of_generate(types, config["text_config"]["sliding_window"], torch.float32)
    captured = {}
    hook = model.model.language_model.layers[0].register_forward_pre_hook(
        lambda m, a, k: captured.__setitem__("inputs_embeds", (a[0] if a else k["hidden_states"]).detach().clone()), with_kwargs=True)
    o = model(**kwargs, labels=labels, use_cache=False, output_hidden_states=True)
    hook.remove()
    o.loss.backward()
    shift = torch.nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]
    nll = torch.nn.functional.cross_entropy(o.logits.float().transpose(1, 2), shift, ignore_index=-100, reduction="none")
    nll = torch.where(shift == -100, torch.full_like(nll, -1.0), nll)
    outputs = dict(loss=o.loss.detach().reshape(1), logits=o.logits.detach(), token_nll=nll.detach(), inputs_embeds=captured["inputs_embeds"])
    for n, h in enumerate(o.hidden_states):
        outputs[f"hidden.{n}"] = h.detach()
    for k, p in model.named_parameters():
        if p.grad is not None:
            outputs["grad." + k] = p.grad.detach().clone()
    save_file({k: t.contiguous() for k, t in inputs.items()}, os.path.join(d, "inputs.safetensors"))
    save_file({k: t.contiguous() for k, t in outputs.items()}, os.path.join(d, "outputs.safetensors"))

    # The trajectory, in float32 and again in float64: how far the two part is how far rounding alone takes this
    # (small, random, scale-1.0 attention: chaotic) model, and so what an implementation may differ by.
    hp = dict(lr=lr, beta1=0.9, beta2=0.95, eps=1e-6, weight_decay=0.1, clip_grad_norm=1.0,
              weight_decay_on="parameters of two or more dimensions")
    runs = {}
    for dtype in (torch.float32, torch.float64):
        m = copy.deepcopy(model).to(dtype)
        m.zero_grad(set_to_none=True)
        args = {k: v.to(dtype) if torch.is_tensor(v) and v.is_floating_point() else v for k, v in kwargs.items()}
        if image_attention == "sliding":
            args["attention_mask"] = masks_of_generate(types, config["text_config"]["sliding_window"], dtype)
        decay = [p for p in m.parameters() if p.ndim >= 2]; rest = [p for p in m.parameters() if p.ndim < 2]
        opt = torch.optim.AdamW([dict(params=decay, weight_decay=hp["weight_decay"]), dict(params=rest, weight_decay=0.0)],
                                lr=lr, betas=(hp["beta1"], hp["beta2"]), eps=hp["eps"])
        losses, norms = [], []
        for _ in range(steps):
            opt.zero_grad(set_to_none=True)
            loss = m(**args, labels=labels, use_cache=False).loss
            loss.backward()
            norms.append(float(torch.nn.utils.clip_grad_norm_(m.parameters(), hp["clip_grad_norm"])))
            losses.append(float(loss.detach())); opt.step()
        runs[dtype] = losses, norms
    (losses, norms), (exact, _) = runs[torch.float32], runs[torch.float64]
    spread = max(abs(a - b) / b for a, b in zip(losses, exact))
    json.dump(dict(hyperparameters=hp, losses=losses, grad_norms=norms, losses_float64=exact,
                   largest_relative_difference=spread), open(os.path.join(d, "trajectory.json"), "w"), indent=1)
    json.dump(dict(case=name, purpose=why, seed=seed, image_attention=image_attention), open(os.path.join(d, "case.json"), "w"), indent=1)
    print(f"{name:28s} loss {float(o.loss):.5f} -> {losses[-1]:.5f} (float32 against float64 {spread:.0e})  params {sum(p.numel() for p in model.parameters())}", flush=True)


def public(out):
    small = base(512, 64, 7, 4, 2, 1, 16, 32, 128, 8, 4, 3, 48, 32, 40, 30.0)
    make(out, "text", "plain text, window shorter than the sequence", 11, small, [[("text", 30)], [("text", 20)]], 48)
    make(out, "image", "two images a row, one longer than the window", 12, small,
         [[("text", 5), ("image", 12), ("text", 3), ("image", 6)], [("image", 15), ("text", 4)]], 56)
    make(out, "audio", "raw audio frames between text", 13, small, [[("text", 4), ("audio", 9), ("text", 6)], [("audio", 14)]], 40)
    make(out, "mixed", "text, image and audio in one row", 14, small,
         [[("text", 3), ("image", 9), ("audio", 7), ("text", 5)], [("audio", 5), ("text", 2), ("image", 8)]], 48)
    make(out, "image-sliding", "as image, with the masks of generate()", 12, small,
         [[("text", 5), ("image", 12), ("text", 3), ("image", 6)], [("image", 15), ("text", 4)]], 56, image_attention="sliding")
    make(out, "packed", "three documents packed into one row", 15, small, [[("text", 60)]], 61 + 3, packed=[20, 31, 13])
    make(out, "prompt", "loss on the answer only", 16, small, [[("text", 30)], [("text", 20)]], 44, prompt=17)


def tiny(out):
    """Small enough to ship: the cases that the tests run."""
    small = base(160, 32, 7, 4, 2, 1, 8, 16, 48, 8, 2, 3, 24, 16, 20, 30.0)
    odd = base(203, 36, 6, 3, 3, 1, 12, 24, 40, 5, 2, 2, 20, 24, 33, 30.0)
    values = base(131, 24, 5, 6, 2, 1, 8, 12, 40, 4, 2, 2, 20, 24, 16, 5.0, k_eq_v=False,
                  layer_types=[k + "_attention" for k in ("full", "sliding", "full", "sliding", "full")])
    nocap = base(128, 40, 6, 4, 4, 2, 10, 20, 56, 5, 2, 3, 24, 24, 17, None)
    images = [[("text", 5), ("image", 12), ("text", 3), ("image", 6)], [("image", 15), ("text", 4)]]
    make(out, "text", "plain text, window shorter than the sequence", 11, small, [[("text", 20)], [("text", 9)]], 32)
    make(out, "image", "two images a row, one longer than the window", 12, small, images, 48)
    make(out, "image-sliding", "as image, with the masks of generate()", 12, small, images, 48, image_attention="sliding")
    make(out, "audio", "raw audio frames between text", 13, small, [[("text", 4), ("audio", 9), ("text", 6)], [("audio", 14)]], 32)
    make(out, "mixed", "odd sizes, three rows, image longer than the window", 14, odd,
         [[("image", 16), ("image", 6), ("audio", 5)], [("text", 2), ("audio", 3), ("image", 20)], [("text", 30)]], 43, lr=2e-5)
    make(out, "packed", "four documents packed into one row", 15, small, [[("text", 44)]], 45, packed=[1, 20, 17, 7])
    make(out, "prompt", "loss on the answer only", 16, small, [[("text", 30)], [("text", 20)]], 36, prompt=17)
    make(out, "no-cap", "no soft cap, two key heads in full layers", 17, nocap, [[("text", 3), ("image", 10), ("text", 9)], [("audio", 12)]], 33, lr=2e-5)
    make(out, "edges", "rows that begin with an image, images side by side, video frames, padding; v_proj in full layers", 18, values,
         [[("bare", 6), ("bare", 4), ("text", 7), ("pad", 8)], [("text", 2), ("video", 6), ("video", 6), ("audio", 3), ("pad", 1)],
          [("bare", 4), ("text", 3), ("pad", 5), ("image", 6)]], 29, lr=2e-5)


def other(out, name, seed):
    odd = base(1003, 96, 8, 6, 3, 1, 24, 48, 200, 13, 2, 3, 72, 40, 56, 30.0)
    nocap = base(640, 80, 6, 8, 4, 2, 20, 40, 176, 5, 4, 2, 64, 24, 33, None)
    make(out, name + "-text", "odd sizes", seed, odd, [[("text", 70)], [("text", 9)], [("text", 40)]], 77, lr=2e-5)
    make(out, name + "-mixed", "odd sizes, image next to image, longer than the window", seed + 1, odd,
         [[("image", 20), ("image", 6), ("audio", 11), ("text", 5)], [("text", 2), ("audio", 3), ("image", 30)]], 83, lr=2e-5)
    make(out, name + "-sliding", "as mixed, with the masks of generate()", seed + 1, odd,
         [[("image", 20), ("image", 6), ("audio", 11), ("text", 5)], [("text", 2), ("audio", 3), ("image", 30)]], 83, image_attention="sliding", lr=2e-5)
    make(out, name + "-nocap", "no softcap, two global kv heads", seed + 2, nocap, [[("text", 3), ("image", 10), ("text", 20)], [("audio", 12)]], 51, lr=2e-5)
    make(out, name + "-packed", "packed, odd sizes", seed + 3, odd, [[("text", 90)]], 91, packed=[1, 40, 17, 33], lr=2e-5)


if __name__ == "__main__":
    a = argparse.ArgumentParser(); a.add_argument("out"); a.add_argument("--set", default="public")
    x = a.parse_args()
    torch.set_num_threads(4)
    {"public": public, "tiny": tiny}[x.set](x.out) if x.set in ("public", "tiny") else other(x.out, x.set.split("=")[0], int(x.set.split("=")[1]))
