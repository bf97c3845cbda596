"""
Trains a GPT on the bins of prepare.py: data/<dataset>/*.bin -> <out_dir>/{ckpt.pt, best.pt, log.jsonl, loss.png}.

    python train.py config/train_hindi.py
    python train.py config/train_hindi.py --batch_size=16 --max_minutes=30
    python train.py config/train_hindi.py --init_from=resume
    torchrun --nproc_per_node=4 train.py config/train_hindi.py

On two nodes, the first one at 10.0.0.1, run on both, with --node_rank=0 and 1 (and out_dir where both can read it, to resume):

    torchrun --nnodes=2 --node_rank=0 --nproc_per_node=8 --master_addr=10.0.0.1 --master_port=29500 train.py config/train_hindi.py

Ctrl-C, SIGTERM and max_minutes save a checkpoint and end well; --init_from=resume goes on as if nothing had been, on
any number of processes.
"""

import collections
import ctypes
import functools
import json
import math
import os
import signal
import sys
import time

# -----------------------------------------------------------------------------
# input and output
out_dir = 'out/hindi'  # where checkpoints, log and loss curve go
dataset = 'hindi'  # the folder under data/ with train.bin and val.bin
init_from = 'scratch'  # 'scratch', 'resume', or a model to start from: a checkpoint, a Hugging Face folder or hub name, pinned by name@revision
eval_interval = 500  # steps between evaluations; each is followed by a checkpoint
eval_iters = 0  # batches an evaluation, 0: all of val.bin
eval_only = False  # evaluate once and end
log_interval = 10  # steps between lines of log.jsonl
always_save_checkpoint = True  # save ckpt.pt at every evaluation, not only when val loss fell
wandb_log = False  # log to Weights & Biases too
wandb_project = 'nanokahani'
wandb_run_name = 'gpt'
# batches
batch_size = 32  # sequences side by side in one pass, at most
gradient_accumulation_steps = 1  # passes a step, over all processes; a step sees batch_size times this many sequences on any number of them
block_size = 512  # tokens a sequence
seed = 1337  # of the weights, of the order of the stories, of dropout
# model
n_layer = 6
n_head = 8
n_embd = 512
n_kv_head = 0  # heads that keys and values have, 0: as many as n_head
n_inner = 0  # width of the MLP, 0: 4 times n_embd, or 8/3 of it when gated
norm = 'rmsnorm'  # 'rmsnorm' or 'layernorm'
position = 'rope'  # 'rope' or 'learned'
mlp = 'swiglu'  # 'swiglu', 'relu2', 'gelu' or 'gelu_new'
bias = False  # biases in linear layers and LayerNorm
tie_weights = True  # one matrix for embedding and head
qk_norm = False  # RMSNorm on queries and keys, as Qwen3
rope_theta = 10000.0
dropout = 0.0
# fine-tuning by low-rank adapters (LoRA) of the model that init_from names
lora_rank = 0  # of the adapters, which alone learn and are saved, 0: none, all weights learn
lora_alpha = 16.0  # what they say counts lora_alpha / lora_rank
lora_dropout = 0.0
merge_lora = False  # in the end add them to the model's weights, so that best.pt stands by itself
# optimizer
optimizer = 'adamw'  # 'adamw', or 'muon' for the blocks' matrices with AdamW for the rest
learning_rate = 1e-3  # the largest
embedding_lr = 0.0  # the largest of embedding and head, which are then not decayed; 0.0: learning_rate
bigram_steps = 0  # steps in which embedding and head alone learn first which token follows which; 40 will do, with tie_weights=False and embedding_lr=1e-3
muon_momentum = 0.95  # 0.85 for a few hundred steps
muon_ns_steps = 5  # rounds that make a step of Muon orthogonal; with small batches, where they take their time, 3 will do
max_iters = 5000  # steps in all
max_epochs = 0.0  # instead, passes over the stories, 0.0: max_iters
weight_decay = 0.1
beta1 = 0.9
beta2 = 0.95
grad_clip = 1.0  # gradients' norm at most, 0.0: any
skip_nan = False  # pass over a step whose loss or gradient is no number or far above the usual, instead of ending there
decay_lr = True  # warm up, then fall to min_lr
cooldown = 0.0  # share of the steps, the last ones, in which it falls, in a straight line, 0.0: a cosine from warm-up on
warmup_iters = 100
warmup_ratio = 0.0  # instead, warm-up as a share of all steps, 0.0: warmup_iters
lr_decay_iters = 0  # steps until min_lr, 0: max_iters
min_lr = 1e-4
# when to stop before max_iters
max_minutes = 0.0  # end well after this long, 0.0: never
stop_at_val_loss = 0.0  # end well at this validation loss, 0.0: never
# system
device = ''  # 'cpu', 'cuda', 'cuda:1', 'mps'; chosen when empty
dtype = ''  # 'float32', 'bfloat16' or 'float16'; chosen when empty
compile = None  # torch.compile: True, False, or None for CUDA only
backend = ''  # of torchrun: 'nccl' or 'gloo'; chosen when empty
# -----------------------------------------------------------------------------
exec(open('configurator.py', encoding='utf-8').read())

started = time.time()

import numpy as np

from tokenizer import load as load_tokenizer


def fail(message):
    raise SystemExit(f'train.py: {message}')


# -----------------------------------------------------------------------------
# settings; what is wrong with them or the data is said at once, before torch is there

ddp = 'RANK' in os.environ
rank, local_rank, world_size = (int(os.environ.get(name, default)) for name, default in (('RANK', 0), ('LOCAL_RANK', 0), ('WORLD_SIZE', 1)))
master = rank == 0
restarts = int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0))  # how often torchrun --max-restarts has begun this anew
sequences = batch_size * gradient_accumulation_steps  # a step, over all processes
if min(batch_size, gradient_accumulation_steps, block_size, eval_interval, log_interval, max_iters, muon_ns_steps) < 1:
    fail('batch_size, gradient_accumulation_steps, block_size, eval_interval, log_interval, max_iters and muon_ns_steps are numbers from 1')
if compile not in (True, False, None):
    fail(f'compile is {compile!r}; it is True, False or None')
if backend not in ('', 'nccl', 'gloo'):
    fail(f"backend is {backend!r}; it is 'nccl' or 'gloo'")
if optimizer not in ('adamw', 'muon'):
    fail(f"optimizer is {optimizer!r}; it is 'adamw' or 'muon'")
limits = dict.fromkeys(('dropout', 'lora_dropout', 'beta1', 'beta2', 'muon_momentum', 'cooldown'), 1) | {'seed': 2**32, 'muon_ns_steps': 100} | dict.fromkeys(
    ('grad_clip', 'weight_decay', 'eval_iters', 'lora_rank', 'lora_alpha', 'learning_rate', 'min_lr', 'embedding_lr', 'max_epochs', 'warmup_ratio',
     'warmup_iters', 'bigram_steps', 'lr_decay_iters', 'max_minutes', 'stop_at_val_loss'), math.inf)
for key, limit in limits.items():
    if not 0 <= config[key] < limit:  # nor is nan
        fail(f'{key} is {config[key]}; it is a number from 0 to below {limit}')
if eval_only and init_from == 'scratch':
    fail('eval_only wants a model: --init_from=resume, or the name of one')
if lora_rank and init_from == 'scratch':
    fail('lora_rank wants a model to adapt: --init_from=gpt2, say')
if lora_rank and embedding_lr:
    fail('embedding_lr is of no use with lora_rank, where the embedding does not learn; leave one out')
if bigram_steps and init_from not in ('scratch', 'resume') and not eval_only:
    fail(f'bigram_steps would undo what the embedding of {init_from} has learned; they are for a model from scratch: --bigram_steps=0')
if bigram_steps and tie_weights:
    fail('an embedding that is the head too cannot tell what follows from what goes before: --tie_weights=False, or --bigram_steps=0')
rows = sequences // world_size  # a step, of this process
micro_rows = min(batch_size, rows)
if sequences % world_size or rows % micro_rows:
    fail(f'batch_size × gradient_accumulation_steps = {sequences} sequences a step cannot be dealt out evenly to {world_size} processes, '
         f'in passes of {batch_size} or fewer; choose multiples of {world_size}')

# -----------------------------------------------------------------------------
# data

folder = os.path.join('data', dataset)
for name in ('meta.json', 'train.bin', 'val.bin', 'tokenizer.json'):
    if not os.path.exists(os.path.join(folder, name)):
        fail(f'{folder} has no {name}; prepare it first: python prepare.py --source=… --dataset={dataset}')
try:
    with open(os.path.join(folder, 'meta.json'), encoding='utf-8') as f:
        meta = json.load(f)
    numbers = [meta[what][split] for what in ('stories', 'tokens', 'bytes') for split in ('train', 'val')] + [meta['bos'], meta['eos'], meta['vocab_size']]
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError('what should be a number is none')
except (OSError, ValueError, KeyError, TypeError) as e:
    fail(f'{folder}/meta.json is torn or no work of prepare.py ({type(e).__name__}: {e}); prepare it again')
tokenizer = load_tokenizer(os.path.join(folder, 'tokenizer.json'))
data = {}
for split in ('train', 'val'):
    path = os.path.join(folder, f'{split}.bin')
    if os.path.getsize(path) != 2 * meta['tokens'][split]:
        fail(f'{path} is not as long as meta.json says; prepare it again')
    if not meta['stories'][split] or not meta['tokens'][split]:
        fail(f'{path} holds no story; prepare it again with a larger --val_fraction')
    data[split] = np.memmap(path, '<u2', 'r')
    if data[split].max() >= tokenizer.vocab_size or meta['vocab_size'] != tokenizer.vocab_size:
        fail(f'{path} and the tokenizer.json beside it do not belong together; prepare it again')
starts = np.flatnonzero(data['train'] == meta['bos'])
if meta['bos'] != meta['eos']:
    starts = np.append(starts, len(data['train']))
starts, lengths = starts[:-1], np.diff(starts)  # of each story; one token that is both bos and eos begins the next one
n_tokens = int(lengths.sum())
if n_tokens <= sequences * block_size:
    fail(f'{folder} has {n_tokens:,} tokens and one step wants {sequences * block_size:,}; '
         'lower batch_size, gradient_accumulation_steps or block_size, or find more stories')
max_iters = math.ceil(max_epochs * n_tokens / (sequences * block_size)) or max_iters
lr_decay_iters = lr_decay_iters or max_iters
warmup_iters = round(warmup_ratio * max_iters) if warmup_ratio else warmup_iters
config |= {'max_iters': max_iters, 'lr_decay_iters': lr_decay_iters, 'warmup_iters': warmup_iters}  # the checkpoint, and a model card, tell what was done


@functools.lru_cache(2)
def epoch_order(epoch):
    """The order of the stories in an epoch and where each ends in it; they depend on the seed and the epoch alone."""
    order = np.random.Generator(np.random.PCG64([seed, epoch])).permutation(len(starts))
    return order, np.cumsum(lengths[order])


def stream(a, b):
    """Tokens a to b of the stories, one shuffled epoch after the other without end."""
    parts = []
    while a < b:
        epoch, offset = divmod(a, n_tokens)
        n = min(b - a, n_tokens - offset)
        order, ends = epoch_order(epoch)
        first, last = np.searchsorted(ends, [offset, offset + n - 1], 'right')
        story = order[first:last + 1]
        begin = ends[first:last + 1] - lengths[story]
        where = np.repeat(starts[story] - begin, lengths[story]) + np.arange(begin[0], ends[last])
        parts.append(data['train'][where[offset - begin[0]:][:n]])
        a += n
    return np.concatenate(parts).astype(np.int64)


def to_device(tokens, n):
    """n × block_size + 1 tokens in a row -> inputs and targets, (n, block_size) each."""
    tokens = torch.from_numpy(tokens)
    x, y = tokens[:-1].view(n, -1), tokens[1:].view(n, -1)
    if device_type == 'cuda':
        return x.pin_memory().to(device, non_blocking=True), y.pin_memory().to(device, non_blocking=True)
    return x.to(device), y.to(device)


def get_batch(step, micro_step):
    """This process' share of a step's sequences: sequence k is tokens k × block_size … of the stream, whoever reads it."""
    k = step * sequences + rank * rows + micro_step * micro_rows
    return to_device(stream(k * block_size, (k + micro_rows) * block_size + 1), micro_rows)


# -----------------------------------------------------------------------------
# processes: one, or those that torchrun started

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import jsonl
import report
from checkpoint import add_lora, load, load_checkpoint, resized, restore, save_checkpoint
from generation import generate
from model import GPT, choose_device, learn_bigrams, matrix_rate, peak_memory

if ddp and device in ('', 'cuda') and torch.cuda.is_available():
    if local_rank >= torch.cuda.device_count():
        fail(f'--nproc_per_node asks for more processes than the {torch.cuda.device_count()} GPUs here')
    device = f'cuda:{local_rank}'
    torch.cuda.set_device(device)
device, dtype = choose_device(device, dtype)
if ddp and device == 'mps':
    fail('processes of torchrun cannot share what is on mps; one process can use it, or several --device=cpu')
if ddp:
    usual_hook = sys.excepthook

    def without_the_others(kind, value, trace):
        """A collective operation that failed: the traceback says nothing that torchrun does not."""
        if 'gloo' in str(value) or isinstance(value, dist.DistError):
            print(f'train.py: process {rank} has lost the others; what {out_dir}/ckpt.pt holds is safe. --init_from=resume goes on, or torchrun '
                  '--max-restarts=3 by itself', file=sys.stderr)
        else:
            usual_hook(kind, value, trace)
    sys.excepthook = without_the_others
    meeting = {}
    if restarts and os.environ.get('LOCAL_WORLD_SIZE') == str(world_size):  # one node: torchrun keeps its store, where the dead left their addresses
        store = next(dist.rendezvous('env://'))[0]
        meeting = {'store': dist.PrefixStore(f'restart {restarts}', store), 'rank': rank, 'world_size': world_size}
    dist.init_process_group(backend or ('nccl' if 'cuda' in device else 'gloo'), **meeting)
if compile is None:  # Triton wants Linux and a card from V100 on
    compile = device.startswith('cuda') and sys.platform == 'linux' and torch.cuda.get_device_capability(device) >= (7, 0)
if device == 'cpu' and sys.platform == 'linux':
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)  # glibc's: else it gives freed blocks back, and to get them anew is a tenth of a step
    if mallopt and (mallopt(-3, 2**30) or mallopt(-3, 2**25)):  # M_MMAP_THRESHOLD; old ones take 32 MB at most
        mallopt(-1, 2**30)  # M_TRIM_THRESHOLD; alone it would freeze the other one at 128 KB
torch.manual_seed(seed)  # the same on every process
torch.set_float32_matmul_precision('high')
device_type = device.split(':')[0]
amp = torch.autocast(device_type, getattr(torch, dtype), enabled=dtype != 'float32')

# -----------------------------------------------------------------------------
# model and optimizer

shape = {key: config[key] for key in ('block_size', 'n_layer', 'n_head', 'n_embd', 'n_kv_head', 'n_inner', 'norm', 'position', 'mlp',
                                      'bias', 'tie_weights', 'qk_norm', 'rope_theta', 'dropout')}
step, best_val_loss, state, lora = 0, math.inf, None, None
recent, skipped, skipped_in_a_row = [], 0, 0  # the last losses, steps that were passed over
ckpt_path = os.path.join(out_dir, 'ckpt.pt')
if master and not eval_only:
    jsonl.claim(ckpt_path)
if restarts and os.path.exists(ckpt_path):
    init_from = 'resume'  # a process died, and all have begun again by the same command line
if init_from != 'resume' and os.path.exists(ckpt_path) and not eval_only:
    fail(f'{ckpt_path} is there already; --init_from=resume goes on with it, another --out_dir leaves it in peace')
if init_from == 'scratch':
    model = GPT(vocab_size=meta['vocab_size'], **shape)
elif init_from == 'resume':
    try:
        state = load_checkpoint(ckpt_path)
    except SystemExit as e:
        best_path = os.path.join(out_dir, 'best.pt')
        if not os.path.exists(ckpt_path) or not os.path.exists(best_path):
            raise
        try:
            older = load_checkpoint(best_path)['step']
        except SystemExit:
            fail(f'{e}, which is damaged too')
        fail(f'{e}, of step {older:,} and whole: copied over ckpt.pt, it goes on from there, the optimizer without its averages')
    if not isinstance(state, dict) or not {'model_args', 'config', 'meta', 'tokenizer', 'step'} <= state.keys():
        fail(f'{ckpt_path} is no checkpoint of train.py; --init_from={ckpt_path} may start from its weights, in another --out_dir')
    then = state['config']
    same = {*shape, 'dataset', 'seed', 'optimizer', 'lora_rank', 'lora_alpha', 'lora_dropout'} - {'dropout'}
    other = [f'{key} {then[key]!r}, here {config[key]!r}' for key in config if key in same & then.keys() and then[key] != config[key]]
    if then['batch_size'] * then['gradient_accumulation_steps'] != sequences:
        other.append(f'{then["batch_size"] * then["gradient_accumulation_steps"]} sequences a step, here {sequences}')
    if state['tokenizer'] != tokenizer.state():
        fail(f'{ckpt_path} was trained with another tokenizer than that of {folder}; prepare the data with it: --tokenizer={ckpt_path} --trim=False')
    if state['meta']['tokens']['train'] != meta['tokens']['train']:  # the stories would come in another order
        other.append(f'{state["meta"]["tokens"]["train"]:,} tokens in train.bin, here {meta["tokens"]["train"]:,}')
    if other:
        fail(f'{ckpt_path} comes from a run with {"; ".join(other)}; go on with its settings, or begin anew in another --out_dir')
    model = restore(state | {'model_args': state['model_args'] | {'dropout': dropout}}, ckpt_path)
    step, best_val_loss, lora = state['step'], state['best_val_loss'], state.get('lora')
    recent, skipped, skipped_in_a_row = state.get('guard', (recent, skipped, skipped_in_a_row))
else:
    model, their_tokenizer, _ = load(init_from)
    if not isinstance(model, GPT):
        fail(f'{init_from} can tell stories here but not be trained: it is no plain Llama, Qwen3 or GPT-2')
    if their_tokenizer.backend.get_vocab() != tokenizer.backend.get_vocab() or meta['vocab_size'] > model.args['vocab_size']:
        fail(f'{init_from} ({model.args["vocab_size"]:,} tokens) does not have the tokenizer of {folder} ({meta["vocab_size"]:,}); '
             f'prepare the data with it: --tokenizer={init_from} --trim=False')
    if block_size > model.args['block_size']:
        fail(f'{init_from} reads {model.args["block_size"]} tokens at most, block_size is {block_size}')
    model = resized(model, block_size, dropout)
    if lora_rank:
        lora = {'base': init_from, 'rank': lora_rank, 'alpha': lora_alpha, 'dropout': lora_dropout}
        add_lora(model, lora_rank, lora_alpha, lora_dropout)
model.to(device).train()

learning = [p for p in model.parameters() if p.requires_grad]
matrices = [p for name, p in model.named_parameters() if p.requires_grad and p.dim() == 2 and name.startswith('blocks.') and optimizer == 'muon']
embedding_and_head = [p for name, p in model.named_parameters() if p.requires_grad and name in ('wte.weight', 'head.weight')]
others = [p for p in learning if all(p is not other for other in matrices + embedding_and_head)]
groups = [{'params': [p for p in others if p.dim() > 1], 'weight_decay': weight_decay},
          {'params': [p for p in others if p.dim() <= 1], 'weight_decay': 0.0},
          {'params': embedding_and_head, 'weight_decay': 0.0 if embedding_lr else weight_decay, 'largest': embedding_lr or learning_rate}]
optimizers = [torch.optim.AdamW(groups, learning_rate, (beta1, beta2), fused=device_type != 'mps')]
if optimizer == 'muon':  # with steps as long as AdamW's, so that one learning rate serves both (Liu et al. 2025, "Muon is scalable for LLM training")
    optimizers.append(torch.optim.Muon(matrices, learning_rate, weight_decay, muon_momentum, ns_steps=muon_ns_steps, adjust_lr_fn='match_rms_adamw'))
scaler = torch.amp.GradScaler(device_type, enabled=dtype == 'float16')
if state:
    for o, saved in zip(optimizers, state.get('optimizer', [])):  # none in best.pt, which may stand in for a damaged ckpt.pt
        for theirs, ours in zip(saved['param_groups'], o.param_groups):
            theirs |= {key: value for key, value in ours.items() if key != 'params'}  # the settings are those of this run
        try:
            o.load_state_dict(saved)
        except ValueError:
            fail(f'{ckpt_path}: an older train.py grouped the weights otherwise; --init_from={ckpt_path} may start from its weights, in another --out_dir')
    if state.get('scaler'):  # it is empty unless that run was in float16
        scaler.load_state_dict(state['scaler'])
    del state

if bigram_steps and init_from == 'scratch' and master:  # DDP gives its weights to the other processes
    learn_bigrams(model, data['train'][:2**24], bigram_steps, seed, amp)
net = torch.compile(model) if compile else model
if ddp:
    net = DistributedDataParallel(net, device_ids=[local_rank] if device_type == 'cuda' else None)
a = model.args  # operations a token, forward and backward: PaLM (Chowdhery et al. 2022), appendix B; what does not learn has no gradient to be made
multiplied = [p for name, p in model.named_parameters() if name != 'wpe.weight' and (a['tie_weights'] or name != 'wte.weight')]
flops_per_token = sum((6 if p.requires_grad else 4) * p.numel() for p in multiplied) + 12 * a['n_layer'] * a['n_embd'] * block_size


def lr_at(step, largest=learning_rate):
    """Linear warm-up, then a cosine, or a plateau and a straight line, down to min_lr, or `largest` where that is less."""
    if not decay_lr:
        return largest
    if step < warmup_iters:
        return largest * (step + 1) / (warmup_iters + 1)
    if cooldown:
        left = min(1.0, max(0.0, 1 - step / lr_decay_iters) / cooldown)
    else:
        left = 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup_iters) / max(1, lr_decay_iters - warmup_iters))))
    least = min(min_lr, largest)
    return least + left * (largest - least)


def bits_per_byte(loss):
    """The validation loss in bits for a byte of UTF-8, which is comparable across tokenizers."""
    return loss / math.log(2) * meta['tokens']['val'] / meta['bytes']['val']


def total(*numbers):
    """The sum of each number over all processes."""
    if not ddp:
        return numbers
    sums = torch.tensor(numbers, dtype=torch.float64, device=device)
    dist.all_reduce(sums)
    return sums.tolist()


if total(step)[0] != step * world_size:
    fail(f'process {rank} would begin at step {step}, others at another; all nodes must read the same {out_dir}')


@torch.no_grad()
def evaluate():
    """Mean loss over val.bin, cut into windows of block_size tokens one after the other: the same ones every time."""
    size = min(block_size, len(data['val']) - 1)
    n = (len(data['val']) - 1) // size
    n = min(n, eval_iters * batch_size) if eval_iters else n
    model.eval()
    loss, count = 0.0, 0
    for i in range(rank * batch_size, n, world_size * batch_size):
        k = min(batch_size, n - i)
        x, y = to_device(data['val'][i * size:(i + k) * size + 1].astype(np.int64), k)
        with amp:
            loss += model(x, y).item() * k
        count += k
    model.train()
    loss, count = total(loss, count)
    return loss / count


def tell():
    """A story by the model as it is now."""
    model.eval()
    steps = generate(model, [[tokenizer.bos]], min(256, block_size - 1), tokenizer.eos, seeds=[step], temperature=0.8)
    story = tokenizer.decode([token for new in steps for _, token in new])
    model.train()
    return story


def save(best):
    """Write ckpt.pt, with all that going on takes, and best.pt, with all that telling takes."""
    weights = {name: p for name, p in model.state_dict().items() if not lora or '.lora_' in name}  # the rest is the base's
    checkpoint = {'model_args': model.args, 'model': weights, 'step': step, 'best_val_loss': best_val_loss,
                  'config': config, 'meta': meta, 'tokenizer': tokenizer.state()} | ({'lora': lora} if lora else {})
    if best:
        save_checkpoint(os.path.join(out_dir, 'best.pt'), checkpoint)
    if best or always_save_checkpoint or stop:
        save_checkpoint(ckpt_path, checkpoint | {'optimizer': [o.state_dict() for o in optimizers], 'scaler': scaler.state_dict(),
                                                 'guard': (list(recent), skipped, skipped_in_a_row)})


# -----------------------------------------------------------------------------
# the loop

log_path = os.path.join(out_dir, 'log.jsonl')
log, seconds_before = None, 0.0  # seconds: of the runs that this one goes on from
if master and not eval_only:
    earlier = [row for row in jsonl.read(log_path) if row['step'] <= step] if step and os.path.exists(log_path) else []
    seconds_before = earlier[-1]['seconds'] if earlier else 0.0
    with jsonl.replacing(log_path) as temporary, jsonl.open_append(temporary) as f:
        for row in earlier:  # what came after the checkpoint comes again
            jsonl.append(f, row)
    log = jsonl.open_append(log_path)
    print(f'{model.n_params():,} parameters{f", of which {sum(p.numel() for p in learning):,} learn," if lora else ""} on {world_size} × {device}, '
          f'{dtype}{", compiled" if compile else ""}; {sequences * block_size:,} tokens a step, '
          f'{max_iters * sequences * block_size / n_tokens:.2f} epochs of {n_tokens:,} tokens in {max_iters:,} steps')
if master and wandb_log:
    try:
        import wandb
    except ImportError:
        fail('wandb_log wants one more package: pip install wandb')
    wandb.init(project=wandb_project, name=wandb_run_name, config=config)


def note(row):
    """Write one line of log.jsonl."""
    if master:
        jsonl.append(log, row)
        if wandb_log:
            wandb.log(row, step=row['step'])


def trouble(loss, gradient_norm):
    """What speaks against taking a step, '' if nothing does. A spike is 2 nats and 10 standard deviations above the mean of the last 100 losses."""
    if not math.isfinite(loss) or not math.isfinite(gradient_norm) and not scaler.is_enabled():
        return f'the loss is {loss:.4g}, the gradient {gradient_norm:.3g}'
    if scaler.is_enabled() and scaler.get_scale() < 1e-3:
        return 'no scale keeps the gradient within float16'
    if len(recent) == recent.maxlen and loss > np.mean(recent) + max(2, 10 * np.std(recent)):
        return f'the loss is {loss:.4g}, of late it was {np.mean(recent):.4g}'
    return ''


def lost(what):
    bar.close()
    fail(f'{what} at step {step}; the last good checkpoint stays in {out_dir}. Lower learning_rate, set grad_clip=1.0, '
         'or pass over such steps: --skip_nan=True')


asked = ''  # the signal that asked this process to end
stop = ''  # why all of them end before max_iters


def on_signal(number, frame):
    global asked
    asked = signal.Signals(number).name
    signal.signal(number, signal.SIG_DFL)  # a second one ends at once


if eval_only:
    val_loss = evaluate()
    if not val_loss < 700:
        fail(f'the validation loss is {val_loss}')
    if master:
        print(f'val loss {val_loss:.4f}, perplexity {math.exp(val_loss):.2f}, bits per byte {bits_per_byte(val_loss):.4f}')
    stop = 'eval_only'
else:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)

bar = tqdm(total=max_iters, initial=step, unit=' steps', disable=not master or eval_only, smoothing=0.05, dynamic_ncols=True)
mark_time, mark_step = time.time(), step
recent = collections.deque(recent, maxlen=100)
peak_flops = 0.0 if master else 1.0
n_micro = rows // micro_rows
batch = None
while step < max_iters and not stop:
    for o in optimizers:
        for group in o.param_groups:
            group['lr'] = lr_at(step, group.get('largest', learning_rate))
    if dropout or lora_dropout:
        torch.manual_seed(hash((seed, step, rank)))  # a state that needs no saving
    loss_sum = 0.0
    for micro_step in range(n_micro):
        x, y = batch or get_batch(step, micro_step)
        if ddp:
            net.require_backward_grad_sync = micro_step == n_micro - 1  # what no_sync() sets, without a second copy of these lines
        with amp:
            loss = net(x, y) / n_micro
        batch = get_batch(*divmod(step * n_micro + micro_step + 1, n_micro))  # while the GPU computes
        scaler.scale(loss).backward()
        loss_sum += loss.detach()
    for o in optimizers:
        scaler.unscale_(o)
    gradient_norm = torch.nn.utils.clip_grad_norm_(learning, grad_clip or math.inf).item()
    # one process asked to stop is enough, and all must stop at the same step
    out_of_time = master and max_minutes and time.time() - started > 60 * max_minutes
    told, loss = total((1 if asked else 0) + (1e6 if out_of_time else 0), loss_sum.item() / world_size)
    bad = trouble(loss, gradient_norm)
    if bad and (not skip_nan or skipped_in_a_row == 100):
        lost(bad)
    skipped, skipped_in_a_row = (skipped + 1, skipped_in_a_row + 1) if bad else (skipped, 0)
    overflow = not math.isfinite(gradient_norm)  # in float16: one optimizer's, maybe, but all must skip the step
    for o in optimizers:
        if not (bad or overflow):
            scaler.step(o)
        o.zero_grad(set_to_none=True)
    scaler.update()
    recent.extend([] if bad else [loss])
    step += 1
    bar.update()
    if told:
        stop = 'max_minutes' if told >= 1e6 else asked or 'another process'
    evaluating = step % eval_interval == 0 or step == max_iters or stop == 'max_minutes'
    if step % log_interval == 0 or evaluating or stop:
        seconds = time.time() - mark_time
        speed = (step - mark_step) * sequences * block_size / max(seconds, 1e-9)
        peak_flops = peak_flops or matrix_rate(device, dtype) * world_size  # not sooner: until each thread has a core of its own, it comes out too low
        row = {'step': step, 'tokens': step * sequences * block_size, 'loss': loss, 'lr': lr_at(step - 1), 'tokens_per_s': round(speed),
               'mfu': round(speed * flops_per_token / peak_flops, 4), 'memory': peak_memory(device),
               'seconds': round(seconds_before + time.time() - started, 2)} | ({'skipped': skipped} if skipped else {})
        bar.set_postfix_str(f'loss {loss:.3f}, {speed:,.0f} tokens/s')
        if evaluating:
            val_loss = evaluate()
            if not val_loss < 700:  # nor is nan; e to the power of more is none that a float could hold
                lost(f'the validation loss is {val_loss}')
            better, best_val_loss = val_loss < best_val_loss, min(val_loss, best_val_loss)
            row |= {'val_loss': val_loss, 'perplexity': math.exp(val_loss), 'bits_per_byte': bits_per_byte(val_loss)}
            if stop_at_val_loss and val_loss <= stop_at_val_loss:
                stop = 'stop_at_val_loss'
        try:
            note(row)
            if master and (evaluating or stop):
                save(evaluating and better)
                if evaluating:
                    tqdm.write(f'step {step}: loss {loss:.4f}, val loss {val_loss:.4f}, perplexity {row["perplexity"]:.2f}, '
                               f'bits per byte {row["bits_per_byte"]:.4f}\n\n{tell()}\n')
                report.draw_loss(jsonl.read(log_path), f'{dataset}: {model.n_params() / 1e6:.1f} M parameters', os.path.join(out_dir, 'loss.png'))
        except SystemExit:  # the disk is full
            bar.close()
            raise
        mark_time, mark_step = time.time(), step
bar.close()
if ddp:
    if dist.get_backend() == 'gloo':  # whose threads may hold the last sum for a moment more; were Python to end meanwhile, letting go of it would abort
        dist.barrier()
    net = None  # it holds on to the group
    dist.destroy_process_group()
best = os.path.join(out_dir, 'best.pt')
if master and lora and merge_lora and not eval_only and os.path.exists(best):  # it is not, where this ends before an evaluation
    model, _, checkpoint = load(best)
    save_checkpoint(best, {key: value for key, value in checkpoint.items() if key != 'lora'} | {'model': model.state_dict()})
if master and not eval_only:
    print(f'{"stopped by " + stop if stop else "done"} at step {step:,}' + (f', {skipped:,} steps skipped' if skipped else '')
          + f'; checkpoints, log and loss curve in {out_dir}'
          + ('; --init_from=resume goes on' if stop and stop != 'stop_at_val_loss' else ''))
