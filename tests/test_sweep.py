"""sweep.py: settings trained, sampled and evaluated in turn, into one table; what is done is not done again."""

import shutil
import signal
import time

import pytest

TINY = ('sweep.py', 'config/sweep_hindi.py', '--out_dir=out/sweep', '--train_config=', '--start=रवि', '--num_samples=3', '--evaluate_config=',
        "--train_options={'dataset': 'tiny', 'max_iters': 6, 'eval_interval': 3, 'batch_size': 4, 'block_size': 64, 'warmup_iters': 1, 'device': 'cpu'}",
        "--sample_options={'max_new_tokens': 30}", "--evaluate_options={'train_stories': 'data/tiny/stories.jsonl', 'loss_tokens': 4000}")
SETTINGS = "--settings=[{'n_embd': 32, 'n_layer': 1, 'n_head': 2}, {'n_embd': 16, 'n_layer': 2, 'n_head': 2}]"


@pytest.fixture
def swept(project, prepared):
    shutil.copytree(prepared.path / 'data' / 'tiny', project.path / 'data' / 'tiny')
    return project


def test_a_sweep(swept):
    text = swept.run(*TINY, SETTINGS)
    assert text.count('--- n_embd=') == 6 and '2 of 2 settings are in out/sweep' in text
    rows = swept.json('out/sweep/results.json')['rows']
    assert [(row['n_embd'], row['n_layer']) for row in rows] == [(16, 2), (32, 1)] and rows[0]['n_params'] < rows[1]['n_params']
    assert all(0 < row['val_loss'] < 8 and row['train_tokens'] == 6 * 4 * 64 and row['text']['words']['n'] == 3 for row in rows)
    table = [line for line in (swept.path / 'out/sweep/results.md').read_text(encoding='utf-8').splitlines() if line.startswith('|')]
    assert len(table) == 4 and f'{rows[0]["val_loss"]:.3f}' in table[2]
    assert (swept.path / 'out/sweep/results.png').read_bytes().startswith(b'\x89PNG')
    done = swept.json('out/sweep/n_embd=32_n_layer=1_n_head=2/done.json')  # what was asked for, whatever python and however many processes do it
    assert {command[0] for command in done.values()} == {'train.py', 'sample.py', 'evaluate.py'}

    again = swept.run(*TINY, SETTINGS)  # nothing is left to do
    assert '--- n_embd=' not in again and '2 of 2 settings' in again
    other = swept.start(*TINY[:-3], TINY[-3].replace("'batch_size': 4", "'batch_size': 2"), *TINY[-2:], SETTINGS)
    assert other.communicate()[1].count('holds a training with other options') == 2 and other.returncode == 1
    more = swept.run(*TINY[:-1], TINY[-1].replace('4000', '5000'), SETTINGS.replace('16', '8'))  # a new model, and another option of the last stage
    assert more.count('train.py') == more.count('sample.py') == 1 and more.count('evaluate.py ') == 2
    assert [row['n_embd'] for row in swept.json('out/sweep/results.json')['rows']] == [8, 32]


def test_one_that_fails_does_not_stop_the_others(swept):
    line = swept.start(*TINY, "--settings=[{'n_embd': 15, 'n_head': 2, 'n_layer': 1}, {'n_embd': 16, 'n_layer': 1, 'n_head': 2}]")
    out, err = line.communicate(timeout=200)
    assert line.returncode == 1 and '1 of 2 settings are in' in out
    assert err.rstrip().split('\n')[-1].startswith('sweep.py: not done: n_embd=15_n_head=2_n_layer=1 (train, status 1)')


def test_stopped_in_training_it_goes_on(swept):
    command = (*TINY[:-3], TINY[-3].replace("'max_iters': 6", "'max_iters': 60"), *TINY[-2:], "--settings=[{'n_embd': 32, 'n_layer': 2, 'n_head': 2}]")
    process = swept.start(*command)
    log = swept.path / 'out/sweep/n_embd=32_n_layer=2_n_head=2/log.jsonl'
    while process.poll() is None and not (log.exists() and log.read_text().count('val_loss') > 1):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 1 and 'stopped; the same command goes on' in err and 'sample.py' not in out
    text = swept.run(*command)
    assert text.count('train.py') == text.count('sample.py') == 1 and '1 of 1 settings' in text
    steps = [row['step'] for row in swept.jsonl(log) if 'val_loss' in row]
    assert steps == sorted(set(steps)) and steps[-1] == 60


@pytest.mark.parametrize('options, says', [
    (['--settings=[]'], 'settings is a list'), (["--settings=['a']"], 'settings is a list'), (["--settings=[{'out_dir': 'x'}]"], 'out_dir and init_from'),
    (["--settings=[{'n_layer': 1}, {'n_layer': 1}]"], 'two settings are the same')])
def test_refusals(project, options, says):
    assert says in project.refuses(*TINY, *options)
