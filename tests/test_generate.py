"""generate_data.py: numbers to prompts, shards, kills and restarts, the word lists and the grammar's stories."""

import ast
import collections
import hashlib
import random
import re
import time
import unicodedata

import pytest
from conftest import PROJECT

LANGUAGES = ('hindi', 'marathi', 'bangla', 'english', 'french')
KINDS = ('noun', 'verb', 'adjective', 'feature')


def toy_language(project, sizes=(3, 5, 7, 1), plot='The {adjective} {hero} saw a {noun} and began to {verb}.', **files):
    """A language of its own in data/toy, with so many nouns, verbs, adjectives and features."""
    folder = project.path / 'data' / 'toy'
    folder.mkdir(exist_ok=True)
    files = {f'{kind}s': '\n'.join(f'{kind}{i}' for i in range(n)) for kind, n in zip(KINDS, sizes)} | {
        'characters': 'word\ttags\nMia\tf child\nTom\tm child', 'plots': f'genders: m f\ncast: hero=child\n\n== plot one\n{plot}\n'} | files
    for name, text in files.items():
        (folder / f'{name}.txt').write_text(text, encoding='utf-8')


def words_in(language, kind):
    """{word: its forms} of a word list."""
    path = PROJECT / 'data' / language / f'{kind}s.txt'
    lines = [line for line in path.read_text(encoding='utf-8').splitlines() if line.strip() and not line.startswith('#')]
    columns = lines.pop(0).split('\t') if lines[0].startswith('word\t') else ['word']
    rows = [dict(zip(columns, line.split('\t'))) for line in lines]
    words = {row['word']: {form for column, form in row.items() if column != 'tags' and form} for row in rows}
    assert len(words) == len(rows), f'{path} has a word twice'
    return words


# -----------------------------------------------------------------------------
# numbers and prompts

def test_the_permutation_is_a_bijection():
    source = (PROJECT / 'generate_data.py').read_text(encoding='utf-8')
    function = next(node for node in ast.parse(source).body if getattr(node, 'name', '') == 'permuted')
    scope = {'hashlib': hashlib}
    exec(ast.unparse(function), scope)
    for n in [*range(1, 40), 63, 64, 65, 127, 1000, 1023, 4097]:
        order = [scope['permuted'](i, n, 1337) for i in range(n)]
        assert sorted(order) == list(range(n)), n
        if n > 30:
            assert order != sorted(order) and order != [scope['permuted'](i, n, 1338) for i in range(n)]


@pytest.mark.parametrize('sizes', [(1, 1, 1, 1), (3, 5, 7, 1), (4, 4, 4, 4), (13, 1, 11, 3)])
def test_all_prompts_of_the_word_lists_come_once(project, sizes):
    toy_language(project, sizes)
    n = sizes[0] * sizes[1] * sizes[2] * sizes[3]
    project.run('generate_data.py', '--language=toy', f'--total={n}')
    rows = project.jsonl('data/toy/stories.jsonl')
    assert len({tuple(row[kind] for kind in KINDS) for row in rows}) == len(rows) == n
    assert sorted(row['id'] for row in rows) == list(range(n))
    assert f'from 1 to {n:,} prompts' in project.refuses('generate_data.py', '--language=toy', f'--total={n + 1}', '--out=more.jsonl')


def test_a_thousand_of_a_hundred_million(project):
    started = time.perf_counter()
    part = random.Random(1).randint(1, 100_000)
    text = project.run('generate_data.py', '--total=100_000_000', f'--shard={part}/100000', '--dry_run=1000')
    heads = re.findall(r'^--- (\d+): (.*)$', text, flags=re.M)
    assert [int(i) for i, _ in heads] == list(range(part - 1, 100_000_000, 100_000))
    assert len({words for _, words in heads}) == 1000
    assert time.perf_counter() - started < 5


def test_a_larger_total_and_another_seed(project):
    toy_language(project)
    for out, *options in (['few', '--total=20'], ['many', '--total=50'], ['other', '--total=50', '--seed=1']):
        project.run('generate_data.py', '--language=toy', f'--out={out}.jsonl', *options)
    few, many, other = (project.jsonl(f'{out}.jsonl') for out in ('few', 'many', 'other'))
    assert many[:20] == few
    assert [row['noun'] for row in other] != [row['noun'] for row in many]
    project.run('generate_data.py', '--language=toy', '--out=few.jsonl', '--total=50')
    assert (project.path / 'few.jsonl').read_bytes() == (project.path / 'many.jsonl').read_bytes()


# -----------------------------------------------------------------------------
# shards, kills, restarts

def test_shards_are_disjoint_and_complete(project):
    whole = project.run('generate_data.py', '--total=101', '--out=whole.jsonl')
    assert '101 stories in whole.jsonl' in whole
    rows, sizes = [], []
    for part in (1, 2, 3):
        project.run('generate_data.py', '--total=101', f'--shard={part}/3', f'--out=out/{part}.jsonl')
        sizes.append(len(project.jsonl(f'out/{part}.jsonl')))
        rows += project.jsonl(f'out/{part}.jsonl')
    assert sizes == [34, 34, 33]
    assert sorted(rows, key=lambda row: row['id']) == project.jsonl('whole.jsonl')


def test_a_file_cut_anywhere_is_completed(project):
    project.run('generate_data.py', '--total=150', '--out=whole.jsonl')
    whole = (project.path / 'whole.jsonl').read_bytes()
    rng = random.Random(7)
    for _ in range(3):
        (project.path / 'cut.jsonl').write_bytes(whole[:rng.randrange(len(whole))])
        project.run('generate_data.py', '--total=150', '--out=cut.jsonl')
        assert (project.path / 'cut.jsonl').read_bytes() == whole
    lines = whole.splitlines(keepends=True)  # and one with holes, as many workers leave it
    (project.path / 'cut.jsonl').write_bytes(b''.join(rng.sample(lines, 60)))
    project.run('generate_data.py', '--total=150', '--out=cut.jsonl')
    assert sorted((project.path / 'cut.jsonl').read_bytes().splitlines(keepends=True)) == sorted(lines)


def test_a_killed_run_goes_on(project):
    process = project.start('generate_data.py', '--total=1500', '--out=killed.jsonl')
    path = project.path / 'killed.jsonl'
    while process.poll() is None and (not path.exists() or path.stat().st_size < 100_000):
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert path.stat().st_size >= 100_000
    project.run('generate_data.py', '--total=1500', '--out=killed.jsonl')
    project.run('generate_data.py', '--total=1500', '--out=whole.jsonl')
    assert path.read_bytes() == (project.path / 'whole.jsonl').read_bytes()


def test_a_finished_run_adds_nothing(project):
    for _ in range(2):
        project.run('generate_data.py', '--total=30', '--out=s.jsonl')
        assert len(project.jsonl('s.jsonl')) == 30


def test_another_seed_for_the_same_file_is_refused(project):
    project.run('generate_data.py', '--total=30', '--out=s.jsonl')
    before = (project.path / 's.jsonl').read_bytes()
    assert 'another story than this seed and these word lists give' in project.refuses('generate_data.py', '--total=30', '--out=s.jsonl', '--seed=1')
    assert 'another story than this seed and these word lists give' in project.refuses('generate_data.py', '--total=30', '--out=s.jsonl', '--language=english')
    assert (project.path / 's.jsonl').read_bytes() == before


@pytest.mark.parametrize('option, says', [
    ('--total=0', 'total is 0'), ('--total=-1', 'total is -1'), ('--total=10_000_000_000', 'total is 10,000,000,000'),
    ('--shard=3/2', "'3/2'"), ('--shard=0/2', "'0/2'"), ('--shard=2', "'2'"), ('--shard=-1/2', "'-1/2'"), ('--shard=1/2/3', "'1/2/3'"),
    ('--language=klingon', 'klingon'), ('--provider=granmar', "no provider 'granmar'; there is: grammar")])
def test_refusals(project, option, says):
    line = project.refuses('generate_data.py', option, '--out=s.jsonl')
    assert line.startswith('generate_data.py: ') and says in line
    assert not (project.path / 's.jsonl').exists()


def test_dry_run_writes_nothing(project):
    before = sorted(project.path.rglob('*'))
    text = project.run('generate_data.py', '--language=english', '--dry_run=2')
    assert sorted(path for path in project.path.rglob('*') if '__pycache__' not in path.parts) == before
    assert text.count('--- ') == 2
    project.run('generate_data.py', '--language=english', '--total=2', '--out=s.jsonl')
    for row in project.jsonl('s.jsonl'):
        assert f"--- {row['id']}: {row['noun']}, {row['verb']}, {row['adjective']}, {row['feature']}\n{row['text']}\n" in text


# -----------------------------------------------------------------------------
# word lists and the grammar's files

@pytest.mark.parametrize('language', LANGUAGES)
def test_the_word_lists(language):
    for kind, least in zip(KINDS, (300, 200, 200, 20)):
        assert len(words_in(language, kind)) >= least, kind
    openings = [line for line in (PROJECT / 'data' / language / 'prompts.txt').read_text(encoding='utf-8').splitlines() if line and not line.startswith('#')]
    assert len(openings) >= 1000
    assert len(set(openings)) == len(openings)
    for path in (PROJECT / 'data' / language).glob('*.txt'):
        text = path.read_text(encoding='utf-8')
        assert unicodedata.is_normalized('NFC', text), path
        assert '\ufeff' not in text and '\r' not in text and '\ufffd' not in text, path
        assert not re.search(r'[^\S\n]$|[^\S\n\t \xa0\u202f]', text, flags=re.M), path  # French has no-break spaces


def test_a_word_twice_is_named(project):
    toy_language(project, nouns='cat\ndog\ncat\n')
    line = project.refuses('generate_data.py', '--language=toy', '--total=2')
    assert 'nouns.txt' in line and line.endswith('cat')


def test_words_without_columns_and_comments(project):
    toy_language(project, nouns='# things\ncat\n\n# more\nsmall dog\n', sizes=(2, 1, 1, 1))
    project.run('generate_data.py', '--language=toy', '--total=2')
    rows = project.jsonl('data/toy/stories.jsonl')
    assert {row['noun'] for row in rows} == {'cat', 'small dog'}
    assert all(row['text'] in {f'The adjective0 {who} saw a {row["noun"]} and began to verb0.' for who in ('Mia', 'Tom')} for row in rows)


def test_what_plots_can_say(project):
    toy_language(project, plots='''# a comment
genders: m f
cast: hero=child

== plot all | friend=child
{hero:He|She} and {friend}: {^greeting} {noun} ({a}|{b@hero})
of   (x|x)

{hero.word} ended.

== greeting
hello

== a
one

== b
two

== b@m
three

== b@f
four
''')
    project.run('generate_data.py', '--language=toy', '--total=60')
    texts = {re.sub(r'noun\d', 'noun', row['text']) for row in project.jsonl('data/toy/stories.jsonl')}
    assert texts == {f'{he} and {friend}: Hello noun {end} of x\n\n{hero} ended.'
                     for he, hero, friend, word in (('She', 'Mia', 'Tom', 'four'), ('He', 'Tom', 'Mia', 'three')) for end in ('one', word)}


@pytest.mark.parametrize('plot', [
    'A {noum} here.', 'A {noun.plural} here.', 'A {friend} here.', 'A {noun here.', 'A noun} here.', 'A (b|c here.', 'A b|c) here.', 'A | here.',
    'A {hero:a|b|c} here.', 'A {noun:a|b} here.', 'A {noun@zzz} here.', 'A {loop} here.\n\n== loop\n{loop}', 'A {empty} here.\n\n== empty\n'])
def test_a_broken_plot_is_one_line(project, plot):
    toy_language(project, plot=plot)
    line = project.refuses('generate_data.py', '--language=toy', '--total=3')
    assert 'plots.txt: plot one: ' in line


@pytest.mark.parametrize('plots, says', [
    ('genders: m f\n', 'holds no plot'), ('== plot one | hero=dragon\n{hero}\n', 'plot one'), ('== plot one | hero\n{hero}\n', 'plot one'),
    ('== plot one\n{hero}\n', "'hero'")])
def test_a_broken_plots_file_is_one_line(project, plots, says):
    toy_language(project, plots=plots)
    assert says in project.refuses('generate_data.py', '--language=toy', '--total=3')


@pytest.mark.parametrize('language, total', [('hindi', 20_000), ('english', 5_000)])
def test_the_stories_of_the_grammar(project, language, total):
    started = time.perf_counter()
    project.run('generate_data.py', f'--language={language}', f'--total={total}', '--out=s.jsonl')
    assert time.perf_counter() - started < 20
    rows = project.jsonl('s.jsonl')
    assert len(rows) == total == len({row['text'] for row in rows})
    assert max(collections.Counter(row['plot'] for row in rows).values()) <= 0.05 * total
    for kind in KINDS:
        words = words_in(language, kind)
        assert {row[kind] for row in rows} == words.keys()
        if kind != 'feature':  # a feature is said in the story, not named in it
            without = [row['id'] for row in rows if not any(form.lower() in row['text'].lower() for form in words[row[kind]])]
            assert not without, (kind, len(without), without[:5])
    for row in rows:
        text = row['text']
        assert text == text.strip() and not re.search(r'[{}()|_<>]|  | [.,!?।]|\n\n\n|(?<!\n)\n(?!\n)', text), text
        assert unicodedata.is_normalized('NFC', text)
