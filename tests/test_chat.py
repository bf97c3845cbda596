"""chat.py, collect.py, batches.py and generate_data.py against a chat API on loopback that misbehaves: nothing lost, nothing twice, nothing leaked."""

import collections
import email.utils
import json
import random
import re
import signal
import time

import pytest
from conftest import PROJECT, cleaner

import chat
import collect
import jsonl
import replies

KEY = 'sk-secret-0123456789'
ASK = ('generate_data.py', 'config/generate_hindi.py', '--out=out/stories.jsonl', '--model=tiny')


def ids_in(project, name, folder='out'):
    path = project.path / folder / name
    return [row['id'] for row in project.jsonl(f'{folder}/{name}')] if path.exists() else []


def everything(project):
    """All that a run wrote, as one text."""
    return ' '.join(path.read_text(encoding='utf-8', errors='replace') for path in project.path.rglob('*') if path.is_file() and path.suffix != '.pyc')


def told(process):
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


# -----------------------------------------------------------------------------
# every id once, whatever happens

def test_faults_of_all_kinds_and_kills(project, chat_server):
    server = chat_server(faults=0.3, latency=0.05, stall=3)
    command = (*ASK, f'--base_url={server.url}', '--total=400', '--num_workers=32', '--timeout=1', '--max_tries=3')
    for _ in range(3):
        process = project.start(*command)
        time.sleep(1.6)
        process.kill()
        process.communicate()
    done = len(ids_in(project, 'stories.jsonl'))
    text = project.run(*command)
    stories, failed = ids_in(project, 'stories.jsonl'), ids_in(project, 'failed.jsonl')
    assert sorted(stories + failed) == list(range(400))
    assert 0 < done < 400 and f'{len(stories) - done:,} stories added' in text and 'rejected: ' in text and 'tried again after: ' in text
    rows = project.jsonl('out/stories.jsonl')
    for row in rows:
        assert re.fullmatch(r'[\u0900-\u097f\s!-]+[।!]', row['text']), row
        assert row['model'] == 'tiny' and row['complexity'] == '2+'
        assert row['completion_tokens'] % 300 == 0 and row['completion_tokens'] >= 300  # of all its tries
    assert len({row['text'] for row in rows}) == len(rows)
    assert sum(row['missing'] != [] for row in rows) <= 2  # only the one that the duplicates are of, and a near copy, hold no seed words
    for row in project.jsonl('out/failed.jsonl') if failed else []:
        assert row['out'] == 'stories.jsonl' and row['reason'] and isinstance(row['reply'], str)
    counts = server.counts()
    assert all(counts[kind] for kind in ('429', '500', 'stall', 'cut', 'reset', 'null', 'broken JSON', 'html', 'latin', 'near'))


def test_two_shards_side_by_side(project, chat_server):
    server = chat_server(latency=0.02, faults=0.2, stall=0.1)
    commands = [(*ASK, f'--base_url={server.url}', '--total=101', f'--shard={part}/2', f'--out=out/{part}.jsonl', '--max_tries=2') for part in (1, 2)]
    for process in [project.start(*command) for command in commands]:
        assert told(process)[0] == 0
    failed = ids_in(project, 'failed.jsonl')
    assert sorted(ids_in(project, '1.jsonl') + ids_in(project, '2.jsonl') + failed) == list(range(101))
    assert {row['out'] for row in project.jsonl('out/failed.jsonl')} <= {'1.jsonl', '2.jsonl'} if failed else True
    before = everything(project)
    project.run(*commands[0])  # those of failed.jsonl are done with
    assert everything(project) == before


REASONS = {'no choices': 'no choices', 'null': 'empty reply', 'broken JSON': 'broken reply', 'html': 'broken reply', 'latin': 'not in devanagari script',
           'duplicate': 'duplicate', 'near': 'near duplicate', 'refusal': 'refused', 'no JSON': 'no JSON with a story', 'length': 'cut off at max_tokens',
           'short': 'too short', 'unended': 'no end of a sentence'}


def test_what_is_given_up_and_why(project, chat_server):
    server = chat_server(faults=0.7, kinds=list(REASONS))
    project.run(*ASK, f'--base_url={server.url}', '--total=400', '--max_tries=1', '--num_workers=20')
    failed, counts, expected = project.jsonl('out/failed.jsonl'), server.counts(), collections.Counter()
    for kind, reason in REASONS.items():
        expected[reason] += counts[kind]
    found = collections.Counter(row['reason'] for row in failed)
    copies = {'duplicate', 'near duplicate'}  # a near copy may be altered back, the first one of all is no copy
    assert min(expected.values()) > 10 and all(found[reason] == expected[reason] for reason in expected.keys() - copies)
    assert min(found[reason] for reason in copies) > 5 and 0 < sum(expected[reason] - found[reason] for reason in copies) < 6
    assert sorted(ids_in(project, 'stories.jsonl') + [row['id'] for row in failed]) == list(range(400))


@pytest.mark.parametrize('kind, reason', [('500', 'HTTP 500'), ('cut', 'connection cut'), ('stall', 'timeout')])
def test_what_is_given_up_for_no_answer(project, chat_server, kind, reason):
    server = chat_server(faults=0.6, kinds=[kind], stall=1)
    project.run(*ASK, f'--base_url={server.url}', '--total=40', '--max_tries=1', '--timeout=0.5', '--num_workers=20')
    failed = project.jsonl('out/failed.jsonl')
    assert {row['reason'] for row in failed} == {reason} and len(failed) > 5
    assert sorted(ids_in(project, 'stories.jsonl') + [row['id'] for row in failed]) == list(range(40))


def test_ctrl_c_finishes_what_is_in_flight(project, chat_server):
    server = chat_server(latency=1)
    process = project.start(*ASK, f'--base_url={server.url}', '--total=1000', '--num_workers=20')
    time.sleep(2.5)
    process.send_signal(signal.SIGINT)
    status, out, err = told(process)
    assert status == 0 and re.search(r'finishing the \d+ requests in flight', err) and 'the same command goes on' in out and 'Traceback' not in err
    assert len(ids_in(project, 'stories.jsonl')) == server.counts()['good'] == server.counts()['requests']


def test_ctrl_c_twice_stops_at_once(project, chat_server):
    server = chat_server(latency=60)
    process = project.start(*ASK, f'--base_url={server.url}', '--total=1000')
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    status, _, err = told(process)
    assert status and time.monotonic() - started < 3 and 'Traceback' not in err


# -----------------------------------------------------------------------------
# speed

def test_many_workers_are_kept_busy(project, chat_server):
    server = chat_server(latency=0.5)
    text = project.start(*ASK, f'--base_url={server.url}', '--total=1500', '--num_workers=100')
    status, _, err = told(text)
    rate = max(int(n.replace(',', '')) for n in re.findall(r'([\d,]+) stories/min', err))
    assert status == 0 and server.counts()['most in flight'] == 100
    assert rate > 0.75 * 100 / 0.5 * 60  # 0.95 on an idle machine; RESULTS.md


@pytest.mark.parametrize('retry_after', ['', '1'])
def test_a_rate_limit_is_used_and_not_hammered(project, chat_server, retry_after):
    server = chat_server(latency=0.3, rate=30, retry_after=retry_after)
    started = time.monotonic()
    project.run(*ASK, f'--base_url={server.url}', '--total=240', '--num_workers=64')
    seconds, counts = time.monotonic() - started, server.counts()
    assert len(ids_in(project, 'stories.jsonl')) == 240
    assert seconds < 3 * 240 / 30
    assert counts['limited'] < 0.6 * 240


def test_an_outage_costs_no_prompt(project, chat_server):
    server = chat_server(latency=0.05, down=[100, 3])
    text = project.run(*ASK, f'--base_url={server.url}', '--total=600', '--num_workers=8')
    assert 'no connection' in text and server.counts()['down'] > 8
    assert sorted(ids_in(project, 'stories.jsonl')) == list(range(600))


def test_a_prompt_that_is_refused_costs_only_itself(project, chat_server):
    project.run('generate_data.py', 'config/generate_hindi.py', '--provider=grammar', '--template=', '--total=10', '--out=out/grammar.jsonl')
    nouns = [row['noun'] for row in project.jsonl('out/grammar.jsonl')]
    assert nouns.count(nouns[9]) == 1
    for status in (422, 403, 400, 302):
        server = chat_server(poison=[json.dumps(f'"{nouns[9]}"')[1:-1], status])
        command = (*ASK, f'--base_url={server.url}', '--num_workers=4', f'--out=out/{status}/stories.jsonl')
        project.run(*command, '--total=9')
        text = project.run(*command, '--total=10')  # nothing but the one that is refused
        assert sorted(ids_in(project, f'{status}/stories.jsonl')) == list(range(9)) and server.counts()['poison'] == 5
        row, = project.jsonl(f'out/{status}/failed.jsonl')
        assert row['id'] == 9 and f'says {status}: flagged' in row['reason'] and f'5 HTTP {status}' in text


def test_a_prompt_that_always_fails_alone_is_given_up(tmp_path, chat_server, monkeypatch):
    monkeypatch.setattr(chat, 'MAX_WAIT', 0.02)
    server = chat_server(status=500)
    api = chat.connect(base_url=server.url, model='tiny')
    with jsonl.open_append(str(tmp_path / 'a.jsonl')) as f:
        assert collect.collect(api, [7], lambda i: [{'role': 'user', 'content': 'x'}], None, f, total=10, n_done=9, num_workers=1)
    row, = jsonl.read(str(tmp_path / 'failed.jsonl'))
    assert row['id'] == 7 and row['reason'] == 'HTTP 500' and 10 < server.counts()['requests'] < 20


def test_after_an_outage_half_the_requests_go_at_once():
    pace = collect.Pace(64)
    for _ in range(5):
        pace.outage()
    assert pace.limit == 1
    pace.over()
    assert pace.limit == 32


def test_a_trickle_is_no_way_around_the_timeout(project, chat_server):
    server = chat_server(trickle=0.05)
    started = time.monotonic()
    process = project.start(*ASK, f'--base_url={server.url}', '--total=2', '--timeout=1', '--max_tries=1', '--num_workers=2')
    time.sleep(4)
    process.send_signal(signal.SIGINT)
    _, out, err = told(process)
    assert 'timeout' in out and time.monotonic() - started < 20 and 'Traceback' not in err


@pytest.mark.parametrize('models, says', [
    ([{'id': 'tiny'}], ''), ({'data': 'x'}, 'lists no model'), ([], 'lists no model'), ({'data': [{}]}, 'lists no model')])
def test_lists_of_models(project, chat_server, models, says):
    server = chat_server(models=models)
    command = ('generate_data.py', 'config/generate_hindi.py', '--out=out/stories.jsonl', f'--base_url={server.url}', '--total=1')
    if says:
        assert says in project.refuses(*command)
    else:
        project.run(*command)
        assert project.jsonl('out/stories.jsonl')[0]['model'] == 'tiny'


def test_what_a_reply_asks_to_wait():
    soon = email.utils.formatdate(time.time() + 30, usegmt=True)
    for headers, low, high in [({}, 0, 0), ({'Retry-After': '7'}, 7, 7), ({'Retry-After': '0.5'}, 0.5, 0.5), ({'Retry-After': soon}, 28, 31),
                               ({'Retry-After': 'later'}, 0, 0), ({'Retry-After': '-5'}, 0, 0), ({'Retry-After': 'nan'}, 0, 0),
                               ({'x-ratelimit-remaining-requests': '0', 'x-ratelimit-reset-requests': '1m2.5s'}, 62.5, 62.5),
                               ({'x-ratelimit-remaining-tokens': '0', 'x-ratelimit-reset-tokens': '20ms'}, 0.02, 0.02),
                               ({'x-ratelimit-remaining-tokens': '5', 'x-ratelimit-reset-tokens': '20s'}, 0, 0),
                               ({'x-ratelimit-remaining': '0', 'x-ratelimit-reset': '2099-12-01T00:00:00Z'}, 0, 0),
                               ({'x-ratelimit-remaining': '0', 'x-ratelimit-reset': f'{1000 * (time.time() + 9):.0f}'}, 8, 10)]:
        assert low <= chat.seconds_to_wait(headers) <= high, headers
    started = time.process_time()
    assert chat.seconds_to_wait({'x-ratelimit-remaining': '0', 'x-ratelimit-reset': 5000 * '1' + 'x'}) == 0 and time.process_time() - started < 1


# -----------------------------------------------------------------------------
# money and keys

def test_max_cost_counts_all_runs(project, chat_server):
    server = chat_server(latency=0.05)
    command = (*ASK, f'--base_url={server.url}', '--total=1000', '--price_in=1', '--price_out=10', '--max_cost=0.5', '--max_tokens=300')
    text = project.run(*command)  # 100 tokens in and 300 out: $0.0031 a story
    n = len(ids_in(project, 'stories.jsonl'))
    assert 0.45 / 0.0031 < n <= 0.5 / 0.0031 and f'${n * 0.0031:.2f}' in text and 'the same command goes on' in text
    assert '0 stories added' in project.run(*command)
    assert len(ids_in(project, 'stories.jsonl')) == n
    assert 'the same command goes on' not in project.run(*command, '--total=160', '--out=out/all.jsonl')  # one more would be too much, and there is none
    line = project.refuses(*ASK, '--provider=openai', '--max_cost=1', OPENAI_API_KEY=KEY)
    assert 'max_cost needs the price of tiny' in line


def test_what_was_left_unfinished_is_paid_for(project, chat_server):
    server = chat_server(faults=0.5, kinds=['latin'], latency=0.1, rate=40)
    command = (*ASK, f'--base_url={server.url}', '--total=2000', '--num_workers=64', '--price_in=1', '--price_out=10')
    process = project.start(*command)
    time.sleep(4)
    process.send_signal(signal.SIGINT)
    _, out, _ = told(process)
    served = server.counts()['good'] + server.counts()['latin']
    for text in (out, project.run(*command, '--max_cost=0.01')):
        cost = re.search(rf'{served * 100:,} tokens in, {served * 300:,} out: \$([\d.]+)', text)
        assert float(cost[1]) == pytest.approx(served * 0.0031, abs=0.0051)


def test_no_usage_costs_the_most(project, chat_server):
    server = chat_server(usage=None)
    text = project.run(*ASK, f'--base_url={server.url}', '--total=200', '--price_in=0', '--price_out=10', '--max_tokens=1000', '--max_cost=0.5',
                       '--num_workers=4')
    assert len(ids_in(project, 'stories.jsonl')) == 50 and '$0.50' in text and 'the same command goes on' in text


def test_a_mere_word_is_no_key(project, chat_server):
    server = chat_server(key='na', reply='banana')
    project.run(*ASK, f'--base_url={server.url}', '--total=3', '--max_tries=1', CHAT_API_KEY='na')
    assert {row['reply'] for row in project.jsonl('out/failed.jsonl')} == {'banana'}


@pytest.mark.parametrize('status, error, says', [
    (400, 'bad request', '400: bad request'), (401, f'Incorrect API key provided: {KEY}', '401: Incorrect API key provided: ***'), (402, 'no credit', '402'),
    (403, 'forbidden', '403'), (404, 'no such model', "is 'tiny' the name of a model there?"), (429, 'insufficient quota', 'insufficient quota')])
def test_a_provider_that_refuses_ends_the_run(project, chat_server, status, error, says):
    server = chat_server(status=status, error=error)
    process = project.start(*ASK, f'--base_url={server.url}', '--total=1000', CHAT_API_KEY=KEY)
    code, out, err = told(process)
    assert code == 1 and 'Traceback' not in err and says in err.rstrip().split('\n')[-1]
    assert server.counts()['requests'] <= 32 and ids_in(project, 'stories.jsonl') == ids_in(project, 'failed.jsonl') == []
    assert KEY not in out + err + everything(project)


@pytest.mark.parametrize('kinds', [['500'], ['html', 'null', 'broken JSON'], ['stall', 'cut', 'reset'], ['no JSON', 'refusal', 'error in 200']])
def test_the_key_is_nowhere(project, chat_server, kinds):
    server = chat_server(key=KEY, faults=0.7, kinds=kinds, stall=1, usage=[1, 1])
    process = project.start(*ASK, f'--base_url={server.url}', '--total=20', '--timeout=0.5', '--max_tries=2', CHAT_API_KEY=KEY)
    _, out, err = told(process)
    assert server.counts()['requests'] >= 20 and KEY not in out + err + everything(project)


def test_a_key_that_a_reply_repeats_is_blotted_out(project, chat_server):
    echo = chat_server(reply=f'Your key is {KEY}.')
    process = project.start(*ASK, f'--base_url={echo.url}', '--total=3', '--out=out/echo.jsonl', '--max_tries=1', CHAT_API_KEY=KEY)
    _, out, err = told(process)
    assert 'Your key is ***.' in everything(project) and KEY not in out + err + everything(project)


@pytest.mark.parametrize('options, env, says', [
    (['--provider=mistral'], {'MISTRAL_API_KEY': ''}, 'MISTRAL_API_KEY is not set; export MISTRAL_API_KEY=… with your key of mistral, or write stories'
                                                      ' without one: --provider=grammar'),
    (['--provider=openai'], {'OPENAI_API_KEY': f'{KEY} {KEY}'}, 'OPENAI_API_KEY holds something that is not a key'),
    (['--base_url=https://me:secret@example.org/v1'], {}, 'base_url begins with http'), (['--base_url=ftp://example.org'], {}, 'base_url begins with http'),
    (['--base_url=https://example.org?key=secret'], {}, 'base_url begins with http'),
    (['--base_url=http://127.0.0.1:9'], {}, 'gives no answer (no connection'),
    (['--provider=ollama', '--model='], {}, 'http://localhost:11434/v1 does not answer'),
    (['--provider=mistral', '--template='], {'MISTRAL_API_KEY': KEY}, 'a chat API wants a prompt template'),
    (['--provider=mistral', '--complexity=7'], {'MISTRAL_API_KEY': KEY}, "complexity is '7'; there is: 1, 2, 2+, 3, 4, 5"),
    (['--provider=mistral', '--template=A {nuon}'], {'MISTRAL_API_KEY': KEY}, 'the template has a slot {nuon}; there is: noun, verb'),
    (['--provider=mistral', '--price_in=1'], {'MISTRAL_API_KEY': KEY}, 'go together'),
    (['--provider=sarvam', '--batch=True'], {'SARVAM_API_KEY': KEY}, 'sarvam has no Batch API')])
def test_refusals(project, options, env, says):
    process = project.start(*ASK, '--total=50', *options, **env)
    code, out, err = told(process)
    line = err.replace('\r', '\n').rstrip().split('\n')[-1]
    assert code == 1 and says in line and 'Traceback' not in err and KEY not in out + err + everything(project)
    assert 'secret' not in out + err


# -----------------------------------------------------------------------------
# replies

def verdict(project, chat_server, reply, *options):
    """What generate_data.py thinks of this reply, as --dry_run tells."""
    server = chat_server(reply=reply)
    return project.run(*ASK[:2], *options, f'--base_url={server.url}', '--dry_run=1', '--min_words=3').rstrip().split('\n')[-1]


HINDI = 'राधा ने बिल्ली को दूध दिया। बिल्ली खुश हुई। “कितनी अच्छी बिल्ली है!” माँ ने कहा।'


@pytest.mark.parametrize('reply', [
    '{"story": "%s"}', '```json\n{"story": "%s"}\n```', 'लीजिए:\n{"story": "%s"}\nशुभ दिन!', '{"story": "%s",}', '{"title": "दूध", "story": "%s"}',
    '<think>{"story": "no"}</think>{"story": "%s"}', '{"story": "no"} or so\n</think>\n\n{"story": "%s"}', '{\n  "story":\n  "%s"\n}',
    '{"story": ["%s", "सब सो गए।"]}', '{ {"story": "%s"} }'])
def test_a_story_is_found(reply):
    for story in (HINDI, HINDI.replace('। ', '।\n\n', 1)):  # raw line breaks inside a JSON string
        text = chat.text_of({'choices': [{'message': {'content': reply % story}}]})
        assert replies.stories_in(text, 'json') == [('', story + '\n\nसब सो गए।' * ('सब' in reply))]


@pytest.mark.parametrize('language, text, says', [
    ('hindi', HINDI, 'passes'), ('hindi', HINDI + ' बिल्ली ने "mew" कहा।', 'passes'), ('hindi', 'Radha gave milk to the cat.', 'not in devanagari'),
    ('hindi', HINDI + ' **अंत**', 'markup'), ('hindi', 'यह रही कहानी। ' + HINDI, 'refusal or meta'), ('hindi', HINDI[:-1] + ' और', 'no end'),
    ('hindi', HINDI + '\ufffd', 'broken characters'), ('hindi', HINDI.replace('राधा', '\ud83d'), 'broken characters'),
    ('marathi', 'राधाने मांजरीला दूध दिले. मांजर खूश झाली.', 'passes'), ('marathi', 'রাধা বিড়ালকে দুধ দিল।', 'not in devanagari'),
    ('bangla', 'রাধা বিড়ালকে দুধ দিল। বিড়াল খুশি হলো।', 'passes'), ('bangla', HINDI, 'not in bengali'), ('bangla', 'Radha gave milk to the cat.', 'not in bengali'),
    ('english', 'Mia gave the cat some milk. “Good cat,” she said.', 'passes'), ('english', HINDI, 'not in latin'),
    ('french', 'Léa donna du lait au chat. « Bon chat ! » dit-elle.', 'passes'), ('french', 'Le chat miaula : « Encore ! »', 'passes'),
    ('french', 'Voici une histoire. Le chat dort.', 'refusal')])
def test_what_passes_in_each_language(language, text, says):
    if says == 'passes':
        assert replies.check(cleaner(language)(text), 3, 600, True) == text
    else:
        with pytest.raises(chat.Rejected, match=says):
            replies.check(cleaner(language)(text), 3, 600, True)


@pytest.mark.parametrize('language, text', [
    ('hindi', HINDI), ('marathi', 'राधाने मांजरीला दूध दिले. मांजर खूश झाली.'), ('bangla', 'রাধা বিড়ালকে দুধ দিল। বিড়াল খুশি হলো।'),
    ('english', 'Mia gave the cat some milk. “Good cat,” she said.'), ('french', 'Léa donna du lait au chat. « Bon chat ! » dit-elle.')])
def test_the_script_is_that_of_the_word_lists(project, chat_server, language, text):
    assert '--- passes' in verdict(project, chat_server, json.dumps({'story': text}, ensure_ascii=False), f'config/generate_{language}.py')


def test_find_json_survives_anything():
    for text in ['', '{', '{' * 5000, '{"a":' * 5000, '[' * 5000, '{"story": }', '{"story"', 'null', '"story"', '{"story": {"story": 1}}' * 3, '\\',
                 '{"stor\\u0079": 1}']:
        started = time.monotonic()
        found = replies.find_json(text, 'story')
        assert found is None or 'story' in found
        assert time.monotonic() - started < 2
    rng = random.Random(1)
    whole = '```json\n{"title": "a, }", "story": "He said {no}, \\"yes\\"…", "n": [1, 2,],}\n```'
    assert replies.find_json(whole, 'story')['n'] == [1, 2]
    for _ in range(300):
        cut = rng.randrange(len(whole))
        replies.find_json(whole[:cut] + rng.choice(['', '{', '}', '"', '\\', ',']) + whole[cut + rng.randrange(2):], 'story')


def test_near_duplicates():
    seen, rng = replies.Seen(), random.Random(1)
    words = sorted({word for path in (PROJECT / 'data/english').glob('*.txt') for word in path.read_text(encoding='utf-8').split()})
    stories = [[rng.choice(words) for _ in range(200)] for _ in range(300)]
    assert sum(seen.add(' '.join(story)) > 0 for story in stories) == 0
    assert sum(seen.add(' '.join(story)) == 1 for story in stories) >= 297  # by chance, once in 17 times, one has taken another's place in a band

    def altered(story, n):
        story = list(story)
        for place in rng.sample(range(len(story)), n):
            story[place] = rng.choice(words)
        return ' '.join(story)
    fresh = replies.Seen()
    assert all(fresh.add(' '.join(story)) == 0 for story in stories)
    assert sum(fresh.add(altered(story, 4)) > 0 for story in stories) > 285  # some 0.9 of the shingles stay
    assert sum(fresh.add(altered(story, 100)) > 0 for story in stories) < 30  # some 0.06 of them


# -----------------------------------------------------------------------------
# dry runs, batches, the hub

def test_dry_run_asks_once_and_writes_nothing(project, chat_server):
    server = chat_server()
    before = sorted(path for path in project.path.rglob('*') if '__pycache__' not in path.parts)
    text = project.run(*ASK, f'--base_url={server.url}', '--dry_run=3')
    assert text.count('Write a short story in Hindi') == 3 and 'passes, with all seed words' in text
    assert server.counts()['requests'] == 1
    assert sorted(path for path in project.path.rglob('*') if '__pycache__' not in path.parts) == before


def test_batches_survive_kills_and_cost_half(project, chat_server):
    server = chat_server(faults=0.1, batch_seconds=3.5)
    command = (*ASK, f'--base_url={server.url}', '--total=40', '--batch=True', '--price_in=1', '--price_out=10', '--max_tries=9')
    for _ in range(3):
        process = project.start(*command)
        time.sleep(0.9)
        process.kill()
        process.communicate()
    assert server.counts()['batches'] == 1  # begun once, looked for ever after
    text = project.run(*command)
    assert sorted(ids_in(project, 'stories.jsonl')) == list(range(40))
    rows = project.jsonl('out/stories.jsonl')
    cost = sum(row['prompt_tokens'] * 0.5 + row['completion_tokens'] * 5 for row in rows) / 1e6
    spent = re.search(r'\$([\d.]+)', text.splitlines()[-2])
    assert 'rejected: ' in text and abs(float(spent[1]) - cost) < 0.02
    assert not (project.path / 'out' / 'stories.batches.json').exists()
    assert server.counts()['batches'] > 1


def test_batches_of_mistral(project, chat_server):
    server = chat_server(key=KEY, batch_seconds=0)
    command = (*ASK, '--provider=mistral', f'--base_url={server.url}', '--batch=True')
    project.run(*command, '--total=30', MISTRAL_API_KEY=KEY)
    assert sorted(ids_in(project, 'stories.jsonl')) == list(range(30)) and KEY not in everything(project)

    # as a kill leaves it between the rows and the word that their batch is done: nothing comes twice, whatever total is asked for then
    jobs = [{'id': i, 'tries': 0, 'errors': 0, 'tokens': [0, 0], 'reply': ''} for i in range(30)]
    state = {'open': [{'file': 'file-0', 'batch': 'batch-0', 'jobs': jobs}], 'retry': [], 'model': 'mistral tiny', 'size': 100}
    path = project.path / 'out/stories.jsonl'
    path.write_text(''.join(line for line in path.read_text(encoding='utf-8').splitlines(keepends=True) if json.loads(line)['id'] != 3), encoding='utf-8')
    (project.path / 'out/stories.batches.json').write_text(json.dumps(state), encoding='utf-8')
    project.run(*command, '--total=10', MISTRAL_API_KEY=KEY)
    assert sorted(ids_in(project, 'stories.jsonl')) == list(range(30)) and server.counts()['batches'] == 1 and not ids_in(project, 'failed.jsonl')


def test_batches_that_are_too_large_are_made_smaller(project, chat_server):
    server = chat_server(batch_limit=40)
    process = project.start(*ASK, f'--base_url={server.url}', '--total=100', '--batch=True')
    status, _, err = told(process)
    assert status == 0 and 'Enqueued token limit reached' in err and 'going on with batches of 25' in err
    assert sorted(ids_in(project, 'stories.jsonl')) == list(range(100)) and server.counts()['batches'] == 6  # of 100, 50, and 25 each


def test_batches_outlast_an_outage(project, chat_server):
    server = chat_server(batch_down=[3, 15])
    project.run(*ASK, f'--base_url={server.url}', '--total=30', '--batch=True')
    assert sorted(ids_in(project, 'stories.jsonl')) == list(range(30)) and server.counts()['down'] > 3 and server.counts()['batches'] == 1


def test_open_batches_are_neither_forgotten_nor_mixed(project, chat_server):
    server = chat_server(batch_seconds=5)
    command = (*ASK, f'--base_url={server.url}', '--total=10')
    process = project.start(*command, '--batch=True')
    while 'batches' not in server.counts() and process.poll() is None:
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    status, out, err = told(process)
    assert status == 0 and 'the same command fetches them' in err and 'the same command goes on' in out
    assert '1 batches for out/stories.jsonl are open and paid for; --batch=True fetches them' in project.refuses(*command)
    status, _, err = told(project.start(*command, '--batch=True', '--model=other'))
    assert status == 1 and 'holds open batches of' in err
    project.run(*command, '--batch=True')
    assert sorted(ids_in(project, 'stories.jsonl')) == list(range(10)) and server.counts()['batches'] == 1


def test_a_batch_that_is_refused_whole_ends_the_run(project, chat_server):
    server = chat_server(faults=1, kinds=['400'])
    status, _, err = told(project.start(*ASK, f'--base_url={server.url}', '--total=30', '--batch=True'))
    assert status == 1 and err.endswith('says 400: no such field\n')
    assert ids_in(project, 'stories.jsonl') == ids_in(project, 'failed.jsonl') == []


def test_a_batch_of_news_is_fetched_by_the_run_that_goes_on(project, chat_server):
    """Its rows have ids of their own, ten a prompt."""
    rng, words = random.Random(3), (PROJECT / 'data/french/adjectives.txt').read_text(encoding='utf-8').lower().split()
    reply = ''.join(f'<h1>Good one</h1><p>The {" ".join(rng.sample(words, 20))}.</p>' for _ in range(10))
    server = chat_server(batch_seconds=4, reply=reply)
    command = ('generate_data.py', 'config/generate_news.py', f'--base_url={server.url}', '--model=tiny', '--out=out/stories.jsonl', '--min_words=10',
               '--max_tries=1', '--num_workers=1')
    assert '10 stories added' in project.run(*command, '--total=3')  # rows 0 to 9, of prompt 0; the others are copies of it
    process = project.start(*command, '--total=20', '--batch=True')
    while 'batches' not in server.counts() and process.poll() is None:
        time.sleep(0.1)
    time.sleep(1)
    process.kill()
    process.communicate()
    project.run(*command, '--total=20', '--batch=True')
    assert ids_in(project, 'stories.jsonl') == list(range(10)) and sorted(ids_in(project, 'failed.jsonl')) == list(range(1, 20))
    counts = server.counts()
    assert counts['batches'] == 1 and counts['batch good'] == 17


def test_a_server_without_batches(project, chat_server):
    server = chat_server(upload={'object': 'file'})
    status, _, err = told(project.start(*ASK, f'--base_url={server.url}', '--total=3', '--batch=True'))
    assert status == 1 and 'does it have a Batch API?' in err and 'Traceback' not in err


def test_max_cost_holds_for_batches(project, chat_server):
    server = chat_server()
    command = (*ASK, f'--base_url={server.url}', '--total=100', '--batch=True', '--price_in=1', '--price_out=10', '--max_tokens=300', '--max_cost=0.05')
    process = project.start(*command)  # $0.00155 a story
    status, out, err = told(process)
    assert status == 0 and 'max_cost is reached' in err and 'the same command goes on' in out
    assert 0.8 * 0.05 / 0.00155 < len(ids_in(project, 'stories.jsonl')) <= 0.05 / 0.00155


def test_news_ten_a_reply(project, chat_server):
    rng = random.Random(3)
    lines = (project.path / 'data/english/nouns.txt').read_text(encoding='utf-8').split('\n')
    nouns = [line.split('\t')[0] for line in lines if re.fullmatch(r'[a-z]+(\t.*)?', line)]
    text = [' '.join(rng.choice(nouns) for _ in range(30)) for _ in range(9)]
    server = chat_server(reply='Here are ten:\n' + '\n'.join([
        f'<h1>Good one</h1><p>{text[0]}.</p>', f'<H1 class="x">Good two</H1>\n<p>{text[1]}.', f'<h1>Good &amp; three<p>{text[2]}.</p></h1>',
        '<h1>No text</h1>', f'<h1></h1><p>{text[3]}.</p>', f'<h1>A name in it</h1><p>{text[4]} in Paris {text[5]}.</p>',
        f'<h1>Good four</h1><p><b>{text[6]}</b>.</p><p>I {text[7]}.</p>', f'<h1>No end</h1><p>{text[8]}</p>']))
    command = ('generate_data.py', 'config/generate_news.py', f'--base_url={server.url}', '--out=out/stories.jsonl', '--min_words=10', '--max_tries=1')
    out = project.run(*command, '--total=1')
    rows = project.jsonl('out/stories.jsonl')
    assert [row['text'].split('</h> ')[0] for row in rows] == ['Good one', 'Good two', 'Good & three', 'Good four']
    assert [row['id'] for row in rows] == [0, 1, 2, 3] and all('<' not in row['text'].replace('</h>', '') for row in rows)
    assert '4 stories added' in out and '2 parts of replies left out' in out  # a name, no end; the others could not be read
    assert len(rows[0]['group'].split(', ')) == 4 and [row['completion_tokens'] for row in rows] == [300, 0, 0, 0]
    assert '0 stories added' in project.run(*command, '--total=2')
    assert [(row['id'], row['reason']) for row in project.jsonl('out/failed.jsonl')] == [(1, 'duplicate')]
    prompts = project.run(*command, '--dry_run=500')
    groups = re.findall(r'^--- \d+: (.*)$', prompts, flags=re.M)
    assert len(groups) == len(set(groups)) == 500 and prompts.count('Write 10 short news bulletins') == 500 and prompts.count('<h1>') >= 1500


def test_another_language_is_a_folder(project, chat_server):
    folder = project.path / 'data' / 'greek'
    folder.mkdir()
    for kind in ('nouns', 'verbs', 'adjectives', 'features'):
        (folder / f'{kind}.txt').write_text('γάτα\nσκύλος\n', encoding='utf-8')
    server = chat_server(reply=json.dumps({'story': 'Η γάτα ήπιε γάλα και κοιμήθηκε.'}))
    text = project.run(*ASK[:2], '--language=greek', f'--base_url={server.url}', '--dry_run=1', '--min_words=3', '--total=4')
    assert 'Write a short story in Greek' in text and '--- passes' in text
    server = chat_server(reply=json.dumps({'story': HINDI}))
    assert 'not in greek script' in project.run(*ASK[:2], '--language=greek', f'--base_url={server.url}', '--dry_run=1', '--min_words=3', '--total=4')


def test_push(project, server):
    hub = server('hub_server.py')
    command = ('generate_data.py', '--total=30', '--out=out/stories.jsonl', '--push=me/tales')
    project.run(*command, HF_ENDPOINT=hub.url, HF_TOKEN='hf_test', HF_HUB_OFFLINE='0')
    found = hub.get('/')
    assert found['repos'][0]['name'] == 'tales' and found['repos'][0]['type'] == 'dataset'
    assert found['files']['stories.jsonl'] == (project.path / 'out/stories.jsonl').read_text(encoding='utf-8')
    card = found['files']['README.md']
    assert card.startswith('---\nlanguage: hi\n') and '30 short texts in Hindi, written by grammar' in card
    line = project.refuses(*command, HF_ENDPOINT=hub.url, HF_TOKEN='hf_wrong', HF_HUB_OFFLINE='0')
    assert 'me/tales was not uploaded' in line and 'hf_wrong' not in line
    assert 'was not uploaded' in project.refuses(*command, HF_ENDPOINT='http://127.0.0.1:9', HF_TOKEN='hf_test', HF_HUB_OFFLINE='0')
