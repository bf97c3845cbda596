"""Generating stories through the command line."""

import csv
import itertools

import pytest

import hub
from files import normalize, read_texts
from model import generate, load_checkpoint, save_checkpoint
from tokenizer import train as train_tokenizer


@pytest.fixture(scope='session')
def trained(prepared):
    """The prepared project with a model that has seen a few stories, in out/sample."""
    prepared.run('train.py', '--dataset=tiny', '--out_dir=out/sample', '--n_layer=2', '--n_head=2', '--n_embd=64',
                 '--block_size=128', '--batch_size=8', '--optimizer=muon', '--learning_rate=1e-2', '--max_iters=60',
                 '--warmup_iters=5', '--eval_interval=60', '--eval_iters=2')
    return prepared


def test_one_story_in_the_terminal(trained):
    command = ['sample.py', '--out_dir=out/sample', '--max_new_tokens=60']
    out = trained.run(*command, '--start=एक दिन ')
    assert out.startswith('एक दिन') and len(out) > 20 and '<s>' not in out
    assert out == trained.run(*command, '--start=एक दिन')
    assert out != trained.run(*command, '--start=एक दिन', '--seed=2')


@pytest.mark.slow
def test_several_stories_in_the_terminal(trained):
    out = trained.run('sample.py', '--out_dir=out/sample', '--num_samples=3', '--max_new_tokens=5')
    assert out.count('\n---\n') == 2


@pytest.mark.slow
def test_stories_in_files(trained):
    """The same stories in every format, in batches of any size and by any number of processes."""
    (trained.path / 'prompts.txt').write_text('एक दिन\n\nमीना और रवि बगीचे में खेल रहे थे।\nरात\n', encoding='utf-8')
    command = ['sample.py', '--out_dir=out/sample', '--start=FILE:prompts.txt', '--num_samples=4', '--top_p=0.9',
               '--max_new_tokens=150']
    assert '12 stories in stories.jsonl' in trained.run(*command, '--out=stories.jsonl')
    rows = trained.jsonl('stories.jsonl')
    assert [row['id'] for row in rows] == list(range(12))
    assert [row['prompt'] for row in rows[::4]] == ['एक दिन', 'मीना और रवि बगीचे में खेल रहे थे।', 'रात']
    for row in rows:
        assert row['story'].startswith(row['prompt'])
        assert row['ended'] in ('eos', 'length') and row['seed'] == 1337 + row['id']
    assert len({row['story'] for row in rows}) == 12

    torchrun = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', '--']
    trained.run(*torchrun, *command, '--batch_size=5', '--out=again.jsonl')
    assert trained.jsonl('again.jsonl') == rows
    trained.run(*command, '--out=stories.json')
    assert trained.json('stories.json') == rows
    trained.run(*command, '--out=stories.txt')
    text = (trained.path / 'stories.txt').read_text(encoding='utf-8')
    assert text.strip().split('\n\n<|endoftext|>\n\n') == [row['story'] for row in rows]
    trained.run(*command, '--out=stories.csv')
    assert table(trained, 'stories.csv') == [{key: str(value) for key, value in row.items()} for row in rows]
    assert list(read_texts(str(trained.path / 'stories.csv'))) == [normalize(row['story']) for row in rows]


def table(project, path):
    """The rows of a .csv file."""
    with open(project.path / path, encoding='utf-8', newline='') as f:
        return list(csv.DictReader(f))


@pytest.mark.slow
def test_words_are_columns_of_a_csv(trained):
    """A word called `prompt` does not replace the prompt. The space after the words can begin a token."""
    checkpoint = load_checkpoint(str(trained.path / 'out/sample/best.pt'))
    checkpoint['meta']['story_template'] = '{noun}, {prompt}: {text}'
    save_checkpoint(str(trained.path / 'out/words/best.pt'), checkpoint)
    trained.run('sample.py', '--out_dir=out/words', '--words=नदी, लाल', '--start=एक दिन', '--num_samples=2',
                '--max_new_tokens=5', '--out=words.csv')
    rows = table(trained, 'words.csv')
    assert list(rows[0]) == ['id', 'prompt', 'story', 'seed', 'ended', 'noun']
    assert all(row['story'].startswith('एक दिन') for row in rows)
    assert [(row['id'], row['prompt'], row['noun']) for row in rows] == [('0', 'एक दिन', 'नदी'), ('1', 'एक दिन', 'नदी')]


@pytest.mark.slow
def test_bad_words_and_no_repeated_ngrams(trained):
    command = ['sample.py', '--out_dir=out/sample', '--start=एक दिन', '--num_samples=8', '--max_new_tokens=100']
    trained.run(*command, '--out=plain.jsonl')
    text = ' '.join(row['story'][6:] for row in trained.jsonl('plain.jsonl'))
    word = next(word for word in ('ने', 'और', 'से', 'एक', 'था') if f' {word} ' in text)
    trained.run(*command, f'--bad_words=["{word}"]', '--out=clean.jsonl')
    assert not any(f' {word} ' in row['story'][6:] for row in trained.jsonl('clean.jsonl'))

    trained.run(*command, '--no_repeat_ngram=2', '--out=fresh.jsonl')
    model, tokenizer, _ = hub.load(str(trained.path / 'out/sample'))
    rows = trained.jsonl('fresh.jsonl')
    stories = [[tokenizer.bos, *tokenizer.encode('एक दिन')] for _ in rows]
    seeds = [row['seed'] for row in rows]
    for step in generate(model, stories, 100, tokenizer.eos, seeds, temperature=0.8, no_repeat_ngram=2):
        for i, token in step:
            stories[i].append(token)
    for row, ids in zip(rows, stories):
        pairs = list(itertools.pairwise(ids))
        assert row['story'] == tokenizer.decode(ids) and len(set(pairs)) == len(pairs)


@pytest.mark.slow
@pytest.mark.parametrize('argument, message', [
    ('--out_dir=out/nothing', 'train first'), ('--out=stories.doc', '.jsonl'), ('--top_p=0.0', 'top_p'),
    ('--start=FILE:nowhere.txt', 'nowhere.txt'), ('--quantize=int4', "'int8'"), ('--num_samples=0', 'num_samples'),
    ('--tokenizer=nowhere.json', 'nowhere.json'), ('--out_dir=out/nan', 'NaN'),
    ('--tokenizer=small.json', 'has 1,024 tokens')])
def test_refusals(trained, argument, message):
    checkpoint = load_checkpoint(str(trained.path / 'out/sample/best.pt'))
    checkpoint['model']['norm.weight'][3] = float('nan')
    save_checkpoint(str(trained.path / 'out/nan/best.pt'), checkpoint)
    (trained.path / 'small.json').write_text(train_tokenizer(['एक दिन'], 300).to_str(), encoding='utf-8')
    assert message in trained.refuses('sample.py', '--out_dir=out/sample', argument)


@pytest.mark.slow
def test_int8(trained):
    """8-bit weights give nearly the same story."""
    command = ['sample.py', '--out_dir=out/sample', '--start=एक दिन', '--max_new_tokens=12', '--temperature=0.0',
               '--device=cpu']
    quantized = trained.run(*command, '--quantize=int8')
    assert quantized.split()[:4] == trained.run(*command).split()[:4]


@pytest.mark.slow
def test_long_and_strange_prompts(trained):
    """A prompt longer than the context, or in letters that the model has never seen, is continued."""
    command = ['sample.py', '--out_dir=out/sample', '--max_new_tokens=20']
    trained.run(*command, '--start=' + 'एक दिन की बात है। ' * 100, '--out=long.json')
    row = trained.json('long.json')[0]
    assert len(row['story']) > len(row['prompt'])
    assert trained.run(*command, '--start=Ωμέγα 😀').startswith('Ωμέγα 😀')
