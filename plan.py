"""
What `python train.py … --plan=True` prints: parameters, tokens, FLOPs, memory, and the time here and on some GPUs.

docs/PLAN.md has every formula with its source. Only the parameters, the tokens and the timed micro-batch are exact or
measured; all else is an estimate. C = n_embd, K = width of the keys, I = n_inner, V = vocab_size, L = n_layer.
"""

import math
import os
import time

import torch

from model import generate, rows_of_chunk, synchronize

# name: operations per second of dense matrix products in 16 bits, bytes per second of memory, GB; of the data sheets
GPUS = {'T4': (65e12, 320e9, 15), 'A100': (312e12, 1555e9, 40), 'H100': (989e12, 3350e9, 80)}
SHARE_OF_PEAK = 0.5  # of the operations per second that matrix products of this size reach, a guess
SHARE_OF_BANDWIDTH = 0.7  # of the bytes per second, a guess
LAUNCH_SECONDS = 5e-6  # to start one kernel, a guess

# -----------------------------------------------------------------------------
# formulas


def count_parameters(model):
    """Parameters by part; tied weights count once."""
    counts = {'embedding': 0, 'blocks': 0, 'norm': 0, 'head': 0}
    for name, parameter in model.named_parameters():
        part = name.split('.')[0]
        counts['embedding' if part in ('wte', 'wpe') else part] += parameter.numel()
    return counts


def activation_bytes(config, dtype):
    """Bytes that the forward pass keeps for the backward pass, per token."""
    C, K, inner = config.n_embd, config.n_kv_head * config.head_size, config.n_inner
    norms = 2 * 2 * C  # input and output
    attention = C + 2 * K + C  # q, k, v and the output
    if config.position == 'rope':
        attention += C + K  # the rotated copies of q and k
    mlp = (4 if config.mlp == 'swiglu' else 2) * inner
    ends = 4 * C  # embedding, last norm and its gradient
    size = 4 if dtype == 'float32' else 2
    return size * (config.n_layer * (norms + attention + mlp) + ends)


def logit_bytes(config, device, dtype, tokens):
    """Bytes of one chunk of logits and of the gradient of the head; see LinearCrossEntropy in model.py."""
    size = 4 if dtype == 'float32' else 2
    rows = min(tokens, rows_of_chunk(config.vocab_size, device.startswith('cuda')))
    return rows * config.vocab_size * (8 + 2 * size) + 4 * config.vocab_size * config.n_embd


def memory_bytes(model, optimizers, device, dtype, sequences):
    """Bytes by use, for a micro-batch of so many sequences."""
    weights = model.n_params()
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    states = 2 * trainable  # AdamW has two numbers for each weight, Muon one
    for optimizer in optimizers[1:]:
        states -= sum(p.numel() for p in optimizer.param_groups[0]['params'])
    config = model.config
    tokens = sequences * config.block_size
    copies = 0 if dtype == 'float32' else 2 * weights  # autocast's copies in 16 bits
    return {'weights': 4 * weights + copies, 'gradients': 4 * trainable, 'optimizer': 4 * states,
            'activations': tokens * activation_bytes(config, dtype),
            'logits': logit_bytes(config, device, dtype, tokens)}


def largest_batch(model, optimizers, device, dtype, available):
    """The largest batch_size whose estimate is at most 90 % of the available bytes; 0 = none."""
    fixed = sum(memory_bytes(model, optimizers, device, dtype, 0).values())
    fixed += logit_bytes(model.config, device, dtype, 2**15)
    per_sequence = model.config.block_size * activation_bytes(model.config, dtype)
    return max(0, int((0.9 * available - fixed) // per_sequence))


def gpu_seconds(name, model, micro_tokens, n_optimizers):
    """Estimated seconds of a micro-batch on a GPU, and of the optimizers' step."""
    peak, bandwidth, _ = GPUS[name]
    config = model.config
    n_params = model.n_params()
    compute = micro_tokens * model.flops_per_token(config.block_size) / (SHARE_OF_PEAK * peak)
    # an activation and its gradient are written and read, the logits of a token some 20 bytes each, weights three times
    traffic = micro_tokens * (4 * activation_bytes(config, 'bfloat16') + 20 * config.vocab_size) + 12 * n_params
    launches = 100 + 40 * config.n_layer  # with torch.compile
    micro = max(compute + traffic / (SHARE_OF_BANDWIDTH * bandwidth), launches * LAUNCH_SECONDS)
    launches = 20 if n_optimizers == 1 else 40 * config.n_layer  # Muon has several products for each matrix
    update = max(28 * n_params / (SHARE_OF_BANDWIDTH * bandwidth), launches * LAUNCH_SECONDS)
    return micro, update


# -----------------------------------------------------------------------------
# measurements


def seconds(function, device, limit=3.0):
    """Mean seconds of a call, repeated for about `limit` seconds but at most ten times."""
    times = []
    while not times or sum(times) + times[-1] < limit and len(times) < 10:
        synchronize(device)
        start = time.perf_counter()
        function()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return sum(times) / len(times)


def measure(model, batch, amp, optimizers, device):
    """Seconds of a micro-batch, of the optimizers' step, of an evaluation per sequence, and of a sample story."""
    x, y = batch

    def train(n):
        with amp:
            loss = model(x[:n], y[:n])
        loss.backward()

    def update():
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group['lr'] = 0.0  # the weights stay as they are
            optimizer.step()

    def evaluate(n):
        with torch.no_grad(), amp:
            model(x[:n], y[:n]).item()

    train(1)  # the first call loads libraries
    one = seconds(lambda: train(1), device, 0.0)
    n = max(1, min(len(x), int(3 / one)))  # a part of the micro-batch, if the whole one takes long
    micro = seconds(lambda: train(n), device) * len(x) / n
    update()  # the first call makes the optimizers' states
    step = seconds(update, device, 1.0)
    evaluation = seconds(lambda: evaluate(n), device) / n
    model.eval()
    n_tokens = min(16, model.config.block_size - 1)
    token = seconds(lambda: list(generate(model, [[0]], n_tokens)), device, 1.0) / n_tokens
    return micro, step, evaluation, token * min(256, model.config.block_size - 1)


def memory_here(device):
    """Bytes of memory of this GPU or machine; 0 where the system does not say."""
    if device.startswith('cuda'):
        return torch.cuda.get_device_properties(device).total_memory
    if hasattr(os, 'sysconf'):
        return os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    return 0


# -----------------------------------------------------------------------------
# the plan


def duration(n):
    """A number of seconds as text."""
    for unit, size in (('days', 86400), ('hours', 3600), ('minutes', 60)):
        if n >= 2 * size:
            return f'{n / size:,.1f} {unit}'
    return f'{n:,.1f} seconds'


def gigabytes(n):
    return f'{n / 1e9:.3g} GB'


def print_plan(model, batch, amp, optimizers, config, meta, epoch_tokens, step, device, dtype, world_size):
    """Print the plan of a run that begins at `step`.

    config: the keys of train.py. batch: a micro-batch. epoch_tokens: of one epoch.
    """
    sequences, block_size = batch[0].shape
    steps = config['max_iters'] - step
    step_tokens = config['batch_size'] * config['gradient_accumulation_steps'] * block_size
    total_tokens = config['max_iters'] * step_tokens
    flops = model.flops_per_token(block_size)
    n_evaluations = math.ceil(steps / config['eval_interval'])
    val_sequences = meta['tokens']['val'] // block_size
    val_sequences = min(val_sequences, config['eval_iters'] * config['batch_size'] or val_sequences)

    parts = ', '.join(f'{name} {n:,}' for name, n in count_parameters(model).items())
    print(f'parameters: {model.n_params():,} ({parts})')
    print(f'tokens: {epoch_tokens:,} in an epoch, {total_tokens:,} in all, {step_tokens:,} in a step')
    print(f'FLOPs: {flops:.3g} per token, {flops * total_tokens:.3g} in all')

    memory = memory_bytes(model, optimizers, device, dtype, sequences)
    parts = ', '.join(f'{name} {gigabytes(n)}' for name, n in memory.items())
    print(f'memory, estimated: {gigabytes(sum(memory.values()))} for {sequences} sequences at once ({parts})')
    available = memory_here(device)
    if available:
        largest = largest_batch(model, optimizers, device, dtype, available)
        print(f'largest batch_size here, estimated: {largest:,} in {gigabytes(available)}')

    micro, update, evaluation, story = measure(model, batch, amp, optimizers, device)
    micro_steps = step_tokens // (block_size * sequences * world_size)
    step_seconds = micro_steps * micro + update
    evaluation_seconds = val_sequences * evaluation / world_size + story
    here = steps * step_seconds + n_evaluations * evaluation_seconds
    print(f'time here: {duration(here)}: {steps:,} steps of {step_seconds:.3g} s, {n_evaluations:,} evaluations of '
          f'{evaluation_seconds:.3g} s; from one timed micro-batch')
    for key in ('budget_minutes', 'max_minutes'):
        if config[key]:
            print(f'  {key} ends the run after at most {duration(60 * config[key])}')
    if device.startswith('cuda'):
        print('  measured without torch.compile, which is faster')
    for name in GPUS:
        micro, update = gpu_seconds(name, model, sequences * world_size * block_size, len(optimizers))
        evaluated = n_evaluations * val_sequences / 3  # in sequences that also have a backward pass
        run = steps * (micro_steps * micro + update) + evaluated * micro / (sequences * world_size)
        largest = largest_batch(model, optimizers, 'cuda', 'bfloat16', 1e9 * GPUS[name][2])
        dollars = run / 3600 * config['gpu_price']
        price = f', ${dollars:,.2f}' if dollars else ''
        print(f'time on one {name}, estimated: {duration(run)}{price}; batch_size up to {largest:,}')
