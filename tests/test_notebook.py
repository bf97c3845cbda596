"""Scripts in a notebook kernel, by %run and pasted into a cell; and quickstart.ipynb as Colab and Kaggle run it.

    python tests/test_notebook.py   # runs quickstart.ipynb in a copy of the project and saves what its cells show
"""

import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from conftest import PROJECT, TIMEOUT, Project

import files

nbformat = pytest.importorskip('nbformat')
nbclient = pytest.importorskip('nbclient')
pytest.importorskip('ipykernel')


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ('CUDA_VISIBLE_DEVICES', 'MISTRAL_API_KEY', 'OPENAI_API_KEY'):
        monkeypatch.setenv(name, '')
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')


def run_cells(folder, *cells):
    """Run the code of cells in one new kernel -> [(what a cell showed, its error or '')]"""
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    execute(book, folder)
    results = []
    for cell in book.cells:
        shown = ''.join(output.get('text', '') + str(output.get('data', '')) for output in cell.outputs)
        error = ''
        for output in cell.outputs:
            if output.output_type == 'error':
                error = output.traceback[0] if output.ename == 'Stop' else output.ename
        results.append((shown, error))
    return results


def execute(book, folder):
    nbclient.NotebookClient(
        book, timeout=TIMEOUT, kernel_name='python3', allow_errors=True, coalesce_streams=True,
        resources={'metadata': {'path': str(folder)}}).execute()


# -----------------------------------------------------------------------------
# scripts in one kernel

REMEMBER = '''
import builtins, signal, subprocess, sys

def state():
    return [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), sys.excepthook, sys.argv]

state_before = state()
'''
# the kernel is as it was before, and another process can lock every file
UNCHANGED = '''
[state() == state_before and compile is builtins.compile and format is builtins.format,
 subprocess.run([sys.executable, 'lock_all.py']).returncode]
'''
LOCK_ALL = '''
import files, glob
for path in glob.glob('**/*.lock', recursive=True):
    files.lock(path.removesuffix('.lock'))
for path in glob.glob('**/*.jsonl', recursive=True):
    files.open_append(path)
'''


def run_groups(folder, groups):
    """Run groups of cells, of which every second one must be refused, in one kernel -> what the cells showed"""
    (folder / 'lock_all.py').write_text(LOCK_ALL)
    cells = [REMEMBER]
    for group in groups:
        cells += [*group, UNCHANGED]
    results = run_cells(folder, *cells)[1:]
    texts = []
    for group in groups:
        for i, cell in enumerate(group):
            shown, error = results.pop(0)
            assert error == ('SystemExit' if i == 1 else ''), (cell[-300:], shown)
            texts.append(shown)
        assert '[True, 0]' in results.pop(0)[0], group
    return texts


GENERATE = '%run generate_data.py --language=hindi --out=data/tiny/stories.jsonl --total=300'
PREPARE = '%run prepare.py --source=data/tiny/stories.jsonl --dataset=tiny --vocab_size=300'
TRAIN = ('%run train.py --dataset=tiny --out_dir=out/tiny --device=cpu --n_layer=1 --n_head=2 --n_embd=16 '
         '--block_size=32 --batch_size=4 --eval_iters=1 --max_iters=2')
SAMPLE = '%run sample.py --out_dir=out/tiny --max_new_tokens=9 --out=out/tiny/samples.jsonl'
EVALUATE = '%run evaluate.py --samples=out/tiny/samples.jsonl'
EXPORT = '%run export.py --out_dir=out/tiny --out=hf'


def test_scripts_run_again_and_again_in_one_kernel(project):
    run_groups(project.path, [
        (GENERATE, f'{GENERATE} --seed=2', f'{GENERATE} --total=310'),
        (PREPARE, f'{PREPARE} --vocab_size=5', PREPARE),
        (TRAIN, TRAIN, f'{TRAIN} --max_iters=4 --init_from=resume'),  # refused: the checkpoint exists
        (SAMPLE, f'{SAMPLE} --device=nonsense', f'{SAMPLE} --num_samples=3'),
        (EVALUATE, f'{EVALUATE} --repeat=-1.0', f'{EVALUATE} --train_stories=data/tiny/stories.jsonl'),
        (EXPORT, f'{EXPORT} --format=nonsense', EXPORT)])
    assert [row['step'] for row in project.jsonl('out/tiny/log.jsonl')] == [2, 4]
    assert len(project.jsonl('data/tiny/stories.jsonl')) == 310


def paste(script, **settings):
    """The text of a cell: a script with settings added to its config block."""
    block, here, rest = (PROJECT / script).read_text(encoding='utf-8').partition('\nhere = ')
    for name, value in settings.items():
        block += f'\n{name} = {value!r}'
    return block + here + rest


@pytest.mark.slow
def test_pasted_scripts_and_the_other_scripts_too(project, chat_server):
    train = {'dataset': 'tiny', 'out_dir': 'out/tiny', 'device': 'cpu', 'n_layer': 1, 'n_head': 2, 'n_embd': 16,
             'block_size': 32, 'batch_size': 4, 'eval_iters': 1, 'max_iters': 2}
    sample = {'out_dir': 'out/tiny', 'start': 'एक दिन', 'max_new_tokens': 9}
    evaluate = {'samples': 'data/tiny/stories.jsonl', 'out_dir': 'out/tiny'}
    files.write_text(project.path / 's.jsonl', json.dumps({'id': 1, 'text': 'एक दिन रवि बाग में गया।'}) + '\n')
    url = chat_server(reply='{"translation": "X {prompt} Y"}').url
    translate = ('%run translate.py --source=s.jsonl --source_language=hindi --target_language=marathi --out=o.jsonl '
                 f'--base_url={url} --model=m --template={{text}}')
    bench = '''%run bench.py --stages="['prepare']" --repetitions=1'''
    sweep = '''%run sweep.py --settings="[{'n_layer': 1, 'n_head': 2, 'n_embd': 16}]" --out_dir=out/sweep \
--num_samples=1 --train_config= --evaluate_config= --start=रवि \
--train_options="{'dataset': 'tiny', 'batch_size': 4, 'max_iters': 2}"'''
    texts = run_groups(project.path, [
        [paste('generate_data.py', total=300, out='data/tiny/stories.jsonl')],
        [paste('prepare.py', source='data/tiny/stories.jsonl', dataset='tiny', vocab_size=300)],
        # refused: the checkpoint exists
        [paste('train.py', **train), paste('train.py', **train),
         paste('train.py', **train | {'max_iters': 4, 'init_from': 'resume'})],
        [paste('sample.py', **sample), paste('sample.py', **sample, top_p=2.0), paste('sample.py', **sample)],
        [paste('evaluate.py', **evaluate), paste('evaluate.py', **evaluate, repeat=-1.0),
         paste('evaluate.py', **evaluate)],
        (translate, f'{translate} --target_language=french', translate),
        (bench, f'{bench} --device=nonsense', bench),
        (sweep, f'{sweep} --settings=[]', sweep)])
    assert 'एक दिन' in texts[5] and 'एक दिन' in texts[7]


# -----------------------------------------------------------------------------
# quickstart.ipynb

NOTEBOOK = nbformat.read(PROJECT / 'quickstart.ipynb', 4)
CODE = {cell.id: cell.source for cell in NOTEBOOK.cells if cell.cell_type == 'code'}
TINY = {'TOTAL': 1000, 'VOCAB_SIZE': 512, 'N_PROMPTS': 4, 'NAME': 'tiny'}
MODEL = ['config/train_demo.py', '--n_layer=2', '--n_embd=48', '--block_size=64', '--max_iters=12']
TORCH = '''
__version__ = '2.9.0+cpu'
class cuda:
    is_available = lambda: False
    get_device_name = lambda: 'Tesla T4'
    get_device_properties = lambda i: type('', (), {'total_memory': 15 * 2**30})
'''  # stands in for torch where only the first cells run


def settings(**changes):
    """The code of the first cell, with these settings."""
    return CODE['settings'] + ''.join(f'\n{name} = {value!r}' for name, value in changes.items())


def cells(names):
    return [CODE[name] for name in names.split()]


@pytest.fixture
def folder(project):
    """A folder with the project and its requirements, as the notebook finds it."""
    shutil.copy(PROJECT / 'requirements.txt', project.path)
    return project.path


def test_the_committed_notebook_shows_a_run():
    nbformat.validate(NOTEBOOK)
    code = [cell for cell in NOTEBOOK.cells if cell.cell_type == 'code']
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not any(output.output_type == 'error' for cell in code for output in cell.outputs)
    text = json.dumps(NOTEBOOK)
    assert 'image/png' in text and len(text) < 400_000 and '<iframe' not in str([cell.outputs for cell in code])


@pytest.mark.slow
def test_it_runs_top_to_bottom_and_continues_when_run_again(folder, project):
    rest = list(CODE.values())[1:]
    (project.path / 'mine.csv').write_text('title;story\n' + ''.join(
        f'{i};"Ann had {i} red kites. She gave one to Ben."\n' for i in range(200)), encoding='utf-8')
    written = ['print(hash(open("data/tiny/stories.jsonl").read()), hash(open("data/tiny/train.bin", "rb").read()))']
    results = run_cells(
        folder, settings(**TINY, TRAIN=MODEL), *rest, *written,
        settings(**TINY, TRAIN=[*MODEL, '--max_iters=20']), *rest, *written,
        settings(STORIES='mine.csv', VOCAB_SIZE=300, NAME='mine'), *cells('setup save own_stories stories tokens'))
    assert [error for _, error in results if error] == []
    first, again, own = results[:len(CODE)], results[len(CODE) + 1:2 * len(CODE) + 1], results[2 * len(CODE) + 2:]
    assert results[len(CODE)] == results[2 * len(CODE) + 1]  # the same stories and tokens
    for run in (first, again):
        shown = dict(zip(CODE, [text for text, _ in run]))
        assert 'no GPU' in shown['device'] and 'time here' in shown['plan'] and 'image/png' in shown['training']
        assert re.search('[\u0900-\u097f]{3}', shown['stories']) and '| tiny |' in shown['measures']
        assert 'Stories by tiny' in shown['report']
    assert [row['step'] for row in project.jsonl('out/tiny/log.jsonl')] == [10, 12, 20]
    assert len(project.jsonl('out/tiny/samples.jsonl')) == 4
    assert 'She gave one to Ben.' in own[-1][0] and project.json('data/mine/meta.json')['stories']['train'] > 150


PRESS_STOP = '''
import threading
import time

def press():
    while not Path('begun').exists():
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=press).start()
run('python', 'slow.py')
'''
SLOW = '''
import os, signal, time
signal.signal(signal.SIGINT, lambda *_: open('saved', 'w').close())
open('begun', 'w').close()
while not os.path.exists('saved'):
    time.sleep(0.05)
'''
SECRETS = '''
class UserSecretsClient:
    def get_secret(self, name):
        return {'MISTRAL_API_KEY': 'key-of-kaggle'}[name]
'''
GENERATE_WITH_KEY = '''
import json, os
assert os.environ['MISTRAL_API_KEY'] == 'key-of-kaggle'
json.dump({'text': 'एक दिन'}, open('data/tiny/stories.jsonl', 'w'))
'''
COLAB = '''
import types
colab = types.ModuleType('google.colab')
colab.files = types.SimpleNamespace(upload=lambda: {'mine.csv': b'text'})
sys.modules |= {'google': types.ModuleType('google'), 'google.colab': colab}
'''


@pytest.mark.slow
def test_what_its_first_cells_do(folder, project):
    (folder / 'torch.py').write_text(TORCH)
    (folder / 'slow.py').write_text(SLOW)
    (folder / 'kaggle_secrets.py').write_text(SECRETS)
    (folder / 'generate_data.py').write_text(GENERATE_WITH_KEY, encoding='utf-8')
    steps = {
        'start': [settings(**TINY), *cells('setup save')],
        'a failing script': ["run('python', 'train.py', '--batchsize=3')"],
        'the stop button': [PRESS_STOP],
        'a key': ['KAGGLE = True', settings(**TINY, PROVIDER='mistral'), *cells('save own_stories stories')],
        'no key': [settings(**TINY, PROVIDER='openai'), *cells('stories')],
        'upload elsewhere': [settings(**TINY, STORIES='upload'), *cells('own_stories')],
        'upload': [COLAB, *cells('own_stories own_stories'), 'print(source, source.read_text())'],
        'a GPU': ['torch.cuda.is_available = lambda: True', settings(), *cells('device'), 'print(TOTAL, NAME)'],
        'the name of a run': [CODE['settings'].replace("STORIES = ''", "STORIES = '../my own.csv'"), 'print(NAME)'],
        'another torch': ["torch.__version__ = '2.4.1+cpu'", *cells('setup')],
    }
    results = iter(run_cells(folder, *(cell for step in steps.values() for cell in step)))
    found = {}
    for name, step in steps.items():
        shown, errors = zip(*(next(results) for _ in step))
        found[name] = ''.join(shown), ''.join(errors)
    assert "stopped: train.py: command line: there is no key 'batchsize'" in found['a failing script'][1]
    assert found['the stop button'][1] == 'stopped: run all cells again to continue' and (folder / 'saved').exists()
    assert 'एक दिन' in found['a key'][0] and not found['a key'][1] and 'key-of-kaggle' not in str(found)
    assert 'stopped: OPENAI_API_KEY is neither among the secrets' in found['no key'][1]
    assert 'stopped: upload works in Colab only' in found['upload elsewhere'][1]
    assert found['upload'] == ('data/tiny/upload/mine.csv text\n', '')
    assert 'a GPU: Tesla T4, 15 GiB' in found['a GPU'][0] and '100000 hindi-grammar-gpu' in found['a GPU'][0]
    assert found['the name of a run'][0] == 'my-own-csv-gpu\n'
    assert 'stopped: this machine has torch 2.4.1+cpu' in found['another torch'][1]


@pytest.mark.slow
def test_it_clones_the_project_and_saves_in_another_folder(folder, project):
    (folder / 'torch.py').write_text(TORCH)
    origin, drive = folder / 'origin', folder / 'drive'
    origin.mkdir()
    for path in [*folder.glob('*.py'), *map(folder.joinpath, ('requirements.txt', 'config', 'data'))]:
        if path.name != 'torch.py':
            shutil.move(path, origin)
    git = ['git', '-c', 'user.name=a', '-c', 'user.email=a@b', '-C', origin]
    for command in (['init', '-q'], ['add', '.'], ['commit', '-qm', 'all']):
        subprocess.run([*git, *command], check=True)
    good = settings(**TINY, REPOSITORY=origin.as_uri(), SAVE=str(drive))
    machine_is_lost = f"import shutil\nos.chdir({str(folder)!r})\nshutil.rmtree('nanokahani')"
    generate = cells('setup save own_stories stories')
    results = run_cells(folder, settings(REPOSITORY='file:///nowhere'), CODE['setup'],
                        good, *generate, machine_is_lost, good, *generate)
    (_, error), *results = results[1:]
    assert error.startswith('stopped: file:///nowhere could not be cloned; set REPOSITORY')
    assert [error for _, error in results if error] == []
    assert (drive / 'data/tiny/stories.jsonl').read_bytes().count(b'\n') == TINY['TOTAL']
    assert '1000/1000' in results[-1][0] and ' 0/1000' not in results[-1][0]


# -----------------------------------------------------------------------------
# model.ipynb


@pytest.mark.slow
def test_the_model_notebook_runs_twice_in_one_kernel(project):
    """What it compares differs by rounding only. The outputs of one run are saved in it."""
    saved = nbformat.read(PROJECT / 'model.ipynb', 4)
    code = [cell for cell in saved.cells if cell.cell_type == 'code']
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    results = run_cells(project.path, *[cell.source for cell in code] * 2)
    assert [error for _, error in results if error] == []
    for shown, times in ((str([cell.outputs for cell in code]), 1), (str(results), 2)):
        assert shown.count('Transformers computes the same logits.') == times
        assert shown.count('the same text: True') == times


# -----------------------------------------------------------------------------
# the saved outputs of quickstart.ipynb


def save_outputs():
    """Run quickstart.ipynb in a copy of the project and save it with all that its cells show, except whole pages."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, 'nanokahani')
        folder.mkdir()
        Project(folder)
        shutil.copy(PROJECT / 'requirements.txt', folder)
        del os.environ['OMP_NUM_THREADS']  # conftest.py limits tests to one thread
        execute(NOTEBOOK, folder)
    for cell in NOTEBOOK.cells:
        cell.metadata.pop('execution', None)  # times
        if cell.cell_type == 'code':
            cell.outputs = [output for output in cell.outputs if '<iframe' not in str(output.get('data', ''))]
            for output in cell.outputs:
                if 'text' in output:
                    output.text = output.text.replace(parent, '…')
    NOTEBOOK.metadata.language_info = {'name': 'python'}
    nbformat.write(NOTEBOOK, PROJECT / 'quickstart.ipynb')


if __name__ == '__main__':
    save_outputs()
