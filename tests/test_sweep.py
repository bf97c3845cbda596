"""sweep.py trains, samples and evaluates settings into one table; finished commands do not run again."""

import shutil
import signal
import time

import pytest

TRAIN = {'dataset': 'tiny', 'max_iters': 6, 'eval_interval': 3, 'batch_size': 4, 'block_size': 64, 'device': 'cpu'}
SMALL = {'n_embd': 16, 'n_layer': 2, 'n_head': 2}
LARGE = {'n_embd': 32, 'n_layer': 1, 'n_head': 2}


def command(settings, train_options=TRAIN, loss_tokens=4000, **evaluate_options):
    evaluate_options |= {'train_stories': 'data/tiny/stories.jsonl', 'loss_tokens': loss_tokens}
    return [
        'sweep.py', '--out_dir=out/sweep', '--train_config=', '--start=रवि', '--num_samples=3', '--evaluate_config=',
        f'--settings={settings}', f'--train_options={train_options}', "--sample_options={'max_new_tokens': 30}",
        f'--evaluate_options={evaluate_options}']


@pytest.fixture
def swept(project, prepared):
    shutil.copytree(prepared.path / 'data/tiny', project.path / 'data/tiny')
    return project


def test_a_sweep(swept):
    text = swept.run(*command([LARGE]))
    assert text.count('--- n_embd=32') == 3 and '1 of 1 settings are in out/sweep' in text
    assert swept.json('out/sweep/results.json')['rows'][0]['train_tokens'] == 6 * 4 * 64
    assert '| --- |' in (swept.path / 'out/sweep/results.md').read_text(encoding='utf-8')
    assert (swept.path / 'out/sweep/results.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.slow
def test_only_what_changed_runs_again(swept):
    text = swept.run(*command([LARGE, SMALL]))
    assert text.count('--- n_embd=') == 6
    rows = swept.json('out/sweep/results.json')['rows']
    assert [row['n_embd'] for row in rows] == [16, 32]  # by the number of parameters
    assert f'{rows[0]["val_loss"]:.3f}' in (swept.path / 'out/sweep/results.md').read_text(encoding='utf-8')

    assert '--- n_embd=' not in swept.run(*command([LARGE, SMALL]))
    text = swept.run(*command([LARGE, SMALL | {'n_embd': 8}], loss_tokens=5000))  # a new model, and another evaluation
    assert [text.count(f': {script}') for script in ('train.py', 'sample.py', 'evaluate.py')] == [1, 1, 2]
    line = swept.start(*command([LARGE], TRAIN | {'batch_size': 2})).communicate()[1]
    assert 'has a training with other options' in line
    path = swept.path / 'out/sweep/n_embd=32_n_layer=1_n_head=2/done.json'
    for damage in (b'', path.read_bytes()[:-9], b'\xff\xfe', b'[3]'):
        path.write_bytes(damage)
        assert 'done.json is damaged; remove out/sweep/n_embd=32' in swept.refuses(*command([LARGE]), status=1)


@pytest.mark.slow
def test_a_failed_setting_does_not_stop_the_others(swept):
    process = swept.start(*command([LARGE | {'n_embd': 15}, SMALL]))
    out, err = process.communicate()
    assert process.returncode == 1 and '1 of 2 settings are in' in out
    assert 'sweep.py: not done: n_embd=15_n_layer=1_n_head=2 (train, status 2)' in err


@pytest.mark.slow
def test_it_continues_after_a_stop(swept):
    long = command([SMALL], TRAIN | {'max_iters': 60})
    process = swept.start(*long)
    log = swept.path / 'out/sweep/n_embd=16_n_layer=2_n_head=2/log.jsonl'
    while process.poll() is None and not (log.exists() and log.read_text().count('val_loss') > 1):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate()
    assert process.returncode == 1 and 'stopped; the same command continues' in err and 'sample.py' not in out
    text = swept.run(*long)
    assert text.count(': train.py') == text.count(': sample.py') == 1 and '1 of 1 settings' in text
    steps = [row['step'] for row in swept.jsonl(log) if 'val_loss' in row]
    assert steps == sorted(set(steps)) and steps[-1] == 60


@pytest.mark.slow
def test_tokenizers_and_the_exam(swept):
    """The data are prepared once for each tokenizer. Losses are compared per byte."""
    known = {'tokenizer': 'data/tiny/tokenizer.json'}
    settings = [SMALL | {'tokenizer': 'train'}, LARGE | {'tokenizer': 'train'}, SMALL | known]
    options = {'source': 'data/tiny/stories.jsonl', 'dataset': 'swept', 'vocab_size': 500}
    line = [*command(settings, exam=True, language='hindi'), f'--prepare_options={options}']
    assert swept.run(*line).count(': prepare.py') == 2
    assert swept.json('data/swept_train/meta.json')['vocab_size'] == 500
    assert (swept.path / 'data/swept_data-tiny-tokenizer.json/train.bin').exists()
    rows = swept.json('out/sweep/results.json')['rows']
    assert [row['setting']['tokenizer'] for row in rows] == ['train', 'data/tiny/tokenizer.json', 'train']
    for row in rows:
        assert 0.3 < row['exam']['exam (hindi)']['mean'] < 0.7
    head, _, *lines = (swept.path / 'out/sweep/results.md').read_text(encoding='utf-8').split('| width')[1].splitlines()
    assert 'tokenizer' in head and 'bits_per_byte' in head and 'exam (hindi)' in head
    assert all(' %' in line for line in lines[:3])
    assert ': ' not in swept.run(*line).split('| width')[0]  # nothing runs again


def test_no_settings(project):
    assert 'settings is empty' in project.refuses('sweep.py', status=2)
