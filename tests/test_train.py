"""Training by its command line: what it leaves, what survives a kill, what two processes do."""

import json
import math
import random
import re
import shutil
import signal
import socket
import time

import numpy as np
import pytest
import torch

import files
import hub

SMALL = ['--dataset=tiny', '--out_dir=out/tiny', '--dtype=float32', '--device=cpu',
         '--n_layer=2', '--n_head=2', '--n_embd=32', '--block_size=64',
         '--batch_size=4', '--gradient_accumulation_steps=2', '--learning_rate=1e-2',
         '--max_iters=20', '--lr_decay_iters=20', '--warmup_iters=2',
         '--eval_interval=10', '--eval_iters=8', '--log_interval=1']
RESUME = [*SMALL, '--init_from=resume']
DROPOUT = [*SMALL, '--dropout=0.1']
TINY = ['--n_layer=1', '--n_embd=16', '--block_size=16', '--batch_size=2', '--gradient_accumulation_steps=1',
        '--eval_interval=1000', '--eval_iters=1']  # for many steps
slow = pytest.mark.slow


@pytest.fixture
def project(project, prepared):
    shutil.copytree(prepared.path / 'data/tiny', project.path / 'data/tiny')
    return project


@pytest.fixture(scope='session')
def reference(prepared):
    """The folder of an undisturbed run with dropout."""
    prepared.run('train.py', *DROPOUT)
    return prepared.path / 'out/tiny'


def log_losses(folder):
    lines = (folder / 'log.jsonl').read_text(encoding='utf-8').splitlines()
    return {row['step']: row['loss'] for row in map(json.loads, lines)}


def losses(project):
    return log_losses(project.path / 'out/tiny')


def load_ckpt(folder):
    return torch.load(folder / 'ckpt.pt', weights_only=True)


def wait_for_step(project, process, step):
    log = project.path / 'out/tiny/log.jsonl'
    while not log.exists() or log.read_bytes().count(b'\n') < step:
        assert process.poll() is None, process.communicate()[1][-2000:]
        time.sleep(0.01)


def torchrun(n, *arguments):
    return ['-m', 'torch.distributed.run', f'--nproc_per_node={n}', *arguments]


def test_a_run_leaves_log_checkpoints_and_curve(project):
    out = project.run('train.py', *SMALL, '--eval_iters=0')
    assert 'trainable parameters' in out and 'done at step 20' in out
    assert 'cannot write this model' not in out
    log = project.jsonl('out/tiny/log.jsonl')
    assert [row['step'] for row in log] == list(range(1, 21))
    assert log[-1]['tokens'] == 20 * 8 * 64 and log[-1]['loss'] < log[0]['loss'] - 0.5
    for row in log:
        for key in ('loss', 'lr', 'tokens_per_s', 'utilization', 'memory', 'seconds', 'skipped'):
            assert math.isfinite(row[key])
    assert (project.path / 'out/tiny/loss.png').read_bytes().startswith(b'\x89PNG')
    assert not list((project.path / 'out/tiny').glob('*tmp*'))

    # the validation loss is that of all sequences of val.bin, one after the other
    model, tokenizer, checkpoint = hub.load(str(project.path / 'out/tiny/ckpt.pt'))
    ids = torch.from_numpy(np.fromfile(project.path / 'data/tiny/val.bin', '<u2').astype(np.int64))
    n = (len(ids) - 1) // 64
    with torch.no_grad():
        loss = model(ids[:n * 64].view(n, 64), ids[1:n * 64 + 1].view(n, 64)).item()
    meta = project.json('data/tiny/meta.json')
    assert log[-1]['val_loss'] == pytest.approx(loss, abs=1e-5)
    assert log[-1]['perplexity'] == pytest.approx(math.exp(loss), rel=1e-4)
    bits_per_byte = loss / math.log(2) * meta['tokens']['val'] / meta['bytes']['val']
    assert log[-1]['bits_per_byte'] == pytest.approx(bits_per_byte, rel=1e-4)
    assert checkpoint['step'] == 20 and checkpoint['config']['dataset'] == 'tiny'
    assert tokenizer.vocab_size == meta['vocab_size']


def test_killed_and_resumed_equals_undisturbed_bitwise(project, reference):
    process = project.start('train.py', *DROPOUT)
    wait_for_step(project, process, random.randint(11, 17))
    process.kill()
    process.communicate()
    project.run('train.py', *DROPOUT, '--init_from=resume')
    assert losses(project) == log_losses(reference)
    seconds = [row['seconds'] for row in project.jsonl('out/tiny/log.jsonl')]
    assert seconds == sorted(seconds)
    weights = load_ckpt(project.path / 'out/tiny')['model']
    for name, weight in load_ckpt(reference)['model'].items():
        assert torch.equal(weights[name], weight)


@slow
def test_signals_save_and_exit_with_0(project, reference):
    command = ['train.py', *DROPOUT, '--eval_interval=100']
    for number, step, resume in ((signal.SIGINT, 3, []), (signal.SIGTERM, 9, ['--init_from=resume'])):
        process = project.start(*command, *resume)
        wait_for_step(project, process, step)
        process.send_signal(number)
        out, err = process.communicate(timeout=100)
        assert process.returncode == 0 and f'stopped by {number.name}' in out, err
    project.run(*command, '--init_from=resume', '--max_iters=19')
    assert losses(project) == {step: loss for step, loss in log_losses(reference).items() if step <= 19}


@slow
def test_two_processes_equal_one_and_one_continues(project, prepared):
    prepared.run('train.py', *SMALL, '--out_dir=out/one')
    one = log_losses(prepared.path / 'out/one')
    project.run(*torchrun(2, '--standalone', 'train.py', *SMALL, '--max_iters=10'))
    assert losses(project) == pytest.approx({step: one[step] for step in range(1, 11)}, abs=1e-4)
    project.run('train.py', *RESUME)
    assert losses(project) == pytest.approx(one, abs=1e-4)


@slow
def test_two_nodes_equal_one_process(project, prepared):
    """Two torchrun agents on loopback, as on two machines; one sequence for each process."""
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    small = [*SMALL, '--batch_size=2', '--gradient_accumulation_steps=1', '--max_iters=5']
    address = ['--nnodes=2', '--master_addr=127.0.0.1', f'--master_port={port}']
    nodes = [project.start(*torchrun(1, *address, f'--node_rank={rank}', 'train.py', *small)) for rank in (0, 1)]
    for node in nodes:
        _, err = node.communicate(timeout=280)
        assert node.returncode == 0, err[-2000:]
    prepared.run('train.py', *small, '--out_dir=out/nodes')
    assert losses(project) == pytest.approx(log_losses(prepared.path / 'out/nodes'), abs=1e-4)


@slow
def test_under_torchrun_a_refusal_is_one_line_and_ctrl_c_saves(project):
    def lines_of_train(process):
        return [line for line in process.communicate(timeout=280)[1].splitlines() if line.startswith('train.py: ')]

    process = project.start(*torchrun(2, '--standalone', 'train.py', *SMALL, '--n_layer=0'))
    assert len(lines_of_train(process)) == 1 and process.returncode
    process = project.start(*torchrun(2, '--standalone', 'train.py', *SMALL, '--max_iters=100000'))
    while 'parameters' not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=280)
    assert out.splitlines()[-1].startswith('stopped by SIGINT at step ')
    assert load_ckpt(project.path / 'out/tiny')['step'] > 0


@slow
@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_mixed_precision_with_muon_trains_and_resumes(project, dtype):
    command = [f'--dtype={dtype}', '--optimizer=muon', '--gradient_accumulation_steps=1', '--eval_iters=1']
    project.run('train.py', *SMALL, *command, '--max_iters=40', '--lr_decay_iters=40')
    assert losses(project)[40] < losses(project)[1] - 0.3
    project.run('train.py', *RESUME, *command, '--max_iters=42', '--lr_decay_iters=40')
    assert len(losses(project)) == 42


@pytest.mark.parametrize('cooldown, n_steps', [(0.5, 10), (1.0, 18)])
def test_learning_rates_warm_up_and_cool_down(project, cooldown, n_steps):
    """A constant rate, then a linear decay; embedding and head have their own rate."""
    options = ['--optimizer=muon', f'--cooldown={cooldown}', '--min_lr=0.0', '--tie_weights=False',
               '--embedding_lr=3e-2', '--eval_interval=20', '--eval_iters=1']
    project.run('train.py', *SMALL, *options)
    rates = [row['lr'] for row in project.jsonl('out/tiny/log.jsonl')]
    assert rates == pytest.approx([1e-2 * min((step + 1) / 3, 1, (20 - step) / n_steps) for step in range(20)])
    adamw, muon = (state['param_groups'] for state in load_ckpt(project.path / 'out/tiny')['optimizer'])
    assert [group['lr'] for group in adamw] == pytest.approx([1e-2 / n_steps, 1e-2 / n_steps, 3e-2 / n_steps])
    assert muon[0]['lr'] == pytest.approx(1e-2 / n_steps)


@slow
@pytest.mark.parametrize('kind', [
    [], ['--dtype=float16'], ['--norm=layernorm', '--bias=True', '--position=learned', '--mlp=gelu']])
def test_bigrams_first(project, kind):
    """After bigram_steps, embedding and head predict nearly as well as counted pairs of tokens."""
    options = [*SMALL, *kind, '--tie_weights=False', '--bigram_steps=60', '--learning_rate=0.0', '--eval_iters=0',
               '--max_iters=1', '--eval_interval=1']
    project.run('train.py', *options)
    train = np.fromfile(project.path / 'data/tiny/train.bin', '<u2').astype(np.int64)
    val = np.fromfile(project.path / 'data/tiny/val.bin', '<u2').astype(np.int64)
    size = project.json('data/tiny/meta.json')['vocab_size']
    counts = np.bincount(train[:-1] * size + train[1:], minlength=size**2).reshape(size, size) + 0.1
    counted = -np.log((counts / counts.sum(1, keepdims=True))[val[:-1], val[1:]]).mean()
    val_loss = project.jsonl('out/tiny/log.jsonl')[-1]['val_loss']
    assert counted - 0.3 < val_loss < counted + 0.3 < math.log(size) - 1
    project.run('train.py', *options, '--init_from=resume', '--max_iters=2')  # not done again
    assert project.jsonl('out/tiny/log.jsonl')[-1]['val_loss'] < val_loss + 0.1
    assert 'overwrite' in project.refuses('train.py', *options, '--out_dir=out/other', '--init_from=out/tiny')
    assert 'tie_weights' in project.refuses('train.py', *options, '--out_dir=out/other', '--tie_weights=True')


def break_steps(project, steps, factor):
    """A config file that multiplies the loss of the n-th training steps by a factor, one micro-batch for each step."""
    (project.path / 'bad.py').write_text(f'''
import itertools as _itertools
import model as _model
_count = _itertools.count(1)
_forward = _model.GPT.forward
def _bad(self, ids, targets=None):
    loss = _forward(self, ids, targets)
    if self.training and next(_count) in {steps}:
        loss = loss * {factor}
    return loss
_model.GPT.forward = _bad
''', encoding='utf-8')
    return ['train.py', *SMALL, *TINY, 'bad.py']


@pytest.mark.parametrize('factor', ['float("nan")', '1e30'])
def test_a_bad_step_ends_the_run_after_a_checkpoint(project, factor):
    line = project.refuses(*break_steps(project, [18], factor))
    assert 'the loss is' in line and 'at step 17' in line
    checkpoint = load_ckpt(project.path / 'out/tiny')
    assert checkpoint['step'] == 17 and checkpoint['version'] == files.VERSION
    assert all(p.isfinite().all() for p in checkpoint['model'].values())
    if factor == '1e30':
        assert 'done at step 20' in project.run('train.py', *RESUME, *TINY)


def test_a_spike_does_not_end_the_run(project):
    """The guard knows the losses before a resume too."""
    project.run('train.py', *SMALL, *TINY, '--max_iters=100')
    out = project.run(*break_steps(project, [3, 4, 9], '5'), '--init_from=resume', '--max_iters=110')
    assert 'done at step 110, 0 steps skipped, 3 loss spikes' in out
    assert out.count('far above the last losses') == 2  # step 4 follows step 3
    assert project.jsonl('out/tiny/log.jsonl')[-1]['spikes'] == 3


def test_bad_steps_are_skipped_but_not_for_ever(project):
    """Three bad steps, then 101 in a row: from the 11th on."""
    command = break_steps(project, [4, 8, 9, *range(11, 300)], 'float("nan")')
    assert 'at step 110' in project.refuses(*command, '--skip_nan=True', '--max_iters=200', '--eval_interval=10')
    assert project.jsonl('out/tiny/log.jsonl')[9]['skipped'] == 3
    assert all(p.isfinite().all() for p in load_ckpt(project.path / 'out/tiny')['model'].values())


def test_planned_stops_and_eval_only(project):
    command = ['train.py', *SMALL, '--eval_iters=1']
    assert 'stopped by max_minutes at step 1' in project.run(*command, '--max_minutes=0.0001')
    assert (project.path / 'out/tiny/best.pt').exists()
    stop = ['--init_from=resume', '--eval_interval=2', '--stop_at_val_loss=100.0']
    assert 'stopped by stop_at_val_loss at step 2' in project.run(*command, *stop)
    assert 'perplexity' in project.run('train.py', *RESUME, '--eval_only=True')


@slow
def test_a_budget_ends_the_schedule_with_the_time(project):
    """The learning rate has decayed when the time is over. A resumed run has what is left of the budget."""
    command = ['train.py', *SMALL, '--max_iters=100000', '--lr_decay_iters=0', '--min_lr=0.0', '--eval_interval=100000']
    assert 'stopped by budget_minutes' in project.run(*command, '--budget_minutes=0.1')
    log = project.jsonl('out/tiny/log.jsonl')
    rates = [row['lr'] for row in log]
    assert max(rates) > 5e-3 and rates[-1] < 1e-3 and rates[5:] == sorted(rates[5:], reverse=True)
    assert 'val_loss' in log[-1]
    checkpoint = load_ckpt(project.path / 'out/tiny')
    assert checkpoint['step'] == log[-1]['step'] and checkpoint['minutes'] >= 0.1

    out = project.run(*command, '--budget_minutes=0.1', '--init_from=resume')
    assert f'stopped by budget_minutes at step {log[-1]["step"]:,}' in out  # nothing is left
    project.run(*command, '--budget_minutes=0.2', '--init_from=resume')
    first = project.jsonl('out/tiny/log.jsonl')[len(log)]
    assert rates[-1] < first['lr'] < 5.1e-3  # at least half of the new budget is over, the middle of the cosine


def test_a_budget_that_suffices_changes_nothing(project, reference):
    project.run('train.py', *DROPOUT, '--budget_minutes=1000000')
    assert losses(project) == log_losses(reference)


@slow
def test_two_processes_have_one_clock(project):
    budget = ['--max_iters=100000', '--eval_interval=100000', '--budget_minutes=0.03']
    out = project.run(*torchrun(2, '--standalone', 'train.py', *SMALL, *budget))
    assert 'stopped by budget_minutes' in out
    assert project.jsonl('out/tiny/log.jsonl')[-1]['lr'] < 1e-3


def hook(project, before):
    """A config file that executes some lines at the start of each forward pass, where `self` is the model."""
    (project.path / 'hook.py').write_text(f'''
import model as _model, os as _os, torch as _torch
_forward = _model.GPT.forward
def _hooked(self, ids, targets=None):
    {before}
    return _forward(self, ids, targets)
_model.GPT.forward = _hooked
''', encoding='utf-8')
    return ['train.py', *SMALL, 'hook.py']


def test_the_last_state_is_saved_before_the_last_evaluation(project):
    process = project.start(*hook(project, 'self.training or _os._exit(9)'), '--max_minutes=0.0001')
    process.communicate()
    assert process.returncode == 9 and load_ckpt(project.path / 'out/tiny')['step'] == 1


@pytest.mark.slow
@pytest.mark.parametrize('error', [
    '_torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")',
    'RuntimeError("DefaultCPUAllocator: can\'t allocate memory: you tried to allocate 9 bytes")',
    'RuntimeError("MPS backend out of memory")',
    'RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)")'])
def test_out_of_memory_names_the_same_steps_in_less_memory(project, error):
    command = hook(project, f'raise {error}')
    advice = '--batch_size=2 --gradient_accumulation_steps=4'
    assert f'out of memory; {advice} needs less' in project.refuses(*command)
    if error.startswith('_torch'):
        assert '--batch_size=3 --gradient_accumulation_steps=6' in project.refuses(*command, '--batch_size=9')
        assert 'a smaller --block_size' in project.refuses(*command, '--batch_size=1')
        project.run('train.py', *SMALL, '--max_iters=3', '--out_dir=out/a')
        project.run('train.py', *SMALL, '--max_iters=3', '--out_dir=out/b', *advice.split())
        assert log_losses(project.path / 'out/a') == pytest.approx(log_losses(project.path / 'out/b'), abs=1e-5)


@slow
def test_a_run_of_many_hours_on_a_cpu_says_so(project):
    command = ['train.py', *SMALL, *TINY, '--eval_interval=12', '--stop_at_val_loss=100.0']
    out = project.run(*command, '--max_iters=1000000000')
    assert re.search(r'about [\d,]+ hours at this speed; config/train_demo.py is for a CPU', out)
    assert 'hours' not in project.run(*command, '--out_dir=out/short')


@slow
def test_a_failing_torch_compile_is_no_end(project):
    """Without a C compiler; on a GPU, where compile is the default, Triton may be missing."""
    cache = project.path / 'cache'
    command = ['train.py', *SMALL, '--max_iters=3']
    out = project.run(*command, '--compile=True', CXX='/no/compiler', TORCHINDUCTOR_CACHE_DIR=str(cache))
    assert out.count('torch.compile does not work here') == 1 and 'done at step 3' in out
    project.run(*command, '--out_dir=out/eager')
    assert losses(project) == log_losses(project.path / 'out/eager')


CARD = '''
import torch as _torch
_torch.cuda.is_available = lambda: True
_torch.cuda.device_count = lambda: 1
_torch.cuda.set_device = lambda device: None
_torch.cuda.get_device_capability = lambda device: {capability}
_torch.cuda.get_device_name = lambda device: 'Old Card'
_ones = _torch.ones
def _run(*size, device=None):
    if {has_kernels}:
        return _ones(*size)
    raise RuntimeError('CUDA error: no kernel image is available for execution on the device')
_torch.ones = _run
'''  # a stand-in for a card, up to the moment when it is chosen


@slow
@pytest.mark.parametrize('capability, has_kernels, arguments, env, says', [
    ((6, 0), False, [], {}, 'has no kernels for Old Card, compute capability 6.0; use a T4'),
    ((12, 0), False, [], {}, 'compute capability 12.0; install a newer torch'),
    ((7, 5), True, ['--dtype=bfloat16'], {}, 'too old for bfloat16'),
    ((8, 0), True, ['--device=cuda:1'], {'RANK': '0', 'LOCAL_RANK': '0'}, 'use --device=cuda instead of cuda:1'),
    ((8, 0), True, [], {'RANK': '1', 'LOCAL_RANK': '1'}, 'larger than the number of GPUs, 1')])
def test_a_card_that_cannot_be_used_is_named(project, capability, has_kernels, arguments, env, says):
    (project.path / 'card.py').write_text(CARD.format(capability=capability, has_kernels=has_kernels), encoding='utf-8')
    assert says in project.refuses('train.py', *SMALL, 'card.py', '--device=', '--dtype=', *arguments, **env)


@slow
def test_starts_from_a_model_with_the_same_tokenizer(project, tmp_path):
    import transformers

    import tokenizer as tokenizer_module
    folder = tmp_path / 'hf'
    tokenizer = tokenizer_module.load(str(project.path / 'data/tiny/tokenizer.json'))
    config = transformers.GPT2Config(vocab_size=tokenizer.vocab_size, n_embd=32, n_layer=2, n_head=2, n_positions=128)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save(str(folder))
    project.run('train.py', *SMALL, f'--init_from={folder}')
    assert losses(project)[20] < losses(project)[1] - 0.5
    assert hub.load(str(project.path / 'out/tiny'))[0].config.position == 'learned'
    tokenizer_module.train(['एक दूसरी कहानी'] * 9, 270).save(str(folder))
    assert 'another tokenizer' in project.refuses('train.py', *SMALL, f'--init_from={folder}', '--out_dir=out/other')


@slow
def test_a_checkpoint_of_the_first_version_resumes(project, reference):
    """Checkpoints of earlier versions have no `peak_lr`, call it `largest`, and may lack the guard."""
    shutil.copytree(reference, project.path / 'out/tiny')
    checkpoint = load_ckpt(reference)
    for state in checkpoint['optimizer']:
        for group in state['param_groups']:
            del group['peak_lr']
        state['param_groups'][-1]['largest'] = 1e-2
    del checkpoint['guard']
    torch.save(checkpoint, project.path / 'out/tiny/ckpt.pt')
    project.run('train.py', *DROPOUT, '--init_from=resume', '--max_iters=22')
    assert len(losses(project)) == 22


@slow
def test_wandb_offline(project):
    pytest.importorskip('wandb')
    options = ['--max_iters=5', '--wandb_log=True', '--wandb_run_name=a name']
    project.run('train.py', *SMALL, *options, WANDB_MODE='offline', WANDB_SILENT='true')
    [run] = (project.path / 'wandb').glob('offline-run-*/*.wandb')
    assert b'bits_per_byte' in run.read_bytes() and b'gradient_accumulation_steps' in run.read_bytes()
    project.run('train.py', *RESUME, '--wandb_log=True', '--max_iters=8', WANDB_MODE='offline', WANDB_SILENT='true')
    assert len({path.stem for path in (project.path / 'wandb').glob('offline-run-*/*.wandb')}) == 1  # run-<id>


def test_wandb_without_a_key(project):
    pytest.importorskip('wandb')
    line = project.refuses('train.py', *SMALL, '--wandb_log=True', HOME=str(project.path), WANDB_API_KEY='')
    assert 'WANDB_MODE=offline' in line


def test_formats_of_export_that_the_settings_rule_out(project):
    """It is said before the training, not after it. No bits per byte where val.bin has unknown tokens."""
    meta = project.json('data/tiny/meta.json')
    meta['unknown'] = {'train': 0.0, 'val': 0.01}
    (project.path / 'data/tiny/meta.json').write_text(json.dumps(meta), encoding='utf-8')
    out = project.run('train.py', *SMALL, '--mlp=relu2', '--max_iters=1')
    assert "in the format gguf: mlp is 'relu2'" in out and 'format llama2c' in out and 'format hf' not in out
    assert 'perplexity' in out and 'bits per byte' not in out
    assert 'bits_per_byte' not in project.jsonl('out/tiny/log.jsonl')[-1]


def empty_val(project):
    path = project.path / 'data/tiny/meta.json'
    meta = project.json(path)
    meta['tokens']['val'] = 0
    path.write_text(json.dumps(meta), encoding='utf-8')
    (project.path / 'data/tiny/val.bin').write_bytes(b'')


def cut_bin(project):
    (project.path / 'data/tiny/train.bin').write_bytes(b'\0' * 99)


def other_stories(project):
    options = ['--tokenizer=data/tiny/tokenizer.json', '--trim=False', '--val_fraction=0.1']
    project.run('prepare.py', '--source=data/tiny/stories.jsonl', '--dataset=tiny', *options)


def damaged_checkpoint(project):
    (project.path / 'out/tiny/ckpt.pt').write_bytes(b'not a checkpoint')


@slow
@pytest.mark.parametrize('change, arguments, says', [
    (None, ['--dataset=nothing'], 'prepare it first'),
    (cut_bin, [], 'does not have the length'),
    (empty_val, [], '--val_fraction'),
    (None, ['--batch_size=4096'], 'lower batch_size'),
    (None, ['--out_dir=out/other', '--init_from=resume'], 'train first'),
    (None, ['--init_from=resume', '--n_embd=64'], 'n_embd 32, here 64'),
    (None, [], '--init_from=resume'),
    (other_stories, ['--init_from=resume'], 'tokens in train.bin'),
    (damaged_checkpoint, ['--init_from=resume'], 'there is also out/tiny/best.pt'),
    (None, ['--out_dir=out/other', '--init_from=no/such/place'], 'no/such/place'),
    (None, ['--out_dir=out/other', '--learning_rate=1e30', '--grad_clip=0.0', '--decay_lr=False'], 'lower learning'),
    (None, ['--out_dir=out/other', '--n_head=3'], 'multiple of n_head'),
    (None, ['--out_dir=out/other', '--optimizer=sgd'], "'adamw' or 'muon'"),
    (None, ['--dtype=int8'], 'float32'),
    (None, ['--device=tpu'], 'tpu'),
    (None, ['--batch_size=0'], 'at least 1'),
    (None, ['--dropout=1.0'], 'below 1'),
    (None, ['--learning_rate=-1.0'], 'at least 0'),
    (None, ['--batchsize=8'], "did you mean 'batch_size'"),
])
def test_refusals(project, reference, change, arguments, says):
    shutil.copytree(reference, project.path / 'out/tiny')
    if change:
        change(project)
    assert says.lower() in project.refuses('train.py', *SMALL, *arguments).lower()
