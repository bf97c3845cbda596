"""data/<language>/plots.txt: each story has its words, agreement and sentences of its own, also in the demo's world."""

import collections
import re

import pytest
from conftest import PROJECT

import files
import replies

KINDS = ('noun', 'verb', 'adjective')
LANGUAGES = ('hindi', 'english')


def lines_of(language, name):
    lines = (PROJECT / 'data' / language / name).read_text(encoding='utf-8').splitlines()
    return [line for line in lines if line and not line.startswith('#')]


def rows_of(language, name):
    columns, *lines = [line.split('\t') for line in lines_of(language, name)]
    rows = [dict(zip(columns, line)) for line in lines]
    return {row['word']: row | {'tags': row.get('tags', '').split()} for row in rows}


def generate(project, language, *options):
    project.run('generate_data.py', f'--language={language}', '--out=s.jsonl', *options)
    return project.jsonl('s.jsonl')


def words_in(text):
    return set(replies.WORD.findall(text.lower()))


@pytest.mark.parametrize('language', LANGUAGES)
def test_each_story_contains_its_words(project, language):
    rows = {kind: rows_of(language, f'plot_{kind}s.txt') for kind in KINDS}
    stories = generate(project, language, '--total=2000')
    assert len({story['plot'] for story in stories}) >= 60
    for story in stories:
        words = {kind: rows[kind][story[kind]] for kind in KINDS}
        assert replies.missing(words, story['text']) == [], story
        assert re.search(r'[.!?।:”"]$', story['text']), story
        assert 90 <= len(story['text'].split()) <= 230, story
        assert story['text'].count('“') == story['text'].count('”'), story
        for paragraph in story['text'].split('\n\n'):
            assert paragraph.count('"') % 2 == 0, story


def test_english_articles_and_doubled_words(project):
    mistakes = re.compile(r'\b[Aa] (?!one)[aeio]|\b[Aa]n (?!h(our|onest)\b)[^aeiou]|\b(?!had)(\w+) \2\b')  # a apple
    for story in generate(project, 'english', '--total=2000'):
        assert not mistakes.search(story['text']), story


def test_hindi_verbs_agree_and_nouns_before_postpositions_are_oblique(project):
    people = rows_of('hindi', 'characters.txt')
    nouns = rows_of('hindi', 'plot_nouns.txt')
    obliques = {word for word, row in (nouns | people).items() if row.get('oblique')}
    before_postposition = re.compile(rf'(?<!\S)({"|".join(obliques)}) (?:ने|को|का|के|की|से|में|पर) ')
    one_past = re.compile(r'(?<![\w\u0900-\u0963])(\S+) (?:बहुत )?(था|थी|गया|गई|बोला|बोली|हँसा|हँसी)[,।]')
    gender = {word: 'f' if 'f' in row['tags'] else 'm' for word, row in people.items() if 'child' in row['tags']}
    for story in generate(project, 'hindi', '--total=2000'):
        assert not before_postposition.search(story['text']), (before_postposition.search(story['text']), story)
        for sentence in re.split('[।!?]', story['text']):
            match = re.fullmatch(r'\W*(\S+) और (\S+) .*(थे|थीं|गए|गईं|लगे|लगीं)', sentence)
            if match and match[1] in gender and match[2] in gender and ',' not in sentence and ' ने ' not in sentence:
                are_feminine = gender[match[1]] == gender[match[2]] == 'f'
                assert match[3].endswith('ं') == are_feminine, sentence
        for name, verb in one_past.findall(story['text']):
            if name in gender:
                assert verb.endswith(('ी', 'ई')) == (gender[name] == 'f'), story


@pytest.mark.slow
@pytest.mark.parametrize('language', LANGUAGES)
def test_half_of_the_sentences_are_in_one_story_only(project, language):
    n_stories = collections.Counter()
    for story in generate(project, language, '--total=20000'):
        n_stories.update({sentence.strip(' "“”\n') for sentence in re.split('[.!?।]', story['text'])} - {''})
    assert list(n_stories.values()).count(1) >= 0.5 * n_stories.total()


@pytest.mark.parametrize('language', LANGUAGES)
def test_the_world_of_the_demo(project, language):
    stories = generate(project, language, '--total=4000', '--world=demo')
    combinations = collections.defaultdict(set)
    for story in stories:
        combinations[story['plot']].add(tuple(story[kind] for kind in KINDS))
    assert len(combinations) >= 25
    assert min(len(words) for words in combinations.values()) >= 3
    openings = lines_of(language, 'plot_openings.txt')
    assert len(set(openings)) == 60
    known = set().union(*(words_in(story['text']) for story in stories))
    for opening in openings:
        assert 5 <= len(opening.split()) <= 15, opening
        assert words_in(opening) <= known, (opening, words_in(opening) - known)


def test_no_list_of_a_language_is_taken_for_stories():
    for path in (PROJECT / 'data').glob('*/*.t[xs][tv]'):
        assert path.name in files.NOT_STORIES, path
