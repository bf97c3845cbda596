"""Each script runs with only the files of its row in docs/files.md beside it, copied into an otherwise empty folder."""

import json
import re
import shutil

import pytest
from conftest import PROJECT, Project

COPY_SETS = {
    'train.py': ['model.py', 'configurator.py', 'files.py'],
    'sample.py': ['model.py', 'tokenizer.py', 'configurator.py', 'files.py'],
    'prepare.py': ['tokenizer.py', 'configurator.py', 'files.py'],
    'generate_data.py': ['configurator.py', 'files.py'],
    'evaluate.py': ['metrics.py', 'configurator.py', 'files.py'],
}
TRAIN = [
    'train.py', '--dataset=tiny', '--out_dir=out/tiny', '--device=cpu', '--n_layer=1', '--n_head=2', '--n_embd=32',
    '--block_size=64', '--batch_size=4', '--gradient_accumulation_steps=2', '--eval_interval=2', '--eval_iters=2']


@pytest.fixture
def copy(tmp_path):
    """copy('train.py') -> a folder with its copy set."""
    def copy(script):
        (tmp_path / script.removesuffix('.py')).mkdir()
        return Project(tmp_path / script.removesuffix('.py'), [script, *COPY_SETS[script]])
    return copy


def copy_data(prepared, folder):
    shutil.copytree(prepared.path / 'data/tiny', folder.path / 'data/tiny')


def test_train_from_scratch_resume_and_sample(prepared, copy):
    folder = copy('train.py')
    copy_data(prepared, folder)
    out = folder.run(*TRAIN, '--max_iters=2')
    assert 'done at step 2' in out and re.search('[\u0900-\u097f]{2}', out)  # with a sample story
    assert 'done at step 4' in folder.run(*TRAIN, '--max_iters=4', '--init_from=resume')
    names = {path.name for path in (folder.path / 'out/tiny').iterdir()}
    assert names == {'ckpt.pt', 'best.pt', 'log.jsonl', 'loss.png'}
    refusal = folder.refuses(*TRAIN, '--out_dir=out/other', '--init_from=gpt2')
    assert refusal == 'train.py: hub.py is missing: copy it beside train.py'
    refusal = folder.refuses(*TRAIN, '--out_dir=out/other', '--plan=True')
    assert refusal == 'train.py: plan.py is missing: copy it beside train.py'

    sampling = copy('sample.py')
    shutil.copytree(folder.path / 'out', sampling.path / 'out')
    out = sampling.run('sample.py', '--out_dir=out/tiny', '--start=एक दिन', '--max_new_tokens=20', '--device=cpu')
    assert out.startswith('एक दिन')
    refusal = sampling.refuses('sample.py', '--init_from=user/model')
    assert refusal == 'sample.py: hub.py is missing: copy it beside sample.py'


@pytest.mark.slow
def test_train_in_two_processes(prepared, copy):
    folder = copy('train.py')
    copy_data(prepared, folder)
    torchrun = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', '--']
    assert 'done at step 2' in folder.run(*torchrun, *TRAIN, '--max_iters=2', '--backend=gloo')


def test_prepare(prepared, copy):
    folder = copy('prepare.py')
    source = prepared.path / 'data/tiny/stories.jsonl'
    folder.run('prepare.py', f'--source={source}', '--dataset=new', '--vocab_size=1024')
    assert folder.json('data/new/meta.json')['tokens'] == prepared.json('data/tiny/meta.json')['tokens']


def test_generate_with_the_grammar_then_with_a_chat_api(copy, chat_server):
    folder = copy('generate_data.py')
    no_stories = shutil.ignore_patterns('*.json*', '*.bin')
    shutil.copytree(PROJECT / 'data/hindi', folder.path / 'data/hindi', ignore=no_stories)
    folder.run('generate_data.py', '--language=hindi', '--total=20', '--out=stories.jsonl')
    assert len(folder.jsonl('stories.jsonl')) == 20

    shutil.copy(PROJECT / 'config/generate_hindi.py', folder.path)
    url = chat_server().url
    chat = ['generate_data.py', 'generate_hindi.py', f'--base_url={url}', '--model=m', '--total=4', '--out=a.jsonl']
    for missing in ('chat.py', 'replies.py'):
        assert folder.refuses(*chat) == f'generate_data.py: {missing} is missing: copy it beside generate_data.py'
        shutil.copy(PROJECT / missing, folder.path)
    folder.run(*chat)
    assert len(folder.jsonl('a.jsonl')) == 4


def test_evaluate(prepared, copy):
    folder = copy('evaluate.py')
    stories = prepared.jsonl('data/tiny/stories.jsonl')[:6]
    (folder.path / 'samples.jsonl').write_text('\n'.join(map(json.dumps, stories)), encoding='utf-8')
    folder.run('evaluate.py', '--samples=samples.jsonl')
    assert folder.json('results.json')['models']
    rubric = ['--template={story}', "--criteria={'grammar': ''}"]
    refusal = folder.refuses('evaluate.py', '--samples=samples.jsonl', '--provider=ollama', *rubric)
    assert refusal == 'evaluate.py: chat.py is missing: copy it beside evaluate.py'


@pytest.mark.parametrize('script', COPY_SETS)
def test_the_page_has_the_copy_set(script):
    page = (PROJECT / 'docs/files.md').read_text(encoding='utf-8')
    rows = [line.split('|')[2] for line in page.splitlines() if line.startswith(f'| `{script}` |')]
    assert any(all(f'`{name}`' in row for name in COPY_SETS[script]) for row in rows)
