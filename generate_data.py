"""
Writes children's stories: word lists -> prompts -> a provider -> stories.jsonl.

    python generate_data.py --language=hindi --total=20000
    python generate_data.py config/generate_hindi.py --provider=mistral --dry_run=3
    python generate_data.py config/generate_hindi.py --provider=mistral --total=20000 --out=data/hindi/chat.jsonl --max_cost=20
    python generate_data.py config/generate_hindi.py --provider=mistral --total=20000 --shard=2/8 --out=data/hindi/chat2.jsonl

Prompt number i stands for one (noun, verb, adjective, feature) of data/<language>/*.txt, and no two numbers of an epoch for
the same one. The number is the story's id (number × items + n where a reply holds several), so that stopping and starting
again writes what is missing and nothing twice.

A chat API is asked for the stories, and only what passes every check of replies.py becomes one. The provider `grammar` needs no
key and no network: it composes a story out of data/<language>/plots.txt and characters.txt, which say in their first
lines how they are written.
"""

import collections
import functools
import hashlib
import math
import os
import random
import re

# -----------------------------------------------------------------------------
# what to write
language = 'hindi'  # the folder under data/ with the word lists
total = 20000  # how many prompts; with another total the first ones stay the same
out = ''  # where to: a .jsonl file, data/<language>/stories.jsonl when empty
shard = '1/1'  # this run's part of the work: '2/8' is the second of eight, each with an `out` of its own
seed = 1337  # another seed pairs the words in another order
words = ['noun', 'verb', 'adjective', 'feature']  # a prompt takes a line of each: of nouns.txt, verbs.txt …
epochs = 1  # how often each combination of them may come
n_words = 0  # use only this many words of each list, 0: all; a small world is learned sooner
n_characters = 0  # the grammar's: how many characters may take a role in a plot
dry_run = 0  # print this many prompts, with the grammar's stories or a chat API's first reply, and write nothing
push = ''  # user/dataset: put the finished file on the Hugging Face hub

# who writes
provider = 'grammar'  # or openai, mistral, gemini, groq, together, openrouter, sarvam, ollama, vllm, llama.cpp
base_url = ''  # the address of any other API that speaks OpenAI's /chat/completions
model = ''  # the provider's usual one when empty
num_workers = 16  # requests in flight, fewer as long as the provider says that they are too many
temperature = 1.0
max_tokens = 1024  # of a reply
extra = {}  # more fields of a request, such as {'reasoning_effort': 'low'} for a model that thinks first, billed as output
timeout = 120.0  # seconds to wait for a reply
max_tries = 5  # tries of a prompt, then it goes to failed.jsonl
max_cost = 0.0  # US dollars, 0: no limit; all runs on this `out` count
price_in = -1.0  # US dollars a million tokens, for a model that the table in chat.py does not hold
price_out = -1.0
batch = False  # by the provider's Batch API: half the price, done within a day

# what is asked for; config/generate_hindi.py fills these in
template = ''  # the prompt; {noun} and the others stand for the words, {level} for levels[complexity]
complexity = '2+'
levels = {}  # what a prompt of each complexity asks for besides
themes = []  # {theme} stands for one of these
books = ''  # {books} stands for these
examples = 0  # {examples} stands for this many lines of data/<language>/examples.txt
items = 1  # how many a reply holds
reply_format = 'json'  # {"story": "…"}, or 'html': <h1>headline</h1><p>text</p> as often as there are items

# what passes
min_words = 40
max_words = 600
min_script = 0.9  # share of the letters that are in the script of the word lists
proper_nouns = True  # False: no capitals inside a sentence
# -----------------------------------------------------------------------------
exec(open('configurator.py', encoding='utf-8').read())

from tqdm import tqdm

import chat
import collect
import jsonl
import measures
import replies
from tokenizer import on_hub


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
    try:
        with open(path, encoding='utf-8-sig') as f:
            lines = [line.strip() for line in f if not line.startswith('#')]
    except (OSError, UnicodeDecodeError) as e:
        fail(f'{path}: {"not UTF-8" if isinstance(e, UnicodeDecodeError) else e.strerror}')
    if any('\0' in line for line in lines):  # UTF-16 without its mark is valid UTF-8, and gibberish
        fail(f'{path} holds NUL characters; it wants to be UTF-8')
    return lines


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
    if not rows:
        fail(f'{path} holds no word')
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
    n = math.prod(map(len, lists.values()))
    place = permuted(i % n, n, seed + (i // n << 32))  # each epoch has an order of its own
    row = {}
    for kind, rows in lists.items():
        place, index = divmod(place, len(rows))
        row[kind] = rows[index]
    return row


def write_prompt(i):
    """Prompt number i as messages of a chat: the template with its slots filled."""
    rng = random.Random(seed << 40 | i)
    slots = {kind: row['word'] for kind, row in seed_words(i, lists).items()} | {'language': language.capitalize(), 'items': str(items)}
    slots |= {'books': books} | ({'theme': rng.choice(themes)} if themes else {})
    if examples:
        slots['examples'] = '\n'.join(rng.sample(example_lines, examples))
    return [{'role': 'user', 'content': chat.fill(template.replace('{level}', levels.get(complexity, '')), slots)}]


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
    for row in people + lists.get('noun', []):  # {slot:a|b} picks by gender, {slot:a|b|c|d} by gender and number
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
# what comes of a reply, and where the stories go

def accept(i, reply):
    """A reply to prompt i -> its rows: those stories in it that pass."""
    rows, reasons = [], collections.Counter()
    seed_row = seed_words(i, lists)
    for headline, text in replies.stories_in(reply, reply_format)[:items]:
        try:
            headline = replies.check_headline(clean(headline), proper_nouns) + '</h> ' if headline else ''
            text = headline + replies.check(clean(text), min_words, max_words, proper_nouns)
            if (same := seen.add(text)) > 0:
                raise chat.Rejected('duplicate' if same == 1 else 'near duplicate')
        except chat.Rejected as e:
            reasons[str(e)] += 1
            continue
        row = {'id': i * items + len(rows)} | {kind: row['word'] for kind, row in seed_row.items()}
        row |= {'text': text, 'missing': replies.missing(seed_row, text)}
        rows.append(row | ({'complexity': complexity} if levels else {}))
    if not rows:
        raise chat.Rejected(reasons.most_common(1)[0][0])
    counts['parts of a reply left out'] += reasons.total()
    counts['stories'] += len(rows)
    counts['with all seed words'] += sum(not row['missing'] for row in rows)
    return rows


def upload(path, repo):
    """Put the stories on the Hugging Face hub as a data set with a card; the token is the one of `hf auth login` or HF_TOKEN."""
    try:
        import huggingface_hub
    except ImportError:
        fail('push wants huggingface_hub: pip install huggingface_hub')
    writers = collections.Counter(row['model'] for row in jsonl.read(path))
    card = ['---', f'language: {measures.CODES[language]}' if language in measures.CODES else f'tags: [{language}]', 'task_categories: [text-generation]',
            'configs: [{config_name: default, data_files: stories.jsonl}]', '---', f'# {repo.split("/")[-1]}', '',
            f'{writers.total():,} short texts in {language.capitalize()}, written by {", ".join(writers)} for training small language models from scratch.',
            f'Each came from a prompt with seed words ({", ".join(words)}), which stand beside its `text`.']
    card += ['', 'The prompt' + (f', at complexity {complexity} of {", ".join(levels)}' if levels else '') + ':', '',
             *('    ' + line for line in template.strip().replace('{level}', levels.get(complexity, '')).split('\n'))] * bool(template)
    api = huggingface_hub.HfApi()
    try:
        api.create_repo(repo, repo_type='dataset', exist_ok=True)
        api.upload_file(path_or_fileobj=path, path_in_repo='stories.jsonl', repo_id=repo, repo_type='dataset')
        url = api.upload_file(path_or_fileobj='\n'.join([*card, '']).encode(), path_in_repo='README.md', repo_id=repo, repo_type='dataset')
    except Exception as e:  # of many kinds: no token, no network, a wrong name
        fail(f'{repo} was not uploaded: {" ".join(str(e).split())[:300]}; the same command tries again')
    print(f'uploaded to {url.split("/blob/")[0] if isinstance(url, str) else repo}')


# -----------------------------------------------------------------------------
# the stages: what is asked for, what is there already, the rest

if not base_url and provider not in ('grammar', *chat.PROVIDERS):
    fail(f'there is no provider {provider!r}; there is: {", ".join(["grammar", *chat.PROVIDERS])}, and --base_url=http… for any other')
if out and not out.endswith('.jsonl'):
    fail(f'out is {out!r}; it ends in .jsonl')
if push:
    on_hub(push)  # for the address, which may be unencrypted
if min(n_words, n_characters, dry_run, examples) < 0 or min(epochs, items) < 1:
    fail('n_words, n_characters, dry_run and examples are numbers from 0, epochs and items from 1')
if not words or not all(isinstance(text, str) for text in [*words, *themes, *levels, *levels.values()]):
    fail('words is a list of the names of word lists, themes a list of texts, levels a dict of texts')
if not (0 <= min_words <= max_words and 0 <= min_script <= 1):  # or every story would be paid for and none would pass
    fail('min_words is from 0 to max_words, min_script a share from 0 to 1')
folder = os.path.join('data', language)
composed = provider == 'grammar' and not base_url
out = out or os.path.join(folder, 'stories.jsonl')
lists = {kind: some_of(read_words(os.path.join(folder, f'{kind}s.txt')), n_words) for kind in words}
n_prompts = math.prod(map(len, lists.values())) * epochs
if not 0 < total <= n_prompts:
    fail(f'total is {total:,}; the word lists give from 1 to {n_prompts:,} prompts' + (' in so many epochs' if epochs > 1 else ''))
part, parts = jsonl.parse_shard(shard) or fail(f'shard is {shard!r}; it is a part and the number of parts, such as 2/8')
ids = range(part - 1, total, parts)

if composed:
    if template:
        fail('a prompt template is for a chat API: --provider=mistral or another; the grammar takes none: python generate_data.py --language=hindi')
    items = 1
    tell = read_grammar(folder, lists)
else:
    if not template:
        fail(f'a chat API wants a prompt template, which a config file holds: config/generate_{language}.py, or one like it')
    if levels and complexity not in levels:
        fail(f'complexity is {complexity!r}; there is: {", ".join(levels)}')
    if reply_format not in ('json', 'html') or reply_format == 'json' and items > 1:
        fail('reply_format is json, for one item, or html')
    letters = measures.scripts_in(' '.join(row['word'] for row in lists[words[0]]))
    script = max(letters, key=letters.get, default='')
    refusals = os.path.join(folder, 'refusals.txt')
    refuses = replies.compile_refusals(read_lines(refusals) if os.path.exists(refusals) else [])
    clean = functools.partial(replies.clean, script=script, min_script=min_script, refuses=refuses)
    example_lines = [line for line in read_lines(os.path.join(folder, 'examples.txt')) if line] if examples else []
    if len(example_lines) < examples:
        fail(f'{folder}/examples.txt holds {len(example_lines)} lines, and examples is {examples}')
    seen, counts = replies.Seen(), collections.Counter()
    connect = functools.partial(chat.connect, '' if provider == 'grammar' else provider, base_url, model, temperature, max_tokens, extra,
                                price_in, price_out, 'or write stories without one: --provider=grammar and no config file')


def compose(i):
    row = seed_words(i, lists)
    plot, text = tell(row, random.Random(seed << 40 | i))
    return {'id': i} | {kind: row[kind]['word'] for kind in lists} | {
        'text': text, 'plot': plot, 'model': 'grammar', 'prompt_tokens': 0, 'completion_tokens': 0}


if dry_run:
    for i in ids[:dry_run]:
        print(f"--- {i}: {', '.join(row['word'] for row in seed_words(i, lists).values())}")
        print(compose(i)['text'] if composed else write_prompt(i)[0]['content'], end='\n\n')
    if not composed:
        reply = chat.ask(connect(), write_prompt(ids[0]))
        print(f'--- the reply to {ids[0]}\n{reply}\n')
        try:
            for row in accept(ids[0], reply):
                print('--- passes, without the words for: ' + ', '.join(row['missing']) if row['missing'] else '--- passes, with all seed words')
        except chat.Rejected as e:
            print(f'--- does not pass: {e}')
    raise SystemExit

f = jsonl.open_append(out)  # before it is read, so that no other run writes what this one takes to be missing
done, done_besides = bytearray(len(ids) // 8 + 1), set()  # a bit an id: a hundred million take 12 MB; those of another total or shard
n_done = n_failed = 0
spent = [0, 0, 0]


def is_done(i):
    """Whether prompt i has its stories, or was given up."""
    return i in done_besides or i in ids and done[ids.index(i) // 8] >> ids.index(i) % 8 & 1


for row in tqdm(collect.finished(out, spent), desc=f'reading {out}', unit=' rows', leave=False, delay=1):
    i = row.get('id') if isinstance(row, dict) and type(row.get('id')) is int else None
    i = i // items if i is not None and 'reason' not in row else i  # a failed one has the prompt's number
    if i not in range(n_prompts) or 'reason' not in row and row.get(words[0]) != seed_words(i, lists)[words[0]]['word']:
        fail(f'{out} holds another story than this seed and these word lists give (number {i}); name another --out')
    if composed != (row.get('model', '') == 'grammar') and 'reason' not in row:
        fail(f'{out} holds stories by {row.get("model")}; name another --out for those of another kind')
    if i in ids:
        first = not is_done(i)
        n_done += first
        n_failed += first and 'reason' in row
        done[ids.index(i) // 8] |= 1 << ids.index(i) % 8
    else:
        done_besides.add(i)
    if not composed:
        if isinstance(row.get('text'), str):
            seen.add(row['text'])
left = (i for i in ids if not is_done(i))

complete = True
if composed:
    with tqdm(total=len(ids), initial=n_done, unit=' stories', desc=out, smoothing=0.1) as bar:
        for i in left:
            jsonl.append(f, compose(i))
            bar.update()
    print(f'{len(ids):,} stories in {out}')
elif n_done < len(ids):
    complete = collect.collect(connect(), left, write_prompt, accept, f, total=len(ids), n_done=n_done, spent=spent, unit='stories', num_workers=num_workers,
                               timeout=timeout, max_tries=max_tries, max_cost=max_cost, batch=batch, whole=reply_format == 'json', is_done=is_done)
    if counts['stories']:
        print(f'{counts["with all seed words"] / counts["stories"]:.1%} of them with all seed words'
              + (f'; {counts["parts of a reply left out"]:,} parts of replies left out' if items > 1 else ''))
else:
    print(f'all {len(ids):,} prompts are done in {out}' + (
        f', but {n_failed:,} of them failed: see failed.jsonl beside it, and delete it to have them tried again' if n_failed else ''))
if not complete:
    print('the same command goes on')
elif push:
    upload(out, push)
