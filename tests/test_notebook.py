"""Scripts in a notebook kernel, by %run and pasted into a cell; and quickstart.ipynb as Colab and Kaggle run it."""

import json
import re
import shutil
import subprocess

import pytest
from conftest import PROJECT, TIMEOUT

import files

nbformat = pytest.importorskip('nbformat')
nbclient = pytest.importorskip('nbclient')
pytest.importorskip('ipykernel')


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ('CUDA_VISIBLE_DEVICES', 'MISTRAL_API_KEY', 'OPENAI_API_KEY'):
        monkeypatch.setenv(name, '')
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')


def execute(book, folder, **options):
    client = nbclient.NotebookClient(
        book, timeout=TIMEOUT, kernel_name='python3', resources={'metadata': {'path': str(folder)}}, **options)
    try:
        client.execute()
    except nbclient.exceptions.CellExecutionError:
        pass  # errors() has it
    return book


def outputs(book, cell_id=None):
    cells = [cell for cell in book.cells if cell.cell_type == 'code' and cell_id in (None, cell.id)]
    return [output for cell in cells for output in cell.outputs]


def text(book, cell_id=None):
    shown = ''
    for output in outputs(book, cell_id):
        shown += output.get('text', '') + str(output.get('data', {}).get('text/markdown', ''))
    return shown


def errors(book):
    return [output.traceback for output in outputs(book) if output.output_type == 'error']


# -----------------------------------------------------------------------------
# scripts in one kernel

REMEMBER = '''
import builtins, signal, subprocess, sys

def state():
    return [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), sys.excepthook, sys.argv]

state_before = state()
'''
UNCHANGED = 'state() == state_before and compile is builtins.compile and format is builtins.format'
LOCKABLE = "subprocess.run([sys.executable, 'lock_all.py']).returncode == 0"
LOCK_ALL = '''
import files, glob
for path in glob.glob('**/*.lock', recursive=True):
    files.lock(path.removesuffix('.lock'))
for path in glob.glob('**/*.jsonl', recursive=True):
    files.open_append(path)
'''


def run_cells(folder, *cells):
    """Run cells in one new kernel -> [(text that a cell showed, name of its error or '')].

    After each cell the kernel must be as it was before, and another process must be able to lock every file.
    """
    (folder / 'lock_all.py').write_text(LOCK_ALL)
    book = nbformat.v4.new_notebook()
    for cell in (REMEMBER, *cells):
        book.cells += [nbformat.v4.new_code_cell(code) for code in (cell, UNCHANGED, LOCKABLE)]
    execute(book, folder, allow_errors=True)
    results = []
    for cell, *checks in zip(book.cells[::3], book.cells[1::3], book.cells[2::3]):
        shown = ''.join(output.get('text', '') for output in cell.outputs)
        error = ''.join(output.ename for output in cell.outputs if output.output_type == 'error')
        results.append((shown, error))
        for checked in checks:
            value = checked.outputs[-1].get('data', {}).get('text/plain')
            assert value == 'True', (cell.source[-300:], shown, checked.outputs)
    return results[1:]


def run_commands(folder, runs):
    """For each (run, refused run, another run): all three in one kernel."""
    commands = [command for three in runs for command in three]
    results = run_cells(folder, *[f'%run {command}' for command in commands])
    errors = ['', 'SystemExit', ''] * len(runs)
    for command, (shown, error), expected in zip(commands, results, errors):
        assert error == expected, (command, shown)


GENERATE = 'generate_data.py --language=hindi --out=data/tiny/stories.jsonl --total=300'
PREPARE = 'prepare.py --source=data/tiny/stories.jsonl --dataset=tiny --vocab_size=300'
TRAIN = ('train.py --dataset=tiny --out_dir=out/tiny --device=cpu --n_layer=1 --n_head=2 --n_embd=16 --block_size=32 '
         '--batch_size=4 --eval_iters=1 --max_iters=2')
SAMPLE = 'sample.py --out_dir=out/tiny --max_new_tokens=9 --out=out/tiny/samples.jsonl'
EVALUATE = 'evaluate.py --samples=out/tiny/samples.jsonl'
EXPORT = 'export.py --out_dir=out/tiny --out=hf'


def test_scripts_run_again_and_again_in_one_kernel(project):
    run_commands(project.path, [
        (GENERATE, f'{GENERATE} --seed=2', f'{GENERATE} --total=310'),
        (PREPARE, f'{PREPARE} --vocab_size=5', PREPARE),
        (TRAIN, TRAIN, f'{TRAIN} --max_iters=4 --init_from=resume'),  # refused: the checkpoint exists
        (SAMPLE, f'{SAMPLE} --device=nonsense', f'{SAMPLE} --num_samples=3'),
        (EVALUATE, f'{EVALUATE} --repeat=-1.0', f'{EVALUATE} --train_stories=data/tiny/stories.jsonl'),
        (EXPORT, f'{EXPORT} --format=nonsense', EXPORT)])
    assert [row['step'] for row in project.jsonl('out/tiny/log.jsonl')] == [2, 4]
    assert len(project.jsonl('data/tiny/stories.jsonl')) == 310


@pytest.mark.slow
def test_the_other_scripts_too(project, prepared, chat_server):
    shutil.copytree(prepared.path / 'data/tiny', project.path / 'data/tiny')
    files.write_text(project.path / 's.jsonl', json.dumps({'id': 1, 'text': 'एक दिन रवि बाग में गया।'}) + '\n')
    url = chat_server(reply='{"translation": "X {prompt} Y"}').url
    translate = ('translate.py --source=s.jsonl --source_language=hindi --target_language=marathi --out=o.jsonl '
                 f'--base_url={url} --model=m --template={{text}}')
    bench = '''bench.py --stages="['prepare']" --repetitions=1'''
    sweep = '''sweep.py --settings="[{'n_layer': 1, 'n_head': 2, 'n_embd': 16}]" --out_dir=out/sweep --num_samples=1 \
--train_config= --evaluate_config= --start=रवि --train_options="{'dataset': 'tiny', 'batch_size': 4, 'max_iters': 2}"'''
    run_commands(project.path, [
        (translate, f'{translate} --target_language=french', translate),
        (bench, f'{bench} --device=nonsense', bench),
        (sweep, f'{sweep} --settings=[]', sweep)])


def paste(script, **settings):
    """The text of a cell: a script with settings added to its config block."""
    block, here, rest = (PROJECT / script).read_text(encoding='utf-8').partition('\nhere = ')
    for name, value in settings.items():
        block += f'\n{name} = {value!r}'
    return block + here + rest


@pytest.mark.slow
def test_pasted_scripts_run_again_and_again_in_one_kernel(project):
    train = {'dataset': 'tiny', 'out_dir': 'out/tiny', 'device': 'cpu', 'n_layer': 1, 'n_head': 2, 'n_embd': 16,
             'block_size': 32, 'batch_size': 4, 'eval_iters': 1, 'max_iters': 2}
    sample = {'out_dir': 'out/tiny', 'start': 'एक दिन', 'max_new_tokens': 9}
    evaluate = {'samples': 'data/tiny/stories.jsonl', 'out_dir': 'out/tiny'}
    results = run_cells(
        project.path,
        paste('generate_data.py', total=300, out='data/tiny/stories.jsonl'),
        paste('prepare.py', source='data/tiny/stories.jsonl', dataset='tiny', vocab_size=300),
        paste('train.py', **train),
        paste('train.py', **train),  # refused: the checkpoint exists
        paste('train.py', **train | {'max_iters': 4, 'init_from': 'resume'}),
        paste('sample.py', **sample),
        paste('sample.py', **sample, top_p=2.0),
        paste('sample.py', **sample),
        paste('evaluate.py', **evaluate),
        paste('evaluate.py', **evaluate))
    assert [error for _, error in results] == ['', '', '', 'SystemExit', '', '', 'SystemExit', '', '', '']
    assert 'एक दिन' in results[5][0] and 'एक दिन' in results[7][0]


# -----------------------------------------------------------------------------
# quickstart.ipynb

TINY = {'TOTAL': 300, 'VOCAB_SIZE': 512, 'N_PROMPTS': 4, 'NAME': 'tiny'}
MODEL = ['config/train_demo.py', '--n_layer=2', '--n_embd=48', '--block_size=64', '--max_iters=12']
TORCH = '''
__version__ = '2.9.0+cpu'
class cuda:
    is_available = lambda: False
    get_device_name = lambda: 'Tesla T4'
    get_device_properties = lambda i: type('', (), {'total_memory': 15 * 2**30})
'''  # stands in for torch where only the first cells run


@pytest.fixture
def notebook(project):
    """notebook(cells='settings setup …', TOTAL=300, …) -> the executed notebook; all cells when `cells` is empty."""
    for name in ('requirements.txt', 'quickstart.ipynb'):
        shutil.copy(PROJECT / name, project.path)

    def notebook(cells='', then='', torch=TORCH, kaggle=False, **settings):
        book = nbformat.read(project.path / 'quickstart.ipynb', 4)
        code = {cell.id: cell for cell in book.cells if cell.cell_type == 'code'}
        for name, value in settings.items():
            code['settings'].source += f'\n{name} = {value!r}'
        if kaggle:
            code['setup'].source += '\nKAGGLE = True'
        if cells:
            (project.path / 'torch.py').write_text(torch)
            book.cells = [code[name] for name in cells.split()]
        if then:
            book.cells.append(nbformat.v4.new_code_cell(then))
        return execute(book, project.path)
    return notebook


def test_the_committed_notebook_has_no_outputs():
    book = nbformat.read(PROJECT / 'quickstart.ipynb', 4)
    nbformat.validate(book)
    assert not outputs(book)
    assert all(cell.execution_count is None for cell in book.cells if cell.cell_type == 'code')


@pytest.mark.slow
def test_it_runs_top_to_bottom_and_continues_when_run_again(notebook, project):
    book = notebook(**TINY, TRAIN=MODEL)
    assert not errors(book), errors(book)
    assert 'no GPU' in text(book, 'device')
    assert any('image/png' in output.get('data', {}) for output in outputs(book, 'training'))
    assert re.search('[\u0900-\u097f]{3}', text(book, 'stories'))
    assert '| tiny |' in text(book, 'measured')
    written = [project.path / 'data/tiny' / name for name in ('stories.jsonl', 'train.bin')]
    before = [path.read_bytes() for path in written]

    book = notebook(**TINY, TRAIN=[*MODEL, '--max_iters=20'])
    assert not errors(book), errors(book)
    assert [path.read_bytes() for path in written] == before
    assert [row['step'] for row in project.jsonl('out/tiny/log.jsonl')] == [10, 12, 20]
    assert len(project.jsonl('out/tiny/samples.jsonl')) == 4


@pytest.mark.slow
def test_a_failure_ends_it_in_one_line(notebook, project):
    (project.path / 'data/tiny').mkdir()
    book = notebook('settings setup save training told', **TINY, TRAIN=[*MODEL, '--batchsize=3'])
    assert "stopped: train.py: command line: there is no key 'batchsize'" in errors(book)[0][0]
    assert not text(book, 'told')


@pytest.mark.slow
def test_it_clones_the_project_and_saves_in_another_folder(notebook, project):
    origin, drive = project.path / 'origin', project.path / 'drive'
    origin.mkdir()
    for path in [*project.path.glob('*.py'), *map(project.path.joinpath, ('requirements.txt', 'config', 'data'))]:
        shutil.move(path, origin)
    book = notebook('settings setup')
    assert 'set REPOSITORY in the first cell' in errors(book)[0][0]

    git = ['git', '-c', 'user.name=a', '-c', 'user.email=a@b', '-C', origin]
    for command in (['init', '-q'], ['add', '.'], ['commit', '-qm', 'all']):
        subprocess.run([*git, *command], check=True)
    for _ in range(2):
        book = notebook('settings setup save stories', **TINY, REPOSITORY=origin.as_uri(), SAVE=str(drive))
        assert not errors(book), errors(book)
        assert (drive / 'data/tiny/stories.jsonl').read_bytes().count(b'\n') == 300
        shutil.rmtree(project.path / 'nanokahani')  # the machine is lost, the other folder is not
    assert '300/300' in text(book, 'stories') and ' 0/300' not in text(book, 'stories')


@pytest.mark.slow
def test_a_key_comes_from_the_secrets_and_is_not_shown(notebook, project):
    secrets = {'MISTRAL_API_KEY': 'key-of-kaggle'}
    (project.path / 'kaggle_secrets.py').write_text(
        f'class UserSecretsClient:\n    def get_secret(self, name):\n        return {secrets}[name]\n')
    (project.path / 'generate_data.py').write_text('''
import json, os
assert os.environ['MISTRAL_API_KEY'] == 'key-of-kaggle'
json.dump({'text': 'एक दिन'}, open('data/tiny/stories.jsonl', 'w'))
''')
    (project.path / 'data/tiny').mkdir()
    book = notebook('settings setup save stories', **TINY, PROVIDER='mistral', kaggle=True)
    assert not errors(book) and 'एक दिन' in text(book, 'stories')
    assert 'key-of-kaggle' not in str(book)
    book = notebook('settings setup save stories', **TINY, PROVIDER='openai', kaggle=True)
    assert 'stopped: OPENAI_API_KEY is not among the secrets' in errors(book)[0][0]


@pytest.mark.slow
def test_the_stop_button_lets_a_script_save(notebook, project):
    (project.path / 'slow.py').write_text('''
import os, signal, time
signal.signal(signal.SIGINT, lambda *_: open('saved', 'w').close())
open('begun', 'w').close()
while not os.path.exists('saved'):
    time.sleep(0.05)
''')
    book = notebook('settings setup', then='''
import threading
import time

def press():
    while not Path('begun').exists():
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=press).start()
run('python', 'slow.py')
''')
    assert errors(book) == [['stopped: run all cells again to go on']]
    assert (project.path / 'saved').exists()


@pytest.mark.slow
def test_it_finds_the_gpu_and_keeps_the_torch_that_is_there(notebook):
    book = notebook('settings setup device', torch=TORCH.replace('False', 'True'), then='print(TOTAL, NAME)')
    assert not errors(book), errors(book)
    assert 'a GPU: Tesla T4, 15 GiB' in text(book, 'device')
    assert '100000 hindi-grammar-gpu' in text(book)
    book = notebook('settings setup', torch=TORCH.replace('2.9.0', '2.4.1'))
    assert 'stopped: this machine has torch 2.4.1+cpu' in errors(book)[0][0]


# -----------------------------------------------------------------------------
# model.ipynb


@pytest.mark.slow
def test_the_model_notebook_runs_twice_in_one_kernel(project):
    """What it compares differs by rounding only. The outputs of one run are saved in it."""
    saved = nbformat.read(PROJECT / 'model.ipynb', 4)
    code = [cell for cell in saved.cells if cell.cell_type == 'code']
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell.source) for cell in code * 2])
    execute(book, project.path)
    for run, times in ((saved, 1), (book, 2)):
        assert not errors(run), errors(run)
        assert text(run).count('Transformers computes the same logits.') == times
        assert text(run).count('the same text: True') == times
