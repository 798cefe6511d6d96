#!/usr/bin/env python3
"""A GGUF file of the Gemma 3 1B's true shape with random weights, for measuring speed where the real one is not at
hand: matrices in BF16, norms in F32, tokenizer and general metadata of a real Gemma 3 GGUF.

    pip install numpy
    python3 make_random_gguf.py gemma-3-270m-Q4_K_M.gguf random-1b-BF16.gguf

The same seed makes the same bytes. A 2 GB file takes well below a minute and a small part of a gigabyte of memory.
llama-quantize makes the other formats of it.
"""

import argparse
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import gguf_file
from gguf_file import BF16, F32, Header, Tensor

# Weights drawn at a time: 16 MB in f32.
CHUNK = 1 << 22


@dataclass
class Shape:
    """What the configuration of the model says. The pattern of the sliding layers, one of six global, is what
    readers of the architecture assume; real files do not state it."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    sliding_window: int
    rope_base: float
    rope_base_local: float
    rms_norm_eps: float


SHAPE_1B = Shape(
    layers=26,
    hidden=1152,
    intermediate=6912,
    heads=4,
    kv_heads=1,
    head_dim=256,
    vocab=262_144,
    context=32_768,
    sliding_window=512,
    rope_base=1e6,
    rope_base_local=1e4,
    rms_norm_eps=1e-6,
)


def metadata(shape, real):
    """The metadata: of the shape, and what `real`, a real file's, says of the tokenizer."""
    if real.get("general.architecture") != gguf_file.string("gemma3"):
        raise SystemExit("the given file is not a Gemma 3 GGUF")
    uint32, float32, string = gguf_file.uint32, gguf_file.float32, gguf_file.string
    values = {
        "general.architecture": string("gemma3"),
        "general.type": string("model"),
        "general.name": string("Random weights in the shape of Gemma 3 1B"),
        "general.size_label": string("1B"),
        "general.file_type": uint32(32),  # mostly BF16
        "gemma3.context_length": uint32(shape.context),
        "gemma3.embedding_length": uint32(shape.hidden),
        "gemma3.block_count": uint32(shape.layers),
        "gemma3.feed_forward_length": uint32(shape.intermediate),
        "gemma3.attention.head_count": uint32(shape.heads),
        "gemma3.attention.head_count_kv": uint32(shape.kv_heads),
        "gemma3.attention.key_length": uint32(shape.head_dim),
        "gemma3.attention.value_length": uint32(shape.head_dim),
        "gemma3.attention.layer_norm_rms_epsilon": float32(shape.rms_norm_eps),
        "gemma3.attention.sliding_window": uint32(shape.sliding_window),
        "gemma3.rope.freq_base": float32(shape.rope_base),
        "gemma3.rope.freq_base_swa": float32(shape.rope_base_local),
    }
    values.update((key, value) for key, value in real.items() if key.startswith("tokenizer."))
    return values


def tensors(shape):
    """All tensors, matrices as (in, out)."""
    query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim

    def norm(name, size):
        return Tensor(f"{name}.weight", (size,), F32)

    def matrix(name, n_in, n_out):
        return Tensor(f"{name}.weight", (n_in, n_out), BF16)

    listed = [norm("output_norm", shape.hidden), matrix("token_embd", shape.hidden, shape.vocab)]
    for layer in range(shape.layers):
        block = f"blk.{layer}"
        listed += [
            matrix(f"{block}.attn_k", shape.hidden, key),
            norm(f"{block}.attn_k_norm", shape.head_dim),
            norm(f"{block}.attn_norm", shape.hidden),
            matrix(f"{block}.attn_output", query, shape.hidden),
            matrix(f"{block}.attn_q", shape.hidden, query),
            norm(f"{block}.attn_q_norm", shape.head_dim),
            matrix(f"{block}.attn_v", shape.hidden, key),
            matrix(f"{block}.ffn_down", shape.intermediate, shape.hidden),
            matrix(f"{block}.ffn_gate", shape.hidden, shape.intermediate),
            norm(f"{block}.ffn_norm", shape.hidden),
            matrix(f"{block}.ffn_up", shape.hidden, shape.intermediate),
            norm(f"{block}.post_attention_norm", shape.hidden),
            norm(f"{block}.post_ffw_norm", shape.hidden),
        ]
    return listed


def bf16(values):
    """The nearest bf16 of each f32, ties to even, as 16-bit integers. Overwrites `values`."""
    bits = values.view(np.uint32)
    bits += 0x7FFF + ((bits >> 16) & 1)
    bits >>= 16
    return bits.astype("<u2")


def write_weights(file, tensor, random):
    """Norms around 1 (GGUF has Gemma's `1 + weight` already added); matrices with a deviation of 1/sqrt(in), which
    hands on activations as large as they came."""
    count = math.prod(tensor.shape)
    if tensor.type == F32:
        file.write((1 + 0.1 * random.standard_normal(count, dtype=np.float32)).astype("<f4").tobytes())
    else:
        deviation = np.float32(1 / math.sqrt(tensor.shape[0]))
        for start in range(0, count, CHUNK):
            values = random.standard_normal(min(CHUNK, count - start), dtype=np.float32)
            values *= deviation
            file.write(bf16(values).tobytes())
    file.write(gguf_file.padding(tensor.size_bytes))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("real", help="a real Gemma 3 GGUF: its tokenizer is taken")
    parser.add_argument("out", type=Path, help="the file to write")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    real = gguf_file.read_header(arguments.real)
    header = Header(metadata(SHAPE_1B, real.metadata), tensors(SHAPE_1B))
    # Under another name until it is whole: an interrupted run leaves nothing that looks finished.
    unfinished = arguments.out.with_name(arguments.out.name + ".part")
    with open(unfinished, "wb") as file:
        gguf_file.write_header(file, header)
        for index, tensor in enumerate(header.tensors):
            # A stream of its own for each tensor.
            random = np.random.Generator(np.random.SFC64([arguments.seed, index]))
            write_weights(file, tensor, random)
    os.replace(unfinished, arguments.out)
    parameters = sum(math.prod(tensor.shape) for tensor in header.tensors)
    print(f"{arguments.out}: {parameters:,} parameters, {arguments.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
