"""replies.py, and generate_data.py with a chat API: which replies become stories."""

import json
import random
import re
import time

import pytest
from conftest import PROJECT, cleaner

import chat
import replies

ASK = ('generate_data.py', 'config/generate_hindi.py', '--out=out/stories.jsonl', '--model=tiny')
HINDI = 'राधा ने बिल्ली को दूध दिया। बिल्ली खुश हुई। “कितनी अच्छी बिल्ली है!” माँ ने कहा।'
MARATHI = 'राधाने मांजरीला दूध दिले. मांजर खूश झाली.'
BANGLA = 'রাধা বিড়ালকে দুধ দিল। বিড়াল খুশি হলো।'
ENGLISH = 'Mia gave the cat some milk. “Good cat,” she said.'
FRENCH = 'Léa donna du lait au chat. « Bon chat ! » dit-elle.'


# -----------------------------------------------------------------------------
# replies.py


@pytest.mark.parametrize('reply', [
    '{"story": "%s"}', '```json\n{"story": "%s"}\n```', 'लीजिए:\n{"story": "%s"}\nशुभ दिन!', '{"story": "%s",}',
    '{"title": "दूध", "story": "%s"}', '{\n  "story":\n  "%s"\n}', '{ {"story": "%s"} }'])
def test_a_story_is_found(reply):
    for story in (HINDI, HINDI.replace('। ', '।\n\n', 1)):  # with raw line breaks inside a JSON string
        assert replies.stories_in(reply % story, 'json') == [('', story)]


def test_a_story_in_paragraphs_is_found():
    assert replies.stories_in('{"story": ["%s", "सब सो गए।"]}' % HINDI, 'json') == [('', f'{HINDI}\n\nसब सो गए।')]


@pytest.mark.parametrize('language, text, says', [
    ('hindi', HINDI, ''), ('hindi', HINDI + ' बिल्ली ने "mew" कहा।', ''), ('marathi', MARATHI, ''), ('bangla', BANGLA, ''),
    ('english', ENGLISH, ''), ('french', FRENCH, ''), ('french', 'Le chat miaula : « Encore ! »', ''),
    ('hindi', 'Radha gave milk to the cat.', 'not in devanagari'), ('marathi', BANGLA, 'not in devanagari'),
    ('bangla', HINDI, 'not in bengali'), ('bangla', 'Radha gave milk to the cat.', 'not in bengali'),
    ('english', HINDI, 'not in latin'), ('hindi', HINDI + ' **अंत**', 'markup'),
    ('hindi', 'यह रही कहानी। ' + HINDI, 'refusal or meta'), ('french', 'Voici une histoire. Le chat dort.', 'refusal'),
    ('hindi', HINDI[:-1] + ' और', 'no end'), ('hindi', HINDI + '\ufffd', 'broken characters'),
    ('hindi', HINDI.replace('राधा', '\ud83d'), 'broken characters')])
def test_what_passes_in_each_language(language, text, says):
    if says:
        with pytest.raises(chat.Rejected, match=says):
            replies.check(cleaner(language)(text), 3, 600, True)
    else:
        assert replies.check(cleaner(language)(text), 3, 600, True) == text


def test_find_json_survives_anything():
    for text in ['', '{', '{' * 5000, '{"a":' * 5000, '[' * 5000, '{"story": }', '{"story"', 'null', '"story"',
                 '{"story": {"story": 1}}' * 3, '\\', '{"stor\\u0079": 1}']:
        started = time.process_time()
        found = replies.find_json(text, 'story')
        assert found is None or 'story' in found
        assert time.process_time() - started < 2
    rng = random.Random(1)
    whole = '```json\n{"title": "a, }", "story": "He said {no}, \\"yes\\"…", "n": [1, 2,],}\n```'
    assert replies.find_json(whole, 'story')['n'] == [1, 2]
    for _ in range(300):
        cut = rng.randrange(len(whole))
        inserted = rng.choice(['', '{', '}', '"', '\\', ','])
        replies.find_json(whole[:cut] + inserted + whole[cut + rng.randrange(2):], 'story')


def test_near_duplicates():
    rng = random.Random(1)
    words = (PROJECT / 'data/english/nouns.txt').read_text(encoding='utf-8').split()
    stories = [[rng.choice(words) for _ in range(200)] for _ in range(300)]

    def altered(story, n):
        story = list(story)
        for place in rng.sample(range(len(story)), n):
            story[place] = rng.choice(words)
        return ' '.join(story)

    seen = replies.Seen()
    assert all(seen.add(' '.join(story)) == 0 for story in stories)
    assert sum(seen.add(altered(story, 4)) > 0 for story in stories) > 285  # these share some 0.9 of their shingles
    assert sum(seen.add(altered(story, 100)) > 0 for story in stories) < 30  # some 0.06
    assert sum(seen.add(' '.join(story)) == 1 for story in stories) >= 297  # copies


# -----------------------------------------------------------------------------
# generate_data.py with a chat API


def test_replies_become_stories(project, chat_server):
    server = chat_server(faults=0.3, kinds=['latin', 'duplicate', 'near', 'no JSON', 'short', 'unended', '500'])
    out = project.run(*ASK, f'--base_url={server.url}', '--total=200', '--max_tries=2')
    rows = project.jsonl('out/stories.jsonl')
    failed = project.jsonl('out/failed.jsonl')
    assert sorted(row['id'] for row in rows + failed) == list(range(200))
    for reason in ('not in devanagari script', 'duplicate', 'near duplicate', 'no JSON with a story', 'too short',
                   'no end of a sentence', 'HTTP 500'):
        assert f' {reason}' in out
    for row in rows:
        assert re.fullmatch(r'[\u0900-\u097f\s!-]+[।!]', row['text']) and row['complexity'] == '2+'
    assert len({row['text'] for row in rows}) == len(rows)
    assert sum(row['missing'] != [] for row in rows) <= 2  # only a duplicate's original and one near copy


def test_a_dry_run_sends_one_prompt_and_writes_nothing(project, chat_server):
    server = chat_server()
    text = project.run(*ASK, f'--base_url={server.url}', '--dry_run=3')
    assert text.count('Write a short story in Hindi') == 3 and 'passes, with all seed words' in text
    assert server.counts()['requests'] == 1 and not (project.path / 'out').exists()


@pytest.mark.slow
@pytest.mark.parametrize('language, text', [
    ('marathi', MARATHI), ('bangla', BANGLA), ('english', ENGLISH), ('french', FRENCH)], ids=lambda text: text[:7])
def test_the_script_is_that_of_the_word_lists(project, chat_server, language, text):
    server = chat_server(reply=json.dumps({'story': text}, ensure_ascii=False))
    command = ('generate_data.py', f'config/generate_{language}.py', f'--base_url={server.url}')
    assert '--- passes' in project.run(*command, '--dry_run=1', '--min_words=3')


@pytest.mark.slow
def test_another_language_is_a_folder(project, chat_server):
    folder = project.path / 'data' / 'greek'
    folder.mkdir()
    for kind in ('nouns', 'verbs', 'adjectives', 'features'):
        (folder / f'{kind}.txt').write_text('γάτα\nσκύλος\n', encoding='utf-8')
    command = (*ASK[:2], '--language=greek', '--dry_run=1', '--min_words=3', '--total=4')
    server = chat_server(reply=json.dumps({'story': 'Η γάτα ήπιε γάλα και κοιμήθηκε.'}))
    text = project.run(*command, f'--base_url={server.url}')
    assert 'Write a short story in Greek' in text and '--- passes' in text
    server = chat_server(reply=json.dumps({'story': HINDI}))
    assert 'not in greek script' in project.run(*command, f'--base_url={server.url}')


@pytest.mark.slow
def test_news_ten_a_reply(project, chat_server):
    rng = random.Random(3)
    nouns = re.findall(r'^[a-z]+\b', (project.path / 'data/english/nouns.txt').read_text(encoding='utf-8'), flags=re.M)
    text = [' '.join(rng.choice(nouns) for _ in range(30)) for _ in range(9)]
    server = chat_server(reply='\n'.join([
        'Here are ten:', f'<h1>Good one</h1><p>{text[0]}.</p>', f'<H1 class="x">Good two</H1>\n<p>{text[1]}.',
        f'<h1>Good &amp; three<p>{text[2]}.</p></h1>', '<h1>No text</h1>', f'<h1></h1><p>{text[3]}.</p>',
        f'<h1>A name in it</h1><p>{text[4]} in Paris {text[5]}.</p>',
        f'<h1>Good four</h1><p><b>{text[6]}</b>.</p><p>I {text[7]}.</p>', f'<h1>No end</h1><p>{text[8]}</p>']))
    command = ('generate_data.py', 'config/generate_news.py', f'--base_url={server.url}', '--model=tiny',
               '--out=out/stories.jsonl', '--min_words=10', '--max_tries=1', '--num_workers=1')
    out = project.run(*command, '--total=1')
    rows = project.jsonl('out/stories.jsonl')
    headlines = ['Good one', 'Good two', 'Good & three', 'Good four']
    assert [row['text'].split('</h> ')[0] for row in rows] == headlines and [row['id'] for row in rows] == [0, 1, 2, 3]
    assert all('<' not in row['text'].replace('</h>', '') for row in rows)
    assert [row['completion_tokens'] for row in rows] == [300, 0, 0, 0] and len(rows[0]['group'].split(', ')) == 4
    assert '4 stories added' in out and '2 parts of replies left out' in out  # a name, no end
    assert '0 stories added' in project.run(*command, '--total=2')
    assert [(row['id'], row['reason']) for row in project.jsonl('out/failed.jsonl')] == [(1, 'duplicate')]

    # a batch whose run is killed is fetched by the next one: its rows have ids of their own, ten a prompt
    server = chat_server(hold_batches=True, reply=f'<h1>Good one</h1><p>{text[0]}.</p>')
    command = (*command, f'--base_url={server.url}', '--total=9', '--batch=True')
    process = project.start(*command)
    while not server.counts().get('polls'):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.kill()
    process.communicate()
    server.get('/release')
    project.run(*command)
    assert server.counts()['batches'] == 1 and server.counts()['batch good'] == 7
    assert sorted(row['id'] for row in project.jsonl('out/failed.jsonl')) == list(range(1, 9))


@pytest.mark.slow
def test_push(project, server):
    hub = server('hub_server.py')
    command = ('generate_data.py', '--total=30', '--out=out/stories.jsonl', '--push=me/tales')
    env = {'HF_ENDPOINT': hub.url, 'HF_TOKEN': 'hf_test', 'HF_HUB_OFFLINE': '0'}
    project.run(*command, **env)
    found = hub.get('/')
    assert found['repos'][0]['name'] == 'tales' and found['repos'][0]['type'] == 'dataset'
    assert found['files']['stories.jsonl'] == (project.path / 'out/stories.jsonl').read_text(encoding='utf-8')
    card = found['files']['README.md']
    assert card.startswith('---\nlanguage: hi\n') and '30 short texts in Hindi' in card
    line = project.refuses(*command, **env | {'HF_TOKEN': 'hf_wrong'})
    assert 'me/tales was not uploaded' in line and 'hf_wrong' not in line
    assert 'was not uploaded' in project.refuses(*command, **env | {'HF_ENDPOINT': 'http://127.0.0.1:9'})
