"""Tests run the scripts as a person does, by their command lines, in a copy of the project."""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
sys.path.insert(0, str(PROJECT))  # for tests that call a module directly
os.environ.pop('PYTHONDONTWRITEBYTECODE', None)  # else each script compiles PyTorch anew: three times the time
os.environ.setdefault('OMP_NUM_THREADS', '1')  # several tests run at once
os.environ['CUDA_VISIBLE_DEVICES'] = ''  # the same on a machine with a GPU, which `make gpu-check` tests
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & ignores it, and the scripts would inherit that
TIMEOUT = 1000  # seconds for one command, on a slow and busy machine


@functools.cache
def cleaner(language):
    """replies.clean for texts in the language of data/<language>, with the settings of generate_data.py."""
    import replies
    scripts = {'hindi': 'DEVANAGARI', 'marathi': 'DEVANAGARI', 'bangla': 'BENGALI'}
    lines = (PROJECT / 'data' / language / 'refusals.txt').read_text(encoding='utf-8').splitlines()
    refuses = replies.compile_refusals([line.strip() for line in lines if not line.startswith('#')])
    return functools.partial(replies.clean, script=scripts.get(language, 'LATIN'), min_script=0.9, refuses=refuses)


class Project:
    """A copy of the project's scripts, configs and word lists; or of the named scripts only."""

    def __init__(self, path, scripts=()):
        self.path = path
        for name in scripts:
            shutil.copy(PROJECT / name, path)
        if scripts:
            return
        for file in [*PROJECT.glob('*.py'), *PROJECT.glob('*.html')]:
            shutil.copy(file, path)
        shutil.copytree(PROJECT / 'config', path / 'config')
        shutil.copytree(PROJECT / 'data', path / 'data', ignore=shutil.ignore_patterns('*.bin', '*.json*'))

    def start(self, *command, **env):
        """Start `python script.py …` -> the process, its output in pipes."""
        env = os.environ | {'OMP_NUM_THREADS': '1', 'HF_HUB_OFFLINE': '1', 'PYTHONUNBUFFERED': '1'} | env
        return subprocess.Popen(
            [sys.executable, *map(str, command)], cwd=self.path, env=env, text=True, encoding='utf-8',
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def run(self, *command, **env):
        """Run `python script.py …`, which must succeed -> its stdout."""
        process = self.start(*command, **env)
        out, err = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 0, f'{command} ended with {process.returncode}\n{out[-2000:]}\n{err[-3000:]}'
        return out

    def refuses(self, *command, status=(1, 2), **env):
        """Run `python script.py …`, which must fail with one of these exit statuses -> its one line on stderr."""
        process = self.start(*command, **env)
        out, err = process.communicate(timeout=TIMEOUT)
        status = (status,) if isinstance(status, int) else status
        assert process.returncode in status, f'{command} ended with {process.returncode}\n{out[-1000:]}\n{err[-2000:]}'
        lines = err.replace('\r', '\n').split('\n')
        lines = [line for line in lines if line.strip() and '|' not in line and 'B/s]' not in line]  # no progress bars
        assert len(lines) == 1 and 'Traceback' not in err, err
        return lines[0]

    def json(self, path):
        return json.loads((self.path / path).read_text(encoding='utf-8'))

    def jsonl(self, path):
        return [json.loads(line) for line in (self.path / path).read_text(encoding='utf-8').splitlines()]


class Server:
    """A server of tests/ in its own process, which prints its port first."""

    def __init__(self, script, **options):
        command = [sys.executable, PROJECT / 'tests' / script, json.dumps(options)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)
        self.url = f'http://127.0.0.1:{int(self.process.stdout.readline())}'

    def get(self, path):
        with urllib.request.urlopen(self.url + path) as reply:
            return json.load(reply)

    def counts(self):
        return self.get('/counts')


@pytest.fixture
def server():
    """server('chat_server.py', faults=0.3, …) -> a Server, killed at the end of the test."""
    servers = []

    def start(script, **options):
        servers.append(Server(script, **options))
        return servers[-1]
    yield start
    for started in servers:
        started.process.kill()
        started.process.wait()
        started.process.stdout.close()


@pytest.fixture
def chat_server(server):
    return functools.partial(server, 'chat_server.py')


@pytest.fixture(scope='module')
def browser():
    """A headless Chromium."""
    webdriver = pytest.importorskip('selenium.webdriver')
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which('chromium') or shutil.which('google-chrome') or ''
    driver = shutil.which('chromedriver')
    if not options.binary_location or not driver:
        pytest.skip('no chromium with chromedriver here: apt-get install chromium chromium-driver')
    for argument in ('--headless=new', '--no-sandbox', '--disable-dev-shm-usage'):
        options.add_argument(argument)
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield browser
    browser.quit()


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


@pytest.fixture(scope='session')
def prepared(tmp_path_factory):
    """A project with 600 Hindi stories in data/tiny, prepared. Tests copy from it and do not change it."""
    project = Project(tmp_path_factory.mktemp('project'))
    project.run('generate_data.py', '--language=hindi', '--total=600', '--out=data/tiny/stories.jsonl')
    project.run('prepare.py', '--source=data/tiny/stories.jsonl', '--dataset=tiny', '--vocab_size=1024')
    return project
