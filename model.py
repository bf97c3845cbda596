"""
The GPT: the model, its loss, batched generation, saving and loading.

Notable choices, each a field of GPTConfig:
- The default is Llama's block: RMSNorm, rotary positions, SwiGLU, no biases.
- n_kv_head < n_head is grouped-query attention.
- norm='layernorm', position='learned', mlp='gelu_new', bias=True is GPT-2; bias=False, mlp='gelu' is nanoGPT.
- qk_norm=True is Qwen3's RMSNorm on queries and keys.
- mlp='relu2' trains faster than SwiGLU on a CPU. It can be exported as a Llama, whose MLP is act(gate(x)) · up(x):
  with ReLU and gate = up that is relu(z)².
hub.py and export.py exchange weights with Hugging Face's Llama, GPT-2 and Qwen3.

The order of this file: config, layers, GPT, generation, loss, optimizers, checkpoints, devices.

cpu_kernels.py and cuda_kernels.py have faster versions of some functions. They are optional; this file alone computes
the same.
"""

import collections
import datetime
import io
import math
import os
import pickle
import pickletools
import sys
import time
import warnings
import zipfile
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
import torch.distributed as dist
import torch.nn as nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from files import VERSION, check, fail, hide_folders, replacing

try:
    import cpu_kernels
except ModuleNotFoundError:
    cpu_kernels = None
try:
    import cuda_kernels
except ModuleNotFoundError:
    cuda_kernels = None

# -----------------------------------------------------------------------------
# config: the sizes and kinds of a model


def relu_squared(x):
    """Primer's activation (So et al. 2021)."""
    return F.relu(x).square()


def gelu_tanh(x):
    """GPT-2's approximation of GELU."""
    return F.gelu(x, approximate='tanh')


ACTIVATIONS = {'swiglu': F.silu, 'relu2': relu_squared, 'gelu': F.gelu, 'gelu_new': gelu_tanh}
# a typing error, or a hostile file, should end with a message, not when the memory is full
LARGEST = {'vocab_size': 2**24, 'block_size': 2**20, 'n_layer': 1000, 'n_head': 2**16, 'n_embd': 2**16,
           'n_kv_head': 2**16, 'n_inner': 2**20}


@dataclass
class GPTConfig:
    vocab_size: int
    block_size: int
    n_layer: int
    n_head: int
    n_embd: int
    n_kv_head: int = 0  # heads of keys and values; 0 = n_head
    n_inner: int = 0  # width of the MLP; 0 = 4 × n_embd, or 8/3 × n_embd for SwiGLU, rounded up to a multiple of 32
    norm: str = 'rmsnorm'  # 'rmsnorm' or 'layernorm'
    position: str = 'rope'  # 'rope' or 'learned'
    mlp: str = 'swiglu'  # a key of ACTIVATIONS
    bias: bool = False  # biases in linear layers and LayerNorm
    qkv_bias: bool = True  # with bias: also for queries, keys and values
    tie_weights: bool = True  # one matrix for embedding and head
    qk_norm: bool = False
    dropout: float = 0.0
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            kinds = (int, float) if field.type is float else field.type
            if not isinstance(value, kinds):
                raise TypeError(f'{field.name} is {value!r:.40}, not {field.type.__name__}')
        choices = {'norm': ['rmsnorm', 'layernorm'], 'position': ['rope', 'learned'], 'mlp': [*ACTIVATIONS]}
        for name, values in choices.items():
            check(getattr(self, name) in values, f'{name} is {getattr(self, name)!r}; use one of {", ".join(values)}')
        self.n_kv_head = self.n_kv_head or self.n_head
        if not self.n_inner:
            self.n_inner = 32 * math.ceil(8 * self.n_embd / 96) if self.mlp == 'swiglu' else 4 * self.n_embd
        for name, limit in LARGEST.items():
            size = getattr(self, name)
            check(size >= 1, f'{name} is {size}; it must be at least 1')
            check(size <= limit, f'{name} is {size:,}; it must be at most {limit:,}')
        check(self.n_embd % self.n_head == 0, f'n_embd ({self.n_embd}) must be a multiple of n_head ({self.n_head})')
        check(self.n_head % self.n_kv_head == 0, f'n_head must be a multiple of n_kv_head ({self.n_kv_head})')
        check(self.position == 'learned' or self.head_size % 2 == 0, 'rotary positions need an even n_embd / n_head')
        check(0 < self.rope_theta < math.inf, f'rope_theta is {self.rope_theta}; it must be above 0')
        for name in ('dropout', 'norm_eps'):
            check(0 <= getattr(self, name) < 1, f'{name} is {getattr(self, name)}; it must be from 0 to below 1')

    @property
    def head_size(self):
        return self.n_embd // self.n_head


def export_problems(config):
    """Why export.py cannot write a model of this GPTConfig -> {'hf': reason, 'gguf': reason, 'llama2c': reason}.

    A reason is '' where it can. The classes of other programs have fewer options than GPTConfig.
    """
    if config.position == 'learned':  # a GPT-2
        hf = {'norm': ['layernorm'], 'mlp': ['gelu', 'gelu_new'], 'n_kv_head': [config.n_head], 'qk_norm': [False]}
        gguf = hf
    else:  # a Qwen3 or a Llama
        hf = {'norm': ['rmsnorm'], 'mlp': ['swiglu', 'relu2'], 'bias': [False] if config.qk_norm else [False, True]}
        gguf = hf | {'mlp': ['swiglu']}
    llama2c = {'position': ['rope'], 'norm': ['rmsnorm'], 'mlp': ['swiglu'], 'qk_norm': [False], 'bias': [False],
               'rope_theta': [10000.0], 'norm_eps': [1e-5]}
    problems = {'hf': '', 'gguf': '', 'llama2c': ''}
    for format, allowed in zip(problems, [hf, gguf, llama2c]):
        for key, values in allowed.items():
            value = getattr(config, key)
            if value not in values:
                problems[format] = f'{key} is {value!r}, not {" or ".join(map(repr, values))}'
    return problems


# -----------------------------------------------------------------------------
# layers: what a block of the model consists of


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · weight over the last dimension (Zhang and Sennrich 2019)."""

    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        if cpu_kernels and x.is_cpu:
            return cpu_kernels.rms_norm(x, self.weight, self.eps)
        return F.rms_norm(x, self.weight.shape, self.weight.type_as(x), self.eps).type_as(x)  # autocast returns float32


def make_norm(config, size):
    if config.norm == 'rmsnorm':
        return RMSNorm(size, config.norm_eps)
    return nn.LayerNorm(size, eps=config.norm_eps, bias=config.bias)


def rotate(x, cos, sin):
    """Rotary positions (Su et al. 2021). Dimension i is paired with i + d / 2, as in Hugging Face's Llama.

    x: (B, T, heads, d); cos, sin: (…, T, 1, d), the first half of sin negated -> (B, T, heads, d)
    """
    swapped = x.roll(x.size(-1) // 2, -1)
    return torch.addcmul(x * cos, swapped, sin)


def causal_attention(q, k, v, dropout=0.0):
    """q: (B, n_head, T, d); k, v: (B, n_kv_head, T, d) -> (B, n_head, T, d)"""
    if cpu_kernels and cpu_kernels.has_faster_attention(q, k, dropout):
        return cpu_kernels.causal_attention(q, k, v)
    if cuda_kernels and q.is_cuda and not cuda_kernels.has_flash_attention(q.device, q.dtype):
        k, v = cuda_kernels.repeat_kv_heads(q, k, v)
    return F.scaled_dot_product_attention(q, k, v, None, dropout, is_causal=True, enable_gqa=q.size(1) != k.size(1))


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads = [config.n_head, config.n_kv_head, config.n_kv_head]  # of queries, keys and values
        self.head_size = config.head_size
        self.dropout = config.dropout
        self.qkv = nn.Linear(config.n_embd, sum(self.heads) * self.head_size, bias=config.bias and config.qkv_bias)
        self.proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.q_norm = make_norm(config, self.head_size) if config.qk_norm else None
        self.k_norm = make_norm(config, self.head_size) if config.qk_norm else None

    def forward(self, x, rope, layer, attend):
        """rope: the stacked cos and sin of the positions, or None. layer: its number. attend: see GPT.hidden."""
        B, T, C = x.shape
        qkv = self.qkv(x).view(B, T, -1, self.head_size)
        q, k, v = qkv.split(self.heads, dim=2)  # (B, T, heads, d)
        if self.q_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, heads, T, d)
        if attend:
            y = attend(layer, q, k, v)
        else:
            y = causal_attention(q, k, v, self.dropout if self.training else 0.0)
        y = y.transpose(1, 2).reshape(B, T, C).type_as(qkv)  # a KV cache may attend in float32
        return F.dropout(self.proj(y), self.dropout, self.training)


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.up = nn.Linear(config.n_embd, config.n_inner, bias=config.bias)
        self.gate = None
        if config.mlp == 'swiglu':
            self.gate = nn.Linear(config.n_embd, config.n_inner, bias=config.bias)
        self.down = nn.Linear(config.n_inner, config.n_embd, bias=config.bias)
        self.activation = ACTIVATIONS[config.mlp]
        self.dropout = config.dropout

    def forward(self, x):
        up = self.up(x)
        if up.dtype == torch.float16 and self.activation in (F.silu, relu_squared):
            gate = F.silu(self.gate(x)) if self.gate else F.relu(up)
            y = self.down_float16(gate, up).type_as(x)
        elif self.gate:
            y = self.down(self.activation(self.gate(x)) * up)
        else:
            y = self.down(self.activation(up))
        return F.dropout(y, self.dropout, self.training)

    def down_float16(self, gate, up):
        """down(gate * up). The product could overflow, so it is divided by a scale, one for each token."""
        largest = gate.detach().abs().amax(-1, keepdim=True).float() * up.detach().abs().amax(-1, keepdim=True)
        scale = (largest / 2**15).clamp(min=1)
        y = self.down(gate * (up / scale).type_as(up)) * scale
        if self.down.bias is not None:
            y = y - (scale - 1) * self.down.bias  # it was multiplied too
        return y


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.norm1 = make_norm(config, config.n_embd)
        self.attn = Attention(config)
        self.norm2 = make_norm(config, config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x, rope, layer, attend):
        x = x + self.attn(self.norm1(x), rope, layer, attend)
        return x + self.mlp(self.norm2(x))


# -----------------------------------------------------------------------------
# GPT: the model


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd) if config.position == 'learned' else None
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.n_layer)])
        self.norm = make_norm(config, config.n_embd)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_weights:
            self.head.weight = self.wte.weight
        if config.position == 'rope':
            frequencies = config.rope_theta ** (-torch.arange(0, config.head_size, 2) / config.head_size)
            angles = torch.outer(torch.arange(config.block_size), frequencies)  # (block_size, d / 2)
            cos = torch.cat([angles.cos(), angles.cos()], -1)
            sin = torch.cat([-angles.sin(), angles.sin()], -1)
            self.register_buffer('rope', torch.stack([cos, sin])[:, :, None], persistent=False)  # (2, block_size, 1, d)
        for name, parameter in self.named_parameters():
            self.init_parameter(name, parameter)

    def init_parameter(self, name, parameter):
        """GPT-2's initialization: std 0.02, and less in the layers that add to the residual stream."""
        if name == 'wte.weight' and not self.config.tie_weights:
            nn.init.normal_(parameter)  # an untied embedding learns faster from std 1
        elif name.endswith(('proj.weight', 'down.weight')):
            nn.init.normal_(parameter, std=0.02 / (2 * self.config.n_layer) ** 0.5)
        elif parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.02)
        elif name.endswith('bias'):
            nn.init.zeros_(parameter)

    def n_params(self):
        """Number of weights; tied ones count once."""
        return sum(p.numel() for p in self.parameters())

    def hidden(self, ids, positions=None, attend=None):
        """The residual stream after the last norm.

        ids: (B, T). positions: (B, T), or None for 0 … T-1. -> (B, T, n_embd)
        attend: a function (layer, q, k, v) -> y to use instead of causal attention, for a KV cache.
        """
        if positions is None:
            positions = slice(ids.size(1))
        x = self.wte(ids)
        if self.wpe:
            x = x + self.wpe.weight[positions]
        compute_dtype = x.dtype
        if torch.is_autocast_enabled(x.device.type):
            compute_dtype = torch.get_autocast_dtype(x.device.type)
        if compute_dtype == torch.bfloat16:
            x = x.bfloat16()  # half the memory traffic; in float16 the residual stream could overflow
        x = F.dropout(x, self.config.dropout, self.training)
        rope = None if self.wpe else self.rope[:, positions].to(compute_dtype)
        for layer, block in enumerate(self.blocks):
            x = block(x, rope, layer, attend)
        return self.norm(x)

    def forward(self, ids, targets=None):
        """ids: (B, T) int64, T up to block_size -> logits (B, T, vocab_size).

        With targets (B, T) it returns the mean loss in nats instead.
        """
        x = self.hidden(ids)
        if targets is None:
            return self.head(x)
        return LinearCrossEntropy.apply(x.flatten(0, 1), self.head.weight, targets.flatten())

    def new_cache(self, n_slots, length):
        """A cache for generate()."""
        return KVCache(self, n_slots, length)

    def flops_per_token(self, block_size):
        """Floating-point operations of forward and backward (PaLM, Chowdhery et al. 2022, appendix B)."""
        total = 12 * self.config.n_layer * self.config.n_embd * block_size  # attention
        for name, parameter in self.named_parameters():
            is_lookup = name == 'wpe.weight' or name == 'wte.weight' and not self.config.tie_weights
            if not is_lookup:
                total += (6 if parameter.requires_grad else 4) * parameter.numel()  # a frozen weight has no gradient
        return total

    def configure_optimizers(self, name, learning_rate, embedding_lr, weight_decay, betas, momentum, ns_steps):
        """The optimizers of the trainable parameters, a list. Each group has its 'peak_lr'.

        name: 'adamw', or 'muon' for the matrices of the blocks and AdamW for all else. momentum and ns_steps
        (Newton-Schulz iterations) are Muon's. embedding_lr: of embedding and head, which then have no weight decay;
        0.0 = learning_rate.
        """
        check(name in ('adamw', 'muon'), f"optimizer is {name!r}; use 'adamw' or 'muon'")
        muon_matrices, other_matrices, vectors, embedding_and_head = [], [], [], []
        for parameter_name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            if parameter_name in ('wte.weight', 'head.weight'):
                embedding_and_head.append(parameter)
            elif parameter.dim() < 2:
                vectors.append(parameter)
            elif name == 'muon' and parameter_name.startswith('blocks.'):
                muon_matrices.append(parameter)
            else:
                other_matrices.append(parameter)
        embedding_decay = 0.0 if embedding_lr else weight_decay
        embedding_lr = embedding_lr or learning_rate
        groups = [{'params': other_matrices, 'weight_decay': weight_decay, 'peak_lr': learning_rate},
                  {'params': vectors, 'weight_decay': 0.0, 'peak_lr': learning_rate},
                  {'params': embedding_and_head, 'weight_decay': embedding_decay, 'peak_lr': embedding_lr}]
        device = next(self.parameters()).device
        optimizers = [torch.optim.AdamW(groups, learning_rate, betas, fused=device.type != 'mps')]
        if name == 'muon':
            # match_rms_adamw: updates are as long as AdamW's, so that one learning rate fits both
            # (Liu et al. 2025, "Muon is scalable for LLM training")
            group = {'params': muon_matrices, 'peak_lr': learning_rate}
            Muon = cuda_kernels.Muon if cuda_kernels and device.type == 'cuda' else torch.optim.Muon
            optimizers.append(Muon([group], learning_rate, weight_decay, momentum, ns_steps=ns_steps,
                                   adjust_lr_fn='match_rms_adamw'))
        return optimizers


# -----------------------------------------------------------------------------
# generation: batches of sequences, with a cache of keys and values


class KVTensors:
    """The tensors of a KVCache, preallocated: (n_layer, n_slots, n_kv_head, length, d).

    cpu_kernels.PagedKV can replace them.
    """

    def __init__(self, config, n_slots, length, weight):
        """weight: a parameter of the model, whose device and dtype these tensors get."""
        dtype = weight.dtype
        if weight.is_cpu:
            dtype = torch.promote_types(dtype, torch.float32)  # CPUs attend faster in float32
        shape = (config.n_layer, n_slots, config.n_kv_head, length, config.head_size)
        self.keys = weight.new_zeros(shape, dtype=dtype)
        self.values = weight.new_zeros(shape, dtype=dtype)

    def write(self, layer, slots, k, v):
        """Prefill: store positions 0 … T-1 of these slots. k, v: (len(slots), n_kv_head, T, d)"""
        T = k.size(2)
        self.keys[layer, slots, :, :T] = k.type_as(self.keys)
        self.values[layer, slots, :, :T] = v.type_as(self.values)

    def begin_step(self, positions, end):
        """Prepare a decode step. positions: (B,), below end, where each of the first B slots gets its next token."""
        self.positions = positions
        self.slots = torch.arange(len(positions), device=positions.device)
        self.end = end
        self.mask = torch.arange(end, device=positions.device) <= positions[:, None, None, None]  # (B, 1, 1, end)

    def attend(self, layer, q, k, v):
        """Decode: store the new position and attend to all up to it.

        q: (B, n_head, 1, d); k, v: (B, n_kv_head, 1, d) -> (B, n_head, 1, d)
        """
        B, H, _, d = q.shape
        self.keys[layer, self.slots, :, self.positions] = k[:, :, 0].type_as(self.keys)  # (B, n_kv_head, d)
        self.values[layer, self.slots, :, self.positions] = v[:, :, 0].type_as(self.values)
        keys = self.keys[layer, :B, :, :self.end]
        values = self.values[layer, :B, :, :self.end]
        # the queries that share a key head are its positions: (B, n_kv_head, n_head / n_kv_head, d)
        q = q.reshape(B, k.size(1), -1, d).type_as(keys)
        return F.scaled_dot_product_attention(q, keys, values, self.mask).reshape(B, H, 1, d)


class KVCache:
    """Fixed slots, each with the keys and values of one sequence.

    prefill() reads whole sequences into some slots, decode() one token into every slot.
    lengths: how many positions of each slot are filled; 0 = the slot must be prefilled.
    """

    refill = True  # a free slot can take a new sequence while others go on; False in the cache of hub.py

    def __init__(self, model, n_slots, length):
        weight = model.wte.weight
        self.model = model
        self.head = model.head
        self.device = weight.device
        self.lengths = [0] * n_slots
        self.step = self.decode_step
        if weight.is_cuda and cuda_kernels and cuda_kernels.graphs_work:
            self.step = cuda_kernels.DecodeGraphs(self.decode_step, n_slots, length, self.device)
        use_kernels = cpu_kernels and weight.is_cpu
        if use_kernels:
            self.head = cpu_kernels.fast_lm_head(model.head)
        KV = cpu_kernels.PagedKV if use_kernels and cpu_kernels.has_faster_kv(n_slots) else KVTensors
        self.kv = KV(model.config, n_slots, length, weight)

    def prefill(self, slots, sequences):
        """Read sequences, lists of ids, into these slots -> the logits after each, (len(slots), vocab_size)."""
        lengths = [len(ids) for ids in sequences]
        for slot, length in zip(slots, lengths):
            self.lengths[slot] = length
        # padding comes after the sequences, where causal attention never looks
        padded = [ids + [0] * (max(lengths) - len(ids)) for ids in sequences]
        padded = to_device(padded, self.device)
        slots = to_device(slots, self.device)
        last = to_device(lengths, self.device) - 1

        def attend(layer, q, k, v):
            self.kv.write(layer, slots, k, v)
            return causal_attention(q, k, v)

        x = self.model.hidden(padded, attend=attend)
        return self.head(x[torch.arange(len(x), device=self.device), last])

    def decode(self, tokens):
        """Read one token into each of the first len(tokens) slots -> the logits after it, (len(tokens), vocab_size)."""
        positions = self.lengths[:len(tokens)]
        self.lengths[:len(tokens)] = [position + 1 for position in positions]
        inputs = to_device([tokens, positions], self.device)
        return self.step(inputs, max(positions) + 1)

    def decode_step(self, inputs, end):
        """inputs: (2, B), the token of each slot and its position, below end -> the logits after it, (B, vocab_size)"""
        ids, positions = inputs
        self.kv.begin_step(positions, end)
        x = self.model.hidden(ids[:, None], positions[:, None], self.kv.attend)
        return self.head(x[:, 0])

    def move(self, source, target):
        """Copy one slot over another."""
        for tensor in (self.kv.keys, self.kv.values):
            tensor[:, target] = tensor[:, source]
        self.lengths[target] = self.lengths[source]


class Sequence:
    """A sequence that is being generated: prompt and new tokens, and a uniform random number for each new token."""

    def __init__(self, index, prompt, seed, max_new_tokens):
        self.index = index
        self.ids = list(prompt)
        self.start = 0  # the first token that the model still sees
        self.n_left = max_new_tokens
        generator = torch.Generator().manual_seed(seed)
        self.uniforms = iter(torch.rand(max_new_tokens, generator=generator).numpy())

    def window(self, block_size):
        """The ids to prefill. If they exceed block_size, all but the last block_size / 2 are dropped for good."""
        if len(self.ids) - self.start > block_size:
            self.start = len(self.ids) - max(1, block_size // 2)
        return self.ids[self.start:]


ANY_TOKEN = -2  # in a sequence of bad_words


@torch.inference_mode()
def generate(model, prompts, max_new_tokens, eos=None, seeds=None, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0,
             repetition_penalty=1.0, no_repeat_ngram=0, bad_words=(), batch_size=0):
    """Continue prompts in batches: yields, after every step, the list of (prompt's index, new token id).

    model: a GPT, or a model of hub.py. prompts: lists of ids, of any lengths from 1.
    eos: the id, or the list of ids, that ends a sequence; it is yielded too. seeds: an int for each prompt.
    A sequence depends on its prompt, its seed and the settings, not on the batch (except for rounding).
    temperature: 0 takes the likeliest token. top_k (Fan et al. 2018), top_p (Holtzman et al. 2020) and min_p
    (Nguyen et al. 2024) are applied in this order. repetition_penalty: Keskar et al. 2019, prompt included.
    no_repeat_ngram: no n-gram of this size comes twice (Paulus et al. 2018). bad_words: lists of ids that never come.
    batch_size: sequences in one batch; 0 = all. The slot of a finished sequence takes the next one.
    """
    assert all(prompts), 'a prompt needs at least one token'
    if not prompts or max_new_tokens < 1:
        return
    ends = [eos] if isinstance(eos, int) else eos or []
    block_size = model.config.block_size
    n_slots = min(batch_size or len(prompts), len(prompts))
    cache = model.new_cache(n_slots, min(block_size, max(map(len, prompts)) + max_new_tokens))
    device = next(model.parameters()).device
    has_penalty = repetition_penalty != 1.0 or no_repeat_ngram or bad_words
    bad_words = left_padded(bad_words, ANY_TOKEN, device) if bad_words else None
    if seeds is None:
        seeds = range(len(prompts))
    waiting = collections.deque(zip(range(len(prompts)), prompts, seeds))
    running = []  # the sequence in each slot
    sequences_of_history = []

    while waiting or running:
        # 1) waiting sequences take the free slots
        if cache.refill or not running:
            while waiting and len(running) < n_slots:
                cache.lengths[len(running)] = 0
                running.append(Sequence(*waiting.popleft(), max_new_tokens))
        new_slots = [slot for slot in range(len(running)) if cache.lengths[slot] == 0]
        batch = [running[slot] for slot in new_slots or range(len(running))]

        # 2) copy to the device what sampling needs; a copy after the forward pass would wait for its end
        uniforms = to_device([next(sequence.uniforms) for sequence in batch], device)
        if has_penalty and batch != sequences_of_history:
            history = left_padded([sequence.ids for sequence in batch], -1, device)
            sequences_of_history = batch

        # 3) prefill the slots with new sequences, or else decode one token in every slot
        if new_slots:
            logits = cache.prefill(new_slots, [sequence.window(block_size) for sequence in batch])
        else:
            logits = cache.decode([sequence.ids[-1] for sequence in batch])

        # 4) sample; on a CPU in chunks of rows whose probabilities fit in its cache
        logits = logits.float()
        if has_penalty:
            penalize(logits, history, repetition_penalty, no_repeat_ngram, bad_words)
        n_rows = max(1, 2**18 // logits.size(1)) if logits.is_cpu else len(batch)
        tokens = []
        for rows, numbers in zip(logits.split(n_rows), uniforms.split(n_rows)):
            tokens.append(sample_tokens(rows, numbers, temperature, top_k, top_p, min_p))
        tokens = torch.cat(tokens)
        if has_penalty:
            history = torch.cat([history, tokens[:, None]], 1)
        step = []
        for sequence, token in zip(batch, tokens.tolist()):
            sequence.ids.append(token)
            sequence.n_left -= 1
            step.append((sequence.index, token))
        yield step

        # 5) the last slot moves to the place of a finished sequence
        for slot in reversed(range(len(running))):  # the slots after this one are not finished
            sequence = running[slot]
            if cache.lengths[slot] == block_size:
                cache.lengths[slot] = 0  # full: prefill its last half, see Sequence.window
            if sequence.n_left == 0 or sequence.ids[-1] in ends:
                cache.move(len(running) - 1, slot)
                running[slot] = running[-1]
                running.pop()


def to_device(numbers, device):
    """Copy numbers or a tensor to a torch.device. With pinned memory the CPU need not wait for a GPU."""
    tensor = torch.as_tensor(numbers)
    if device.type == 'cuda':
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def left_padded(sequences, padding, device):
    """Lists of ids as a tensor (B, longest), with the number `padding` before the shorter ones."""
    rows = [torch.tensor(ids) for ids in sequences]
    return to_device(pad_sequence(rows, batch_first=True, padding_value=padding, padding_side='left'), device)


def penalize(logits, history, repetition_penalty, no_repeat_ngram, bad_words):
    """Lower, in place, the logits (B, vocab_size) of tokens that should not come next.

    history: (B, L), the ids so far, with -1 before the shorter ones. bad_words: (W, n), see ban, or None.
    """
    if repetition_penalty != 1.0:
        seen = torch.where(history < 0, history[:, -1:], history)  # no padding: the last token is never padding
        score = logits.gather(1, seen)
        score = torch.where(score > 0, score / repetition_penalty, score * repetition_penalty)
        logits.scatter_(1, seen, score)
    if bad_words is not None:
        ban(logits, history, bad_words[None])
    if 0 < no_repeat_ngram <= history.size(1):
        ban(logits, history, history.unfold(1, no_repeat_ngram, 1))  # (B, L - n + 1, n)


def ban(logits, history, sequences):
    """Set the logit of a sequence's last token to -inf where history ends with its other tokens.

    sequences: (B or 1, W, n) ids. ANY_TOKEN, before the shorter ones, matches every token.
    """
    n = sequences.size(2) - 1
    before, last = sequences[..., :n], sequences[..., n].expand(len(logits), -1)  # (…, W, n), (B, W)
    ending = F.pad(history, (n, 0), value=-1)[:, history.size(1):]  # the last n tokens, (B, n)
    matches = ((before == ANY_TOKEN) | (before == ending[:, None])).all(-1)  # (B, W)
    penalty = torch.zeros_like(last, dtype=logits.dtype).masked_fill_(matches & (last >= 0), -torch.inf)
    logits.scatter_add_(1, last.clamp(min=0), penalty)


def sample_tokens(logits, uniforms, temperature, top_k, top_p, min_p):
    """Sample one token for each row by inverse transform sampling.

    logits: (B, vocab_size); uniforms: (B,), numbers from [0, 1) -> (B,)
    """
    if temperature < 1e-4:
        return logits.argmax(-1)
    probs = F.softmax(logits / temperature, dim=-1)
    if top_k or top_p < 1:
        n = min(top_k or probs.size(-1), probs.size(-1))
        likeliest = probs.topk(n).values  # sorted, (B, n)
        share = likeliest / likeliest.sum(-1, keepdim=True)
        n_kept = (share.cumsum(-1) - share < top_p).sum(-1, keepdim=True)
        # Keep the order of the vocabulary. In the order of topk, rounding could swap two tokens, and the same
        # uniform number would draw another one.
        probs = probs * (probs >= likeliest.gather(-1, n_kept - 1))
    if min_p:
        probs = probs * (probs >= min_p * probs.amax(-1, keepdim=True))
    cumulative = probs.cumsum(-1)
    drawn = uniforms * cumulative[:, -1]
    tokens = torch.searchsorted(cumulative, drawn[:, None], right=True)
    return tokens.clamp(max=probs.size(-1) - 1).squeeze(-1)


# -----------------------------------------------------------------------------
# loss: in training, on validation data, and when it goes wrong


def rows_of_chunk(vocab_size, is_cuda):
    """How many rows of logits LinearCrossEntropy computes at once."""
    # On a CPU, the 2**21 logits (8 MB) of a chunk fit in the cache. A GPU needs large products.
    n_rows = min(2**15, 2**28 // vocab_size) if is_cuda else min(2048, 2**21 // vocab_size)
    return max(256, n_rows)  # each chunk adds to all of dweight, which is slow for few rows


class LinearCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of the logits x @ weight.T, in chunks of rows: the full logits are never in memory.

    The gradients are computed in the forward pass, while a chunk's logits are in the cache: less memory and less time
    (the idea is from Liger Kernel, Hsu et al. 2024). torch.nn.functional.linear_cross_entropy does the same since
    torch 2.13, but its chunked path causes a graph break in torch.compile.
    x: (N, C), weight: (V, C), targets: (N,) int64 -> nats, float32.
    """

    @staticmethod
    def forward(ctx, x, weight, targets):
        n_rows = rows_of_chunk(len(weight), x.is_cuda)
        needs_dx, needs_dweight, _ = ctx.needs_input_grad
        loss = torch.zeros((), device=x.device)
        dx = torch.empty_like(x) if needs_dx else None
        dweight = torch.zeros_like(weight) if needs_dweight else None
        # The sums in dweight could overflow float16, at any loss scale, as that is applied later.
        # With values of at most 1 in x they are at most n_rows.
        x_scale, scaled_x = 1.0, x
        if (x[:1] @ weight[:1].t()).dtype == torch.float16:  # the dtype of products, by x or by autocast
            x_scale = x.abs().amax().clamp(min=1).float()
            scaled_x = x / x_scale
        vocab_size = len(weight)
        if x.is_cuda and vocab_size % 64:  # products are faster with a multiple of 64
            weight = F.pad(weight, (0, 0, 0, -vocab_size % 64))
        for start in range(0, len(x), n_rows):
            rows = slice(start, start + n_rows)
            target = targets[rows, None]  # (n, 1)
            logits = x[rows] @ weight.t()  # (n, V)
            logits[:, vocab_size:] = -torch.inf  # padding
            logprobs = F.log_softmax(logits.float(), dim=-1)
            target_logprobs = logprobs.gather(1, target)
            loss -= target_logprobs.sum()
            if needs_dx:
                # the gradient of the logits is softmax - onehot(target), and expm1(log p) = p - 1
                dlogits = logprobs.exp_().scatter_(1, target, target_logprobs.expm1())
                # autocast casts dlogits, which are float32, for these products
                dx[rows] = dlogits @ weight
                if needs_dweight:
                    dweight += (dlogits.t() @ scaled_x[rows])[:vocab_size]
        ctx.save_for_backward(dx, dweight)
        ctx.x_scale = x_scale
        ctx.n = len(targets)
        return loss / ctx.n

    @staticmethod
    def backward(ctx, grad):
        # the division by n comes last: in float16 the quotients could underflow
        dx, dweight = ctx.saved_tensors
        scale = grad / ctx.n
        return dx * scale, None if dweight is None else dweight * (scale * ctx.x_scale), None


def validation_loss(model, tokens, prefix, size, n, batch_size, amp, rank=0, world_size=1, compiled=None):
    """The loss on windows of `size` tokens, at most n of them -> (sum in nats, number of tokens), for this process.

    tokens: (N,) uint16. prefix: (N,) bool, tokens that do not count as targets, or None. compiled: the same model.
    """
    size = min(size, len(tokens) - 1)
    n = min(n, (len(tokens) - 1) // size)
    device = next(model.parameters()).device
    inputs = tokens[:n * size].reshape(n, size)
    targets = tokens[1:n * size + 1].reshape(n, size)
    counted = None if prefix is None else ~prefix[1:n * size + 1].reshape(n, size)
    results = []  # (mean loss, number of tokens) of each batch
    for i in tqdm(range(rank * batch_size, n, world_size * batch_size), 'loss', leave=False, delay=3, disable=rank > 0):
        rows = slice(i, i + batch_size)
        x = to_device(torch.from_numpy(inputs[rows].astype(np.int64)), device)
        y = to_device(torch.from_numpy(targets[rows].astype(np.int64)), device)
        with torch.no_grad(), amp:
            if prefix is None:
                net = compiled if compiled and len(x) == batch_size else model  # it is not compiled for another size
                results.append((net(x, y), y.numel()))
                continue
            for window, target, mask in zip(x, y, counted[rows]):  # one at a time, since all its logits are in memory
                logits = model(window[None])[0][mask].float()  # (n, V)
                loss = F.cross_entropy(logits, target[mask], reduction='sum')
                results.append((loss / max(1, len(logits)), len(logits)))
    total = sum(loss.item() * n_tokens for loss, n_tokens in results)  # read only now, so that a GPU does not wait
    return total, sum(n_tokens for _, n_tokens in results)


class LossGuard:
    """Finds training steps with a bad loss.

    - NaN or infinity, in the loss or the gradient: the step would damage the weights.
    - A spike: the loss is more than 2 nats and also more than 10 standard deviations above the mean of the last 100
      losses that were none. A hard batch can do that, so the run goes on; when the loss stays there, it has diverged.
    """

    def __init__(self):
        self.losses = collections.deque(maxlen=100)  # without spikes
        self.problem = ''  # of the latest step
        self.n_skipped = 0
        self.skipped_in_a_row = 0
        self.n_spikes = 0
        self.spikes_in_a_row = 0

    def record(self, loss, grad_norm, scaler):
        """Count a step -> whether its loss or gradient is bad."""
        self.problem = ''
        # the scaler of float16 handles overflows
        if not math.isfinite(loss) or not math.isfinite(grad_norm) and not scaler.is_enabled():
            self.problem = f'the loss is {loss:.4g} and the gradient norm {grad_norm:.3g}'
        elif scaler.is_enabled() and scaler.get_scale() < 1e-3:
            self.problem = 'the gradients overflow float16 at any loss scale'
        if self.problem:
            self.n_skipped += 1
            self.skipped_in_a_row += 1
            return True
        self.skipped_in_a_row = 0
        if len(self.losses) == 100 and loss > np.mean(self.losses) + max(2, 10 * np.std(self.losses)):
            self.n_spikes += 1
            self.spikes_in_a_row += 1
        else:
            self.losses.append(loss)
            self.spikes_in_a_row = 0
        return False

    def reason_to_stop(self, skip_nan):
        """Why the run must end after the step of record(), or ''."""
        if self.problem and (not skip_nan or self.skipped_in_a_row > 100):
            return self.problem
        if self.spikes_in_a_row >= 300:
            return f'the loss has been far above its earlier mean of {np.mean(self.losses):.4g} for 300 steps'
        return ''


# -----------------------------------------------------------------------------
# optimizers: learning rates and updates


def learning_rate_at(step, peak, config):
    """Linear warm-up to the peak, then decay to min_lr: by a cosine or, with cooldown, linearly at the end.

    config: the keys of train.py. step: from 0, also between two steps.
    """
    warmup, end = config['warmup_iters'], config['lr_decay_iters']
    if not config['decay_lr']:
        return peak
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if config['cooldown']:
        remaining = max(0, 1 - step / end)  # fraction of the steps
        factor = min(1, remaining / max(1e-9, min(config['cooldown'], 1 - warmup / end)))
    else:
        progress = min(1, (step - warmup) / max(1, end - warmup))
        factor = 0.5 * (1 + math.cos(math.pi * progress))
    lowest = min(config['min_lr'], peak)
    return lowest + factor * (peak - lowest)


def update_weights(optimizer, found_inf):
    """optimizer.step(), unless the tensor found_inf is 1.0. The device decides, without a host sync, where it can."""
    if getattr(optimizer, '_step_supports_amp_scaling', False):  # the protocol of torch.amp.GradScaler
        optimizer.found_inf = found_inf
        optimizer.step()
    elif not found_inf.item():
        optimizer.step()


def learn_bigrams(model, tokens, steps, seed, amp):
    """Train embedding and untied head of a new GPT, without its blocks, to predict the next token from the last one.

    tokens: training tokens, (N,) uint16. amp: the autocast context to compute in.
    The followers of every token are counted once. A step samples tokens in proportion to their frequency. The target
    of each one is the distribution of its followers, where ordinary training shows one follower at a time.
    """
    device = model.wte.weight.device
    size = model.config.vocab_size
    tokens = tokens.astype(np.uint32)  # pairs of uint16 fit in uint32
    pairs, counts = np.unique(tokens[:-1] * size + tokens[1:], return_counts=True)
    first, second = np.divmod(pairs.astype(np.int64), size)
    frequency = np.bincount(first, counts, size)  # of each token as the first of a pair, (V,)
    followers = torch.sparse_coo_tensor(np.stack([first, second]), counts / frequency[first], (size, size),
                                        dtype=torch.float32, is_coalesced=True, check_invariants=True)
    frequency = torch.from_numpy(frequency)
    generator = torch.Generator().manual_seed(seed)
    # Adam's steps are as long as the learning rate, so it is set relative to the weights
    groups = [{'params': [p], 'lr': p.std().item() / 2} for p in (model.wte.weight, model.head.weight)]
    adam = torch.optim.Adam(groups, betas=(0.8, 0.95))
    # constant for 30 % of the steps, then linear to 0
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: min(1, (1 - step / steps) / 0.7))
    n_rows = max(1, 2**22 // size)  # of a chunk, so that its dense targets take 16 MB
    for _ in tqdm(range(steps), 'bigrams', unit=' steps', leave=False):
        # a token that is drawn n times counts n times
        drawn, n_times = frequency.multinomial(4096, replacement=True, generator=generator).unique(return_counts=True)
        targets = followers.index_select(0, drawn)
        for rows in torch.arange(len(drawn)).split(n_rows):
            target = targets.index_select(0, rows).to_dense() * n_times[rows, None]
            with amp:
                logits = model.head(model.norm(model.wte(drawn[rows].to(device))))
            # a sum: the gradients of a mean could underflow in float16, and Adam does not depend on their scale
            F.cross_entropy(logits.float(), target.to(device), reduction='sum').backward()
        adam.step()
        schedule.step()
        model.zero_grad()


# -----------------------------------------------------------------------------
# checkpoints: saved, read without trust, and resumed from


def save_checkpoint(path, checkpoint):
    """Write a checkpoint (tensors and plain Python only). The old file stays until the new one is complete."""
    checkpoint = {'version': VERSION} | checkpoint
    with replacing(path) as temporary, open(temporary, 'wb') as f:
        try:
            torch.save(checkpoint, f)
        except RuntimeError as e:  # torch hides the error of a full disk in one of its own
            if isinstance(e.__context__, OSError):
                raise e.__context__ from None
            raise


def load_checkpoint(path):
    """Read a checkpoint without running any code from it. Ends the program with one line when that cannot be done."""
    if not os.path.exists(path):
        fail(f'{path} does not exist; train first, or name another --out_dir')
    try:
        verify_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # torch warns of old pickles before it refuses them
            checkpoint = torch.load(path, map_location='cpu', weights_only=True)
        if not isinstance(checkpoint, dict):
            raise ValueError(f'it contains a {type(checkpoint).__name__}')
        verify_values(checkpoint)
        return checkpoint
    except pickle.UnpicklingError:  # torch suggests weights_only=False here: do not pass that on
        reason = 'it contains something other than tensors and plain values'
    except Exception as e:  # torch.load raises errors of many kinds for damaged and foreign files
        reason = str(e).split('\n')[0][:200] or type(e).__name__
    folder, name = os.path.split(path)
    other = os.path.join(folder, 'ckpt.pt' if name == 'best.pt' else 'best.pt')
    advice = f'; there is also {other}' if os.path.exists(other) else ''
    fail(f'{path} cannot be loaded as a checkpoint ({reason}){advice}')


PICKLE_SIZE = 2**24  # bytes; a checkpoint's values without its tensors, of which the tokenizer is the largest part
PICKLED = {  # the classes and functions in a checkpoint. torch allows more, some of which can fill the memory
    'collections OrderedDict', 'torch._utils _rebuild_tensor_v2', 'torch._utils _rebuild_parameter',
    'torch FloatStorage', 'torch DoubleStorage', 'torch HalfStorage', 'torch BFloat16Storage', 'torch BoolStorage',
    'torch ByteStorage', 'torch CharStorage', 'torch ShortStorage', 'torch IntStorage', 'torch LongStorage'}


def verify_file(path):
    """Raise ValueError for a file of torch.save that is damaged, names code, or would fill the memory when loaded.

    torch.load ignores the checksums that torch.save writes.
    """
    if not zipfile.is_zipfile(path):  # five pickles, before torch 1.6
        with open(path, 'rb') as f:
            pickles = io.BytesIO(f.read(PICKLE_SIZE))
        for _ in range(5):
            verify_pickle(pickles)
        return
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        if sum(part.file_size for part in parts) > os.path.getsize(path):
            raise ValueError('its parts are larger than the file')
        damaged = archive.testzip()
        if damaged:
            raise ValueError(f'{damaged} in it is damaged')
        for part in parts:
            if part.filename.endswith('.pkl'):
                with archive.open(part) as f:
                    verify_pickle(f.read(PICKLE_SIZE))


def verify_pickle(data):
    """Raise ValueError for a pickle, bytes or a file, that contains more than tensors and plain values."""
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name == 'GLOBAL' and argument not in PICKLED:
            raise ValueError(f'it contains a Python object, {argument.replace(" ", "."):.100}, and loading that could '
                             'run code from the file')
        if opcode.proto > 2:
            raise ValueError('it contains something other than tensors and plain values')


def verify_values(checkpoint):
    """Raise ValueError if a checkpoint is nested too deeply, or has tensors with more elements than are stored."""
    level = [checkpoint]
    for _ in range(20):
        inner = []
        for value in level:
            if isinstance(value, dict):
                inner += [*value, *value.values()]
            elif isinstance(value, (list, tuple)):
                inner += value
            elif isinstance(value, torch.Tensor) and value.nbytes > value.untyped_storage().nbytes():
                raise ValueError('a tensor in it has more elements than are stored')
            if len(inner) > 2**22:  # one list can stand in many places
                raise ValueError('its values are nested in each other')
        level = inner
    if level:
        raise ValueError('its values are nested too deeply')


def checkpoint_path(folder):
    """best.pt of a folder, else ckpt.pt, else None."""
    for name in ('best.pt', 'ckpt.pt'):
        path = os.path.join(folder, name)
        if os.path.exists(path):
            return path
    return None


def model_from(checkpoint, path=''):
    """The GPT of a checkpoint of train.py, on the CPU in eval mode. LoRA adapters are not merged."""
    args, weights = parts_of(checkpoint, path)
    if 'lora' in checkpoint or 'settings' in args:
        import hub
        return hub.restore(checkpoint, path)
    model = new_gpt(args, weights, path)
    load_weights(model, weights, path)
    return model.eval()


def parts_of(checkpoint, path):
    """The model's settings and weights, two dicts, in a checkpoint of train.py, nanoGPT or llama2.c."""
    weights = {}
    try:
        for name, weight in checkpoint['model'].items():
            weights[name.removeprefix('_orig_mod.')] = weight.detach()  # torch.compile puts it before every name
        return dict(checkpoint['model_args']), weights
    except (KeyError, TypeError, ValueError, AttributeError):
        fail(f'{path} does not have the settings and weights of a checkpoint of train.py, nanoGPT or llama2.c')


def new_gpt(values, weights, path):
    """A GPT with settings from a file. The weights from that file must be enough for it; they are not loaded."""
    config = gpt_config(values, path)
    with torch.device('meta'):  # needs no memory
        one_layer = GPT(replace(config, n_layer=1))
    n_block = sum(p.numel() for p in one_layer.blocks.parameters())
    n_needed = one_layer.n_params() + (config.n_layer - 1) * n_block
    n_weights = sum(weight.numel() for weight in weights.values())
    if n_weights < n_needed:
        fail(f'{path}: its settings need {n_needed:,} weights, and it contains {n_weights:,}')
    return GPT(config)


def gpt_config(values, path):
    """A GPTConfig of values from a file."""
    try:
        return GPTConfig(**values)
    except TypeError as e:  # an unknown key, a missing value, a text instead of a number
        fail(f'{path}: not the settings of a GPT: {" ".join(str(e).split()):.200}')


def load_weights(model, weights, path, strict=True):
    """model.load_state_dict(weights); fails in one line when they do not fit, or when training has destroyed them."""
    try:
        result = model.load_state_dict(weights, strict=strict)
    except RuntimeError as e:
        fail(f'{path}: the weights do not fit the model: {" ".join(str(e).split()):.200}')
    if not all(weight.isfinite().all() for weight in model.parameters()):
        fail(f'{path}: its weights contain NaN or infinity; train again with a lower learning rate')
    return result


def training_state(optimizers, scaler, guard):
    """What ckpt.pt has besides the model, to resume a run exactly."""
    return {'optimizer': [optimizer.state_dict() for optimizer in optimizers],
            'scaler': scaler.state_dict(),
            'guard': (list(guard.losses), guard.n_skipped, guard.skipped_in_a_row,
                      guard.n_spikes, guard.spikes_in_a_row)}


def load_training_state(path, checkpoint, optimizers, scaler, guard):
    """Restore training_state(). best.pt has none: if it was copied to ckpt.pt, the optimizers start fresh."""
    if 'optimizer' not in checkpoint:
        return
    try:
        for optimizer, state in zip(optimizers, checkpoint['optimizer'], strict=True):
            for saved, group in zip(state['param_groups'], optimizer.param_groups):
                saved.update(group | {'params': saved['params']})  # learning rates and so on are those of this run
            optimizer.load_state_dict(state)
            for parameter, moments in optimizer.state.items():
                shapes = {name: moment.shape for name, moment in moments.items()}
                adamw = {'step': (), 'exp_avg': parameter.shape, 'exp_avg_sq': parameter.shape}
                if shapes not in (adamw, {'momentum_buffer': parameter.shape}):
                    raise ValueError('it does not fit the weights')
        if checkpoint.get('scaler'):  # empty unless the run was in float16
            sum(checkpoint['scaler'].values())  # raises a TypeError unless all are numbers
            scaler.load_state_dict(checkpoint['scaler'])
        losses, *counts = checkpoint.get('guard', ([], 0, 0))
        guard.losses.extend(map(float, losses))
        counts = [*map(int, counts), 0, 0]  # older checkpoints do not count spikes
        guard.n_skipped, guard.skipped_in_a_row, guard.n_spikes, guard.spikes_in_a_row = counts[:4]
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as e:
        reason = ' '.join(str(e).split())
        fail(f'{path}: its state of the training is damaged, or of another optimizer ({reason:.100}); use its weights '
             f'with --init_from={path} --fresh_optimizer=True and another --out_dir')


def check_resume(path, checkpoint, config, meta, vocab):
    """End the program if a checkpoint is damaged, or if this config or these data would make it another run."""
    settings = []  # of the checkpoint and of this run
    try:
        from tokenizers import Tokenizer
        same_tokens = Tokenizer.from_str(checkpoint['tokenizer']['spec']).get_vocab() == vocab
        for values, data in ((checkpoint['config'], checkpoint['meta']), (config, meta)):
            sequences = values['batch_size'] * values['gradient_accumulation_steps']
            sizes = {'sequences in a step': sequences, 'tokens in train.bin': data['tokens']['train']}
            settings.append(hide_folders(values) | sizes)
        before, now = settings
        step, loss = checkpoint['step'], checkpoint['best_val_loss']
        if not isinstance(step, int) or not 0 <= step <= before['max_iters'] or not loss >= 0:
            raise ValueError(f'step {step} with a loss of {loss} is impossible')
    except Exception as e:  # `tokenizers` raises nothing narrower
        fail(f'{path} is damaged, or no checkpoint of train.py ({type(e).__name__}: {e!s:.100}); use its weights with '
             f'--init_from={path} and another --out_dir')
    if not same_tokens:
        fail(f'{path} has another tokenizer than the data; prepare them with --tokenizer={path} --trim=False')
    changed = []
    for key in (*GPTConfig.__dataclass_fields__, 'dataset', 'seed', 'optimizer', 'lora_rank', 'lora_alpha',
                'sequences in a step', 'tokens in train.bin'):
        # older checkpoints lack some keys
        if key != 'dropout' and key in before and key in now and before[key] != now[key]:
            changed.append(f'{key} {before[key]!s:.40}, here {now[key]}')
    if changed:
        fail(f'{path} was trained with {"; ".join(changed)}; resume with its settings, or use another --out_dir')


def merge_adapters(path):
    """Merge the LoRA adapters of a checkpoint into the weights of its base model."""
    import hub
    hub.merge_lora(path)


# -----------------------------------------------------------------------------
# devices and processes: which ones to use, and how fast they are


def choose_device(device='', dtype=''):
    """Fill in what is not given -> (device, dtype): the fastest device of this machine and a dtype that is fast on it.

    dtype is 'bfloat16' where the hardware has it, 'float16' on older CUDA cards (T4, P100), else 'float32'.
    Each process of torchrun gets its own card: cuda:0, cuda:1 …
    """
    dtypes = ('', 'float32', 'bfloat16', 'float16')
    check(dtype in dtypes, f"dtype is {dtype!r}; use 'float32', 'bfloat16' or 'float16'")
    if not device:
        device = 'mps' if torch.backends.mps.is_available() else 'cpu'
        if torch.cuda.is_available():
            device = 'cuda'
    is_cuda = device.startswith('cuda')
    if is_cuda and 'LOCAL_RANK' in os.environ:
        check(device == 'cuda', f'torchrun gives each process its own GPU; use --device=cuda instead of {device}')
        local_rank, n_gpus = int(os.environ['LOCAL_RANK']), torch.cuda.device_count()
        check(local_rank < n_gpus, f'--nproc_per_node is larger than the number of GPUs, {n_gpus}')
        device = f'cuda:{local_rank}'
    try:
        if device.startswith('cuda:'):
            torch.cuda.set_device(device)  # else some calls of torch take memory of the first card
        torch.ones(2, device=device).sum().item()  # run a kernel: this build of torch may have none for the card
    except (RuntimeError, AssertionError) as e:
        reason = str(e).splitlines()[0]
        if 'no kernel image' in reason:
            reason = missing_kernels(device)
        fail(f'device {device!r} cannot be used here: {reason}')
    fastest = 'float32'
    if is_cuda:
        has_bfloat16 = torch.cuda.get_device_capability(device) >= (8, 0)
        fastest = 'bfloat16' if has_bfloat16 else 'float16'
        check(dtype != 'bfloat16' or has_bfloat16, f'{device} is too old for bfloat16, which begins with compute '
              'capability 8.0 (A100); use --dtype=float16')
    elif device == 'cpu' and hasattr(torch.cpu, 'get_capabilities'):  # torch 2.9 lacks it
        if torch.cpu.get_capabilities().get('avx512_bf16'):
            fastest = 'bfloat16'
    return device, dtype or fastest


def missing_kernels(device):
    """What to do when torch was not built for a card."""
    capability = torch.cuda.get_device_capability(device)
    cure = 'install a newer torch'
    if capability < (7, 5):  # P100, V100: the builds for CUDA 12.6 are the last ones that contain them
        cure = 'use a T4 or a newer card, or install the build of torch below 2.15 for CUDA 12.6 (cu126)'
    return (f'torch {torch.__version__} has no kernels for {torch.cuda.get_device_name(device)}, compute capability '
            f'{capability[0]}.{capability[1]}; {cure}, or use --device=cpu')


def init_processes(device, dtype, backend=''):
    """Join the processes of torchrun, if it started this one -> (rank, world_size, device, dtype)."""
    rank = int(os.environ.get('RANK', 0))
    world_size = int(os.environ.get('WORLD_SIZE', 1))
    device, dtype = choose_device(device, dtype)
    check(backend in ('', 'nccl', 'gloo'), f"backend is {backend!r}; use 'nccl' or 'gloo'")
    if world_size > 1:
        check(device != 'mps', 'torchrun cannot use mps; run one process, or use --device=cpu')
        backend = backend or ('nccl' if device.startswith('cuda') else 'gloo')
        # an hour: the other processes wait while the first one measures, generates a story and saves
        dist.init_process_group(
            backend, store=store_of_restart(), rank=rank, world_size=world_size, timeout=datetime.timedelta(hours=1),
            device_id=torch.device(device) if backend == 'nccl' else None)
    return rank, world_size, device, dtype


def store_of_restart():
    """The store in which the processes find each other after a restart by torchrun --max-restarts; None = the default.

    torchrun --standalone reuses its store, which still has the addresses of the processes that died. A new prefix
    hides them.
    """
    restarts = os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')
    on_one_node = os.environ.get('LOCAL_WORLD_SIZE') == os.environ['WORLD_SIZE']
    if restarts == '0' or not on_one_node:
        return None
    store, _, _ = next(dist.rendezvous('env://'))
    return dist.PrefixStore(f'restart {restarts}', store)


def sum_over_ranks(numbers, device):
    """The sum of each number over all processes, a list of floats."""
    if not dist.is_initialized():
        return list(numbers)
    sums = torch.tensor(numbers, dtype=torch.float64, device=device)
    dist.all_reduce(sums)
    return sums.tolist()


def compile_model(model, x, y, amp):
    """torch.compile(model), tried on the batch x, y; the model itself, with one line, where that does not work."""
    net = torch.compile(model)
    try:
        with amp:
            loss = net(x, y)
        loss.backward()
    except torch.OutOfMemoryError:
        raise
    except Exception as e:  # no C compiler, no Triton, a card older than a V100: the errors are of many kinds
        torch._dynamo.reset()
        reason = ' '.join(str(e).split()) or type(e).__name__
        tqdm.write(f'torch.compile does not work here, so the training is slower: {reason:.200}')
        net = model
    model.zero_grad()
    return net


def smaller_batches(micro_batch_size, step_sequences):
    """What to do when the memory does not suffice for so many sequences at once."""
    for n in range(2, micro_batch_size + 1):
        if micro_batch_size % n == 0:
            smaller = micro_batch_size // n
            return (f'--batch_size={smaller} --gradient_accumulation_steps={step_sequences // smaller} needs less and '
                    'makes the same steps')
    return 'a smaller --block_size or model needs less'


def matmul_rate(device, dtype, seconds=0.1):
    """Measured floating-point operations per second of a large matrix product, an upper bound for training here."""
    size = 4096 if device.startswith('cuda') else 1024
    a = torch.randn(size, size, device=device, dtype=getattr(torch, dtype))
    a[:64] @ a  # the first product loads the library
    times = []
    while sum(times) < seconds:
        synchronize(device)
        start = time.perf_counter()
        a @ a
        synchronize(device)
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


def synchronize(device):
    """Wait until the device has finished its work."""
    if device.startswith('cuda'):
        torch.cuda.synchronize(device)
    elif device == 'mps':
        torch.mps.synchronize()


def peak_memory(device):
    """Largest memory use of this process in bytes: GPU memory, else main memory; 0 where the system does not say."""
    if device.startswith('cuda'):
        return torch.cuda.max_memory_allocated(device)
    if os.name == 'nt':
        return 0
    import resource
    unit = 1 if sys.platform == 'darwin' else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
