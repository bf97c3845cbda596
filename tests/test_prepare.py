"""prepare.py: every kind of source gives the same bins, the bins hold the stories, and what cannot be read is one line."""

import csv
import gzip
import json
import lzma
import shutil
import unicodedata

import numpy as np
import pytest
from conftest import Project

import tokenizer

NAMES = ['meta.json', 'tokenizer.json', 'tokenizer_config.json', 'train.bin', 'val.bin']


@pytest.fixture(scope='session')
def written(tmp_path_factory):
    """200 Hindi stories of one paragraph each, as every kind of file knows them."""
    project = Project(tmp_path_factory.mktemp('written'))
    project.run('generate_data.py', '--total=200', '--out=s.jsonl')
    rows = project.jsonl('s.jsonl')
    return [row | {'text': row['text'].replace('\n\n', ' ')} for row in rows]


@pytest.fixture
def home(project, written):
    """A project with these stories in s.jsonl and no data folders but those of the tests."""
    write_jsonl(project.path / 's.jsonl', written)
    return project


@pytest.fixture(scope='session')
def reference(tmp_path_factory, written):
    """The folder with the bins of these stories; not to be changed."""
    project = Project(tmp_path_factory.mktemp('reference'))
    write_jsonl(project.path / 's.jsonl', written)
    return prepare(project)


def write_jsonl(path, rows):
    path.write_text(''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows), encoding='utf-8')


def prepare(project, source='s.jsonl', dataset='t', *options):
    project.run('prepare.py', f'--source={source}', f'--dataset={dataset}', '--vocab_size=600', '--num_proc=1', *options, HF_HOME=str(project.path / 'cache'))
    return project.path / 'data' / dataset


def refuses(project, source, *options):
    line = project.refuses('prepare.py', f'--source={source}', '--dataset=t', '--vocab_size=600', *options)
    folder = project.path / 'data' / 't'
    assert not folder.exists() or not list(folder.iterdir()), 'it left something behind'
    return line


def bins(folder):
    return {split: np.fromfile(folder / f'{split}.bin', '<u2') for split in ('train', 'val')}


def stories_in(folder):
    """{split: the stories of its bin}, the layout checked on the way."""
    tok, found = tokenizer.load(str(folder)), {}
    for split, ids in bins(folder).items():
        ends = np.flatnonzero(ids == tok.eos)
        if tok.bos != tok.eos:
            assert (ids[[0, *(ends[:-1] + 1)][:len(ends)]] == tok.bos).all() and (ids == tok.bos).sum() == len(ends)
            found[split] = [tok.decode(part[1:]) for part in np.split(ids, ends + 1)[:-1]]
        else:
            assert ids[0] == tok.eos and (np.diff(ends) > 1).all()
            found[split] = [tok.decode(part) for part in np.split(ids, ends)[1:-1]]
        assert not len(ids) or ids[-1] == tok.eos
    return found


def same_bins(a, b):
    return all((a / name).read_bytes() == (b / name).read_bytes() for name in ('train.bin', 'val.bin', 'tokenizer.json'))


# -----------------------------------------------------------------------------
# sources

def write_source(kind, path, rows):
    """The rows as one kind of file below path -> what --source names."""
    texts = [row['text'] for row in rows]
    lines = [json.dumps(row, ensure_ascii=False) + '\n' for row in rows]
    if kind == 'json':
        (path / 's.json').write_text(json.dumps(rows), encoding='utf-8')
    elif kind == 'json under a key':
        (path / 's.json').write_text(json.dumps({'version': 1, 'tags': ['a'], 'stories': rows}, indent=1, ensure_ascii=False), encoding='utf-8')
    elif kind == 'json of texts':
        (path / 's.json').write_text(json.dumps(texts), encoding='utf-8')
    elif kind in ('csv', 'tsv'):
        with open(path / f's.{kind}', 'w', encoding='utf-8', newline='') as f:
            writer = csv.DictWriter(f, list(rows[0]), delimiter='\t' if kind == 'tsv' else ',')
            writer.writeheader()
            writer.writerows(rows)
        return f's.{kind}'
    elif kind == 'parquet':
        parquet = pytest.importorskip('pyarrow.parquet')
        import pyarrow
        parquet.write_table(pyarrow.Table.from_pylist(rows), path / 's.parquet')
        return 's.parquet'
    elif kind == 'txt <|endoftext|>':
        (path / 's.txt').write_text('\n<|endoftext|>\n'.join(texts[:100]) + '<|endoftext|>' + '<|endoftext|>'.join(texts[100:]), encoding='utf-8')
    elif kind == 'txt empty lines':
        (path / 's.txt').write_text('\ufeff' + '\n\n'.join(texts[:100]) + '\n \n\n\n' + '\n\n'.join(texts[100:]), encoding='utf-8')
    elif kind == 'jsonl.gz':
        (path / 's.jsonl.gz').write_bytes(gzip.compress(''.join(lines).encode()))
        return 's.jsonl.gz'
    elif kind == 'jsonl.xz':
        (path / 'S.JSONL.XZ').write_bytes(lzma.compress(''.join(lines).encode()))
        return 'S.JSONL.XZ'
    elif kind == 'torn jsonl':
        (path / 'torn.jsonl').write_text(''.join(lines) + '{"id": 200, "text": "एक', encoding='utf-8')
        return 'torn.jsonl'
    elif kind in ('folder', 'glob'):
        (path / 'in [1]' / 'deep').mkdir(parents=True)
        (path / 'in [1]' / 'a.jsonl').write_text(''.join(lines[:90]), encoding='utf-8')
        (path / 'in [1]' / 'README.md').write_text('no story', encoding='utf-8')
        write_jsonl(path / 'in [1]' / 'deep' / 'b.jsonl', rows[90:])
        return 'in [1]' if kind == 'folder' else 'in*/**/*.jsonl'
    elif kind == 'hf':
        pytest.importorskip('datasets')
        (path / 'hub').mkdir()
        write_jsonl(path / 'hub' / 'train.jsonl', rows)
        write_jsonl(path / 'hub' / 'validation.jsonl', rows[:3])
        return 'hf:./hub'
    return 's.json' if 'json' in kind else 's.txt'


@pytest.mark.parametrize('kind', ['json', 'json under a key', 'json of texts', 'csv', 'tsv', 'parquet', 'txt <|endoftext|>', 'txt empty lines', 'jsonl.gz',
                                  'jsonl.xz', 'torn jsonl', 'folder', 'glob', 'hf'])
def test_sources(home, written, reference, kind):
    source = write_source(kind, home.path, written)
    assert same_bins(reference, prepare(home, source))


def test_hf_splits(home, written):
    source = write_source('hf', home.path, written)
    env = {'HF_HOME': str(home.path / 'cache')}
    home.run('prepare.py', f'--source={source}:train', f'--val_source={source}:validation', '--dataset=t', '--vocab_size=600', **env)
    assert stories_in(home.path / 'data' / 't')['val'] == [row['text'] for row in written[:3]]
    assert home.refuses('prepare.py', f'--source={source}:test', '--dataset=u', **env).startswith(f'prepare.py: {source}:test: ')


LAYOUTS = {  # what lies where in data sets of the hub, and what a row looks like
    'roneneldan/TinyStories': ('data/train-00000-of-00002-2d5a1467fff1081b.parquet', 'data/train-00001-of-00002-5852b56a2bd28fd9.parquet',
                               'data/validation-00000-of-00001-869c898b519ad725.parquet', lambda i, text: {'text': text}),
    'MaxLSB/LeCarnet': ('data/train-00000-of-00002.parquet', 'data/train-00001-of-00002.parquet', 'data/validation-00000-of-00001.parquet',
                        lambda i, text: {'text': text}),
    'TinyStories-Regional/hindi-generated_4o-mini_2M': ('train-1.json', 'train-2.json', None, lambda i, text: {'ID': i, 'story': text}),
    'TinyStories-Regional/marathi-generated_4o-mini_2M': ('data/train-00000-of-00002.parquet', 'data/train-00001-of-00002.parquet', None,
                                                          lambda i, text: {'story': text}),
    'TinyStories-Regional/hindi-translated_nllb600M_1M': ('data/train-00000-of-00002.parquet', 'data/train-00001-of-00002.parquet', None,
                                                          lambda i, text: {'Translated Story': text}),
    'GregSamek/TinyNews': ('train.txt', 'train.txt', 'validation.txt', None),
}


@pytest.mark.parametrize('name', LAYOUTS)
def test_layouts_of_the_hub(home, written, name):
    pytest.importorskip('datasets')
    parquet = pytest.importorskip('pyarrow.parquet')
    import pyarrow
    texts = [row['text'] for row in written[:40]]
    *files, row = LAYOUTS[name]
    for file, some in zip(files, ([*texts[:30]], [*texts[30:37]], texts[37:])):
        path = home.path / 'hub' / (file or 'data/train-extra.parquet')
        path.parent.mkdir(parents=True, exist_ok=True)
        if not row:
            path.write_text(''.join(text + '\n' for text in (texts[:37] if file == 'train.txt' else some)), encoding='utf-8')
        elif path.suffix == '.json':
            path.write_text(json.dumps([row(i, text) for i, text in enumerate(some)], ensure_ascii=False), encoding='utf-8')
        elif file:
            parquet.write_table(pyarrow.Table.from_pylist([row(i, text) for i, text in enumerate(some)]), path)
    validation = ['--val_source=hf:./hub:validation'] if files[2] else []
    found = stories_in(prepare(home, 'hf:./hub', 't', *validation))
    assert sorted(found['train'] + found['val']) == sorted(texts if validation else texts[:37])
    assert not validation or found['val'] == texts[37:]
    if not row:  # and without the hub's library, a line each
        assert found == stories_in(prepare(home, 'hub/train.txt', 'u', '--val_source=hub/validation.txt'))


# -----------------------------------------------------------------------------
# what is in the bins

def test_the_bins_hold_the_stories(project):
    project.run('generate_data.py', '--total=120', '--out=s.jsonl')
    folder = prepare(project)
    found = stories_in(folder)
    written = [row['text'] for row in project.jsonl('s.jsonl')]
    assert any('\n\n' in text for text in written)
    assert sorted(found['train'] + found['val']) == sorted(written)
    place = {text: i for i, text in enumerate(written)}
    for texts in found.values():  # in the source's order
        assert texts == sorted(texts, key=place.get) and texts
    assert sorted(path.name for path in folder.iterdir()) == NAMES


def test_meta(reference):
    folder = reference
    meta, found, ids = json.loads((folder / 'meta.json').read_text(encoding='utf-8')), stories_in(folder), bins(folder)
    tok = tokenizer.load(str(folder))
    assert (meta['vocab_size'], meta['bos'], meta['eos'], meta['dtype'], meta['tokenizer']) == (tok.vocab_size, tok.bos, tok.eos, 'uint16', 'train')
    for split, texts in found.items():
        assert meta['stories'][split] == len(texts)
        assert meta['tokens'][split] == len(ids[split])
        assert meta['bytes'][split] == sum(len(text.encode()) for text in texts)
        assert meta['words'][split] == sum(len(text.split()) for text in texts)
    assert meta['longest'] == 2 + max(map(len, tok.encode_batch(found['train'] + found['val'])))
    assert max(int(array.max()) for array in ids.values()) < meta['vocab_size']
    p = np.bincount(np.concatenate([*ids.values()]), minlength=tok.vocab_size) / sum(map(len, ids.values()))
    entropy = np.log2((p ** 2.5).sum()) / -1.5
    assert abs(meta['renyi_entropy'] - entropy) < 1e-3 and abs(meta['renyi_efficiency'] - entropy / np.log2(tok.vocab_size)) < 1e-3
    assert meta['config']['source'] == 's.jsonl' and meta['config']['vocab_size'] == 600


def test_preparing_again_and_on_more_threads(home, reference):
    for threads in (1, 2):
        assert same_bins(reference, prepare(home, 's.jsonl', 't', f'--num_proc={threads}'))


def test_adding_stories_moves_none(home, written):
    write_jsonl(home.path / 'few.jsonl', written[:120])
    few = stories_in(prepare(home, 'few.jsonl', 'few', '--val_fraction=0.2'))
    write_jsonl(home.path / 'more.jsonl', written[::-1])
    more = stories_in(prepare(home, 'more.jsonl', 'more', '--val_fraction=0.2'))
    assert set(few['train']) < set(more['train']) and set(few['val']) < set(more['val'])
    assert 20 < len(more['val']) < 65
    other = stories_in(prepare(home, 's.jsonl', 'other', '--val_fraction=0.2', '--seed=1'))
    assert set(other['val']) != set(more['val'])


def test_val_fraction(home):
    process = home.start('prepare.py', '--source=s.jsonl', '--dataset=t', '--vocab_size=600', '--val_fraction=0')
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0 and 'No story was set aside for validation' in err
    assert home.json('data/t/meta.json')['stories'] == {'train': 200, 'val': 0} and (home.path / 'data/t/val.bin').stat().st_size == 0
    for wrong in ('1', '-0.1'):
        assert 'val_fraction is' in home.refuses('prepare.py', '--source=s.jsonl', '--dataset=u', f'--val_fraction={wrong}')


def test_val_source(home, written):
    write_jsonl(home.path / 'val.jsonl', written[:7])
    found = stories_in(prepare(home, 's.jsonl', 't', '--val_source=val.jsonl'))
    assert found == {'train': [row['text'] for row in written], 'val': [row['text'] for row in written[:7]]}
    found = stories_in(prepare(home, 's.jsonl', 't', '--val_source=val.jsonl', '--deduplicate=True'))
    assert len(found['train']) == 200 and not found['val']


def test_deduplicate(home, written):
    write_jsonl(home.path / 'twice.jsonl', written[:100] + written[:100] + [written[0] | {'text': f'  {written[0]["text"]}\n'}])
    both = stories_in(prepare(home, 'twice.jsonl', 'both'))
    once = stories_in(prepare(home, 'twice.jsonl', 'once', '--deduplicate=True'))
    assert sum(map(len, both.values())) == 201
    assert sorted(once['train'] + once['val']) == sorted(row['text'] for row in written[:100])


def test_lower_case(project):
    texts = ['The Minister Said NO.', 'ÉTÉ À PARIS', 'एक दिन'] * 20
    write_jsonl(project.path / 's.jsonl', [{'text': text} for text in texts])
    found = stories_in(prepare(project, 's.jsonl', 't', '--lower_case=True', '--val_source=s.jsonl'))
    assert found['train'] == [text.lower() for text in texts]


def test_text_is_cleaned(project):
    """Composed, stripped, without empty ones; half a surrogate pair cannot be encoded and becomes the replacement character."""
    rows = [json.dumps({'text': unicodedata.normalize('NFD', 'café ड़')}), r'{"text": "  \n spaced \n"}', r'{"text": "broken \ud83d end"}', r'{"text": "  "}',
            '{"text": null}', '{"text": ""}', r'{"text": "whole \ud83d\ude00 end"}']
    (project.path / 's.jsonl').write_text('\n'.join(rows), encoding='utf-8')
    train = stories_in(prepare(project, 's.jsonl', 't', '--val_source=s.jsonl'))['train']
    assert train[:2] == [unicodedata.normalize('NFC', 'café ड़'), 'spaced'] and train[3:] == ['whole 😀 end']
    assert train[2].replace('\ufffd', '') == 'broken  end' and '\ufffd' in train[2]


@pytest.mark.parametrize('column', ['Story', 'translated story'])
def test_text_column_is_found(home, written, reference, column):
    write_jsonl(home.path / 'named.jsonl', [{'id': row['id'], 'notes': 'x', column: row['text']} for row in written])
    assert same_bins(reference, prepare(home, 'named.jsonl'))


def test_text_column_is_named(home, written, reference):
    write_jsonl(home.path / 'named.jsonl', [{'text': 'x', 'kahani': row['text']} for row in written])
    assert same_bins(reference, prepare(home, 'named.jsonl', 't', '--text_column=kahani'))


@pytest.mark.parametrize('content, options, says', [
    ('{"a": "x", "b": "y"}\n', [], 'row 1: no column that looks like a story among a, b; --text_column names it'),
    ('{"text": "x"}\n', ['--text_column=story'], 'row 1: no column story among text'),
    ('{"text": "x"}\n{"tekst": "x"}\n', [], 'row 2: no column text among tekst'),
    ('{"text": "x"}\n{"text": 3}\n', [], 'row 2: text is not text but 3'),
    ('{"text": ["x"]}\n', [], 'row 1: text is not text but'),
    ('[1, 2]\n', [], 'row 1: neither an object nor a text'),
    ('{"text": "x"}\nnot JSON\n{"text": "x"}\n', [], 'line 2: not a line of JSON'),
    ('', [], 'no story in it'), ('{"text": " "}\n', [], 'no story in it')])
def test_what_cannot_be_used_is_one_line(project, content, options, says):
    (project.path / 's.jsonl').write_text(content, encoding='utf-8')
    line = refuses(project, 's.jsonl', *options)
    assert says in line and 's.jsonl' in line


@pytest.mark.parametrize('name, content, says', [
    ('s.txt', 'déjà vu'.encode('latin-1'), 'not UTF-8'), ('s.jsonl', '{"text": "déjà"}\n'.encode('latin-1'), 'line 1'),
    ('s.csv', 'text\ndéjà\n'.encode('latin-1'), 'not UTF-8'), ('s.jsonl.xz', lzma.compress(b'{"text": "abc"}\n' * 1000)[:-30], 's.jsonl.xz'),
    ('s.jsonl.xz', b'not packed', 's.jsonl.xz'), ('s.jsonl.gz', gzip.compress(b'{"text": "abc"}\n' * 1000, mtime=0)[:-10], 's.jsonl.gz'),
    ('s.txt.gz', gzip.compress(b'abc', mtime=0)[:10] + b'\xff' * 20, 's.txt.gz'),
    ('s.json', b'{"text": ', 'JSONDecodeError'), ('s.json', b'{"text": "a"}', 'no list'), ('s.parquet', b'PAR0', 's.parquet'),
    ('s.csv', b'text\nOnce, there was a cat.\n', 'quotation marks'), ('s.tsv', b'id\ttext\n1\t"No, said Tom.\n2\tThe end.\n', 's.tsv'),
    ('s.csv', b'text\n"Come!" said Mia.\n', 's.csv'), ('s.md', b'Text\nOnce.\n', 's.md'), ('s.csv', b'', 'no story'),
    ('s.txt', b' \n\n', 'no story'), ('s.jsonl.gz', b'', 'no story')])
def test_broken_files_are_one_line(project, name, content, says):
    (project.path / name).write_bytes(content)
    line = refuses(project, name)
    assert says in line and name in line


def test_only_line_ends_end_a_line_of_text(project):
    (project.path / 's.txt').write_text('one\u2028still one\x0cand still\ntwo\n', encoding='utf-8')
    project.run('prepare.py', '--source=s.txt', '--dataset=t', '--val_fraction=0', '--vocab_size=300')
    assert project.json('data/t/meta.json')['stories']['train'] == 2


def test_missing_sources_are_one_line(project):
    (project.path / 'empty').mkdir()
    for source in ('nowhere.jsonl', 'empty', 'no*.txt'):
        assert source in refuses(project, source)
    assert '--source=' in project.refuses('prepare.py', '--dataset=t')
    assert 'no bins yet' in project.refuses('prepare.py', '--dataset=t', '--decode=5')


def test_a_failure_leaves_the_old_bins(home, reference, elsewhere):
    folder = home.path / 'data' / 't'
    shutil.copytree(reference, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (home.path / 'bad.jsonl').write_text('{"text": "x"}\n' * 50 + '{"text": 3}\n', encoding='utf-8')
    for name in ('train', elsewhere):
        assert 'row 51' in home.refuses('prepare.py', '--source=bad.jsonl', '--dataset=t', f'--tokenizer={name}')
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


# -----------------------------------------------------------------------------
# tokenizers from elsewhere

@pytest.fixture(scope='session')
def elsewhere(tmp_path_factory, written):
    """A folder with a tokenizer that knows more than these stories need."""
    folder = tmp_path_factory.mktemp('elsewhere')
    tokenizer.train([row['text'] for row in written] + ['The quick brown fox jumps over the lazy dog. ' * 3 + f'{n:b}' for n in range(500)], 2000).save(folder)
    return folder


def test_trimming(home, written, elsewhere):
    write_jsonl(home.path / 's.jsonl', written[:40])
    folder, whole = prepare(home, 's.jsonl', 't', f'--tokenizer={elsewhere}'), prepare(home, 's.jsonl', 'whole', f'--tokenizer={elsewhere}', '--trim=False')
    small, full = tokenizer.load(str(folder)), tokenizer.load(str(whole))
    meta = json.loads((folder / 'meta.json').read_text(encoding='utf-8'))
    assert meta['vocab_size'] == small.vocab_size < full.vocab_size == tokenizer.load(str(elsewhere)).vocab_size
    assert stories_in(folder) == stories_in(whole)
    for split, ids in bins(whole).items():  # the very same tokens under other numbers
        assert [small.backend.id_to_token(int(i)) for i in bins(folder)[split]] == [full.backend.id_to_token(int(i)) for i in ids]
    assert small.decode(small.encode('Quite another text: 漢字 🐘!')) == 'Quite another text: 漢字 🐘!'
    for done in (folder, whole):
        assert sorted(path.name for path in done.iterdir()) == NAMES


def test_one_token_for_bos_and_eos_stands_once(home, written, elsewhere):
    both = home.path / 'both'
    shutil.copytree(elsewhere, both)
    (both / 'tokenizer_config.json').write_text('{"bos_token": "<|endoftext|>", "eos_token": {"content": "<|endoftext|>"}}', encoding='utf-8')
    folder = prepare(home, 's.jsonl', 't', '--tokenizer=both')
    found, meta = stories_in(folder), json.loads((folder / 'meta.json').read_text(encoding='utf-8'))
    assert meta['bos'] == meta['eos']
    assert sorted(found['train'] + found['val']) == sorted(row['text'] for row in written)
    for split, ids in bins(folder).items():
        assert (ids == meta['eos']).sum() == len(found[split]) + 1 and len(ids) == meta['tokens'][split]


def test_special_tokens_in_stories_are_text(home, elsewhere):
    texts = ['A story with </s> and <s> in it.', 'Another <|endoftext|> story.'] * 20
    write_jsonl(home.path / 's.jsonl', [{'text': text} for text in texts])
    for name in ('train', elsewhere):
        found = stories_in(prepare(home, 's.jsonl', 't', f'--tokenizer={name}', '--val_source=s.jsonl'))
        assert found == {'train': texts, 'val': texts}


def test_special_tokens_of_news(home, elsewhere):
    texts = [f'Boats leave port{i}</h> The boats left at {i} in the morning.' for i in range(60)]
    write_jsonl(home.path / 's.jsonl', [{'text': text} for text in texts])
    for name in ('train', elsewhere):
        folder = prepare(home, 's.jsonl', 't', 'config/prepare_news.py', '--source=s.jsonl', '--dataset=t', '--vocab_size=300',
                         f'--tokenizer={name}', '--val_source=s.jsonl')
        tok = tokenizer.load(str(folder))
        assert (name != 'train' or tok.vocab_size <= 300) and stories_in(folder)['val'] == [text.lower() for text in texts]
        mark, = tok.encode('</h>')
        assert tok.encode('a</h> b').count(mark) == 1 and tok.decode([mark]) == '</h>'
        assert (bins(folder)['train'] == mark).sum() == 60
        from transformers import AutoTokenizer
        assert AutoTokenizer.from_pretrained(folder).encode(texts[0], add_special_tokens=False) == tok.encode(texts[0])
    assert 'special_tokens' in home.refuses('prepare.py', '--source=s.jsonl', '--dataset=t', '--special_tokens=[1]')


def test_an_unknown_tokenizer_is_one_line(home):
    assert 'nowhere.json' in refuses(home, 's.jsonl', '--tokenizer=nowhere.json')
    assert 'nobody/nothing' in refuses(home, 's.jsonl', '--tokenizer=nobody/nothing')
    assert 'vocab_size is 100' in home.refuses('prepare.py', '--source=s.jsonl', '--dataset=t', '--vocab_size=100')


# -----------------------------------------------------------------------------

def test_decode(prepared):
    for options in ([], ['--source=data/tiny/stories.jsonl', '--vocab_size=600', '--num_proc=1']):
        dataset = 'again' if options else 'tiny'
        text = prepared.run('prepare.py', f'--dataset={dataset}', '--decode=20', *options)
        assert text.count('--- the first 20 tokens of ') == 2
        tok = tokenizer.load(str(prepared.path / 'data' / dataset))
        for split, ids in bins(prepared.path / 'data' / dataset).items():
            shown = text.split(f'--- the first 20 tokens of {split}.bin\n')[1]
            assert shown.startswith('<s>' + tok.decode(ids[:20]).rstrip('\ufffd'))
    shutil.rmtree(prepared.path / 'data' / 'again')
