"""
Writes children's stories: word lists -> prompts -> a provider -> stories.jsonl.

    python generate_data.py --language=hindi --total=20000
    python generate_data.py --language=english --dry_run=3
    python generate_data.py --language=hindi --total=100000000 --shard=2/8 --out=stories-2.jsonl

Prompt number i stands for one (noun, verb, adjective, feature) of data/<language>/*.txt, and no two numbers for the
same one. The number is the story's id, so that stopping and starting again writes what is missing and nothing twice.

The provider `grammar` needs no key and no network: it composes a story out of data/<language>/plots.txt and
characters.txt, which say in their first lines how they are written.
"""

import hashlib
import math
import os
import random
import re

# -----------------------------------------------------------------------------
# what to write
language = 'hindi'  # the folder under data/ with the word lists
provider = 'grammar'  # who writes the stories
total = 20000  # how many stories; with another total the first ones stay the same
out = ''  # where to: a .jsonl file, data/<language>/stories.jsonl when empty
shard = '1/1'  # this run's part of the work: '2/8' is the second of eight, each with an `out` of its own
seed = 1337  # another seed pairs the words in another order
n_words = 0  # use only this many words of each list, 0: all; a small world is learned sooner
n_characters = 0  # the same for the characters that may take a role in a plot
dry_run = 0  # print this many prompts with their stories and write nothing
# -----------------------------------------------------------------------------
exec(open('configurator.py', encoding='utf-8').read())

from tqdm import tqdm

import jsonl


def fail(message):
    raise SystemExit(f'generate_data.py: {message}')


def some_of(rows, n, first=0):
    """n of these rows, evenly spread, beginning with the one numbered `first`; all of them when n is 0."""
    n = min(n or len(rows), len(rows))
    return [rows[(first + i * len(rows) // n) % len(rows)] for i in range(n)]


def read_lines(path):
    """The lines of a text file of the language's folder, without comments and the white space around them."""
    if not os.path.exists(path):
        fail(f'{path} is missing; a language is a folder under data/ with word lists, data/hindi shows which')
    with open(path, encoding='utf-8-sig') as f:
        return [line.strip() for line in f if not line.startswith('#')]


def read_words(path):
    """A word list as a list of dicts: `word`, `tags` (a list) and further forms by the name of their column.

    A line is a word or phrase. Where the first line is `word<TAB>tags<TAB>…` it names the columns of the others.
    """
    lines = [line for line in read_lines(path) if line]
    columns = lines.pop(0).split('\t') if lines and lines[0].startswith('word\t') else ['word']
    rows = []
    for line in lines:
        row = dict(zip(columns, line.split('\t')))
        row['tags'] = row.get('tags', '').split()
        rows.append({column: row.get(column) or row['word'] for column in columns} | {'tags': row['tags']})
    if len({row['word'] for row in rows}) < len(rows):
        fail(f'{path} has a line twice, so that two prompts would be the same: '
             + next(a['word'] for i, a in enumerate(rows) if a['word'] in {b['word'] for b in rows[:i]}))
    return rows


# -----------------------------------------------------------------------------
# prompts: number -> words

def permuted(i, n, key):
    """The number in place i of a pseudo-random order of range(n), found without the rest of the order.

    A Feistel network over the next even number of bits, walked until the result is below n (Black and Rogaway 2002,
    "Ciphers with arbitrary finite domains").
    """
    half = (max(2, (n - 1).bit_length()) + 1) // 2
    mask = (1 << half) - 1
    while True:
        left, right = i >> half, i & mask
        for turn in range(4):
            digest = hashlib.blake2b(b'%d %d %d' % (key, turn, right), digest_size=8).digest()
            left, right = right, left ^ (int.from_bytes(digest, 'little') & mask)
        i = left << half | right
        if i < n:
            return i


def seed_words(i, lists):
    """Prompt number i -> {'noun': row, 'verb': row, …}; a different combination for every i below the lists' product."""
    place = permuted(i, math.prod(map(len, lists.values())), seed)
    words = {}
    for kind, rows in lists.items():
        place, index = divmod(place, len(rows))
        words[kind] = rows[index]
    return words


# -----------------------------------------------------------------------------
# the grammar

def read_grammar(folder, lists):
    """The plots of a language's folder -> tell(words, rng), which composes one story and returns (plot, text)."""
    path = os.path.join(folder, 'plots.txt')
    people = read_words(os.path.join(folder, 'characters.txt'))
    head, *blocks = re.split(r'^== *', '\n'.join(read_lines(path)), flags=re.M)
    settings = dict(line.split(':', 1) for line in head.split('\n') if ':' in line)
    genders = settings.get('genders', '').split()
    default_roles = settings.get('cast', '')
    for row in people + lists['noun']:  # {slot:a|b} picks by gender, {slot:a|b|c|d} by gender and number
        tag = next((tag for tag in row['tags'] if tag.removesuffix('p') in genders), None)
        if tag:
            row['gender'] = genders.index(tag.removesuffix('p'))
            row['number'] = row['gender'] + len(genders) * tag.endswith('p')

    plots, fragments = [], {}
    for block in blocks:
        title, _, body = block.partition('\n')
        if not title.startswith('plot '):
            fragments[title.strip()] = [line for line in body.split('\n') if line]
            continue
        name, _, roles = title.removeprefix('plot ').partition('|')
        roles = dict(pair.partition('=')[::2] for pair in f'{default_roles} {roles}'.split())
        cast = {role: [p for p in people if {*tags.split('+')} <= {*p['tags']}] for role, tags in roles.items()}
        cast = {role: some_of(candidates, n_characters, number) for number, (role, candidates) in enumerate(cast.items())}  # two roles, two people
        plots.append((name.strip(), cast, body.strip()))
    if not plots:
        fail(f'{path} holds no plot')

    group = re.compile(r'\(([^(){}]*)\)|\{([^(){}]*)\}')  # brackets with no others inside

    def tell(words, rng):
        def fill(match):
            if match[1] is not None:  # (a|b|c)
                options = match[1].split('|')
                return options[int(rng.random() * len(options))]
            name, colon, options = match[2].partition(':')
            capital, name = name.startswith('^'), name.removeprefix('^')
            name, _, detail = name.replace('@', '.').partition('.')
            if colon:  # {hero:he|she}
                options = options.split('|')
                if len(options) not in (len(genders), 2 * len(genders)):
                    raise IndexError(f'{name} with {len(options)} forms')
                text = options[story[name]['gender' if len(options) == len(genders) else 'number']]
            elif name in story:  # {noun} or {noun.oblique}
                text = story[name][detail or 'word']
            else:  # {fragment} or {fragment@noun}, the one for the noun's class
                tags = story[detail]['tags'] if detail else []
                lines = fragments[next((f'{name}@{tag}' for tag in tags if f'{name}@{tag}' in fragments), name)]
                text = expand(lines[int(rng.random() * len(lines))])
            return text[:1].upper() + text[1:] if capital else text

        def expand(text):  # from the inside out
            while True:
                text, found = group.subn(fill, text)
                if not found:
                    return text

        name, cast, body = plots[int(rng.random() * len(plots))]
        story = dict(words)
        try:
            for role, candidates in cast.items():
                free = [row for row in candidates if row not in story.values()]
                story[role] = free[int(rng.random() * len(free))]
            text = expand(body)
        except (KeyError, IndexError) as e:
            fail(f'{path}: plot {name}: no such slot, form, == block or character: {e}')
        except RecursionError:
            fail(f'{path}: plot {name}: a == block that leads back to itself')
        if re.search(r'[(){}|]', text):
            fail(f'{path}: plot {name}: a bracket without its partner in the plot or in a block that it uses')
        return name, '\n\n'.join(' '.join(paragraph.split()) for paragraph in re.split(r'\n\n+', text))

    return tell


# -----------------------------------------------------------------------------
# providers: each a function from (id, words) to the fields that it adds to a story

def grammar_provider(folder, lists):
    tell = read_grammar(folder, lists)

    def write(i, words):
        plot, text = tell(words, random.Random(seed << 40 | i))
        return {'text': text, 'plot': plot, 'model': 'grammar', 'prompt_tokens': 0, 'completion_tokens': 0}
    return write


PROVIDERS = {'grammar': grammar_provider}

# -----------------------------------------------------------------------------
if provider not in PROVIDERS:
    fail(f'there is no provider {provider!r}; there is: {", ".join(PROVIDERS)}')
if out and not out.endswith('.jsonl'):
    fail(f'out is {out!r}; it ends in .jsonl')
if min(n_words, n_characters, dry_run) < 0:
    fail('n_words, n_characters and dry_run are numbers from 0')
folder = os.path.join('data', language)
out = out or os.path.join(folder, 'stories.jsonl')
lists = {kind: some_of(read_words(os.path.join(folder, f'{kind}s.txt')), n_words) for kind in ('noun', 'verb', 'adjective', 'feature')}
n_prompts = math.prod(map(len, lists.values()))
if not 0 < total <= n_prompts:
    fail(f'total is {total:,}; the word lists give from 1 to {n_prompts:,} prompts')
part, _, parts = shard.partition('/')
if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
    fail(f'shard is {shard!r}; it is a part and the number of parts, such as 2/8')
part, parts = int(part), int(parts)
ids = range(part - 1, total, parts)
write = PROVIDERS[provider](folder, lists)


def story(i):
    words = seed_words(i, lists)
    return {'id': i} | {kind: row['word'] for kind, row in words.items()} | write(i, words)


if dry_run:
    for i in ids[:dry_run]:
        row = story(i)
        print(f"--- {i}: {', '.join(row[kind] for kind in lists)}\n{row['text']}\n")
    raise SystemExit

with jsonl.open_append(out) as f:
    done = bytearray(len(ids) // 8 + 1)  # a bit an id: a hundred million take 12 MB
    n_done = 0
    for row in jsonl.read(out):
        i = row.get('id') if isinstance(row, dict) else None
        if i not in range(n_prompts) or row.get('noun') != seed_words(i, lists)['noun']['word']:
            fail(f'{out} holds another story than this seed and these word lists give (number {i}); name another --out')
        if i in ids:
            place = ids.index(i)
            n_done += not done[place // 8] >> place % 8 & 1
            done[place // 8] |= 1 << place % 8
    with tqdm(total=len(ids), initial=n_done, unit=' stories', desc=out, smoothing=0.1) as bar:
        for place, i in enumerate(ids):
            if not done[place // 8] >> place % 8 & 1:
                jsonl.append(f, story(i))
                bar.update()
print(f'{len(ids):,} stories in {out}')
