"""Training through its command line: what it leaves, what survives a kill, what two processes make of it."""

import math
import random
import runpy
import shutil
import signal
import socket
import sys
import time

import numpy as np
import pytest
import torch

from checkpoint import load

SMALL = ['--dataset=tiny', '--out_dir=out/tiny', '--n_layer=2', '--n_head=2', '--n_embd=32', '--block_size=64', '--batch_size=4',
         '--gradient_accumulation_steps=2', '--learning_rate=1e-2', '--max_iters=20', '--lr_decay_iters=20', '--warmup_iters=2', '--eval_interval=10',
         '--eval_iters=8', '--log_interval=1', '--dtype=float32', '--device=cpu']


@pytest.fixture
def project(project, prepared):
    shutil.copytree(prepared.path / 'data/tiny', project.path / 'data/tiny')
    project.reference = prepared.path / 'out/tiny'
    return project


@pytest.fixture(scope='session')
def reference(prepared):
    """The log and the final checkpoint of a run that nothing disturbed."""
    prepared.run('train.py', *SMALL, '--dropout=0.1')
    return {row['step']: row['loss'] for row in prepared.jsonl('out/tiny/log.jsonl')}, torch.load(prepared.path / 'out/tiny/ckpt.pt', weights_only=True)


def losses(project):
    return {row['step']: row['loss'] for row in project.jsonl('out/tiny/log.jsonl')}


def wait_for_step(project, process, step):
    log = project.path / 'out/tiny/log.jsonl'
    while not (log.exists() and log.read_bytes().count(b'\n') >= step):
        assert process.poll() is None, process.communicate()[1][-2000:]
        time.sleep(0.01)


def torchrun(n, *arguments):
    return ['-m', 'torch.distributed.run', f'--nproc_per_node={n}', *arguments]


def test_what_a_run_leaves(project):
    out = project.run('train.py', *SMALL, '--eval_iters=0')
    assert 'parameters' in out and 'done at step 20' in out
    log = project.jsonl('out/tiny/log.jsonl')
    assert [row['step'] for row in log] == list(range(1, 21))
    assert log[-1]['tokens'] == 20 * 8 * 64 and log[-1]['loss'] < log[0]['loss'] - 0.5
    assert all(math.isfinite(row[key]) for row in log for key in ('loss', 'lr', 'tokens_per_s', 'mfu', 'memory', 'seconds'))
    assert (project.path / 'out/tiny/loss.png').read_bytes().startswith(b'\x89PNG')

    # the validation loss is that of all windows of val.bin, one after the other
    model, tokenizer, checkpoint = load(str(project.path / 'out/tiny/ckpt.pt'))
    ids = torch.from_numpy(np.fromfile(project.path / 'data/tiny/val.bin', '<u2').astype(np.int64))
    n = (len(ids) - 1) // 64
    with torch.no_grad():
        loss = model(ids[:n * 64].view(n, 64), ids[1:n * 64 + 1].view(n, 64)).item()
    meta = project.json('data/tiny/meta.json')
    assert log[-1]['val_loss'] == pytest.approx(loss, abs=1e-5)
    assert log[-1]['perplexity'] == pytest.approx(math.exp(loss), rel=1e-4)
    assert log[-1]['bits_per_byte'] == pytest.approx(loss / math.log(2) * meta['tokens']['val'] / meta['bytes']['val'], rel=1e-4)
    assert checkpoint['step'] == 20 and checkpoint['config']['dataset'] == 'tiny' and tokenizer.vocab_size == meta['vocab_size']
    assert not list((project.path / 'out/tiny').glob('*tmp*'))


def test_every_story_once_an_epoch_in_an_order_of_seed_and_epoch(project, monkeypatch):
    monkeypatch.chdir(project.path)
    monkeypatch.setattr(sys, 'argv', ['train.py', *SMALL, '--max_iters=1'])
    train = runpy.run_path('train.py')
    stream, n, bos = train['stream'], train['n_tokens'], train['tokenizer'].bos
    data = np.fromfile('data/tiny/train.bin', '<u2')

    def stories(tokens):
        return [tuple(s) for s in np.split(tokens, np.flatnonzero(tokens == bos)[1:])]

    first, second = stories(stream(0, n)), stories(stream(n, 2 * n))
    assert sorted(first) == sorted(second) == sorted(stories(data))
    assert first != second and first != stories(data)
    pieces = [stream(a, min(a + 777, 2 * n + 50)) for a in range(0, 2 * n + 50, 777)]  # whatever the pieces, across epochs too
    assert np.array_equal(np.concatenate(pieces), stream(0, 2 * n + 50))


def test_killed_and_resumed_is_the_same_to_the_last_bit(project, reference):
    process = project.start('train.py', *SMALL, '--dropout=0.1')
    wait_for_step(project, process, random.randint(11, 17))
    process.kill()
    process.communicate()
    project.run('train.py', *SMALL, '--dropout=0.1', '--init_from=resume')
    assert losses(project) == reference[0]
    seconds = [row['seconds'] for row in project.jsonl('out/tiny/log.jsonl')]
    assert seconds == sorted(seconds)
    weights = torch.load(project.path / 'out/tiny/ckpt.pt', weights_only=True)['model']
    assert all(torch.equal(weights[name], reference[1]['model'][name]) for name in weights)


def test_signals_save_and_end_well(project, reference):
    command = ['train.py', *SMALL, '--dropout=0.1', '--eval_interval=100']
    for number, step, resume in ((signal.SIGINT, 3, []), (signal.SIGTERM, 9, ['--init_from=resume'])):
        process = project.start(*command, *resume)
        wait_for_step(project, process, step)
        process.send_signal(number)
        out, err = process.communicate(timeout=10)
        assert process.returncode == 0 and f'stopped by {number.name}' in out, err
    project.run(*command, '--init_from=resume', '--max_iters=19')
    assert losses(project) == {step: loss for step, loss in reference[0].items() if step <= 19}


def test_two_processes_equal_one_and_one_goes_on(project, prepared):
    """Two gloo processes, at the same global batch, reach the losses of one; and one goes on where two stopped."""
    prepared.run('train.py', *SMALL, '--out_dir=out/one')
    one = {row['step']: row['loss'] for row in prepared.jsonl('out/one/log.jsonl')}
    project.run(*torchrun(2, '--standalone', 'train.py', *SMALL, '--max_iters=10'), OMP_NUM_THREADS='1')
    assert losses(project) == pytest.approx({step: one[step] for step in range(1, 11)}, abs=1e-4)
    project.run('train.py', *SMALL, '--init_from=resume')
    assert losses(project) == pytest.approx(one, abs=1e-4)


def test_two_nodes(project, prepared):
    """Two torchrun agents that meet on loopback, as on two machines; one sequence a process and no accumulation."""
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    small = [*SMALL, '--batch_size=2', '--gradient_accumulation_steps=1', '--max_iters=5']
    nodes = [project.start(*torchrun(1, '--nnodes=2', f'--node_rank={i}', '--master_addr=127.0.0.1', f'--master_port={port}', 'train.py', *small),
                           OMP_NUM_THREADS='1') for i in (0, 1)]
    for node in nodes:
        _, err = node.communicate(timeout=200)
        assert node.returncode == 0, err[-2000:]
    prepared.run('train.py', *small, '--out_dir=out/nodes')
    assert losses(project) == pytest.approx({row['step']: row['loss'] for row in prepared.jsonl('out/nodes/log.jsonl')}, abs=1e-4)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_mixed_precision_and_muon_learn(project, reference, dtype):
    command = ['train.py', *SMALL, f'--dtype={dtype}', '--optimizer=muon', '--gradient_accumulation_steps=1', '--eval_iters=1']
    project.run(*command, '--max_iters=10')
    assert losses(project)[10] < losses(project)[1] - 0.3
    project.run(*command, '--init_from=resume', '--max_iters=12')  # scaler and both optimizers come back
    assert len(losses(project)) == 12


def test_rates_warm_up_and_cool_down(project):
    """A plateau and a straight line to nothing, and for embedding and head a rate of their own."""
    project.run('train.py', *SMALL, '--optimizer=muon', '--cooldown=0.5', '--min_lr=0.0', '--tie_weights=False', '--embedding_lr=3e-2', '--muon_momentum=0.85',
                '--muon_ns_steps=3', '--log_interval=1')
    rates = [row['lr'] for row in project.jsonl('out/tiny/log.jsonl')]
    assert rates == pytest.approx([1e-2 * min((step + 1) / 3, 1, (20 - step) / 10) for step in range(20)])
    adamw, muon = (o['param_groups'] for o in torch.load(project.path / 'out/tiny/ckpt.pt', weights_only=True)['optimizer'])
    assert (muon[0]['momentum'], muon[0]['ns_steps'], muon[0]['lr']) == (0.85, 3, pytest.approx(1e-3))
    assert [group['lr'] for group in adamw] == pytest.approx([1e-3, 1e-3, 3e-3]) and [len(group['params']) for group in adamw] == [0, 5, 2]


@pytest.mark.parametrize('kind', [[], ['--dtype=float16'], ['--norm=layernorm', '--bias=True', '--position=learned', '--mlp=gelu']])
def test_bigrams_first(project, prepared, kind):
    """Embedding and head begin as a model of which token follows which, nearly as good as the counts themselves, on any number of processes."""
    options = [*SMALL, '--tie_weights=False', '--bigram_steps=60', '--learning_rate=0.0', '--eval_iters=0', '--max_iters=1', '--eval_interval=1', *kind]
    project.run('train.py', *options)
    train, val = (np.fromfile(project.path / f'data/tiny/{split}.bin', '<u2').astype(np.int64) for split in ('train', 'val'))
    size = project.json('data/tiny/meta.json')['vocab_size']
    counts = np.bincount(train[:-1] * size + train[1:], minlength=size**2).reshape(size, size) + 0.1  # for pairs that only val has
    counted = -np.log((counts / counts.sum(1, keepdims=True))[val[:-1], val[1:]]).mean()
    begun = project.jsonl('out/tiny/log.jsonl')[-1]['val_loss']
    assert counted - 0.3 < begun < counted + 0.3 < math.log(size) - 1
    if not kind:
        prepared.run(*torchrun(2, '--standalone', 'train.py', *options, '--out_dir=out/bigrams'), OMP_NUM_THREADS='1')
        assert prepared.jsonl('out/bigrams/log.jsonl')[-1]['val_loss'] == pytest.approx(begun, abs=1e-3)
        project.run('train.py', *options, '--init_from=resume', '--max_iters=2', '--embedding_lr=1e-3')  # nothing is learned twice, and the key may change
        assert project.jsonl('out/tiny/log.jsonl')[-1]['val_loss'] < begun + 0.1
        assert 'undo' in project.refuses('train.py', *options, '--out_dir=out/other', '--init_from=out/tiny')
        assert 'goes before' in project.refuses('train.py', *options, '--out_dir=out/other', '--tie_weights=True')


def spoil(project, when, what):
    """Have train.py meet a bad loss, and its gradient, at some steps."""
    path = project.path / 'train.py'
    code, line = path.read_text(encoding='utf-8'), '        scaler.scale(loss).backward()\n'
    assert code.count(line) == 1
    path.write_text(code.replace(line, f'        if {when}:\n            loss = loss * {what}\n{line}'), encoding='utf-8')


@pytest.mark.parametrize('what, says', [("float('nan')", 'the loss is nan'), ('1e30', 'the loss is'), ('5', 'of late it was')])
def test_a_bad_step_ends_the_run_at_once(project, what, says):
    spoil(project, 'step == 117', what)
    again = []
    if what == '5':  # a run that goes on knows the losses before
        project.run('train.py', *SMALL, '--max_iters=100', '--eval_interval=100')
        again = ['--init_from=resume']
    line = project.refuses('train.py', *SMALL, '--max_iters=150', '--eval_interval=100', *again)
    assert says in line and 'at step 117' in line
    checkpoint = torch.load(project.path / 'out/tiny/ckpt.pt', weights_only=True)
    assert checkpoint['step'] == 100 and all(p.isfinite().all() for p in checkpoint['model'].values())


def test_bad_steps_are_passed_over(project):
    spoil(project, 'step in (3, 7, 8)', "float('nan')")
    assert 'done at step 20, 3 steps skipped' in project.run('train.py', *SMALL, '--max_iters=20', '--skip_nan=True')
    assert project.jsonl('out/tiny/log.jsonl')[-1]['skipped'] == 3
    checkpoint = torch.load(project.path / 'out/tiny/ckpt.pt', weights_only=True)
    assert all(p.isfinite().all() for p in checkpoint['model'].values())


def test_nothing_but_bad_steps_ends_the_run(project):
    spoil(project, 'step > 5', "float('nan')")
    assert 'at step 106' in project.refuses('train.py', *SMALL, '--max_iters=200', '--skip_nan=True')


def test_stops_when_told(project):
    out = project.run('train.py', *SMALL, '--max_minutes=0.0001')
    assert 'stopped by max_minutes at step 1' in out
    assert (project.path / 'out/tiny/best.pt').exists()
    out = project.run('train.py', *SMALL, '--init_from=resume', '--stop_at_val_loss=100.0')
    assert 'stopped by stop_at_val_loss at step 10' in out
    assert 'perplexity' in project.run('train.py', *SMALL, '--init_from=resume', '--eval_only=True')


def test_starts_from_another_model(project, tmp_path):
    """A Hugging Face folder, with its tokenizer kept whole, goes on training; with another tokenizer it is refused."""
    import transformers

    from tokenizer import load as load_tokenizer
    from tokenizer import train as train_tokenizer
    folder = tmp_path / 'hf'
    tokenizer = load_tokenizer(str(project.path / 'data/tiny/tokenizer.json'))
    config = transformers.GPT2Config(vocab_size=tokenizer.vocab_size, n_embd=32, n_layer=2, n_head=2, n_positions=128)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save(str(folder))
    project.run('train.py', *SMALL, f'--init_from={folder}')
    assert losses(project)[20] < losses(project)[1] - 0.5
    assert load(str(project.path / 'out/tiny'))[0].args['position'] == 'learned'
    train_tokenizer(['एक दूसरी कहानी'] * 9, 270).save(str(folder))
    assert '--trim=False' in project.refuses('train.py', *SMALL, f'--init_from={folder}', '--out_dir=out/other')


def test_wandb_offline(project):
    pytest.importorskip('wandb')
    project.run('train.py', *SMALL, '--max_iters=5', '--wandb_log=True', '--wandb_run_name=a name', WANDB_MODE='offline', WANDB_SILENT='true')
    runs = list((project.path / 'wandb').glob('offline-run-*/*.wandb'))
    assert len(runs) == 1
    assert b'bits_per_byte' in runs[0].read_bytes() and b'gradient_accumulation_steps' in runs[0].read_bytes()


def broken(change):
    """A change to data/tiny/meta.json."""
    import json

    def apply(project):
        path = project.path / 'data/tiny/meta.json'
        meta = json.loads(path.read_text(encoding='utf-8'))
        change(meta)
        path.write_text(json.dumps(meta), encoding='utf-8')
    return apply


def no_val(project):
    (project.path / 'data/tiny/val.bin').write_bytes(b'')
    broken(lambda meta: (meta['tokens'].update(val=0), meta['stories'].update(val=0)))(project)


def a_checkpoint(project):
    shutil.copytree(project.reference, project.path / 'out/tiny')


def other_stories(project):
    a_checkpoint(project)
    project.run('prepare.py', '--source=data/tiny/stories.jsonl', '--dataset=tiny', '--tokenizer=data/tiny/tokenizer.json', '--trim=False',
                '--val_fraction=0.1')


def garbage_checkpoint(project):
    (project.path / 'out/tiny').mkdir(parents=True)
    (project.path / 'out/tiny/ckpt.pt').write_bytes(b'not a checkpoint')


@pytest.mark.parametrize('before, arguments, said', [
    (None, ['--dataset=nothing'], 'prepare it first'),
    (lambda project: (project.path / 'data/tiny/val.bin').unlink(), [], 'prepare it first'),
    (lambda project: (project.path / 'data/tiny/train.bin').write_bytes(b'\0' * 99), [], 'not as long as meta.json says'),
    (no_val, [], '--val_fraction'),
    (None, ['--batch_size=4096'], 'lower batch_size'),
    (None, ['--init_from=resume'], 'train first'),
    (a_checkpoint, ['--init_from=resume', '--n_embd=64'], 'n_embd 32, here 64'),
    (a_checkpoint, [], '--init_from=resume goes on'),
    (a_checkpoint, ['--init_from=out/tiny'], '--init_from=resume goes on'),
    (other_stories, ['--init_from=resume'], 'tokens in train.bin, here'),
    (garbage_checkpoint, ['--init_from=resume'], 'not a checkpoint'),
    (None, ['--init_from=no/such/place'], 'no checkpoint'),
    (None, ['--learning_rate=1e30', '--grad_clip=0.0', '--decay_lr=False'], 'lower'),
    (None, ['--n_head=3'], 'multiple of n_head'),
    (None, ['--optimizer=sgd'], "'adamw' or 'muon'"),
    (None, ['--dtype=int8'], 'float32'),
    (None, ['--device=cuda'], 'no CUDA') if not torch.cuda.is_available() else (None, ['--device=tpu'], 'tpu'),
    (None, ['--batch_size=0'], 'from 1'),
    (None, ['--batchsize=8'], "did you mean 'batch_size'"),
])
def test_refusals(project, reference, before, arguments, said):
    if before:
        before(project)
    assert said.lower() in project.refuses('train.py', *SMALL, *arguments).lower()


def test_what_is_wrong_with_settings_or_data_is_said_before_torch_is_there(project):
    (project.path / 'torch.py').write_text('raise RuntimeError', encoding='utf-8')
    assert 'it is a number from 0' in project.refuses('train.py', *SMALL, '--dropout=1')
    assert 'prepare it first' in project.refuses('train.py', *SMALL, '--dataset=none')
