"""A few of the faults of chaos.py for the scripts; damaged checkpoints and damaged data."""

import json
import random
import shutil

import chaos
import pytest
import torch
from conftest import Project

from files import load_dataset
from model import GPT, GPTConfig, load_checkpoint, save_checkpoint


@pytest.fixture(scope='module')
def stages(tmp_path_factory):
    servers = {}
    yield chaos.make_stages(tmp_path_factory.mktemp('chaos'), 1, servers)
    for server in servers.values():
        server.process.kill()


# `make chaos` runs every fault for every script; kills of the scripts that are missing here are in their own tests
@pytest.mark.slow
@pytest.mark.parametrize('fault, name', [
    (chaos.kill, 'prepare'), (chaos.kill, 'sample'), (chaos.kill, 'export'), (chaos.kill, 'evaluate'),
    (chaos.kill_worker, 'train, torchrun with restarts'),
    (chaos.terminate, 'generate, grammar'), (chaos.terminate, 'sample'),
    (chaos.fill_disk, 'generate, chat API'), (chaos.fill_disk, 'train'),
    (chaos.make_read_only, 'generate, grammar'), (chaos.make_read_only, 'prepare'),
    (chaos.run_twice, 'generate, grammar'), (chaos.run_twice, 'train'), (chaos.run_twice, 'sample')])
def test_nothing_is_lost(stages, fault, name):
    try:
        _, lost, wrong = chaos.repeat(fault, stages[name], 1, random.Random(1))
    except chaos.Unmountable as e:
        pytest.skip(str(e))
    assert (lost, wrong) == (0, 0)


# -----------------------------------------------------------------------------
# damaged files


@pytest.fixture
def checkpoint_file(tmp_path):
    """best.pt of a small model."""
    model = GPT(GPTConfig(vocab_size=50, block_size=16, n_layer=1, n_head=2, n_embd=16))
    save_checkpoint(tmp_path / 'best.pt', {'model': model.state_dict(), 'step': 5, 'config': {'dataset': 'tiny'}})
    return tmp_path / 'best.pt'


def test_a_flipped_bit_in_a_checkpoint_is_found_or_harmless(checkpoint_file):
    original = load_checkpoint(checkpoint_file)
    data = bytearray(checkpoint_file.read_bytes())
    rng = random.Random(1)
    refused = 0
    for _ in range(200):
        place = rng.randrange(len(data))
        bit = 1 << rng.randrange(8)
        data[place] ^= bit
        checkpoint_file.write_bytes(data)
        data[place] ^= bit
        try:
            found = load_checkpoint(checkpoint_file)
        except SystemExit as e:
            assert str(checkpoint_file) in str(e)
            refused += 1
            continue
        assert str(found) == str(original)
        assert all(torch.equal(weight, original['model'][name]) for name, weight in found['model'].items())
    assert refused > 50


def test_a_truncated_checkpoint_is_refused_and_the_other_one_named(checkpoint_file):
    data = checkpoint_file.read_bytes()
    shutil.copy(checkpoint_file, checkpoint_file.with_name('ckpt.pt'))
    for length in (0, 1, len(data) // 2, len(data) - 1):
        checkpoint_file.write_bytes(data[:length])
        with pytest.raises(SystemExit, match=r'best\.pt cannot be loaded .* there is also .*ckpt\.pt'):
            load_checkpoint(checkpoint_file)


@pytest.mark.parametrize('file, damage, message', [
    ('meta.json', lambda data: data[:200], 'damaged'),
    ('meta.json', lambda data: b'', 'damaged'),
    ('meta.json', lambda data: b'[]', 'damaged'),
    ('meta.json', lambda data: json.dumps(json.loads(data) | {'eos': None}).encode(), 'damaged'),
    ('meta.json', lambda data: json.dumps(json.loads(data) | {'tokens': {'train': 9}}).encode(), 'damaged'),
    ('meta.json', lambda data: json.dumps(json.loads(data) | {'vocab_size': 900}).encode(), 'do not belong together'),
    ('train.bin', lambda data: data[:-1], 'length'),
    ('train.bin', lambda data: b'', 'length'),
    ('val.bin', lambda data: data[:-2], 'length'),
    ('val.bin', lambda data: b'\xff' * len(data), 'do not belong together'),
    ('tokenizer.json', lambda data: data[:999], r'tokenizer\.json cannot be read'),
    ('tokenizer.json', lambda data: b'', r'tokenizer\.json cannot be read')])
def test_damaged_data_is_refused(prepared, tmp_path, file, damage, message):
    folder = tmp_path / 'tiny'
    shutil.copytree(prepared.path / 'data/tiny', folder)
    data = (folder / file).read_bytes()
    (folder / file).write_bytes(damage(data))
    with pytest.raises(SystemExit, match=message):
        load_dataset(folder)


@pytest.mark.slow
def test_a_run_continues_from_best_pt_when_ckpt_pt_is_damaged_and_after_a_kill(tmp_path, prepared):
    project = Project(tmp_path)
    shutil.copytree(prepared.path / 'data/tiny', tmp_path / 'data/tiny')
    train = ['train.py', *chaos.SMALL, '--out_dir=out']
    project.run(*train, '--max_iters=5')
    folder = tmp_path / 'out'
    (folder / 'ckpt.pt').write_bytes(b'')
    line = project.refuses(*train, '--init_from=resume')
    assert 'out/ckpt.pt cannot be loaded' in line and 'out/best.pt' in line
    shutil.copy(folder / 'best.pt', folder / 'ckpt.pt')

    # files that a kill leaves
    (folder / 'ckpt.pt.lock').touch()
    (folder / 'log.tmp1234.jsonl').write_text('{"step": 1', encoding='utf-8')
    project.run(*train, '--init_from=resume', '--max_iters=10')
    assert [row['step'] for row in project.jsonl('out/log.jsonl')] == list(range(1, 11))
