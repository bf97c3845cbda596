"""data/english/plots.txt: each story has its words and sentences of its own, in the small world of the demo as well."""

import collections
import re

import pytest
from conftest import PROJECT

import replies

KINDS = ('noun', 'verb', 'adjective')
MISTAKES = re.compile(r'\b[Aa] (?!one)[aeio]|\b[Aa]n (?!h(our|onest)\b)[^aeiou]|\b(?!had)(\w+) \2\b')  # a apple


def lines_of(name):
    lines = (PROJECT / 'data/english' / name).read_text(encoding='utf-8').splitlines()
    return [line for line in lines if line and not line.startswith('#')]


def generate(project, *options):
    project.run('generate_data.py', '--language=english', '--out=s.jsonl', *options)
    return project.jsonl('s.jsonl')


def words_in(text):
    return set(re.findall(r'[a-z]+', text.lower()))


def test_each_story_contains_its_words(project):
    rows = {}
    for kind in KINDS:
        columns, *lines = [line.split('\t') for line in lines_of(f'plot_{kind}s.txt')]
        rows[kind] = {line[0]: dict(zip(columns, line)) for line in lines}
    stories = generate(project, '--total=2000')
    assert len({story['plot'] for story in stories}) >= 60
    for story in stories:
        words = {kind: rows[kind][story[kind]] | {'tags': []} for kind in KINDS}
        assert replies.missing(words, story['text']) == [], story
        assert not MISTAKES.search(story['text']), story
        for paragraph in story['text'].split('\n\n'):
            assert paragraph.count('"') % 2 == 0, story


@pytest.mark.slow
def test_half_of_the_sentences_are_in_one_story_only(project):
    n_stories = collections.Counter()
    for story in generate(project, '--total=20000'):
        n_stories.update({sentence.strip(' "\n') for sentence in re.split('[.!?]', story['text'])} - {''})
    assert list(n_stories.values()).count(1) >= 0.5 * n_stories.total()


def test_the_world_of_the_demo(project):
    stories = generate(project, '--total=2000', '--world=demo')
    combinations = collections.defaultdict(set)
    for story in stories:
        combinations[story['plot']].add(tuple(story[kind] for kind in KINDS))
    assert len(combinations) >= 25
    assert min(len(words) for words in combinations.values()) >= 4
    openings = lines_of('plot_openings.txt')
    assert len(set(openings)) == 60
    known = set().union(*(words_in(story['text']) for story in stories))
    for opening in openings:
        assert 5 <= len(opening.split()) <= 15
        assert words_in(opening) <= known, opening
