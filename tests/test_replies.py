"""replies.py, and generate_data.py with a chat API: which replies become stories."""

import itertools
import json
import os
import random
import re
import subprocess
import sys
import time
import unicodedata

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
    '{"story": "%s"}', '{"n": [1, 2,], "story": "%s",}',
    '```json\n{"story": "%s"}\n```', 'लीजिए:\n{"story": "%s"}\nशुभ दिन!', '{"story": "%s",}',
    '{"title": "दूध", "story": "%s"}', '{\n  "story":\n  "%s"\n}', '{ {"story": "%s"} }'])
def test_a_story_is_found(reply):
    for story in (HINDI, HINDI.replace('। ', '।\n\n', 1)):  # with raw line breaks inside a JSON string
        assert replies.stories_in(reply % story, 'json') == [('', story)]


@pytest.mark.parametrize('reply, story', [
    ('Draft: {"story": "A"}. Better: {"story": "B"}', 'B'), ('[{"story": "A"}, {"story": "B"}]', 'B'),
    ('{"drafts": [{"story": "A"}], "final": {"story": "B"}}', 'B'),
    ('{"story": "B", "title": {"story": "A"}} {"words": 2}', 'B'), ('{"story": "A"} {"story": "B', None),
    ('Draft: {"story": "A"}\nNow a better one.', None), ('Final draft: {"story": "B"}', 'B'),
    ('{"final": {"story": "B"}, "rejected_draft": {"story": "A"}}', None),
    ('{"story": "A"}\nNow let me', None), ('{"story": "A"}\nCheck word count:', None),
    ('{"story": "A"} Hmm, this is too short. I add a fox.', None), ('A first attempt: {"story": "A"}', None),
    ('It could be something like {"story": "A"}', None), ('We write\n{"story": "A"}\nand now the second half of', None),
    ('{"story": "B"}\nLet me know if you want another one!', 'B'), ('Here it is: {"story": "B"} Enjoy', 'B'),
    ('{"story": "A"} {"story": 3}', None), ('{' * 300 + '{"story": "A"} {"story": "B"}', 'B')])
def test_the_last_story_of_a_reply_counts(reply, story):
    if story:
        assert replies.stories_in(reply, 'json') == [('', story)]
    else:
        with pytest.raises(chat.Rejected, match='no JSON with a story'):
            replies.stories_in(reply, 'json')


@pytest.mark.parametrize('language, text, says', [
    ('hindi', HINDI, ''), ('hindi', HINDI + ' बिल्ली ने "mew" कहा।', ''), ('marathi', MARATHI, ''),
    ('bangla', BANGLA, ''), ('english', ENGLISH, ''), ('french', FRENCH, ''),
    ('french', 'Le chat miaula : « Encore ! »', ''),
    ('hindi', 'Radha gave milk to the cat.', 'not in devanagari'), ('marathi', BANGLA, 'not in devanagari'),
    ('bangla', HINDI, 'not in bengali'), ('bangla', 'Radha gave milk to the cat.', 'not in bengali'),
    ('english', ENGLISH + '\n\nWords used: cat, milk.', 'a label'),
    ('english', 'Final version: ' + ENGLISH, 'a label'),
    ('hindi', HINDI + '\n\nसंदेश: बाँटो।', 'a label'), ('french', FRENCH + '\n\nMots utilisés : chat.', 'a label'),
    ('bangla', BANGLA + '\nনোট: সহজ শব্দ।', 'a label'), ('marathi', MARATHI + '\n\nसंदेश: वाटा.', 'a label'),
    ('english', ENGLISH + '\nShe said: “Come!”\nIt was 5:30 by then.', ''),
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


def problem(function, text):
    """Why a function rejects a text; '' if it does not."""
    try:
        function(text)
    except chat.Rejected as e:
        return str(e)
    return ''


# what a model adds to a story: before it, after it
TALK = {
    ENGLISH: (['I’m sorry, but I can’t help with that. ', 'Sure! ', 'Here is the story: ',
               "Here's a short story.\n\n", 'As an AI, I write: '],
              [' The End.', ' Moral: Be kind.', '\n\nMoral of the story: be kind.', ' (Word count: 180).',
               ' I hope you like this story.']),
    FRENCH: (['Bien sûr ! ', 'Voici une histoire : ', 'Je suis désolé, mais je ne peux pas. '],
             ['\n\nFin.', ' Morale : il faut partager.', '\n\nLa morale de cette histoire est simple.',
              ' J’espère que cette histoire vous plaira.']),
    HINDI: (['यह रही कहानी। ', 'ज़रूर! यह रही आपकी कहानी: ', 'क्षमा करें, मैं यह नहीं कर सकती। '],
            [' सीख: बाँटना अच्छा है।', ' सीख : बाँटो।', '\n\nइस कहानी से हमें सीख मिलती है कि बाँटना अच्छा है।', ' समाप्त।',
             ' शब्द संख्या 180।']),
    MARATHI: (['ही घ्या गोष्ट: ', 'सादर आहे गोष्ट. ', 'नक्कीच! '],
              [' तात्पर्य: वाटून खावे.', '\n\nबोध: वाटून खावे.', ' या गोष्टीतून आपण वाटायला शिकतो.', ' समाप्त.']),
    BANGLA: (['এখানে একটি গল্প দেওয়া হলো। ', 'অবশ্যই! ', 'এই নিন আপনার গল্প: '],
             [' নীতিকথা: ভাগ করে খাও।', '\n\nএই গল্প থেকে আমরা শিখি ভাগ করতে।', ' শিক্ষা: ভাগ করো।', ' সমাপ্ত।'])}
# what a story may contain
SPEECH = {
    ENGLISH: ['“Here is a story,” said Grandma.', 'I hope you like it here, she wrote.', '“Sure!” said Mia.',
              'It was the end.', '“I can’t write this!” he cried.', 'At the end of the day, they slept.'],
    FRENCH: ['« Voici une histoire », dit mamie.', 'Il était désolé.', 'Il compta le nombre de mots.',
             'Ce fut la fin.'],
    HINDI: ['“यहाँ एक कहानी है,” दादी बोलीं।', 'उसने किताब का शीर्षक पढ़ा।', 'उसने बहुत कुछ सीखा।', 'खेल समाप्त हुआ।'],
    MARATHI: ['“इथे एक गोष्ट आहे,” आजी म्हणाली.', 'तिने शीर्षक वाचले.', 'खेळ समाप्त झाला.'],
    BANGLA: ['“এখানে একটি গল্প আছে,” দিদা বললেন।', 'সে বইয়ের শিরোনাম পড়ল।', 'খেলা শেষ।']}
NAMES = {HINDI: 'hindi', MARATHI: 'marathi', BANGLA: 'bangla', ENGLISH: 'english', FRENCH: 'french'}


@pytest.mark.parametrize('story', NAMES, ids=NAMES.get)
def test_talk_about_the_task_is_rejected_and_speech_in_a_story_is_not(story):
    clean = cleaner(NAMES[story])
    before, after = TALK[story]
    for text in [*(talk + story for talk in before), *(story + talk for talk in after)]:
        assert problem(clean, text) == 'refusal or meta text', text
    for sentence in SPEECH[story]:
        for text in (f'{sentence} {story}', f'{story} {sentence}', f'{story} {sentence} {story}'):
            assert problem(clean, text) == '', text


def test_a_title_is_cut_off():
    for story, title in [
            (ENGLISH, 'The Cat, the Milk and Mia'), (ENGLISH, 'Title: “The Kind Girl”'), (ENGLISH, '**The Kind Girl**'),
            (HINDI, 'राधा और बिल्ली'), (HINDI, 'शीर्षक: राधा और बिल्ली'), (BANGLA, 'রাধার বিড়াল'),
            (FRENCH, 'Léa et le chat'),
            (ENGLISH, 'The Wonderful and Very Long Adventure of a Little Cat Who Wanted to Drink Milk')]:
        for gap in ('\n', '\n\n'):
            assert cleaner(NAMES[story])(title + gap + story) == story
    for text in ['“Come here!”\n' + ENGLISH, 'He said:\n\n“' + ENGLISH + '”', 'One day\na cat came.\n\n' + ENGLISH,
                 'The moon is high\nThe stars are bright\nAnd all the world\nIs full of light.']:
        assert cleaner('english')(text) == text


def test_invisible_characters_are_removed_and_broken_ones_rejected():
    clean = cleaner('hindi')
    for char in '\u200b\ufeff\u2060\u00ad\u200e':
        assert clean(char + HINDI[:4] + char + HINDI[4:] + char) == HINDI
    for joiner in '\u200c\u200d':
        assert clean(f'{HINDI}{joiner}') == HINDI
        assert f'क्{joiner}ष' in clean(f'क्{joiner}ष {HINDI}')
    assert 'হঠাত্\u200d ' in cleaner('bangla')(f'হঠাত্\u200d {BANGLA}')  # an old way to write ৎ
    for char in '\x00\x0b\x7f\x85\x9f\ue000\ufffd\uffff':
        assert problem(clean, HINDI[:9] + char + HINDI[9:]) == 'broken characters', repr(char)
    assert problem(clean, f'{HINDI}\n\n---\n\n{HINDI}') == 'markup'


def test_entities_of_html_are_no_text():
    clean = cleaner('english')
    assert clean('Tom &amp; Mia&#39;s cat said &quot;Mew&quot; &#x26; slept.') == 'Tom & Mia\'s cat said "Mew" & slept.'
    assert clean('Salt & pepper; that is all.') == 'Salt & pepper; that is all.'
    for text in ('&amp;quot;Mew&amp;quot; said the cat.', '&lt;b&gt;Mew&lt;/b&gt; said he.', 'Mew &bogus; said he.'):
        assert problem(clean, text) == 'markup'


def test_a_bar_is_a_danda_in_indic_scripts():
    for story in (HINDI, BANGLA):
        clean = cleaner(NAMES[story])
        for bar in ('|', ' |', ' ।'):
            assert clean(story.replace('।', bar)) == story
        assert clean(f'{story[:-1]}||') == f'{story[:-1]}॥'
        assert problem(clean, f'| {story} |') == 'markup'
    assert problem(cleaner('english'), ENGLISH.replace('.', ' |')) == 'markup'


@pytest.mark.parametrize('text, says', [
    ('She said, “We waited long.” The crowd cheered.', ''), ('She said, "We waited long." The crowd cheered.', ''),
    ('The crowd said “It is ours” and left.', ''), ('They waited (for hours). Then I came.', ''),
    ('“Is it safe?” she asked. “Yes.” “Then I’m going.”', ''), ('The rule is simple: Nobody enters.', ''),
    ('He paused… Then he left.', ''), ('He came to Paris.', 'proper noun'),
    ('She said, “We like Paris.”', 'proper noun'),
    ('The group (Unesco) paid.', 'proper noun'), ('The ship "Hope" sank.', 'proper noun'), ('NATO met.', 'proper noun'),
    ('Mr. Smith came.', 'proper noun'), ('In mid-July it opened.', 'proper noun'),
    ('U.S. farmers met.', 'proper noun')])
def test_names_in_news(text, says):
    text = cleaner('news')('The mayor opened the bridge on a windy morning. ' + text)
    assert problem(lambda text: replies.check(text, 3, 600, False), text) == says
    assert replies.check(text, 3, 600, True) == text


@pytest.mark.parametrize('headline, says', [
    ('Mayor opens bridge', ''), ('“We won,” says coach', ''), ('Mayor visits Paris', 'proper noun'),
    ('Fire in London', 'proper noun'), ('Bridge', 'too short')])
def test_headlines(headline, says):
    assert problem(lambda text: replies.check(text, 2, 30, False, is_headline=True), headline) == says


def bulletin(n, end='</p>'):
    return f'<h1>Bulletin {"more " * n}ends well</h1><p>The mayor opened the bridge.' + end


@pytest.mark.parametrize('reply, kept', [
    (bulletin(1) + '\n2. ' + bulletin(2) + '\n\n3) ' + bulletin(3), [1, 2, 3]),
    ('```html\n' + bulletin(1) + '\n' + bulletin(2) + '\n```', [1, 2]),
    (bulletin(1) + bulletin(2) + '\nI hope that these will do. Shall I write more?', [1, 2]),
    (bulletin(1) + bulletin(2, ''), [1]),
    (bulletin(1) + bulletin(2, '') + '\n3. ' + bulletin(3), [1, 3]), (bulletin(1) + bulletin(2) + '<p>and the', [1]),
    (bulletin(1) + '<h1>Half a', [1])])
def test_bulletins_of_a_reply(reply, kept):
    pairs = replies.stories_in(reply, 'html')
    assert [headline.count('more') for headline, _ in pairs] == kept
    assert {text for _, text in pairs} == {'The mayor opened the bridge.'}


@pytest.mark.parametrize('kind, word, text, found', [
    ('verb', 'मदद करना', 'उसने माँ की मदद की।', True), ('verb', 'कूदना', 'बंदर कूदा।', True),
    ('verb', 'कूदना', 'बंदर सोया।', False),
    ('noun', 'कान', 'वह मकान में था।', False), ('noun', 'घोड़ा', 'घोड़ों ने घास खाई।', True),
    ('noun', 'cat', 'The caterpillar ate.', False), ('noun', 'cat', 'Two cats ate.', True),
    ('adjective', 'heart-shaped', 'A heart shaped box.', True), ('verb', 'मदत करणे', 'तिने मदत केली.', True),
    ('noun', 'घर', 'ती घराच्या मागे गेली.', True), ('verb', 'রান্না করা', 'মা রান্না করলেন।', True),
    ('noun', 'কুকুর', 'কুকুরটি দৌড়াল।', True),
    ('verb', 'দৌড়ানো', 'কুকুরটি দৌড়াল।', True), ('verb', 'se cacher', 'Il s’est caché.', True),
    ('adjective', 'léger', 'Une plume légère.', True), ('noun', 'chat', 'Le château brille.', False),
    ('noun', 'arc-en-ciel', 'Un arc-en-ciel !', True), ('group', 'storm, roof, wind', 'The roofs were new.', True),
    ('group', 'storm, roof, wind', 'The cows were new.', False)])
def test_which_seed_words_are_missing(kind, word, text, found):
    word, text = unicodedata.normalize('NFC', word), unicodedata.normalize('NFC', text)
    assert replies.missing({kind: {'word': word, 'tags': []}}, text) == ([] if found else [kind])


def rows_of(language, kind):
    """{word: its row} of a word list, as generate_data.py reads it."""
    lines = (PROJECT / f'data/{language}/{kind}s.txt').read_text(encoding='utf-8').splitlines()
    lines = [line.split('\t') for line in lines if line and not line.startswith('#')]
    return {line[0]: dict(zip(lines[0], line)) | {'tags': []} for line in lines[1:]}


def test_irregular_verbs_of_french():
    rows = rows_of('french', 'verb')
    for verb, text in [('prendre', 'Il prit son sac.'), ('aller', 'Elle va à la mer.'), ('voir', 'Il a vu un loup.'),
                       ('se souvenir', 'Elle se souvint de lui.'), ('faire', 'Il fit un nid.')]:
        assert replies.missing({'verb': rows[verb]}, text) == []


HINDI_VERB_ENDINGS = '(?:ने|नी|ता|ते|ती|कर|ो|ओ|ा|या|ी|ई|े|ए|ीं|ईं|ूँ|ऊँ|ूँगा|ूँगी|ेगा|एगा|ेगी|एगी|ेंगे|एँगे)?'


@pytest.mark.slow
@pytest.mark.parametrize('language', ['hindi', 'english'])
def test_no_seed_word_of_the_grammar_is_missing(project, language):
    project.run('generate_data.py', f'--language={language}', '--total=1000', '--out=s.jsonl')
    stories = project.jsonl('s.jsonl')
    for kind in ('noun', 'verb', 'adjective'):
        rows = rows_of(language, f'plot_{kind}')
        assert [story['id'] for story in stories if replies.missing({kind: rows[story[kind]]}, story['text'])] == []
        n_found = 0  # words of the next story that are found here, though no form of them is a whole word here
        for story, other in itertools.pairwise(stories):
            row = rows[other[kind]]
            forms = {form for column, form in row.items() if column != 'tags'}
            endings = HINDI_VERB_ENDINGS if (language, kind) == ('hindi', 'verb') else ''
            is_here = any(re.search(rf'(?<!{replies.LETTER}){re.escape(form)}{endings}(?!{replies.LETTER})',
                                    story['text'], re.I) for form in forms)
            n_found += not is_here and not replies.missing({kind: row}, story['text'])
        assert n_found < 60


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
    assert not any(seen.add(' '.join(story)) for story in stories)
    assert sum(seen.add(altered(story, 4)) for story in stories) > 285  # these share some 0.9 of their shingles
    assert sum(seen.add(altered(story, 100)) for story in stories) < 30  # some 0.06
    assert sum(seen.add(' '.join(story)) for story in stories) >= 297  # copies


def test_near_duplicates_are_the_same_in_every_process():
    code = """
import replies
seen = replies.Seen()
print([seen.add(' '.join(str(n + (n == i)) for n in range(40))) for i in range(40)])
"""
    outputs = set()
    for hash_seed in '12':
        env = os.environ | {'PYTHONHASHSEED': hash_seed, 'PYTHONPATH': str(PROJECT), 'PYTHONIOENCODING': 'utf-8'}
        outputs.add(subprocess.check_output([sys.executable, '-c', code], env=env, text=True))
    output = outputs.pop()
    assert not outputs and 'True' in output and 'False' in output


# -----------------------------------------------------------------------------
# generate_data.py with a chat API


def test_replies_become_stories(project, chat_server):
    server = chat_server(faults=0.3, kinds=['latin', 'duplicate', 'near', 'no JSON', 'short', 'unended', '500'])
    out = project.run(*ASK, f'--base_url={server.url}', '--total=200', '--max_tries=2', '--max_failed=1')
    rows = project.jsonl('out/stories.jsonl')
    failed = project.jsonl('out/failed.jsonl')
    assert sorted(row['id'] for row in rows + failed) == list(range(200))
    for reason in ('not in devanagari script', 'duplicate', 'no JSON with a story', 'too short', 'no end of a sentence',
                   'HTTP 500'):
        assert f' {reason}' in out
    for row in rows:
        assert re.fullmatch(r'[\u0900-\u097f\s!-]+[।!]', row['text']) and row['complexity'] == '2+'
    assert len({row['text'] for row in rows}) == len(rows)
    assert sum(row['missing'] != [] for row in rows) <= 2  # only a duplicate's original and one near copy


def test_a_dry_run_sends_one_prompt_and_writes_nothing(project, chat_server):
    server = chat_server()
    text = project.run(*ASK, f'--base_url={server.url}', '--dry_run=3')
    assert text.count('Write a short story in Hindi') == 3 and 'passes; missing seed words: none' in text
    assert server.counts()['requests'] == 1 and not (project.path / 'out').exists()


def test_a_draft_in_the_reasoning_is_no_story(project, chat_server):
    draft, final = (json.dumps({'story': f'{word} {HINDI}'}, ensure_ascii=False) for word in ('मसौदा', '{story}'))
    server = chat_server(reply=[
        f'<think>{draft}</think>{final}', f'{draft}</think>{final}', f'analysis{draft}assistantfinal{final}',
        f'{draft} is dull. {final}', f'[THINK]{draft}[/THINK]\n{final}',
        [{'type': 'thinking', 'thinking': [{'type': 'text', 'text': draft}]}, {'type': 'text', 'text': final}]])
    project.run(*ASK, f'--base_url={server.url}', '--total=40')
    rows = project.jsonl('out/stories.jsonl')
    assert len(rows) == 40 and not any('मसौदा' in row['text'] for row in rows)


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
        'Here are ten:', f'<h1>Good one</h1><p>{text[0]}.</p>', f'<h1 class="x">Good two</h1>\n<p>{text[1]}.</p>',
        f'<h1>Good &amp; three<p>{text[2]}.</p></h1>', '<h1>No text</h1>', f'<h1></h1><p>{text[3]}.</p>',
        f'<h1>A name in it</h1><p>{text[4]} in Paris {text[5]}.</p>',
        f'<h1>Good four</h1><p><b>{text[6]}</b>.</p><p>I {text[7]}.</p>', f'<h1>No end</h1><p>{text[8]}</p>']))
    command = ('generate_data.py', 'config/generate_news.py', f'--base_url={server.url}', '--model=tiny',
               '--out=out/stories.jsonl', '--min_words=10', '--max_tries=1', '--num_workers=1', '--max_failed=1')
    out = project.run(*command, '--total=1')
    rows = project.jsonl('out/stories.jsonl')
    headlines = ['Good one', 'Good two', 'Good & three', 'Good four']
    assert [row['text'].split('</h> ')[0] for row in rows] == headlines and [row['id'] for row in rows] == [0, 1, 2, 3]
    assert all('<' not in row['text'].replace('</h>', '') for row in rows)
    assert [row['completion_tokens'] for row in rows] == [300, 0, 0, 0] and len(rows[0]['group'].split(', ')) == 4
    assert '4 stories added' in out
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
    assert card.startswith('---\nlanguage: "hi"\n') and '30 short texts' in card
    line = project.refuses(*command, **env | {'HF_TOKEN': 'hf_wrong'})
    assert 'me/tales was not uploaded' in line and 'hf_wrong' not in line
    assert 'was not uploaded' in project.refuses(*command, **env | {'HF_ENDPOINT': 'http://127.0.0.1:9'})
