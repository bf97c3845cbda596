"""The Makefile: what its targets would run, and some of them run, in a copy of the project."""

import json
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


def make(project, *arguments, **more_env):
    """Run make with the tests' own Python, as if .venv were there."""
    shutil.copy(PROJECT / 'Makefile', project.path)
    outer_make = ('MAKEFLAGS', 'MFLAGS', 'MAKELEVEL')
    env = {key: value for key, value in os.environ.items() if key not in (*outer_make, 'MISTRAL_API_KEY')}
    env |= {'HF_HUB_OFFLINE': '1'} | more_env
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


def test_a_folder_with_splits_becomes_a_data_set(project, server):
    hub = server('hub_server.py')
    (project.path / 'my stories').mkdir()
    for split, text in (('train', 'Un chat dort.'), ('validation', 'La lune brille.')):
        (project.path / f'my stories/{split}.jsonl').write_text(json.dumps({'text': text}), encoding='utf-8')
    result = make(project, 'push-dataset', 'FOLDER_PATH=my stories', 'REPO_NAME=me/contes', HF_ENDPOINT=hub.url,
                  HF_TOKEN='hf_test', HF_HUB_OFFLINE='0')
    assert result.returncode == 0, result.stderr
    files = hub.get('/')['files']
    assert 'Un chat dort.' in files['train.jsonl'] and 'La lune brille.' in files['validation.jsonl']


@pytest.mark.slow
def test_train_continues_then_inference_and_eval(project, prepared):
    shutil.copytree(prepared.path / 'data/tiny', project.path / 'data/tiny')
    (project.path / 'data/hindi/prompts.txt').write_text('एक दिन\nरात को\nजंगल में\n', encoding='utf-8')
    variables = ['CONFIG=config/train_demo.py', 'DATASET=tiny', 'OUT_DIR=out/tiny', 'LANGUAGE=hindi']
    shape = '--n_layer=1 --n_embd=48 --block_size=64 --batch_size=2 --warmup_iters=0'
    for target, *more in (
            ['train', f'ARGS={shape} --max_iters=2'], ['train', f'ARGS={shape} --max_iters=4'],
            ['inference', 'PROMPT=एक दिन', 'MAX_NEW_TOKENS=20'], ['eval']):
        result = make(project, '-s', target, *variables, *more)
        assert result.returncode == 0, result.stderr
        assert target != 'inference' or result.stdout.startswith('एक दिन')
    assert [row['step'] for row in project.jsonl('out/tiny/log.jsonl')] == [2, 4]
    assert project.json('out/tiny/results.json')['models']['tiny']['stories'] == 3


# LeCarnet's variables, and what comes of them
LECARNET = [
    ('train', ['MODEL_CONFIG=8M'], ['train.py', 'config/train_lecarnet_8m.py', '--out_dir=out/lecarnet_8m']),
    ('inference', [], ['--init_from=MaxLSB/LeCarnet-3M', '--start=Il était une fois', '--max_new_tokens=512']),
    ('inference', ['MODEL_CONFIG=21M'], ['--init_from=MaxLSB/LeCarnet-21M']),
    ('inference', ['MODEL_NAME=a/b', 'PROMPT=Un chat', 'MAX_NEW_TOKENS=9'],
     ['--init_from=a/b', '--start=Un chat', '--max_new_tokens=9']),
    ('inference', ['OUT_DIR=out/mine'], ['--out_dir=out/mine']),
    ('generate-mistral', ['MISTRAL_MODEL=big', 'MISTRAL_REQUESTS=100', 'NUM_WORKERS=4'],
     ['--provider=mistral', '--model=big', '--total=100', '--num_workers=4']),
    ('generate-openai', ['OPENAI_MODEL=big', 'OPENAI_REQUESTS=7'], ['--provider=openai', '--model=big', '--total=7']),
    ('generate-openai', [], ['--total=20000']), ('generate-openai', ['OPENAI_REQUESTS='], ['--total=']),
    ('translate', ['SPLIT=train', 'MODEL=a/nllb'],
     ['--source=hf:roneneldan/TinyStories:train', '--model=a/nllb', '--out=data/french/translated/train.jsonl']),
    ('translate', ['SPLIT=test', 'SOURCE=hf:a/b', 'NLLB_MODEL=a/nllb'], ['--source=hf:a/b:test', '--model=a/nllb']),
    ('translate', ['SOURCE=my.jsonl', 'PROVIDER=mistral', 'MODEL=big'],
     ['--source=my.jsonl', '--provider=mistral', '--model=big']),
    ('push-dataset', ['FOLDER_PATH=my stories', 'REPO_NAME=a/b'], ['--source=my stories', '--push=a/b']),
    ('push-model', ['HF_REPO=a/b', 'MODEL_DIR=m/weights/'], ['--out_dir=m/weights/', '--push=a/b'])]


@pytest.mark.parametrize('target, variables, arguments', LECARNET)
def test_the_variables_of_lecarnet(project, target, variables, arguments):
    [command] = commands(project, target, *variables)
    assert set(arguments) <= set(command)


def test_eval_takes_a_model_and_a_judge(project):
    sample, evaluate = commands(project, 'eval', 'EVAL_MODEL=a/b', 'JUDGE_MODEL=big')
    assert {'--init_from=a/b', '--out=out/b/samples.jsonl'} <= set(sample)
    assert {'--samples=out/b/samples.jsonl', '--provider=mistral', '--model=big'} <= set(evaluate)


def test_a_value_is_text_for_make_and_the_shell(project):
    (project.path / 'sample.py').write_text('import json, sys; print(json.dumps(sys.argv))', encoding='utf-8')
    prompt = 'a "b" \'c\' $HOME $(shell touch made) `touch made` $$ ${x # ; & | \\n é, \\'
    for variable in ('PROMPT', 'START'):
        result = make(project, '-s', 'inference', f'{variable}={prompt}', 'OUT_DIR=o p')
        assert json.loads(result.stdout)[1:4] == ['--out_dir=o p', f'--start={prompt}', '--max_new_tokens=512']
    assert not (project.path / 'made').exists()


def test_every_setting_is_used_and_every_used_one_can_be_set():
    text = (PROJECT / 'Makefile').read_text(encoding='utf-8')
    header, rest = text.split('\nunexport ')
    settings = re.search(r'^SETTINGS = ((?:.*\\\n)*.*)', rest, re.M)[1].replace('\\', '').split()
    used = set(re.findall(r'\$\(([A-Z_]+)\)', rest.replace('$(MAKE)', '').replace('$(SETTINGS)', '')))
    assert set(settings) == used
    assert set(settings) - {'PY'} <= set(re.findall('[A-Z_]+', header))


@pytest.mark.parametrize('target, variable, message', [
    ('push-model', 'TOTAL=1', 'push-model needs REPO=user/name'),
    ('train', 'MISTRAL_REQUEST=100', 'no target uses MISTRAL_REQUEST; the first lines of the Makefile list'),
    ('generate-mistral', 'LANGUAGE=hindi', 'MISTRAL_API_KEY is not set'),
    ('generate-openai', 'OPENAI_REQUESTS=', "total must be int, such as 20000, not ''"),
    ('train', 'MODEL_CONFIG=5M', 'config/train_lecarnet_5m.py')])
def test_a_wrong_call_says_why(project, target, variable, message):
    result = make(project, target, variable)
    assert result.returncode == 2 and message in result.stderr.split('\n')[0]
