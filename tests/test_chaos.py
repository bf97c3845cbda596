"""The faults of chaos.py, a few of each; damaged checkpoints and bins; how a training of several processes ends and goes on."""

import json
import random
import shutil
import signal

import chaos
import pytest
import torch
from conftest import Project

import jsonl
from checkpoint import load_checkpoint

NAMES = ['prepare', 'sample', 'export', 'evaluate']  # the others: test_generate.py, test_chat.py, test_translate.py, test_train.py; all of them: make chaos


@pytest.fixture(scope='module')
def stages(tmp_path_factory):
    servers = {}
    yield chaos.make_stages(tmp_path_factory.mktemp('chaos'), 1, servers)
    for server in servers.values():
        server.process.kill()
        server.process.wait()
        server.process.stdout.close()


def survives(test, stage, n):
    try:
        tried, lost, wrong, _ = test(stage, n, random.Random(1))
    except chaos.Unmountable as e:
        pytest.skip(str(e))
    assert (tried, lost, wrong) == (n, 0, 0)


@pytest.mark.parametrize('name', NAMES)
def test_killed_it_loses_nothing(stages, name):
    survives(chaos.kills, stages[name], 1)


@pytest.mark.parametrize('name', ['generate, grammar', 'sample'])  # train: test_train.py; the others: test_chat.py
def test_sigterm(stages, name):
    survives(chaos.sigterms, stages[name], 1)


@pytest.mark.parametrize('name', ['generate, chat API', 'train'])
def test_full_disk(stages, name):
    survives(chaos.full_disks, stages[name], 1)


@pytest.mark.parametrize('name', ['generate, grammar', 'prepare'])
def test_read_only_folder(stages, name):
    survives(chaos.read_only, stages[name], 1)


@pytest.mark.parametrize('name', ['generate, grammar', 'train', 'sample'])
def test_two_runs_at_once(stages, name):
    survives(chaos.two_at_once, stages[name], 1)


def test_a_process_of_torchrun_dies(stages):
    """Without --max-restarts and with; test_train.py has another number of processes go on."""
    survives(chaos.dead_processes, stages['train'], 2)


# -----------------------------------------------------------------------------
# damaged files

def test_a_flipped_bit_in_a_checkpoint_is_found(stages, tmp_path, capsys):
    """Wherever it is: the checkpoint is refused, or all in it is as it was."""
    stage = stages['train']
    whole = load_checkpoint(stage.project.path / 'out/model/best.pt')
    data = (stage.project.path / 'out/model/best.pt').read_bytes()
    rng, path = random.Random(1), tmp_path / 'ckpt.pt'
    refused = 0
    for _ in range(200):
        place = rng.randrange(len(data))
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1:])
        try:
            found = load_checkpoint(path)
        except SystemExit as e:
            assert str(path) in str(e)
            refused += 1
            continue
        assert str(found) == str(whole), place
        assert all(torch.equal(weight, whole['model'][name]) for name, weight in found['model'].items()), place
    assert refused > 150
    for _ in range(20):
        path.write_bytes(data[:rng.randrange(len(data))])
        with pytest.raises(SystemExit, match='not a checkpoint that can be read'):
            load_checkpoint(path)


@pytest.fixture
def trained(stages, tmp_path):
    """A project of one test, with bins and a short training in out/model."""
    project = Project(tmp_path)
    for folder in ('data/tiny', 'out/model'):
        shutil.copytree(stages['train'].project.path / folder, tmp_path / folder)
    return project


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_damaged_checkpoint_is_named_and_the_other_one_goes_on(trained):
    folder = trained.path / 'out/model'
    resume = ['train.py', *chaos.SMALL, '--out_dir=out/model', '--init_from=resume', '--max_iters=10']
    flip(folder / 'ckpt.pt')
    line = trained.refuses(*resume)
    assert line.startswith('train.py: out/model/ckpt.pt: not a checkpoint') and 'out/model/best.pt, of step 5 and whole' in line
    shutil.copy(folder / 'best.pt', folder / 'ckpt.pt')  # as the line says
    assert 'done at step 10' in trained.run(*resume)
    assert [row['step'] for row in trained.jsonl('out/model/log.jsonl')] == list(range(1, 11))

    flip(folder / 'best.pt')
    line = trained.refuses('sample.py', '--out_dir=out/model')
    assert 'out/model/best.pt: not a checkpoint' in line and 'there is also out/model/ckpt.pt' in line
    (folder / 'ckpt.pt').write_bytes(b'')
    line = trained.refuses(*resume)
    assert 'out/model/ckpt.pt: not a checkpoint' in line and 'best.pt, which is damaged too' in line


def meta(change):
    def apply(folder):
        values = json.loads((folder / 'meta.json').read_text(encoding='utf-8'))
        change(values)
        (folder / 'meta.json').write_text(json.dumps(values), encoding='utf-8')
    return apply


@pytest.mark.parametrize('damage, said', [
    (lambda folder: (folder / 'meta.json').write_bytes((folder / 'meta.json').read_bytes()[:200]), 'meta.json is torn'),
    (lambda folder: (folder / 'meta.json').write_bytes(b''), 'meta.json is torn'),
    (lambda folder: (folder / 'meta.json').write_bytes(b'[]'), 'meta.json is torn'),
    (meta(lambda values: values.pop('eos')), "'eos'"),
    (meta(lambda values: values['tokens'].pop('val')), "'val'"),
    (meta(lambda values: values['tokens'].update(train='many')), 'should be a number'),
    (meta(lambda values: values.update(vocab_size=900)), 'do not belong together'),
    (lambda folder: (folder / 'train.bin').write_bytes((folder / 'train.bin').read_bytes()[:-1]), 'train.bin is not as long'),
    (lambda folder: (folder / 'train.bin').write_bytes(b''), 'train.bin is not as long'),
    (lambda folder: (folder / 'val.bin').write_bytes((folder / 'val.bin').read_bytes()[:-2]), 'val.bin is not as long'),
    (lambda folder: (folder / 'val.bin').write_bytes(b'\xff' * (folder / 'val.bin').stat().st_size), 'val.bin and the tokenizer.json beside it'),
    (lambda folder: (folder / 'tokenizer.json').write_bytes((folder / 'tokenizer.json').read_bytes()[:999]), 'tokenizer.json: not a'),
    (lambda folder: (folder / 'tokenizer.json').write_bytes(b''), 'tokenizer.json: not a'),
])
def test_damaged_bins(trained, damage, said):
    damage(trained.path / 'data/tiny')
    assert said in trained.refuses('train.py', *chaos.SMALL, '--out_dir=out/new')
    assert not (trained.path / 'out/new/ckpt.pt').exists()


def test_bins_that_are_gone_are_not_shown(trained):
    (trained.path / 'data/tiny/train.bin').unlink()
    assert 'train.bin is missing' in trained.refuses('prepare.py', '--dataset=tiny', '--decode=5')


def test_what_a_kill_leaves_is_in_nobody_s_way(trained):
    """The lock and temporary files of a run that was killed as it began a log."""
    folder = trained.path / 'out/model'
    (folder / 'ckpt.pt.lock').touch()
    (folder / 'log.tmp.jsonl').write_text('{"step": 1, "loss": 0.5}\n', encoding='utf-8')
    trained.run('train.py', *chaos.SMALL, '--out_dir=out/model', '--init_from=resume', '--max_iters=7')
    assert [row['step'] for row in trained.jsonl('out/model/log.jsonl')] == list(range(1, 8))
    assert {path.name for path in folder.iterdir()} == {'ckpt.pt', 'best.pt', 'log.jsonl', 'loss.png'}


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGKILL])
def test_a_claim_ends_with_its_owner(trained, number):
    code = f'import jsonl, os; jsonl.claim("a.bin"); print(len(os.listdir("."))); os.kill(os.getpid(), {int(number)})'
    process = trained.start('-c', code)
    process.communicate()
    assert process.returncode == -number and (trained.path / 'a.bin.lock').exists()
    trained.run('-c', 'import jsonl; jsonl.claim("a.bin")')
    assert not (trained.path / 'a.bin.lock').exists()


def test_only_one_of_many_holds_a_claim(trained):
    """Eight that come and go: what each wrote while it held the claim stands there by itself."""
    code = '''
import os, subprocess, sys
for _ in range(10):
    subprocess.run([sys.executable, '-c', """
import jsonl, os
jsonl.claim('a.bin')
os.close(os.open('held', os.O_CREAT | os.O_EXCL))
os.remove('held')
"""], stderr=open(f'err{os.getpid()}', 'a'))
'''
    for process in [trained.start('-c', code) for _ in range(4)]:
        process.communicate()
        assert process.returncode == 0
    said = ''.join(path.read_text(encoding='utf-8') for path in trained.path.glob('err*'))
    assert 'Error' not in said and set(said.splitlines()) <= {'a.bin is being written by another run'}


def test_a_claim_makes_its_folder_and_is_not_shared(tmp_path):
    jsonl.claim(tmp_path / 'a/b/c.bin')
    with pytest.raises(SystemExit, match=r'c\.bin is being written by another run'):
        jsonl.claim(tmp_path / 'a/b/c.bin')
