"""files.py: what a kill at any byte leaves behind, locks, atomic writes, and every kind of story file."""

import gzip
import json
import lzma
import os
import signal
import subprocess
import sys

import pytest
from conftest import PROJECT

import files

ROWS = [
    {'id': 1, 'text': 'एक दिन\n“नमस्ते!”'},
    {'id': 2, 'text': 'जंगल 🐘\u2028में', 'n': 0.5},
    {'id': 3, 'text': '{"a": "}"}\r\n'},
]
LINES = [json.dumps(row, ensure_ascii=False).encode() + b'\n' for row in ROWS]


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / 'stories.jsonl')


def write(path, data):
    with open(path, 'wb') as f:
        f.write(data)


def read(path):
    with open(path, 'rb') as f:
        return f.read()


def append(path, *rows):
    with files.open_append(path) as f:
        files.append_rows(f, *rows)


def start(code):
    """A second process that imports files.py."""
    return subprocess.Popen(
        [sys.executable, '-c', code], cwd=PROJECT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def refusal(code):
    process = start(code)
    _, err = process.communicate()
    assert process.returncode == 1
    return err.strip()


# -----------------------------------------------------------------------------
# .jsonl files


def test_rows_are_appended_and_read(tmp_path):
    path = str(tmp_path / 'a' / 'b' / 'c.jsonl')
    for row in ROWS:
        append(path, row)
    assert list(files.read_jsonl(path)) == ROWS
    assert read(path) == b''.join(LINES)


def test_a_row_is_in_the_file_at_once(path):
    with files.open_append(path) as f:
        files.append_rows(f, ROWS[0])
        assert list(files.read_jsonl(path)) == ROWS[:1]


def test_a_kill_at_any_byte_loses_only_the_torn_line(path):
    for cut in range(len(b''.join(LINES)) + 1):
        write(path, b''.join(LINES)[:cut])
        whole = 0
        while whole < 3 and len(b''.join(LINES[:whole + 1])) - 1 <= cut:  # the line end itself may be missing
            whole += 1
        assert list(files.read_jsonl(path)) == ROWS[:whole], cut
        append(path, ROWS[0])
        assert read(path) == b''.join([*LINES[:whole], LINES[0]]), cut


@pytest.mark.parametrize('size', [200_000, 65536 - 10, 65536 * 2 - 21])
def test_a_torn_line_longer_than_a_block(path, size):
    long = json.dumps({'id': 2, 'text': 'क' * (size // 3)}, ensure_ascii=False).encode() + b'\n'
    for before, after in [
        (LINES[0] + long[:-20], LINES[0]),
        (LINES[0] + long[:-1], LINES[0] + long),
        (long[:-20], b''),
    ]:
        write(path, before)
        files.open_append(path).close()
        assert read(path) == after


def test_a_file_that_is_no_jsonl_is_not_cut(path):
    write(path, b'Once upon a time')
    with pytest.raises(SystemExit, match='does not look like a'):
        files.open_append(path)
    assert read(path) == b'Once upon a time'


@pytest.mark.parametrize('bad', [b'{"id": 2, "te', b'not JSON', b'{"text": "\xff\xfe"}', b'[' * 100_000])
def test_a_bad_line_in_the_middle_ends_with_its_number(path, bad):
    write(path, b'{"id": 1}\n\n' + bad + b'\n{"id": 3}\n')
    with pytest.raises(SystemExit, match=r'stories\.jsonl, line 3: '):
        list(files.read_jsonl(path))


def test_empty_lines_line_ends_and_a_byte_order_mark(path):
    write(path, b'\xef\xbb\xbf{"id": 1}\r\n\r\n   \n{"id": 2}\r\n\n')
    assert list(files.read_jsonl(path)) == [{'id': 1}, {'id': 2}]


@pytest.mark.parametrize('ending, pack', [('.gz', gzip), ('.xz', lzma), ('.XZ', lzma)])
def test_packed_files(tmp_path, ending, pack):
    path = str(tmp_path / f'stories.jsonl{ending}')
    write(path, pack.compress(b''.join(LINES)[:-5]))
    assert list(files.read_jsonl(path)) == ROWS[:2]


# -----------------------------------------------------------------------------
# atomic writes


def test_a_file_is_replaced_when_the_block_ends(tmp_path):
    path = tmp_path / 'a' / 'b.png'
    for text in ('old', 'new'):
        with files.replacing(path) as temporary:
            assert temporary.endswith('.png')
            write(temporary, text.encode())
            assert not path.exists() or path.read_text() == 'old'
        assert path.read_text() == text
    assert os.listdir(path.parent) == ['b.png']


def test_an_error_keeps_the_old_file(tmp_path):
    path = tmp_path / 'b.txt'
    files.write_text(path, 'old')
    with pytest.raises(KeyboardInterrupt), files.replacing(path) as temporary:
        write(temporary, b'ne')
        raise KeyboardInterrupt
    assert path.read_text() == 'old'
    assert os.listdir(tmp_path) == ['b.txt']


def test_whole_text_and_json_files(tmp_path):
    files.write_text(tmp_path / 'a.txt', 'एक\n\ud83d')
    assert (tmp_path / 'a.txt').read_bytes() == 'एक\n?'.encode()
    files.write_json(tmp_path / 'a.json', ROWS)
    assert json.loads((tmp_path / 'a.json').read_text(encoding='utf-8')) == ROWS


# -----------------------------------------------------------------------------
# locks


def test_a_second_process_is_refused_until_the_file_is_closed(path):
    second = f'import files; files.append_rows(files.open_append({path!r}), 1)'
    with files.open_append(path):
        assert refusal(second) == f'-c: {path} is being written by another process'
    assert start(second).wait() == 0
    assert list(files.read_jsonl(path)) == [1]


def test_processes_that_wait_lose_no_row(path):
    code = f'''
import files
for i in range(100):
    with files.open_append({path!r}, wait=True) as f:
        files.append_rows(f, 'x' * 30_000)
'''
    for process in [start(code) for _ in range(4)]:
        assert process.wait() == 0
    assert [len(row) for row in files.read_jsonl(path)] == [30_000] * 400


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGKILL])
def test_a_lock_lasts_as_long_as_its_process(tmp_path, number):
    path = str(tmp_path / 'a' / 'train.bin')
    second = f'import files; files.lock({path!r})'
    first = start(f'{second}; print("locked", flush=True); input()')
    assert first.stdout.readline() == 'locked\n'
    assert refusal(second) == f'-c: {path} is being written by another process'
    first.send_signal(number)
    first.communicate()
    assert os.path.exists(f'{path}.lock')  # left by the kill, and no obstacle
    assert start(second).wait() == 0
    assert not os.path.exists(f'{path}.lock')


def test_a_process_takes_over_its_own_lock(path):
    lock, open_append = f'files.lock({path!r})', f'files.open_append({path!r})'
    assert start(f'import files; {lock}; {lock}; {open_append}; {open_append}').wait() == 0


def test_end_callbacks_run_at_the_end_last_one_first():
    process = start("import files; files.at_end(lambda: print(1)); files.at_end(lambda: print(2)); print(0)")
    assert process.communicate()[0] == '0\n2\n1\n'


# -----------------------------------------------------------------------------
# finding files, and story files


def test_find_looks_in_the_working_directory_then_beside_the_scripts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert files.find('config/train_hindi.py') == str(PROJECT / 'config/train_hindi.py')
    assert files.find('config/nothing.py') == 'config/nothing.py'
    (tmp_path / 'config').mkdir()
    (tmp_path / 'config/train_hindi.py').touch()
    assert files.find('config/train_hindi.py') == 'config/train_hindi.py'


@pytest.mark.parametrize('names', [
    ['train.jsonl', 'test.jsonl'], ['train/a.csv', 'valid/a.csv'], ['train-00000.txt', 'dev-00000.txt']])
def test_a_folder_with_several_splits_is_refused(tmp_path, names):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"text": "x"}\n', encoding='utf-8')
    with pytest.raises(SystemExit, match='several splits'):
        files.story_files(str(tmp_path))


def test_a_folder_with_bins_and_links_has_each_story_once(tmp_path):
    for name in ('train.bin', 'val.bin', 'the train.txt', 'a test of courage.txt'):
        (tmp_path / name).write_text('x', encoding='utf-8')
    (tmp_path / 'loop').symlink_to('.')
    (tmp_path / 'twin.txt').symlink_to('the train.txt')
    assert list(files.read_texts(str(tmp_path))) == ['x', 'x']


def test_shards():
    assert files.parse_shard('2/8') == (2, 8)
    assert files.parse_shard('1/1') == (1, 1)
    for text in ('0/8', '9/8', '2', '-1/8', '1/2/3'):
        assert files.parse_shard(text) is None


TALE = 'The owl; "wise", they say | hid\ta nut.'
QUOTED = '"' + TALE.replace('"', '""') + '"'
TABLE = {'Titel': 'Owl', 'Story Text': TALE}


@pytest.mark.parametrize('name, content, texts', [
    ('a.jsonl', '{"text": "x"}\n"y"\n', ['x', 'y']),
    ('a.jsonl', '[{"text": "x"},\n {"text": "y"}]', ['x', 'y']),
    ('a.jsonl', '{"text": "x"}\n{"te', ['x']),
    ('a.json', '{"text": "x"}\n{"text": "y"}\n', ['x', 'y']),
    ('a.json', json.dumps([TABLE, TABLE], indent=1), [TALE, TALE]),
    ('a.json', json.dumps({'meta': [1], 'stories': ['x', 'y']}), ['x', 'y']),
    ('a.json', json.dumps({'test': ['z'], 'train': ['x', 'y']}), ['x', 'y']),
    ('a.json', json.dumps({'train': {'r7': TABLE, 'r8': TABLE}, 'dev': [TABLE]}), [TALE, TALE]),
    ('a.json', json.dumps({'version': {'n': 1}, 'data': {'test': [TABLE], 'train': ['x']}}), ['x']),
    ('a.json', json.dumps({'val': {'4': 1, '5': 2}, 'text': {'4': 'x', '5': 'y'}}), ['x', 'y']),
    ('a.json', json.dumps({'test': ['x', 'y']}), ['x', 'y']),
    ('a.json', json.dumps({'n': {'4': 1, '5': 2}, 'text': {'4': 'x', '5': 'y'}}), ['x', 'y']),
    ('a.json', json.dumps({'schema': {'fields': [{'name': 'text'}]}, 'data': [{'text': 'x'}]}), ['x']),
    ('a.json', '\ufeff[\n"x",\n"y"]', ['x', 'y']),
    ('a.json', json.dumps({'rows': [{'row_idx': 0, 'row': {'text': 'x'}}]}), ['x']),
    ('a.csv', 'text,n\n"x,\ny",1\n', ['x,\ny']),
    ('a.csv', 'text\nx\ntext\ny\n', ['x', 'y']),
    ('a.csv', 'sep=;\nn;text\n1;x, y\n', ['x, y']),
    ('a.csv', '\n;;\nn;text\n1;x, y\n', ['x, y']),
    ('a.csv', f'Titel;Story Text\r\nOwl;{QUOTED}\r\n', [TALE]),
    ('a.csv', f'n|StoryText\n1|{QUOTED}\n', [TALE]),
    ('a.csv', f'STORY_TEXT\n{QUOTED}\n', [TALE]),
    ('a.tsv', '\ufefftext\tn\nx, y; z\t1\n', ['x, y; z']),
    ('a.txt', f'Nr\tFull text\n1\t{QUOTED}\n', [TALE]),
    ('a.txt', 'Story\tNr\n"Two\n\nlines"\t1\n', ['Two\n\nlines']),
    ('a.txt', 'x<|endoftext|>\ny\n\ny<|endoftext|>', ['x', 'y\n\ny']),
    ('a.txt', 'x\nx\n  \ny', ['x\nx', 'y']),
    ('a.txt', 'The end.\n“Really?”\nयह कहानी है।', ['The end.', '“Really?”', 'यह कहानी है।']),
    ('a.txt', 'only one line', ['only one line']),
])
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-16'])
def test_stories_in_every_kind_of_file(tmp_path, name, content, texts, encoding):
    data = content.encode(encoding)
    write(tmp_path / name, data)
    assert list(files.read_texts(str(tmp_path / name))) == texts
    write(tmp_path / f'{name}.gz', gzip.compress(data))
    assert list(files.read_texts(str(tmp_path / f'{name}.gz'))) == texts


def test_a_folder_and_a_glob(tmp_path):
    for name in ('nouns.txt', 'meta.json', 'stories.jsonl', 'sub/more.jsonl', 'notes.md'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, json.dumps(name).encode())
    assert set(files.read_texts(str(tmp_path))) == {'stories.jsonl', 'sub/more.jsonl'}
    assert list(files.read_texts(str(tmp_path / '*.jsonl'))) == ['stories.jsonl']


def test_a_text_file_of_a_folder_is_one_story(tmp_path):
    write(tmp_path / 'a.txt', b'One.\n\nStill one.\n\nAnd still.')
    write(tmp_path / 'b.txt', b'Two.\n\nTwo.<|endoftext|>Three.')
    stories = ['One.\n\nStill one.\n\nAnd still.', 'Two.\n\nTwo.', 'Three.']
    assert list(files.read_texts(str(tmp_path))) == list(files.read_texts(str(tmp_path / '*.txt'))) == stories
    assert list(files.read_texts(str(tmp_path / '[a].txt'), separator='Still')) == ['One.', 'one.\n\nAnd still.']


@pytest.mark.parametrize('text', [
    'a\r\nb\rc', 'a\u2028b\u2029c', 'a\x0bb\x0cc', 'a\x85b\nc', '\ufeffa\nb\nc', ' \u2009a\nb\nc\r\n',
    '<|startoftext|>a\nb\nc\n<|endoftext|>'])
def test_every_source_gives_the_same_text(path, text):
    append(path, {'text': text})
    assert list(files.read_texts(path)) == ['a\nb\nc']


@pytest.mark.parametrize('row, text_column, text', [
    ({'id': 1, 'Story': 'x'}, '', 'x'),
    ({'content': 'y', 'text': 'longer'}, '', 'longer'),
    ({'text': 'The title', 'translated_story': 'A story is longer than its title.'}, '',
     'A story is longer than its title.'),
    ({'story_id': 'a long name of a story', 'Story': 'x'}, '', 'x'),
    ({'history': 'a long past', 'context': 'a long context', 'fullText': 'x'}, '', 'x'),
    ({'content': 'y', 'text': 'x'}, 'content', 'y'),
    ({'text': None}, '', ''),
    ('x', '', 'x'),
])
def test_the_text_of_a_row(path, row, text_column, text):
    append(path, row)
    assert list(files.read_texts(path, text_column)) == [text]


def test_the_longest_texts_are_the_stories(path):
    """The median decides: a few empty stories and one absurd title change nothing."""
    rows = [{'text': 'A title', 'story': 'Once there was an owl.', 'n': n} for n in range(9)]
    rows[0] |= {'story': None, 'text': 'A title ' * 1000}
    append(path, *rows)
    assert list(files.read_texts(path)) == [''] + 8 * ['Once there was an owl.']
    assert next(files.read_rows(path)) == ({'text': rows[0]['text'], 'n': 0}, '')


@pytest.mark.parametrize('name, content, message', [
    ('a.jsonl', b'{"id": 1}\n', 'row 1: no column with stories among id; set --text_column'),
    ('a.jsonl', b'{"text": "x"}\n{"story": "x"}\n', 'row 2: no column text among story'),
    ('a.jsonl', b'{"text": 5}\n', 'row 1: text is not text but 5'),
    ('a.jsonl', b'{"text": "x"}\n{"text": "y"}{"text": "z"}', 'line 2: not a line of JSON'),
    ('a.csv', b'text,text\nx,y\n', 'two columns have the same name'),
    ('a.jsonl', b'5\n', 'row 1: neither an object nor a text'),
    ('a.csv', b'text\nx,y\n', 'row 1: more fields than the header'),
    ('a.csv', 'text\ndéjà\n'.encode('latin-1'), 'could not be read as .csv in UTF-8'),
    ('a.csv', b'"An owl lived near the end of a story."\n"It slept."\n', 'first line of a table must name'),
    ('a.csv', b'id;text\n1;x; y\n', "quote texts that contain ';'"),
    ('a.txt', 'Nr\tKahani\n1\tx.\n'.encode('utf-16'), 'no column with stories among Nr, Kahani'),
    ('a.txt', b'The wind is low,\nthe owl is slow\nand so am I', 'few of its lines end like a story'),
    ('a.txt', 'बिल्ली यहाँ है।'.encode('utf-16-be'), 'save'),
    ('a.json', b'{"title": "x"}', 'contains no stories'),
    ('a.json', b'{"Validation": ["x"], "test": ["y"]}', 'splits Validation, test and no train'),
    ('a.json', b'[' * 100_000, 'could not be read as .json'),
    ('a.parquet', b'nonsense', 'could not be read'),
    ('a.jsonl.xz', b'nonsense', 'could not be read'),
    ('a.jsonl.gz', gzip.compress(b'{"text": "abc"}\n' * 1000, mtime=0)[:-10], 'could not be read'),
    ('a.xlsx', b'PK', 'save a table as CSV UTF-8'),
    ('a', b'x', 'stories are read from files that end in .jsonl'),
])
def test_a_source_that_cannot_be_read_ends_in_one_line(tmp_path, name, content, message):
    write(tmp_path / name, content)
    with pytest.raises(SystemExit) as stopped:
        list(files.read_texts(str(tmp_path / name)))
    assert message in str(stopped.value) and '\n' not in str(stopped.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(SystemExit, match='no such file'):
        list(files.read_texts(str(tmp_path / 'nothing.xlsx')))


def test_parquet(tmp_path):
    parquet = pytest.importorskip('pyarrow.parquet')
    import pyarrow
    parquet.write_table(pyarrow.table({'text': ['x', None]}), tmp_path / 'a.parquet')
    assert list(files.read_texts(str(tmp_path / 'a.parquet'))) == ['x', '']


def test_downloads_need_https(monkeypatch):
    monkeypatch.setenv('HF_ENDPOINT', 'http://example.org')
    with pytest.raises(SystemExit, match='need https'):
        files.on_hub('user/name')
    monkeypatch.setenv('HF_ENDPOINT', 'http://localhost:8000')
    assert files.on_hub('user/name@v1') == ('user/name', 'v1')
    assert files.on_hub('user/name') == ('user/name', None)
