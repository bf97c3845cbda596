"""
Turns stories into tokens: source -> data/<dataset>/{train.bin, val.bin, meta.json, tokenizer.json}.

    python prepare.py --source=data/hindi/stories.jsonl --dataset=hindi
    python prepare.py --source=stories.csv --dataset=mine --tokenizer=tiktoken:gpt2
    python prepare.py --source=hf:roneneldan/TinyStories --val_source=hf:roneneldan/TinyStories:validation --dataset=tinystories
    python prepare.py --dataset=hindi --decode=500

The bins are headerless uint16 token ids, <bos> story <eos> <bos> story <eos> …, which nanoGPT reads as they are. Where
one token is both bos and eos it stands once between two stories. A tokenizer from elsewhere is trimmed to the tokens
that the stories use, which encodes them exactly as the whole one does.
"""

import collections
import concurrent.futures
import csv
import glob
import hashlib
import io
import itertools
import json
import lzma
import os
import re
import sqlite3
import sys
import tempfile
import unicodedata
import zlib

# -----------------------------------------------------------------------------
# stories
source = ''  # a .jsonl, .json, .csv, .tsv, .parquet or .txt file (.gz and .xz too), a folder or glob of them, or hf:user/dataset[@revision][:split]
val_source = ''  # the same for validation; when empty, a part of source is set aside
text_column = ''  # the name of the column with the story, found when empty
lower_case = False  # make everything lower case, as for news
deduplicate = False  # drop stories that are the same to the letter
# where to and how
dataset = 'hindi'  # the folder under data/
tokenizer = 'train'  # 'train' one here, 'tiktoken:gpt2', a name on the Hugging Face hub (@revision pins it), a folder, a .json or .model file
vocab_size = 4096  # tokens of a tokenizer trained here
special_tokens = []  # strings that get a token of their own, such as '</h>' behind the headline of news
trim = True  # drop the tokens of a tokenizer from elsewhere that the stories do not use
val_fraction = 0.05  # share of the stories set aside, chosen by a hash, so that adding stories moves none
seed = 1337  # another seed sets other stories aside
num_proc = 0  # threads that encode, 0: one a core
decode = 0  # print this many first tokens of the bins as text; without a source, of the bins that are there
# -----------------------------------------------------------------------------
exec(open('configurator.py', encoding='utf-8').read())

os.environ['TOKENIZERS_PARALLELISM'] = 'true'
if num_proc:
    os.environ['RAYON_NUM_THREADS'] = str(num_proc)

import numpy as np
from tqdm import tqdm

import jsonl
from tokenizer import MAX_VOCAB_SIZE, load, on_hub, train
from tokenizer import trim as trim_tokenizer

TEXT_COLUMNS = ('text', 'story', 'translated story', 'translated_story', 'stories', 'content', 'generated_text', 'news', 'article')
ENDINGS = ('.jsonl', '.json', '.csv', '.tsv', '.parquet', '.txt')


def fail(message):
    raise SystemExit(f'prepare.py: {message}')


def without_packing(path):
    """The path without .gz or .xz."""
    root, ending = os.path.splitext(path)
    return root if ending.lower() in ('.gz', '.xz') else path


def files_of(source):
    """The files that a source names, sorted."""
    if os.path.isfile(source):
        if not without_packing(source).lower().endswith(ENDINGS):
            fail(f'{source}: a file of stories ends in {" ".join(ENDINGS)}')
        return [source]
    pattern = os.path.join(glob.escape(source), '**', '*') if os.path.isdir(source) else source
    found = sorted(path for path in glob.glob(pattern, recursive=True) if without_packing(path).lower().endswith(ENDINGS))
    if os.path.isdir(source):  # word lists, bins' meta.json and tokenizer.json lie in a language's folder too
        found = [path for path in found if not os.path.exists(os.path.join(os.path.dirname(path), 'nouns.txt')) or os.path.basename(path).startswith('stories')]
        found = [path for path in found if os.path.basename(path) not in ('meta.json', 'tokenizer.json', 'tokenizer_config.json')]
    if not found:
        fail(f'{source}: no stories there in files that end in {" ".join(ENDINGS)}')
    return found


def texts_in(rows, name):
    """The stories in an iterable of dicts (or of plain strings); `name` is for messages."""
    column = None
    for number, row in enumerate(rows, 1):
        if isinstance(row, str):
            yield row
            continue
        if not isinstance(row, dict):
            fail(f'{name}, row {number}: neither an object nor a text')
        if None in row:  # where csv puts what is too much
            fail(f'{name}, row {number}: more fields than the header names; a text with a comma or tab in it wants quotation marks around it')
        if column is None:
            column = text_column or next((c for wanted in TEXT_COLUMNS for c in row if isinstance(c, str) and c.lower() == wanted), None)
        if column is None or column not in row:
            there = ' '.join(', '.join(map(str, row)).split())
            fail(f'{name}, row {number}: no column {column or "that looks like a story"} among {there:.200}; --text_column names it')
        if row[column] is not None and not isinstance(row[column], str):
            fail(f'{name}, row {number}: {column} is not text but {row[column]!r:.40}')
        yield row[column] or ''


def texts_of(source):
    """Every story of a source, one after the other, as it stands there."""
    if source.startswith('hf:'):
        try:
            import datasets
        except ImportError:
            fail('reading from the hub takes one more package: pip install datasets')
        name, _, split = source[3:].partition(':')
        name, revision = on_hub(name)
        try:
            yield from texts_in(datasets.load_dataset(name, split=split or 'train', revision=revision), source)
        except Exception as e:  # datasets and what it reads with raise many kinds
            fail(f'{source}: {type(e).__name__}: {" ".join(str(e.__cause__ or e).split()):.300}')
        return
    for path in files_of(source):
        ending = os.path.splitext(without_packing(path))[1].lower()
        try:
            if ending == '.jsonl':
                yield from texts_in(jsonl.read(path), path)
            elif ending == '.parquet':
                yield from texts_in(parquet_rows(path), path)
            else:
                with jsonl.open_binary(path) as binary, io.TextIOWrapper(binary, encoding='utf-8-sig', newline='' if ending in ('.csv', '.tsv') else None) as f:
                    if ending == '.json':
                        yield from texts_in(json_rows(f, path), path)
                    elif ending == '.txt':
                        yield from blocks_of(f)
                    else:
                        csv.field_size_limit(2**31 - 1)
                        yield from texts_in(csv.DictReader(f, delimiter='\t' if ending == '.tsv' else ',', strict=True), path)
        except (OSError, EOFError, lzma.LZMAError, zlib.error, UnicodeDecodeError, csv.Error, json.JSONDecodeError, RecursionError) as e:
            fail(f'{path}: {"not UTF-8" if isinstance(e, UnicodeDecodeError) else type(e).__name__}, {e}')


def json_rows(f, path):
    """The list that a .json file is or holds under one of its keys."""
    data = json.load(f)
    if isinstance(data, dict):
        data = max((value for value in data.values() if isinstance(value, list)), key=len, default=None)
    if not isinstance(data, list):
        fail(f'{path}: holds no list of stories')
    return data


def parquet_rows(path):
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        fail(f'{path}: reading it takes one more package: pip install pyarrow')
    try:
        with pyarrow.parquet.ParquetFile(path) as f:
            for batch in f.iter_batches(1024):
                yield from batch.to_pylist()
    except pyarrow.ArrowException as e:
        fail(f'{path}: {str(e).splitlines()[0]}')


def blocks_of(f):
    """The stories of a text file: separated by <|endoftext|> or else by empty lines, as its first million characters have it, or else a line each."""
    head = f.read(1 << 20)
    separator = '<|endoftext|>' if '<|endoftext|>' in head else ''
    alone = not separator and not re.search(r'\n\s*\n', head.strip())
    lines, story = itertools.chain(io.StringIO(head + f.readline()), f), []
    for line in lines:
        if alone:
            yield line
        elif line.strip() == separator:
            yield ''.join(story)
            story = []
        elif separator and separator in line:
            *whole, rest = line.split(separator)
            for part in whole:
                yield ''.join([*story, part])
                story = []
            story.append(rest)
        else:
            story.append(line)
    yield ''.join(story)


def stories():
    """(split, text) of every story that goes into the bins: NFC, stripped, not empty, the same in every pass."""
    seen = sqlite3.connect('')  # a temporary database: it spills to disk, so memory stays flat
    seen.execute('CREATE TABLE seen (hash BLOB PRIMARY KEY) WITHOUT ROWID')
    for where, only in ((source, 'train' if val_source else ''), (val_source, 'val')):
        for text in texts_of(where) if where else ():
            text = unicodedata.normalize('NFC', text).strip()
            text = text.removeprefix('<|startoftext|>').removesuffix('<|endoftext|>').strip()  # bos and eos, as a CSV for GPT-2 may spell them
            text = text.lower() if lower_case else text
            if '\0' in text:  # one may be a slip; many are UTF-16 without its mark, which is valid UTF-8, and gibberish
                if 50 * text.count('\0') > len(text):
                    fail(f'{where}: a story full of NUL characters, {text[:20]!r}; is the file UTF-16? It wants to be UTF-8')
                text = text.replace('\0', '')
            data = text.encode('utf-8', 'surrogatepass')
            digest = hashlib.blake2b(data, digest_size=16, key=b'%d' % seed).digest()
            if not text or deduplicate and not seen.execute('INSERT OR IGNORE INTO seen VALUES (?)', (digest,)).rowcount:
                continue
            # half of a surrogate pair, as a broken escape in JSON leaves it, is no character that could be encoded
            text = data.decode('utf-8', 'replace')
            in_val = int.from_bytes(digest[:8], 'little') < val_fraction * 2**64
            yield only or ('val' if in_val else 'train'), text


def batches(label):
    """(split, texts) with about a million characters each, under a progress bar."""
    waiting, size = {'train': [], 'val': []}, {'train': 0, 'val': 0}
    with tqdm(unit='B', unit_scale=True, desc=label, smoothing=0.1) as bar:
        for split, text in stories():
            waiting[split].append(text)
            size[split] += len(text)
            bar.update(len(text.encode()))
            if size[split] > 1 << 20:
                yield split, waiting[split]
                waiting[split], size[split] = [], 0
        yield from ((split, texts) for split, texts in waiting.items() if texts)


def encoded(tok, label):
    """(split, texts, their ids in a row, how many of each) in order; the next ones are read while these are encoded."""
    encode, workers = tok.encoder(), min(4, num_proc or os.cpu_count() or 1)  # reading keeps no more of them busy
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        waiting = collections.deque()
        for split, texts in batches(label):
            waiting.append((split, texts, pool.submit(encode, texts)))
            if len(waiting) > workers:
                split, texts, future = waiting.popleft()
                yield split, texts, *future.result()
        for split, texts, future in waiting:
            yield split, texts, *future.result()


def trimmed(tok, folder):
    """Trim a tokenizer to these stories -> (the trimmed one, new id of each old one, a uint32 file of their old ids)."""
    file = tempfile.TemporaryFile(dir=folder)  # gone with the program, however that ends
    used = np.zeros(tok.vocab_size, bool)
    for _, _, ids, _ in encoded(tok, 'finding the tokens in use'):
        used[ids] = True
        file.write(ids.tobytes())
    file.flush()
    return *trim_tokenizer(tok, np.flatnonzero(used)), file


def renyi(counts, alpha=2.5):
    """Rényi entropy of a token distribution in bits and its share of the possible (Zouhar et al. 2023, "Tokenization and the noiseless channel")."""
    p = counts[counts > 0] / counts.sum()
    entropy = np.log2((p ** alpha).sum()) / (1 - alpha)
    return float(entropy), float(entropy / np.log2(len(counts)))


def show(folder, tokens):
    tok = load(os.path.join(folder, 'tokenizer.json'))
    for split in ('train', 'val'):
        path = os.path.join(folder, f'{split}.bin')
        if not os.path.isfile(path):
            fail(f'{path} is missing; --source= names the stories to make it of')
        ids = np.fromfile(path, '<u2', count=min(tokens, os.path.getsize(path) // 2))  # which makes room for `count` of them first
        print(f'\n--- the first {len(ids)} tokens of {split}.bin')
        print(tok.backend.decode(ids.tolist(), skip_special_tokens=False))


# -----------------------------------------------------------------------------
folder = os.path.join('data', dataset)
meta_path = os.path.join(folder, 'meta.json')
if not 0 <= num_proc <= 4096 or decode < 0:
    fail('num_proc is a number from 0 to 4096, decode one from 0')
if not source:
    if not decode:
        fail('--source= names the stories; --help shows what it can be')
    if not os.path.exists(meta_path):
        fail(f'{folder} holds no bins yet; --source= names the stories to make them of')
    show(folder, decode)
    sys.exit(0)
if not 0 <= val_fraction < 1 or not 0 <= seed < 2**63:
    fail('val_fraction is a share from 0 to below 1, seed a number from 0 to below 2**63')
if not all(isinstance(token, str) and token and token.encode('utf-8', 'replace').decode() == token for token in special_tokens):
    fail('special_tokens is a list of strings')
jsonl.claim(os.path.join(folder, 'train.bin'))

full_ids = None
if tokenizer == 'train':
    tok = train((text for split, texts in batches('training the tokenizer') if split == 'train' for text in texts), vocab_size, special_tokens)
else:
    tok = load(tokenizer)
    tok.add_tokens(special_tokens)
    if trim:
        tok, new_ids, full_file = trimmed(tok, folder)
        full_ids = np.memmap(full_file, np.uint32, 'r') if full_file.tell() else None
    elif tok.vocab_size > MAX_VOCAB_SIZE:
        fail(f'{tokenizer} has {tok.vocab_size:,} tokens and uint16 holds {MAX_VOCAB_SIZE:,}; leave --trim=True')

n = {split: collections.Counter() for split in ('train', 'val')}  # stories, tokens, bytes, words
counts = np.zeros(tok.vocab_size, np.int64)
longest, longer, checked = 0, {256: 0, 512: 0, 1024: 0}, 0
with jsonl.replacing(os.path.join(folder, 'train.bin')) as train_bin, jsonl.replacing(os.path.join(folder, 'val.bin')) as val_bin:
    with open(train_bin, 'wb') as train_file, open(val_bin, 'wb') as val_file:
        for split, texts, ids, lengths in encoded(tok, 'encoding'):
            if full_ids is not None:
                old = full_ids[checked:checked + len(ids)]
                checked += len(ids)
                if len(old) < len(ids) or (new_ids[old] != ids).any():
                    fail(f'trimmed, {tokenizer} encodes these stories differently, so it cannot be; --trim=False keeps it whole')
            spelled = [text for text, length in zip(texts, lengths) if length]  # a tokenizer of another script may have no bytes to spell this one with
            lengths = lengths[lengths > 0]
            ends = np.cumsum(lengths)
            if tok.bos != tok.eos:
                tokens = np.insert(ids, np.stack([ends - lengths, ends], 1).ravel(), [tok.bos, tok.eos] * len(ends))
            else:  # it stands once between two stories, and before the first
                tokens = np.insert(ids, ends if n[split]['stories'] or not spelled else [0, *ends], tok.eos)
            (train_file if split == 'train' else val_file).write(tokens.astype('<u2').tobytes())
            counts += np.bincount(tokens, minlength=tok.vocab_size)
            text = ' '.join(spelled).encode()
            inside = np.frombuffer(text, np.uint8) > ord(' ')
            words = np.count_nonzero(np.diff(inside, prepend=False) & inside)  # their beginnings; split() of every story takes far longer
            n[split].update(stories=len(spelled), unspelled=len(texts) - len(spelled), words=int(words), tokens=len(tokens),
                            bytes=len(text) - max(0, len(spelled) - 1))
            longest = max(longest, int(lengths.max(initial=-2)) + 2)
            for size in longer:
                longer[size] += int(np.count_nonzero(lengths + 2 > size))
    if not n['train']['stories']:
        fail(f'{source}: no story in it' + f' that {tokenizer} has tokens for' * any(n[split]['unspelled'] for split in n)
             + ' but those set aside for validation; a lower --val_fraction sets fewer aside' * bool(n['val']['stories']))
    if os.path.exists(meta_path):
        os.remove(meta_path)  # until the new one stands, nothing may be read with the old one
entropy, efficiency = renyi(counts)
tok.save(folder)
meta = {
    'vocab_size': tok.vocab_size, 'bos': tok.bos, 'eos': tok.eos, 'tokenizer': tokenizer, 'dtype': 'uint16',
    **{what: {split: n[split][what] for split in n} for what in ('stories', 'tokens', 'bytes', 'words')},
    'longest': longest, 'renyi_entropy': round(entropy, 4), 'renyi_efficiency': round(efficiency, 4), 'config': config,
}
with jsonl.replacing(meta_path) as temporary, open(temporary, 'w', encoding='utf-8') as f:
    json.dump(meta, f, ensure_ascii=False, indent=1)

total = n['train'] + n['val']
print(f"""
in {folder}            train          val
stories     {n['train']['stories']:>15,} {n['val']['stories']:>12,}
tokens      {n['train']['tokens']:>15,} {n['val']['tokens']:>12,}
bytes       {n['train']['bytes']:>15,} {n['val']['bytes']:>12,}

vocabulary of {tok.vocab_size:,} tokens; {total['tokens'] / max(1, total['words']):.2f} tokens a word, {total['bytes'] / total['tokens']:.2f} bytes a token
Rényi entropy (α = 2.5) {entropy:.2f} bits, {efficiency:.1%} of the possible
longest story {longest:,} tokens; longer than {', '.join(f'{size}: {longer[size] / total["stories"]:.1%}' for size in longer)} of the stories""")
if total['unspelled']:
    print(f'{total["unspelled"]:,} stories were left out: {tokenizer} has no token for anything in them.', file=sys.stderr)
if not n['val']['stories']:
    print(f'No story was set aside for validation: --val_fraction={min(0.5, 2 * val_fraction or 0.1):g} sets more aside.', file=sys.stderr)
if decode:
    show(folder, decode)
