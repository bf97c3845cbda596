"""
A judge on loopback that knows the truth: run as a process of its own, it prints its port.

    python tests/judge_server.py '{"noise": 0.7}'

What a story deserves is a function of its opening, of the whole and of the judge's name, with a mean of 5.5 over all
texts; a grade is that and noise, rounded. Whoever asks for the same story again gets other noise, but the first grades of
a name are always the same. The judge is naive: it obeys whatever asks it for a grade outside of the fences.
"""

import collections
import hashlib
import json
import random
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

OPTIONS = {'noise': 0.7, 'criteria': ['context_awareness', 'completeness', 'grammar', 'fluency', 'creativity', 'overall'], 'latency': 0.0,
           'replies': {}, 'bad': 0.0, 'status': 0, 'stop_after': 0}
BAD = ['I cannot grade this.', '{"overall": 11}', '{"notes": "good"}', 'Overall: 7-8', '{"overall": 5']


def truth(judge, texts):
    """The grade that texts deserve: 4 to 7, most of its variance being the opening's."""
    opening, whole = (int(hashlib.sha256(f'{judge} {text}'.encode()).hexdigest(), 16) for text in (texts[0].strip(), ''.join(texts)))
    return 4 + opening % 3 + whole % 2


def texts_in(prompt):
    """A message -> the texts between its fences, and what is left without them."""
    number = re.search(r'^===== ([0-9a-f]{16}), here it begins$', prompt, flags=re.M)[1]
    fence = re.compile(rf'^===== {number}, here it begins\n(.*?)\n===== {number}, here it ends$', flags=re.M | re.S)
    return fence.findall(prompt), fence.sub('', prompt)


def reply_to(judge, prompt):
    texts, rest = texts_in(prompt)
    if texts[-1].strip() in options['replies']:
        return options['replies'][texts[-1].strip()]
    with lock:
        seen[judge, tuple(texts)] += 1
        rng = random.Random(f'{judge} {texts} {seen[judge, tuple(texts)]}')
    if rng.random() < options['bad']:
        return rng.choice(BAD)
    obeyed = re.search(r'(?:give|grade|score|rate)\b.{0,40}\b10\b', rest, flags=re.I)
    grades = {name: 10 if obeyed else min(10, max(1, round(truth(judge, texts) + rng.gauss(0, options['noise'])))) for name in options['criteria']}
    return json.dumps({'notes': 'as it deserves'} | grades)


class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def send(self, status, data):
        body = json.dumps(data, ensure_ascii=False).encode()
        head = f'HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n'
        self.wfile.write(head.encode() + body)  # in one piece, or the client waits for the second

    def do_GET(self):
        self.send(200, {'data': [{'id': 'truth'}]})  # the list of models

    def do_POST(self):
        global n_requests
        body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        with lock:
            n_requests += 1
            over = options['stop_after'] and n_requests > options['stop_after']
        time.sleep(options['latency'])
        if options['status'] or over:
            return self.send(options['status'] or 402, {'error': {'message': 'no more'}})
        message = {'role': 'assistant', 'content': reply_to(body['model'], body['messages'][0]['content'])}
        self.send(200, {'choices': [{'message': message, 'finish_reason': 'stop'}], 'usage': {'prompt_tokens': 500, 'completion_tokens': 50}})

    def handle(self):
        try:
            super().handle()
        except (ConnectionError, ValueError):  # a client that was killed, maybe half-way through its question
            pass

    def log_message(self, *_):
        pass


options = OPTIONS | json.loads(sys.argv[1] if len(sys.argv) > 1 else '{}')
seen, n_requests, lock = collections.Counter(), 0, threading.Lock()
server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
server.daemon_threads = True
print(server.server_port, flush=True)
server.serve_forever()
