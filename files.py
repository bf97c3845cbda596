"""
Files: settings and errors in one line, files that survive a kill, every kind of story file, train.py's data and log.

    check, fail       end the script with one line on stderr
    find, at_end      where a file to read is; what to do when the script ends
    check_writable    no link leads what is written out of the folder that the user named
    lock              one process at a time
    open_append       append-only .jsonl files; a kill can only tear the last line
    replacing         a file appears whole or not at all (atomic write)
    read_texts        stories of .jsonl, .json, .csv, .tsv, .parquet, .txt files and the Hugging Face hub, in one form
    read_rows         the same with the other columns of each row
    load_dataset      the bins of prepare.py; TokenStream puts their stories in random order
"""

import atexit
import builtins
import codecs
import collections
import contextlib
import csv
import errno
import functools
import glob
import gzip
import io
import itertools
import json
import logging
import lzma
import math
import os
import re
import secrets
import signal
import statistics
import sys
import time
import unicodedata
import urllib.parse
import zlib

VERSION = '1.0.0'  # of this project; checkpoints, model cards and --version have it

STORY_ENDINGS = '.jsonl .json .csv .tsv .parquet .txt'.split()
NOT_STORIES = '''
    nouns.txt verbs.txt adjectives.txt features.txt groups.txt examples.txt prompts.txt heroes.txt places.txt events.txt
    plots.txt characters.txt plot_nouns.txt plot_verbs.txt plot_adjectives.txt plot_openings.txt refusals.txt exam.tsv
    failed.jsonl meta.json tokenizer.json tokenizer_config.json tokenizers.json
    readme.txt license.txt requirements.txt'''.split()  # other files that data/<name>/ can contain
MISSING = ('', None, *'NA N/A #N/A <NA> NaN nan NULL null None'.split())  # what tables have where there is nothing
STORY_WORDS = 'text story stories content body news article'.split()  # in the names of columns
SPLITS = 'train|training|val|valid|validation|dev|test|eval|evaluation'  # in names of files, objects and columns
SENTENCE_ENDS = tuple('.!?…।॥۔؟。！？|"”’»)')
LINE_END = '[\n\x0b\x0c\x1c-\x1e\x85\u2028\u2029]'  # as str.splitlines has it
INVISIBLE = (  # in a character class: control characters and what Unicode calls ignorable, such as U+200B
    '\x00-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f'
    '\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e0fff')
SAME_SCRIPT = {'HIRAGANA': 'CJK', 'KATAKANA': 'CJK', 'KATAKANA-HIRAGANA': 'CJK'}  # Japanese is written in all of them
BLANK_LINES = fr'{LINE_END}[\s{INVISIBLE}]*{LINE_END}'
max_row = 1_000_000  # characters of the longest row or story; the key max_row sets it
MAX_COLUMNS = 10_000
MAX_DEPTH = 100  # of brackets in JSON
WHITE_SPACE = ' \r\n\t\ufeff'  # before a JSON value
ZERO_WIDTH = '\u200b\u200e\u200f\u2060\ufeff'  # invisible at the ends of a text, where a joiner is not
BLOCK_SIZE = 1 << 20  # characters of a .txt file that are read at once
ISO_CODES = {'hindi': 'hi', 'marathi': 'mr', 'bangla': 'bn', 'english': 'en', 'french': 'fr', 'news': 'en'}

# -----------------------------------------------------------------------------
# errors


def script_name():
    """'train.py: ' for messages; empty in a notebook cell, which has no name."""
    name = os.path.basename(sys.argv[0])
    return '' if 'launcher' in name else f'{name}: '


def fail(message):
    """End the script with one line on stderr and exit status 1: for bad data, network and disk."""
    close_bars()
    wait_for_torchrun()
    raise SystemExit(printable(script_name() + message))


def close_bars():
    """End the lines of progress bars, so that a message has a line of its own."""
    if 'tqdm' in sys.modules:
        for bar in list(sys.modules['tqdm'].tqdm._instances):
            bar.close()


def check(condition, message):
    """For settings: when the condition is false, end the script with one line on stderr and exit status 2."""
    if not condition:
        wait_for_torchrun()
        print(printable(script_name() + message), file=sys.stderr)
        raise SystemExit(2)


def wait_for_torchrun():
    """Let the first process of torchrun print an error. Most errors happen in all of them.

    When the first process has ended, torchrun ends this one. If it does not fail, this one prints the error after all.
    """
    if os.environ.get('LOCAL_RANK', '0') != '0':
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(10)


CONTROL = re.compile(r'(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?|[\x00-\x08\x0b-\x1f\x7f-\x9f]')


def printable(text):
    """A text from elsewhere without what a terminal obeys: control characters and sequences become U+FFFD."""
    return CONTROL.sub('\ufffd', text.replace('\r\n', '\n').replace('\r', '\n'))


# -----------------------------------------------------------------------------
# the script's folder and its end


def find(path):
    """A file to read, such as data/hindi/nouns.txt: in the working directory, else beside the scripts.

    A path that is in neither is returned unchanged.
    """
    beside = os.path.join(os.path.dirname(os.path.abspath(__file__)), path)
    if os.path.exists(beside) and not os.path.exists(path):
        return beside
    return path


end_callbacks = []


def at_end(callback):
    """Call `callback()` when this script ends: at the end of the process or, in a notebook, of the cell."""
    if hasattr(builtins, 'get_ipython'):
        events = builtins.get_ipython().events
        events.register('post_run_cell', run_end_callbacks)  # registering it again changes nothing
    elif not end_callbacks:
        atexit.register(run_end_callbacks)
    end_callbacks.append(callback)


def run_end_callbacks(*_):
    while end_callbacks:
        callback = end_callbacks.pop()
        callback()


class StopRequest:
    """Ctrl-C or SIGTERM asks the script to stop: `name` is then the signal's name. A second one ends the process."""

    def __init__(self):
        self.name = ''

    def listen(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            previous = signal.signal(number, self.handle)
            at_end(functools.partial(signal.signal, number, previous))  # a notebook continues after the script

    def handle(self, number, frame):
        os.write(2, b'\nstopping after this step\n')  # print() may be interrupted by a signal, and fail then
        self.name = signal.Signals(number).name
        signal.signal(number, signal.SIG_DFL)


# -----------------------------------------------------------------------------
# what is written


def check_writable(path, folder=''):
    """Every file is checked here before it is written. Creates its folder.

    A link in a folder from elsewhere must not lead to a file outside of it: the script ends in one line then.
    folder: the folder that the user named; '' = the one of `path`. It may itself be a link, to a larger disk.
    """
    folder = folder or os.path.dirname(path) or '.'
    root = os.path.join(os.path.realpath(folder), '')
    target = os.path.realpath(path)
    if not os.path.join(target, '').startswith(root):
        fail(f'{path} leads through a link to {target}, which is not in {folder}; remove the link, or name that file')
    if os.path.exists(path) and not os.path.isdir(path) and not os.path.isfile(path):
        fail(f'{path} is not an ordinary file')  # writing to a pipe would wait for a reader
    try:
        os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
    except OSError as e:
        fail(f'{path} could not be opened: {e.strerror}')


# -----------------------------------------------------------------------------
# locks

locked_files = {}  # absolute path -> the open file that this script has locked


def lock(path):
    """Until this script ends, refuse any other process that locks the same path, which is about to be written.

    The lock is on the file `path`.lock. The operating system releases it when the process ends, also after a kill:
    then the file stays, but it is not locked.
    """
    name = f'{path}.lock'
    if not os.path.isdir(path):
        check_writable(path)  # now, not after hours of work
    open_locked(name)

    def remove():
        with contextlib.suppress(OSError):  # Windows does not remove an open file
            if not os.path.getsize(name):  # else it is another program's, such as uv.lock
                os.remove(name)
    at_end(remove)


def open_locked(path, wait=False):
    """Open a file for appending and lock it until it is closed, at the latest when this script ends."""
    key = os.path.abspath(path)
    if not wait and key in locked_files:  # by an earlier run in the same notebook cell
        locked_files[key].close()
    check_writable(path)
    try:
        f = open(path, 'ab+')
    except OSError as e:
        fail(f'{path} could not be opened: {e.strerror}')
    try:
        if os.name == 'nt':
            import msvcrt
            f.seek(1 << 40)  # a byte far beyond the end, so that the content stays readable
            msvcrt.locking(f.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        else:
            import fcntl
            fcntl.flock(f, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        if e.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):  # any other error: this file system has no locks
            f.close()
            fail(f'{str(path).removesuffix(".lock")} is being written by another process')
    if not wait:
        locked_files[key] = f

        def close():
            with contextlib.suppress(OSError):  # of a full disk, which append_rows has reported
                f.close()
        at_end(close)
    return f


# -----------------------------------------------------------------------------
# append-only .jsonl files


def parse_json(text):
    """json.loads for text from elsewhere. Raises ValueError also for brackets that are too deep.

    Bytes that are not UTF-8 became halves of surrogate pairs, where errors='surrogateescape', and are refused too.
    """
    text.encode()
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError('too many brackets in each other') from None
    check_depth(value)
    return value


def check_depth(value, levels=MAX_DEPTH):
    """Raise ValueError if a JSON value is so deep that writing it would fail."""
    if not levels:
        raise ValueError('too many brackets in each other')
    for part in parts_of(value):
        check_depth(part, levels - 1)


def parts_of(value):
    """The list of the values in a JSON object or array; empty for any other value."""
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def read_lines(path, f, limit):
    """Yield the lines of an open text file. A line of more than `limit` characters ends the script."""
    while line := f.readline(limit + 1):
        if len(line) > limit:
            fail_too_long(path)
        yield line.removeprefix('\ufeff')  # where files were joined


def fail_too_long(path):
    fail(f'{path}: a row or story has more than {max_row:,} characters; if it should, raise --max_row')


def read_jsonl(path):
    """Yield the objects of a .jsonl file (.gz and .xz too), one line in memory at a time.

    A last line that a kill tore is skipped. Any other broken line ends the script with its number.
    """
    with open_text(path, errors='surrogateescape') as f:
        for number, line in enumerate(read_lines(path, f, 4 * max_row), 1):  # a letter can be more in JSON: \u0915
            if line.isspace():
                continue
            try:
                row = parse_json(line)
            except ValueError as e:
                if is_torn(line, e):
                    return
                fail(f'{path}, line {number}: not a line of JSON in UTF-8')
            yield row


def is_torn(line, error):
    """Whether a kill tore a line that parse_json refused with this error: it lacks its end, and the rest is sound."""
    if isinstance(error, UnicodeError):
        return error.end == len(line)  # it ends in a part of a letter
    if line.endswith('\n') or re.search('Extra data|too many', str(error)):
        return False
    return not line.endswith('}') or 'Unterminated' in str(error) or getattr(error, 'pos', 0) == len(line)


def open_append(path, wait=False):
    """Open a .jsonl file for append_rows; creates it and its folder, and cuts a torn last line.

    The file is locked until it is closed: another process that opens it is refused or, with `wait`, waits.
    """
    f = open_locked(path, wait)
    end = f.seek(0, os.SEEK_END)
    f.seek(max(0, end - 4 * max_row))  # no row is longer
    last_line = f.read().rpartition(b'\n')[2]
    text = last_line.decode(errors='surrogateescape')
    if not text:
        return f
    try:
        parse_json(text)
        f.write(b'\n')  # the line is whole, only its line end is missing
    except ValueError as e:
        if not text.startswith(('{', '\0')) or not is_torn(text, e):  # a power cut may leave zeros
            fail(f'{path} does not look like a .jsonl file; use another name')
        f.truncate(end - len(last_line))
    return f


def append_rows(f, *rows):
    """Write each row as one line of JSON: all in one write, flushed, so that a kill loses none of them.

    What JSON lacks, such as a date from a .parquet file, is written as text.
    """
    lines = [json.dumps(row, ensure_ascii=False, default=str) + '\n' for row in rows]
    try:
        f.write(''.join(lines).encode('utf-8', 'backslashreplace'))  # a lone surrogate becomes its JSON escape
        f.flush()
    except OSError as e:
        fail(f'{f.name} could not be written: {e.strerror}; its lines so far are complete, the same command continues')


# -----------------------------------------------------------------------------
# files written whole


@contextlib.contextmanager
def replacing(path):
    """`with replacing(path) as temporary:` write to `temporary`; at the end of the block it replaces `path`.

    If the block raises an error, `path` stays as it was.
    """
    root, ending = os.path.splitext(path)
    temporary = f'{root}.tmp{secrets.token_hex(8)}{ending}'  # the same ending: matplotlib picks the format by it
    check_writable(path)
    try:
        open(temporary, 'xb').close()  # never a file of somebody else
        try:
            yield temporary
            with open(temporary, 'rb+') as f:
                os.fsync(f.fileno())  # else a power cut may leave the new name on an empty file
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):  # replaced, or the folder cannot be written
                os.remove(temporary)
    except OSError as e:
        fail(f'{path} could not be written: {e}')


def hide_folders(value):
    """A setting -> the same for files that are given to others: its absolute paths name no folder of this machine.

    What is in the working directory gets a relative path; of any other path the last part is kept. Lists and dicts are
    searched, and texts with several paths, such as 'a.jsonl,b.jsonl' or 'hf:folder:train'.
    """
    if isinstance(value, dict):
        return {key: hide_folders(part) for key, part in value.items()}
    if isinstance(value, list):
        return [hide_folders(part) for part in value]
    if not isinstance(value, str):
        return value
    parts = re.split('(,|^hf:|^FILE:)', value)
    for i, part in enumerate(parts):
        path = os.path.relpath(part or '.')
        if path.startswith((os.pardir, '~')):
            parts[i] = os.path.basename(path)
        elif os.path.isabs(part):
            parts[i] = path
    return ''.join(parts)


def write_text(path, text):
    """Write a whole text file, atomically."""
    with replacing(path) as temporary, open(temporary, 'w', encoding='utf-8', errors='replace', newline='\n') as f:
        f.write(text)


def write_json(path, data):
    """Write a whole JSON file, atomically."""
    write_text(path, json.dumps(data, ensure_ascii=False, indent=1))


def quote_markdown(value):
    """A value as one line of Markdown that shows it as text, for cards: no markup, link, HTML or control character.

    Of an absolute path only the last part is shown: the rest can contain the user's name.
    """
    text = os.path.basename(value) if isinstance(value, str) and os.path.isabs(value) else str(value)
    # control characters, halves of surrogate pairs, and what changes the direction of the text after it
    text = re.sub('[\x00-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]', ' ', text)
    # HTML, and what would become a link: addresses, www. and user@host
    text = re.sub(r'[&<>@]|:(?=//)|(?<=www)\.', lambda match: f'&#{ord(match[0])};', ' '.join(text.split()))
    # the markup of Markdown; an underscore between letters is none, as in n_embd
    text = re.sub(r'([\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])|#(?!\d+;))', r'\\\1', text)
    return re.sub(r'^(\d*)([-+=]|[.)](?= |$))', r'\1\\\2', text)  # at its beginning: a list, or a line below a heading


# -----------------------------------------------------------------------------
# stories


def parse_shard(text):
    """'2/8', the second of eight shards -> (2, 8); None if it is not of this form."""
    match = re.fullmatch(r'([0-9]+)/([0-9]+)', text)
    if match and 1 <= int(match[1]) <= int(match[2]):
        return int(match[1]), int(match[2])


def read_texts(source, text_column='', separator=''):
    """Yield the stories of a source as text, '' where there is none; the arguments are those of read_rows."""
    for _, text in read_rows(source, text_column, separator):
        yield text


def read_rows(source, text_column='', separator=''):
    """Yield (row, story) for each row of a source; normalize() was applied to the story, which is '' if there is none.

    row: a dict of the other columns, empty for a plain text
    source: a .jsonl, .json, .csv, .tsv, .parquet or .txt file (.gz and .xz too), a folder or glob of them, or
        hf:user/dataset[@revision][:split]. UTF-16 is understood where a file begins with its byte order mark.
    text_column: the column with the story; '' = found by story_column
    separator: what stands between two stories in a .txt file; '' = found by txt_rows
    """
    for _, _, rows in open_source(source, text_column, separator):
        yield from rows


def open_source(source, text_column='', separator=''):
    """Yield (name, what was taken for a story, iterator of (row, story)) for each file of a source."""
    source = find(source)
    for name in [source] if source.startswith('hf:') else story_files(source):
        ending = ending_of(name)
        what = ''
        if name.startswith('hf:'):
            rows = hub_rows(name)
        elif ending == '.txt':
            what, rows = txt_rows(name, text_column, separator, is_alone=name == source)
        elif ending == '.parquet':
            rows = parquet_rows(name)
        elif ending in ('.csv', '.tsv'):
            rows = csv_rows(name)
        else:
            what, rows = json_rows(name, text_column)
        rows = iter(rows)
        first_rows = list(itertools.islice(rows, 100))
        column = text_column or story_column(first_rows)
        what = what or (f'the text of column {column}' if column else 'each text')
        yield name, what, row_stories(name, itertools.chain(first_rows, rows), column)


def row_stories(name, rows, column):
    """Yield (the other columns, the story) for each row of a file. A row that cannot be read ends the script."""
    for number, row in enumerate(rows, 1):
        if isinstance(row, str):
            row = {column: row}
        elif not isinstance(row, dict):
            fail(f'{name}, row {number}: neither an object nor a text')
        elif not column or column not in row:
            columns = ' '.join(', '.join(row).split())
            fail(f'{name}, row {number}: no column {column or "with stories"} among {columns:.200}; set --text_column '
                 '(the first line of a table must name its columns)')
        row = dict(row)  # the data set keeps its own
        text = row.pop(column)
        if text in MISSING:
            text = ''
        if not isinstance(text, str):
            fail(f'{name}, row {number}: {column} is not text but {text!r:.40}')
        if len(text) > max_row:
            fail_too_long(name)
        text = normalize(text)
        if 50 * text.count('\0') > len(text):  # UTF-16 without its mark can be valid UTF-8: it is full of NULs then
            fail(f'{name}: a story is full of NUL characters: {text[:20]!r}; save the file as UTF-8')
        yield row, text.replace('\0', '')


def normalize(text):
    """A text in the form in which all files give the same: NFC, stripped, all line ends as \\n, without GPT-2's marks.

    A broken escape in JSON leaves half a surrogate pair, which UTF-8 cannot encode; it becomes U+FFFD.
    """
    text = text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')
    text = '\n'.join(text.splitlines())  # also of Word (U+000B) and the web (U+2028)
    text = unicode_form(text).strip().strip(ZERO_WIDTH).strip()
    text = text.removeprefix('<|startoftext|>').removesuffix('<|endoftext|>').strip()
    return text if re.search(fr'[^\s{INVISIBLE}]', text) else ''  # invisible characters are no story


def fill_template(template, values):
    """('a {noun}: ', {'noun': 'cat'}) -> 'a cat: '"""
    return re.sub(r'\{(\w+)\}', lambda slot: values[slot[1]], template)


def template_of(checkpoint):
    """The story_template of the stories on which a checkpoint was trained."""
    meta = checkpoint.get('meta')
    template = meta.get('story_template') if isinstance(meta, dict) else None
    return template if isinstance(template, str) else '{text}'


def prefix_mask(folder, tokens, meta):
    """(N,) bool: which tokens of val.bin the story_template of prepare.py put in front of stories, or None."""
    import numpy as np
    if not meta.get('prefix_tokens', {}).get('val'):
        return None
    lengths = np.fromfile(f'{folder}/val_prefix.bin', '<u2').astype(int)
    starts = np.flatnonzero(tokens == meta['bos'])[:len(lengths)] + 1
    if len(starts) != len(lengths) or lengths.sum() != meta['prefix_tokens']['val']:
        fail(f'{folder}/val_prefix.bin does not belong to val.bin; prepare the data again')
    mask = np.zeros(len(tokens), bool)
    for start, length in zip(starts, lengths):
        mask[start:start + length] = True
    return mask


def unicode_form(text, form='NFC'):
    """unicodedata.normalize in linear time.

    That function takes quadratic time for many combining marks on one letter: hours for 600,000. So U+034F is put
    after each 30 of them, as in Unicode's stream-safe format. 20,000 characters take less than a second anyway.
    """
    def limit(match):
        last_char = unicodedata.normalize('NFD', match[0])[-1]
        return match[0] + '\u034f' if unicodedata.combining(last_char) else match[0]

    if len(text) > 20_000:
        text = re.sub(r'[^\w\s]{30}', limit, text)  # marks, or punctuation
    return unicodedata.normalize(form, text)


def count_scripts(text):
    """The letters and marks of each script: 'मेरा dog' -> Counter({'DEVANAGARI': 4, 'LATIN': 3})"""
    counts = collections.Counter()
    for char, n in collections.Counter(text).items():
        script = unicodedata.name(char, '').split(' ')[0]
        is_letter = unicodedata.category(char)[0] in 'LM'
        is_in_any_script = script in ('', 'COMBINING', 'VARIATION', 'ZERO')  # as accents and joiners are
        if is_letter and not is_in_any_script:
            counts[SAME_SCRIPT.get(script, script)] += n
    return counts


def story_column(rows):
    """The column that contains the stories, by its name; of several, the one with the longest texts; '' = none.

    Its last word is one of STORY_WORDS, as in Story_text or `translated story`, but not in story_id.
    """
    lengths = {}  # column -> lengths of its texts
    for row in rows:
        for column, text in row.items() if isinstance(row, dict) else ():
            if is_story_column(column):
                lengths.setdefault(column, [0])
                if text:
                    lengths[column].append(len(str(text)))
    return max(lengths, key=lambda column: statistics.median(lengths[column]), default='')


def is_story_column(name):
    words = re.findall(r'[^\W\d_]+', re.sub('([a-z])([A-Z])', r'\1 \2', name or ''))  # StoryText is two words
    # a name of more words is the first story of a table without a header
    return 1 <= len(words) <= 4 and words[-1].lower() in STORY_WORDS


def hub_rows(source):
    """The rows of hf:user/dataset[@revision][:split], or of a folder in the form of such a data set."""
    import datasets
    logging.getLogger('datasets').setLevel(logging.CRITICAL)  # it logs what it also raises
    name, _, split = source.removeprefix('hf:').partition(':')
    name, revision = on_hub(name)
    if not os.path.isdir(name) and not re.fullmatch(r'\w[\w.-]*/\w[\w.-]*', name):
        fail(f'{source}: neither hf:user/dataset nor a folder')
    try:
        check_data_files(name, revision)
        return datasets.load_dataset(name, split=split or 'train', revision=revision)
    except Exception as e:  # of pandas, pyarrow, yaml, and RuntimeError for a data set with code of its own
        reason = ' '.join(str(e.__cause__ or e).split())
        fail(f'{source}: {type(e).__name__}: {reason:.300}')


def check_data_files(name, revision):
    """End the script if the settings of a data set name data files that are not its own: addresses, other folders."""
    import huggingface_hub
    import yaml
    for file in ('README.md', '.huggingface.yaml'):
        path = f'{name}/{file}'
        if not os.path.isdir(name):
            try:
                path = huggingface_hub.hf_hub_download(name, file, repo_type='dataset', revision=revision)
            except huggingface_hub.errors.EntryNotFoundError:  # also offline: what is in the cache is read then
                continue
        if not os.path.exists(path):
            continue
        if file == 'README.md':
            settings = huggingface_hub.metadata_load(path)
        else:
            with open(path, encoding='utf-8') as f:
                settings = yaml.safe_load(f)
        for pattern in data_file_patterns(settings or {}):
            parts = re.split(r'[/\\]', pattern)
            if ':' in pattern or not parts[0] or parts[0].startswith('~') or '..' in parts:
                fail(f'hf:{name}: its {file} names data files outside of the data set: {pattern!r:.200}')


def data_file_patterns(settings):
    """The texts that the package `datasets` takes for names of data files in the settings of a data set."""
    from datasets.data_files import sanitize_patterns
    check_repeats(settings)
    patterns = []
    for config in settings.get('configs') or []:
        patterns.append(config.get('data_dir') or '.')
        for split_patterns in sanitize_patterns(config.get('data_files') or []).values():
            patterns += split_patterns
    return patterns


def check_repeats(settings):
    """Raise ValueError if a part of a YAML value comes twice: written out, it could have any length."""
    seen = set()
    parts = [settings]
    for part in parts:
        if isinstance(part, (dict, list)):
            if id(part) in seen:
                raise ValueError('its settings repeat a value, perhaps without end')
            seen.add(id(part))
            parts += parts_of(part)


def on_hub(name):
    """'user/name@revision' on the Hugging Face hub -> ('user/name', branch, tag or commit, or None).

    Ends the script if HF_ENDPOINT is not encrypted: anybody on the way could change a download.
    """
    endpoint = os.environ.get('HF_ENDPOINT', '')
    if endpoint and not is_safe_address(endpoint):
        fail('HF_ENDPOINT: downloads need https://, and no user name in the address (http:// is for this machine only)')
    repository, _, revision = name.partition('@')
    return repository, revision or None


def check_push(name):
    """End the script if `push` is no user/name, or if the upload would not be encrypted. '' = no upload."""
    if name:
        check(re.fullmatch(r'\w[\w.-]*/\w[\w.-]*', name, re.ASCII), f'push is {name!r}; it must look like user/kahani')
        on_hub(name)


def language_code(text):
    """The code of the language that a name or path contains, such as hi for data/hindi; '' = none."""
    return next((code for language, code in ISO_CODES.items() if language in text), '')


def upload_dataset(name, paths, language, license=''):
    """Upload .jsonl files and a card to a data set on the Hugging Face hub.

    The token is that of `hf auth login` or HF_TOKEN.
    paths: {'train': path, …}. language: its code, or ''. license: its name on the hub, or ''.
    """
    import huggingface_hub
    n_stories = dict.fromkeys(paths, 0)
    models = {}  # that wrote the stories
    row = {}
    files = ''
    for split, path in paths.items():
        files += f'  - {{split: {split}, path: {json.dumps(os.path.basename(path))}}}\n'
        for row in read_jsonl(path):
            n_stories[split] += 1
            models[str(row.get('model') or '')] = True
    settings = f'task_categories: [text-generation]\nconfigs:\n- config_name: default\n  data_files:\n{files}'
    for key, value in (('license', license), ('language', language)):
        if value:
            settings = f'{key}: {json.dumps(value)}\n{settings}'
    total = sum(n_stories.values())
    counts = ', '.join(f'{n:,} for {split}' for split, n in n_stories.items())
    written_by = ', '.join(filter(None, models))
    card = f'''---
{settings}---
# {name.split("/")[-1]}

{total:,} short texts for training small language models: {counts}.

- columns: {quote_markdown(f'{", ".join(row):.500}')}
- written by: {quote_markdown(f'{written_by:.500}') or 'not known'}

```python
from datasets import load_dataset
stories = load_dataset("{name}", split="train")
```
'''
    operations = [huggingface_hub.CommitOperationAdd('README.md', card.encode())]
    for path in paths.values():
        operations.append(huggingface_hub.CommitOperationAdd(os.path.basename(path), path))
    api = huggingface_hub.HfApi()
    try:
        api.create_repo(name, repo_type='dataset', exist_ok=True)
        api.create_commit(name, operations, repo_type='dataset', commit_message='Upload stories')
    except (OSError, ValueError, huggingface_hub.errors.HTTPError) as e:  # of the HTTP package that it uses
        reason = ' '.join(str(e).split())
        fail(f'{name} was not uploaded: {reason:.300}; the same command tries again')
    print(f'{total:,} stories uploaded to {api.endpoint}/datasets/{name}')


def is_safe_address(address):
    """Whether it is https, or http to this machine. A user name could make another host look like this one."""
    try:
        url = urllib.parse.urlsplit(address)
        has_host = url.hostname and (url.port or True)  # a bad port raises ValueError
    except ValueError:
        return False
    if not has_host or '@' in url.netloc or re.search(r'[\s\\\x00-\x1f]', address):
        return False
    is_local = url.hostname in ('localhost', '127.0.0.1', '::1')
    return url.scheme == 'https' or url.scheme == 'http' and is_local


def story_files(source):
    """The sorted paths of the story files that a file, folder or glob names."""
    if os.path.isdir(source):
        found = sorted(glob.glob(os.path.join(glob.escape(source), '**'), recursive=True), reverse=True)
        unique = {os.path.realpath(path): path for path in found}  # a link may lead to a file or folder of this folder
        paths = [path for path in unique.values() if os.path.basename(path).lower() not in NOT_STORIES]
    else:
        paths = [source] if os.path.exists(source) else glob.glob(source, recursive=True)
        if not paths:
            fail(f'{source}: no such file')
    paths = sorted(path for path in paths if ending_of(path) in STORY_ENDINGS)
    if not paths:
        fail(f'{source}: stories are read from files that end in {" ".join(STORY_ENDINGS)}; save a table as CSV UTF-8, '
             'a document as plain text')
    if os.path.isdir(source):
        check_splits(source, paths)
    return paths


def check_splits(folder, paths):
    """End the script if the names of the files in a folder, or of its folders, tell of several splits."""
    splits = collections.defaultdict(set)  # 'tales-' -> {'train', 'test'}, as in tales-train-00000.jsonl
    for path in paths:
        name = os.sep + os.path.relpath(path, folder).lower()
        for match in re.finditer(rf'(?<=[-_./\\])({SPLITS})(?=[-_.\d/\\])', name):
            splits[name[:match.start()]].add(match[0])
    for names in splits.values():
        if len(names) > 1:
            fail(f'{folder} contains several splits ({", ".join(sorted(names))}); give one as the source, and for '
                 'prepare.py another one as val_source')


def ending_of(path):
    """The ending that says what a file contains: '.csv' for stories.csv and for stories.csv.gz."""
    path = path.lower().removesuffix('.gz').removesuffix('.xz')
    return os.path.splitext(path)[1]


@contextlib.contextmanager
def open_text(path, newline=None, errors='strict'):
    """`with open_text(path) as f:` read text; .gz and .xz are unpacked.

    Any error of reading or parsing it in the block ends the script.
    """
    openers = {'.gz': gzip.open, '.xz': lzma.open}
    try:
        with openers.get(os.path.splitext(path)[1].lower(), open)(path, 'rb') as binary:
            is_utf16 = binary.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
            encoding = 'utf-16' if is_utf16 else 'utf-8-sig'
            with io.TextIOWrapper(binary, encoding, errors, newline) as f:
                yield f
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as e:
        fail(f'{path} could not be read: {e}')
    except (ValueError, RecursionError, csv.Error) as e:  # ValueError: not UTF-8, not JSON
        if 'field limit' in str(e):  # of the csv module
            fail_too_long(path)
        fail(f'{path} could not be read as {ending_of(path)} in UTF-8: {e}; save it again, a spreadsheet as CSV UTF-8')


def parquet_rows(path):
    import pyarrow.parquet
    try:
        with pyarrow.parquet.ParquetFile(path) as f:
            check_columns(path, f.schema_arrow.names)
            for batch in f.iter_batches(16):  # few, as a file of a few bytes can contain the same long text many times
                if batch.nbytes > 16 * 4 * max_row:  # also of lists and bytes, which take far more memory in Python
                    fail_too_long(path)
                yield from batch.to_pylist()
    except (OSError, ValueError, OverflowError, pyarrow.ArrowException) as e:  # not UTF-8, dates that Python lacks
        reason = str(e).partition('\n')[0]
        fail(f'{path} could not be read: {reason:.300}')


def check_columns(path, columns):
    """End the script if the columns of a table are too many, or two have the same name."""
    if len(columns) > MAX_COLUMNS:
        fail(f'{path}: more than {MAX_COLUMNS:,} columns')
    if len(set(columns)) < len(columns):
        fail(f'{path}: two columns have the same name')


def json_rows(path, text_column):
    """(what is read, or '' for all, rows) of a file with a row of JSON on each line, or with one JSON value."""
    with open_text(path, errors='surrogateescape') as f:  # read_jsonl reports bad bytes with the number of the line
        text = f.read(BLOCK_SIZE).lstrip(WHITE_SPACE)
        line, _, rest = text.partition('\n')
        is_array = text.startswith('[')
        # in one JSON value the lines begin with different brackets
        if line[:1] == rest.lstrip()[:1] or ending_of(path) == '.jsonl' and not is_array:
            return '', read_jsonl(path)
        if is_array:
            return '', array_rows(path)
        text += f.read(50 * max_row)
        if f.read(1):
            fail(f'{path} has more than {50 * max_row:,} characters; save it as .jsonl, or raise --max_row')
        data = parse_json(text)
    what = ''
    splits = find_splits(data, text_column)
    if splits:
        names = ', '.join(splits)
        split = next(iter(splits))
        for name in splits:
            if name.lower() in ('train', 'training'):
                split = name
        if len(splits) > 1 and split.lower() not in ('train', 'training'):
            fail(f'{path} contains the splits {names} and no train; save the one to read in a file of its own')
        data = splits[split]
        what = f'each of {split}, of the splits {names}'
    rows = data if isinstance(data, list) else list(find_rows(data, text_column))
    if not rows:
        fail(f'{path}: contains no stories; set --text_column, or save it as .jsonl with a row on each line')
    return what, rows


def array_rows(path):
    """Yield the values of a JSON array, one in memory at a time."""
    decoder = json.JSONDecoder()
    with open_text(path) as f:
        text = f.read(BLOCK_SIZE).lstrip(WHITE_SPACE)
        at = 1  # after the bracket
        while True:
            at = re.compile(r'[\s,]*').match(text, at).end()
            error = ValueError('the array does not end')
            try:
                value, end = decoder.raw_decode(text, at)
            except ValueError as e:
                if text.startswith(']', at) and not (text[at + 1:] + f.read(BLOCK_SIZE)).strip():
                    return
                end, error = len(text), e
            if end < len(text):
                check_depth(value)
                yield value
                at = end
                continue
            block = f.read(BLOCK_SIZE)  # the value may go on
            if not block:
                raise error
            text = text[at:] + block
            at = 0
            if len(text) > max_row + BLOCK_SIZE:
                fail_too_long(path)


def find_splits(data, text_column):
    """The splits {name: rows} of a JSON value, however nested in objects; {} if it has none."""
    if not isinstance(data, dict) or (text_column or story_column([data])) in data:
        return {}
    splits = {key: value for key, value in data.items()
              if re.fullmatch(SPLITS, key, re.I) and isinstance(value, (dict, list))}
    for value in data.values():
        splits = splits or find_splits(value, text_column)
    return splits


def find_rows(data, text_column):
    """Yield the rows in a JSON value, however nested: objects with a story, or pandas' {column: {index: value}}."""
    column = text_column or story_column([data])
    if isinstance(data, dict) and column in data:
        if not isinstance(data[column], (dict, list)):
            yield data
            return
        if any(isinstance(value, str) for value in parts_of(data[column])):
            columns = {key: parts_of(values) for key, values in data.items() if isinstance(values, (dict, list))}
            for row in itertools.zip_longest(*columns.values()):
                yield dict(zip(columns, row))
            return
        data = [data[key] for key in data if key == column or is_story_column(key)]  # the others describe them
    for value in parts_of(data):
        yield from find_rows(value, text_column)


def csv_rows(path):
    """The rows of a table with a header; the header shows whether commas, semicolons, tabs or | separate the fields."""
    csv.field_size_limit(max_row)
    delimiters = ',;\t|' if ending_of(path) == '.csv' else '\t,;|'
    with open_text(path, newline='') as f:
        lines = read_lines(path, f, max_row)
        header = next(lines, '')
        while header.startswith('sep=') or header and not header.strip().strip(delimiters):  # Excel's sep=; empty rows
            header = next(lines, '')
        delimiter = max(delimiters, key=lambda delimiter: len(next(csv.reader([header], delimiter=delimiter), [])))
        n_read = 0  # characters since the last row

        def counted_lines():
            nonlocal n_read
            for line in lines:
                n_read += len(line)
                if n_read > max_row:  # the csv module would collect a row without an end in memory
                    fail_too_long(path)
                yield line

        rows = csv.DictReader(itertools.chain([header], counted_lines()), delimiter=delimiter, strict=True)
        names = rows.fieldnames or []
        while names and not names[-1]:  # empty columns of a spreadsheet
            names.pop()
        check_columns(path, names)
        for number, row in enumerate(rows, 1):
            n_read = 0
            if any(row.pop(None, [])):  # the csv module's key for surplus fields
                fail(f'{path}, row {number}: more fields than the header; quote texts that contain {delimiter!r}')
            if list(row) != list(row.values()):  # else the header again, in tables that were joined
                yield row


def txt_rows(path, text_column, separator, is_alone):
    """(what was taken for a story, rows) of a .txt file. Its first million characters decide.

    Stories are separated by `separator` or <|endoftext|>. Without these, a file of a folder or glob is one story, and
    in a file that is the whole source (is_alone) blank lines separate stories, else each line is one. What begins like
    JSON, or like a table with tabs, is read as such.
    """
    with open_text(path) as f:
        start = f.read(BLOCK_SIZE)
        rest = '' if is_alone else f.read(max_row)
    lines = start.strip().splitlines()
    header = lines[0].split('\t') if lines else []
    if not separator and len(header) > 1:  # perhaps a spreadsheet's "Unicode text"
        if text_column or story_column([dict.fromkeys(header)]) or '\t' in ''.join(lines[1:2]):
            return '', csv_rows(path)
    if not separator and re.match(r'\s*[\[{]\s*["{]', start):
        return json_rows(path, text_column)
    mark = separator or '<|endoftext|>'
    if mark in start:
        return f'text between {mark!r}', split_text(path, re.escape(mark))
    if not is_alone:
        return 'each .txt file', [start + rest]
    if separator:
        fail(f'{path}: does not contain the separator {separator!r}')
    rule = re.search(r'^ *[-*=_~#—](?: *[-*=_~#—])+ *$', start.strip(), re.M)
    if rule:
        fail(rf"{path} has lines of {rule[0]!r}: stories are separated by them, --separator='{rule[0]}', or by blank "
             r"lines, --separator='\n\n'")
    if re.search(BLANK_LINES, start.strip()):
        return 'text between blank lines', split_text(path, BLANK_LINES)
    n_sentences = sum(line.rstrip().endswith(SENTENCE_ENDS) for line in lines)
    if len(lines) > max(1, 2 * n_sentences):
        fail(f'{path} has no blank lines, and few of its lines end like a story; put a blank line between stories, '
             r"or take each line for a story by --separator='\n'")
    return 'each line', split_text(path, LINE_END)


def split_text(path, pattern):
    """Yield the texts between the matches of a regular expression, without empty ones."""
    with open_text(path) as f:
        story = ''
        while block := f.read(BLOCK_SIZE):
            *stories, story = re.split(pattern, story + block)
            if len(story) > max_row + BLOCK_SIZE:
                fail_too_long(path)
            yield from filter(str.strip, stories)
        yield from filter(str.strip, [story])


# -----------------------------------------------------------------------------
# training: the bins of prepare.py, the log and its picture


def load_dataset(folder):
    """What prepare.py wrote -> (meta, text of tokenizer.json, training tokens, validation tokens).

    The tokens are memory-mapped uint16 arrays, (N,).
    """
    import numpy as np
    from tokenizers import Tokenizer
    sizes = {}
    try:
        name = 'meta.json'
        with open(f'{folder}/{name}', encoding='utf-8') as f:
            meta = parse_json(f.read())
        numbers = [meta['bos'], meta['eos'], meta['vocab_size']]
        for key in ('stories', 'tokens', 'bytes'):
            numbers += [meta[key]['train'], meta[key]['val']]
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError('a number is missing')
        name = 'tokenizer.json'
        with open(f'{folder}/{name}', encoding='utf-8') as f:
            tokenizer_json = f.read()
        vocab = Tokenizer.from_str(tokenizer_json).get_vocab()
        for split in ('train', 'val'):
            sizes[split] = os.path.getsize(f'{folder}/{split}.bin')
    except FileNotFoundError as e:
        fail(f'{folder} has no {os.path.basename(e.filename)}; prepare it first: python prepare.py --source=… '
             f'--dataset={os.path.basename(folder)}')
    except Exception as e:  # `tokenizers` raises nothing narrower
        fail(f'{folder}/{name} cannot be read or is damaged ({type(e).__name__}: {e}); prepare the data again')
    tokens = []
    for split, size in sizes.items():
        path = f'{folder}/{split}.bin'
        if size != 2 * meta['tokens'][split]:
            fail(f'{path} does not have the length that meta.json says; prepare the data again')
        if not size:
            fail(f'{path} is empty; prepare the data again with a larger --val_fraction')
        tokens.append(np.memmap(path, '<u2', 'r'))
    largest_id = max(part.max() for part in tokens)
    if not largest_id < meta['vocab_size'] == 1 + max(vocab.values()):
        fail(f'{folder}: meta.json, tokenizer.json and the bins do not belong together; prepare the data again')
    if 'unknown' not in meta:  # prepared by an older version
        model = json.loads(tokenizer_json)['model']
        unk = model.get('unk_id', vocab.get(model.get('unk_token')))
        meta['unknown'] = {'val': float(np.mean(tokens[1] == unk))}
    return meta, tokenizer_json, *tokens


class TokenStream:
    """The training tokens as an endless stream: in each epoch every story once, in a new random order.

    The order depends only on the seed and the epoch, so any process can read any part of it.
    """

    def __init__(self, tokens, bos, eos, seed):
        import numpy as np
        self.tokens = tokens
        self.seed = seed
        bounds = np.flatnonzero(tokens == bos)
        if bos != eos:  # else the last token ends the last story and starts none
            bounds = np.append(bounds, len(tokens))
        self.starts = bounds[:-1]  # of each story in tokens
        self.lengths = np.diff(bounds)
        self.epoch_order = functools.lru_cache(2)(self.new_order)

    def __len__(self):
        """Tokens of one epoch."""
        return int(self.lengths.sum())

    def new_order(self, epoch):
        """The order of the stories in this epoch, and where each one ends."""
        import numpy as np
        order = np.random.Generator(np.random.PCG64([self.seed, epoch])).permutation(len(self.starts))
        return order, np.cumsum(self.lengths[order])

    def read(self, begin, end):
        """Tokens begin … end - 1 of the stream, (end - begin,) uint16."""
        import numpy as np
        parts = []
        while begin < end:
            epoch, offset = divmod(begin, len(self))
            n = min(end - begin, len(self) - offset)  # up to the end of this epoch
            order, ends = self.epoch_order(epoch)
            # the stories that contain these n tokens
            first, last = np.searchsorted(ends, [offset, offset + n - 1], 'right')
            stories = [self.tokens[self.starts[i]:self.starts[i] + self.lengths[i]] for i in order[first:last + 1]]
            skipped = offset - (ends[first] - self.lengths[order[first]])  # tokens of the first story that came before
            parts.append(np.concatenate(stories)[skipped:skipped + n])
            begin += n
        return np.concatenate(parts)


def read_log(path):
    """Yield the rows of log.jsonl. One without its numbers ends the script."""
    for number, row in enumerate(read_jsonl(path), 1):
        row = row if isinstance(row, dict) else {}
        numbers = [row.get(key) for key in ('step', 'tokens', 'seconds')]
        losses = [row.get(key, 0.0) for key in ('loss', 'val_loss', 'lr')]  # a skipped step has a loss of NaN
        is_sound = all(isinstance(value, (int, float)) for value in numbers + losses)
        if not is_sound or not all(abs(value) < 1e18 for value in numbers):
            fail(f'{path}, row {number}: not a row of train.py, or damaged')
        yield row


def open_log(path, step):
    """Open log.jsonl for appending, cut after the rows up to this step -> (file, seconds that these steps took)."""
    rows = []
    if step and os.path.exists(path):
        rows = [row for row in read_log(path) if row['step'] <= step]
    with replacing(path) as temporary, open(temporary, 'wb') as f:
        append_rows(f, *rows)
    return open_append(path), rows[-1]['seconds'] if rows else 0.0


def open_wandb(project, name, config, run_id):
    """Start a Weights & Biases run, or continue the one with this id -> (its id, the function that logs a row)."""
    import wandb
    try:
        run = wandb.init(project=project, name=name, config=config, id=run_id, resume='allow' if run_id else None)
    except wandb.errors.Error as e:  # no key, no network
        reason = ' '.join(str(e).split()).rstrip('.')
        fail(f'wandb: {reason:.200}; WANDB_MODE=offline logs to files only, --wandb_log=False to log.jsonl only')
    return run.id, run.log


def loss_measures(loss, meta):
    """A validation loss in nats per token -> {'val_loss', 'perplexity', 'bits_per_byte'}.

    bits_per_byte = loss / ln 2 × tokens / bytes compares models with any tokenizers. It is left out where more than
    0.1 % of the tokens are unknown ones, which stand for any text.
    """
    measures = {'val_loss': loss, 'perplexity': math.exp(loss)}
    if meta.get('unknown', {}).get('val', 0) <= 0.001:
        n_tokens = meta['tokens']['val'] - meta.get('prefix_tokens', {}).get('val', 0)
        measures['bits_per_byte'] = loss / math.log(2) * n_tokens / meta['bytes']['val']
    return measures


def describe_loss(measures):
    """loss_measures() as text."""
    text = f'val loss {measures["val_loss"]:.4f}, perplexity {measures["perplexity"]:.2f}'
    if 'bits_per_byte' in measures:
        text += f', bits per byte {measures["bits_per_byte"]:.4f}'
    return text


def draw_loss(log_path, title, picture):
    """Plot the training and validation loss of log.jsonl, and the learning rate, over the tokens."""
    from matplotlib.figure import Figure
    rows = list(read_log(log_path))
    figure = Figure(figsize=(7, 4), dpi=120, layout='tight')
    axes = figure.subplots()
    right = axes.twinx()
    curves = ((right, 'lr', 'learning rate', 'k:'), (axes, 'loss', 'training, {:.3f}', '-'),
              (axes, 'val_loss', 'validation, {:.3f}', 'o-'))
    for axis, key, label, style in curves:
        points = [(row['tokens'] / 1e6, row[key]) for row in rows if key in row]
        if points:
            axis.plot(*zip(*points), style, label=label.format(points[-1][1]))
    axes.set(xlabel='million tokens', ylabel='loss (nats per token)', title=title)
    axes.grid(alpha=0.3)
    axes.legend(handles=[*axes.lines, *right.lines])
    right.set(ylabel='learning rate', ylim=(0, None))
    with replacing(picture) as temporary:
        figure.savefig(temporary)
