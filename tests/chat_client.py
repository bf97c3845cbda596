"""
The smallest script that uses chat.collect: it writes stories.jsonl.

    python chat_client.py --base_url=http://127.0.0.1:8000 --total=100
"""
import os

base_url = ''
provider = ''
model = 'tiny'
total = 100
shard = '1/1'
out = 'stories.jsonl'
extra = {}
temperature = 1.0
max_tokens = 300
price_in = 1.0
price_out = 10.0
num_workers = 16
timeout = 60.0
max_tries = 5
max_cost = 0.0
max_failed = 1.0
batch = False
max_backoff = 60.0
max_reply = 1 << 24
start_timeout = 15.0
here = os.path.dirname(os.path.abspath(globals().get('__file__', 'chat_client.py')))
can_be_none = ('temperature', 'max_tokens')
exec(open(os.path.join(here, 'configurator.py'), encoding='utf-8').read())

import signal
import threading

import batches
import chat
from files import check, fail, open_append, parse_shard

part, n_parts = parse_shard(shard)
all_ids = range(part - 1, total, n_parts)
chat.MAX_BACKOFF = max_backoff
chat.MAX_REPLY = max_reply
chat.START_TIMEOUT = start_timeout
batches.POLL_INTERVAL = 0.2


def prompt(i):
    return [{'role': 'user', 'content': f'Prompt {i}.'}]


def accept(i, text):
    if not text.startswith('A story'):
        raise chat.Rejected('no story')
    return [{'id': i, 'text': text}]


check(total > 0, 'total must be positive')
api = chat.connect(provider, base_url, model, temperature, max_tokens, extra, price_in, price_out)
handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
with open_append(out) as f:
    spent = [0, 0, 0.0]
    done = {row['id']: 'reason' in row for row in chat.finished(out, spent)}
    n_failed = sum(done.values())
    ids = (i for i in all_ids if i not in done)
    problem = chat.collect(
        api, ids, prompt, accept, f, total=len(all_ids), n_done=len(done), spent=spent, num_workers=num_workers,
        timeout=timeout, max_tries=max_tries, max_cost=max_cost, n_failed=n_failed, max_failed=max_failed, batch=batch,
        done=done)
assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
for thread in threading.enumerate():
    if thread.daemon and thread.name.startswith('chat'):
        thread.join(timeout)
print(f'{sum(thread.name.startswith("chat") for thread in threading.enumerate())} workers left')
if problem:
    fail(problem)
print('complete')
