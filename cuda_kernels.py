"""
Faster versions of a few functions of model.py for CUDA.

Optional: model.py computes the same without this file. A CPU never uses it.

- Muon                  a step of 6 layers launches a tenth of the kernels
- repeat_kv_heads       without flash attention, grouped queries would store all attention scores
- DecodeGraphs          a decode step is one launch instead of hundreds
"""

import collections
import math
import os
import sys

import torch

CONTEXT_BLOCK = 128  # positions; a graph attends to a multiple of this

# -----------------------------------------------------------------------------
# training


class Muon(torch.optim.Muon):
    """torch.optim.Muon that updates all matrices of one shape together.

    It is for nesterov=True and adjust_lr_fn='match_rms_adamw', and has the state of torch.optim.Muon.
    If the attribute found_inf, a tensor, is 1.0, a step changes nothing (the protocol of torch.amp.GradScaler).
    """

    _step_supports_amp_scaling = True
    found_inf = None

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            by_shape = collections.defaultdict(list)
            for p in group['params']:
                if p.grad is None:
                    continue
                if 'momentum_buffer' not in self.state[p]:
                    self.state[p]['momentum_buffer'] = torch.zeros_like(p)
                by_shape[p.shape].append(p)
            for params in by_shape.values():
                self.update(params, group)

    def update(self, params, group):
        """One step for n matrices of one shape."""
        buffers = [self.state[p]['momentum_buffer'] for p in params]
        old_params = torch.stack(params)  # (n, rows, columns)
        old_buffers = torch.stack(buffers)
        grads = torch.stack([p.grad for p in params])
        new_buffers = old_buffers.lerp(grads, 1 - group['momentum'])
        update = grads.lerp(new_buffers, group['momentum'])  # Nesterov momentum
        update = orthogonalize(update, group['ns_coefficients'], group['ns_steps'], group['eps'])
        new_params = old_params * (1 - group['lr'] * group['weight_decay'])
        new_params.add_(update, alpha=-group['lr'] * (0.2 * math.sqrt(max(update.shape[1:]))))
        if self.found_inf is not None:
            is_bad = self.found_inf.bool()
            new_params = torch.where(is_bad, old_params, new_params)
            new_buffers = torch.where(is_bad, old_buffers, new_buffers)
        torch._foreach_copy_(params, new_params.unbind())
        torch._foreach_copy_(buffers, new_buffers.unbind())


def orthogonalize(x, coefficients, n_steps, eps):
    """The Newton-Schulz iterations of Muon (Jordan et al. 2024) for several matrices. x: (n, rows, columns)"""
    a, b, c = coefficients
    dtype = torch.bfloat16
    if x.is_cuda and torch.cuda.get_device_capability(x.device) < (8, 0):
        dtype = torch.float16  # older cards have no fast bfloat16 product
    is_tall = x.size(1) > x.size(2)
    if is_tall:
        x = x.mT
    x = x.bfloat16()  # as torch does; float16 would lose small gradients
    length = x.norm(dim=(1, 2), keepdim=True)
    x = (x / length.clamp(min=eps)).to(dtype)
    for _ in range(n_steps):
        gram = x @ x.mT
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, gram, x, beta=a)
    return x.mT if is_tall else x


@torch.compiler.assume_constant_result
def has_flash_attention(device, dtype):
    """Whether the card has flash attention for this dtype: the only fast kernel that computes grouped queries."""
    return dtype.itemsize == 2 and torch.cuda.get_device_capability(device) >= (8, 0)


def repeat_kv_heads(q, k, v):
    """One key and value head for each query head. q: (B, n_head, T, d); k, v: (B, n_kv_head, T, d)"""
    n = q.size(1) // k.size(1)
    return k.repeat_interleave(n, dim=1), v.repeat_interleave(n, dim=1)


# -----------------------------------------------------------------------------
# generation

graphs_work = os.environ.get('CUDA_GRAPHS') != '0'  # CUDA_GRAPHS=0 in the environment turns graphs off


class DecodeGraphs:
    """Runs the decode step of a KVCache as a CUDA graph: one launch replays all its kernels.

    A graph has fixed shapes. There is one for each number of rows, a power of 2, and each number of positions to attend
    to, a multiple of CONTEXT_BLOCK. It is captured when it is needed first. step: KVCache.decode_step.
    """

    def __init__(self, step, n_slots, length, device):
        self.step = step
        self.n_slots = n_slots
        self.length = length
        self.inputs = torch.zeros(2, n_slots, dtype=torch.int64, device=device)
        self.graphs = {}  # (rows, end) -> a graph and the logits that it computes
        self.pool = None  # memory that all graphs use; no two of them run at the same time

    def __call__(self, inputs, end):
        """inputs: (2, B), tokens and positions below end -> logits (B, vocab_size). The next call overwrites them."""
        n = inputs.size(1)
        n_rows = min(self.n_slots, 2 ** (n - 1).bit_length())
        end = min(self.length, math.ceil(end / CONTEXT_BLOCK) * CONTEXT_BLOCK)
        self.inputs[:, :n] = inputs
        inputs = self.inputs[:, :n_rows]  # the rows after the first n write to free slots, which does no harm
        if graphs_work and (n_rows, end) not in self.graphs:
            self.capture(inputs, end)
        if not graphs_work:
            return self.step(inputs, end)[:n]
        graph, logits = self.graphs[n_rows, end]
        graph.replay()
        return logits[:n]

    def capture(self, inputs, end):
        """Record the step as a graph. If that fails, generation goes on without graphs."""
        global graphs_work
        try:
            with torch.cuda.device(inputs.device):
                # the first steps load libraries and reserve memory, which a graph cannot record
                stream = torch.cuda.Stream()
                stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(stream):
                    for _ in range(3):
                        self.step(inputs, end)
                torch.cuda.current_stream().wait_stream(stream)
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, self.pool, capture_error_mode='thread_local'):
                    logits = self.step(inputs, end)
        except (RuntimeError, AssertionError) as e:  # torch without CUDA raises an AssertionError
            reason = str(e).split('\n')[0]
            print(f'CUDA graphs do not work here, and generation is slower without them: {reason}', file=sys.stderr)
            graphs_work = False
            return
        self.pool = self.pool or graph.pool()
        self.graphs[inputs.size(1), end] = graph, logits
