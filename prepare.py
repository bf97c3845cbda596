"""
Turns stories into tokens: source -> data/<dataset>/{train.bin, val.bin, meta.json, tokenizer.json}.

    python prepare.py --source=data/hindi/stories.jsonl --dataset=hindi
    python prepare.py --source=stories.csv --dataset=mine --tokenizer=tiktoken:gpt2
    python prepare.py --source=hf:MaxLSB/LeCarnet --val_source=hf:MaxLSB/LeCarnet:validation --dataset=lecarnet
    python prepare.py --dataset=hindi --decode=500
    python prepare.py --source=data/hindi --push=user/kahani  # upload the stories to the hub; run hf auth login first

A source is a .jsonl, .json, .csv, .tsv, .parquet or .txt file (.gz and .xz too), a folder or glob of such files, or a
dataset of the Hugging Face hub. The first two stories are printed, and what was taken for a story.

- The bins are uint16 token ids without a header, <bos> story <eos> <bos> story <eos> …, as nanoGPT reads them.
  If one token is both bos and eos, it is written once between two stories, and once before the first.
- A pretrained tokenizer is trimmed to the tokens that the stories use. Only ids change: all stories are encoded
  with the full and the trimmed tokenizer, and compared.
- A hash of a story decides whether it is for training or validation: adding stories moves none of the others.
- Each pass reads the source anew, so memory stays flat (deduplicate needs some 100 bytes per story).
- A data set on the hub gets the columns of the source and the same splits: train.jsonl and validation.jsonl.
"""

import collections
import concurrent.futures
import hashlib
import itertools
import json
import math
import os
import re
import sys
import tempfile
import unicodedata

# -----------------------------------------------------------------------------
# input
source = ''  # stories: a file, folder, glob, or hf:user/dataset[@revision][:split]
val_source = ''  # the same for validation; '' = a part of source
text_column = ''  # column that contains the story; '' = found by its name
separator = ''  # what stands between two stories of a .txt file; '' = <|endoftext|>, a blank line or the file's end
max_row = 1_000_000  # characters of the longest row or story that is read
max_stories = 0  # use only this many stories, the first ones of source; 0 = all
lower_case = False  # convert stories to lower case, as for news
story_template = '{text}'  # '{noun}, {verb}\n{text}' puts columns of the source in front of each story
plain_fraction = 0.0  # fraction of the stories that stay without them, so that the model also learns to begin plainly
deduplicate = False  # drop exact copies of earlier stories, and training stories that also stand in val_source
# output
dataset = 'hindi'  # the output folder is data/<dataset>
tokenizer = 'train'  # 'train', 'train:sentencepiece', 'tiktoken:gpt2', a folder, .json or .model file, or hub name
vocab_size = 4096  # number of tokens of a new tokenizer
special_tokens = []  # strings that become one token each, such as '</h>' after the headline of news
trim = True  # remove the tokens of a pretrained tokenizer that the stories do not use
max_unknown = 0.001  # largest fraction of unknown tokens or lost characters; more ends the script
val_fraction = 0.05  # fraction of the stories for validation
seed = 1337  # a different seed selects different stories for validation
num_proc = 0  # threads for encoding; 0 = all cores
compare = []  # tokenizers, as for the key tokenizer: write no bins, but a table and a plot that compare them here
push = ''  # user/name: write no bins, but upload the stories and a card to this data set on the Hugging Face hub
language = ''  # language code of the stories for the card, such as hi; '' = by the name of source
license = ''  # license of the stories, by its name on the hub, such as mit; '' = the card names none
decode = 0  # print this many tokens of each bin as text; without a source: of the existing bins
# -----------------------------------------------------------------------------
here = os.path.dirname(os.path.abspath(globals().get('__file__', 'prepare.py')))  # in a notebook: the working directory
exec(open(os.path.join(here, 'configurator.py'), encoding='utf-8').read())

import numpy as np
from tqdm import tqdm

from files import (MISSING, SPLITS, STORY_WORDS, append_rows, at_end, check, check_columns, check_push, fail,
                   fill_template, find, hide_folders, language_code, lock, normalize, open_source, printable, read_rows,
                   read_texts, replacing, upload_dataset, write_json, write_text)
from tokenizer import MAX_VOCAB_SIZE, train_sentencepiece
from tokenizer import common_length
from tokenizer import load as load_tokenizer
from tokenizer import train as train_tokenizer
from tokenizer import trim as trim_tokenizer

BATCH_CHARACTERS = 1 << 20  # of the texts that are encoded together
folder = os.path.join('data', dataset)
train_bin = f'{folder}/train.bin'
val_bin = f'{folder}/val.bin'
prefix_bin = f'{folder}/val_prefix.bin'
meta_path = f'{folder}/meta.json'
notes = collections.Counter()  # what the last pass over the stories found
changed_words = []  # (before, after) of words in the first story that encoding and decoding changes

# -----------------------------------------------------------------------------
# stories


def read_stories():
    """Yield (split, columns, prefix, text) of each story, in the same order in every pass. Counts in `notes`.

    columns: the other columns of its row. prefix: what story_template puts in front of the text.
    """
    notes.clear()
    seen = set()  # hashes of the stories so far
    val_stories = collections.Counter()  # the same of val_source, without those that were found in source
    advice = 'they were dropped from train.bin' if deduplicate else '--deduplicate=True drops them from train.bin'
    leak = f'stories of val_source also stand in source; {advice}'
    sources = [(source, '')]
    if val_source:
        sources = [(val_source, 'val'), (source, 'train')]  # what stands in both is dropped from the training stories
    for name, split in sources:
        n_stories = 0
        splits = set()  # that the rows name in a column
        for columns, text in read_rows(name, text_column, separator):
            for column in columns.keys() & {'split', 'Split', 'subset', 'set'}:
                if re.fullmatch(SPLITS, str(columns[column]), re.I):
                    splits.add(columns[column])
            if len(splits) > 1:
                fail(f'{name}: the rows are of several splits ({", ".join(sorted(splits))}); save each as a file, and '
                     'give one as source and another one as val_source')
            if lower_case:
                text = normalize(text.lower())
            if not text:
                notes['rows without a story'] += 1
                continue
            digest = hashlib.blake2b(text.encode(), digest_size=16, key=b'%d' % seed).digest()
            if split == 'train':
                notes[leak] += val_stories.pop(digest, 0)
            if deduplicate:
                if digest in seen:
                    notes['copies of earlier stories dropped'] += 1
                    continue
                seen.add(digest)
            if split == 'val':
                val_stories[digest] += 1
            in_val = int.from_bytes(digest[:8], 'little') < val_fraction * 2**64
            is_plain = int.from_bytes(digest[8:], 'little') < plain_fraction * 2**64
            prefix = '' if is_plain else make_prefix(name, columns, text)
            yield split or ('val' if in_val else 'train'), columns, prefix, text
            n_stories += 1
            if n_stories == max_stories and split != 'val':
                break


def make_prefix(name, columns, text):
    """The part of story_template before {text}, filled with the columns of a row."""
    values = {}
    for column in template_columns:
        value = columns.get(column)
        if isinstance(value, list):
            value = ', '.join(map(str, value))
        value = ' '.join(normalize(str(value)).split())
        if value in MISSING:
            fail(f'{name}: a story has nothing in the column {column!r} that story_template names: {text!r:.60}')
        values[column] = value.lower() if lower_case else value
    return fill_template(prefix_template, values)


def print_first_stories(name):
    """Say what is taken for a story in a source, and print the first two."""
    path, what, _ = next(open_source(name, text_column, separator))
    print(printable(f'{path}: a story is {what}'))
    stories = filter(None, read_texts(name, text_column, separator))
    for number, text in enumerate(itertools.islice(stories, 2), 1):
        print(printable(f'  {number}. {" ".join(text.split()):.70} ({len(text):,} characters)'))


def read_batches(title):
    """Yield (split, stories) with about BATCH_CHARACTERS each; a story is (prefix, text). Shows a progress bar."""
    batches = collections.defaultdict(list)
    sizes = collections.Counter()
    with tqdm(unit='B', unit_scale=True, desc=title, smoothing=0.1) as bar:
        for split, _, prefix, text in read_stories():
            bar.update(len(text.encode()))
            batches[split].append((prefix, text))
            sizes[split] += len(prefix) + len(text)
            if sizes[split] > BATCH_CHARACTERS:
                yield split, batches.pop(split)
                del sizes[split]
        yield from batches.items()


def read_train_texts():
    for split, stories in read_batches('training the tokenizer'):
        if split == 'train':
            yield from map(''.join, stories)


def encode_batches(tok, title):
    """Yield (split, stories, ids, lengths) of each batch, in order.

    ids: uint32, those of all stories in a row. lengths: int64, the number of ids of each story.
    Threads encode batches while the next ones are read.
    """
    encode = tok.encoder()
    n_threads = min(4, num_proc or os.cpu_count() or 1)  # one thread reads, not fast enough for more than four
    running = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(n_threads) as pool:
        for split, stories in read_batches(title):
            texts = [prefix + text for prefix, text in stories]
            running.append((split, stories, pool.submit(encode, texts)))
            if len(running) > n_threads:
                *batch, future = running.popleft()
                yield *batch, *future.result()
        for *batch, future in running:
            yield *batch, *future.result()


# -----------------------------------------------------------------------------
# tokenizer


def make_tokenizer(name):
    """Train or load a tokenizer."""
    if name == 'train':
        return train_tokenizer(read_train_texts(), vocab_size, special_tokens)
    if name == 'train:sentencepiece':
        return train_sentencepiece(read_train_texts(), vocab_size, special_tokens)
    tok = load_tokenizer(name)
    tok.add_tokens(special_tokens)
    return tok


def trim_to_stories(tok):
    """Remove the tokens that no story uses -> (smaller Tokenizer, iterator over the encoded batches)."""
    used = np.zeros(tok.vocab_size, bool)
    full_ids = tempfile.TemporaryFile(dir=folder)  # the ids of all stories; disappears when it is closed
    for *_, ids, _ in encode_batches(tok, 'finding used tokens'):
        used[ids] = True
        full_ids.write(ids.tobytes())
    used[[tok.backend.token_to_id(token) for token in special_tokens]] = True
    full_ids.seek(0)
    trimmed, new_ids = trim_tokenizer(tok, np.flatnonzero(used))
    if trimmed.bos == trimmed.eos:  # with eos as padding, fine-tuning in other programs would not learn where to end
        trimmed.backend.add_special_tokens(['<pad>'])
        trimmed.set_vocab_size()
    batches = encode_batches(trimmed, 'encoding')
    return trimmed, compare_batches(batches, full_ids, new_ids)


def compare_batches(batches, full_ids, new_ids):
    """Yield the batches of a trimmed tokenizer. Ends the script if the full tokenizer encoded them differently.

    full_ids: a file with the ids that the full tokenizer gave. new_ids: the trimmed tokenizer's id for each of them.
    """
    for *batch, ids, lengths in batches:
        expected = np.frombuffer(full_ids.read(4 * len(ids)), np.uint32)
        if not np.array_equal(ids, new_ids[expected]):
            fail(f'{tokenizer} encodes these stories differently when it is trimmed; --trim=False keeps it whole')
        yield *batch, ids, lengths


# -----------------------------------------------------------------------------
# output


def prepare():
    """Write the bins, the tokenizer and meta.json. Print a summary."""
    lock(train_bin)
    tok = make_tokenizer(tokenizer)
    if trim and tokenizer not in ('train', 'train:sentencepiece'):
        tok, batches = trim_to_stories(tok)
    else:
        check(tok.vocab_size <= MAX_VOCAB_SIZE,
              f'{tokenizer} has {tok.vocab_size:,} tokens and uint16 holds {MAX_VOCAB_SIZE:,}; use --trim=True')
        batches = encode_batches(tok, 'encoding')
    stats, story_lengths = write_bins(tok, batches)
    tok.save(folder)
    meta = {'vocab_size': tok.vocab_size, 'bos': tok.bos, 'eos': tok.eos, 'dtype': 'uint16'}
    meta['tokenizer'] = hide_folders(tokenizer)
    for name in ('stories', 'tokens', 'bytes', 'words'):
        meta[name] = {split: stats[split][name] for split in stats}
    meta['prefix_tokens'] = {'val': stats['val']['prefix_tokens']}
    meta['unknown'] = {split: unknown_share(stats[split]) for split in stats}
    meta['longest'] = max(story_lengths)
    meta['story_template'] = story_template
    meta['config'] = hide_folders(config)
    write_json(meta_path, meta)
    print_summary(meta, stats, story_lengths)


def write_bins(tok, batches):
    """Write train.bin and val.bin -> (statistics by split, number of stories by length in tokens).

    val_prefix.bin says how many tokens of each story in val.bin story_template put there. Losses do not count them.
    """
    stats = {'train': collections.Counter(), 'val': collections.Counter()}
    story_lengths = collections.Counter()
    prefix_lengths = []  # of the stories in val.bin, in tokens
    with replacing(train_bin) as new_train_bin, replacing(val_bin) as new_val_bin:
        with open(new_train_bin, 'wb') as train_file, open(new_val_bin, 'wb') as val_file:
            bins = {'train': train_file, 'val': val_file}
            for split, stories, ids, lengths in batches:
                if not lengths.all():
                    fail(f'{tokenizer} has no token for anything in {"".join(stories[lengths.argmin()])!r:.80}')
                tokens = add_bos_and_eos(tok, ids, lengths, is_first=stats[split]['stories'] == 0)
                bins[split].write(tokens.astype('<u2').tobytes())
                stats[split].update(statistics_of(tok, stories, ids))
                stats[split]['tokens'] += len(tokens) - len(ids)
                story_lengths.update((lengths + 2).tolist())  # with bos and eos
                if split == 'val' and prefix_template:
                    prefixes = tok.encode_prefixes([prefix for prefix, _ in stories])
                    ends = lengths.cumsum()
                    prefix_lengths += map(common_length, prefixes, np.split(ids, ends[:-1]))
        if prefix_lengths:
            with replacing(prefix_bin) as new_prefix_bin:
                np.array(prefix_lengths, '<u2').tofile(new_prefix_bin)
        stats['val']['prefix_tokens'] = sum(prefix_lengths)
        check_statistics(stats)
        forget_old_bins()
    return stats, story_lengths


def check_statistics(stats):
    """End the script if there is nothing to train on, or if the tokenizer lacks too much of the text."""
    if not stats['train']['stories']:
        fail(f'{source} contains no stories for train.bin: none at all, or use a smaller --val_fraction or another '
             'val_source')
    for split, counts in stats.items():
        share = unknown_share(counts)
        if share > max_unknown:
            fail(f'{share:.2%} of {split} is unknown to {tokenizer}, more than max_unknown={max_unknown}; '
                 'train a tokenizer (--tokenizer=train), use one for this language, or raise --max_unknown')


def forget_old_bins():
    """Remove what describes the old bins, which are replaced now: meta.json, and a tokenizer.model trained for them."""
    try:
        with open(meta_path, encoding='utf-8') as f:
            has_model = '"tokenizer": "train:sentencepiece"' in f.read()
        os.remove(meta_path)
        if has_model:
            os.remove(f'{folder}/tokenizer.model')
    except FileNotFoundError:
        pass


def add_bos_and_eos(tok, ids, lengths, is_first):
    """The ids of stories in a row -> the same with bos before and eos after each story.

    If bos and eos are one token: once after each story, and once before the first of the file.
    """
    ends = np.cumsum(lengths)
    starts = ends - lengths + np.arange(len(ends))  # when the eos of the stories before are there
    if tok.bos == tok.eos:
        starts = starts[:1] if is_first else starts[:0]
    return np.insert(np.insert(ids, ends, tok.eos), starts, tok.bos)


def statistics_of(tok, stories, ids):
    """What a batch adds to the statistics: counts of stories, tokens, words, bytes, and of what the tokenizer lacks."""
    texts = [prefix + text for prefix, text in stories]
    counts = collections.Counter(stories=len(stories), tokens=len(ids))
    counts['bytes'] = sum(len(text.encode()) for _, text in stories)
    counts['words'] = sum(len(text.split()) for text in texts)
    counts['unknown'] = int(np.count_nonzero(ids == tok.unk))
    counts.update(count_lost(tok, texts[::1 + len(texts) // 100]))
    return counts


def count_lost(tok, texts):
    """Count how many characters are in `texts` and not in the decoded tokens: {'lost': n, 'characters': n}.

    A tokenizer without an unknown token drops what it lacks. White space, control characters and case do not count;
    the first text in which one of these changes is noted. Texts with an unknown token are left out, as those tokens
    are counted.
    """
    counts = collections.Counter()
    for text, ids in zip(texts, tok.encode_batch(texts)):
        if tok.unk not in ids:
            decoded = tok.backend.decode(ids, skip_special_tokens=False).strip()
            characters = count_characters(text)
            lost = characters - count_characters(decoded)
            counts.update(lost=lost.total(), characters=characters.total())
            if not changed_words:
                words = zip(text.split(' '), decoded.split(' '))
                changed_words.extend((before, after) for before, after in words if before != after)
    return counts


def count_characters(text):
    text = unicodedata.normalize('NFKC', text).casefold()
    return collections.Counter(char for char in text if char.isprintable() and char != ' ')


def unknown_share(counts):
    """The fraction of unknown tokens or of lost characters of a split, whichever is larger."""
    return max(counts['unknown'] / max(1, counts['tokens']), counts['lost'] / max(1, counts['characters']))


def print_summary(meta, stats, story_lengths):
    print(f'\n{folder}\n{"":11} {"train":>15} {"val":>12}')
    for name in ('stories', 'tokens', 'bytes'):
        print(f'{name:11} {stats["train"][name]:>15,} {stats["val"][name]:>12,}')
    print(f'{"unknown":11} {meta["unknown"]["train"]:>15.2%} {meta["unknown"]["val"]:>12.2%}')
    print_notes()
    total = stats['train'] + stats['val']
    print(f'\nvocabulary of {meta["vocab_size"]:,} tokens; {total["tokens"] / max(1, total["words"]):.2f} tokens per '
          f'word, {total["bytes"] / total["tokens"]:.2f} bytes per token')
    print(f'longest story {meta["longest"]:,} tokens')
    for block_size in (256, 512, 1024):
        n_longer = sum(n for length, n in story_lengths.items() if length > block_size)
        print(f'longer than {block_size} tokens: {n_longer / total["stories"]:.1%} of the stories')
    if not stats['val']['stories']:
        print('val.bin is empty: use a larger --val_fraction, or --val_source', file=sys.stderr)


def print_notes():
    for note, n in notes.items():
        if n:
            print(f'{n:,} {note}')
    if changed_words:
        before, after = changed_words[0]
        print(f'the tokenizer changes texts: {before!r:.60} becomes {after!r:.60}')


def compare_tokenizers():
    """Measure each tokenizer of `compare` on all stories -> tokenizers.json, .md and .png in the output folder."""
    import report
    rows = []
    for name in compare:
        rows.append({'tokenizer': hide_folders(name)} | measure_tokenizer(make_tokenizer(name)))
    write_json(f'{folder}/tokenizers.json', {'rows': rows, 'config': hide_folders(config)})
    cells = []
    for row in rows:
        cells.append({key: report.format_value(value, key) for key, value in row.items()})
    text = report.as_markdown([report.table('Tokenizers', cells, TOKENIZER_NOTE)])
    write_text(f'{folder}/tokenizers.md', text)
    report.draw_tokenizers(rows, f'{folder}/tokenizers.png')
    print(f'{text}\nThe table and a plot are in {folder}.')


TOKENIZER_NOTE = (
    'used: fraction of the vocabulary that the stories use; unknown: fraction of unknown tokens or lost characters; '
    'whole_words: fraction of the words that are one token; renyi_entropy: in bits, with α = 2.5; renyi_efficiency: '
    'the entropy divided by that of equally frequent tokens.')


def measure_tokenizer(tok):
    """What a tokenizer does with the stories -> {measure: number}"""
    token_counts = np.zeros(tok.vocab_size, np.int64)
    stats = collections.Counter()
    for _, stories, ids, _ in encode_batches(tok, 'encoding'):
        token_counts += np.bincount(ids, minlength=tok.vocab_size)
        stats.update(statistics_of(tok, stories, ids))
        some_words = ' '.join(text for _, text in stories[::1 + len(stories) // 100]).split()
        spaced = tok.encode_batch([f' {word}' for word in some_words])  # a token of a byte-level BPE includes the space
        whole = [1 in (len(a), len(b)) for a, b in zip(spaced, tok.encode_batch(some_words))]
        stats.update(some_words=len(whole), whole=sum(whole))
    if not stats['tokens']:
        fail(f'{source} contains no stories')
    # Rényi entropy of the tokens in bits (Zouhar et al. 2023, Tokenization and the noiseless channel)
    alpha = 2.5
    p = token_counts[token_counts > 0] / token_counts.sum()
    entropy = float(np.log2((p ** alpha).sum()) / (1 - alpha))
    return {'vocabulary': tok.vocab_size, 'tokens_per_word': stats['tokens'] / max(1, stats['words']),
            'tokens_per_story': stats['tokens'] / stats['stories'], 'bytes_per_token': stats['bytes'] / stats['tokens'],
            'unknown': unknown_share(stats), 'renyi_entropy': entropy,
            'renyi_efficiency': entropy / math.log2(tok.vocab_size),
            'used': np.count_nonzero(token_counts) / tok.vocab_size,
            'whole_words': stats['whole'] / max(1, stats['some_words'])}


def print_bins():
    """Print the first tokens of both bins as text, with bos and eos."""
    for path in (find(train_bin), find(val_bin)):
        if not os.path.exists(path):
            fail(f'{path} is missing; --source= names the stories to make it from')
        ids = np.fromfile(path, '<u2', min(decode, os.path.getsize(path) // 2))
        tok = load_tokenizer(f'{os.path.dirname(path)}/tokenizer.json')
        print(f'\n--- the first {len(ids)} tokens of {os.path.basename(path)}')
        print(printable(tok.backend.decode(ids.tolist(), skip_special_tokens=False)))


# -----------------------------------------------------------------------------
# a data set on the Hugging Face hub


def push_stories():
    """Upload the stories with the other columns of the source, in their splits, and a card.

    Loaders of .jsonl files expect every column in every row, with values of one type.
    """
    types = collections.defaultdict(set)  # column -> types of its values
    for _, columns, _, _ in tqdm(read_stories(), desc='reading', unit=' stories', leave=False, delay=1):
        for column, value in columns.items():
            types[column].add(type(value))
        check_columns(source, types)
    story_column = next(name for name in STORY_WORDS if name not in types)
    with tempfile.TemporaryDirectory() as temporary:
        paths = {'train': f'{temporary}/train.jsonl', 'validation': f'{temporary}/validation.jsonl'}
        with open(paths['train'], 'wb') as train_file, open(paths['validation'], 'wb') as val_file:
            files = {'train': train_file, 'val': val_file}
            for split, columns, _, text in tqdm(read_stories(), desc='writing', unit=' stories', leave=False, delay=1):
                row = {story_column: text}
                for column in types:
                    row[column] = plain_value(columns.get(column), types[column] - {type(None)})
                append_rows(files[split], row)
        print_notes()
        paths = {split: path for split, path in paths.items() if os.path.getsize(path)}
        if 'train' not in paths:
            fail(f'{source} contains no stories for training')
        upload_dataset(push, paths, language or language_code(hide_folders(source)), license)


def plain_value(value, types):
    """A value of a column; as text if the column has values of several types."""
    if value is None or value != value:  # JSON has no NaN
        return None
    if types == {int, float}:
        return float(value)
    if isinstance(value, str) or len(types) == 1:
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


# -----------------------------------------------------------------------------
# main

check(source or decode, '--source= names the stories; --help lists what it can be')
check(dataset and '..' not in dataset, f'dataset is {dataset!r}; it must name a folder in data/')
check(0 <= num_proc <= 4096 and decode >= 0 and max_stories >= 0,
      'num_proc must be from 0 to 4096, decode and max_stories at least 0')
check(0 <= val_fraction < 1, f'val_fraction is {val_fraction}; it must be at least 0 and below 1')
for key in ('max_unknown', 'plain_fraction'):
    check(0 <= config[key] <= 1, f'{key} is {config[key]}; it must be from 0 to 1')
check(all(isinstance(token, str) and token for token in special_tokens), 'special_tokens must be a list of strings')
check(all(isinstance(name, str) for name in compare), "compare must be a list, such as ['train', 'tiktoken:gpt2']")
check_push(push)
check(not (push and compare), 'push and compare are two commands: both write no bins')
separator = separator.replace('\\n', '\n')  # a shell passes \n as two characters
story_template = story_template.replace('\\n', '\n')
prefix_template = story_template.removesuffix('{text}')
template_columns = re.findall(r'\{(\w+)\}', prefix_template)
check(story_template.endswith('{text}') and 'text' not in template_columns,
      f'story_template is {story_template!r}; it must end with {{text}}')
check(not re.search('[{}]', fill_template(prefix_template, dict.fromkeys(template_columns, ''))),
      f'story_template is {story_template!r}; the name of a column in {{}} must consist of letters, digits and _')
if num_proc:
    os.environ['RAYON_NUM_THREADS'] = str(num_proc)  # `tokenizers` reads it when it first needs threads
    at_end(lambda: os.environ.pop('RAYON_NUM_THREADS', None))

if compare:
    compare_tokenizers()
elif source:
    for name in filter(None, (source, val_source)):
        print_first_stories(name)
    if push:
        push_stories()
    else:
        prepare()
if decode:
    print_bins()
