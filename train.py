"""
Train a GPT on the tokens of prepare.py: data/<dataset>/*.bin -> <out_dir>/{ckpt.pt, best.pt, log.jsonl, loss.png}.

    python train.py config/train_hindi.py --batch_size=16 --max_minutes=30
    python train.py config/train_hindi.py --init_from=resume
    torchrun --nproc_per_node=4 train.py config/train_hindi.py

On two nodes, run this on both, with --node_rank=0 on the first (10.0.0.1) and 1 on the second. Both must see out_dir.

    torchrun --nnodes=2 --node_rank=0 --nproc_per_node=8 --master_addr=10.0.0.1 --master_port=29500 train.py …

Ctrl-C, SIGTERM and max_minutes save a checkpoint and exit with status 0. --init_from=resume continues as if the run
had not stopped, on any number of processes. Any other checkpoint that contains an optimizer goes on at its step.
"""

import os

# -----------------------------------------------------------------------------
# input and output
out_dir = 'out/hindi'  # folder of the checkpoints, the log and the loss curve
dataset = 'hindi'  # folder under data/ with train.bin and val.bin
init_from = 'scratch'  # 'scratch', 'resume', or a model: a checkpoint, Hugging Face folder or hub name[@revision]
eval_interval = 500  # steps between evaluations; a checkpoint is saved after each
eval_iters = 0  # batches of an evaluation; 0 = all of val.bin
eval_only = False  # evaluate once and exit
log_interval = 10  # steps between lines of log.jsonl
always_save_checkpoint = True  # save ckpt.pt after every evaluation, not only after an improvement
save_per_epoch = False  # keep the weights after each epoch, as epoch_1.pt, epoch_2.pt …
fresh_optimizer = False  # with init_from=file.pt: start at step 0, even if the file contains an optimizer
wandb_log = False  # log to Weights & Biases too; a resumed run continues its wandb run
wandb_project = 'nanokahani'
wandb_run_name = 'gpt'
# batches
batch_size = 32  # sequences in one forward pass, or fewer if a process gets fewer in a step
gradient_accumulation_steps = 1  # batches in a step, summed over all processes
block_size = 512  # tokens in a sequence
seed = 1337  # random seed for the initial weights, the order of the stories, and dropout
# model
n_layer = 6
n_head = 8
n_embd = 512
n_kv_head = 0  # heads of keys and values; 0 = n_head
n_inner = 0  # width of the MLP; 0 = 4 × n_embd, or 8/3 × n_embd for SwiGLU
norm = 'rmsnorm'  # 'rmsnorm' or 'layernorm'
position = 'rope'  # 'rope' or 'learned'
mlp = 'swiglu'  # 'swiglu', 'relu2', 'gelu' or 'gelu_new'
bias = False  # biases in linear layers and LayerNorm
qkv_bias = True  # with bias: also for queries, keys and values
vocab_size = 0  # number of tokens that the data must have; 0 = any
tie_weights = True  # one matrix for embedding and head
qk_norm = False  # RMSNorm on queries and keys, as in Qwen3
rope_theta = 10000.0
dropout = 0.0
# fine-tuning with LoRA: low-rank adapters for the model that init_from names
lora_rank = 0  # LoRA rank; 0 = train all weights
lora_alpha = 16.0  # the adapters' output is scaled by lora_alpha / lora_rank
lora_dropout = 0.0
merge_lora = False  # at the end merge the adapters into the weights of best.pt, so that it needs no base model
# optimizer
optimizer = 'adamw'  # 'adamw', or 'muon' for the matrices of the blocks with AdamW for all other parameters
learning_rate = 1e-3  # peak learning rate
embedding_lr = 0.0  # peak learning rate of embedding and head; if set, they get no weight decay; 0.0 = learning_rate
bigram_steps = 0  # steps before step 0 that train embedding and head on token pairs; needs tie_weights=False; try 40
muon_momentum = 0.95  # 0.85 is better for runs of a few hundred steps
muon_ns_steps = 5  # Newton-Schulz iterations in a Muon step; 3 is faster and enough for small batches
max_iters = 5000  # number of steps
max_epochs = 0.0  # passes over the training data; if set, it replaces max_iters
weight_decay = 0.1
beta1 = 0.9
beta2 = 0.95
grad_clip = 1.0  # clip the norm of the gradients to this; 0.0 = no clipping
skip_nan = False  # skip steps with a NaN or infinite loss or gradient instead of ending the run
decay_lr = True  # warm up, then decay to min_lr; False = constant
cooldown = 0.0  # fraction of steps for a linear decay at the end; 0.0 = cosine decay
warmup_iters = 100  # steps of linear warm-up
warmup_ratio = 0.0  # warm-up as a fraction of all steps; if set, it replaces warmup_iters
lr_decay_iters = 0  # step at which min_lr is reached; 0 = max_iters
min_lr = 1e-4
# when to stop before max_iters
max_minutes = 0.0  # stop and save after this time, to resume later; 0.0 = no limit
budget_minutes = 0.0  # time for all training: the learning rate decays within it, then the run ends; 0.0 = no limit
stop_at_val_loss = 0.0  # stop when the validation loss is this low; 0.0 = off
# system
device = ''  # 'cpu', 'cuda', 'cuda:1' or 'mps'; empty = the fastest here
dtype = ''  # 'float32', 'bfloat16' or 'float16'; empty = the fastest on the device
compile = None  # torch.compile: True, False, or None = only on CUDA
backend = ''  # of torch.distributed: 'nccl' or 'gloo'; empty = nccl on CUDA
# what a run will take
plan = False  # print parameters, memory and an estimate of the time instead of training
gpu_price = 0.0  # dollars per hour of a GPU, for the plan
# -----------------------------------------------------------------------------
here = os.path.dirname(os.path.abspath(globals().get('__file__', 'train.py')))  # in a notebook: the working directory
exec(open(os.path.join(here, 'configurator.py'), encoding='utf-8').read())  # overrides the keys; makes the dict config

import math
import time
from dataclasses import asdict, fields

import torch
import torch.distributed as dist
from tokenizers import Tokenizer
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from files import (StopRequest, TokenStream, append_rows, check, describe_loss, draw_loss, fail, find, hide_folders,
                   load_dataset, lock, loss_measures, open_log, open_wandb, prefix_mask)
from model import (GPT, GPTConfig, LossGuard, check_resume, compile_model, cpu_kernels, export_problems,
                   generate, init_processes, learn_bigrams, learning_rate_at, load_checkpoint, load_training_state,
                   matmul_rate, merge_adapters, model_from, peak_memory, save_checkpoint, smaller_batches,
                   sum_over_ranks, training_state, update_weights, validation_loss)

start_time = time.time()
training = not (eval_only or plan)  # else evaluate once, or print the plan, and write nothing
for key, value in config.items():
    check(isinstance(value, str | None) or 0 <= value < math.inf, f'{key} is {value}; it must be at least 0')
for key in ('batch_size', 'gradient_accumulation_steps', 'block_size', 'eval_interval', 'log_interval', 'max_iters'):
    check(config[key] >= 1, f'{key} is 0; it must be at least 1')
for key in ('dropout', 'lora_dropout', 'beta1', 'beta2', 'muon_momentum'):
    check(config[key] < 1, f'{key} is {config[key]}; it must be below 1')
check(out_dir and seed < 2**62 and cooldown <= 1, 'out_dir must name a folder, seed be below 2**62, cooldown at most 1')
check(compile in (True, False, None), f'compile is {compile!r}; use True, False or None')

# ------ processes: one, or those that torchrun started
rank, world_size, device, dtype = init_processes(device, dtype, backend)
ddp = world_size > 1
is_master = rank == 0  # this process logs and saves
device_type = device.split(':')[0]
if device == 'cpu' and cpu_kernels:
    cpu_kernels.keep_freed_memory()  # reuse it instead of returning it to the system
torch.manual_seed(seed)  # the same weights in every process
torch.set_float32_matmul_precision('high')
amp = torch.autocast(device_type, getattr(torch, dtype), enabled=dtype != 'float32')

# ------ data: a step sees the same sequences on any number of processes
data_dir = find(os.path.join('data', dataset))  # in the working directory, else beside this script
meta, tokenizer_json, train_tokens, val_tokens = load_dataset(data_dir)
val_prefix = prefix_mask(data_dir, val_tokens, meta)  # tokens that do not count in the validation loss
check(vocab_size in (0, meta['vocab_size']), f'vocab_size is {vocab_size:,}, and {data_dir} has {meta["vocab_size"]:,} '
      'tokens; prepare it with a tokenizer of that size, or train with --vocab_size=0')
tokenizer = Tokenizer.from_str(tokenizer_json)
stream = TokenStream(train_tokens, meta['bos'], meta['eos'], seed)  # endless, each epoch in a new order; len = an epoch
step_sequences = batch_size * gradient_accumulation_steps
rank_sequences = step_sequences // world_size  # of one step, in this process
micro_batch_size = min(batch_size, rank_sequences)
check(step_sequences % world_size == 0 and rank_sequences % micro_batch_size == 0,
      f'{step_sequences} sequences in a step cannot be divided into batches of {batch_size} on {world_size} processes')
micro_steps = rank_sequences // micro_batch_size
out_of_memory_advice = smaller_batches(micro_batch_size, step_sequences)  # configurator.py prints it
step_tokens = step_sequences * block_size
check(step_tokens < len(stream), f'{data_dir} has {len(stream):,} tokens and a step needs {step_tokens:,}; '
      'lower batch_size, gradient_accumulation_steps or block_size, or use more stories')
max_iters = math.ceil(max_epochs * len(stream) / step_tokens) or max_iters
warmup_iters = round(warmup_ratio * max_iters) if warmup_ratio else warmup_iters
lr_decay_iters = lr_decay_iters or max_iters
config.update(max_iters=max_iters, warmup_iters=warmup_iters, lr_decay_iters=lr_decay_iters)

def get_batch(i):
    """Inputs and targets of micro-batch i of this process, counted from step 0: (micro_batch_size, block_size) each."""
    step_of_batch, micro_step = divmod(i, micro_steps)
    k = step_of_batch * step_sequences + rank * rank_sequences + micro_step * micro_batch_size  # its first sequence
    tokens = stream.read(k * block_size, (k + micro_batch_size) * block_size + 1)
    tokens = torch.from_numpy(tokens.astype('int64'))
    x, y = tokens[:-1].view(-1, block_size), tokens[1:].view(-1, block_size)
    if device_type == 'cuda':  # pinned memory is copied while the GPU computes
        x, y = x.pin_memory(), y.pin_memory()
    return x.to(device, non_blocking=True), y.to(device, non_blocking=True)

# ------ model: new, from a checkpoint of this run, or from another model
ckpt_path = os.path.join(out_dir, 'ckpt.pt')
model_args = {field.name: config[field.name] for field in fields(GPTConfig) if field.name in config}
step, best_val_loss, wandb_id = 0, math.inf, None
minutes = 0.0  # in the training loop, those before a resume included
stop_reason = ''  # why the run ends before max_iters
lora, saved = None, None  # the settings of adapters; the checkpoint that a training continues
if is_master and training:
    lock(ckpt_path)  # fails if another run uses this out_dir
if os.path.exists(ckpt_path) and int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)):
    init_from = 'resume'  # torchrun --max-restarts runs the same command again after a process died
if os.path.exists(ckpt_path) and init_from != 'resume' and training:
    fail(f'{ckpt_path} exists already; continue it with --init_from=resume, or use another --out_dir')

if init_from == 'scratch':
    check(not lora_rank and not eval_only, 'lora_rank and eval_only need a model, such as --init_from=resume')
    check(not bigram_steps or not tie_weights, 'bigram_steps needs tie_weights=False')
    model = GPT(GPTConfig(**model_args | {'vocab_size': meta['vocab_size']})).to(device)
    if bigram_steps and is_master and training:  # DistributedDataParallel copies the weights to the other processes
        learn_bigrams(model, train_tokens[:2**24], bigram_steps, seed, amp)  # 16 M tokens contain enough pairs
elif init_from == 'resume':
    saved = load_checkpoint(ckpt_path)
    check_resume(ckpt_path, saved, config, meta, tokenizer.get_vocab())
    saved['model_args']['dropout'] = dropout
    model = model_from(saved, ckpt_path)
    step, best_val_loss = saved['step'], saved['best_val_loss']
    lora, wandb_id, minutes = saved.get('lora'), saved.get('wandb_id'), saved.get('minutes', 0.0)
else:  # another model, cut to block_size, with adapters if lora_rank > 0
    import hub
    check(not bigram_steps, 'bigram_steps would overwrite the embedding of another model; use --bigram_steps=0')
    model, lora, saved = hub.load_for_training(init_from, tokenizer, meta.get('tokenizer', ''), config)
    step = saved['step'] if saved else 0
model.to(device).train()
is_gpt = isinstance(model, GPT)  # else a model in a class of Transformers
check(is_gpt or optimizer == 'adamw' and not plan, f'{init_from} is no Llama, Qwen3 or GPT-2; use adamw and no plan')
check(not embedding_lr or is_gpt and not lora_rank, 'embedding_lr is for a whole GPT only; use --embedding_lr=0.0')
trainable = [p for p in model.parameters() if p.requires_grad]

# ------ optimizer
optimizers = model.configure_optimizers(
    optimizer, learning_rate, embedding_lr, weight_decay, (beta1, beta2), muon_momentum, muon_ns_steps)
scaler = torch.amp.GradScaler(device_type, enabled=dtype == 'float16')
guard = LossGuard()  # finds NaN, infinity and spikes of the loss
if saved:
    load_training_state(ckpt_path if init_from == 'resume' else init_from, saved, optimizers, scaler, guard)
    saved = None  # its memory is free again
compile = device_type == 'cuda' if compile is None else compile
batch = get_batch(step * micro_steps)
net = compile_model(model, *batch, amp) if compile and training else model  # for training; it has the same weights
if ddp:
    net = DistributedDataParallel(net, device_ids=[device] if device_type == 'cuda' else None,
                                  broadcast_buffers=False, gradient_as_bucket_view=True)

# ------ evaluation and checkpoints
def evaluate():
    """Evaluate on val.bin -> the dict of loss_measures(). Every evaluation uses the same sequences."""
    n = eval_iters * batch_size or math.inf
    forward = net.module if ddp else net  # not DDP, which needs equally many batches in each process
    model.eval()
    total, count = validation_loss(
        model, val_tokens, val_prefix, block_size, n, micro_batch_size, amp, rank, world_size, compiled=forward)
    model.train()
    total, count = sum_over_ranks([total, count], device)
    loss = total / count
    if not loss < 700:  # NaN, or a perplexity that no float can hold
        fail(f'the validation loss is {loss} at step {step}; lower learning_rate')
    return loss_measures(loss, meta)

def sample_story():
    """Generate one story, to print after an evaluation."""
    model.eval()
    ids = []
    n = min(256, block_size - 1)
    for new_tokens in generate(model, [[meta['bos']]], n, meta['eos'], seeds=[step], temperature=0.8):
        ids += [token for _, token in new_tokens]  # (number of the prompt, token)
    model.train()
    return tokenizer.decode(ids)

def minutes_in_loop():
    return first_minutes + (time.time() - first_time) / 60

def save(improved=False, epoch=0):
    """Write best.pt after an improvement, and ckpt.pt, which contains the optimizers too; or only epoch_<epoch>.pt."""
    weights = model.state_dict()
    if lora:  # the other weights stay in the base model
        weights = {name: weight for name, weight in weights.items() if '.lora_' in name}
    tokenizer_state = {
        'spec': tokenizer_json, 'bos': tokenizer.id_to_token(meta['bos']), 'eos': tokenizer.id_to_token(meta['eos'])}
    checkpoint = {'model_args': asdict(model.config), 'model': weights, 'step': step, 'best_val_loss': best_val_loss,
                  'config': hide_folders(config), 'meta': meta, 'tokenizer': tokenizer_state, 'wandb_id': wandb_id,
                  'minutes': minutes_in_loop()}
    if lora:
        checkpoint['lora'] = lora
    if epoch:
        return save_checkpoint(os.path.join(out_dir, f'epoch_{epoch}.pt'), checkpoint)
    if improved:
        save_checkpoint(os.path.join(out_dir, 'best.pt'), checkpoint)
    if improved or always_save_checkpoint or stop_reason or step == max_iters:
        save_checkpoint(ckpt_path, checkpoint | training_state(optimizers, scaler, guard))

# ------ the training loop
stop_request = StopRequest()
if training:
    stop_request.listen()  # from now on, Ctrl-C and SIGTERM end the run after the step
if sum_over_ranks([step], device) != [step * world_size]:
    fail(f'the processes start at different steps; all nodes must see the same {out_dir}')
if is_master:
    if wandb_log and not plan:
        wandb_id, log_to_wandb = open_wandb(wandb_project, wandb_run_name, config, wandb_id)
    if training:
        log, earlier_seconds = open_log(os.path.join(out_dir, 'log.jsonl'), step)  # drops the rows after step
    n_trainable = sum(p.numel() for p in trainable)
    epochs = max_iters * step_tokens / len(stream)
    print(f'{n_trainable:,} trainable parameters on {world_size} × {device}, {dtype}; {max_iters:,} steps of '
          f'{step_tokens:,} tokens, {epochs:.2f} epochs; begins at step {step:,}')
    for export_format, problem in export_problems(model.config).items() if is_gpt else []:
        if problem:
            print(f'export.py cannot write this model in the format {export_format}: {problem}')
bar = tqdm(total=max_iters, initial=step, unit=' steps', disable=not (is_master and training), smoothing=0.05,
           dynamic_ncols=True)
peak_flops = 0.0  # measured at the first log row
first_time, first_step, first_minutes = time.time(), step, minutes  # of this loop
last_time, last_step = first_time, step  # of the last log row
if minutes >= budget_minutes > 0:  # nothing is left of it after a resume
    stop_reason = 'budget_minutes'
while training and step < max_iters and not stop_reason:
    # 1) set the learning rate
    position = step  # in the schedule
    if budget_minutes:  # the time may pass faster than the steps
        position = max(step, max_iters * minutes / budget_minutes)
    for opt in optimizers:
        for group in opt.param_groups:
            group['lr'] = learning_rate_at(position, group['peak_lr'], config)

    # 2) forward and backward; the next batch is fetched while the GPU computes
    if dropout or lora_dropout:
        torch.manual_seed(seed + 1_000_003 * step + rank)  # so a resumed run repeats the dropout masks
    loss_sum = 0.0
    for micro_step in range(micro_steps):
        x, y = batch
        if ddp:  # average the gradients only once; no_sync() does the same
            net.require_backward_grad_sync = micro_step == micro_steps - 1
        with amp:
            loss = net(x, y) / micro_steps
        batch = get_batch(step * micro_steps + micro_step + 1)
        scaler.scale(loss).backward()
        loss_sum += loss.detach()

    # 3) clip the gradients
    for opt in optimizers:
        scaler.unscale_(opt)
    grad_norm = torch.nn.utils.clip_grad_norm_(trainable, grad_clip or math.inf)

    # 4) all processes must stop at the same step, so the flags and the first one's clock are summed like the loss
    out_of_time = is_master and max_minutes and time.time() - start_time > 60 * max_minutes
    flags = [bool(stop_request.name), bool(out_of_time), minutes_in_loop() if is_master else 0.0]
    flags = [torch.full_like(loss_sum, flag) for flag in flags]  # unlike a copy, this does not wait for the GPU
    numbers = torch.stack([loss_sum / world_size, grad_norm / world_size, *flags])
    if ddp:
        dist.all_reduce(numbers)

    # 5) update the weights, unless the loss or the gradient is NaN or infinite; float16 gradients may overflow now and
    # then, and then scaler.update() lowers the loss scale
    found_inf = 1 - numbers[:2].isfinite().all().float()
    for opt in optimizers:
        update_weights(opt, found_inf)
        opt.zero_grad(set_to_none=True)
    scaler.update()
    loss, grad_norm, n_signals, n_out_of_time, minutes = numbers.tolist()  # here the GPU is waited for
    guard.record(loss, grad_norm, scaler)
    problem = guard.reason_to_stop(skip_nan)
    if problem:
        stop_reason = f'{problem} at step {step}'
        if is_master and all(p.isfinite().all() for p in trainable):
            save()
        fail(f'{stop_reason}; the checkpoints in {out_dir} are good. Lower learning_rate and continue with '
             '--init_from=resume, or start anew from best.pt, or skip NaN and infinity with --skip_nan=True')
    if is_master and guard.spikes_in_a_row == 1:
        tqdm.write(f'step {step}: the loss {loss:.4g} is far above the last losses; the run goes on')
    if n_out_of_time:
        stop_reason = 'max_minutes'
    elif minutes >= budget_minutes > 0:
        stop_reason = 'budget_minutes'
    elif n_signals:
        stop_reason = stop_request.name or 'a signal to another process'
    step += 1
    bar.update()
    epoch, tokens_of_epoch = divmod(step * step_tokens, len(stream))
    if is_master and save_per_epoch and tokens_of_epoch < step_tokens:
        save(epoch=epoch)
    if is_master and device == 'cpu' and step == first_step + 10:
        hours = (max_iters - step) * (time.time() - first_time) / 10 / 3600
        if min(hours, budget_minutes / 60 or hours) > 6:
            tqdm.write(f'about {hours:,.0f} hours at this speed; config/train_demo.py is for a CPU')

    # 6) log, evaluate, save
    # a signal starts no extra evaluation: the process may be killed soon
    evaluating = step % eval_interval == 0 or step == max_iters or stop_reason in ('max_minutes', 'budget_minutes')
    if step % log_interval and not evaluating and not stop_reason:
        continue
    now = time.time()
    tokens_per_second = (step - last_step) * step_tokens / max(now - last_time, 1e-9)
    if is_master and not peak_flops:  # measured here, when the processor is warm
        peak_flops = matmul_rate(device, dtype) * world_size
    lr = learning_rate_at(position, learning_rate, config)
    row = {'step': step, 'tokens': step * step_tokens, 'loss': loss, 'lr': lr,
           'tokens_per_s': round(tokens_per_second), 'memory': peak_memory(device)}
    improved = False
    if evaluating:
        if is_master and stop_reason:
            save()  # the evaluation can take long, and the process may be killed meanwhile
        row.update(evaluate())
        improved = row['val_loss'] < best_val_loss
        best_val_loss = min(row['val_loss'], best_val_loss)
        if row['val_loss'] <= stop_at_val_loss:
            stop_reason = 'stop_at_val_loss'
    if is_master:
        flops = tokens_per_second * model.flops_per_token(block_size)
        row['utilization'] = round(flops / peak_flops, 4)  # relative to the measured rate of a large matrix product
        row['seconds'] = round(earlier_seconds + time.time() - start_time, 2)
        row['skipped'], row['spikes'] = guard.n_skipped, guard.n_spikes
        append_rows(log, row)
        if wandb_log:
            log_to_wandb(row, step=step)
        bar.set_postfix_str(f'loss {loss:.3f}, {tokens_per_second:,.0f} tokens/s')
    if is_master and (evaluating or stop_reason):
        save(improved)
        draw_loss(log.name, f'{dataset}: {model.n_params() / 1e6:.1f} M parameters', os.path.join(out_dir, 'loss.png'))
    if is_master and evaluating:
        tqdm.write(f'step {step}: loss {loss:.4f}, {describe_loss(row)}\n\n{sample_story()}\n')
    last_time, last_step = time.time(), step

# ------ the end
bar.close()
if plan and is_master:
    from plan import print_plan  # a file of its own, which only this needs
    print_plan(model, batch, amp, optimizers, config, meta, len(stream), step, device, dtype, world_size)
elif eval_only and not plan:
    row = evaluate()
    if is_master:
        print(describe_loss(row))
elif is_master:
    log.close()
    if lora and merge_lora:
        merge_adapters(os.path.join(out_dir, 'best.pt'))
    ending = f'stopped by {stop_reason}' if stop_reason else 'done'
    counts = f'{guard.n_skipped} steps skipped, {guard.n_spikes} loss spikes'
    print(f'{ending} at step {step:,}, {counts}; checkpoints and loss curve are in {out_dir}')
if ddp:
    dist.barrier()  # gloo can crash at exit while another process still has its last all-reduce
    dist.destroy_process_group()
