"""
A chat API on loopback that misbehaves on a seeded schedule and counts what it served: run as a process of its own.

    python tests/chat_server.py '{"latency": 0.05, "faults": 0.3}'

It prints its port. GET /counts tells how many requests ended how, and the most that were in flight. Stories are made of
the Hindi word list, hold the words that stand in quotes in the prompt, and no two are alike but those meant to be.
"""

import asyncio
import collections
import email.utils
import json
import random
import sys
import time
from pathlib import Path

OPTIONS = {'latency': 0.0, 'faults': 0.0, 'kinds': None, 'seed': 1, 'key': '', 'rate': 0, 'retry_after': '', 'status': 0, 'error': '', 'stall': 5.0,
           'reply': None, 'usage': [100, 300], 'down': [0, 0.0], 'batch_seconds': 0.2, 'poison': ['', 0], 'trickle': 0.0, 'models': {'data': [{'id': 'tiny'}]},
           'batch_down': [0, 0.0], 'batch_limit': 0, 'upload': {}}  # down: after so many requests for so long; poison: prompts with this get that status
KINDS = ['429', '429 after', '429 date', '500', '503', 'stall', 'cut', 'reset', 'no choices', 'null', 'broken JSON', 'html', 'error in 200',
         'latin', 'duplicate', 'near', 'refusal', 'no JSON', 'length', 'short', 'unended']
NOUNS = [line.split('\t')[0] for line in (Path(__file__).parent.parent / 'data/hindi/nouns.txt').read_text(encoding='utf-8').split('\n')[2:] if line]
LATIN = ' '.join(['The old house stood by the river and a fox lived under it.'] * 8)

options = OPTIONS | json.loads(sys.argv[1] if len(sys.argv) > 1 else '{}')
counts = collections.Counter()
files, batches = {}, {}
flight = 0
tokens, refilled = 1.0, time.monotonic()  # of the rate limit's bucket
down_since = None


def story(rng, prompt=''):
    words = prompt.split('"')[1::2][:3]  # the seed words stand in quotes
    words += [rng.choice(NOUNS) for _ in range(80)]
    return ' '.join(' '.join(words[i:i + 8]) + ('।' if i % 16 else '!') for i in range(0, len(words), 8))


def completion(content, finish='stop', **message):
    usage = {'usage': dict(zip(('prompt_tokens', 'completion_tokens'), options['usage']))} if options['usage'] else {}
    return {'choices': [{'index': 0, 'finish_reason': finish, 'message': {'role': 'assistant', 'content': content} | message}]} | usage


def reply_to(body, rng, kind):
    """-> status, headers, body: bytes or anything for JSON"""
    prompt = body['messages'][-1]['content']
    def as_json(text):
        return json.dumps({'story': text}, ensure_ascii=False)

    if options['reply'] is not None:
        return 200, {}, completion(options['reply'].replace('{prompt}', prompt).replace('{story}', story(rng, prompt)))
    good = as_json(story(rng, prompt))
    good = rng.choice([good, f'```json\n{good}\n```', f'Here it is:\n{good}', good[:-1] + ',}', good.replace('। ', '।\n', 1)])
    fixed = story(random.Random(0))
    return {
        '400': (400, {}, {'error': {'message': 'no such field'}}),
        '429': (429, {}, {'error': {'message': 'slow down'}}),
        '429 after': (429, {'Retry-After': '0.2'}, {'error': {'message': 'slow down'}}),
        '429 date': (429, {'Retry-After': email.utils.formatdate(time.time() + 1, usegmt=True)}, {'error': {'message': 'slow down'}}),
        '500': (500, {}, b'<h1>oops</h1>'),
        '503': (503, {'Retry-After': '0'}, {'error': 'overloaded'}),
        'no choices': (200, {}, {'choices': []}),
        'null': (200, {}, completion(None)),
        'broken JSON': (200, {}, json.dumps(completion(good)).encode()[:-30]),
        'html': (200, {}, b'<!doctype html><p>gateway'),
        'error in 200': (200, {}, {'error': {'code': 502, 'message': 'upstream'}}),
        'latin': (200, {}, completion(as_json(LATIN))),
        'duplicate': (200, {}, completion(as_json(fixed))),
        'near': (200, {}, completion(as_json(fixed.replace(fixed.split()[20], rng.choice(NOUNS))))),
        'refusal': (200, {}, completion('I cannot do that.', refusal='I cannot do that.')),
        'no JSON': (200, {}, completion(story(rng))),
        'length': (200, {}, completion(good[:100], 'length')),
        'short': (200, {}, completion(as_json('एक था राजा।'))),
        'unended': (200, {}, completion(as_json(story(rng)[:-1] + ' और'))),
    }.get(kind, (200, {'x-request-id': 'x'}, completion(good)))


def limited():
    """Whether the rate limit, a bucket that `rate` tokens a second drip into, refuses this request."""
    global tokens, refilled
    now = time.monotonic()
    tokens, refilled = min(max(1, options['rate'] / 4), tokens + (now - refilled) * options['rate']), now
    if options['rate'] and tokens < 1:
        return True
    tokens -= 1
    return False


def is_down(name, n):
    global down_since
    after, seconds = options[name]
    if seconds and n > after:
        down_since = down_since or time.monotonic()
        if time.monotonic() < down_since + seconds:
            counts['down'] += 1
            return True
    return False


def serve_batches(method, path, body):
    """The Batch API in the manner of OpenAI's, or of Mistral's under /batch/jobs."""
    if method == 'POST' and path == '/files':
        content = body.split(b'\r\n\r\n')[-1].rsplit(b'\r\n--', 1)[0]
        files[name := f'file-{len(files)}'] = content
        return 200, options['upload'] or {'id': name}
    if path.startswith('/files/'):
        return 200, files[path.split('/')[2]]
    if method == 'GET' and path.split('?')[0] in ('/batches', '/batch/jobs'):
        return 200, {'data': list(batches.values())}
    if method == 'POST':
        order = json.loads(body)
        name = f'batch-{len(batches)}'
        counts['batches'] += 1
        file = order.get('input_file_id') or order['input_files'][0]
        batches[name] = {'id': name, 'input_file_id': file, 'input_files': [file], 'status': 'in_progress', 'at': time.monotonic()}
        return 200, batches[name]
    batch = batches[path.rsplit('/', 1)[1]]
    if options['batch_limit'] and files[batch['input_file_id']].count(b'\n') >= options['batch_limit']:
        return 200, batch | {'status': 'failed', 'errors': {'data': [{'code': 'token_limit_exceeded', 'message': 'Enqueued token limit reached'}]}}
    if batch['status'] == 'in_progress' and time.monotonic() - batch['at'] > options['batch_seconds']:
        rng, lines = random.Random(f'{options["seed"]} {batch["id"]}'), []
        for line in files[batch['input_file_id']].decode().splitlines():
            request = json.loads(line)
            kind = rng.choice(options['kinds'] or ['latin', '500', 'lost', 'garbage']) if rng.random() < options['faults'] else 'good'
            counts['batch ' + kind] += 1
            if kind == 'garbage':
                lines.append('{"custom_id": ' + '[' * 20)
            elif kind != 'lost':
                status, _, reply = reply_to(request['body'], rng, kind)
                lines.append(json.dumps({'custom_id': request['custom_id'], 'response': {
                    'status_code': status, 'body': reply if isinstance(reply, dict) else {}}}))
        files[name := f'file-{len(files)}'] = '\n'.join(lines).encode()
        batch |= {'status': 'completed', 'output_file_id': name, 'error_file_id': None}
    return 200, batch


async def answer(method, path, headers, body):
    """-> status, headers, body (bytes, or anything for JSON), or None to cut the connection"""
    global flight
    if path == '/counts':
        return 200, {}, dict(counts)
    if options['key'] and headers.get('authorization') != f'Bearer {options["key"]}':
        return 401, {}, {'error': {'message': f'Incorrect API key provided: {headers.get("authorization")}'}}
    if path == '/models':
        return 200, {}, options['models']
    if not path.startswith('/chat/completions'):
        counts['calls'] += 1
        return None if is_down('batch_down', counts['calls']) else (lambda status, reply: (status, {}, reply))(*serve_batches(method, path, body))
    counts['requests'] += 1
    rng = random.Random(f'{options["seed"]} {counts["requests"]}')
    kind = rng.choice(options['kinds'] or KINDS) if rng.random() < options['faults'] else 'good'
    if is_down('down', counts['requests']):
        return None
    if options['poison'][0] and options['poison'][0] in body.decode():
        counts['poison'] += 1
        return options['poison'][1], {}, {'error': {'message': 'flagged'}}
    if limited():
        counts['limited'] += 1
        return 429, {'Retry-After': options['retry_after']} if options['retry_after'] else {}, {'error': {'message': 'rate limit'}}
    flight += 1
    counts['most in flight'] = max(counts['most in flight'], flight)
    if options['latency'] or kind == 'stall':
        await asyncio.sleep(options['stall'] if kind == 'stall' else options['latency'])
    flight -= 1
    if options['status']:
        counts[str(options['status'])] += 1
        return options['status'], {}, {'error': {'message': options['error'], 'code': options['error'].replace(' ', '_')}}
    counts[kind] += 1
    if kind == 'reset':
        return None
    status, more, reply = reply_to(json.loads(body), rng, kind)
    return status, more | ({'cut': '1'} if kind == 'cut' else {}), reply


async def connection(reader, writer):
    try:
        while head := await reader.readuntil(b'\r\n\r\n'):
            first, *lines = head.decode('latin-1').rstrip().split('\r\n')
            headers = {name.lower(): value.strip() for name, value in (line.split(':', 1) for line in lines)}
            body = await reader.readexactly(int(headers.get('content-length', 0)))
            method, path, _ = first.split(' ')
            result = await answer(method, path, headers, body)
            if result is None:
                break
            status, more, reply = result
            reply = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
            more |= {'Content-Length': len(reply)}
            head = f'HTTP/1.1 {status} X\r\n' + ''.join(f'{name}: {value}\r\n' for name, value in more.items())
            writer.write(head.encode() + b'\r\n')
            if options['trickle'] and path.startswith('/chat'):
                for byte in reply:
                    writer.write(bytes([byte]))
                    await asyncio.sleep(options['trickle'])
            else:
                writer.write(reply[:len(reply) // 2 if 'cut' in more else None])
            await writer.drain()
            if 'cut' in more:
                break
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    writer.close()


async def main():
    server = await asyncio.start_server(connection, '127.0.0.1', 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


asyncio.run(main())
