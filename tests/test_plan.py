"""train.py --plan=True: what it prints, and how near its formulas and its time are to the truth."""

import re
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import PROJECT

import plan
from model import GPT, GPTConfig

SMALL = ['--dataset=tiny', '--out_dir=out/tiny', '--device=cpu', '--dtype=float32', '--n_layer=2', '--n_head=2',
         '--n_embd=64', '--block_size=64', '--batch_size=8', '--gradient_accumulation_steps=2', '--max_iters=100',
         '--eval_interval=50', '--log_interval=1']


@pytest.fixture
def project(project, prepared):
    shutil.copytree(prepared.path / 'data/tiny', project.path / 'data/tiny')
    return project


def test_the_plan_of_a_run(project):
    out = project.run('train.py', *SMALL, '--plan=True', '--gpu_price=3600', '--budget_minutes=3')
    assert not (project.path / 'out').exists()  # nothing is trained, nothing is written
    tokens = project.json('data/tiny/meta.json')['tokens']['train']
    vocab_size = project.json('data/tiny/meta.json')['vocab_size']
    model = GPT(GPTConfig(vocab_size=vocab_size, n_layer=2, n_head=2, n_embd=64, block_size=64))
    parameters = f'parameters: {model.n_params():,} (embedding {64 * vocab_size:,}, blocks '
    assert parameters in out and 'head 0)' in out
    assert f'{tokens:,} in an epoch, {100 * 16 * 64:,} in all, 1,024 in a step' in out
    assert re.search(r'memory, estimated: .* for 8 sequences at once', out)
    assert re.search(r'time here: [\d.]+ \w+: 100 steps of [\d.]+ s, 2 evaluations of', out)
    assert 'budget_minutes ends the run after at most 3.0 minutes' in out
    for gpu in ('T4', 'A100', 'H100'):
        seconds, dollars = re.search(rf'one {gpu}, estimated: ([\d.]+) seconds, \$([\d.]+)', out).groups()
        assert float(dollars) == pytest.approx(float(seconds), abs=0.1)


def test_a_plan_is_made_beside_a_run_and_for_another_model(project):
    project.run('train.py', *SMALL, '--max_iters=2', '--eval_iters=1')
    before = {path.name: path.read_bytes() for path in (project.path / 'out/tiny').iterdir()}
    muon = ['--optimizer=muon', '--tie_weights=False', '--bigram_steps=40']
    for more in (['--seed=1'], ['--init_from=resume'], muon):
        out = project.run('train.py', *SMALL, *more, '--plan=True')
        assert f' {98 if "resume" in more[0] else 100} steps of' in out and 'dollars' not in out
    assert before == {path.name: path.read_bytes() for path in (project.path / 'out/tiny').iterdir()}


@pytest.mark.parametrize('error, settings', [
    (0.05, {'norm': 'layernorm', 'position': 'learned', 'mlp': 'gelu'}), (0.3, {}), (0.3, {'mlp': 'relu2'}),
    (0.3, {'n_kv_head': 1})])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_activations_are_those_that_autograd_keeps(monkeypatch, dtype, error, settings):
    """PyTorch's RMSNorm on a CPU keeps a little more than the one on a GPU."""
    monkeypatch.setattr('model.cpu_kernels', None)
    kept = []
    for n_layer in (1, 3):
        model = GPT(GPTConfig(vocab_size=300, block_size=64, n_layer=n_layer, n_head=4, n_embd=96, **settings))
        weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
        sizes, tensors = {}, []

        def pack(tensor, weights=weights, sizes=sizes, tensors=tensors):
            address = tensor.untyped_storage().data_ptr()
            if address not in weights:
                sizes[address] = tensor.untyped_storage().nbytes()
                tensors.append(tensor)
            return tensor
        ids = torch.randint(300, (2, 64))
        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        with hooks, torch.autocast('cpu', getattr(torch, dtype), enabled=dtype != 'float32'):
            model(ids, ids)
        copies = 0  # autocast's, of the matrices
        if dtype != 'float32':
            copies = sum(2 * p.numel() for p in model.blocks.parameters() if p.dim() == 2)
        kept.append((sum(sizes.values()) - copies) / 128)
    configs = [GPTConfig(vocab_size=300, block_size=64, n_layer=n, n_head=4, n_embd=96, **settings) for n in (1, 3)]
    planned = [plan.activation_bytes(config, dtype) for config in configs]
    assert planned[1] - planned[0] == pytest.approx(kept[1] - kept[0], rel=error)


def test_a_chunk_of_logits_is_as_large_as_on_its_device():
    config = GPTConfig(vocab_size=2**16, block_size=64, n_layer=1, n_head=2, n_embd=64)
    for device, rows in (('cpu', 256), ('mps', 256), ('cuda:0', 4096)):
        head = 4 * 2**16 * config.n_embd
        assert plan.logit_bytes(config, device, 'bfloat16', 2**15) == rows * 2**16 * 12 + head
        assert plan.logit_bytes(config, device, 'float32', 2**15) == rows * 2**16 * 16 + head


@pytest.mark.slow
def test_the_time_here_is_near_the_truth(project):
    """Within a factor of two on a busy machine; docs/RESULTS.md has what it is on a quiet one."""
    out = project.run('train.py', *SMALL, '--plan=True')
    step = float(re.search(r'steps of ([\d.]+) s', out)[1])
    project.run('train.py', *SMALL, '--eval_iters=1')
    log = project.jsonl('out/tiny/log.jsonl')
    steps = sorted(1024 / row['tokens_per_s'] for row in log[10:])
    assert step / 2 < steps[len(steps) // 2] < 2 * step


def test_gpu_check_without_a_gpu():
    result = subprocess.run([sys.executable, PROJECT / 'tests/gpu_check.py'], capture_output=True, text=True)
    assert result.returncode == 1 and result.stderr.startswith('gpu_check.py: torch finds no GPU')
