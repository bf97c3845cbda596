"""
A chat API on loopback that fails on a seeded schedule and counts what it served. Run it as a process of its own:

    python tests/chat_server.py '{"latency": 0.05, "faults": 0.3}'

It prints its port. GET /counts returns how many requests ended how, and the most that were in flight. Its stories
are random Hindi nouns and contain the words in quotes of the prompt; no two are alike, except those of DUPLICATES.
"""

import asyncio
import collections
import email.utils
import json
import random
import ssl
import sys
import time
from pathlib import Path

OPTIONS = {
    'seed': 1,
    'latency': 0.0,  # seconds
    'faults': 0.0,  # fraction of requests with a fault
    'kinds': None,  # of faults; None = all
    'stall': 5.0,  # seconds of a 'stall'
    'key': '',  # the only accepted key
    'rate': 0,  # requests per second, 0 = no limit
    'retry_after': '',  # header of a 429 of the rate limit
    'status': 0,  # if not 0, every request gets this status
    'error': '',  # with this message
    'poison': ['', 0],  # a request that contains this text gets this status
    'reply': None,  # content of good replies; {prompt} and {story} are replaced; a list = one of these at random
    'finish_reason': 'stop',  # of good replies
    'message': {},  # more fields of the message of good replies
    'body': '',  # the body of every reply, if not empty
    'prefix': '',  # of all addresses, such as /v1
    'tls': [],  # files of a certificate and its key: https
    'usage': [100, 300],  # input and output tokens
    'down': [0, 0.0],  # after so many chat requests, the server is down for so many seconds
    'trickle': 0.0,  # seconds between two bytes of a reply
    'models': {'data': [{'id': 'tiny'}]},
    'hold_batches': False,  # batches end only after GET /release
    'batches_down': [0, 0.0],  # as `down`, for the calls of the Batch API
    'batch_limit': 0,  # a batch of so many requests fails
    'upload': {},  # reply to an upload, if not empty
}
NOUNS_FILE = Path(__file__).parent.parent / 'data/hindi/nouns.txt'
NOUNS = [line.split('\t')[0] for line in NOUNS_FILE.read_text(encoding='utf-8').split('\n')[2:] if line]
LATIN = ' '.join(['The old house stood by the river and a fox lived under it.'] * 8)
KINDS = ['429', '429 after', '429 date', '500', '503', 'stall', 'cut', 'reset', 'no choices', 'null', 'broken JSON',
         'html', 'error in 200', 'latin', 'duplicate', 'near', 'refusal', 'no JSON', 'length', 'short', 'unended']

options = OPTIONS | json.loads(sys.argv[1] if len(sys.argv) > 1 else '{}')
counts = collections.Counter()
in_flight = 0
released = not options['hold_batches']

# -----------------------------------------------------------------------------
# replies


def write_story(rng, prompt=''):
    words = prompt.split('"')[1::2][:3]  # the seed words are in quotes
    words += [rng.choice(NOUNS) for _ in range(120)]
    sentences = []
    for i in range(0, len(words), 8):
        end = '।' if i % 16 else '!'
        sentences.append(' '.join(words[i:i + 8]) + end)
    return ' '.join(sentences)


def as_json(story):
    return json.dumps({'story': story}, ensure_ascii=False)


def completion(content, finish_reason='stop', **message):
    message = {'role': 'assistant', 'content': content} | message
    data = {'choices': [{'index': 0, 'finish_reason': finish_reason, 'message': message}]}
    if options['usage']:
        data['usage'] = {'prompt_tokens': options['usage'][0], 'completion_tokens': options['usage'][1]}
    return data


def good_content(rng, prompt):
    story = write_story(rng, prompt)
    if options['reply'] is not None:
        reply = rng.choice(options['reply']) if isinstance(options['reply'], list) else options['reply']
        text = json.dumps(reply).replace('{prompt}', json.dumps(prompt)[1:-1])
        return json.loads(text.replace('{story}', json.dumps(story)[1:-1]))
    good = as_json(story)
    return rng.choice([
        good, f'```json\n{good}\n```', f'Here it is:\n{good}', good[:-1] + ',}', good.replace('। ', '।\n', 1)])


def reply_to(request, rng, kind):
    """-> status, headers, body: bytes, or anything for JSON"""
    good = good_content(rng, request['messages'][-1]['content'])
    fixed_story = write_story(random.Random(0))
    near_copy = fixed_story.replace(fixed_story.split()[20], rng.choice(NOUNS))
    date = email.utils.formatdate(time.time() + 1, usegmt=True)
    slow_down = {'error': {'message': 'slow down'}}
    replies = {
        '400': (400, {}, {'error': {'message': 'no such field'}}),
        '429': (429, {}, slow_down),
        '429 after': (429, {'Retry-After': '0.2'}, slow_down),
        '429 date': (429, {'Retry-After': date}, slow_down),
        '500': (500, {}, b'<h1>oops</h1>'),
        '503': (503, {'Retry-After': '0'}, {'error': 'overloaded'}),
        'no choices': (200, {}, {'choices': []}),
        'null': (200, {}, completion(None)),
        'broken JSON': (200, {}, json.dumps(completion(good)).encode()[:-30]),
        'html': (200, {}, b'<!doctype html><p>gateway'),
        'busy in 200': (200, {}, {'error': {'code': 'server_busy', 'message': 'overloaded'}}),
        'error in 200': (200, {}, {'error': {'code': 502, 'message': 'upstream'}}),
        'latin': (200, {}, completion(as_json(LATIN))),
        'duplicate': (200, {}, completion(as_json(fixed_story))),
        'near': (200, {}, completion(as_json(near_copy))),
        'refusal': (200, {}, completion('I cannot do that.', refusal='I cannot do that.')),
        'no JSON': (200, {}, completion(write_story(rng))),
        'length': (200, {}, completion(good[:100], 'length')),
        'short': (200, {}, completion(as_json('एक था राजा।'))),
        'unended': (200, {}, completion(as_json(write_story(rng)[:-1] + ' और'))),
    }
    return replies.get(kind, (200, {}, completion(good, options['finish_reason'], **options['message'])))


def random_kind(rng, kinds):
    if rng.random() < options['faults']:
        return rng.choice(options['kinds'] or kinds)
    return 'good'


# -----------------------------------------------------------------------------
# limits

bucket = 1.0  # of the rate limit: a request takes one token, `rate` tokens a second are added
bucket_time = time.monotonic()
down_since = None


def is_limited():
    global bucket, bucket_time
    now = time.monotonic()
    bucket = min(max(1, options['rate'] / 4), bucket + (now - bucket_time) * options['rate'])
    bucket_time = now
    if options['rate'] and bucket < 1:
        return True
    bucket -= 1
    return False


def is_down(name, n):
    global down_since
    after, seconds = options[name]
    if not seconds or n <= after:
        return False
    down_since = down_since or time.monotonic()
    if time.monotonic() > down_since + seconds:
        return False
    counts['down'] += 1
    return True


# -----------------------------------------------------------------------------
# the Batch API, as OpenAI has it, or Mistral under /batch/jobs

files = {}
batches = {}


def add_file(content):
    name = f'file-{len(files)}'
    files[name] = content
    return name


def serve_batches(method, path, body):
    """-> the reply's body"""
    if method == 'POST' and path == '/files':
        counts['files'] += 1
        name = add_file(body.split(b'\r\n\r\n')[-1].rsplit(b'\r\n--', 1)[0])
        return options['upload'] or {'id': name}
    if path.startswith('/files/'):
        return files[path.split('/')[2]]
    if method == 'POST':
        counts['batches'] += 1
        name = f'batch-{len(batches)}'
        fields = json.loads(body)
        file = fields.get('input_file_id') or fields['input_files'][0]
        batches[name] = {'id': name, 'input_file_id': file, 'input_files': [file], 'status': 'in_progress'}
        return batches[name]
    if path.split('?')[0] in ('/batches', '/batch/jobs'):
        return {'data': list(batches.values())}
    counts['polls'] += 1
    batch = batches[path.rsplit('/', 1)[1]]
    lines = files[batch['input_file_id']].decode().splitlines()
    if options['batch_limit'] and len(lines) > options['batch_limit']:
        error = {'code': 'token_limit_exceeded', 'message': 'Enqueued token limit reached'}
        return batch | {'status': 'failed', 'errors': {'data': [error]}}
    if batch['status'] == 'in_progress' and released:
        results = add_file('\n'.join(process_batch(batch['id'], lines)).encode())
        batch |= {'status': 'completed', 'output_file_id': results, 'error_file_id': None}
    return batch


def process_batch(name, lines):
    rng = random.Random(f'{options["seed"]} {name}')
    results = []
    for line in lines:
        request = json.loads(line)
        kind = random_kind(rng, ['latin', '500', 'lost', 'garbage'])
        counts[f'batch {kind}'] += 1
        if kind == 'garbage':
            results.append('{"custom_id": ' + '[' * 20)
        elif kind != 'lost':
            status, _, reply = reply_to(request['body'], rng, kind)
            response = {'status_code': status, 'body': reply if isinstance(reply, dict) else {}}
            results.append(json.dumps({'custom_id': request['custom_id'], 'response': response}))
    return results


# -----------------------------------------------------------------------------
# HTTP


async def answer(method, path, headers, body):
    """-> status, headers, body (bytes, or anything for JSON); None cuts the connection"""
    global released
    if path == '/counts':
        return 200, {}, dict(counts)
    if path == '/release':
        released = True
        return 200, {}, {}
    if not path.startswith(options['prefix']):
        return 404, {}, b'404 page not found'
    path = path.removeprefix(options['prefix'])
    if options['key'] and headers.get('authorization') != f'Bearer {options["key"]}':
        return 401, {}, {'error': {'message': f'Incorrect API key provided: {headers.get("authorization")}'}}
    if options['body']:
        return 200, {}, options['body'].encode()
    if path == '/models':
        return 200, {}, options['models']
    if path == '/chat/completions':
        return await answer_chat(body)
    counts['calls'] += 1
    if is_down('batches_down', counts['calls']):
        return None
    return 200, {}, serve_batches(method, path, body)


async def answer_chat(body):
    global in_flight
    counts['requests'] += 1
    counts.update(f'field {name}' for name in json.loads(body))
    rng = random.Random(f'{options["seed"]} {counts["requests"]}')
    kind = random_kind(rng, KINDS)
    if is_down('down', counts['requests']):
        return None
    text, status = options['poison']
    if text and text in body.decode():
        counts['poison'] += 1
        return status, {}, {'error': {'message': 'flagged'}}
    if is_limited():
        counts['limited'] += 1
        headers = {'Retry-After': options['retry_after']} if options['retry_after'] else {}
        return 429, headers, {'error': {'message': 'rate limit'}}
    counts[kind if not options['status'] else str(options['status'])] += 1
    in_flight += 1
    counts['most in flight'] = max(counts['most in flight'], in_flight)
    await asyncio.sleep(options['stall'] if kind == 'stall' else options['latency'])
    in_flight -= 1
    if options['status']:
        return options['status'], {}, {'error': {'message': options['error']}}
    if kind == 'reset':
        return None
    status, headers, reply = reply_to(json.loads(body), rng, kind)
    return status, headers | ({'cut': '1'} if kind == 'cut' else {}), reply


async def serve(reader, writer):
    """One connection."""
    try:
        while head := await reader.readuntil(b'\r\n\r\n'):
            request_line, *lines = head.decode('latin-1').rstrip().split('\r\n')
            headers = {}
            for line in lines:
                name, value = line.split(':', 1)
                headers[name.lower()] = value.strip()
            body = await reader.readexactly(int(headers.get('content-length', 0)))
            method, path, _ = request_line.split(' ')
            result = await answer(method, path, headers, body)
            if result is None:
                break
            status, headers, reply = result
            if not isinstance(reply, bytes):
                reply = json.dumps(reply).encode()
            writer.write(f'HTTP/1.1 {status} X\r\nContent-Length: {len(reply)}\r\n'.encode())
            for name, value in headers.items():
                writer.write(f'{name}: {value}\r\n'.encode())
            writer.write(b'\r\n')
            if options['trickle'] and path.startswith('/chat'):
                for byte in reply:
                    writer.write(bytes([byte]))
                    await asyncio.sleep(options['trickle'])
            else:
                writer.write(reply[:len(reply) // 2] if 'cut' in headers else reply)
            await writer.drain()
            if 'cut' in headers:
                break
    except (asyncio.IncompleteReadError, ConnectionError):
        pass  # the client has gone
    writer.close()


async def main():
    context = None
    if options['tls']:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*options['tls'])
    server = await asyncio.start_server(serve, '127.0.0.1', 0, backlog=1024, ssl=context)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


asyncio.run(main())
