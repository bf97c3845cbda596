"""files.py: what a kill at any byte leaves behind, locks, atomic writes, and every kind of story file."""

import gzip
import json
import lzma
import os
import signal
import subprocess
import sys
import time
import unicodedata

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


@pytest.mark.parametrize('content', [
    b'Once upon a time', b"{'id': 1}", b'{"id": 1,}', b'{"id": "caf\xe9"}', b'{"id": 1}, {"id": 2}'])
def test_a_file_that_is_no_jsonl_is_not_cut(path, content):
    write(path, content)
    with pytest.raises(SystemExit, match='does not look like a'):
        files.open_append(path)
    assert read(path) == content


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


def test_files_of_other_people_stay(tmp_path):
    """Names like those of temporary files, and a lock file of another program."""
    theirs = ['b.tmp.txt', 'b.tmp', 'b.txt.tmp', 'uv.lock', 'b.tmp_backup']
    for name in theirs:
        (tmp_path / name).write_text('theirs')
    files.write_text(tmp_path / 'b.txt', 'ours')
    assert start(f'import files; files.lock({str(tmp_path / "uv")!r})').wait() == 0
    assert {name: (tmp_path / name).read_text() for name in theirs} == dict.fromkeys(theirs, 'theirs')
    assert len(os.listdir(tmp_path)) == len(theirs) + 1


WRITERS = {
    'append': lambda path: files.open_append(path).close(),
    'replace': lambda path: files.write_text(path, 'new'),
    'lock': files.lock,
}


@pytest.mark.parametrize('writer', WRITERS)
@pytest.mark.parametrize('target', ['../outside/old.jsonl', '../outside/new.jsonl', '/tmp/no such file.jsonl',
    'over'])
def test_a_link_out_of_the_folder_is_not_followed(tmp_path, writer, target):
    """Whether its target exists or not, and through another link."""
    (tmp_path / 'outside').mkdir()
    (tmp_path / 'outside/old.jsonl').write_text('{}\n')
    (tmp_path / 'in').mkdir()
    (tmp_path / 'in/over').symlink_to('../outside')
    path = tmp_path / 'in/a.jsonl'
    path.symlink_to(target if target != 'over' else 'over/new.jsonl')
    with pytest.raises(SystemExit, match='leads through a link to') as stopped:
        WRITERS[writer](str(path))
    assert '\n' not in str(stopped.value) and path.is_symlink()
    assert os.listdir(tmp_path / 'outside') == ['old.jsonl'] and not os.path.exists('/tmp/no such file.jsonl')
    assert (tmp_path / 'outside/old.jsonl').read_text() == '{}\n'


@pytest.mark.parametrize('writer', WRITERS)
def test_links_of_the_user(tmp_path, writer):
    """A folder on a larger disk, and a link that stays in its folder."""
    (tmp_path / 'disk').mkdir()
    (tmp_path / 'out').symlink_to('disk')
    (tmp_path / 'disk/link.jsonl').symlink_to('kept.jsonl')
    for name in ('out/a.jsonl', 'out/run/a.jsonl', 'out/link.jsonl'):
        WRITERS[writer](str(tmp_path / name))
    files.run_end_callbacks()
    assert writer == 'lock' or (tmp_path / 'disk/run/a.jsonl').exists()


def test_a_link_in_the_folder_that_the_user_named(tmp_path):
    (tmp_path / 'run').mkdir()
    (tmp_path / 'other').mkdir()
    (tmp_path / 'run/hf').symlink_to('../other')
    files.check_writable(str(tmp_path / 'run/hf/model.bin'))  # the user named run/hf
    with pytest.raises(SystemExit, match='which is not in'):
        files.check_writable(str(tmp_path / 'run/hf/model.bin'), str(tmp_path / 'run'))


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='no named pipes')
@pytest.mark.parametrize('writer', WRITERS)
def test_a_pipe_is_not_written(path, writer):
    os.mkfifo(path)
    with pytest.raises(SystemExit, match='not an ordinary file'):
        WRITERS[writer](path)


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
    ['train.jsonl', 'test.jsonl'], ['train/a.csv', 'valid/a.csv'], ['train-00000.txt', 'dev-00000.txt'],
    ['Tales_V2-train.txt', 'Tales_V2-valid.txt'], ['hindi/tales.train.csv', 'hindi/tales.test.csv']])
def test_a_folder_with_several_splits_is_refused(tmp_path, names):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"text": "x"}\n', encoding='utf-8')
    with pytest.raises(SystemExit, match='several splits'):
        files.story_files(str(tmp_path))


def test_a_folder_with_bins_and_links_has_each_story_once(tmp_path):
    for name in ('train.bin', 'val.bin', 'the_last_train.txt', 'a test of courage.txt', 'a_test.txt',
                 'README.txt'):
        (tmp_path / name).write_text('x', encoding='utf-8')
    (tmp_path / 'loop').symlink_to('.')
    (tmp_path / 'twin.txt').symlink_to('a_test.txt')
    assert list(files.read_texts(str(tmp_path))) == ['x', 'x', 'x']


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
    ('a.jsonl', '{"text": "x"}\r{"text": "y"}\r', ['x', 'y']),
    ('a.jsonl', '\n{"text": "x"}\n\n\ufeff{"text": "y"}', ['x', 'y']),
    ('a.json', '{"text": "x"}\n{"text": "y"}\n', ['x', 'y']),
    ('a.json', json.dumps([TABLE, TABLE], indent=1), [TALE, TALE]),
    ('a.json', json.dumps({'meta': [1], 'stories': ['x', 'y']}), ['x', 'y']),
    ('a.json', json.dumps({'test': ['z'], 'train': ['x', 'y']}), ['x', 'y']),
    ('a.json', json.dumps({'train': {'r7': TABLE, 'r8': TABLE}, 'dev': [TABLE]}), [TALE, TALE]),
    ('a.json', json.dumps({'version': {'n': 1}, 'data': {'test': [TABLE], 'train': ['x']}}), ['x']),
    ('a.json', json.dumps({'val': {'4': 1, '5': 2}, 'text': {'4': 'x', '5': 'y'}}), ['x', 'y']),
    ('a.json', json.dumps({'test': ['x', 'y']}), ['x', 'y']),
    ('a.json', json.dumps({'Test': ['z'], 'Train': ['x', 'y']}), ['x', 'y']),
    ('a.json', json.dumps({'about': {'text': 'These are tales.'}, 'stories': [TABLE, TABLE]}), [TALE, TALE]),
    ('a.json', json.dumps({'news': [{'text': 'x'}], 'info': {'text': 'z'}, 'stories': {'a': {'text': 'y'}}}),
     ['x', 'y']),
    ('a.json', json.dumps({'n': {'4': 1, '5': 2}, 'text': {'4': None, '5': 'y'}}), ['', 'y']),
    ('a.json', json.dumps({'n': {'4': 1, '5': 2}, 'text': {'4': 'x', '5': 'y'}}), ['x', 'y']),
    ('a.json', json.dumps({'schema': {'fields': [{'name': 'text'}]}, 'data': [{'text': 'x'}]}), ['x']),
    ('a.json', '\ufeff[\n"x",\n"y"]', ['x', 'y']),
    ('a.json', json.dumps({'rows': [{'row_idx': 0, 'row': {'text': 'x'}}]}), ['x']),
    ('a.csv', 'text,n\n"x,\ny",1\n', ['x,\ny']),
    ('a.csv', 'text\nx\ntext\ny\n', ['x', 'y']),
    ('a.csv', 'sep=;\nn;text\n1;x, y\n', ['x, y']),
    ('a.csv', '\n;;\nn;text\n1;x, y\n', ['x, y']),
    ('a.csv', 'n;text;;\n1;x;;\n2;y\n', ['x', 'y']),
    ('a.csv', 'n,text\n1,x\n\ufeffn,text\n2,y\n', ['x', 'y']),
    ('a.csv', '"","text"\n"1",NA\n"2","x"\n', ['', 'x']),
    ('a.csv', f'Titel;Story Text\r\nOwl;{QUOTED}\r\n', [TALE]),
    ('a.csv', f'n|StoryText\n1|{QUOTED}\n', [TALE]),
    ('a.csv', f'STORY_TEXT\n{QUOTED}\n', [TALE]),
    ('a.tsv', '\ufefftext\tn\nx, y; z\t1\n', ['x, y; z']),
    ('a.txt', f'Nr\tFull text\n1\t{QUOTED}\n', [TALE]),
    ('a.txt', 'Story\tNr\n"Two\n\nlines"\t1\n', ['Two\n\nlines']),
    ('a.txt', '{"text": "x."}\n\n{"text": "y."}\n', ['x.', 'y.']),
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
    '<|startoftext|>a\nb\nc\n<|endoftext|>', '\ufeff\ufeffa\nb\nc\u200b', '\u200e a\nb\nc \u2060\n'])
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
    ('a.jsonl', '{"text": "café"}'.encode('cp1252'), 'line 1: not a line of JSON in UTF-8'),
    ('a.jsonl', b"{'text': 'x'}", 'line 1: not a line of JSON'),
    ('a.jsonl', b'{"text": "x"}\n{"text": "y",}', 'line 2: not a line of JSON'),
    ('a.csv', b'My stories,,\nid,text,n\n1,x,2\n', 'row 1: more fields than the header'),
    ('a.txt', b'x.\n\nx.\n* * *\ny.\n', r"lines of '* * *': stories are separated by them, --separator='* * *', or"),
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


def test_a_hostile_parquet_file_is_one_line(tmp_path, monkeypatch):
    parquet = pytest.importorskip('pyarrow.parquet')
    import pyarrow
    monkeypatch.setattr(files, 'max_row', 1000)
    monkeypatch.setattr(files, 'MAX_COLUMNS', 3)
    path = tmp_path / 'a.parquet'
    story = pyarrow.array(['A story.'] * 16)
    tables = [  # message, columns
        ('more than 1,000 characters', [story, pyarrow.array([b'x' * 5000] * 16)]),
        ('more than 1,000 characters', [story, pyarrow.array([[0] * 50_000] + [None] * 15)]),
        ('could not be read', [story, pyarrow.array([2**42] * 16, pyarrow.timestamp('s'))]),
        ('could not be read', [story, pyarrow.array([2**31 - 1] * 16, pyarrow.date32())]),
        ('could not be read', [pyarrow.array([b'caf\xe9']).view(pyarrow.string())]),
        ('more than 3 columns', [story] * 4),
    ]
    for message, columns in tables:
        names = ['text', *map(str, range(len(columns) - 1))]
        parquet.write_table(pyarrow.Table.from_arrays(columns, names), path)
        with pytest.raises(SystemExit, match=message):
            list(files.read_texts(str(path)))
    parquet.write_table(pyarrow.Table.from_arrays([story, story], ['text', 'text']), path)
    with pytest.raises(SystemExit, match='the same name'):
        list(files.read_texts(str(path)))


@pytest.mark.parametrize('text', ['a' + '\u0315' * 300_000 + '\u0300' * 300_000, '\u0f73' * 300_000])
def test_many_combining_marks_take_no_time(tmp_path, text):
    write(tmp_path / 'a.jsonl', json.dumps({'text': text}).encode())
    start = time.monotonic()
    assert len(next(files.read_texts(str(tmp_path / 'a.jsonl')))) >= len(text)
    assert time.monotonic() - start < 20


def test_marks_in_a_long_story_stay():
    story = 'के बाद किताब पढ़ी, cafe\u0301. ' * 1000
    assert files.normalize(story) == unicodedata.normalize('NFC', story).strip()


@pytest.mark.parametrize('endpoint', [
    'http://example.org', 'http://localhost:80@evil.example', 'http://127.0.0.1@evil.example/',
    'https://me:pw@hub.example',
    'http://localhost.evil.example', 'http://localhost\\@evil.example', 'ftp://localhost', 'https://', 'https://[::1',
    'http://localhost:99999', 'https://hub.example\n', 'localhost:80', '//localhost', 'http://0.0.0.0',
    'http://127.0.0.1.nip.io'])
def test_downloads_need_https(monkeypatch, endpoint):
    monkeypatch.setenv('HF_ENDPOINT', endpoint)
    with pytest.raises(SystemExit, match='need https') as stopped:
        files.on_hub('user/name')
    assert 'pw' not in str(stopped.value)


@pytest.mark.parametrize('endpoint', [
    'https://hub.example', 'HTTPS://hub.example:8443/x', 'http://localhost:8000', 'http://127.0.0.1',
    'http://[::1]:80/'])
def test_addresses_of_a_hub(monkeypatch, endpoint):
    monkeypatch.setenv('HF_ENDPOINT', endpoint)
    assert files.on_hub('user/name@v1') == ('user/name', 'v1')
    assert files.on_hub('user/name') == ('user/name', None)


ALIASES = 'a0: &a0 [x]\n' + ''.join(f'a{i + 1}: &a{i + 1} [*a{i}, *a{i}]\n' for i in range(60))


@pytest.mark.parametrize('file', ['README.md', '.huggingface.yaml'])
@pytest.mark.parametrize('data_files, message', [
    ('http://127.0.0.1:9/x.jsonl', 'outside'),
    ('[{split: train, path: [a.jsonl, "https://evil.example/x.jsonl"]}]', 'outside'),
    ('/etc/passwd', 'outside'), ('../secret.jsonl', 'outside'), ('"a/\\x2e./../x.jsonl"', 'outside'),
    ('~/x.jsonl', 'outside'),
    ('"zip://x.jsonl::http://evil.example/x.zip"', 'outside'), ('hf://datasets/other/set/x.jsonl', 'outside'),
    ("'C:\\x.jsonl'", 'outside'), ('*a60', 'hf:'), ('[{split: train, x: *a60}]', 'hf:'), ('nothing.jsonl', 'hf:')])
def test_a_data_set_is_read_from_its_own_files(tmp_path, monkeypatch, file, data_files, message):
    pytest.importorskip('datasets')
    monkeypatch.setenv('HF_HOME', str(tmp_path / 'cache'))
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'secret.jsonl').write_text('{"text": "secret"}\n')
    (tmp_path / 'set').mkdir()
    (tmp_path / 'set/a.jsonl').write_text('{"text": "x"}\n')
    aliases = ALIASES if '*a60' in data_files else ''
    settings = f'{aliases}configs:\n- config_name: default\n  data_files: {data_files}\n'
    (tmp_path / 'set' / file).write_text(f'---\n{settings}---\n' if file == 'README.md' else settings)
    with pytest.raises(SystemExit, match=message) as stopped:
        list(files.read_texts('hf:./set'))
    assert '\n' not in str(stopped.value) and 'secret"' not in str(stopped.value)


@pytest.mark.parametrize('source', ['hf:text', 'hf:http://127.0.0.1:9/x.py', 'hf:buckets/me/x', 'hf:../x', 'hf:'])
def test_what_is_no_data_set(source):
    pytest.importorskip('datasets')
    with pytest.raises(SystemExit, match='neither hf:user/dataset nor a folder'):
        list(files.read_texts(source))


# -----------------------------------------------------------------------------
# limits

MILLIONS = 'a' * 5_000_000


@pytest.mark.slow
@pytest.mark.parametrize('name, content', [
    ('a.jsonl', json.dumps({'text': MILLIONS})), ('a.json', json.dumps([{'text': 'x'}, {'text': MILLIONS}])),
    ('a.json', json.dumps({'stories': [MILLIONS]})), ('a.csv', f'text\n{MILLIONS}\n'), ('a.csv', f'{MILLIONS}\n'),
    ('a.csv', 'text,n\n"' + 'a\n' * 2_000_000 + '",1\n'), ('a.txt', f'a.\n\n{MILLIONS}'), ('folder/a.txt', MILLIONS)])
@pytest.mark.parametrize('encoding, ending, pack', [
    ('utf-8', '', bytes), ('utf-16', '', bytes), ('utf-8', '.xz', lambda data: lzma.compress(data, preset=0))])
def test_a_long_row_is_refused_unless_max_row_is_larger(tmp_path, monkeypatch, name, content, encoding, ending, pack):
    path = tmp_path / f'{name}{ending}'
    path.parent.mkdir(exist_ok=True)
    write(path, pack(content.encode(encoding)))
    source = str(path.parent if '/' in name else path)
    with pytest.raises(SystemExit, match='more than 1,000,000 characters; if it should, raise --max_row'):
        list(files.read_texts(source))
    monkeypatch.setattr(files, 'max_row', 6_000_000)
    if content.startswith(MILLIONS) and ending_is_table(name):
        return  # a table without a header
    assert max(len(text) for text in files.read_texts(source)) >= 3_999_999


def ending_is_table(name):
    return name.endswith('.csv')


@pytest.mark.slow
def test_packed_files_do_not_fill_the_memory(project):
    """A line of 3 GB in a file of half a megabyte."""
    import resource
    with lzma.open(project.path / 'a.jsonl.xz', 'wb', preset=0) as f:
        f.write(b'{"text": "')
        for _ in range(3000):
            f.write(b'a' * (1 << 20))
        f.write(b'"}\n')
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    assert '--max_row' in project.refuses('prepare.py', '--source=a.jsonl.xz', '--dataset=x')
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss <= max(before, 500_000)  # kB


def test_a_csv_row_without_an_end_is_one_line(project):
    with gzip.open(project.path / 's.csv.gz', 'wt', encoding='utf-8') as f:
        f.write('id,text\n' + '"a\n",' * 3_000_000)
    line = project.refuses('prepare.py', '--source=s.csv.gz', '--dataset=t')
    assert 's.csv.gz: a row or story has more than 1,000,000 characters' in line


@pytest.mark.parametrize('depth', [120, 500, 5000, 100_000])
@pytest.mark.parametrize('before, after', [
    ('{"text": "x", "more": ', '}\n'), ('{"stories": ', '}'), ('[{"text": "x"}, ', ']'), ('', '')])
@pytest.mark.parametrize('name', ['a.json', 'a.jsonl'])
def test_deep_json_is_one_line(tmp_path, depth, before, after, name):
    path = tmp_path / name
    for left, right in (('[', ']'), ('{"a":', '}')):
        path.write_text(before + left * depth + '1' + right * depth + after)
        with pytest.raises(SystemExit) as stopped:
            list(files.read_texts(str(path)))
        assert '\n' not in str(stopped.value) and name in str(stopped.value)


@pytest.mark.parametrize('text', ['[1, 2', '["x"] ["y"]', '["x"], 5', '[{"text": "x"}, {"te', '[tru]'])
def test_a_broken_array(tmp_path, text):
    (tmp_path / 'a.json').write_text(text)
    with pytest.raises(SystemExit, match=r'a\.json'):
        list(files.read_texts(str(tmp_path / 'a.json')))


def test_an_array_larger_than_a_block(tmp_path):
    texts = [f'{i} [ "{{" ] ' * (i % 50) + '.' for i in range(20_000)]
    (tmp_path / 'a.json').write_text(json.dumps([{'text': text} for text in texts], indent=1))
    assert list(files.read_texts(str(tmp_path / 'a.json'))) == [text.strip() for text in texts]


@pytest.mark.parametrize('row', [
    {'loss': 1.0}, {'step': 'x', 'tokens': 1, 'seconds': 1.0}, {'step': 1, 'tokens': 1, 'seconds': None}, [1], 'x', 5,
    {'step': 1, 'tokens': 10**400, 'seconds': 1}, {'step': 1, 'tokens': float('nan'), 'seconds': 1},
    {'step': 1, 'tokens': 1, 'seconds': 1, 'lr': 'x'},
    {'step': 1, 'tokens': 1, 'seconds': 1, 'loss': 'x'}, {'step': 1, 'tokens': 1, 'seconds': 1, 'val_loss': [1]}])
def test_a_log_row_without_its_numbers_is_one_line(path, row):
    append(path, {'step': 1, 'tokens': 2, 'seconds': 0.5, 'loss': 1.0}, row)
    for read_it in (lambda: files.open_log(path, 9), lambda: files.draw_loss(path, '', f'{path}.png')):
        with pytest.raises(SystemExit, match=r'row 2: not a row of train\.py'):
            read_it()


def test_the_loss_curve_shows_the_learning_rate(tmp_path):
    pictures = set()
    for lr in (0.001, 0.002, 0.003):
        path = str(tmp_path / f'{lr}.jsonl')
        append(path, *({'step': i, 'tokens': i, 'seconds': i, 'loss': 2.0, 'lr': lr * i} for i in range(3)))
        files.draw_loss(path, '', f'{path}.png')
        pictures.add((tmp_path / f'{lr}.jsonl.png').read_bytes())
    assert len(pictures) == 3


# -----------------------------------------------------------------------------
# line ends, folders in settings


@pytest.mark.parametrize('blank', [
    '\u2028\u2028', '\u2029\u2029', '\x85\x85', '\n\u200b\n', '\n\ufeff\u2060\n', '\u2028 \u00ad\u2029',
    '\r\n\u200e\r\n',
    '\n\u2800\n', '\n\u3164\ufe0f\n', '\x0b\x0b', '\n\x00\n', '\n\u061c\x1f\n'])
def test_blank_lines_of_any_kind_separate_stories(tmp_path, blank):
    write(tmp_path / 'a.txt', f'x\ny.{blank}z.{blank}'.encode())
    assert list(files.read_texts(str(tmp_path / 'a.txt'))) == ['x\ny.', 'z.']


@pytest.mark.parametrize('end', ['\u2028', '\u2029', '\x85', '\r', '\x0c'])
def test_each_line_is_a_story_whatever_ends_it(tmp_path, end):
    write(tmp_path / 'a.txt', end.join(['x.', 'y.', 'z.', '']).encode())
    assert list(files.read_texts(str(tmp_path / 'a.txt'))) == ['x.', 'y.', 'z.']


@pytest.mark.parametrize('value, hidden', [
    ('/home/ravi/my tales/s.jsonl', 's.jsonl'), ('../ravi/s', 's'), ('a/../../ravi/s', 's'),
    ('hf:/home/ravi/x:train', 'hf:x:train'),
    ('FILE:/home/ravi/p.txt', 'FILE:p.txt'), ('a.jsonl,/home/ravi/b.jsonl', 'a.jsonl,b.jsonl'), ('~ravi/x', 'x'),
    ('data/s.jsonl', 'data/s.jsonl'), ('train', 'train'), ('hf:me/x@v1', 'hf:me/x@v1'),
    ('https://x.example/v1', 'https://x.example/v1'),
    ({'a': ['/home/ravi/x', 3]}, {'a': ['x', 3]}), (None, None), ('', '')])
def test_settings_name_no_folder_of_the_machine(value, hidden):
    assert files.hide_folders(value) == hidden


def test_a_path_in_the_working_directory_gets_relative():
    assert files.hide_folders(os.path.abspath('in/s.jsonl')) == os.path.join('in', 's.jsonl')
