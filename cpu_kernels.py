"""
Faster versions of a few functions of model.py for CPUs.

Optional: model.py computes the same without this file. A GPU never uses it.

What each one gains is in docs/RESULTS.md; in short, on two cores:
- rms_norm              training throughput × 1.19
- causal_attention      attention in bfloat16 takes 55 % of the time with 256 positions, 69 % with 512
- keep_freed_memory     training throughput × 1.15 (batch 32), × 1.08 (batch 8)
- fast_lm_head          the head for one sequence takes 1.3 ms instead of 4.1 (vocabulary 32,000)
- PagedKV               attention for 64 sequences in 16 bits takes 35 % of the time
- quantize_int8         generation of one sequence is twice as fast as in bfloat16
"""

import ctypes
import math
import sys

import torch
import torch.nn as nn
from torch.nn import functional as F

PAGE_SIZE = 32  # positions of a page of PagedKV


# -----------------------------------------------------------------------------
# training


def rms_norm(x, weight, eps):
    """RMSNorm of model.py. x: (…, C), weight: (C,) -> (…, C)"""
    # torch's own is faster for a generation step of a few sequences.
    # is_compiling comes first: is_inference_mode_enabled would break the graph of torch.compile.
    if x.numel() < 2**15 and not torch.compiler.is_compiling() and torch.is_inference_mode_enabled():
        return F.rms_norm(x, weight.shape, weight, eps)
    return RMSNormFunction.apply(x, weight, eps)


class RMSNormFunction(torch.autograd.Function):
    """RMSNorm with its own backward. All in the dtype of x, except the mean square (float32) and the sum for dweight.

    torch's own is a sequence of small operations in float32, whatever the dtype, and takes twice as long or more.
    """

    @staticmethod
    def forward(ctx, x, weight, eps):
        dtype = torch.promote_types(x.dtype, torch.float32)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype)
        mean_square = length.square() / x.size(-1)
        scale = (mean_square + eps).rsqrt()  # (…, 1)
        scale = scale.type_as(x)
        normed = x * scale
        ctx.weight_dtype = weight.dtype
        weight = weight.type_as(x)
        ctx.save_for_backward(normed, scale, weight)
        return normed * weight

    @staticmethod
    def backward(ctx, grad):
        # dx = scale · (grad · weight - normed · mean(grad · weight · normed))
        normed, scale, weight = ctx.saved_tensors
        product = grad * normed
        total = product @ weight  # (…,)
        mean = total[..., None] / normed.size(-1)
        dx = torch.addcmul(grad * weight, normed, mean, value=-1)
        dx = dx * scale
        product = product.flatten(0, -2)
        dweight = product.sum(0, dtype=ctx.weight_dtype)
        return dx, dweight, None


def has_faster_attention(q, k, dropout):
    """Whether causal_attention is faster than torch's: up to 512 positions, where the scores fit in the CPU's cache."""
    if not q.is_cpu or q.dtype != torch.bfloat16:
        return False
    if q.shape != k.shape or dropout:
        return False
    return 1 < q.size(2) <= 512


def causal_attention(q, k, v):
    """Causal attention as two plain matrix products. q, k, v: (B, n_head, T, d) -> (B, n_head, T, d)"""
    shape = q.shape
    T, d = shape[2:]
    q = q.flatten(0, 1)  # (B * H, T, d)
    k = k.flatten(0, 1)
    v = v.flatten(0, 1)
    mask = q.new_full((T, T), -torch.inf).triu(1)
    scores = torch.baddbmm(mask, q, k.mT, alpha=d**-0.5)  # (B * H, T, T)
    y = scores.softmax(-1) @ v
    return y.view(shape)


def keep_freed_memory():
    """Have glibc keep freed memory: returning it to the system and getting it back takes a tenth of a training step."""
    if sys.platform != 'linux':
        return
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    if mallopt is None:  # another C library
        return
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
    # old versions accept 32 MB at most. M_TRIM_THRESHOLD alone would fix M_MMAP_THRESHOLD at 128 KB.
    accepted = mallopt(M_MMAP_THRESHOLD, 2**30) or mallopt(M_MMAP_THRESHOLD, 2**25)
    if accepted:
        mallopt(M_TRIM_THRESHOLD, 2**30)


# -----------------------------------------------------------------------------
# generation


def fast_lm_head(head):
    """The head with its weight transposed in memory: for a few rows the product is up to three times as fast."""
    if type(head) is not nn.Linear:  # quantized
        return head
    transposed = head.weight.t().contiguous()

    def transposed_head(x):
        return x @ transposed  # the head has no bias
    return transposed_head


def has_faster_kv(n_slots):
    """Whether PagedKV is faster than KVTensors: it needs AVX, and enough slots to pay for its index arrays."""
    capability = torch.backends.cpu.get_cpu_capability()
    return n_slots >= 8 and capability.startswith('AVX')


class PagedKV:
    """KV tensors in pages, so that attention reads only the filled part of each sequence, by embedding_bag.

    It has the interface of KVTensors in model.py. A slot is the space of one sequence; its pages are contiguous.
    A decoding step is limited by the memory that attention reads. embedding_bag (FBGEMM) reads a table of 16-bit rows
    faster than any other function of torch on a CPU. It computes weighted sums of rows, and attention is two of them:
    - scores of a page = sum over the d rows of its transposed keys, weighted by the query
    - output = sum over the rows of values, weighted by the softmax of the scores
    For a 16-bit model they are float16, which is more precise than bfloat16.
    keys: (n_layer, n_slots, n_kv_head, n_pages, d, PAGE_SIZE)
    values: (n_layer, n_slots, n_kv_head, n_pages * PAGE_SIZE, d)
    """

    def __init__(self, config, n_slots, length, weight):
        """weight: a parameter of the model."""
        dtype = torch.float16 if weight.itemsize == 2 else weight.dtype
        d = config.head_size
        n_pages = math.ceil(length / PAGE_SIZE)
        sequences = (config.n_layer, n_slots, config.n_kv_head)
        self.keys = torch.zeros(*sequences, n_pages, d, PAGE_SIZE, dtype=dtype)
        self.values = torch.zeros(*sequences, n_pages * PAGE_SIZE, d, dtype=dtype)
        self.n_pages = n_pages
        self.n_head = config.n_head
        self.n_kv_head = config.n_kv_head

    def write(self, layer, slots, k, v):
        """Prefill: store positions 0 … T-1 of these slots. k, v: (len(slots), n_kv_head, T, d)"""
        k = k.type_as(self.keys)
        v = v.type_as(self.values)
        self.values[layer, slots, :, :v.size(2)] = v
        pages = k.split(PAGE_SIZE, dim=2)  # (len(slots), n_kv_head, up to PAGE_SIZE, d) each
        for number, page in enumerate(pages):
            n = page.size(2)
            self.keys[layer, slots, :, number, :, :n] = page.mT

    def begin_step(self, positions, end=0):
        """Prepare a decode step: compute once, for all layers, which rows to read. end is not needed here.

        positions: (B,), where the first B slots get their next token. There are B * n_head heads of sequences.
        P: the number of pages of all heads.
        """
        self.positions = positions
        d = self.keys.size(-2)
        n_pages = positions // PAGE_SIZE + 1  # (B,)
        n_pages = n_pages.repeat_interleave(self.n_head)  # (B * n_head,)
        first_page = n_pages.cumsum(0) - n_pages
        self.head = torch.repeat_interleave(n_pages)  # of each page: 0 n_pages[0] times, 1 n_pages[1] times, …; (P,)
        page = torch.arange(len(self.head)) - first_page[self.head]  # its number within the sequence
        page = page[:, None]  # (P, 1)

        # rows of the tables, which are the flattened keys and values of a layer
        heads_per_kv_head = self.n_head // self.n_kv_head
        slot_and_kv_head = self.head // heads_per_kv_head  # = slot * n_kv_head + KV head
        table_page = slot_and_kv_head[:, None] * self.n_pages + page
        table_page = table_page.int()
        offsets = torch.arange(PAGE_SIZE).int()  # of positions in a page
        self.key_rows = table_page * d + torch.arange(d).int()  # (P, d)
        value_rows = table_page * PAGE_SIZE + offsets  # (P, PAGE_SIZE)
        self.value_rows = value_rows.flatten()
        self.first_value_row = (first_page * PAGE_SIZE).int()  # of each head

        # -inf where a page has no key yet
        dtype = torch.promote_types(self.keys.dtype, torch.float32)
        last_position = positions[self.head // self.n_head]  # (P,)
        is_empty = page * PAGE_SIZE + offsets > last_position[:, None]
        self.mask = torch.zeros(is_empty.shape, dtype=dtype).masked_fill_(is_empty, -torch.inf)

    def attend(self, layer, q, k, v):
        """Decode: store the new position and attend to all up to it.

        q: (B, n_head, 1, d); k, v: (B, n_kv_head, 1, d) -> (B, n_head, 1, d)
        """
        B, H, _, d = q.shape
        keys = self.keys[layer]
        values = self.values[layer]
        k = k.type_as(keys)
        v = v.type_as(values)
        slots = torch.arange(B)
        page = self.positions // PAGE_SIZE
        offset = self.positions % PAGE_SIZE
        keys[slots, :, page, :, offset] = k[:, :, 0]  # (B, n_kv_head, d)
        values[slots, :, self.positions] = v[:, :, 0]

        # here each page is a bag
        query = (q * d**-0.5).type_as(keys)
        query = query.reshape(B * H, d)
        query = query.index_select(0, self.head)  # (P, d)
        table = keys.view(-1, PAGE_SIZE)
        scores = F.embedding_bag(self.key_rows, table, mode='sum', per_sample_weights=query)
        scores = scores.to(self.mask.dtype) + self.mask  # (P, PAGE_SIZE)

        # softmax over all pages of a head. The weights are normalized first: in float16 the sum could overflow.
        largest = scores.new_full((B * H,), -torch.inf)  # of each head
        largest.scatter_reduce_(0, self.head, scores.amax(-1), 'amax')
        largest = largest.index_select(0, self.head)  # (P,)
        weights = scores.sub_(largest[:, None]).exp_()
        total = weights.new_zeros(B * H)  # of each head
        total.scatter_add_(0, self.head, weights.sum(-1))
        total = total.index_select(0, self.head)  # (P,)
        weights.div_(total[:, None])
        weights = weights.type_as(values)

        # here each head is a bag
        table = values.view(-1, d)
        y = F.embedding_bag(self.value_rows, table, self.first_value_row, mode='sum',
                            per_sample_weights=weights.flatten())
        return y.view(B, H, 1, d)


class Int8Linear(nn.Module):
    """A linear layer with 8-bit weights and one scale for each output: a quarter of the memory traffic."""

    def __init__(self, linear):
        super().__init__()
        largest = linear.weight.abs().amax(1, keepdim=True)  # of each output
        scale = largest.clamp(min=1e-12) / 127
        rounded = (linear.weight / scale).round()
        # plain tensors: as buffers, model.to(torch.bfloat16) would convert them
        self.weight = rounded.to(torch.int8)
        self.scale = scale.flatten().bfloat16()
        self.bias = linear.bias

    def forward(self, x):
        rows = x.flatten(0, -2).bfloat16()
        if len(rows) > 16:  # the product takes longer than reading the weights
            weight = self.weight.bfloat16()
            y = rows @ weight.t() * self.scale
        else:
            y = torch._weight_int8pack_mm(rows, self.weight, self.scale)  # the call that torchao makes
        y = y.view(*x.shape[:-1], -1)
        if self.bias is not None:
            y = y + self.bias
        return y.type_as(x)


@torch.no_grad()
def quantize_int8(model):
    """Convert linear layers to 8-bit weights and all else to bfloat16, in place -> the model, for a CPU."""
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear:
            model.set_submodule(name, Int8Linear(module))
    return model.to(torch.bfloat16)
