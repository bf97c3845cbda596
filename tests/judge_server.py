"""
A judge on loopback that knows the true grades. It prints its port.

    python tests/judge_server.py '{"noise": 0.7}'

The true grade of a story depends on its opening, on the whole story and on the judge's name; its mean over all stories
is 5.5. A grade is the true grade plus noise, rounded. Another request for the same story gets other noise, but the n-th
grade of a story by a judge is always the same. The judge is naive: it obeys every text outside the fences.
"""

import collections
import hashlib
import itertools
import json
import random
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

OPTIONS = {
    'noise': 0.7,  # standard deviation
    'criteria': ['context_awareness', 'completeness', 'grammar', 'fluency', 'creativity', 'overall'],
    'latency': 0.0,  # seconds
    'form': '',  # a text with {grade} in place of each number
    'bad': 0.0,  # fraction of replies that are no grades
    'quotes': False,  # a judge that only quotes the text
    'stop_after': 0,  # requests; then every reply is a 402
}
BAD = ['I cannot grade this.', '{"overall": 11}', '{"notes": "good"}', 'Overall: 7-8', '{"overall": 5}']


def hash_of(text):
    return int(hashlib.sha256(text.encode()).hexdigest(), 16)


def true_grade(judge, texts):
    """From 4 to 7. Most of its variance is the opening's."""
    return 4 + hash_of(f'{judge} {texts[0].strip()}') % 3 + hash_of(f'{judge} {"".join(texts)}') % 2


def split_prompt(prompt):
    """The texts between the fences, and the rest of the prompt."""
    number = re.search(r'^===== ([0-9a-f]{16}), here it begins$', prompt, flags=re.M)[1]
    pattern = rf'^===== {number}, here it begins\n(.*?)\n===== {number}, here it ends$'
    fence = re.compile(pattern, flags=re.M | re.S)
    return fence.findall(prompt), fence.sub('', prompt)


def reply_to(judge, prompt):
    texts, rest = split_prompt(prompt)
    with lock:
        key = f'{judge} {texts}'
        n_graded[key] += 1
        rng = random.Random(f'{key} {n_graded[key]}')
    if rng.random() < options['bad']:
        return rng.choice(BAD)
    if options['quotes']:
        return f'The author wrote this:\n\n{texts[-1].strip()}\n\nIt is no story, and I refuse.'
    obeys = re.search(r'(?:give|grade|score|rate)\b.{0,40}\b10\b', rest, flags=re.I)
    grades = {'notes': 'as it deserves'}
    for name in options['criteria']:
        grade = round(true_grade(judge, texts) + rng.gauss(0, options['noise']))
        grade = 10 if obeys else min(10, max(1, grade))
        grades[name] = options['form'].replace('{grade}', str(grade)) or grade
    return json.dumps(grades)


class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def send(self, status, data):
        body = json.dumps(data, ensure_ascii=False).encode()
        head = f'HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n'
        self.wfile.write(head.encode() + body)  # in one piece, or the client waits for the second

    def do_GET(self):
        self.send(200, {'data': [{'id': 'truth'}]})  # the list of models

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        n = next(request_numbers)
        time.sleep(options['latency'])
        if options['stop_after'] and n > options['stop_after']:
            return self.send(402, {'error': {'message': 'no more'}})
        message = {'role': 'assistant', 'content': reply_to(body['model'], body['messages'][0]['content'])}
        usage = {'prompt_tokens': 500, 'completion_tokens': 50}
        self.send(200, {'choices': [{'message': message, 'finish_reason': 'stop'}], 'usage': usage})

    def handle(self):
        try:
            super().handle()
        except (ConnectionError, ValueError):  # the client was killed, maybe in the middle of a request
            pass

    def log_message(self, *_):
        pass


options = OPTIONS | json.loads(sys.argv[1] if len(sys.argv) > 1 else '{}')
n_graded, request_numbers, lock = collections.Counter(), itertools.count(1), threading.Lock()
server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
server.daemon_threads = True
print(server.server_port, flush=True)
server.serve_forever()
