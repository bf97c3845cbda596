"""generate_data.py: numbers to prompts, shards, kills and restarts, the word lists, the grammar's stories and what becomes of a chat API's replies."""

import ast
import collections
import hashlib
import json
import os
import random
import re
import time
import unicodedata

import pytest
from conftest import PROJECT, cleaner

import chat
import replies

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
    before = sum(os.times()[2:4])
    project.run('generate_data.py', f'--language={language}', f'--total={total}', '--out=s.jsonl')
    assert sum(os.times()[2:4]) - before < 20  # seconds of a core, children's
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


# -----------------------------------------------------------------------------
# replies

def judge(language, proper_nouns=True):
    """What a story of from 3 words in that language goes through, a function of its text."""
    clean = cleaner(language)
    return lambda text: replies.check(clean(text), 3, 600, proper_nouns)


def reason(function, text):
    """Why it rejects a text, '' when it does not."""
    try:
        function(text)
    except chat.Rejected as e:
        return str(e)
    return ''


STORY = {
    'hindi': 'राधा ने बिल्ली को दूध दिया। बिल्ली खुश हुई। दोनों खेलते रहे।', 'marathi': 'राधाने मांजरीला दूध दिले. मांजर खूश झाली. दोघी खेळत राहिल्या.',
    'bangla': 'রাধা বিড়ালকে দুধ দিল। বিড়াল খুশি হলো। তারা খেলতে লাগল।', 'english': 'Mia gave the cat some milk. The cat was happy. They played all day.',
    'french': 'Léa donna du lait au chat. Le chat était content. Ils jouèrent longtemps.'}


@pytest.mark.parametrize('language, before, behind', [
    ('english', ['I’m sorry, but I can’t help with that. ', 'Sure! ', 'Here is the story: ', "Here's a short story.\n\n", 'As an AI, I write: '],
     [' The End.', '\n\nThe end.', ' Moral: Be kind.', '\n\nMoral of the story: be kind.', ' (Word count: 180).', ' I hope you like this story.']),
    ('french', ['Bien sûr ! ', 'Voici une histoire : ', 'Je suis désolé, mais je ne peux pas. '],
     [' Fin.', '\n\nFin.', ' Morale : il faut partager.', '\n\nLa morale de cette histoire est simple.', ' J’espère que cette histoire vous plaira.']),
    ('hindi', ['यह रही कहानी। ', 'ज़रूर! यह रही आपकी कहानी: ', 'क्षमा करें, मैं यह नहीं कर सकती। '],
     [' सीख: बाँटना अच्छा है।', ' सीख : बाँटो।', '\n\nइस कहानी से हमें सीख मिलती है कि बाँटना अच्छा है।', ' तात्पर्य: बाँटो।', ' समाप्त।', ' शब्द संख्या 180।']),
    ('marathi', ['ही घ्या गोष्ट: ', 'सादर आहे गोष्ट. ', 'नक्कीच! '],
     [' तात्पर्य: वाटून खावे.', '\n\nबोध: वाटून खावे.', ' या गोष्टीतून आपण वाटायला शिकतो.', ' समाप्त.']),
    ('bangla', ['এখানে একটি গল্প দেওয়া হলো। ', 'অবশ্যই! ', 'এই নিন আপনার গল্প: '],
     [' নীতিকথা: ভাগ করে খাও।', '\n\nএই গল্প থেকে আমরা শিখি ভাগ করতে।', ' শিক্ষা: ভাগ করো।', ' সমাপ্ত।'])])
def test_talk_about_the_task_is_rejected(language, before, behind):
    check = judge(language)
    assert reason(check, STORY[language]) == ''
    for text in [text + STORY[language] for text in before] + [STORY[language] + text for text in behind]:
        assert reason(check, text) == 'refusal or meta text', text


@pytest.mark.parametrize('language, inside', [
    ('english', ['“Here is a story,” said Grandma.', 'I hope you like it here, she wrote.', '“Sure!” said Mia.', 'It was the end.',
                 '“I can’t write this!” he cried.', 'At the end of the day, they slept.']),
    ('french', ['« Voici une histoire », dit mamie.', 'Il était désolé.', 'Le roi refusa cette demande.', 'Il compta le nombre de mots.',
                'Ce fut la fin.']),
    ('hindi', ['“यहाँ एक कहानी है,” दादी बोलीं।', 'उसने किताब का शीर्षक पढ़ा।', 'राजा ने इस अनुरोध को मान लिया।', 'उसने बहुत कुछ सीखा।', 'खेल समाप्त हुआ।']),
    ('marathi', ['“इथे एक गोष्ट आहे,” आजी म्हणाली.', 'तिने शीर्षक वाचले.', 'बाईंनी क्रियापद शिकवले.', 'खेळ समाप्त झाला.']),
    ('bangla', ['“এখানে একটি গল্প আছে,” দিদা বললেন।', 'রাজা এই অনুরোধ রাখলেন।', 'সে বইয়ের শিরোনাম পড়ল।', 'খেলা শেষ।'])])
def test_what_people_say_in_stories_passes(language, inside):
    check = judge(language)
    for sentence in inside:
        for text in (f'{sentence} {STORY[language]}', f'{STORY[language]} {sentence}', f'{STORY[language]} {sentence} {STORY[language]}'):
            assert reason(check, text) == '', text


def test_a_title_is_cut_off():
    for language, title in [('english', 'The Cat, the Milk and Mia'), ('english', 'Title: “The Kind Girl”'), ('hindi', 'राधा और बिल्ली'),
                            ('hindi', 'शीर्षक: राधा और बिल्ली'), ('bangla', 'রাধার বিড়াল'), ('french', 'Léa et le chat'), ('english', '**The Kind Girl**')]:
        for gap in ('\n', '\n\n'):
            assert judge(language)(title + gap + STORY[language]) == STORY[language]
    check = judge('english')
    for text in ['“Come here!”\n' + STORY['english'], 'He said:\n\n“' + STORY['english'] + '”',
                 'The moon is high\nThe stars are bright\nAnd all the world\nIs full of light.',
                 'One day\na cat came.\n\n' + STORY['english']]:
        assert check(text) == text


def test_signs_that_nobody_sees():
    check = judge('hindi')
    text = STORY['hindi']
    for sign in '\u200b\ufeff\u2060\u00ad\u200e':
        assert check(sign + text[:4] + sign + text[4:] + sign) == text
    for joiner in '\u200c\u200d':
        assert check(f'{text}{joiner}') == check(f'{text[:-1]} {joiner}।') == text
        word = f'क्{joiner}ष'
        assert word in check(f'{word} {text}')
    assert 'হঠাত্\u200d ' in judge('bangla')(f'হঠাত্\u200d {STORY["bangla"]}')  # an old way to write ৎ
    for sign in '\x00\x0b\x7f\x85\x9f\ue000\ufffd\uffff':
        assert reason(check, text[:9] + sign + text[9:]) == 'broken characters', repr(sign)
    assert reason(check, f'{text}\n\n---\n\n{text}') == 'markup'


def test_a_bar_is_a_danda_in_indic_scripts():
    for language in ('hindi', 'bangla'):
        check = judge(language)
        for bar in ('|', ' |', ' ।'):
            assert check(STORY[language].replace('।', bar)) == STORY[language]
        assert check(f'{STORY[language][:-1]}||') == f'{STORY[language][:-1]}॥'
        assert reason(check, f'| {STORY[language]} |') == 'markup'
    assert reason(judge('english'), STORY['english'].replace('.', ' |')) == 'markup'


NEWS = 'The mayor opened the bridge on a windy morning. '


@pytest.mark.parametrize('text, says', [
    ('She said, “We waited long.” The crowd cheered.', ''), ('She said, "We waited long." The crowd cheered.', ''),
    ('The crowd said “It is ours” and left.', ''),
    ('They waited (for hours). Then I came.', ''), ('“Is it safe?” she asked. “Yes.” “Then I’m going.”', ''), ('The rule is simple: Nobody enters.', ''),
    ('He paused… Then he left.', ''), ('He came to Paris.', 'proper noun'),
    ('She said, “We like Paris.”', 'proper noun'), ('The group (Unesco) paid.', 'proper noun'),
    ('The ship "Hope" sank.', 'proper noun'), ('Mr. Smith came.', 'proper noun'), ('NATO met.', 'proper noun'), ('In mid-July it opened.', 'proper noun'),
    ('U.S. farmers met.', 'proper noun'), ('The town of Évry slept.', 'proper noun')])
def test_names_in_news(text, says):
    assert reason(judge('news', proper_nouns=False), NEWS + text) == says
    assert reason(judge('news'), NEWS + text) == ''


@pytest.mark.parametrize('headline, says', [
    ('Mayor opens bridge', ''), ('Mayor Opens New Bridge after Long Delay', ''), ('Mayor visits Paris', 'proper noun'), ('Fire in London', 'proper noun'),
    ('“We won,” says coach', ''), ('Mayor visits South Korea', 'proper noun'), ('**Mayor** opens bridge', 'markup'), ('Bridge', 'broken headline')])
def test_headlines(headline, says):
    assert reason(lambda text: replies.check_headline(cleaner('news')(text), False), headline) == says


def item(n, end='</p>'):
    return f'<h1>Bulletin {" ".join(["more"] * n)} ends well</h1><p>' + ' '.join(f'{word}{"x" * n}' for word in NEWS.lower()[:-2].split() * 3) + '.' + end


@pytest.mark.parametrize('reply, kept', [
    (item(1) + '\n2. ' + item(2) + '\n\n3) ' + item(3), [1, 2, 3]), ('```html\n' + item(1) + '\n' + item(2) + '\n```', [1, 2]),
    (item(1) + item(2) + '\nI hope that these will do. Shall I write more?', [1, 2]),
    ('<think>First ' + item(4) + '</think>' + item(1), [1]), (item(1) + '<think>' + item(2), [1]), (item(1) + item(2, ''), [1]), (item(1) + item(2)[:-9], [1]),
    (item(1) + item(2, '') + '\n3. ' + item(3), [1, 2, 3]), (item(1) + item(2) + '<p>and the', [1]), (item(1) + '<h1>Half a', [1])])
def test_bulletins_of_a_reply(reply, kept):
    pairs = replies.stories_in(chat.text_of({'choices': [{'message': {'content': reply}}]}), 'html')
    assert [headline.count('more') for headline, _ in pairs] == kept
    assert all(judge('news')(text).endswith('x.') and not re.search(r'[\d`<]|hope', headline + text) for headline, text in pairs)


@pytest.mark.parametrize('language, kind, word, text, held', [
    ('hindi', 'verb', 'मदद करना', 'उसने माँ की मदद की।', True), ('hindi', 'verb', 'कूदना', 'बंदर कूदा।', True), ('hindi', 'verb', 'कूदना', 'बंदर सोया।', False),
    ('hindi', 'noun', 'कान', 'वह मकान में था।', False), ('hindi', 'noun', 'घोड़ा', 'घोड़ों ने घास खाई।', True), ('hindi', 'noun', 'कली', 'वह कल आया।', False),
    ('english', 'noun', 'cat', 'The caterpillar ate.', False), ('english', 'noun', 'cat', 'Two cats ate.', True),
    ('english', 'adjective', 'heart-shaped', 'A heart shaped box.', True), ('marathi', 'verb', 'मदत करणे', 'तिने मदत केली.', True),
    ('marathi', 'noun', 'घर', 'ती घराच्या मागे गेली.', True), ('bangla', 'verb', 'রান্না করা', 'মা রান্না করলেন।', True),
    ('bangla', 'noun', 'কুকুর', 'কুকুরটি দৌড়াল।', True), ('bangla', 'verb', 'দৌড়ানো', 'কুকুরটি দৌড়াল।', True), ('french', 'verb', 'se cacher', 'Il s’est caché.', True),
    ('french', 'adjective', 'léger', 'Une plume légère.', True), ('french', 'noun', 'chat', 'Le château brille.', False),
    ('french', 'noun', 'arc-en-ciel', 'Un arc-en-ciel !', True),
    ('news', 'group', 'storm, roof, wind', 'The roofs were new.', True), ('news', 'group', 'storm, roof, wind', 'The cows were new.', False)])
def test_which_seed_words_are_missing(language, kind, word, text, held):
    word, text = unicodedata.normalize('NFC', word), unicodedata.normalize('NFC', text)
    assert replies.missing({kind: {'word': word, 'tags': []}}, text) == ([] if held else [kind])


def test_irregular_verbs_of_french(project):
    lines = [line.split('\t') for line in (project.path / 'data/french/verbs.txt').read_text(encoding='utf-8').splitlines()]
    rows = {line[0]: dict(zip(('word', 'tags', 'present', 'past', 'other'), line)) for line in lines}
    for verb, text in [('prendre', 'Il prit son sac.'), ('aller', 'Elle va à la mer.'), ('voir', 'Il a vu un loup.'),
                       ('se souvenir', 'Elle se souvint de lui.'), ('faire', 'Il fit un nid.')]:
        assert replies.missing({'verb': rows[verb] | {'tags': []}}, text) == []


@pytest.mark.parametrize('language', ['hindi', 'english'])
def test_no_word_of_the_grammar_is_missing(project, language):
    project.run('generate_data.py', f'--language={language}', '--total=1000', '--out=s.jsonl')
    rows = project.jsonl('s.jsonl')
    for kind in ('noun', 'verb', 'adjective'):
        columns = (project.path / 'data' / language / f'{kind}s.txt').read_text(encoding='utf-8').split('word\t', 1)[1].split('\n', 1)[0].split('\t')
        lines = (line.split('\t') for line in (project.path / 'data' / language / f'{kind}s.txt').read_text(encoding='utf-8').splitlines())
        lists = {line[0]: {'word': line[0]} | dict(zip(columns[1:], line[2:])) for line in lines}
        assert [row[kind] for row in rows if replies.missing({kind: lists[row[kind]]}, row['text'])] == []
        others = [row[kind] for row in rows[1:]]
        assert sum(not replies.missing({kind: lists[word]}, row['text']) for row, word in zip(rows, others)) < 0.06 * len(rows)


# -----------------------------------------------------------------------------
# the commands of the docs

def test_the_grammar_takes_no_prompts(project):
    line = project.refuses('generate_data.py', 'config/generate_hindi.py')
    assert 'a prompt template is for a chat API' in line and not (project.path / 'data/hindi/stories.jsonl').exists()


def test_stories_of_both_kinds_side_by_side(project, chat_server):
    server = chat_server()
    project.run('generate_data.py', '--language=hindi', '--total=20')
    text = project.run('generate_data.py', 'config/generate_hindi.py', f'--base_url={server.url}', '--total=20', '--out=data/hindi/chat.jsonl')
    assert '20 stories added to data/hindi/chat.jsonl' in text and len(project.jsonl('data/hindi/stories.jsonl')) == 20
    process = project.start('generate_data.py', 'config/generate_hindi.py', f'--base_url={server.url}', '--total=20')
    assert 'holds stories by grammar; name another --out' in process.communicate()[1] and process.returncode == 1


def test_the_last_line_tells_what_failed(project, chat_server):
    server = chat_server(reply=json.dumps({'story': 'Too short.'}))
    command = ('generate_data.py', 'config/generate_english.py', f'--base_url={server.url}', '--total=7', '--max_tries=1')
    project.run(*command)
    assert project.run(*command).rstrip() == ('all 7 prompts are done in data/english/stories.jsonl, but 7 of them failed: '
                                              'see failed.jsonl beside it, and delete it to have them tried again')


@pytest.mark.parametrize('language, complexity', [*(('hindi', each) for each in ('1', '2', '2+', '3', '4', '5')), ('french', '5'),
                                                  *((language, '2+') for language in LANGUAGES if language != 'hindi')])
def test_what_the_prompts_ask_for(project, chat_server, language, complexity):
    server = chat_server()
    text = project.run('generate_data.py', f'config/generate_{language}.py', f'--base_url={server.url}', '--dry_run=2', '--min_script=0',
                       f'--complexity={complexity}')
    prompts = text.split('--- the reply')[0]
    assert prompts.count('150 to 250 words') == prompts.count('no title, no moral') == prompts.count('« and »' if language == 'french' else '“ and ”') == 2
    assert ('not in Hindi' in prompts) == (language == 'marathi') and not re.search(r'\{\w+\}', prompts)
    assert ('dialogue' in prompts) >= (complexity in '345') and ('Babar' in prompts) == (language == 'french' and complexity == '5')
