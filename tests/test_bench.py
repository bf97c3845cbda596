"""bench.py at small sizes: every stage has its row in the table. The peers are not here, so they are not tested."""

import pytest
from matplotlib import image

SMALL = [
    '--n_layer=1', '--n_head=2', '--n_embd=32', '--block_size=32', '--batch_size=4', '--vocab_size=600', '--steps=2',
    '--new_tokens=10', '--repetitions=1', '--n_prompts=3', '--device=cpu']


def rows_of(path):
    """The first two columns of a Markdown table."""
    lines = [line for line in path.read_text(encoding='utf-8').splitlines() if line.startswith('|')]
    return [[cell.strip() for cell in line.split('|')[1:3]] for line in lines[2:]]


def test_generation(project):
    text = project.run('bench.py', *SMALL, '--batches=[2]', "--stages=['generate']")
    (stage, rate), = rows_of(project.path / 'out/bench/bench.md')
    assert stage == 'generate, batch of 2' and 'tokens/s' in rate and rate in text


@pytest.mark.slow
def test_every_stage_has_its_row(project):
    stages = ['prepare', 'train', 'generate', 'many']
    project.run('bench.py', *SMALL, '--batches=[1, 4]', f'--stages={stages}')
    assert [stage for stage, _ in rows_of(project.path / 'out/bench/bench.md')] == [
        'prepare tokens', 'train', 'generate, batch of 1', 'generate, batch of 4', 'generate 9 stories']
    assert len(project.jsonl('out/bench/many.jsonl')) == 9


@pytest.mark.slow
def test_growth(project):
    sizes = {'n_embd': [32, 64]}
    project.run('bench.py', *SMALL, '--batches=[1]', "--stages=['grow']", f'--sizes={sizes}')
    assert [size for size, _ in rows_of(project.path / 'out/bench/growth.md')] == [
        'n_embd = 32', 'n_embd = 64', 'generation, batch of 1, the first and the tenth 100 tokens']
    picture = image.imread(project.path / 'out/bench/growth.png')
    height, width, _ = picture.shape
    assert picture[height // 2:, width * 3 // 4:].min() < 0.9  # no empty corner


@pytest.mark.slow
def test_wrong_settings(project):
    assert "there is no folder 'nowhere'" in project.refuses('bench.py', '--peers=nowhere', status=2)
    assert 'stages can be prepare' in project.refuses('bench.py', "--stages=['trian']", status=2)
