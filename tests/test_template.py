"""story_template: columns of the source in front of each story, from prepare.py to a story with the asked words."""

import itertools
import json

import numpy as np
import pytest

import tokenizer as tokenizers_of_all_kinds

TEMPLATE = '--story_template=Words: {words}; {mood}\\n{text}'  # \n as a shell passes it


def write_stories(project, n=60, **changes):
    """s.jsonl with n stories and the columns words and mood -> the rows."""
    rows = []
    for i in range(n):
        text = f'दिन {i} को राजा ने रानी से कहा, “{i * i} फूल!”\n\nThe end, {i}.'
        rows.append({'text': text, 'words': f'राजा, फूल {i}', 'mood': ['खुश', 'sad'][i % 2]} | changes)
    lines = [json.dumps(row, ensure_ascii=False) + '\n' for row in rows]
    (project.path / 's.jsonl').write_text(''.join(lines), encoding='utf-8')
    return rows


def prepare(project, *options, dataset='t'):
    project.run('prepare.py', '--source=s.jsonl', f'--dataset={dataset}', '--vocab_size=400', '--val_fraction=0.3',
                *options)
    return project.json(f'data/{dataset}/meta.json')


def stories_of(project, split, dataset='t'):
    """The decoded stories of a bin, with the template's part -> (texts, ids of each without bos and eos)"""
    folder = project.path / 'data' / dataset
    meta = project.json(f'data/{dataset}/meta.json')
    tok = tokenizers_of_all_kinds.load(str(folder / 'tokenizer.json'))
    ids = np.fromfile(folder / f'{split}.bin', '<u2').tolist()
    groups = itertools.groupby(ids, key=lambda i: i in (meta['bos'], meta['eos']))
    stories = [list(group) for is_mark, group in groups if not is_mark]
    return [tok.decode(story) for story in stories], stories, tok


def test_columns_stand_in_front_of_each_story(project):
    rows = write_stories(project)
    expected = {f'Words: {row["words"]}; {row["mood"]}\n{row["text"]}' for row in rows}
    meta = prepare(project, TEMPLATE)
    train, _, _ = stories_of(project, 'train')
    val, _, _ = stories_of(project, 'val')
    assert set(train + val) == expected and len(train + val) == len(rows)
    assert meta['story_template'] == 'Words: {words}; {mood}\n{text}'
    plain_meta = prepare(project, dataset='plain')
    plain, _, _ = stories_of(project, 'val', 'plain')
    assert [text.partition('\n')[2] for text in val] == plain  # the same stories are for validation
    assert plain_meta['story_template'] == '{text}' and plain_meta['prefix_tokens'] == {'val': 0}
    assert meta['bytes'] == plain_meta['bytes']  # of the stories alone


@pytest.mark.parametrize('name', ['train', 'larger', 'bpe.model'])
def test_the_tokens_of_the_template_are_counted(project, name):
    rows = write_stories(project)
    if name.endswith('.model'):
        sentencepiece = pytest.importorskip('sentencepiece')
        pytest.importorskip('google.protobuf')
        (project.path / 'all.txt').write_text('\n'.join(row['text'] for row in rows), encoding='utf-8')
        sentencepiece.SentencePieceTrainer.train(
            input=str(project.path / 'all.txt'), model_prefix=str(project.path / 'bpe'), vocab_size=400,
            model_type='bpe', byte_fallback=True, minloglevel=2, normalization_rule_name='identity')
    if name == 'larger':  # it is trimmed
        more = [f'The quick brown fox jumps over the lazy dog. {n:b}' for n in range(500)]
        tokenizers_of_all_kinds.train([row['text'] for row in rows] + more, 1000).save(project.path / 'larger')
    meta = prepare(project, TEMPLATE, f'--tokenizer={name}')
    lengths = np.fromfile(project.path / 'data/t/val_prefix.bin', '<u2')
    texts, stories, tok = stories_of(project, 'val')
    assert len(lengths) == len(stories) and lengths.sum() == meta['prefix_tokens']['val'] > 0
    for text, ids, n in zip(texts, stories, lengths):
        prefix, _, story = text.partition('\n')
        assert tok.decode(ids[:n]) == f'{prefix}\n'
        assert tok.decode(ids[n:]) == story


def test_white_space_of_the_template_can_be_in_a_token_of_the_story(project):
    write_stories(project)
    prepare(project, '--story_template={mood} {text}')
    texts, stories, tok = stories_of(project, 'val')
    longest = max(map(len, tok.encode_prefixes(['खुश ', 'sad '])))
    lengths = np.fromfile(project.path / 'data/t/val_prefix.bin', '<u2')
    assert len(lengths) == len(stories) and lengths.max() < longest  # ' दिन' is one token
    for text, ids, n in zip(texts, stories, lengths):
        assert tok.decode(ids[n:]).strip() == text.partition(' ')[2]


def test_a_fraction_of_the_stories_stays_plain(project):
    rows = write_stories(project, 400)
    prepare(project, TEMPLATE, '--plain_fraction=0.25')
    train, _, _ = stories_of(project, 'train')
    val, _, _ = stories_of(project, 'val')
    texts = {row['text'] for row in rows}
    assert 60 <= sum(text in texts for text in train + val) <= 140
    lengths = np.fromfile(project.path / 'data/t/val_prefix.bin', '<u2')
    assert [n == 0 for n in lengths] == [text in texts for text in val]


@pytest.mark.parametrize('value, prefix', [
    (['राजा', 'फूल'], 'Words: राजा, फूल; sad\n'), ('a\nb\u2028 c', 'Words: a b c; sad\n'), (7, 'Words: 7; sad\n'),
    ('{mood} {text}', 'Words: {mood} {text}; sad\n')])
def test_values_of_any_kind(project, value, prefix):
    write_stories(project, words=value, mood='sad')
    prepare(project, TEMPLATE)
    train, _, _ = stories_of(project, 'train')
    assert all(text.startswith(prefix) for text in train)


@pytest.mark.parametrize('option, changes, message', [
    (TEMPLATE, {'words': None}, "nothing in the column 'words'"),
    (TEMPLATE, {'mood': ' \n'}, "nothing in the column 'mood'"),
    (TEMPLATE, {'mood': float('nan')}, "nothing in the column 'mood'"), (TEMPLATE, {'words': []}, "nothing in"),
    ('--story_template={my words}\n{text}', {'my words': 'x'}, 'must consist of letters, digits and _'),
    ('--story_template={शब्द}\n{text}', {'शब्द': 'x'}, 'must consist of letters, digits and _'),
    ('--story_template={genre}\n{text}', {}, "nothing in the column 'genre'"),
    ('--story_template={text}{words}', {}, 'it must end with {text}'),
    ('--story_template=words', {}, 'it must end with {text}'),
    ('--story_template={text}{text}', {}, 'it must end with {text}'), ('--plain_fraction=2.0', {}, 'plain_fraction')])
def test_what_cannot_be_filled_is_one_line(project, option, changes, message):
    write_stories(project, **changes)
    assert message in project.refuses('prepare.py', '--source=s.jsonl', '--dataset=t', option)
    assert not (project.path / 'data/t/train.bin').exists()


@pytest.mark.slow
def test_a_model_gets_the_asked_words_and_writes_only_the_story(project):
    write_stories(project, 300)
    prepare(project, TEMPLATE)
    project.run('train.py', '--dataset=t', '--out_dir=out/t', '--device=cpu', '--n_layer=1', '--n_head=2',
                '--n_embd=32', '--block_size=64', '--batch_size=8', '--max_iters=30', '--eval_interval=30',
                '--eval_iters=2')
    (project.path / 'words.txt').write_text('राजा, फूल\nरानी, दिन\n', encoding='utf-8')
    command = ('sample.py', '--out_dir=out/t', '--device=cpu', '--max_new_tokens=20', '--start=दिन')
    assert 'needs 2 words' in project.refuses(*command, '--words=राजा, फूल, दिन')
    assert 'needs 2 words' in project.refuses(*command, '--words=राजा,')
    project.run(*command, '--words=FILE:words.txt', '--num_samples=2', '--out=o.jsonl')
    stories = project.jsonl('o.jsonl')
    assert [story['words'] for story in stories] == [{'words': 'राजा', 'mood': 'फूल'}] * 2 + [
        {'words': 'रानी', 'mood': 'दिन'}] * 2
    assert all(story['story'].startswith('दिन') for story in stories)
    assert project.run(*command, '--words=राजा, फूल').startswith('दिन')
    raw = project.run('sample.py', '--out_dir=out/t', '--device=cpu', '--max_new_tokens=20', '--temperature=0.0',
                      '--start=Words: राजा; फूल\nदिन')
    asked = project.run(*command, '--temperature=0.0', '--words=राजा, फूल')
    assert raw == f'Words: राजा; फूल\n{asked}'  # --start is raw text, the template is not


def test_losses_do_not_count_the_words_in_front(project):
    import torch

    from model import load_checkpoint, model_from
    write_stories(project, 300)
    meta = prepare(project, TEMPLATE, '--plain_fraction=0.3')
    project.run('train.py', '--dataset=t', '--out_dir=out/t', '--device=cpu', '--n_layer=1', '--n_head=2',
                '--n_embd=32', '--block_size=64', '--batch_size=8', '--max_iters=5', '--eval_interval=5',
                '--eval_iters=0')
    model = model_from(load_checkpoint(str(project.path / 'out/t/best.pt')))
    tokens = np.fromfile(project.path / 'data/t/val.bin', '<u2').astype(np.int64)
    counted = np.ones(len(tokens), bool)
    starts = np.flatnonzero(tokens == meta['bos'])
    for start, n in zip(starts, np.fromfile(project.path / 'data/t/val_prefix.bin', '<u2').astype(int)):
        counted[start + 1:start + 1 + n] = False
    assert counted.sum() == meta['tokens']['val'] - meta['prefix_tokens']['val']
    n = (len(tokens) - 1) // 64 * 64
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens[:n]).view(-1, 64)).flatten(0, 1)
    losses = torch.nn.functional.cross_entropy(logits, torch.from_numpy(tokens[1:n + 1]), reduction='none').numpy()
    expected = losses[counted[1:n + 1]].mean()
    assert abs(expected - losses.mean()) > 1e-3  # else this test shows nothing
    bits = expected / np.log(2) * counted.sum() / meta['bytes']['val']
    last = project.jsonl('out/t/log.jsonl')[-1]
    assert last['val_loss'] == pytest.approx(expected, rel=1e-4)
    assert last['bits_per_byte'] == pytest.approx(bits, rel=1e-4)
    (project.path / 'out/t/samples.jsonl').write_text('{"story": "राजा।"}\n', encoding='utf-8')
    project.run('evaluate.py', '--samples=out/t/samples.jsonl', '--loss_tokens=0')
    loss = project.json('out/t/results.json')['models']['t']['loss']
    assert loss['val_loss'] == pytest.approx(expected, rel=1e-2)  # it may use bfloat16
    assert loss['tokens'] == counted[1:n + 1].sum()
    (project.path / 'data/t/val_prefix.bin').write_bytes(b'\1\0')
    assert 'val_prefix.bin' in project.refuses('train.py', '--dataset=t', '--out_dir=out/u', '--device=cpu')


@pytest.mark.slow
def test_the_fields_of_tinystories_instruct(project):
    rows = []
    for i in range(40):
        rows.append({'story': f'Ben had {i} oaks.\n\n"I quit," said Ben.', 'words': ['oak', 'quit'],
                     'features': ['Dialogue', 'MoralValue'][:1 + i % 2], 'summary': f'Ben counts {i} trees.'})
    (project.path / 's.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')
    project.run('prepare.py', 'config/prepare_instruct.py', '--source=s.jsonl', '--vocab_size=400')
    texts = stories_of(project, 'train', 'instruct')[0] + stories_of(project, 'val', 'instruct')[0]
    fields = [text for text in texts if text.startswith('Words: oak, quit\nFeatures: Dialogue')]
    assert len(texts) == 40 > len(fields) >= 25 and all('trees.\nStory: Ben had' in text for text in fields)
    assert sum('Dialogue, MoralValue\nSummary: Ben counts' in text for text in fields) > 9
    project.run('train.py', '--dataset=instruct', '--out_dir=out/i', '--n_layer=1', '--n_head=2', '--n_embd=32',
                '--block_size=64', '--batch_size=4', '--max_iters=3', '--eval_interval=3', '--compile=False')
    start = 'Words: oak\nFeatures: Dialogue\nSummary: Ben.\nStory: Ben'
    assert start in project.run('sample.py', '--out_dir=out/i', '--max_new_tokens=5', f'--start={start}')
