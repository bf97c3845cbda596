"""chat.py and batches.py against a chat API on loopback that misbehaves: nothing lost, nothing twice, no key shown.

Most tests run chat_client.py, a minimal script around chat.collect.
"""

import base64
import collections
import contextlib
import gzip
import http.server
import itertools
import json
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.parse

import pytest
from conftest import Project

import chat

KEY = 'sk-secret-0123456789'
GOOD = 'A story. {prompt}'


class Client(Project):
    """A folder with chat_client.py and the files that it needs."""

    def __init__(self, path):
        super().__init__(path, ['chat.py', 'batches.py', 'files.py', 'configurator.py', 'tests/chat_client.py'])
        self.options = []

    def start(self, *options, **env):
        return super().start('chat_client.py', *self.options, *options, **env)

    def ids(self, name='stories.jsonl'):
        path = self.path / name
        return [row['id'] for row in self.jsonl(name) if 'id' in row] if path.exists() else []

    def everything(self):
        """The text of all files that the script wrote."""
        paths = [path for pattern in ('*.json*', '*.lock') for path in self.path.glob(pattern)]
        return ' '.join(path.read_text(encoding='utf-8', errors='replace') for path in paths)


@pytest.fixture
def client(tmp_path):
    return Client(tmp_path)


@pytest.fixture
def server(client, chat_server):
    """server(faults=0.3, …) starts a server for the client."""
    def start(**options):
        started = chat_server(**{'reply': GOOD} | options)
        client.options = [f'--base_url={started.url}']
        return started
    return start


def wait_for(condition, process):
    """Wait until a condition holds while a process runs."""
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def end(process):
    """Wait for the end of a process -> (exit status, stdout, stderr)."""
    out, err = process.communicate(timeout=280)
    assert 'Traceback' not in err, err
    return process.returncode, out, err


# -----------------------------------------------------------------------------
# every id once


def test_faults_of_all_kinds_and_kills(client, server):
    api = server(faults=0.3, latency=0.02, stall=3)
    options = ('--total=300', '--num_workers=16', '--timeout=1', '--max_tries=3')
    for n in (30, 100, 200):
        process = client.start(*options)
        wait_for(lambda n=n: len(client.ids()) > n, process)
        process.kill()
        process.communicate()
    out = client.run(*options)
    assert 'complete' in out and '0 workers left' in out and 'rejected replies and errors: ' in out
    assert sorted(client.ids() + client.ids('failed.jsonl')) == list(range(300))
    for row in client.jsonl('stories.jsonl'):
        assert row['text'] == f'A story. Prompt {row["id"]}.' and row['model'] == 'tiny'
        assert row['completion_tokens'] % 300 == 0 and row['completion_tokens'] >= 300  # of all its tries
        assert row['cost'] == pytest.approx(row['completion_tokens'] / 300 * 0.0031)
    counts = api.counts()
    assert all(counts[kind] for kind in ('429', '500', 'stall', 'cut', 'reset', 'null', 'broken JSON', 'html', 'latin'))


def test_shards_share_a_failed_file(client, server):
    server(faults=0.2, kinds=['latin'])
    commands = [('--total=101', '--max_tries=1', f'--shard={i}/2', f'--out={i}.jsonl') for i in (1, 2)]
    for process in [client.start(*command) for command in commands]:
        assert end(process)[0] == 0
    assert sorted(client.ids('1.jsonl') + client.ids('2.jsonl') + client.ids('failed.jsonl')) == list(range(101))
    assert {row['out'] for row in client.jsonl('failed.jsonl')} == {'1.jsonl', '2.jsonl'}
    before = client.everything()
    assert '0 stories added' in client.run(*commands[0])  # those that failed are done, too
    assert client.everything() == before


REASONS = {
    'no choices': 'broken reply', 'null': 'empty reply', 'broken JSON': 'broken reply', 'html': 'a web page',
    'refusal': 'refused', 'length': 'cut off at max_tokens', 'latin': 'no story', 'error in 200': 'HTTP 502',
    'busy in 200': 'HTTP 503',
    '500': 'HTTP 500', 'cut': 'connection broken', 'reset': 'connection broken', 'stall': 'timeout'}


def test_failed_prompts_have_their_reason(client, server):
    api = server(faults=0.3, kinds=list(REASONS), stall=2)
    out = client.run('--total=600', '--max_tries=1', '--timeout=1', '--num_workers=20')
    counts, expected = api.counts(), collections.Counter()
    for kind, reason in REASONS.items():
        expected[reason] += counts[kind]
    failed = client.jsonl('failed.jsonl')
    assert min(expected.values()) > 3 and collections.Counter(row['reason'] for row in failed) == expected
    assert f'{len(failed)} given up' in out and f'{expected["refused"]} refused' in out
    assert sorted(client.ids() + client.ids('failed.jsonl')) == list(range(600))


@pytest.mark.parametrize('number', [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_finishes_the_requests_in_flight(client, server, number):
    api = server(latency=1)
    process = client.start('--total=1000', '--num_workers=20')
    wait_for(lambda: api.counts().get('most in flight') == 20, process)
    process.send_signal(number)
    status, _, err = end(process)
    assert status == 1 and re.search(r'finishing the \d+ requests in flight', err)
    assert err.endswith('stopped; the same command continues\n')
    assert len(client.ids()) == api.counts()['good'] == api.counts()['requests'] < 1000


@pytest.mark.slow
def test_ctrl_c_twice_stops_at_once(client, server):
    api = server(latency=600)
    process = client.start('--total=1000', '--timeout=600')
    wait_for(lambda: api.counts().get('most in flight') == 16, process)
    process.send_signal(signal.SIGINT)
    line = ''
    while 'again to stop at once' not in line:
        line += process.stderr.read(1)
    process.send_signal(signal.SIGINT)
    assert end(process)[0] != 0


# -----------------------------------------------------------------------------
# rate limits, outages, time-outs


@pytest.mark.slow
def test_many_workers_are_kept_busy(client, server):
    api = server(latency=0.5)
    client.run('--total=600', '--num_workers=100')
    assert api.counts()['most in flight'] == 100 and len(client.ids()) == 600


@pytest.mark.slow
@pytest.mark.parametrize('retry_after', ['', '1'])
def test_a_rate_limit_is_not_hammered(client, server, retry_after):
    api = server(latency=0.3, rate=30, retry_after=retry_after)
    client.run('--total=240', '--num_workers=64')
    assert len(client.ids()) == 240 and api.counts()['limited'] < 0.6 * 240


@pytest.mark.slow
def test_an_outage_costs_no_prompt(client, server):
    api = server(latency=0.05, down=[100, 3])
    out = client.run('--total=600', '--num_workers=8', '--max_backoff=1')
    assert 'connection broken' in out and api.counts()['down'] > 8
    assert sorted(client.ids()) == list(range(600))


@pytest.mark.parametrize('status', [422, *(pytest.param(status, marks=pytest.mark.slow) for status in (403, 400, 302))])
def test_a_refused_prompt_costs_only_itself(client, server, status):
    api = server(poison=['Prompt 9.', status])
    client.run('--total=9')
    client.run('--total=10')  # only the refused one
    row, = client.jsonl('failed.jsonl')
    assert row['id'] == 9 and f'says {status}: flagged' in row['reason']
    assert sorted(client.ids()) == list(range(9)) and api.counts()['poison'] == 1


@pytest.mark.slow
def test_a_prompt_that_always_fails_is_given_up(client, server):
    api = server(poison=['Prompt 3.', 500])
    client.run('--total=10', '--max_backoff=0.05')
    row, = client.jsonl('failed.jsonl')
    assert row['id'] == 3 and row['reason'] == 'HTTP 500' and api.counts()['poison'] == 5


def test_a_server_that_never_answers_ends_the_run(client):
    line = client.refuses('--base_url=http://127.0.0.1:9', '--max_backoff=0.1', '--start_timeout=2')
    assert 'http://127.0.0.1:9 gives no answer (connection failed)' in line
    assert client.ids('failed.jsonl') == []


@pytest.mark.slow
def test_the_last_line_says_what_the_server_says(client, server):
    server(status=500, error='CUDA out of memory')
    options = ('--total=9', '--num_workers=1', '--max_tries=99', '--start_timeout=0.5', '--max_backoff=0.05')
    assert 'gives no answer (HTTP 500: CUDA out of memory)' in client.refuses(*options)


@pytest.mark.slow
def test_a_slow_trickle_does_not_get_past_the_timeout(client, server):
    server(trickle=0.05)
    line = client.refuses('--total=2', '--timeout=1', '--num_workers=2', '--start_timeout=1')
    assert 'gives no answer (timeout)' in line


@pytest.fixture
def raw_server(client):
    """raw_server(pieces) answers each request with the bytes of pieces(), which may be endless."""
    listener = socket.create_server(('127.0.0.1', 0))

    def answer(connection, pieces):
        with contextlib.suppress(OSError), connection:
            connection.recv(1 << 20)
            for piece in pieces():
                connection.sendall(piece)

    def serve(pieces):
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(listener.accept()[0], pieces), daemon=True).start()

    def start(pieces):
        threading.Thread(target=serve, args=(pieces,), daemon=True).start()
        client.options = [f'--base_url=http://127.0.0.1:{listener.getsockname()[1]}']
    yield start
    listener.close()


def slowly(pieces):
    for piece in pieces:
        time.sleep(0.1)
        yield piece


def packed(n_layers, encoding):
    """An HTTP response of 32 MB of zeros in a few bytes."""
    body = bytes(1 << 25)
    for _ in range(n_layers):
        body = gzip.compress(body)
    return [b'HTTP/1.1 200 OK\r\nContent-Encoding: %s\r\nContent-Length: %d\r\n\r\n' % (encoding, len(body)), body]


OK = [b'HTTP/1.1 200 OK\r\n']
ENDLESS_REPLIES = {
    'header': lambda: slowly(itertools.chain(OK, [b'X: '], itertools.repeat(b'a'))),
    '100 Continue': lambda: slowly(itertools.repeat(b'HTTP/1.1 100 Continue\r\n\r\n')),
    'status line': lambda: slowly(itertools.chain([b'HTTP/1.1 '], itertools.repeat(b'2'))),
    'body': lambda: slowly(itertools.chain(OK, [b'Content-Length: 99999\r\n\r\n'], itertools.repeat(b'a'))),
    'trailer': lambda: slowly(itertools.chain(OK, [b'Transfer-Encoding: chunked\r\n\r\n1\r\n \r\n0\r\n'],
                                              itertools.repeat(b'X: 1\r\n'))),
}
HUGE_REPLIES = {
    'body': lambda: itertools.chain(OK, [b'\r\n'], itertools.repeat(bytes(1 << 16))),
    'absurd length': lambda: itertools.chain(OK, [b'Content-Length: 9999999999999\r\n\r\n'],
                                             itertools.repeat(bytes(1 << 16))),
    'size of a chunk': lambda: itertools.chain(OK, [b'Transfer-Encoding: chunked\r\n\r\n'],
                                               itertools.repeat(b'0' * 65536)),
    'gzip': packed(1, b'gzip').copy,
}
ONE_TRY = ('--total=1', '--num_workers=1', '--max_tries=1')


@pytest.mark.parametrize('kind', ENDLESS_REPLIES)
def test_the_timeout_holds_for_every_part_of_a_reply(client, raw_server, kind):
    raw_server(ENDLESS_REPLIES[kind])
    line = client.refuses(*ONE_TRY, '--timeout=1', '--start_timeout=1')
    assert 'gives no answer (timeout)' in line


@pytest.mark.parametrize('model', ['tiny', ''])
@pytest.mark.parametrize('kind', HUGE_REPLIES)
def test_a_reply_has_a_limit_of_bytes(client, raw_server, kind, model):
    raw_server(HUGE_REPLIES[kind])
    line = client.refuses(*ONE_TRY, f'--model={model}', '--start_timeout=3')
    assert re.search(r'gives no answer \((reply too long|connection broken)\)', line)


@pytest.mark.parametrize('pieces', [packed(2, b'gzip, gzip').copy, packed(1, b'br').copy])
def test_an_unknown_encoding_is_refused(client, raw_server, pieces):
    raw_server(pieces)
    assert 'gives no answer (broken reply)' in client.refuses(*ONE_TRY, '--start_timeout=3')


def test_a_packed_reply_is_read(client, raw_server):
    content = {'choices': [{'message': {'content': 'A story. गज़िप'}, 'finish_reason': 'stop'}]}
    body = gzip.compress(json.dumps(content, ensure_ascii=False).encode())
    raw_server(lambda: [*OK, b'Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n' % len(body), body])
    client.run(*ONE_TRY)
    assert client.jsonl('stories.jsonl')[0]['text'] == 'A story. गज़िप'


def test_a_slow_first_reply_is_waited_for(client, server):
    server(latency=3)
    _, _, err = end(client.start('--total=1', '--start_timeout=1'))
    assert 'no reply after 1 s, waiting for up to timeout=60 s' in err and client.ids() == [0]


@pytest.mark.parametrize('body', ['[' * 100_000, '{"choices":' * 5000, '{"a": ' * 900 + '1' + '}' * 900])
def test_deep_json_is_a_broken_reply(client, server, body):
    server(body=body)
    client.refuses('--model=', '--total=1')
    client.run(*ONE_TRY)
    assert client.jsonl('failed.jsonl')[0]['reason'] == 'broken reply'


@pytest.mark.slow
def test_a_huge_reply_is_cut(client, server):
    server(reply='A story' * 1000)
    line = client.refuses('--total=2', '--max_reply=5000', '--max_backoff=0.5', '--start_timeout=1')
    assert 'gives no answer (reply too long)' in line


@pytest.mark.parametrize('header, seconds', [
    ('7', 7), ('0.5', 0.5), ('-5', 0), ('nan', 0), ('9' * 5000, 3600), ('soon', 0),
    ('Wed, 21 Oct 2015 07:28:00 GMT', 0), ('Wed, 21 Oct 2122 07:28:00 GMT', 3600)])
def test_retry_after(header, seconds):
    assert chat.retry_after({'Retry-After': header}) == seconds
    assert chat.retry_after({}) == 0


# -----------------------------------------------------------------------------
# costs, keys, settings


def test_max_cost_counts_all_runs(client, server):
    server(latency=0.05)
    options = ('--total=1000', '--max_cost=0.5')  # 100 tokens in and 300 out cost $0.0031 a story
    status, out, err = end(client.start(*options))
    n = len(client.ids())
    assert 0.45 / 0.0031 < n <= 0.5 / 0.0031 and f'${n * 0.0031:.2f}' in out
    assert status == 1 and 'max_cost is reached; the same command continues' in err
    assert 'max_cost is reached' in client.refuses(*options) and len(client.ids()) == n
    assert 'complete' in client.run('--total=160', '--max_cost=0.5', '--out=all.jsonl')


@pytest.mark.parametrize('cost', ['-1000', 'NaN', 'Infinity', '"free"', '[1]', '1e999'])
def test_a_row_cannot_lower_the_costs(client, server, cost):
    server()
    (client.path / 'stories.jsonl').write_text(f'{{"id": 0, "text": "x", "cost": {cost}}}\n')
    assert 'stories.jsonl: cost is' in client.refuses('--total=9', '--max_cost=0.01')


@pytest.mark.slow
def test_tries_of_unfinished_prompts_are_paid_for(client, server):
    api = server(faults=0.5, kinds=['latin'], latency=0.1)
    process = client.start('--total=2000', '--num_workers=32')
    wait_for(lambda: len(client.ids()) > 40, process)
    process.send_signal(signal.SIGINT)
    _, out, _ = end(process)
    served = api.counts()['good'] + api.counts()['latin']
    for text in (out, end(client.start('--max_cost=0.01'))[1]):
        cost = re.search(rf'{served * 100:,} tokens in, {served * 300:,} out: \$([\d.]+)', text)
        assert float(cost[1]) == pytest.approx(served * 0.0031, abs=0.0051)


@pytest.mark.slow
@pytest.mark.parametrize('usage', [None, [-1_000_000, -5], [float('inf'), 3], ['many', 3]])
def test_without_usage_a_reply_counts_as_max_tokens(client, server, usage):
    server(usage=usage)
    command = ('--total=200', '--price_in=0', '--max_tokens=1000', '--max_cost=0.5', '--num_workers=4')
    status, out, err = end(client.start(*command))
    assert status == 1 and len(client.ids()) == 50 and '$0.50' in out and 'max_cost is reached' in err


@pytest.mark.slow
@pytest.mark.parametrize('status, error, says', [
    (400, 'bad request', '400: bad request'), (402, 'no credit', '402'), (403, 'forbidden', '403'),
    (401, f'Incorrect API key provided: {KEY}', '401: Incorrect API key provided: ***'),
    (404, 'no such model', '404: no such model; is base_url right'),
    (400, "use 'max_completion_tokens'", "{'max_tokens': None, 'max_completion_tokens': 1024}"),
    (400, 'temperature must be 1', '--temperature=None leaves that field out'),
    (429, 'insufficient quota', 'insufficient quota'), (503, 'Your credit balance is too low', 'is too low')])
def test_a_refusal_ends_the_run(client, server, status, error, says):
    api = server(status=status, error=error)
    line = client.refuses('--total=1000', CHAT_API_KEY=KEY)
    assert says in line and KEY not in line + client.everything()
    assert api.counts()['requests'] <= 32 and client.ids() == client.ids('failed.jsonl') == []


@pytest.mark.parametrize('kinds', [['500', 'no JSON', 'error in 200'], ['html', 'null', 'broken JSON'],
                                   ['stall', 'cut', 'reset']])
def test_the_key_is_nowhere(client, server, kinds):
    api = server(key=KEY, faults=0.7, kinds=kinds, stall=1, reply=f'A story: your key is {KEY}.')
    _, out, err = end(client.start('--total=20', '--timeout=0.5', '--max_tries=2', CHAT_API_KEY=KEY))
    assert api.counts()['requests'] >= 20 and 'your key is ***.' in client.everything()
    assert KEY not in out + err + client.everything()


KEY_FORMS = [
    KEY, KEY.upper(), urllib.parse.quote(KEY, safe=''), '%73%6B' + KEY[2:], '\\u0073k' + KEY[2:],
    r'\u0073\u006B\u002dsecret' + KEY[9:], r'\\\\u0073k' + KEY[2:], '&#115;k' + KEY[2:], '&#x73;k' + KEY[2:],
    KEY.encode().hex(),
    *(base64.b64encode(f'{before}{KEY}!'.encode()).decode() for before in ('', 'a', 'ab', 'Bearer '))]


@pytest.mark.parametrize('form', KEY_FORMS)
def test_no_form_of_the_key_is_kept(client, server, form):
    """In replies, errors and names, also after JSON is decoded."""
    data = {'text': form, form: [f'{form} {form}']}
    for value in (form, data, json.dumps(data), json.dumps(json.dumps(data))):
        cleaned = json.dumps(chat.clean({'key': KEY}, value))
        for text in (cleaned, cleaned.encode().decode('unicode_escape')):
            assert KEY.lower() not in text.lower() and form not in text and '***' in text
    assert chat.clean({'key': ''}, data) == data


ESCAPES = '\x1b]0;PWNED\x07\x1b[2J\x9b31m\x00\x7f'


@pytest.mark.parametrize('name', [KEY, ESCAPES])
def test_a_server_that_names_its_model_by_the_key(client, server, name):
    server(models={'data': [{'id': f'model {name}'}]}, reply=f'A story {name}', faults=0.3, kinds=['latin'])
    _, out, err = end(client.start('--model=', '--total=20', '--max_tries=1', CHAT_API_KEY=KEY))
    assert client.jsonl('stories.jsonl')[0]['model'].startswith('model ')
    shown = out + err + client.everything()
    assert KEY not in shown and not re.search('[\x00\x07\x1b\x7f-\x9f]|u001b|u009b', shown)


@pytest.mark.parametrize('code', [KEY, float('inf'), 10**400, [], '5e2'])
def test_an_error_with_an_odd_code(client, server, code):
    server(body=json.dumps({'error': {'code': code, 'message': KEY}}))
    _, out, err = end(client.start('--model=tiny', *ONE_TRY, '--start_timeout=1', CHAT_API_KEY=KEY))
    assert KEY not in out + err + client.everything()


@pytest.mark.parametrize('code', [0, False, -5, 10**300])
def test_an_error_with_a_code_that_is_no_status(client, server, code):
    server(body=json.dumps({'error': {'code': code, 'message': 'x' * 100_000}}))
    _, out, err = end(client.start('--model=tiny', *ONE_TRY))
    assert 'HTTP 503' in out + err and len(out + err) < 10_000


@pytest.mark.slow
def test_a_short_word_is_no_key(client, server):
    server(key='na', reply='A story: banana')
    client.run('--total=3', CHAT_API_KEY='na')
    assert {row['text'] for row in client.jsonl('stories.jsonl')} == {'A story: banana'}


@pytest.mark.slow
def test_netrc_does_not_replace_the_key(client, server):
    server(key=KEY)
    (client.path / '.netrc').write_text('machine 127.0.0.1 login me password secret\n')
    client.run('--total=3', CHAT_API_KEY=KEY, NETRC=str(client.path / '.netrc'))
    assert sorted(client.ids()) == [0, 1, 2]


@pytest.mark.slow
@pytest.mark.parametrize('models, says', [
    ({'data': [{'id': 'first'}]}, ''), ({'data': 'x'}, 'lists no model'), ([], 'lists no model'),
    ({'data': [{}]}, 'lists no model')])
def test_the_default_model_is_the_first_one(client, server, models, says):
    server(models=models)
    if says:
        assert says in client.refuses('--model=', '--total=1')
    else:
        client.run('--model=', '--total=1')
        assert client.jsonl('stories.jsonl')[0]['model'] == 'first'


@pytest.mark.parametrize('settings, says', [
    ({'provider': 'nobody'}, "there is no provider 'nobody'"),
    ({'provider': 'mistral'}, 'MISTRAL_API_KEY is not set; export MISTRAL_API_KEY=… with your key of mistral, or else'),
    ({'provider': 'openai'}, 'OPENAI_API_KEY is not a key'),
    ({'base_url': 'https://me:secret@example.org/v1'}, 'base_url must begin with http'),
    ({'base_url': 'https://example.org?key=secret'}, 'base_url must begin with http'),
    ({'base_url': 'ftp://example.org'}, 'base_url must begin with http'),
    *(({'base_url': url}, 'a host and port that can exist') for url in (
        'http://127.0.0.1:113400/v1', 'http://[::1/v1', 'http://*/v1', 'http://a..b/v1', 'http://[zz]/v1', 'http:///v1',
        'http://x:0/v1', 'http://x:-1', 'http://x:8:8', f'http://{"a" * 64}.org', 'http://a\\b/', 'http://x\0/',
        'http://[1:2]/v1', 'http://[1.2.3.4]', 'http://a–b.org', 'http://x:٨٠', 'http://x/a b')),
    ({'provider': 'groq', 'temperature': float('nan')}, 'temperature must be'),
    ({'provider': 'groq', 'price_in': 1.0}, 'price_in and price_out go together')])
def test_wrong_settings_are_one_line(monkeypatch, capsys, settings, says):
    monkeypatch.setenv('GROQ_API_KEY', KEY)
    monkeypatch.setenv('OPENAI_API_KEY', f'{KEY} {KEY}')
    monkeypatch.delenv('MISTRAL_API_KEY', raising=False)
    with pytest.raises(SystemExit) as ended:
        chat.connect(**settings, model='tiny', otherwise='or else')
    err = capsys.readouterr().err
    assert ended.value.code == 2 and says in err and err.count('\n') == 1 and KEY not in err and 'secret' not in err


@pytest.mark.parametrize('option, says', [
    ('--num_workers=0', 'num_workers must be'), ('--timeout=0', 'timeout more than 0'),
    ('--batch=True', 'sarvam has no Batch API'), ('--max_cost=1', 'max_cost needs the price of tiny')])
def test_wrong_settings_of_collect_are_one_line(client, option, says):
    command = ('--provider=sarvam', '--price_in=-1', '--price_out=-1', option)
    assert says in client.refuses(*command, status=2, SARVAM_API_KEY=KEY)


# -----------------------------------------------------------------------------
# the text of a reply


# {draft} and {final} are texts; what follows the last mark is the answer
REASONING = [
    '{draft}</think>{final}', '<think>\n{draft}\n</think>\n\n{final}', '<THINK>{draft}</Think> {final}',
    '<thinking>{draft}</thinking><thinking>{draft}</thinking>{final}',
    '<think>{draft} <think> </think>{draft}</think>{final}',
    'Thinking...\n{draft}\n...done thinking.\n\n{final}',
    '[THINK]{draft}[/THINK]{final}', '◁think▷{draft}◁/think▷{final}', '<seed:think>{draft}</seed:think>{final}',
    '<thought_process id="1">{draft}</thought_process>{final}', '<|START_THINKING|>{draft}<|END_THINKING|>{final}',
    '<|begin_of_thought|>{draft}<|end_of_thought|>{final}', '<reasoning>{draft}</reasoning>{final}',
    '<|channel|>analysis<|message|>{draft}<|end|><|start|>assistant<|channel|>final<|message|>{final}',
    '<|channel|>analysis<|message|>{draft}<|channel|>final <|constrain|>json<|message|>{final}',
    '<|channel>thought\n{draft}<channel|>{final}', 'analysis{draft}assistantfinal{final}',
    '{draft}assistantfinal{final}', '"</think>" {draft}</think>{final}',
    'analysis We see.\n{draft}\nassistant\nfinal\n{final}', '<unused94>thought\n{draft}<unused95>{final}',
    '<cot>{draft}</cot>{final}', '&lt;think&gt;{draft}&lt;/think&gt;{final}', '<思考>{draft}</思考>{final}',
    '<|inner_prefix|>{draft}<|inner_suffix|>{final}', 'Steps:\n{draft}\n[BEGIN FINAL RESPONSE]{final}',
    '<details type="reasoning"><summary>Thought for 3 s</summary>{draft}</details>\n{final}',
    '{draft}\n\n## Final answer\n{final}', '{draft}<answer>{final}', '{draft}<|begin_of_box|>{final}']
UNENDED = ['<think>{draft}', 'Sure! <think>{draft} {final}', '{final}<think>{draft}', '{draft}</think>',
           '[THINK]{draft}', '<|channel|>analysis<|message|>{draft}', 'analysis{draft}', '◁think▷{draft}',
           '<thought>{draft}', 'analysis\n{draft}', 'thought\n{draft}', '<plan>{draft}', '<unused94>{draft}',
           '&lt;think&gt;{draft}', '<details type="reasoning">{draft}']
DRAFT = 'We need a story. {"story": "A DRAFT"} is it, or { <b>x</b>'
FINAL = '{"story": "FINAL"}'


def text_of(content, **choice):
    return chat.text_of({'choices': [{'message': {'content': content}} | choice]})


@pytest.mark.parametrize('form', REASONING)
def test_reasoning_is_not_the_answer(form):
    assert text_of(form.replace('{draft}', DRAFT).replace('{final}', FINAL)) == FINAL


@pytest.mark.parametrize('end', [
    '</s>', '<|im_end|>\n', '</answer>', '\n</response>\n', '[END FINAL RESPONSE]', '<|end_of_box|><|user|>'])
def test_tags_after_an_answer_are_cut(end):
    assert text_of(FINAL + end) == FINAL


@pytest.mark.parametrize('form', UNENDED)
def test_reasoning_that_does_not_end_has_no_answer(form):
    with pytest.raises(chat.Rejected, match='reasoning without an answer'):
        text_of(form.replace('{draft}', DRAFT).replace('{final}', FINAL))


@pytest.mark.parametrize('content, text', [
    ([{'type': 'thinking', 'thinking': [{'type': 'text', 'text': DRAFT}]}, {'type': 'text', 'text': FINAL}], FINAL),
    ([{'type': 'reasoning', 'text': DRAFT}, {'type': 'output_text', 'text': '<think>x</think>'},
      {'type': 'other', 'text': DRAFT}, {'text': DRAFT, 'thought': True}, {'text': FINAL}], FINAL),
    (None, 'empty reply'), (' ', 'reasoning without'), ([{'type': 'reasoning', 'text': DRAFT}], 'reasoning without')])
def test_parts_of_a_reply(content, text):
    try:
        assert text_of(content) == text
    except chat.Rejected as e:
        assert str(e).startswith(text)
    for reason in ('length', 'MAX_TOKENS'):
        with pytest.raises(chat.Rejected, match=r'cut off|used up'):
            text_of(content, finish_reason=reason)


@pytest.mark.parametrize('text', [
    'I think so, she thought. <b>Reason</b> [it is reasonable] and the assistant finally came.', 'Analysis\nGrammar: 8',
    '{"story": "He wrote <think> and </think> on it."}', '{"notes": "</think> grammar: 10", "grammar": 2}',
    '<h1>Thought of the day</h1><p>Think!</p>', 'Grammar: 3. It contains `</think>`, “<think>” and "[/THINK]".'])
def test_an_answer_is_not_damaged(text):
    assert text_of(text) == text


@pytest.mark.parametrize('form', [*REASONING, *UNENDED, '....done thinking', '<<think>>'])
def test_no_mark_of_reasoning_is_left_in_a_quoted_story(form):
    broken = chat.break_marks(f'x {form}')
    assert broken == f'x {form}' or text_of(broken) == broken
    assert broken.replace(' ', '') == f'x{form}'.replace(' ', '')


# -----------------------------------------------------------------------------
# runs that cannot succeed, and what they say


@pytest.mark.parametrize('options, reason, advice', [
    ({'reply': '', 'finish_reason': 'length', 'message': {'reasoning_content': GOOD}},
     'reasoning used up max_tokens', '; raise max_tokens'),
    ({'reply': '<think>' + GOOD}, 'reasoning without an answer', '; raise max_tokens, or shorten'),
    ({'reply': 'No.'}, 'no story', "'No.'; another model, prompt or limit may help; --dry_run=1 shows one reply"),
    ({'body': 'data: {"choices": [{"delta": {"content": "A"}}]}\n\ndata: [DONE]\n\n'}, 'a streamed reply', '; try'),
    ({'body': '{"message": {"content": "A"}}\n{"message": {}}\n'}, 'a streamed reply', "'stream': False"),
    ({'body': '\n<!DOCTYPE html><p>Please log in'}, 'a web page', '; is base_url right'),
    ({'body': '{"error": "Unexpected endpoint"}'}, 'broken reply', '; is base_url right')])
def test_a_run_that_cannot_succeed_stops(client, server, options, reason, advice):
    api = server(**options)
    status, out, err = end(client.start('--total=1000', '--num_workers=4', '--max_tries=2'))
    assert status == 1 and re.search(f'20 of .*, mostly by: {reason}, as in .*{advice}', err.splitlines()[-1])
    assert 'tokens in' in out and client.ids() == []
    assert 20 <= len(client.ids('failed.jsonl')) <= 24
    if 'body' not in options:
        assert api.counts()['requests'] <= 50


def test_a_run_whose_replies_get_bad_stops(client, server):
    server(faults=0.8, kinds=['latin'])
    line = client.refuses('--total=1000', '--num_workers=4', '--max_tries=1')
    assert re.search(r'51 of the last \d+ prompts failed .* mostly by: no story', line)
    assert 70 <= len(client.ids() + client.ids('failed.jsonl')) < 150
    done = client.ids() + client.ids('failed.jsonl')
    client.refuses('--total=1000', '--num_workers=4', '--max_tries=1')  # failed prompts stay failed, others are tried
    ids = client.ids() + client.ids('failed.jsonl')
    assert len(set(ids)) == len(ids) > len(done)


def test_too_many_failed_prompts(client, server):
    server(poison=['Prompt 1', 422])  # and Prompt 10, after Prompt 0
    options = ('--total=11', '--num_workers=1')
    client.run(*options, '--max_failed=0.2')
    line = client.refuses(*options, '--max_failed=0.1', status=1)
    assert '2 of 11 stories were given up, more than max_failed=0.1; delete failed.jsonl' in line


# -----------------------------------------------------------------------------
# addresses


@pytest.mark.parametrize('end_of_url', ['/v1', '/v1/', '/v1/chat/completions', '/v1/chat/completions/', '/v1/models'])
def test_an_address_with_more_or_less_at_its_end(client, server, end_of_url):
    url = server(prefix='/v1').url
    client.run(f'--base_url={url}{end_of_url}', '--total=1', '--model=')
    assert client.ids() == [0]


@pytest.mark.parametrize('model', ['', 'tiny'])
@pytest.mark.parametrize('options', [{'prefix': '/v1'}, {'body': '<p>Log in', 'prefix': '/'}])
def test_a_wrong_address_is_named(client, server, model, options):
    url = server(**options).url
    line = client.refuses(f'--base_url={url}', f'--model={model}', '--total=30', '--max_tries=1', '--num_workers=2')
    assert f'is base_url right ({url}; most servers need {url}/v1)?' in line


@pytest.fixture
def tls_server(client, server):
    """A server with a self-signed certificate, cert.pem in the client's folder."""
    if not shutil.which('openssl'):
        pytest.skip('openssl is missing')
    command = 'openssl req -x509 -newkey rsa:2048 -nodes -out cert.pem -keyout key.pem -subj /CN=127.0.0.1'
    command += ' -addext subjectAltName=IP:127.0.0.1'
    subprocess.run(command.split(), cwd=client.path, check=True, capture_output=True)
    return server(tls=[str(client.path / 'cert.pem'), str(client.path / 'key.pem')])


@pytest.mark.slow
def test_certificates(client, tls_server):
    url = tls_server.url.replace('http:', 'https:')
    options = (f'--base_url={url}', '--total=2', '--start_timeout=1')
    line = client.refuses(*options)
    assert 'certificate verify failed: self' in line and 'SSL_CERT_FILE' in line
    assert 'certificate' in client.refuses(*options, SSL_CERT_FILE='missing.pem')
    assert 'need https:// in place of http://' in client.refuses(f'--base_url={tls_server.url}', *options[1:])
    assert 'SSL_CERT_FILE' in client.refuses(*options, '--model=')
    client.run(*options, SSL_CERT_FILE='cert.pem')
    client.run(*options, '--out=2.jsonl', REQUESTS_CA_BUNDLE='cert.pem', SSL_CERT_FILE='missing.pem')


class Proxy(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers['Content-Length']))
        self.send_error(407)

    def log_message(self, *_):
        pass


@pytest.mark.slow
def test_https_where_there_is_http_and_proxies(client):
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Proxy) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        url = f'http://127.0.0.1:{proxy.server_port}'
        options = ('--total=2', '--start_timeout=1')
        line = client.refuses(f'--base_url={url.replace("http", "https")}/v1', *options)
        assert 'need https:// in place of http://, or the other way round' in line
        for address, scheme, says in [('http://127.0.0.1:9', 'http', 'proxy error'), (url, 'https', 'proxy error'),
                                      (url, 'http', 'says 407: ')]:
            variable = f'{scheme.upper()}_PROXY'
            line = client.refuses(f'--base_url={scheme}://example.org/v1', *options, **{variable: address})
            assert says in line and f'proxy of {variable}' in line
        proxy.shutdown()


def test_fields_can_be_left_out(client, server):
    api = server()
    client.run('--total=1', '--temperature=None', '--max_tokens=None', '--max_cost=1')
    client.run('--total=2', '--extra={"temperature": None, "max_tokens": None, "max_completion_tokens": 77}')
    counts = api.counts()
    assert counts['requests'] == 2 and counts['field max_completion_tokens'] == 1
    assert 'field temperature' not in counts and 'field max_tokens' not in counts
    assert 'num_workers must be int' in client.refuses('--num_workers=None', status=2)


# -----------------------------------------------------------------------------
# batches


def test_batches_survive_kills_and_cost_half(client, server):
    api = server(faults=0.3, hold_batches=True)
    options = ('--total=40', '--batch=True', '--max_tries=9')
    for name in ('files', 'batches', 'polls', 'polls'):  # kills after the upload, after the creation, and between polls
        n = api.counts().get(name, 0)
        process = client.start(*options)
        wait_for(lambda name=name, n=n: api.counts().get(name, 0) > n, process)
        process.kill()
        process.communicate()
    assert api.counts()['batches'] == 1
    api.get('/release')
    out = client.run(*options)
    assert sorted(client.ids()) == list(range(40)) and 'complete' in out and 'rejected replies and errors: ' in out
    rows = client.jsonl('stories.jsonl')
    cost = sum(row['prompt_tokens'] * 0.5 + row['completion_tokens'] * 5 for row in rows) / 1e6
    assert float(re.search(r'\$([\d.]+)', out)[1]) == pytest.approx(cost, abs=0.02)
    assert api.counts()['batches'] > 1 and not (client.path / 'stories.batches.json').exists()


@pytest.mark.slow
def test_batches_of_mistral_and_a_kill_between_rows_and_state(client, server):
    api = server(key=KEY)
    options = ('--provider=mistral', '--batch=True')
    client.run(*options, '--total=30', MISTRAL_API_KEY=KEY)
    assert sorted(client.ids()) == list(range(30)) and KEY not in client.everything()

    # a kill after all rows but one, and before the state says that the batch is done: nothing comes twice
    jobs = [{'id': i, 'tries': 0, 'errors': 0, 'tokens': [0, 0], 'reply': ''} for i in range(30)]
    batch = {'file': 'file-0', 'batch': 'batch-0', 'jobs': jobs}
    state = {'open': [batch], 'retry': [], 'model': 'mistral tiny', 'size': 100}
    (client.path / 'stories.batches.json').write_text(json.dumps(state), encoding='utf-8')
    rows = [json.dumps(row) + '\n' for row in client.jsonl('stories.jsonl') if row['id'] != 3]
    (client.path / 'stories.jsonl').write_text(''.join(rows), encoding='utf-8')
    client.run(*options, '--total=10', MISTRAL_API_KEY=KEY)
    assert sorted(client.ids()) == list(range(30)) and client.ids('failed.jsonl') == [] and api.counts()['batches'] == 1


@pytest.mark.slow
def test_a_batch_that_is_too_large_is_made_smaller(client, server):
    api = server(batch_limit=40)
    status, _, err = end(client.start('--total=100', '--batch=True'))
    assert status == 0 and 'Enqueued token limit reached' in err and 'continuing with batches of 25' in err
    assert sorted(client.ids()) == list(range(100)) and api.counts()['batches'] == 6  # of 100, 50, and 25 each


@pytest.mark.slow
def test_batches_outlast_an_outage(client, server):
    api = server(batches_down=[3, 3])
    client.run('--total=30', '--batch=True')
    assert sorted(client.ids()) == list(range(30)) and api.counts()['down'] > 1 and api.counts()['batches'] == 1


@pytest.mark.slow
def test_open_batches_are_neither_forgotten_nor_mixed(client, server):
    api = server(hold_batches=True)
    process = client.start('--total=10', '--batch=True')
    wait_for(lambda: api.counts().get('polls'), process)
    process.send_signal(signal.SIGINT)
    status, _, err = end(process)
    assert status == 1 and 'the same command fetches them' in err
    assert 'lists batches that are paid for; --batch=True fetches them' in client.refuses('--total=10')
    assert 'contains open batches of' in client.refuses('--total=10', '--batch=True', '--model=other')
    api.get('/release')
    client.run('--total=10', '--batch=True')
    assert sorted(client.ids()) == list(range(10)) and api.counts()['batches'] == 1


@pytest.mark.slow
def test_a_batch_that_is_refused_as_a_whole_ends_the_run(client, server):
    server(faults=1, kinds=['400'])
    assert client.refuses('--total=30', '--batch=True').endswith('says 400: no such field')
    assert client.ids() == client.ids('failed.jsonl') == []


@pytest.mark.slow
def test_a_server_without_batches(client, server):
    server(upload={'object': 'file'})
    assert 'does the server have a Batch API?' in client.refuses('--total=3', '--batch=True')


@pytest.mark.slow
def test_max_cost_holds_for_batches(client, server):
    server()
    status, _, err = end(client.start('--total=100', '--batch=True', '--max_cost=0.05'))  # $0.00155 a story
    assert status == 1 and 'max_cost is reached; the same command continues' in err
    assert 0.8 * 0.05 / 0.00155 < len(client.ids()) <= 0.05 / 0.00155


@pytest.mark.slow
def test_a_batch_without_a_usable_reply_is_not_repeated(client, server):
    api = server(reply='', finish_reason='length')
    assert 'reasoning used up max_tokens, as in' in client.refuses('--total=50', '--batch=True')
    assert api.counts()['batches'] == 1


@pytest.mark.slow
@pytest.mark.parametrize('state', [
    '', '[]', '\0\0\0', '{"open": 5}', '{"open": [{"file": "x"}], "retry": [], "size": 9, "model": ""}',
    '{"open": [], "retry": [{"nr": 1}], "size": 9, "model": ""}'])
def test_a_damaged_state_is_one_line(client, server, state):
    server()
    (client.path / 'stories.batches.json').write_text(state, encoding='utf-8')
    assert 'stories.batches.json is damaged' in client.refuses('--total=3', '--batch=True', status=1)
