"""prepare.py: the bins hold the stories, whatever the source and the tokenizer are."""

import csv
import gzip
import io
import json
import shutil
import unicodedata

import numpy as np
import pytest
from conftest import PROJECT, Project
from tokenizers import Tokenizer as Pipeline
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

import tokenizer

FILES = ['meta.json', 'tokenizer.json', 'tokenizer_config.json', 'train.bin', 'val.bin']


@pytest.fixture(scope='session')
def texts():
    """200 Hindi stories of two paragraphs."""
    lines = (PROJECT / 'data/hindi/prompts.txt').read_text(encoding='utf-8').splitlines()
    return [f'{lines[2 * i]}\n\n{lines[2 * i + 1]}' for i in range(200)]


@pytest.fixture
def home(project, texts):
    """A project with these stories in s.jsonl."""
    write_jsonl(project.path / 's.jsonl', texts)
    return project


@pytest.fixture(scope='session')
def reference(tmp_path_factory, texts):
    """The folder with the bins of these stories. Tests do not change it."""
    project = Project(tmp_path_factory.mktemp('reference'))
    write_jsonl(project.path / 's.jsonl', texts)
    return prepare(project)


@pytest.fixture(scope='session')
def pretrained(tmp_path_factory, texts):
    """A folder with a tokenizer that has more tokens than these stories need."""
    folder = tmp_path_factory.mktemp('pretrained')
    more = [f'The quick brown fox jumps over the lazy dog. {n:b}' for n in range(500)]
    tokenizer.train(texts + more, 2000).save(folder)
    return folder


def write_jsonl(path, texts):
    rows = [json.dumps({'id': i, 'text': text}, ensure_ascii=False) + '\n' for i, text in enumerate(texts)]
    path.write_text(''.join(rows), encoding='utf-8')


def prepare(project, source='s.jsonl', *options, dataset='t'):
    """Run prepare.py -> the folder of the bins."""
    project.run('prepare.py', f'--source={source}', f'--dataset={dataset}', '--vocab_size=600', '--num_proc=1',
                *options, HF_HOME=str(project.path / 'cache'))
    return project.path / 'data' / dataset


def bins(folder):
    return {split: np.fromfile(folder / f'{split}.bin', '<u2') for split in ('train', 'val')}


def stories_in(folder):
    """{split: the stories of its bin}, after a check of the layout."""
    tok = tokenizer.load(str(folder))
    found = {}
    for split, ids in bins(folder).items():
        stories = np.split(ids, np.flatnonzero(ids == tok.eos) + 1)
        assert len(stories.pop()) == 0  # the last story is closed too
        if tok.bos == tok.eos:
            assert stories.pop(0).tolist() == [tok.bos]
        else:
            assert all(story[0] == tok.bos for story in stories) and (ids == tok.bos).sum() == len(stories)
        found[split] = [tok.decode(story) for story in stories]
    return found


def pipeline_of_words(vocab):
    """The text of a tokenizer.json that knows only these words."""
    tok = Pipeline(models.WordLevel(vocab, unk_token='[UNK]'))
    tok.pre_tokenizer = pre_tokenizers.Whitespace()
    return tok.to_str()


def read_rows(text):
    return [json.loads(line) for line in text.splitlines()]


def n_stories(project):
    return sum(project.json('data/t/meta.json')['stories'].values())


def same_bins(a, b):
    names = ('train.bin', 'val.bin', 'tokenizer.json')
    return all((a / name).read_bytes() == (b / name).read_bytes() for name in names)


# -----------------------------------------------------------------------------
# what the bins hold


def test_the_bins_hold_the_stories(reference, texts):
    found = stories_in(reference)
    assert found['train'] and found['val']
    for stories in found.values():
        assert stories == sorted(stories, key=texts.index)  # in the order of the source
    assert sorted(found['train'] + found['val']) == sorted(texts)
    assert sorted(path.name for path in reference.iterdir()) == FILES


def test_meta(reference):
    meta = json.loads((reference / 'meta.json').read_text(encoding='utf-8'))
    tok = tokenizer.load(str(reference))
    found = stories_in(reference)
    ids = bins(reference)
    for split, stories in found.items():
        assert meta['stories'][split] == len(stories)
        assert meta['tokens'][split] == len(ids[split])
        assert meta['bytes'][split] == sum(len(text.encode()) for text in stories)
        assert meta['words'][split] == sum(len(text.split()) for text in stories)
    assert (meta['vocab_size'], meta['bos'], meta['eos']) == (tok.vocab_size, tok.bos, tok.eos)
    assert (meta['dtype'], meta['tokenizer'], meta['config']['source']) == ('uint16', 'train', 's.jsonl')
    assert meta['longest'] == 2 + max(len(tok.encode(text)) for text in found['train'] + found['val'])


@pytest.mark.slow
def test_more_threads_give_the_same_bins(home, reference):
    assert same_bins(reference, prepare(home, 's.jsonl', '--num_proc=2'))


def test_adding_stories_moves_none(home, texts):
    write_jsonl(home.path / 'some.jsonl', texts[:120])
    write_jsonl(home.path / 'all.jsonl', texts[::-1])
    some = stories_in(prepare(home, 'some.jsonl', '--val_fraction=0.2'))
    more = stories_in(prepare(home, 'all.jsonl', '--val_fraction=0.2'))
    assert set(some['train']) < set(more['train']) and set(some['val']) < set(more['val'])
    assert 20 < len(more['val']) < 65
    other_seed = stories_in(prepare(home, 's.jsonl', '--val_fraction=0.2', '--seed=1'))
    assert set(other_seed['val']) != set(more['val'])


def test_validation_stories_from_a_source_of_their_own(home, texts):
    write_jsonl(home.path / 'val.jsonl', texts[:7])
    found = stories_in(prepare(home, 's.jsonl', '--val_source=val.jsonl'))
    assert found == {'train': texts, 'val': texts[:7]}
    found = stories_in(prepare(home, 's.jsonl', '--val_source=val.jsonl', '--deduplicate=True'))
    assert found == {'train': texts[7:], 'val': texts[:7]}


def test_only_the_first_stories_are_used(home, texts):
    found = stories_in(prepare(home, 's.jsonl', '--max_stories=30', '--val_fraction=0'))
    assert found == {'train': texts[:30], 'val': []}


def test_rows_of_several_splits_are_refused(home, texts):
    rows = [{'text': text, 'split': 'train'} for text in texts]
    (home.path / 'all.json').write_text(json.dumps([*rows, {'text': texts[0], 'split': 'test'}]), encoding='utf-8')
    assert 'several splits (test, train)' in home.refuses('prepare.py', '--source=all.json', '--dataset=t')
    assert not (home.path / 'data/t/train.bin').exists()
    (home.path / 'all.json').write_text(json.dumps(rows), encoding='utf-8')
    assert stories_in(prepare(home, 'all.json', '--val_fraction=0'))['train'] == texts


@pytest.mark.parametrize('options, rest', [
    ([], '; --deduplicate=True drops them from train.bin'),
    (['--deduplicate=True'], '; they were dropped from train.bin')])
def test_validation_stories_that_stand_in_source_are_counted(home, texts, options, rest):
    """They are the same after normalisation: other line ends, white space, case."""
    (home.path / 'val.txt').write_bytes('<|endoftext|>'.join(
        [texts[0], texts[1].replace('\n', '\r\n') + ' ', 'Ein neues Ende', 'Ein neues Ende']).encode())
    write_jsonl(home.path / 'train.jsonl', [*texts, 'EIN NEUES ENDE'])
    write_jsonl(home.path / 'new.jsonl', ['Ganz neu'])
    command = ['prepare.py', '--source=train.jsonl', '--val_source=val.txt', '--dataset=t', '--vocab_size=400']
    out = home.run(*command, '--lower_case=True', *options)
    n = 3 if options else 4  # copies in val_source are dropped, too
    assert f'\n{n} stories of val_source also stand in source{rest}\n' in out
    assert 'stories of val_source' not in home.run(*command, *options, '--val_source=new.jsonl')


def test_copies_can_be_dropped(home, texts):
    write_jsonl(home.path / 'twice.jsonl', [*texts[:50], *texts[:50], f'  {texts[0]}\n'])
    both = stories_in(prepare(home, 'twice.jsonl'))
    once = stories_in(prepare(home, 'twice.jsonl', '--deduplicate=True'))
    assert len(both['train'] + both['val']) == 101
    assert sorted(once['train'] + once['val']) == sorted(texts[:50])


def test_text_is_cleaned(project):
    """NFC, stripped, not empty, without the marks of data for GPT-2; half a surrogate pair becomes U+FFFD."""
    rows = [json.dumps({'text': unicodedata.normalize('NFD', 'CAFÉ ड़')}), r'{"text": "  \n spaced \n"}',
            r'{"text": "broken \ud83d end"}', '{"text": "  "}', '{"text": null}', r'{"text": "whole \ud83d\ude00 end"}',
            '{"text": "<|startoftext|>marked<|endoftext|>"}',
            r'{"text": "one NUL\u0000 in a text of more than fifty characters is removed"}']
    (project.path / 's.jsonl').write_text('\n'.join(rows), encoding='utf-8')
    found = stories_in(prepare(project, 's.jsonl', '--val_source=s.jsonl', '--lower_case=True'))
    broken = found['train'].pop(2)
    assert broken.replace('\ufffd', '') == 'broken  end' and '\ufffd' in broken
    assert found['train'] == [unicodedata.normalize('NFC', 'café ड़'), 'spaced', 'whole 😀 end', 'marked',
                              'one nul in a text of more than fifty characters is removed']


# -----------------------------------------------------------------------------
# sources; test_files.py has more kinds of files


def test_a_table_with_a_named_column(home, texts, reference):
    with open(home.path / 's.csv', 'w', encoding='utf-8', newline='') as f:
        csv.writer(f).writerows([['text', 'kahani'], *[['x', text] for text in texts]])
    assert same_bins(reference, prepare(home, 's.csv', '--text_column=kahani'))


def test_a_folder_of_packed_files(home, texts, reference):
    folder = home.path / 'in [1]'
    folder.mkdir()
    (folder / 'a.json').write_text(json.dumps({'tags': ['a'], 'stories': texts[:90]}), encoding='utf-8')
    (folder / 'b.txt.gz').write_bytes(gzip.compress('<|endoftext|>'.join(texts[90:]).encode()))
    assert same_bins(reference, prepare(home, 'in [1]'))


def csv_table(texts, delimiter):
    f = io.StringIO()
    csv.writer(f, delimiter=delimiter).writerows([['id', 'Story'], *enumerate(texts)])
    return f.getvalue()


@pytest.mark.parametrize('kind', ['.txt', '.csv', '.tsv', '.json', '.jsonl.gz', '.parquet',
                                  pytest.param('hf:', marks=pytest.mark.slow)])
def test_the_same_texts_give_the_same_bins(home, texts, reference, kind):
    """Whatever the line ends, the white space around a story, the encoding and the form of Unicode are."""
    texts = [f' {unicodedata.normalize("NFD", text)}\n'.replace('\n', '\r\n') for text in texts]
    path = home.path / f'in{kind}'
    source = path.name
    if kind == 'hf:':
        source = 'hf:./hub:train'
        path = home.path / 'hub/train.jsonl'
        path.parent.mkdir()
        write_jsonl(path, texts)
    if kind == '.parquet':
        parquet = pytest.importorskip('pyarrow.parquet')
        import pyarrow
        parquet.write_table(pyarrow.table({'n': range(len(texts)), 'text': texts}), path)
    path_bytes = {
        '.txt': '<|endoftext|>'.join(texts).encode('utf-16'),
        '.csv': csv_table(texts, ';').encode('utf-8-sig'),
        '.tsv': csv_table(texts, '\t').encode('utf-16'),
        '.json': json.dumps({str(i): {'text': text} for i, text in enumerate(texts)}).encode(),
        '.jsonl.gz': gzip.compress(b''.join(json.dumps({'text': text}).encode() + b'\r\n' for text in texts))}
    if kind in path_bytes:
        path.write_bytes(path_bytes[kind])
    assert same_bins(reference, prepare(home, source))


def test_what_was_taken_for_a_story_is_printed(home, texts):
    """Also how many rows have none."""
    (home.path / 'in').mkdir()
    for i in range(40):
        (home.path / f'in/{i:02}.txt').write_text(f'\n{texts[i]}\n', encoding='utf-8')
    (home.path / 'in/99.txt').write_text(' \n', encoding='utf-8')
    out = home.run('prepare.py', '--source=in', '--dataset=t', '--vocab_size=400')
    lines = out.splitlines()
    assert lines[0].endswith('00.txt: a story is each .txt file')
    for number, line in enumerate(lines[1:3]):
        assert line.startswith(f'  {number + 1}. {texts[number][:50]}')
        assert line.endswith(f'({len(texts[number])} characters)')
    assert '\n1 rows without a story\n' in out and n_stories(home) == 40
    out = home.run('prepare.py', '--source=in', '--dataset=t', '--vocab_size=400', r'--separator=\n\n')
    assert "a story is text between '\\n\\n'" in out
    assert n_stories(home) == 80


HUB_LAYOUTS = {  # the files of data sets on the hub, and the column with the story
    'TinyStories': (['data/train-00000-of-00002-2d5a1467fff1081b.parquet',
                     'data/train-00001-of-00002-5852b56a2bd28fd9.parquet',
                     'data/validation-00000-of-00001-869c898b519ad725.parquet'], 'text'),
    'TinyStories-Regional': (['train-1.json', 'train-2.json'], 'story'),
    'TinyStories-Regional, translated': (['data/train-00000-of-00002.parquet', 'data/train-00001-of-00002.parquet'],
                                         'Translated Story'),
    'TinyNews': (['train.txt', 'validation.txt'], None),
}


@pytest.mark.slow
@pytest.mark.parametrize('name', HUB_LAYOUTS)
def test_data_sets_of_the_hub(project, name):
    pytest.importorskip('datasets')
    parquet = pytest.importorskip('pyarrow.parquet')
    import pyarrow
    paths, column = HUB_LAYOUTS[name]
    expected = {'train': [], 'validation': []}
    for path in paths:
        stories = [f'Story {i} of {path}.' for i in range(9)]
        expected['validation' if 'validation' in path else 'train'] += stories
        file = project.path / 'hub' / path
        file.parent.mkdir(parents=True, exist_ok=True)
        rows = [{'ID': i, column: story} for i, story in enumerate(stories)]
        if file.suffix == '.parquet':
            parquet.write_table(pyarrow.Table.from_pylist(rows), file)
        else:
            file.write_text(json.dumps(rows) if column else '\n'.join(stories), encoding='utf-8')
    options = ['--val_source=hf:./hub:validation'] if expected['validation'] else ['--val_fraction=0']
    found = stories_in(prepare(project, 'hf:./hub', *options))
    assert found == {'train': expected['train'], 'val': expected['validation']}


# -----------------------------------------------------------------------------
# pretrained tokenizers


def test_trimming_changes_only_the_ids(home, pretrained, texts):
    write_jsonl(home.path / 's.jsonl', texts[:40])
    trimmed = prepare(home, 's.jsonl', f'--tokenizer={pretrained}')
    whole = prepare(home, 's.jsonl', f'--tokenizer={pretrained}', '--trim=False', dataset='whole')
    small = tokenizer.load(str(trimmed))
    full = tokenizer.load(str(whole))
    assert small.vocab_size < full.vocab_size == tokenizer.load(str(pretrained)).vocab_size
    for split, ids in bins(whole).items():
        tokens = [full.backend.id_to_token(int(i)) for i in ids]
        assert [small.backend.id_to_token(int(i)) for i in bins(trimmed)[split]] == tokens
    assert small.decode(small.encode('Quite another text: 漢字 🐘!')) == 'Quite another text: 漢字 🐘!'
    assert sorted(path.name for path in trimmed.iterdir()) == FILES


def test_one_token_as_bos_and_eos(home, pretrained, texts):
    shutil.copytree(pretrained, home.path / 'gpt2')
    names = '{"bos_token": "<|endoftext|>", "eos_token": {"content": "<|endoftext|>"}}'
    (home.path / 'gpt2/tokenizer_config.json').write_text(names, encoding='utf-8')
    folder = prepare(home, 's.jsonl', '--tokenizer=gpt2', '--val_source=s.jsonl')
    assert stories_in(folder) == {'train': texts, 'val': texts}
    meta = home.json('data/t/meta.json')
    assert meta['bos'] == meta['eos'] and (bins(folder)['train'] == meta['eos']).sum() == len(texts) + 1


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['train', 'pretrained'])
def test_special_tokens(home, pretrained, kind):
    """</h> becomes one token; bos and eos in a story are ordinary text."""
    texts = [f'Boats leave port{i}</h> The </s> boats <|endoftext|> left <s> at {i}.' for i in range(40)]
    write_jsonl(home.path / 's.jsonl', texts)
    name = 'train' if kind == 'train' else pretrained
    options = ['config/prepare_news.py', '--source=s.jsonl', '--dataset=t', '--vocab_size=300', '--val_source=s.jsonl']
    folder = prepare(home, 's.jsonl', f'--tokenizer={name}', *options)
    assert stories_in(folder)['train'] == stories_in(folder)['val'] == [text.lower() for text in texts]
    tok = tokenizer.load(str(folder))
    mark, = tok.encode('</h>')
    assert (bins(folder)['train'] == mark).sum() == len(texts)
    from transformers import AutoTokenizer
    auto = AutoTokenizer.from_pretrained(folder)
    assert auto.encode('boats</h> leave', add_special_tokens=False) == tok.encode('boats</h> leave')


def test_a_story_that_a_tokenizer_cannot_encode_is_refused(home):
    spec = dict.fromkeys(('normalizer', 'pre_tokenizer', 'post_processor', 'decoder'))
    spec |= {'version': '1.0', 'added_tokens': [], 'model': {'type': 'BPE', 'vocab': {'a': 0, 'b': 1}, 'merges': []}}
    (home.path / 't.json').write_text(json.dumps(spec), encoding='utf-8')
    write_jsonl(home.path / 's.jsonl', ['a', 'xyz', 'b'])
    refusal = home.refuses('prepare.py', '--source=s.jsonl', '--dataset=u', '--tokenizer=t.json', status=1)
    assert "t.json has no token for anything in 'xyz'" in refusal


def wordpiece(texts):
    """BERT's uncased kind of tokenizer, which also drops accents and vowel signs."""
    tok = Pipeline(models.WordPiece(unk_token='[UNK]'))
    tok.normalizer = normalizers.BertNormalizer(lowercase=True)
    tok.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tok.decoder = decoders.WordPiece()
    tok.train_from_iterator(texts, trainers.WordPieceTrainer(special_tokens=['[UNK]'], show_progress=False))
    return tok


def bpe(unk, pre_tokenizer):
    def make(texts):
        tok = Pipeline(models.BPE(unk_token=unk))
        tok.pre_tokenizer = pre_tokenizer
        special = [unk] if unk else []
        tok.train_from_iterator(texts, trainers.BpeTrainer(special_tokens=special, show_progress=False))
        return tok
    return make


def unigram(texts):
    tok = Pipeline(models.Unigram())
    tok.pre_tokenizer = pre_tokenizers.Metaspace()
    tok.train_from_iterator(texts, trainers.UnigramTrainer(
        vocab_size=300, special_tokens=['<?>'], unk_token='<?>', show_progress=False))
    return tok


UNKNOWN_KINDS = {
    'wordpiece': wordpiece, 'unigram': unigram, 'characters': bpe('<oov>', pre_tokenizers.Whitespace()),
    'characters without unk': bpe(None, pre_tokenizers.Whitespace()),
    'bytes without all bytes': bpe(None, pre_tokenizers.ByteLevel())}


@pytest.mark.parametrize('kind', UNKNOWN_KINDS)
def test_a_tokenizer_that_lacks_letters_is_refused(home, texts, kind):
    """Its unknown tokens are counted, and so is what it drops without one."""
    known = ['the owl saw a nut, a leaf and the sea. ' * 5] * 20
    make = UNKNOWN_KINDS[kind]
    make(known).save(str(home.path / 't.json'))
    write_jsonl(home.path / 'mixed.jsonl', [*known, *[f'the owl saw {text[:10]}' for text in texts[:20]]])
    write_jsonl(home.path / 'known.jsonl', known)
    command = ['prepare.py', '--dataset=t', '--tokenizer=t.json', '--val_source=known.jsonl']
    refusal = home.refuses(*command, '--source=mixed.jsonl', status=1)
    assert 'of train is unknown to t.json, more than max_unknown=0.001; train a tokenizer' in refusal
    assert not list((home.path / 'data/t').iterdir())
    home.run(*command, '--source=mixed.jsonl', '--max_unknown=0.9')
    unknown = home.json('data/t/meta.json')['unknown']
    assert 0.01 < unknown['train'] < 0.5 and unknown['val'] == 0
    out = home.run(*command, '--source=known.jsonl')
    assert 'unknown               0.00%        0.00%' in out


def test_the_share_of_unknown_tokens(home):
    spec = json.loads(pipeline_of_words({'owl': 0, 'nut': 1, '[UNK]': 2}))
    (home.path / 't.json').write_text(json.dumps(spec), encoding='utf-8')
    write_jsonl(home.path / 's.jsonl', ['owl nut owl leaf'] * 3)
    write_jsonl(home.path / 'v.jsonl', ['owl nut'])
    home.run('prepare.py', '--source=s.jsonl', '--val_source=v.jsonl', '--dataset=t', '--tokenizer=t.json',
             '--max_unknown=0.5')
    assert home.json('data/t/meta.json')['unknown'] == {'train': pytest.approx(1 / 6), 'val': 0}  # of 4, bos and eos


def byte_level(normalizer=None, **model):
    """The dict of a tokenizer.json with all bytes; its bos, eos and unknown token are one, as GPT-2's."""
    tok = Pipeline(models.BPE(unk_token='<|endoftext|>'))
    tok.normalizer = normalizer
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(['the owl saw a nut'] * 9, trainers.BpeTrainer(
        special_tokens=['<|endoftext|>'], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    spec = json.loads(tok.to_str())
    spec['model'] |= model
    return spec


@pytest.mark.parametrize('normalizer, before, after', [
    (None, None, None), (normalizers.Lowercase(), "'The'", "'the'"),
    (normalizers.Replace('\n\n', ' '), 'nut.\\n\\nÉté', "'nut.'"),
    (normalizers.Replace('क्\u200dष', 'क्ष'), 'क्\\u200dष', 'क्ष')])
def test_a_tokenizer_that_changes_texts_is_noted(home, normalizer, before, after):
    """Nothing else is: its unknown token is also bos and eos, and its dropout would give other ids each time."""
    spec = byte_level(normalizer, dropout=0.5)
    (home.path / 't.json').write_text(json.dumps(spec), encoding='utf-8')
    write_jsonl(home.path / 's.jsonl', ['The owl saw a nut.\n\nÉté क्\u200dष'] * 20)
    out = home.run('prepare.py', '--source=s.jsonl', '--val_source=s.jsonl', '--dataset=t', '--tokenizer=t.json',
                   '--trim=False')
    lines = [line for line in out.splitlines() if 'the tokenizer changes texts' in line]
    assert len(lines) == bool(normalizer)
    assert not lines or before in lines[0] and after in lines[0].split(' becomes ')[1]
    train, val = bins(home.path / 'data/t').values()
    assert train.tolist() == val.tolist() and home.json('data/t/meta.json')['unknown'] == {'train': 0, 'val': 0}


@pytest.mark.slow
def test_a_sentencepiece_model_is_trained(home, texts):
    """Its .model lies beside the bins, until they are made by another tokenizer."""
    sentencepiece = pytest.importorskip('sentencepiece')
    texts = [f'{text}</h> two  spaces\n 🐘' for text in texts]
    write_jsonl(home.path / 's.jsonl', texts)
    options = ['--tokenizer=train:sentencepiece', '--vocab_size=700', "--special_tokens=['</h>']", '--val_fraction=0']
    folder = prepare(home, 's.jsonl', *options)
    model = (folder / 'tokenizer.model').read_bytes()
    sp = sentencepiece.SentencePieceProcessor(model_proto=model)
    expected = []
    for ids in sp.encode(texts):
        expected += [sp.bos_id(), *ids, sp.eos_id()]
    assert bins(folder)['train'].tolist() == expected
    assert home.json('data/t/meta.json')['vocab_size'] == sp.vocab_size() == 700
    prepare(home, 's.jsonl', *options)
    assert (folder / 'tokenizer.model').read_bytes() == model
    prepare(home)
    assert sorted(path.name for path in folder.iterdir()) == FILES

    (folder / 'tokenizer.model').write_bytes(b'of another program')
    prepare(home)
    assert (folder / 'tokenizer.model').read_bytes() == b'of another program'
    command = ['prepare.py', '--source=s.jsonl', '--dataset=t', '--tokenizer=train:sentencepiece']
    assert 'Vocabulary size is smaller' in home.refuses(*command, '--vocab_size=280', status=1)
    assert 'vocab_size is -5' in home.refuses(*command, '--vocab_size=-5', status=2)
    (home.path / 'bad.jsonl').write_text('{"text": "x"}\n{"text": 3}\n', encoding='utf-8')
    assert 'bad.jsonl, row 2: text is not text but 3' in home.refuses(*command, '--source=bad.jsonl', status=1)
    (home.path / 'sentencepiece.py').write_text('raise ModuleNotFoundError(name="sentencepiece")', encoding='utf-8')
    assert 'a package is missing: pip install sentencepiece' in home.refuses(*command, status=1)


# -----------------------------------------------------------------------------
# what it prints


def test_bins_as_text(prepared):
    out = prepared.run('prepare.py', '--dataset=tiny', '--decode=20')
    tok = tokenizer.load(str(prepared.path / 'data/tiny'))
    for split, ids in bins(prepared.path / 'data/tiny').items():
        shown = out.split(f'--- the first 20 tokens of {split}.bin\n')[1]
        assert shown.startswith('<s>' + tok.decode(ids[:20]).rstrip('\ufffd'))


def test_a_terminal_obeys_no_text_of_a_file(home):
    """Neither a story, nor the name of a column in a line about the table or an error."""
    (home.path / 's.csv').write_text('\x1b[2J story,\x9b5n\n\x1b]0;owned\x07The owl.,1\n' * 9, encoding='utf-8')
    out = home.run('prepare.py', '--source=s.csv', '--dataset=t', '--vocab_size=300', '--decode=20')
    assert out.count('The owl.') >= 3
    refusal = home.refuses('prepare.py', '--source=s.csv', '--dataset=t', '--text_column=x')
    assert 'no column x' in refusal and not {'\x1b', '\x9b', '\x07'} & set(out + refusal)


def test_bad_data_keeps_the_old_bins(home, reference, pretrained):
    folder = home.path / 'data/t'
    shutil.copytree(reference, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (home.path / 'bad.jsonl').write_text('{"text": "x"}\n' * 50 + '{"text": 3}\n', encoding='utf-8')
    for name in ('train', pretrained):
        refusal = home.refuses('prepare.py', '--source=bad.jsonl', '--dataset=t', f'--tokenizer={name}', status=1)
        assert refusal == 'prepare.py: bad.jsonl, row 51: text is not text but 3'
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.slow
@pytest.mark.parametrize('status, options, message', [
    (2, ['--source='], '--source= names the stories'),
    (2, ['--val_fraction=1'], 'val_fraction is 1.0'),
    (2, ['--vocab_size=100'], 'vocab_size is 100'),
    (2, ['--max_unknown=2'], 'max_unknown is 2.0'),
    (1, ['--val_source=s.jsonl', '--deduplicate=True'], 'another val_source'),
    (2, ['--special_tokens=[1]'], 'special_tokens must be a list of strings'),
    (1, ['--tokenizer=nowhere.json'], "tokenizer 'nowhere.json': no such file"),
    (1, ['--tokenizer=nobody/nothing'], 'nobody/nothing'),
    (1, ['--source=nowhere.jsonl'], 'nowhere.jsonl'),
    (1, ['--source=empty.txt'], 'empty.txt contains no stories'),
    (1, ['--source=', '--decode=5'], 'train.bin is missing'),
])
def test_refusals(home, status, options, message):
    (home.path / 'empty.txt').write_text(' \n\n', encoding='utf-8')
    refusal = home.refuses('prepare.py', '--source=s.jsonl', '--dataset=t', *options, status=status)
    folder = home.path / 'data/t'
    assert message in refusal and not (folder.exists() and list(folder.iterdir()))


# -----------------------------------------------------------------------------
# comparing tokenizers


def test_tokenizers_are_compared_on_the_stories(home, pretrained):
    folder = home.path / 'data/t'
    home.run('prepare.py', '--source=s.jsonl', '--dataset=t', '--vocab_size=600', '--val_fraction=0.0',
             f"--compare=['train', '{pretrained}']")
    assert not (folder / 'train.bin').exists() and (folder / 'tokenizers.png').stat().st_size > 10_000
    rows = home.json('data/t/tokenizers.json')['rows']
    assert [row['tokenizer'] for row in rows] == ['train', pretrained.name]
    assert str(pretrained.parent) not in (folder / 'tokenizers.json').read_text(encoding='utf-8')
    meta = json.loads((prepare(home, 's.jsonl', '--val_fraction=0.0') / 'meta.json').read_text(encoding='utf-8'))
    n_tokens = meta['tokens']['train'] - 2 * meta['stories']['train']  # without bos and eos
    own = rows[0]
    assert own['vocabulary'] == meta['vocab_size']
    assert own['tokens_per_story'] == pytest.approx(n_tokens / meta['stories']['train'])
    assert own['tokens_per_word'] == pytest.approx(n_tokens / meta['words']['train'])
    assert own['bytes_per_token'] == pytest.approx(meta['bytes']['train'] / n_tokens)
    assert own['unknown'] == 0 and all(0 < row['used'] <= 1 for row in rows)
    assert all(0 < row['whole_words'] < 1 and 0 < row['renyi_efficiency'] < 1 for row in rows)
    tok = tokenizer.load(str(folder))
    ids = bins(folder)['train']
    p = np.bincount(ids[(ids != tok.bos) & (ids != tok.eos)]) / n_tokens
    assert own['renyi_entropy'] == pytest.approx(np.log2((p ** 2.5).sum()) / -1.5)
    assert own['renyi_efficiency'] == pytest.approx(own['renyi_entropy'] / np.log2(tok.vocab_size))
    text = (folder / 'tokenizers.md').read_text(encoding='utf-8')
    assert text.count('\n| ') == 4 and 'renyi_entropy' in text
    assert '--source=' in home.refuses('prepare.py', "--compare=['train']")
    assert 'nosuch' in home.refuses('prepare.py', '--source=s.jsonl', "--compare=['nosuch.model']")


# -----------------------------------------------------------------------------
# data sets on the hub


@pytest.mark.slow
def test_a_folder_of_any_stories_becomes_a_data_set(home, texts, server):
    """With the splits of the bins, all columns in one form, and a card; read again, it gives the same stories."""
    yaml = pytest.importorskip('yaml')
    (home.path / 'french').mkdir()
    rows = [{'text': 'A title', 'story': text, 'n': i, 'tags': ['a'] * (i % 3)} for i, text in enumerate(texts[:80])]
    rows[3] |= {'n': 0.5, 'more': {'a': [1]}}
    rows[4] |= {'n': float('nan'), 'tags': None, 'more': 'x', 'model': '<b>someone'}
    (home.path / 'french/a.json').write_text(json.dumps(rows), encoding='utf-8')
    with open(home.path / 'french/b.csv', 'w', encoding='utf-8', newline='') as f:
        csv.writer(f).writerows([['id', 'Story'], *enumerate(texts[80:])])
    hub = server('hub_server.py')
    env = {'HF_ENDPOINT': hub.url, 'HF_TOKEN': 'hf_test', 'HF_HUB_OFFLINE': '0', 'HF_HUB_DISABLE_XET': '1'}
    command = ['prepare.py', '--source=french', '--val_fraction=0.2', '--push=me/contes', '--license=mit']
    line = home.refuses(*command, **env | {'HF_TOKEN': 'hf_wrong'}, status=1)
    assert 'me/contes was not uploaded' in line and 'hf_wrong' not in line
    out = home.run(*command, **env)
    assert f'200 stories uploaded to {hub.url}/datasets/me/contes' in out and 'a.json: a story is' in out
    assert not (home.path / 'data/hindi/train.bin').exists()

    found = hub.get('/')
    assert found['repos'][0] | {'organization': 'me', 'name': 'contes', 'type': 'dataset'} == found['repos'][0]
    pushed = {split: read_rows(found['files'][f'{split}.jsonl']) for split in ('train', 'validation')}
    stories = {split: [row['story'] for row in split_rows] for split, split_rows in pushed.items()}
    expected = stories_in(prepare(home, 'french', '--val_fraction=0.2'))
    assert stories == {'train': expected['train'], 'validation': expected['val']}
    by_story = {row['story']: row for row in pushed['train'] + pushed['validation']}
    assert by_story[texts[5]] == {'story': texts[5], 'text': 'A title', 'n': 5, 'tags': ['a', 'a'], 'more': None,
                                  'model': None, 'id': None}
    assert by_story[texts[3]]['more'] == '{"a": [1]}' and by_story[texts[3]]['n'] == 0.5
    assert by_story[texts[4]]['n'] is None and by_story[texts[90]]['id'] == '10'
    card = found['files']['README.md']
    settings = yaml.safe_load(card.split('---')[1])
    assert (settings['language'], settings['license']) == ('fr', 'mit')
    assert '200 short texts' in card and f'{len(expected["val"])} for validation' in card
    assert '&#60;b&#62;someone' in card

    (home.path / 'hub').mkdir()
    for name, text in found['files'].items():
        (home.path / 'hub' / name).write_text(text, encoding='utf-8')
    again = prepare(home, 'hf:./hub', '--val_source=hf:./hub:validation', dataset='again')
    assert stories_in(again) == expected


@pytest.mark.slow
def test_what_cannot_be_uploaded_is_one_line(home, server):
    hub = server('hub_server.py')
    env = {'HF_ENDPOINT': hub.url, 'HF_TOKEN': 'hf_test', 'HF_HUB_OFFLINE': '0'}
    (home.path / 'empty.txt').write_text(' \n', encoding='utf-8')
    command = ['prepare.py', '--source=s.jsonl', '--push=me/x']
    assert "push is 'kahani'" in home.refuses(*command, '--push=kahani', status=2, **env)
    assert 'no stories' in home.refuses(*command, '--source=empty.txt', status=1, **env)
    assert 'https' in home.refuses(*command, status=1, **env | {'HF_ENDPOINT': 'http://example.org'})
    assert 'was not uploaded' in home.refuses(*command, status=1, **env | {'HF_ENDPOINT': 'http://127.0.0.1:9'})
    assert hub.get('/') == {'files': {}, 'repos': []}
