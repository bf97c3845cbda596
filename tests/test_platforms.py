"""The whole path, in few steps, where a user may run it: any Python, odd folders, a C locale; `make test-pythons` runs this file by each Python."""

import ast
import re

import pytest
from conftest import PROJECT, Project

SCRIPTS = [path for path in PROJECT.glob('*.py') if path.name != 'configurator.py']


@pytest.mark.parametrize('folder, env', [
    ('मेरी कहानी (ü), 1', {}),
    ('project', {'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0'})], ids=['spaces and Unicode', 'C locale'])
def test_the_whole_path(tmp_path, folder, env):
    (tmp_path / folder).mkdir()
    project = Project(tmp_path / folder)
    name = 'tiny' if folder == 'project' else 'छोटा मॉडल'

    def run(*command):
        return project.run(*command, **env)

    run('generate_data.py', '--language=hindi', '--total=300', f'--out=data/{name}/stories.jsonl')
    run('prepare.py', f'--source=data/{name}/stories.jsonl', f'--dataset={name}', '--vocab_size=800')
    text = run('train.py', f'--dataset={name}', f'--out_dir=out/{name}', '--n_layer=1', '--n_head=2', '--n_embd=32', '--block_size=64', '--batch_size=4',
               '--max_iters=10', '--eval_interval=5', '--device=cpu')
    assert 'done at step 10' in text and re.search('[क-ह]', text)
    if env:
        run('train.py', f'--dataset={name}', f'--out_dir=out/{name}', '--init_from=resume', '--n_layer=1', '--n_head=2', '--n_embd=32', '--block_size=64',
            '--batch_size=4', '--max_iters=12', '--device=cpu')
    assert run('sample.py', f'--out_dir=out/{name}', '--start=एक दिन', '--max_new_tokens=20').startswith('एक दिन')
    run('sample.py', f'--out_dir=out/{name}', '--num_samples=8', '--max_new_tokens=60', f'--out=out/{name}/samples.jsonl')
    run('evaluate.py', f'--samples=out/{name}/samples.jsonl', f'--train_stories=data/{name}/stories.jsonl')
    assert (project.path / f'out/{name}/report.html').stat().st_size > 10_000
    run('export.py', f'--out_dir=out/{name}')
    for script in SCRIPTS if env else ():
        if 'configurator.py' in script.read_text(encoding='utf-8'):
            assert '--' in run(script.name, '--help')


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.stem)
def test_nothing_that_windows_lacks(script):
    """No fork, no symlinks, no signals but the two that Windows has; every text file's encoding is named; what only Unix has is imported behind a check."""
    tree = ast.parse(script.read_text(encoding='utf-8'))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f'{node.value.id}.{node.attr}'
            assert name not in ('os.fork', 'os.symlink', 'os.uname', 'os.getuid', 'signal.SIGKILL', 'signal.SIGHUP', 'signal.SIGALRM', 'signal.SIGUSR1'), name
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'open':
            mode = next((part.value for part in node.args[1:2]), next((k.value.value for k in node.keywords if k.arg == 'mode'), 'r'))
            assert 'b' in str(mode) or any(k.arg == 'encoding' for k in node.keywords), f'{script.name}:{node.lineno}'
    imported = {alias.name.split('.')[0] for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    imported |= {(node.module or '').split('.')[0] for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert not imported & {'fcntl', 'resource', 'pwd', 'grp', 'termios', 'multiprocessing'}
