"""Append-only JSONL and files that appear whole: what a kill at any byte leaves, and what comes of it."""

import gzip
import json
import lzma
import subprocess
import sys

import pytest
from conftest import PROJECT

import jsonl

ROWS = [{'id': 1, 'text': 'एक दिन\n“नमस्ते!”'}, {'id': 2, 'text': 'जंगल 🐘\u2028में', 'n': 0.5}, {'id': 3, 'text': '{"a": "}"}\r\n'}]


def lines_of(rows):
    return [json.dumps(row, ensure_ascii=False).encode() + b'\n' for row in rows]


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'stories.jsonl'


def test_what_is_appended_is_read(path):
    for row in ROWS:
        with jsonl.open_append(path) as f:
            jsonl.append(f, row)
    assert list(jsonl.read(path)) == ROWS
    assert path.read_bytes() == b''.join(lines_of(ROWS))


def test_a_row_is_in_the_file_at_once(path):
    with jsonl.open_append(path) as f:
        jsonl.append(f, ROWS[0])
        assert list(jsonl.read(path)) == ROWS[:1]


def test_the_folder_is_made(tmp_path):
    with jsonl.open_append(tmp_path / 'a' / 'b' / 'c.jsonl') as f:
        jsonl.append(f, ROWS[0])
    assert list(jsonl.read(tmp_path / 'a' / 'b' / 'c.jsonl')) == ROWS[:1]


def test_every_cut(path):
    """Whatever the position, reading gives the rows that are whole, and appending goes on behind them."""
    data = b''.join(lines_of(ROWS))
    for cut in range(len(data) + 1):
        path.write_bytes(data[:cut])
        whole = [row for i, row in enumerate(ROWS) if len(b''.join(lines_of(ROWS[:i + 1]))) - 1 <= cut]  # the line end may be missing
        assert list(jsonl.read(path)) == whole, cut
        with jsonl.open_append(path) as f:
            jsonl.append(f, {'id': 9})
        assert path.read_bytes() == b''.join(lines_of([*whole, {'id': 9}])), cut


def test_a_whole_last_line_without_its_end_is_kept(path):
    path.write_bytes(b'{"id": 1}\n{"id": 2}')
    assert list(jsonl.read(path)) == [{'id': 1}, {'id': 2}]
    with jsonl.open_append(path) as f:
        jsonl.append(f, {'id': 3})
    assert path.read_bytes() == b'{"id": 1}\n{"id": 2}\n{"id": 3}\n'


@pytest.mark.parametrize('size', [200_000, 65536 - 10, 65536 * 2 - 21])
def test_a_long_torn_line(path, size):
    first, long = lines_of([ROWS[0], {'id': 2, 'text': 'क' * (size // 3)}])
    path.write_bytes(first + long[:-20])
    assert list(jsonl.read(path)) == ROWS[:1]
    jsonl.open_append(path).close()
    assert path.read_bytes() == first
    path.write_bytes(first + long[:-1])
    jsonl.open_append(path).close()
    assert path.read_bytes() == first + long
    path.write_bytes(long[:-20])
    jsonl.open_append(path).close()
    assert path.read_bytes() == b''


@pytest.mark.parametrize('bad', [b'{"id": 2, "te', b'not JSON', b'{"text": "\xff\xfe"}', '{"text": "क'.encode()[:-1]])
def test_a_bad_line_in_the_middle_is_named(path, bad):
    path.write_bytes(b'{"id": 1}\n\n' + bad + b'\n{"id": 3}\n')
    with pytest.raises(SystemExit, match=r'stories\.jsonl, line 3: '):
        list(jsonl.read(path))


def test_empty_lines_line_ends_and_a_byte_order_mark(path):
    path.write_bytes(b'\xef\xbb\xbf{"id": 1}\r\n\r\n   \n{"id": 2}\r\n\n')
    assert list(jsonl.read(path)) == [{'id': 1}, {'id': 2}]
    path.write_bytes(b'')
    assert list(jsonl.read(path)) == []


@pytest.mark.parametrize('ending, pack', [('.gz', gzip), ('.xz', lzma), ('.XZ', lzma)])
def test_packed_files(tmp_path, ending, pack):
    path = tmp_path / f'stories.jsonl{ending}'
    path.write_bytes(pack.compress(b''.join(lines_of(ROWS))[:-5]))
    assert list(jsonl.read(str(path))) == ROWS[:2]


def test_replacing(path):
    for text in ('old', 'new'):
        with jsonl.replacing(path) as temporary:
            assert temporary != str(path) and temporary.endswith('.jsonl')
            with open(temporary, 'w', encoding='utf-8') as f:
                f.write(text)
            assert path.exists() == (text == 'new')
        assert path.read_text(encoding='utf-8') == text
    assert [p.name for p in path.parent.iterdir()] == ['stories.jsonl']


def test_replacing_keeps_the_old_file_when_the_block_raises(path):
    path.write_text('old', encoding='utf-8')
    with pytest.raises(KeyboardInterrupt):
        with jsonl.replacing(path) as temporary, open(temporary, 'w', encoding='utf-8') as f:
            f.write('ne')
            raise KeyboardInterrupt
    assert path.read_text(encoding='utf-8') == 'old'
    assert [p.name for p in path.parent.iterdir()] == ['stories.jsonl']


def test_replacing_makes_the_folder(tmp_path):
    with jsonl.replacing(tmp_path / 'a' / 'b.txt') as temporary, open(temporary, 'w', encoding='utf-8') as f:
        f.write('text')
    assert (tmp_path / 'a' / 'b.txt').read_text(encoding='utf-8') == 'text'


def test_a_second_run_on_a_file_is_refused(tmp_path):
    path = str(tmp_path / 'a.jsonl')
    code = f'import jsonl; f = jsonl.open_append({path!r}); jsonl.append(f, 1)'
    with jsonl.open_append(path):
        second = subprocess.run([sys.executable, '-c', code], cwd=PROJECT, capture_output=True, text=True)
        assert second.returncode == 1 and second.stderr.strip() == f'{path} is being written by another run'
    assert subprocess.run([sys.executable, '-c', code], cwd=PROJECT).returncode == 0
    assert list(jsonl.read(path)) == [1]


def test_many_wait_for_each_other(tmp_path):
    path = str(tmp_path / 'a.jsonl')
    code = f'''
import jsonl
for i in range(300):
    with jsonl.open_append({path!r}, wait=True) as f:
        jsonl.append(f, 'x' * 30_000)
'''
    for process in [subprocess.Popen([sys.executable, '-c', code], cwd=PROJECT) for _ in range(4)]:
        assert process.wait() == 0
    assert [len(row) for row in jsonl.read(path)] == [30_000] * 1200
