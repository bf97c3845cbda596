"""The Makefile: what its targets would run, and some of them run, in a copy of the project."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from conftest import PROJECT

pytestmark = pytest.mark.skipif(not shutil.which('make'), reason='make is not installed')

TARGETS = [
    'demo', 'generate-mistral', 'generate-openai', 'translate', 'prepare', 'train', 'inference', 'eval', 'push-dataset',
    'push-model']


def make(project, *arguments):
    """Run make with the tests' own Python, as if .venv were there."""
    shutil.copy(PROJECT / 'Makefile', project.path)
    outer_make = ('MAKEFLAGS', 'MFLAGS', 'MAKELEVEL')
    env = {key: value for key, value in os.environ.items() if key not in (*outer_make, 'MISTRAL_API_KEY')}
    env['HF_HUB_OFFLINE'] = '1'
    command = ['make', '-o', '.venv/installed', f'PY={sys.executable}', *arguments]
    return subprocess.run(command, cwd=project.path, env=env, text=True, encoding='utf-8', capture_output=True)


def commands(project, target, *variables):
    """[[script, argument, …], …] that make would run."""
    result = make(project, '-n', target, *variables)
    assert result.returncode == 0, result.stderr
    lines = re.findall(re.escape(sys.executable) + r' (\w+\.py.*)', result.stdout.replace('\\\n', ' '))
    return [shlex.split(re.sub(r'\$\(.*?\)', '', line)) for line in lines]


def test_every_target_uses_files_and_keys_that_exist(project):
    known_keys = {}
    for target in TARGETS:
        for script, *arguments in commands(project, target, 'REPO=a/b', 'PROVIDER=mistral'):
            if script not in known_keys:
                known_keys[script] = re.findall(r'^  (\w+) = ', project.run(script, '--help'), flags=re.M)
            for argument in arguments:
                if argument.startswith('--'):
                    assert argument[2:].split('=')[0] in known_keys[script], (target, script, argument)
                else:
                    assert (project.path / argument).is_file(), (target, argument)
    for size in ('3m', '8m', '21m'):
        [[_, config, *_]] = commands(project, 'train', f'MODEL_CONFIG={size.upper()}')
        assert (project.path / config).is_file() and size in config


def test_the_header_lists_every_target():
    text = (PROJECT / 'Makefile').read_text(encoding='utf-8')
    header = text[:text.index('\nPYTHON')]
    targets = re.search(r'^\.PHONY: (.*)', text, re.M)[1].split()
    assert set(TARGETS) < set(targets)
    for target in targets:
        assert target == 'demo' or f'# make {target} ' in header, target


@pytest.mark.slow
def test_train_continues_then_inference_and_eval(project, prepared):
    shutil.copytree(prepared.path / 'data/tiny', project.path / 'data/tiny')
    (project.path / 'data/hindi/prompts.txt').write_text('एक दिन\nरात को\nजंगल में\n', encoding='utf-8')
    variables = ['CONFIG=config/train_demo.py', 'DATASET=tiny', 'OUT_DIR=out/tiny', 'LANGUAGE=hindi']
    shape = '--n_layer=1 --n_embd=48 --block_size=64 --batch_size=2 --warmup_iters=0'
    for target, *more in (
            ['train', f'ARGS={shape} --max_iters=2'], ['train', f'ARGS={shape} --max_iters=4'],
            ['inference', 'START=एक दिन', 'ARGS=--max_new_tokens=20'], ['eval']):
        result = make(project, '-s', target, *variables, *more)
        assert result.returncode == 0, result.stderr
        assert target != 'inference' or result.stdout.startswith('एक दिन')
    assert [row['step'] for row in project.jsonl('out/tiny/log.jsonl')] == [2, 4]
    assert project.json('out/tiny/results.json')['models']['tiny']['stories'] == 3


@pytest.mark.parametrize('target, variable, message', [
    ('push-model', 'A=b', 'push-model needs REPO=user/name'),
    ('generate-mistral', 'LANGUAGE=hindi', 'MISTRAL_API_KEY is not set'),
    ('train', 'MODEL_CONFIG=5M', 'config/train_lecarnet_5m.py')])
def test_a_wrong_call_says_why(project, target, variable, message):
    result = make(project, target, variable)
    assert result.returncode == 2 and message in result.stderr.split('\n')[0]
