"""quickstart.ipynb, run in a kernel as Colab and Kaggle run it, in a copy of the project, with smaller settings in its first cell."""

import re
import shutil
import subprocess

import pytest
from conftest import PROJECT

nbformat = pytest.importorskip('nbformat')
nbclient = pytest.importorskip('nbclient')
pytest.importorskip('ipykernel')

TINY = {'TOTAL': 300, 'VOCAB_SIZE': 512, 'N_PROMPTS': 4, 'NAME': 'tiny'}
MODEL = ['config/train_demo.py', '--n_layer=2', '--n_embd=48', '--block_size=64', '--eval_interval=10', '--max_iters=12']
TORCH = '''
__version__ = '2.9.0+cpu'
class cuda:
    is_available = lambda: False
    get_device_name = lambda: 'Tesla T4'
    get_device_properties = lambda i: type('', (), {'total_memory': 15 * 2**30})
'''  # stands in for torch where only the first cells are run, which need no more of it


@pytest.fixture
def notebook(project, monkeypatch):
    """notebook(cells='settings setup …', then=code, TOTAL=300, …) -> the executed notebook; without `cells` the whole of it."""
    for name in ('requirements.txt', 'quickstart.ipynb'):
        shutil.copy(PROJECT / name, project.path)
    for name, value in {'OMP_NUM_THREADS': '1', 'HF_HUB_OFFLINE': '1', 'CUDA_VISIBLE_DEVICES': '', 'MISTRAL_API_KEY': '', 'OPENAI_API_KEY': ''}.items():
        monkeypatch.setenv(name, value)

    def execute(cells='', then='', replace=(), torch=TORCH, **settings):
        book = nbformat.read(project.path / 'quickstart.ipynb', 4)
        code = [cell for cell in book.cells if cell.cell_type == 'code']
        for name, value in settings.items():
            line, = re.findall(rf'^{name} = .*', code[0].source, flags=re.M)
            code[0].source = code[0].source.replace(line, f'{name} = {value!r}')
        for old, new in replace:
            for cell in code:
                cell.source = cell.source.replace(old, new)
        if cells:
            (project.path / 'torch.py').write_text(torch)
            book.cells = [cell for cell in code if cell.id in cells.split()]
        if then:
            book.cells.append(nbformat.v4.new_code_cell(then))
        client = nbclient.NotebookClient(book, timeout=280, kernel_name='python3', resources={'metadata': {'path': str(project.path)}})
        try:
            client.execute()
        except nbclient.exceptions.CellExecutionError:
            pass
        return book
    return execute


def outputs(book, cell_id=None):
    return [output for cell in book.cells if cell.cell_type == 'code' and cell_id in (None, cell.id) for output in cell.outputs]


def text(book, cell_id=None):
    return ''.join(output.get('text', '') + str(output.get('data', {}).get('text/markdown', '')) for output in outputs(book, cell_id))


def errors(book):
    return [output.traceback for output in outputs(book) if output.output_type == 'error']


def test_the_committed_notebook_holds_no_outputs():
    book = nbformat.read(PROJECT / 'quickstart.ipynb', 4)
    nbformat.validate(book)
    assert not outputs(book) and all(cell.execution_count is None for cell in book.cells if cell.cell_type == 'code')


def test_runs_top_to_bottom_and_goes_on_when_run_again(notebook, project):
    book = notebook(**TINY, TRAIN=MODEL)
    assert not errors(book), errors(book)
    assert 'no GPU' in text(book, 'device')
    assert any('image/png' in output.get('data', {}) for output in outputs(book, 'training'))
    assert re.search('[\u0900-\u097f]{3}', text(book, 'stories')) and re.search('[\u0900-\u097f]{2}', text(book, 'told'))
    assert '| tiny |' in text(book, 'measured')
    stories, tokens = (project.path / 'data/tiny' / name for name in ('stories.jsonl', 'train.bin'))
    before = stories.read_bytes(), tokens.read_bytes()
    assert [row['id'] for row in project.jsonl('data/tiny/stories.jsonl')] == list(range(300))
    assert [row['step'] for row in project.jsonl('out/tiny/log.jsonl')] == [10, 12]

    book = notebook(**TINY, TRAIN=[*MODEL, '--max_iters=20'])
    assert not errors(book), errors(book)
    assert (stories.read_bytes(), tokens.read_bytes()) == before
    assert [row['step'] for row in project.jsonl('out/tiny/log.jsonl')] == [10, 12, 20]
    assert len(project.jsonl('out/tiny/samples.jsonl')) == 4


def test_a_failure_ends_it_with_one_line(notebook, project):
    (project.path / 'out/tiny').mkdir(parents=True)
    (project.path / 'data/tiny').mkdir()
    book = notebook('settings setup save training told', **TINY, TRAIN=[*MODEL, '--batchsize=3'])
    assert errors(book) == [["stopped: train.py: command line: there is no key 'batchsize', did you mean 'batch_size'?"]]
    assert not text(book, 'told')


def test_without_the_scripts_it_asks_where_they_are(notebook, project):
    for script in project.path.glob('*.py'):
        script.unlink()
    book = notebook('settings setup')
    assert errors(book) == [["stopped: the scripts are not beside this notebook; set REPOSITORY in the first cell to the project's address"]]


def test_clones_the_project_and_keeps_all_in_another_folder(notebook, project):
    """On a Colab that is played by two modules: its Drive outlives the machine, the clone does not."""
    origin, drive = project.path / 'origin', project.path / 'drive/MyDrive/nanokahani'
    origin.mkdir()
    for path in [*project.path.glob('*.py'), project.path / 'requirements.txt', project.path / 'config', project.path / 'data']:
        shutil.move(path, origin)
    (origin / 'google/colab').mkdir(parents=True)
    (origin / 'google/colab/__init__.py').touch()
    (origin / 'google/colab/drive.py').write_text('def mount(folder):\n    print("mounted", folder)\n')
    git = ['git', '-c', 'user.name=a', '-c', 'user.email=a@b', '-C', origin]
    for command in (['init', '-q'], ['add', '.'], ['commit', '-qm', 'all']):
        subprocess.run([*git, *command], check=True)
    replace = [('/content/drive', str(project.path / 'drive'))]
    for _ in range(2):
        book = notebook('settings setup save stories', **TINY, REPOSITORY=origin.as_uri(), replace=replace)
        assert not errors(book), errors(book)
        assert f'mounted {project.path}/drive' in text(book, 'save')
        stories = (drive / 'data/tiny/stories.jsonl').read_bytes()
        assert stories.count(b'\n') == 300
        shutil.rmtree(project.path / 'nanokahani')
    assert '300/300' in text(book, 'stories') and ' 0/300' not in text(book, 'stories')


def test_a_key_comes_from_the_secrets_and_is_not_shown(notebook, project, chat_server):
    server = chat_server(key='key-of-kaggle')
    (project.path / 'kaggle_secrets.py').write_text(
        "class UserSecretsClient:\n    def get_secret(self, name):\n        return {'MISTRAL_API_KEY': 'key-of-kaggle'}[name]\n")
    client = project.path / 'chat.py'
    client.write_text(client.read_text(encoding='utf-8').replace('https://api.mistral.ai/v1', server.url), encoding='utf-8')
    (project.path / 'google/colab').mkdir(parents=True)  # as in Kaggle's image, where nobody would answer them
    for name in ('__init__', 'drive', 'userdata'):
        (project.path / f'google/colab/{name}.py').write_text('def mount(folder):\n    raise RuntimeError\nget = mount\n')
    kaggle = [("Path('/kaggle/working').is_dir()", 'True')]
    book = notebook('settings setup save stories', **TINY | {'TOTAL': 12}, PROVIDER='mistral', replace=kaggle)
    assert not errors(book), errors(book)
    assert len(project.jsonl('data/tiny/stories.jsonl')) == 12
    assert 'key-of-kaggle' not in str(book)

    book = notebook('settings setup save stories', **TINY, PROVIDER='openai', replace=kaggle)
    assert errors(book) == [['stopped: OPENAI_API_KEY is not among the secrets that this notebook may read, nor in the environment']]


def test_the_stop_button_lets_a_script_save(notebook, project):
    (project.path / 'slow.py').write_text("""
import signal, time
signal.signal(signal.SIGINT, lambda *_: open('saved', 'a').write('once '))
open('begun', 'w').close()
time.sleep(2)
""")
    book = notebook('settings setup', **TINY, then="""
import threading
import time

def press():
    while not Path('begun').exists():
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=press).start()
run('python', 'slow.py')
""")
    assert errors(book) == [['stopped: run all cells again to go on']]
    assert (project.path / 'saved').read_text() == 'once '


def test_finds_the_gpu_and_keeps_the_torch_that_is_there(notebook, project):
    book = notebook('settings setup device', torch=TORCH.replace('False', 'True').replace('+cpu', '+cu126'), then='print(TOTAL, NAME)')
    assert not errors(book), errors(book)
    assert 'a GPU: Tesla T4, 15 GiB\ntorch 2.9.0+cu126' in text(book, 'device')
    assert '100000 hindi-grammar-gpu' in text(book)

    book = notebook('settings setup', torch=TORCH.replace('2.9.0', '2.4.1'))
    assert errors(book) == [['stopped: this machine has torch 2.4.1+cpu, and the scripts want torch>=2.9']]
