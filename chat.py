"""
The chat client: any number of prompts to an API that speaks OpenAI's /chat/completions, many at a time.

    api = chat.connect('mistral')                              # the key is read from MISTRAL_API_KEY, and shown nowhere
    with jsonl.open_append('stories.jsonl') as f:
        chat.collect(api, ids, prompt, accept, f, total=1000)  # one row or more an id, appended as they come

Worker threads send requests and do nothing else. The calling thread hands out the work, reads the replies, writes the
rows and decides what is tried again, so that nothing needs a lock.
"""

import collections
import email.utils
import heapq
import itertools
import json
import os
import queue
import random
import re
import signal
import sys
import threading
import time

import requests
import urllib3
from tqdm import tqdm

import jsonl

PROVIDERS = {  # name: address, the variable that holds the key, a model that writes well for little ('': --model says which)
    'openai': ('https://api.openai.com/v1', 'OPENAI_API_KEY', 'gpt-6-luna'),
    'mistral': ('https://api.mistral.ai/v1', 'MISTRAL_API_KEY', 'mistral-small-latest'),
    'gemini': ('https://generativelanguage.googleapis.com/v1beta/openai', 'GEMINI_API_KEY', 'gemini-3.1-flash-lite'),
    'groq': ('https://api.groq.com/openai/v1', 'GROQ_API_KEY', 'openai/gpt-oss-120b'),
    'together': ('https://api.together.xyz/v1', 'TOGETHER_API_KEY', 'Qwen/Qwen3.8-Flash'),
    'openrouter': ('https://openrouter.ai/api/v1', 'OPENROUTER_API_KEY', ''),
    'sarvam': ('https://api.sarvam.ai/v1', 'SARVAM_API_KEY', 'sarvam-30b'),
    'ollama': ('http://localhost:11434/v1', '', ''),
    'vllm': ('http://localhost:8000/v1', '', ''),
    'llama.cpp': ('http://localhost:8080/v1', '', ''),
}
BATCH_PROVIDERS = ('openai', 'groq', 'mistral')

PRICES = {  # US dollars for a million tokens in and out, as litellm 1.106.2 (November 2026) has them; --price_in, --price_out for others
    'gpt-6-luna': (0.10, 0.50), 'gpt-6-sol': (2.00, 10.00), 'gpt-5.4-nano': (0.20, 1.25), 'gpt-5.4-mini': (0.75, 4.50), 'gpt-4o-mini': (0.15, 0.60),
    'mistral-small-latest': (0.15, 0.60), 'mistral-large-latest': (0.50, 1.50), 'ministral-8b-latest': (0.15, 0.15),
    'gemini-3.1-flash-lite': (0.25, 1.50), 'gemini-3.8-flash': (0.75, 3.75),
    'openai/gpt-oss-120b': (0.15, 0.60), 'openai/gpt-oss-20b': (0.075, 0.30), 'Qwen/Qwen3.8-Flash': (0.15, 0.47),
}

CONNECT_TIMEOUT = 10  # seconds
MAX_WAIT = 60  # seconds, the longest backoff after an error
PATIENCE = 3600  # seconds without any answer, or that a provider may ask to wait, before the run is ended
MAX_REPLY = 1 << 24  # bytes
BATCH_SIZE = 20_000  # requests a batch, at first; OpenAI takes 50,000 and 200 MB
OPEN_BATCHES = 10
POLL = 30  # seconds between two looks at the batches


class Rejected(Exception):
    """Raised by `accept` for a reply that will not do; its text is the reason, a few words that are counted."""


def connect(provider='', base_url='', model='', temperature=1.0, max_tokens=1024, extra=None, price_in=-1.0, price_out=-1.0, otherwise=''):
    """Who answers, and how -> a dict for `ask` and `collect`. Ends the program with one line when something is missing.

    provider: a name of PROVIDERS; with base_url it may be left out, and the key is then in CHAT_API_KEY, if one is needed.
    model: the provider's usual one when empty, or else the first that the server lists.
    temperature, max_tokens, extra (a dict): fields of every request.
    price_in, price_out: US dollars for a million tokens; from PRICES when negative.
    otherwise: what a user without a key can do instead, for the message.
    """
    if not base_url and provider not in PROVIDERS:
        raise SystemExit(f'there is no provider {provider!r}; there is: {", ".join(PROVIDERS)}; --base_url=http… for any other')
    url, variable, usual = PROVIDERS.get(provider, ('', 'CHAT_API_KEY', ''))
    url = (base_url or url).rstrip('/')
    if not re.fullmatch(r'https?://[^\s/@]+(/[^\s@?#]*)?', url):
        raise SystemExit('base_url begins with http:// or https:// and holds no name, password or ?…; a key is given in CHAT_API_KEY')
    key = os.environ.get(variable, '').strip() if variable else ''
    if not key and variable and not base_url:
        raise SystemExit(f'{variable} is not set; export {variable}=… with your key of {provider}' + (f', {otherwise}' if otherwise else ''))
    if not re.fullmatch(r'[!-~]*', key):
        raise SystemExit(f'{variable} holds something that is not a key (white space or letters outside ASCII)')
    api = {'provider': provider if provider in PROVIDERS else url, 'url': url, 'key': key, 'headers': {'Authorization': f'Bearer {key}'} if key else {}}
    if not (model or usual):
        listed = request(api, 'GET', '/models')
        models = [model for model in (listed.get('data') if isinstance(listed, dict) else listed) or [] if isinstance(model, dict)]
        usual = str(models[0].get('id') or '') if models else ''
        if not usual:
            raise SystemExit(f'{url} lists no model; say which with --model=…')
    model = model or usual
    if not (0 <= temperature < 1e6 and max_tokens > 0 and price_in < 1e9 and price_out < 1e9):  # nor is nan
        raise SystemExit('temperature is a number from 0, max_tokens from 1, price_in and price_out are US dollars a million tokens')
    try:
        json.dumps(extra, allow_nan=False)
    except (TypeError, ValueError) as e:
        raise SystemExit(f'extra holds what JSON cannot ({e})') from None
    limit = 'max_completion_tokens' if provider == 'openai' else 'max_tokens'
    api['fields'] = {'model': model, 'temperature': temperature, limit: max_tokens} | (extra or {})
    local = not variable or re.match(r'https?://(localhost|127\.|\[::1\])', url)
    prices = PRICES.get(model, (0.0, 0.0) if local else None)
    if min(price_in, price_out) >= 0:
        prices = (price_in, price_out)
    elif max(price_in, price_out) >= 0:
        raise SystemExit('price_in and price_out go together')
    return api | {'model': model, 'max_tokens': max_tokens, 'prices': prices}


def ask(api, messages):
    """One request -> the text of the reply."""
    try:
        return text_of(request(api, 'POST', '/chat/completions', patience=60, json=api['fields'] | {'messages': messages}))
    except Rejected as e:
        raise SystemExit(f'{api["provider"]}: {e}') from None


def text_of(data, whole=True):
    """What the model says in a reply's JSON; raises Rejected. whole: a text cut off at max_tokens will not do."""
    choice = data.get('choices') if isinstance(data, dict) else None
    if not (isinstance(choice, list) and choice and isinstance(choice[0], dict)):
        raise Rejected('no choices' if isinstance(data, dict) else 'broken reply')
    message = choice[0].get('message') if isinstance(choice[0].get('message'), dict) else {}
    content = message.get('content')
    if isinstance(content, list):  # some send parts
        content = ''.join(str(part.get('text') or '') for part in content if isinstance(part, dict))
    if message.get('refusal') or choice[0].get('finish_reason') == 'content_filter':
        raise Rejected('refused')
    if not isinstance(content, str) or not content.strip():
        raise Rejected('empty reply')
    if whole and choice[0].get('finish_reason') == 'length':
        raise Rejected('cut off at max_tokens')
    return content


def find_json(text, key):
    """The first JSON object in `text` that has `key`, or None. Passed over are code fences, prose, raw line breaks, trailing commas, \\'
    and, where `key` holds a string, quotation marks inside it."""
    decoder = json.JSONDecoder(strict=False)  # strict would refuse line breaks inside strings
    text = text.rpartition('</think>')[2]
    for candidate in (text, re.sub(r',(?=\s*[}\]])', '', text.replace("\\'", "'"))):
        for brace in itertools.islice(re.finditer(r'\{', candidate), 200):
            try:
                found = decoder.raw_decode(candidate, brace.start())[0]
            except (ValueError, RecursionError):
                continue
            if key in found:
                return found
    begin = re.search(rf'"{re.escape(key)}"\s*:\s*"', candidate)
    end = begin and re.compile(r'"\s*(?:,\s*"\w+"\s*:|,?\s*\})').search(candidate, begin.end())  # the next key, or the end
    try:
        return {key: decoder.decode('"' + re.sub(r'(?<!\\)"', r'\\"', candidate[begin.end():end.start()]) + '"')} if end else None
    except ValueError:
        return None


def finished(out, spent=None):
    """Yield the rows of `out`, and those of failed.jsonl beside it that are about `out`; `spent` (a list: tokens in, tokens out, US dollars)
    grows by what they took, if given."""
    failed = os.path.join(os.path.dirname(out), 'failed.jsonl')
    for path in (out, failed):
        for row in jsonl.read(path) if os.path.exists(path) else ():
            if path == failed and not (isinstance(row, dict) and row.get('out') == os.path.basename(out)):
                continue
            if spent and isinstance(row, dict):
                for place, name in enumerate(('prompt_tokens', 'completion_tokens', 'cost')):
                    spent[place] += row[name] if isinstance(row.get(name), (int, float)) else 0
            if path == out or 'id' in row:
                yield row


def collect(api, ids, prompt, accept, file, *, total, n_done=0, spent=(0, 0, 0), unit='stories', num_workers=16, timeout=120.0, max_tries=5,
            max_cost=0.0, batch=False, whole=True):
    """Ask for every id and append what comes to a file of jsonl.open_append: an id's rows in one write, each with model, prompt_tokens,
    completion_tokens and cost (of all its tries, in its first row). What is given up goes to failed.jsonl beside it, with the reason.

    ids: iterable of what is still to be asked, taken as needed. total, n_done: how many ids there are, and are done already.
    prompt(id) -> messages. accept(id, text) -> rows (a list of dicts with that `id`), or raises Rejected.
    spent: what earlier runs took, as `finished` counts it; rows without a cost, of a model whose price was not known, count as free.
    max_cost: US dollars, of all runs on this file, 0: no limit. A reply that does not say its tokens counts as max_tokens.
    timeout: seconds for a reply. max_tries: tries of an id, be it errors or rejected replies.
    batch: by the Batch API, at half the price. whole: False gives `accept` replies cut off at max_tokens, too.
    -> True when every id is done; False when max_cost or Ctrl-C ended it before. Raises SystemExit, one line, when the
    provider refuses to go on; all that was answered is written first.
    """
    if not (1 <= num_workers <= 10_000 and max_tries >= 1 and 0 < timeout <= 86_400 and max_cost >= 0):
        raise SystemExit('num_workers is from 1 to 10,000, max_tries from 1, timeout more than 0 seconds and at most a day, max_cost from 0')
    if max_cost and not api['prices']:
        raise SystemExit(f'max_cost needs the price of {api["model"]}: --price_in=… --price_out=… in US dollars a million tokens')
    if batch and not (api['provider'] in BATCH_PROVIDERS or api['provider'] == api['url']):
        raise SystemExit(f'{api["provider"]} has no Batch API that is spoken here; there is: {", ".join(BATCH_PROVIDERS)}')
    batches = read_batches(file.name)
    if batches['open'] and not batch:
        raise SystemExit(f'{len(batches["open"])} batches for {file.name} are open and paid for; --batch=True fetches them')
    run = Run(api, accept, file, whole, unit, max_tries, max_cost, discount=0.5 if batch else 1.0, spent=spent,
              bar=tqdm(total=total, initial=n_done, desc=file.name, smoothing=0.1, dynamic_ncols=True,
                       bar_format='{desc}: {percentage:3.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]'))

    def body(i):
        return api['fields'] | {'messages': prompt(i)}

    try:
        return (Batches(run, ids, body, batches) if batch else Live(run, ids, body, num_workers, timeout)).collect()
    finally:
        run.close()


class Run:
    """What the live and the batch mode share: the files, the counts and what becomes of a reply.

    A job is a dict: id, tries, errors (in a row), tokens [in, out] of all tries, reply of the last.
    """

    def __init__(self, api, accept, file, whole, unit, max_tries, max_cost, discount, spent, bar):
        self.api, self.accept, self.file, self.out, self.whole, self.unit = api, accept, file, file.name, whole, unit
        self.max_tries, self.max_cost, self.bar = max_tries, max_cost, bar
        self.prices = [price * discount / 1e6 for price in api['prices'] or (0, 0)]
        self.spent, self.tokens = spent, [0, 0]  # by earlier runs, by this one
        self.replies = self.rows = self.n_failed = self.retries = 0
        self.rejected, self.errors = collections.Counter(), collections.Counter()
        self.started, self.shown = time.monotonic(), 0.0

    def job(self, i):
        return {'id': i, 'tries': 0, 'errors': 0, 'tokens': [0, 0], 'reply': ''}

    def cost(self, tokens):
        return tokens[0] * self.prices[0] + tokens[1] * self.prices[1]

    def total_cost(self):
        return self.spent[2] + self.cost(self.tokens)

    def affords(self, n):
        """Whether n requests, those in flight among them, stay below max_cost, by what the others have cost."""
        mean = self.cost(self.tokens) / self.replies if self.replies else self.cost([self.api['max_tokens']] * 2)
        return not self.max_cost or self.total_cost() + n * mean <= self.max_cost

    def answered(self, job, data, text):
        """Take a reply with status 200: its rows are written, or it is counted as rejected. -> whether the job is done."""
        usage = data.get('usage') if isinstance(data, dict) else None
        for place, name in enumerate(('prompt_tokens', 'completion_tokens')):
            n = usage.get(name) if isinstance(usage, dict) else None
            if not (isinstance(n, (int, float)) and 0 <= n < 1e9):
                n = self.api['max_tokens'] if self.max_cost and name == 'completion_tokens' else 0
            job['tokens'][place] += int(n)
            self.tokens[place] += int(n)
        self.replies += 1
        job['reply'] = clean(self.api, text)
        try:
            job['reply'] = clean(self.api, text_of(data, self.whole))
            rows = self.accept(job['id'], job['reply'])
        except Rejected as e:
            self.rejected[str(e)] += 1
            return self.count_try(job, str(e))
        for n, row in enumerate(rows):
            row |= {'model': self.api['model']} | self.taken((0, 0) if n else job['tokens'])
        jsonl.append(self.file, *rows)
        self.rows += len(rows)
        self.bar.update()
        return True

    def taken(self, tokens):
        """Tokens as the fields of a row."""
        cost = {'cost': round(self.cost(tokens), 7)} if self.api['prices'] else {}
        return {'prompt_tokens': tokens[0], 'completion_tokens': tokens[1]} | cost

    def count_try(self, job, reason):
        """Count a try that came to nothing -> whether it was the last, and the job is in failed.jsonl."""
        job['tries'] += 1
        if job['tries'] < self.max_tries:
            return False
        self.write_failed({'id': job['id'], 'reason': reason, 'reply': job['reply'][:10_000]}, job['tokens'])
        self.n_failed += 1
        self.bar.update()
        return True

    def leave(self, jobs):
        """Keep account of what was spent on jobs that are left unfinished."""
        tokens = [sum(job['tokens'][place] for job in jobs) for place in (0, 1)]
        if any(tokens):
            self.write_failed({'reason': 'tries of prompts that were left unfinished'}, tokens)

    def write_failed(self, row, tokens):
        with jsonl.open_append(os.path.join(os.path.dirname(self.out), 'failed.jsonl'), wait=True) as f:  # shards share it
            jsonl.append(f, row | {'out': os.path.basename(self.out)} | self.taken(tokens))

    def say(self, line):
        self.bar.write(line, file=sys.stderr)

    def say_max_cost(self):
        self.say(f'max_cost is reached, ${self.total_cost():,.2f} of ${self.max_cost:,.2f}')

    def show(self, what, force=False):
        """Refresh the bar, some five times a second."""
        if time.monotonic() - self.shown < 0.2 and not force:
            return
        self.shown = time.monotonic()
        why = ', '.join(f'{n} {reason}' for reason, n in self.rejected.most_common(3))
        parts = [f'{60 * self.rows / (self.shown - self.started):,.0f} {self.unit}/min', what]
        parts += [f'{self.retries:,} retries'] * bool(self.retries) + [f'rejected {self.rejected.total():,} ({why})'] * bool(why)
        parts += [f'{short(self.tokens[0] + self.spent[0])} tokens in, {short(self.tokens[1] + self.spent[1])} out']
        if self.api['prices']:
            done, left = self.bar.n - self.bar.initial, self.bar.total - self.bar.n
            at_the_end = f' of some ${self.total_cost() + self.cost(self.tokens) / done * left:,.2f}' if done and left else ''
            parts += [f'${self.total_cost():,.2f}{at_the_end}']
        self.bar.set_postfix_str(', '.join(filter(None, parts)))

    def close(self):
        self.bar.close()
        print(f'{self.rows:,} {self.unit} added to {self.out}' + (f', {self.n_failed:,} given up, see failed.jsonl beside it' if self.n_failed else ''))
        for name, counter in (('rejected', self.rejected), ('tried again after', self.errors)):
            if counter:
                print(f'{name}: ' + ', '.join(f'{n:,} {reason}' for reason, n in counter.most_common()))
        price = f'${self.total_cost():,.2f}' if self.api['prices'] else f'cost unknown (--price_in, --price_out for {self.api["model"]})'
        print(f'{self.tokens[0] + self.spent[0]:,} tokens in, {self.tokens[1] + self.spent[1]:,} out: {price}')


def short(n):
    """1234567 -> '1.2M'"""
    for size, letter in ((1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
        if n >= size:
            return f'{n / size:.1f}{letter}'
    return str(n)


# -----------------------------------------------------------------------------
# what replies say

def clean(api, text):
    """Text from outside, as it may be shown and written: without the key, unless that is a mere word, as local servers take."""
    return text.replace(api['key'], '***') if len(api['key']) >= 8 else text


def understood(status, text):
    """A reply's status and JSON (None when it is none); a status of 200 with an error inside becomes the error's own."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return status, None
    error = data.get('error') if isinstance(data, dict) else None
    if status == 200 and error:  # OpenRouter passes on what went wrong behind it in a reply of its own
        code = error.get('code') if isinstance(error, dict) else None
        status = code if isinstance(code, int) and code >= 400 else 502
    return status, data


def refusal(api, status, text, path=''):
    """What a provider says when it will not, in one line."""
    said = understood(status, text)[1]
    said = said[0] if isinstance(said, list) and said else said
    for name in ('error', 'message', 'detail'):
        said = said[name] if isinstance(said, dict) and said.get(name) else said
    message = ' '.join(clean(api, str(said or text)).split())[:300]
    hint = {401: '; is the key right?', 403: '; may this key do that?', 404: '' if path else f'; is {api["model"]!r} the name of a model there?'}
    return f'{api["url"] + path if path else api["provider"]} says {status}: {message}{hint.get(status, "")}'


def is_refused(status, text):
    """Whether the same request would be answered so again; anything else is worth another try."""
    if status == 429:
        return bool(re.search(r'insufficient.(quota|balance|credit|fund)', text, flags=re.I))
    return 0 < status < 500 and status not in (200, 408, 409, 425)


def is_filtered(status, text):
    """Whether a content filter took offence at this one prompt."""
    return status == 400 and bool(re.search(r'content.?(filter|policy|management)|safety', text, flags=re.I))


def seconds_to_wait(headers):
    """What Retry-After or the x-ratelimit-… headers of a reply ask for, in seconds; 0 when they ask for nothing."""
    waits = [0.0]
    after = headers.get('Retry-After', '').strip()
    if re.fullmatch(r'\d+(\.\d+)?', after):
        waits.append(float(after))
    elif after:
        try:
            waits.append(email.utils.parsedate_to_datetime(after).timestamp() - time.time())
        except (ValueError, OverflowError):
            pass  # neither form of the standard: as if it were not there
    units = {'ms': 0.001, 's': 1, '': 1, 'm': 60, 'h': 3600, 'd': 86400}
    for kind in ('', '-requests', '-tokens'):
        reset = headers.get(f'x-ratelimit-reset{kind}', '').strip()  # 6m0s, 20ms, 1.5, or a Unix time
        if headers.get(f'x-ratelimit-remaining{kind}', '').strip() in ('0', '0.0') and re.fullmatch(r'(\d+(\.\d+)?(ms|s|m|h|d|))+', reset):
            wait = sum(float(n) * units[unit] for n, unit in re.findall(r'(\d+(?:\.\d+)?)(ms|s|m|h|d|)', reset))
            waits.append(wait - time.time() if 1e9 < wait < 1e11 else wait / 1000 - time.time() if wait > 1e11 else wait)
    return max(waits)


# -----------------------------------------------------------------------------
# live: many requests at a time

class Pace:
    """How many requests may be in flight, and when the next may go.

    As TCP does it: the limit climbs a little with every reply and falls on a 429, by half the share of 429s among the
    latest replies (Alizadeh et al. 2010, "Data center TCP"), so that one now and then does not slow a run down, or by a
    quarter where one asks to wait. Replies to requests sent before the last cut do not cut again. Below the full number
    of workers requests go evenly spaced, since a rate limit takes a burst amiss that it would have taken as a trickle.
    """

    def __init__(self, most):
        self.most = self.limit = most
        self.refused = 1.0  # the share of 429s among the latest replies; all of them until the first has come, so that the first cuts are deep
        self.cut_at = self.next = self.seconds = self.before = 0.0  # seconds: a reply's time, averaged; before: the limit before an outage

    def sent(self, now):
        if self.limit < self.most:
            self.next = max(self.next, now) + self.seconds / self.limit

    def more(self, seconds):
        self.seconds += (seconds - self.seconds) * (0.1 if self.seconds else 1)
        self.refused *= 15 / 16
        self.limit = min(self.most, self.limit + max(0.5, self.limit / 30) / self.limit)

    def less(self, sent, wait):
        self.refused += (1 - self.refused) / 16
        if sent > self.cut_at:
            self.limit = max(1, self.limit * (1 - max(self.refused / 2, 0.25 * (wait > 0))))
            self.cut_at = time.monotonic()

    def pause(self, seconds):
        self.next = max(self.next, time.monotonic() + seconds)

    def outage(self):
        """One request at a time finds out when it is over."""
        self.before, self.limit = max(self.before, self.limit), 1

    def over(self):
        self.before, self.limit = 0.0, max(self.limit, self.before / 2)


def send_all(api, timeout, inbox, outbox):
    """A worker: jobs from inbox, one connection that stays open, jobs with status, headers and text to outbox."""
    session = requests.Session()
    post = requests.Request('POST', api['url'] + '/chat/completions', headers={'Content-Type': 'application/json'} | api['headers']).prepare()
    options = session.merge_environment_settings(post.url, {}, True, None, None)  # proxies and certificates, looked up once
    while True:
        job = inbox.get()
        status, headers, text = 0, {}, ''
        try:
            post.prepare_body(json.dumps(job['body']).encode(), None)
            deadline = time.monotonic() + timeout
            with session.send(post, timeout=(CONNECT_TIMEOUT, timeout), allow_redirects=False, **options) as reply:
                received = bytearray()
                while part := reply.raw.read1(1 << 16, decode_content=True):  # what is there; requests would wait for all of it, however slow
                    received += part
                    if time.monotonic() > deadline or len(received) > MAX_REPLY:
                        raise requests.Timeout
                status, headers, text = reply.status_code, reply.headers, received.decode('utf-8', 'replace')
        except (requests.ConnectTimeout, requests.ConnectionError):
            text = 'no connection'
        except (requests.Timeout, urllib3.exceptions.TimeoutError):
            text = 'timeout'
        except (requests.RequestException, urllib3.exceptions.HTTPError):
            text = 'connection cut'
        except ValueError:  # requests stumbles over the address that a broken reply leads to
            text = 'broken reply'
        except Exception as e:  # a bug; the calling thread, which would wait for ever, raises it
            text = e
        outbox.put((job, status, headers, text))


class Live:
    """Many requests at a time: what is in flight, what waits to be tried again, and when to end."""

    def __init__(self, run, ids, body, num_workers, timeout):
        self.run, self.ids, self.body, self.num_workers, self.timeout = run, iter(ids), body, num_workers, timeout
        self.inbox, self.outbox = queue.SimpleQueue(), queue.SimpleQueue()
        self.pace = Pace(num_workers)
        self.waiting, self.ticket = [], itertools.count()  # a heap of (when, a number that keeps jobs from being compared, job)
        self.flight = self.workers = self.answers = 0
        self.refused = 0  # prompts since the last answer whose first try was refused
        self.streak, self.outage = 0, 3 * (num_workers + 8)  # errors since the last answer; so many are an outage, no prompt's fault
        self.last_answer = time.monotonic()
        self.exhausted = self.stopping = False
        self.problem = self.last_word = ''

    def stop(self, last_word=''):
        """Hand nothing out any more; what is in flight is still taken."""
        self.stopping = True
        self.last_word = self.last_word or last_word

    def interrupted(self, *_):
        if self.stopping:
            raise KeyboardInterrupt
        self.stop()
        self.run.say(f'finishing the {self.flight} requests in flight; again to stop at once')

    def next_job(self, now):
        """A job whose time to be tried again has come, else one of a new prompt, else None."""
        if self.waiting and self.waiting[0][0] <= now:
            return heapq.heappop(self.waiting)[-1]
        if self.exhausted or len(self.waiting) > self.num_workers + 8:  # not ever more prompts begun when none gets an answer
            return None
        i = next(self.ids, self.ids)
        self.exhausted = i is self.ids
        return None if self.exhausted else self.run.job(i) | {'since': now}

    def hand_out(self, now):
        """Send what may go now."""
        while self.flight < int(self.pace.limit) and now >= self.pace.next and not self.stopping:
            if not self.run.affords(self.flight + 1):
                if not self.flight:
                    self.stop()
                    self.run.say_max_cost()
                break
            job = self.next_job(now)
            if not job:
                break
            if self.flight >= self.workers:
                threading.Thread(target=send_all, args=(self.run.api, self.timeout, self.inbox, self.outbox), daemon=True).start()
                self.workers += 1
            self.inbox.put(job | {'body': self.body(job['id']), 'sent': now})
            self.pace.sent(now)
            self.flight += 1

    def take(self, job, status, headers, text):
        """Decide what becomes of a job that came back."""
        data, wait = None, seconds_to_wait(headers)
        if status:
            status, data = understood(status, text)
        if wait > 0:
            self.pace.pause(min(wait, PATIENCE))
            if wait > PATIENCE:
                self.stop(f'{self.run.api["provider"]} asks to wait {wait / 3600:.1f} hours; the same command goes on then')
        if status == 200:
            self.answer(job, data, text)
        elif is_refused(status, text):
            self.refusal(job, status, text)
        else:
            self.error(job, status, text, wait)

    def answer(self, job, data, text):
        if self.streak > self.outage:  # it is over: what waits for its end need not wait longer
            self.waiting = [(0, n, other) for _, n, other in self.waiting]
            heapq.heapify(self.waiting)
        if self.pace.before:
            self.pace.over()
        self.streak = self.refused = job['errors'] = 0
        self.answers, self.last_answer = self.answers + 1, time.monotonic()
        self.pace.more(self.last_answer - job['sent'])
        if not self.run.answered(job, data, text):
            self.retry(job, 0)

    def refusal(self, job, status, text):
        """It is about this prompt, and a try of it, where other prompts get through; else about the key, the model or the request, and the end."""
        self.refused += job['tries'] == 0
        others = self.answers + self.run.bar.initial and self.refused < 20
        if not (is_filtered(status, text) or others and status not in (401, 402, 404, 429)):
            return self.stop(refusal(self.run.api, status, text))
        job['reply'] = clean(self.run.api, text)
        self.run.rejected[f'HTTP {status}'] += 1
        if not self.run.count_try(job, refusal(self.run.api, status, text)):
            self.retry(job, 0)

    def error(self, job, status, text, wait):
        """Something that another try may not meet. Whether it counts as a try of this prompt depends on how others fare."""
        self.problem = f'HTTP {status}' if status else text
        self.run.errors[self.problem] += 1
        self.streak += 1
        job |= {'errors': job['errors'] + 1, 'reply': clean(self.run.api, text)}
        others = self.last_answer > job['since'] or self.exhausted and self.answers and self.streak <= self.outage  # got through meanwhile
        reached = status not in (0, 502, 503, 504) or text == 'timeout'  # no outage: there is a server, and it stumbles over this prompt
        if status == 429:  # is about the account, not about the prompt
            self.pace.less(job['sent'], wait)
        elif others or reached and job['errors'] > 10:
            job['since'] = time.monotonic()
            if self.run.count_try(job, self.problem):
                return
        elif self.streak > self.outage:
            self.pace.outage()
        self.retry(job, random.uniform(0, min(MAX_WAIT, 2 ** job['errors'])))  # exponential backoff with full jitter
        if self.streak > self.outage and (not self.answers and status != 429 or time.monotonic() - self.last_answer > PATIENCE):
            self.stop(f'{self.run.api["url"]} gives no answer ({self.problem}, {self.streak} times in a row); the same command goes on once it does')

    def retry(self, job, seconds):
        self.run.retries += 1
        heapq.heappush(self.waiting, (time.monotonic() + seconds if seconds else 0, next(self.ticket), job))

    def in_words(self, now):
        silence, pause = now - self.last_answer, self.pace.next - now
        return (f'{self.flight} in flight' + (f', paused {pause:.0f} s' if pause > 1 else '')
                + (f', no answer for {silence:.0f} s ({self.problem})' if self.streak > 3 and silence > 5 else ''))

    def collect(self):
        """-> whether all is done"""
        in_main = threading.current_thread() is threading.main_thread()
        handlers = {sig: signal.signal(sig, self.interrupted) for sig in (signal.SIGINT, signal.SIGTERM)} if in_main else {}
        try:
            self.loop()
        finally:
            for sig, handler in handlers.items():
                signal.signal(sig, handler)
            self.run.leave([job for *_, job in self.waiting])
        if self.last_word:
            raise SystemExit(self.last_word)
        return not self.stopping

    def loop(self):
        while True:
            now = time.monotonic()
            self.hand_out(now)
            if not self.flight and (self.stopping or self.exhausted and not self.waiting):
                break
            self.run.show(self.in_words(now))
            wake = min([now + 0.3] + [at for at in (self.pace.next, self.waiting[0][0] if self.waiting else 0) if at > now])
            try:
                job, status, headers, text = self.outbox.get(timeout=wake - now)
            except queue.Empty:
                continue
            self.flight -= 1
            if isinstance(text, Exception):
                raise text
            self.take(job, status, headers, text)
        self.run.show(self.in_words(now), force=True)


# -----------------------------------------------------------------------------
# batches: a file of requests is uploaded, worked off within a day, and fetched

class Unanswered(SystemExit):
    """Raised by `request` when nothing came, not even a refusal."""


def request(api, method, path, patience=10, **options):
    """One call of the API apart from the stream of prompts -> the JSON of its reply (or its bytes, for /content). It is tried again on errors for
    `patience` seconds; then Unanswered is raised. A refusal ends the program."""
    started = time.monotonic()
    for attempt in itertools.count():
        try:
            reply = requests.request(method, api['url'] + path, headers=api['headers'], timeout=(CONNECT_TIMEOUT, 600), allow_redirects=False,
                                     auth=lambda r: r, **options)  # an auth of our own keeps ~/.netrc from replacing the key
            if 200 <= reply.status_code < 300:
                return reply.content if path.endswith('/content') else reply.json()
            if is_refused(reply.status_code, reply.text):
                raise SystemExit(refusal(api, reply.status_code, reply.text, path))
            problem, wait = f'HTTP {reply.status_code}', seconds_to_wait(reply.headers)
        except ValueError:
            problem, wait = 'a reply that is not JSON', 0
        except requests.RequestException as e:
            problem, wait = type(e).__name__, 0
        wait = max(min(wait, MAX_WAIT), random.uniform(0, min(MAX_WAIT, 2 ** attempt)))
        if time.monotonic() - started + wait > patience:
            raise Unanswered(f'{api["url"]} does not answer ({problem}); is it running, and is the address right?')
        time.sleep(wait)


def batches_path(out):
    return os.path.splitext(out)[0] + '.batches.json'


def read_batches(out):
    """The batches of an output that are not done: `open` ones and jobs to `retry`, of which model they are asked, and how large the next may be."""
    if not os.path.exists(batches_path(out)):
        return {'open': [], 'retry': [], 'model': '', 'size': BATCH_SIZE}
    try:
        with open(batches_path(out), encoding='utf-8') as f:
            return json.load(f)
    except (OSError, ValueError) as e:
        raise SystemExit(f'{batches_path(out)}, which says what batches are open, could not be read: {e}') from None


class Batches:
    """The same as Live, by the Batch API of OpenAI and those that copy it, or Mistral's.

    stories.batches.json beside the output says which batches are open, and with which jobs, so that stopping and
    starting again fetches them. A batch is written down before it is begun, and is looked for by its file if its id is missing.
    """

    def __init__(self, run, ids, body, state):
        self.run, self.body, self.state, self.path = run, body, state, batches_path(run.out)
        asked = f'{run.api["provider"]} {run.api["model"]}'
        if state['open'] and state['model'] != asked:
            raise SystemExit(f'{self.path} holds open batches of {state["model"]}; fetch these first, with that --provider and --model')
        state['model'] = asked
        done = {row['id'] for row in finished(run.out)}  # of these a kill kept the state from hearing
        for batch in state['open']:
            batch['jobs'] = [job for job in batch['jobs'] if job['id'] not in done]
        state['retry'] = [job for job in state['retry'] if job['id'] not in done]
        held = [job for jobs in (state['retry'], *(batch['jobs'] for batch in state['open'])) for job in jobs]
        for job in held:
            run.tokens = [a + b for a, b in zip(run.tokens, job['tokens'])]
        held = {job['id'] for job in held}
        self.ids = (i for i in ids if i not in held)
        self.jobs_path = '/batch/jobs' if run.api['provider'] == 'mistral' else '/batches'
        self.max_open, self.wait = OPEN_BATCHES, 0.3

    def save(self):
        with jsonl.replacing(self.path) as temporary, open(temporary, 'w', encoding='utf-8') as f:
            json.dump(self.state, f)
        self.wait = 0.3  # seconds to the next look, longer as long as nothing moves

    def submit(self):
        """Upload the next jobs, to be begun as a batch -> whether there were any that max_cost allows."""
        jobs, in_open = self.state['retry'], sum(len(batch['jobs']) for batch in self.state['open'])
        while len(jobs) < self.state['size'] and (i := next(self.ids, self.ids)) is not self.ids:
            jobs.append(self.run.job(i))
        n = min(len(jobs), self.state['size'])
        while n and not self.run.affords(in_open + n):
            n = n * 9 // 10
        if not n:
            return False
        lines = [json.dumps({'custom_id': str(job['id']), 'method': 'POST', 'url': '/v1/chat/completions', 'body': self.body(job['id'])}) for job in jobs[:n]]
        upload = request(self.run.api, 'POST', '/files', data={'purpose': 'batch'},
                         files={'file': ('requests.jsonl', '\n'.join(lines).encode(), 'application/jsonl')})
        self.state['open'].append({'file': upload['id'], 'batch': None, 'jobs': jobs[:n]})
        self.state['retry'] = jobs[n:]
        self.save()
        return True

    def begin(self, batch):
        api = self.run.api
        known = request(api, 'GET', self.jobs_path + '?limit=100').get('data') or []
        found = next((b['id'] for b in known if batch['file'] in (b.get('input_file_id'), *(b.get('input_files') or []))), None)
        if not found:
            fields = {'endpoint': '/v1/chat/completions'}
            fields |= {'input_files': [batch['file']], 'model': api['model']} if api['provider'] == 'mistral' else {
                'input_file_id': batch['file'], 'completion_window': '24h'}
            found = request(api, 'POST', self.jobs_path, json=fields, patience=0)['id']  # tried again after another look whether it is there
        batch['batch'] = found
        self.save()

    def look(self, batch):
        """Ask how a batch fares, and take what it brought."""
        found = request(self.run.api, 'GET', f'{self.jobs_path}/{batch["batch"]}')
        status = str(found.get('status')).lower()
        files = list(filter(None, (found.get(name) for name in ('output_file_id', 'output_file', 'error_file_id', 'error_file'))))
        if status not in ('completed', 'success', 'failed', 'expired', 'timeout_exceeded', 'cancelled'):
            return
        if files:
            self.fetch(batch, files)
            return
        self.state['open'].remove(batch)
        self.state['retry'] += batch['jobs']
        errors = clean(self.run.api, json.dumps(found.get('errors')))
        shrinks = re.search(r'limit|too.?(large|big|many)', errors) and len(batch['jobs']) > 20
        self.state['size'] = len(batch['jobs']) // 2 if shrinks else self.state['size']
        self.max_open = max(1, len(self.state['open']))
        self.save()
        if not shrinks:
            raise SystemExit(f'{self.run.api["provider"]}: batch {batch["batch"]} {status}: {errors[:300]}; the same command tries again')
        self.run.say(f'batch {batch["batch"]} {status}: {errors[:300]}; going on with batches of {self.state["size"]:,}')

    def fetch(self, batch, files):
        """Take a batch's replies; what will not do, or never came, is left to a later batch."""
        contents = [request(self.run.api, 'GET', f'/files/{name}/content') for name in files]  # all of them, before any is worked off
        jobs, replies = {str(job['id']): job for job in batch['jobs']}, []
        for line in b'\n'.join(contents).splitlines():
            row = understood(0, line.decode('utf-8', 'replace'))[1]
            row = row if isinstance(row, dict) else {}
            reply = row.get('response') if isinstance(row.get('response'), dict) else {}
            job = jobs.pop(str(row.get('custom_id')), None)
            if job:
                replies.append((job, str(reply.get('status_code')), reply.get('body'), json.dumps(reply.get('body') or row.get('error'), ensure_ascii=False)))
        self.state['open'].remove(batch)
        if len(replies) >= 20 and not any(status == '200' for _, status, _, _ in replies):
            self.state['retry'] += batch['jobs']
            self.save()
            raise SystemExit(refusal(self.run.api, replies[0][1], replies[0][3]))
        for job, status, body, text in replies:
            job['reply'] = clean(self.run.api, text)
            done = self.run.answered(job, body, text) if status == '200' else self.run.count_try(job, f'HTTP {status}')
            self.state['retry'] += [] if done else [job | {'reply': ''}]
            self.run.show(f'{len(self.state["open"])} batches open')
        self.state['retry'] += [job for job in jobs.values() if not self.run.count_try(job, 'no reply in the batch')]
        self.save()

    def advance(self):
        """Do what can be done now -> whether anything is still open."""
        while len(self.state['open']) < self.max_open and self.submit():
            pass
        for batch in list(self.state['open']):
            if batch['batch']:
                self.look(batch)
            else:
                self.begin(batch)
        return bool(self.state['open'])

    def collect(self):
        """-> whether all is done"""
        heard = time.monotonic()
        try:
            while True:
                try:
                    if not self.advance() and not self.submit():
                        break
                    heard = time.monotonic()
                except Unanswered:
                    if time.monotonic() - heard > PATIENCE:
                        raise
                self.run.show(f'{len(self.state["open"])} batches open', force=True)
                time.sleep(self.wait)
                self.wait = min(POLL, 1.5 * self.wait)
        except KeyboardInterrupt:
            self.run.say('the batches go on at the provider; the same command fetches them')
            return False
        if self.state['retry'] or next(self.ids, self.ids) is not self.ids:
            self.run.say_max_cost()
            return False
        if os.path.exists(self.path):
            os.remove(self.path)
        return True
