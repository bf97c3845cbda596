"""
Turns stories into tokens: source -> data/<dataset>/{train.bin, val.bin, meta.json, tokenizer.json}.

    python prepare.py --source=data/hindi/stories.jsonl --dataset=hindi
    python prepare.py --source=stories.csv --dataset=mine --tokenizer=tiktoken:gpt2
    python prepare.py --source=hf:MaxLSB/LeCarnet --val_source=hf:MaxLSB/LeCarnet:validation --dataset=lecarnet
    python prepare.py --dataset=hindi --decode=500

A source is a .jsonl, .json, .csv, .tsv, .parquet or .txt file (.gz and .xz too), a folder or glob of such files, or a
dataset of the Hugging Face hub. The first two stories are printed, and what was taken for a story.

- The bins are uint16 token ids without a header, <bos> story <eos> <bos> story <eos> …, as nanoGPT reads them.
  If one token is both bos and eos, it is written once between two stories, and once before the first.
- A pretrained tokenizer is trimmed to the tokens that the stories use. Only ids change: all stories are encoded
  with the full and the trimmed tokenizer, and compared.
- A hash of a story decides whether it is for training or validation: adding stories moves none of the others.
- Each pass reads the source anew, so memory stays flat (deduplicate needs some 100 bytes per story).
"""

import collections
import concurrent.futures
import hashlib
import itertools
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
lower_case = False  # convert stories to lower case, as for news
story_template = '{text}'  # '{noun}, {verb}\n{text}' puts columns of the source in front of each story
plain_fraction = 0.0  # fraction of the stories that stay without them, so that the model also learns to begin plainly
deduplicate = False  # drop exact copies of earlier stories, and training stories that also stand in val_source
# output
dataset = 'hindi'  # the output folder is data/<dataset>
tokenizer = 'train'  # 'train' a new one, 'tiktoken:gpt2', a folder, a .json or .model file, or hub name[@revision]
vocab_size = 4096  # number of tokens of a new tokenizer
special_tokens = []  # strings that become one token each, such as '</h>' after the headline of news
trim = True  # remove the tokens of a pretrained tokenizer that the stories do not use
max_unknown = 0.001  # largest fraction of unknown tokens or lost characters; more ends the script
val_fraction = 0.05  # fraction of the stories for validation
seed = 1337  # a different seed selects different stories for validation
num_proc = 0  # threads for encoding; 0 = all cores
compare = []  # tokenizers, as for the key tokenizer: write no bins, but a table and a plot that compare them here
decode = 0  # print this many tokens of each bin as text; without a source: of the existing bins
# -----------------------------------------------------------------------------
here = os.path.dirname(os.path.abspath(globals().get('__file__', 'prepare.py')))  # in a notebook: the working directory
exec(open(os.path.join(here, 'configurator.py'), encoding='utf-8').read())

import numpy as np
from tqdm import tqdm

from files import (SPLITS, at_end, check, fail, fill_template, find, hide_folders, lock, normalize, open_source,
                   read_rows, read_texts, replacing, write_json, write_text)
from tokenizer import MAX_VOCAB_SIZE
from tokenizer import load as load_tokenizer
from tokenizer import train as train_tokenizer
from tokenizer import trim as trim_tokenizer

BATCH_CHARACTERS = 1 << 20  # of the texts that are encoded together
folder = os.path.join('data', dataset)
train_bin = os.path.join(folder, 'train.bin')
val_bin = os.path.join(folder, 'val.bin')
prefix_bin = os.path.join(folder, 'val_prefix.bin')
meta_path = os.path.join(folder, 'meta.json')
notes = collections.Counter()  # what the last pass over the stories found

# -----------------------------------------------------------------------------
# stories


def read_stories():
    """Yield (split, prefix, text) of each story: not empty, in the same order in every pass. Counts in `notes`.

    prefix: what story_template puts in front of the story. text: both.
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
        splits = set()  # that the rows name in a column
        for row, text in read_rows(name, text_column, separator):
            for column in row.keys() & {'split', 'Split', 'subset', 'set'}:
                if re.fullmatch(SPLITS, str(row[column]), re.I):
                    splits.add(row[column])
            if len(splits) > 1:
                fail(f'{name}: the rows are of several splits ({", ".join(sorted(splits))}); save each as a file, and '
                     'give one as source and another one as val_source')
            if lower_case:
                text = unicodedata.normalize('NFC', text.lower())
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
            split_by_hash = 'val' if in_val else 'train'
            prefix = ''
            if int.from_bytes(digest[8:], 'little') >= plain_fraction * 2**64:
                prefix = make_prefix(name, row, text)
            yield split or split_by_hash, prefix, prefix + text


def make_prefix(name, row, text):
    """The part of story_template before {text}, filled with the columns of a row."""
    values = {}
    for column in template_columns:
        value = row.get(column)
        if isinstance(value, list):
            value = ', '.join(map(str, value))
        if value is None or value == '':
            fail(f'{name}: a story has nothing in the column {column!r} that story_template names: {text!r:.60}')
        value = ' '.join(normalize(str(value)).split())
        values[column] = value.lower() if lower_case else value
    return fill_template(prefix_template, values)


def print_first_stories(name):
    """Say what is taken for a story in a source, and print the first two."""
    path, what, _ = next(open_source(name, text_column, separator))
    print(f'{path}: a story is {what}')
    stories = filter(None, read_texts(name, text_column, separator))
    for number, text in enumerate(itertools.islice(stories, 2), 1):
        print(f'  {number}. {" ".join(text.split()):.70} ({len(text):,} characters)')


def read_batches(title):
    """Yield (split, texts, prefixes) with about BATCH_CHARACTERS each. Shows a progress bar."""
    batches = {'train': [], 'val': []}
    prefixes = {'train': [], 'val': []}
    sizes = {'train': 0, 'val': 0}
    with tqdm(unit='B', unit_scale=True, desc=title, smoothing=0.1) as bar:
        for split, prefix, text in read_stories():
            bar.update(len(text.encode()))
            batches[split].append(text)
            prefixes[split].append(prefix)
            sizes[split] += len(text)
            if sizes[split] > BATCH_CHARACTERS:
                yield split, batches[split], prefixes[split]
                batches[split] = []
                prefixes[split] = []
                sizes[split] = 0
        for split, texts in batches.items():
            if texts:
                yield split, texts, prefixes[split]


def encode_batches(tok, title):
    """Yield (split, texts, prefixes, ids, lengths) of each batch, in order.

    ids: uint32, those of all texts in a row. lengths: int64, the number of ids of each text.
    Threads encode batches while the next ones are read.
    """
    encode = tok.encoder()
    n_threads = min(4, num_proc or os.cpu_count() or 1)  # one thread reads, not fast enough for more than four
    running = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(n_threads) as pool:
        for split, texts, prefixes in read_batches(title):
            running.append((split, texts, prefixes, pool.submit(encode, texts)))
            if len(running) > n_threads:
                *batch, future = running.popleft()
                yield *batch, *future.result()
        for *batch, future in running:
            yield *batch, *future.result()


# -----------------------------------------------------------------------------
# tokenizer


def make_tokenizer():
    """Train or load the tokenizer -> (Tokenizer, iterator over the encoded batches)."""
    if tokenizer == 'train':
        tok = train_tokenizer(read_train_texts(), vocab_size, special_tokens)
    else:
        tok = load_tokenizer(tokenizer)
        tok.add_tokens(special_tokens)
        if trim:
            return trim_to_stories(tok)
        check(tok.vocab_size <= MAX_VOCAB_SIZE,
              f'{tokenizer} has {tok.vocab_size:,} tokens and uint16 holds {MAX_VOCAB_SIZE:,}; use --trim=True')
    return tok, encode_batches(tok, 'encoding')


def read_train_texts():
    for split, texts, _ in read_batches('training the tokenizer'):
        if split == 'train':
            yield from texts


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
    for name in filter(None, (source, val_source)):
        print_first_stories(name)
    tok, batches = make_tokenizer()
    stats, token_counts, story_lengths = write_bins(tok, batches)
    tok.save(folder)
    meta = {'vocab_size': tok.vocab_size, 'bos': tok.bos, 'eos': tok.eos, 'dtype': 'uint16'}
    meta['tokenizer'] = hide_folders(tokenizer)
    for name in ('stories', 'tokens', 'bytes', 'words'):
        meta[name] = {split: stats[split][name] for split in stats}
    meta['prefix_tokens'] = {'val': stats['val']['prefix_tokens']}
    meta['unknown'] = {split: unknown_share(stats[split]) for split in stats}
    entropy = renyi_entropy(token_counts)
    meta['longest'] = max(story_lengths)
    meta['renyi_entropy'] = round(entropy, 4)
    meta['renyi_efficiency'] = round(entropy / math.log2(tok.vocab_size), 4)
    meta['story_template'] = story_template
    meta['config'] = hide_folders(config)
    write_json(meta_path, meta)
    print_summary(meta, stats, story_lengths)


def write_bins(tok, batches):
    """Write train.bin and val.bin -> (statistics by split, count of each token, number of stories by length).

    val_prefix.bin says how many tokens of each story in val.bin story_template put there. Losses do not count them.
    """
    stats = {'train': collections.Counter(), 'val': collections.Counter()}
    token_counts = np.zeros(tok.vocab_size, np.int64)
    story_lengths = collections.Counter()
    prefix_lengths = []  # of the stories in val.bin, in tokens
    with replacing(train_bin) as new_train_bin, replacing(val_bin) as new_val_bin:
        with open(new_train_bin, 'wb') as train_file, open(new_val_bin, 'wb') as val_file:
            files = {'train': train_file, 'val': val_file}
            for split, texts, prefixes, ids, lengths in batches:
                if not lengths.all():
                    fail(f'{tokenizer} has no token for anything in {texts[lengths.argmin()]!r:.80}')
                tokens = add_bos_and_eos(tok, ids, lengths, is_first=stats[split]['stories'] == 0)
                files[split].write(tokens.astype('<u2').tobytes())
                token_counts += np.bincount(tokens, minlength=tok.vocab_size)
                story_lengths.update((lengths + 2).tolist())  # with bos and eos
                if split == 'val' and any(prefixes):
                    prefix_lengths += [len(prefix_ids) for prefix_ids in tok.encode_prefixes(prefixes)]
                n_bytes = sum(len(text.encode()) for text in texts) - sum(len(prefix.encode()) for prefix in prefixes)
                n_words = sum(len(text.split()) for text in texts)
                stats[split].update(stories=len(texts), tokens=len(tokens), bytes=n_bytes, words=n_words)
                stats[split]['unknown'] += np.count_nonzero(ids == tok.unk)
                stats[split].update(count_lost(tok, texts[::1 + len(texts) // 100]))
        if prefix_lengths:
            with replacing(prefix_bin) as new_prefix_bin:
                np.array(prefix_lengths, '<u2').tofile(new_prefix_bin)
        stats['val']['prefix_tokens'] = sum(prefix_lengths)
        if not stats['train']['stories']:
            if not stats['val']['stories']:
                fail(f'{source} contains no stories')
            fail(f'{source}: all its stories are for val.bin; use a smaller --val_fraction, or another val_source')
        for split, counts in stats.items():
            share = unknown_share(counts)
            if share > max_unknown:
                fail(f'{share:.2%} of {split} is unknown to {tokenizer}, more than max_unknown={max_unknown}; '
                     'train a tokenizer (--tokenizer=train), use one for this language, or raise --max_unknown')
        if os.path.exists(meta_path):
            os.remove(meta_path)  # it describes the old bins, which are replaced now
    return stats, token_counts, story_lengths


def add_bos_and_eos(tok, ids, lengths, is_first):
    """The ids of stories in a row -> the same with bos before and eos after each story.

    If bos and eos are one token: once after each story, and once before the first of the file.
    """
    ends = np.cumsum(lengths)
    if tok.bos != tok.eos:
        starts = ends - lengths
        places = np.stack([starts, ends], axis=1).ravel()
        return np.insert(ids, places, np.tile([tok.bos, tok.eos], len(ends)))
    if is_first:
        ends = np.append(0, ends)
    return np.insert(ids, ends, tok.eos)


def count_lost(tok, texts):
    """Count how many characters are in `texts` and not in the decoded tokens: {'lost': n, 'characters': n}.

    A tokenizer without an unknown token drops what it lacks. White space, control characters and case do not count.
    Texts with an unknown token are left out, as those tokens are counted.
    """
    counts = collections.Counter()
    for text, ids in zip(texts, tok.encode_batch(texts)):
        if tok.unk not in ids:
            characters = count_characters(text)
            lost = characters - count_characters(tok.backend.decode(ids, skip_special_tokens=False))
            counts.update(lost=lost.total(), characters=characters.total())
    return counts


def count_characters(text):
    counts = collections.Counter(unicodedata.normalize('NFKC', text).casefold())
    return collections.Counter({c: n for c, n in counts.items() if c.isprintable() and c != ' '})


def unknown_share(counts):
    """The fraction of unknown tokens or of lost characters of a split, whichever is larger."""
    return max(counts['unknown'] / max(1, counts['tokens']), counts['lost'] / max(1, counts['characters']))


def renyi_entropy(token_counts, alpha=2.5):
    """Rényi entropy of the tokens in bits (Zouhar et al. 2023, Tokenization and the noiseless channel)."""
    p = token_counts[token_counts > 0] / token_counts.sum()
    return float(np.log2((p ** alpha).sum()) / (1 - alpha))


def print_summary(meta, stats, story_lengths):
    print(f'\n{folder}\n{"":11} {"train":>15} {"val":>12}')
    for name in ('stories', 'tokens', 'bytes'):
        print(f'{name:11} {stats["train"][name]:>15,} {stats["val"][name]:>12,}')
    print(f'{"unknown":11} {meta["unknown"]["train"]:>15.2%} {meta["unknown"]["val"]:>12.2%}')
    for note, n in notes.items():
        if n:
            print(f'{n:,} {note}')
    total = stats['train'] + stats['val']
    tokens_per_word = total['tokens'] / max(1, total['words'])
    bytes_per_token = total['bytes'] / total['tokens']
    print(f'\nvocabulary of {meta["vocab_size"]:,} tokens; {tokens_per_word:.2f} tokens per word, '
          f'{bytes_per_token:.2f} bytes per token')
    print(f'Rényi entropy (α = 2.5) {meta["renyi_entropy"]:.2f} bits, {meta["renyi_efficiency"]:.1%} of the possible')
    print(f'longest story {meta["longest"]:,} tokens')
    for block_size in (256, 512, 1024):
        n_longer = sum(n for length, n in story_lengths.items() if length > block_size)
        print(f'longer than {block_size} tokens: {n_longer / total["stories"]:.1%} of the stories')
    if not stats['val']['stories']:
        print('val.bin is empty: use a larger --val_fraction, or --val_source', file=sys.stderr)


def compare_tokenizers():
    """Measure each tokenizer of `compare` on all stories -> tokenizers.json, .md and .png in the output folder."""
    import report
    rows = []
    for name in compare:
        if name == 'train':
            tok = train_tokenizer(read_train_texts(), vocab_size, special_tokens)
        else:
            tok = load_tokenizer(name)
        rows.append({'tokenizer': name} | measure_tokenizer(tok))
    write_json(os.path.join(folder, 'tokenizers.json'), {'rows': rows, 'config': config})
    cells = []
    for row in rows:
        cells.append([str(row['tokenizer']), *(report.format_value(row[key], key) for key in list(row)[1:])])
    text = report.as_markdown([report.table('Tokenizers', list(rows[0]), cells, TOKENIZER_NOTE)])
    write_text(os.path.join(folder, 'tokenizers.md'), text)
    report.draw_tokenizers(rows, os.path.join(folder, 'tokenizers.png'))
    print(f'{text}\nThe table and a plot are in {folder}.')


TOKENIZER_NOTE = (
    'used: fraction of the vocabulary that the stories use; unknown: fraction of unknown tokens or lost characters; '
    'whole_words: fraction of the words that are one token; renyi_entropy: in bits, with α = 2.5; renyi_efficiency: '
    'the entropy divided by that of equally frequent tokens.')


def measure_tokenizer(tok):
    """What a tokenizer does with the stories -> {measure: number}"""
    counts = np.zeros(tok.vocab_size, np.int64)
    stats = collections.Counter()
    for _, texts, _, ids, lengths in encode_batches(tok, 'encoding'):
        counts += np.bincount(ids, minlength=tok.vocab_size)
        stats.update(tokens=len(ids), stories=len(texts), unknown=np.count_nonzero(ids == tok.unk))
        stats.update(bytes=sum(len(text.encode()) for text in texts), words=sum(len(text.split()) for text in texts))
        some = texts[::1 + len(texts) // 100]
        stats.update(count_lost(tok, some))
        some_words = ' '.join(some).split()
        spaced = tok.encode_batch([f' {word}' for word in some_words])  # a token of a byte-level BPE includes the space
        whole = [1 in (len(a), len(b)) for a, b in zip(spaced, tok.encode_batch(some_words))]
        stats.update(some_words=len(whole), whole=sum(whole))
    if not stats['tokens']:
        fail(f'{source} contains no stories')
    entropy = renyi_entropy(counts)
    return {'vocabulary': tok.vocab_size, 'tokens_per_word': stats['tokens'] / max(1, stats['words']),
            'tokens_per_story': stats['tokens'] / stats['stories'], 'bytes_per_token': stats['bytes'] / stats['tokens'],
            'unknown': unknown_share(stats), 'renyi_entropy': entropy,
            'renyi_efficiency': entropy / math.log2(tok.vocab_size), 'used': np.count_nonzero(counts) / tok.vocab_size,
            'whole_words': stats['whole'] / max(1, stats['some_words'])}


def print_bins():
    """Print the first tokens of both bins as text, with bos and eos."""
    for path in (find(train_bin), find(val_bin)):
        if not os.path.exists(path):
            fail(f'{path} is missing; --source= names the stories to make it from')
        ids = np.fromfile(path, '<u2', min(decode, os.path.getsize(path) // 2))
        tok = load_tokenizer(os.path.join(os.path.dirname(path), 'tokenizer.json'))
        print(f'\n--- the first {len(ids)} tokens of {os.path.basename(path)}')
        print(tok.backend.decode(ids.tolist(), skip_special_tokens=False))


# -----------------------------------------------------------------------------
# main

check(source or decode, '--source= names the stories; --help lists what it can be')
check(dataset and '..' not in dataset, f'dataset is {dataset!r}; it must name a folder in data/')
check(0 <= num_proc <= 4096 and decode >= 0, 'num_proc must be from 0 to 4096, decode at least 0')
check(0 <= val_fraction < 1, f'val_fraction is {val_fraction}; it must be at least 0 and below 1')
check(0 <= max_unknown <= 1, f'max_unknown is {max_unknown}; it must be from 0 to 1')
separator = separator.replace('\\n', '\n')  # a shell passes \n as two characters
check(all(isinstance(token, str) and token for token in special_tokens), 'special_tokens must be a list of strings')
story_template = story_template.replace('\\n', '\n')
prefix_template = story_template.removesuffix('{text}')
check(story_template.endswith('{text}') and '{text}' not in prefix_template,
      f'story_template is {story_template!r}; it must end with {{text}}')
template_columns = re.findall(r'\{(\w+)\}', prefix_template)
check(0 <= plain_fraction <= 1, f'plain_fraction is {plain_fraction}; it must be from 0 to 1')
if num_proc:
    os.environ['RAYON_NUM_THREADS'] = str(num_proc)  # `tokenizers` reads it when it first needs threads
    at_end(lambda: os.environ.pop('RAYON_NUM_THREADS', None))

if compare:
    check(all(isinstance(name, str) for name in compare), "compare must be a list, such as ['train', 'tiktoken:gpt2']")
    compare_tokenizers()
elif source:
    prepare()
if decode:
    print_bins()
