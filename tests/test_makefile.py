"""The Makefile's targets: what they would run, and some of them run, in a copy of the project."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from conftest import PROJECT

pytestmark = pytest.mark.skipif(not shutil.which('make'), reason='there is no make')

TARGETS = ['demo', 'generate-mistral', 'generate-openai', 'translate', 'prepare', 'train', 'inference', 'eval', 'push-dataset', 'push-model']


def make(project, *arguments):
    """Run make with the Python that runs the tests, as if .venv were there -> exit status, what it printed, its errors."""
    shutil.copy(PROJECT / 'Makefile', project.path)
    env = {key: value for key, value in os.environ.items() if key not in ('MAKEFLAGS', 'MFLAGS', 'MAKELEVEL', 'MISTRAL_API_KEY')}
    env |= {'OMP_NUM_THREADS': '1', 'HF_HUB_OFFLINE': '1'}
    done = subprocess.run(['make', '-o', '.venv/installed', f'PY={sys.executable}', *arguments], cwd=project.path, env=env, text=True,
                          encoding='utf-8', stdin=subprocess.DEVNULL, capture_output=True, timeout=280)
    return done.returncode, done.stdout, done.stderr


def commands(project, *arguments):
    """The scripts that make would run -> [[script, argument, …], …]."""
    status, out, err = make(project, '-n', *arguments)
    assert status == 0, err
    found = re.findall(re.escape(sys.executable) + r' (\w+\.py.*)', out.replace('\\\n', ' '))
    return [shlex.split(re.sub(r'\$\(.*?\)', '', command)) for command in found]


def test_make_alone_is_the_demo(project):
    assert [command[0] for command in commands(project)] == ['generate_data.py', 'prepare.py', 'train.py', 'sample.py']
    assert commands(project) == commands(project, 'demo')


def test_every_target_names_files_and_keys_that_there_are(project):
    helps = {}
    for target in TARGETS:
        for script, *arguments in commands(project, target, 'REPO=a/b', 'PROVIDER=mistral'):
            if script not in helps:
                helps[script] = re.findall(r'^  (\w+) = ', project.run(script, '--help'), flags=re.M)
            for argument in arguments:
                if argument.startswith('--'):
                    assert argument[2:].split('=')[0] in helps[script], (target, script, argument)
                else:
                    assert (project.path / argument).is_file(), (target, argument)
    for size in ('3M', '8M', '21M'):
        (script, config, *_, out_dir), = commands(project, 'train', f'MODEL_CONFIG={size}')
        assert (project.path / config).is_file() and size.lower() in config and out_dir.endswith(size.lower())


def test_the_header_lists_every_target():
    text = (PROJECT / 'Makefile').read_text(encoding='utf-8')
    header = text[:text.index('\nPYTHON')]
    targets = re.search(r'^\.PHONY: (.*)', text, re.M)[1].split()
    assert set(TARGETS) < set(targets)
    assert all(target == 'demo' or f'# make {target} ' in header for target in targets)


def test_trains_goes_on_tells_and_evaluates(project, prepared):
    shutil.copytree(prepared.path / 'data/tiny', project.path / 'data/tiny')
    prompts = project.path / 'data/hindi/prompts.txt'
    prompts.write_text('\n'.join(prompts.read_text(encoding='utf-8').splitlines()[:3]), encoding='utf-8')
    run = ('CONFIG=config/train_demo.py', 'DATASET=tiny', 'OUT_DIR=out/tiny', 'LANGUAGE=hindi')
    shape = '--n_layer=1 --n_embd=48 --block_size=64 --batch_size=2 --warmup_iters=0'
    for steps in (2, 4):
        status, _, err = make(project, 'train', *run, f'ARGS={shape} --max_iters={steps}')
        assert status == 0, err
    assert [row['step'] for row in project.jsonl('out/tiny/log.jsonl')] == [2, 4]
    status, out, err = make(project, '-s', 'inference', *run, 'START=एक दिन', 'ARGS=--max_new_tokens=20')
    assert status == 0 and out.startswith('एक दिन'), err
    status, _, err = make(project, 'eval', *run)
    assert status == 0, err
    assert project.json('out/tiny/results.json')['models']['tiny']['stories'] == 3


def test_what_is_missing_is_said_in_a_line(project):
    status, _, err = make(project, 'push-model')
    assert status == 2 and 'push-model needs REPO=user/name' in err and err.count('\n') == 1
    status, _, err = make(project, 'generate-mistral', 'LANGUAGE=hindi')
    assert status == 2 and 'MISTRAL_API_KEY is not set' in err.split('\n')[0]
    status, _, err = make(project, 'train', 'MODEL_CONFIG=5M')
    assert status == 2 and err.startswith('train.py: config/train_lecarnet_5m.py: No such file')
