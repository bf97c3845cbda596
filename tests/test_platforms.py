"""The whole path in a few steps: any Python (`make test-pythons`), odd folder names, a C locale."""

import re

import pytest
from conftest import PROJECT, Project

SOURCES = {path.name: path.read_text(encoding='utf-8') for path in PROJECT.glob('*.py')}
UNIX_ONLY = re.compile(
    r'os\.(fork|symlink|uname|getuid)\b|signal\.SIG(KILL|HUP|ALRM|USR1|STOP)\b'
    r'|^(import|from) (fcntl|resource|pwd|grp|termios|multiprocessing)\b', re.M)


def walk_the_whole_path(project, name, **env):
    """Stories, tokens, a model that stops and resumes, samples, grades and an export in the folders of a name."""
    def run(*command):
        return project.run(*command, **env)

    train = [
        'train.py', f'--dataset={name}', f'--out_dir=out/{name}', '--n_layer=1', '--n_head=2', '--n_embd=32',
        '--block_size=64', '--batch_size=4', '--eval_interval=5', '--device=cpu']
    run('generate_data.py', '--language=hindi', '--total=300', f'--out=data/{name}/stories.jsonl')
    run('prepare.py', f'--source=data/{name}/stories.jsonl', f'--dataset={name}', '--vocab_size=800')
    assert re.search('[क-ह]', run(*train, '--max_iters=10'))  # a sample story
    assert 'done at step 12' in run(*train, '--max_iters=12', '--init_from=resume')
    assert run('sample.py', f'--out_dir=out/{name}', '--start=एक दिन', '--max_new_tokens=20').startswith('एक दिन')
    samples = f'out/{name}/samples.jsonl'
    run('sample.py', f'--out_dir=out/{name}', '--num_samples=8', '--max_new_tokens=60', f'--out={samples}')
    run('evaluate.py', f'--samples={samples}', f'--train_stories=data/{name}/stories.jsonl')
    assert (project.path / f'out/{name}/report.html').stat().st_size > 10_000
    run('export.py', f'--out_dir=out/{name}')


@pytest.mark.slow
def test_spaces_and_unicode_in_names(tmp_path):
    folder = tmp_path / 'मेरी कहानी (ü), 1'
    folder.mkdir()
    walk_the_whole_path(Project(folder), 'छोटा मॉडल')


@pytest.mark.slow
def test_c_locale(project):
    env = {'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0'}
    walk_the_whole_path(project, 'tiny', **env)
    for name, source in SOURCES.items():
        if "'configurator.py'), encoding" in source:
            project.run(name, '--help', **env)


@pytest.mark.parametrize('name', SOURCES)
def test_nothing_that_windows_lacks(name):
    """No fork, links or Unix signals; Unix modules are imported only in functions; every text file has an encoding."""
    assert not UNIX_ONLY.search(SOURCES[name])
    for call in re.findall(r'(?<![\w.])open\([^)].*', SOURCES[name]):
        assert 'encoding=' in call or re.search(r"'[rwax+]*b[rwax+]*'", call), call
