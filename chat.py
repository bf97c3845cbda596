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
BATCH_SIZE = 20_000  # requests a batch; OpenAI takes 50,000 and 200 MB
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
    if not re.fullmatch(r'https?://[^\s/@]+(/[^\s@]*)?', url):
        raise SystemExit('base_url begins with http:// or https:// and holds no name and password; a key is given in CHAT_API_KEY')
    key = os.environ.get(variable, '').strip() if variable else ''
    if not key and variable and not base_url:
        raise SystemExit(f'{variable} is not set; export {variable}=… with your key of {provider}' + (f', {otherwise}' if otherwise else ''))
    if not re.fullmatch(r'[!-~]*', key):
        raise SystemExit(f'{variable} holds something that is not a key (white space or letters outside ASCII)')
    api = {'provider': provider if provider in PROVIDERS else url, 'url': url, 'key': key, 'headers': {'Authorization': f'Bearer {key}'} if key else {}}
    if not (model or usual):
        models = request(api, 'GET', '/models').get('data') or []
        if not (isinstance(models, list) and models and isinstance(models[0], dict) and isinstance(models[0].get('id'), str)):
            raise SystemExit(f'{url} lists no model; say which with --model=…')
        usual = models[0]['id']
    model = model or usual
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
        return text_of(request(api, 'POST', '/chat/completions', tries=3, json=api['fields'] | {'messages': messages}))
    except Rejected as e:
        raise SystemExit(f'{api["provider"]}: {e}') from None


def text_of(data):
    """What the model says in a reply's JSON; raises Rejected."""
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
    if choice[0].get('finish_reason') == 'length':
        raise Rejected('cut off at max_tokens')
    return content


def find_json(text, key):
    """The first JSON object in `text` that has `key`, or None; code fences, prose, raw line breaks and trailing commas are passed over."""
    decoder = json.JSONDecoder(strict=False)  # strict would refuse line breaks inside strings
    text = text.rpartition('</think>')[2]
    for candidate in (text, re.sub(r',(?=\s*[}\]])', '', text)):
        for brace in itertools.islice(re.finditer(r'\{', candidate), 200):
            try:
                found = decoder.raw_decode(candidate, brace.start())[0]
            except (ValueError, RecursionError):
                continue
            if key in found:
                return found
    return None


def finished(out):
    """Yield the rows of `out`, and those of failed.jsonl beside it that are about `out`."""
    if os.path.exists(out):
        yield from jsonl.read(out)
    failed = os.path.join(os.path.dirname(out), 'failed.jsonl')
    if os.path.exists(failed):
        yield from (row for row in jsonl.read(failed) if isinstance(row, dict) and row.get('out') == os.path.basename(out))


def collect(api, ids, prompt, accept, file, *, total, n_done=0, spent=(0, 0), unit='stories', num_workers=16, timeout=120.0, max_tries=5,
            max_cost=0.0, batch=False):
    """Ask for every id and append what comes to a file of jsonl.open_append: an id's rows in one write, each with model, prompt_tokens and
    completion_tokens (of all its tries, in its first row). What is given up goes to failed.jsonl beside it, with the reason.

    ids: iterable of what is still to be asked, taken as needed. total, n_done: how many ids there are, and are done already.
    prompt(id) -> messages. accept(id, text) -> rows (a list of dicts with that `id`), or raises Rejected.
    spent: tokens in and out that earlier runs used, counted towards max_cost (US dollars, 0: no limit).
    timeout: seconds for a reply.
    max_tries: tries of an id, be it errors or rejected replies. batch: by the Batch API, at half the price.
    -> True when every id is done; False when max_cost or Ctrl-C ended it before. Raises SystemExit, one line, when the
    provider refuses to go on; all that was answered is written first.
    """
    if num_workers < 1 or max_tries < 1 or timeout <= 0:
        raise SystemExit('num_workers and max_tries are numbers from 1, timeout is more than 0 seconds')
    if max_cost and not api['prices']:
        raise SystemExit(f'max_cost needs the price of {api["model"]}: --price_in=… --price_out=… in US dollars a million tokens')
    if batch and not (api['provider'] in BATCH_PROVIDERS or api['provider'] == api['url']):
        raise SystemExit(f'{api["provider"]} has no Batch API that is spoken here; there is: {", ".join(BATCH_PROVIDERS)}')
    run = Run(api, accept, file, total, n_done, spent, unit, max_tries, max_cost, 0.5 if batch else 1.0)

    def body(i):
        return api['fields'] | {'messages': prompt(i)}

    try:
        return collect_batches(run, iter(ids), body) if batch else collect_live(run, iter(ids), body, num_workers, timeout)
    finally:
        run.close()


class Run:
    """What the live and the batch mode share: the files, the counts and what becomes of a reply.

    A job is a dict: id, tries, errors (in a row), tokens [in, out] of all tries, reply of the last.
    """

    def __init__(self, api, accept, file, total, n_done, spent, unit, max_tries, max_cost, discount):
        self.api, self.accept, self.file, self.out, self.unit = api, accept, file, file.name, unit
        self.max_tries, self.max_cost = max_tries, max_cost
        self.prices = [price * discount / 1e6 for price in api['prices'] or (0, 0)]
        self.most = api['max_tokens'] * self.prices[1]  # what a request may cost, as long as none has come back
        self.failed_file = None
        self.tokens, self.paid = list(spent), 0  # paid: replies of this run
        self.rows = self.failed = self.retries = 0
        self.rejected, self.errors = collections.Counter(), collections.Counter()
        self.started, self.shown = time.monotonic(), 0.0
        self.spent_before = self.cost()
        self.bar = tqdm(total=total, initial=n_done, desc=self.out, smoothing=0.1, dynamic_ncols=True,
                        bar_format='{desc}: {percentage:3.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]')

    def job(self, i):
        return {'id': i, 'tries': 0, 'errors': 0, 'tokens': [0, 0], 'reply': ''}

    def cost(self):
        return self.tokens[0] * self.prices[0] + self.tokens[1] * self.prices[1]

    def affords(self, n):
        """Whether n requests, those in flight among them, stay below max_cost, by what the others have cost."""
        mean = (self.cost() - self.spent_before) / self.paid if self.paid else self.most
        return not self.max_cost or self.cost() + n * mean <= self.max_cost

    def clean(self, text):
        """Text from outside, as it may be shown and written."""
        return text.replace(self.api['key'], '***') if self.api['key'] else text

    def answered(self, job, data, text):
        """Take a reply with status 200: its rows are written, or it is counted as rejected. -> whether the job is done."""
        usage = data.get('usage') if isinstance(data, dict) and isinstance(data.get('usage'), dict) else {}
        for place, name in enumerate(('prompt_tokens', 'completion_tokens')):
            n = max(0, usage.get(name)) if isinstance(usage.get(name), int) else 0
            job['tokens'][place] += n
            self.tokens[place] += n
        self.paid += 1
        job['reply'] = self.clean(text)
        try:
            job['reply'] = self.clean(text_of(data))
            rows = self.accept(job['id'], job['reply'])
        except Rejected as e:
            self.rejected[str(e)] += 1
            return self.again(job, str(e))
        for row, tokens in zip(rows, [job['tokens']] + [[0, 0]] * len(rows)):
            row |= {'model': self.api['model'], 'prompt_tokens': tokens[0], 'completion_tokens': tokens[1]}
        jsonl.append(self.file, *rows)
        self.rows += len(rows)
        self.bar.update()
        return True

    def again(self, job, reason):
        """Count a try that came to nothing -> whether it was the last, and the job is in failed.jsonl."""
        job['tries'] += 1
        if job['tries'] < self.max_tries:
            return False
        if not self.failed_file:
            self.failed_file = jsonl.open_append(os.path.join(os.path.dirname(self.out), 'failed.jsonl'), shared=True)
        jsonl.append(self.failed_file, {'id': job['id'], 'out': os.path.basename(self.out), 'reason': reason, 'reply': job['reply'][:10_000],
                                        'prompt_tokens': job['tokens'][0], 'completion_tokens': job['tokens'][1]})
        self.failed += 1
        self.bar.update()
        return True

    def refusal(self, status, text):
        """The line that ends the run when a provider refuses to go on."""
        message = find_json(text, 'error') or find_json(text, 'message') or find_json(text, 'detail') or {}
        message = message.get('error') or message.get('message') or message.get('detail') or text
        message = message.get('message') or message if isinstance(message, dict) else message
        message = ' '.join(self.clean(str(message)).split())[:300]
        hint = {401: '; is the key right?', 403: '; may this key do that?', 404: f'; is {self.api["model"]!r} the name of a model there?'}.get(status, '')
        return f'{self.api["provider"]} says {status}: {message}{hint}'

    def say(self, line):
        self.bar.write(line, file=sys.stderr)

    def show(self, what, force=False):
        """Refresh the bar, some five times a second."""
        if time.monotonic() - self.shown < 0.2 and not force:
            return
        self.shown = time.monotonic()
        why = ', '.join(f'{n} {reason}' for reason, n in self.rejected.most_common(3))
        parts = [f'{60 * self.rows / (self.shown - self.started):,.0f} {self.unit}/min', what]
        parts += [f'{self.retries:,} retries'] * bool(self.retries) + [f'rejected {self.rejected.total():,} ({why})'] * bool(why)
        parts += [f'{short(self.tokens[0])} tokens in, {short(self.tokens[1])} out']
        parts += [f'${self.cost():,.2f}'] * bool(self.api['prices'])
        self.bar.set_postfix_str(', '.join(filter(None, parts)))

    def close(self):
        self.bar.close()
        if self.failed_file:
            self.failed_file.close()
        print(f'{self.rows:,} {self.unit} added to {self.out}' + (f', {self.failed:,} given up, see failed.jsonl beside it' if self.failed else ''))
        for name, counter in (('rejected', self.rejected), ('tried again after', self.errors)):
            if counter:
                print(f'{name}: ' + ', '.join(f'{n:,} {reason}' for reason, n in counter.most_common()))
        price = f'${self.cost():,.2f}' if self.api['prices'] else f'cost unknown (--price_in, --price_out for {self.api["model"]})'
        print(f'{self.tokens[0]:,} tokens in, {self.tokens[1]:,} out: {price}')


def short(n):
    """1234567 -> '1.2M'"""
    for size, letter in ((1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
        if n >= size:
            return f'{n / size:.1f}{letter}'
    return str(n)


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
        self.refused = self.cut_at = self.next = self.seconds = 0.0  # refused: the share of 429s; seconds: a reply's time, averaged

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
    for kind in ('', '-requests', '-tokens'):
        if headers.get(f'x-ratelimit-remaining{kind}', '').strip() in ('0', '0.0'):
            units = {'ms': 0.001, 's': 1, '': 1, 'm': 60, 'h': 3600, 'd': 86400}  # 6m0s, 20ms, 1.5, or a Unix time
            wait = sum(float(n) * units[unit] for n, unit in re.findall(r'(\d+(?:\.\d+)?)(ms|s|m|h|d|)', headers.get(f'x-ratelimit-reset{kind}', '')))
            waits.append(wait - time.time() if 1e9 < wait < 1e11 else wait / 1000 - time.time() if wait > 1e11 else wait)
    return max(waits)


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
                parts = bytearray()
                for part in reply.iter_content(None):  # a trickle would start the timeout anew with every byte
                    parts += part
                    if time.monotonic() > deadline or len(parts) > MAX_REPLY:
                        raise requests.Timeout
                status, headers, text = reply.status_code, reply.headers, parts.decode('utf-8', 'replace')
        except requests.RequestException as e:
            text = 'timeout' if isinstance(e, requests.Timeout) else 'no connection' if isinstance(e, requests.ConnectionError) else 'connection cut'
        except Exception as e:  # a bug; the calling thread, which would wait for ever, raises it
            text = e
        outbox.put((job, status, headers, text))


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


def ends_the_run(status, text):
    """Whether a provider that answers so will not answer the other prompts either."""
    if status == 400 and re.search(r'content.?(filter|policy|management)|safety', text, flags=re.I):
        return False
    if status == 429 and re.search(r'insufficient.(quota|balance|credit|fund)', text, flags=re.I):
        return True
    return 0 < status < 500 and status not in (408, 409, 425, 429)


class Live:
    """Many requests at a time: what is in flight, what waits to be tried again, and when to end."""

    def __init__(self, run, ids, body, num_workers, timeout):
        self.run, self.ids, self.body, self.num_workers, self.timeout = run, ids, body, num_workers, timeout
        self.inbox, self.outbox = queue.SimpleQueue(), queue.SimpleQueue()
        self.pace = Pace(num_workers)
        self.waiting, self.order = [], itertools.count()  # a heap of (when, a number that keeps jobs from being compared, job)
        self.flight = self.workers = self.answers = 0
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
                    self.run.say(f'max_cost is reached, ${self.run.cost():,.2f} of ${self.run.max_cost:,.2f}')
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
            if self.streak > self.outage:  # it is over: what waits for its end need not wait longer
                self.waiting = [(0, n, other) for _, n, other in self.waiting]
                heapq.heapify(self.waiting)
            self.streak, self.answers, self.last_answer = 0, self.answers + 1, time.monotonic()
            self.pace.more(self.last_answer - job['sent'])
            job['errors'] = 0
            if not self.run.answered(job, data, text):
                self.again(job, 0)
        elif ends_the_run(status, text):
            self.stop(self.run.refusal(status, text))
        else:
            self.failed(job, status, text, wait)

    def failed(self, job, status, text, wait):
        """An error that another try may not meet. Whether it counts as a try of this prompt depends on how others fare."""
        self.problem = f'HTTP {status}' if status else text
        self.run.errors[self.problem] += 1
        self.streak += 1
        job |= {'errors': job['errors'] + 1, 'reply': self.run.clean(text)}
        if status == 429:  # is about the account, not about the prompt
            self.pace.less(job['sent'], wait)
        elif self.last_answer > job['since'] or self.exhausted and self.answers and self.streak <= self.outage:  # others got through
            job['since'] = time.monotonic()
            if self.run.again(job, self.problem):
                return
        elif self.streak > self.outage:
            self.pace.limit = 1
        self.again(job, random.uniform(0, min(MAX_WAIT, 2 ** job['errors'])))  # exponential backoff with full jitter
        if self.streak > self.outage and (not self.answers and status != 429 or time.monotonic() - self.last_answer > PATIENCE):
            self.stop(f'{self.run.api["url"]} gives no answer ({self.problem}, {self.streak} times in a row); the same command goes on once it does')

    def again(self, job, seconds):
        self.run.retries += 1
        heapq.heappush(self.waiting, (time.monotonic() + seconds if seconds else 0, next(self.order), job))

    def state(self, now):
        """For the bar."""
        silence, pause = now - self.last_answer, self.pace.next - now
        return (f'{self.flight} in flight' + (f', paused {pause:.0f} s' if pause > 1 else '')
                + (f', no answer for {silence:.0f} s ({self.problem})' if self.streak > 3 and silence > 5 else ''))

    def collect(self):
        """-> whether all is done"""
        while True:
            now = time.monotonic()
            self.hand_out(now)
            if not self.flight and (self.stopping or self.exhausted and not self.waiting):
                break
            self.run.show(self.state(now))
            wake = min([now + 0.3] + [at for at in (self.pace.next, self.waiting[0][0] if self.waiting else 0) if at > now])
            try:
                job, status, headers, text = self.outbox.get(timeout=wake - now)
            except queue.Empty:
                continue
            self.flight -= 1
            if isinstance(text, Exception):
                raise text
            self.take(job, status, headers, text)
        self.run.show(self.state(now), force=True)
        if self.last_word:
            raise SystemExit(self.last_word)
        return not self.stopping


def collect_live(run, ids, body, num_workers, timeout):
    live = Live(run, ids, body, num_workers, timeout)
    in_main = threading.current_thread() is threading.main_thread()
    handlers = {sig: signal.signal(sig, live.interrupted) for sig in (signal.SIGINT, signal.SIGTERM)} if in_main else {}
    try:
        return live.collect()
    finally:
        for sig, handler in handlers.items():
            signal.signal(sig, handler)


# -----------------------------------------------------------------------------
# batches: a file of requests is uploaded, worked off within a day, and fetched

def request(api, method, path, tries=8, **options):
    """One call of the API apart from the stream of prompts, tried again on errors -> the JSON of its reply (or its bytes, for /content)."""
    for attempt in range(tries):
        try:
            reply = requests.request(method, api['url'] + path, headers=api['headers'], timeout=(CONNECT_TIMEOUT, 600), allow_redirects=False,
                                     auth=lambda r: r, **options)  # an auth of our own keeps ~/.netrc from replacing the key
            if reply.status_code < 500 and reply.status_code not in (408, 409, 425, 429):
                if not reply.ok:
                    message = reply.text.replace(api['key'], '***') if api['key'] else reply.text
                    raise SystemExit(f'{api["url"]}{path} says {reply.status_code}: ' + ' '.join(message.split())[:300])
                return reply.content if path.endswith('/content') else reply.json()
            problem, wait = f'HTTP {reply.status_code}', seconds_to_wait(reply.headers)
        except ValueError:
            problem, wait = 'a reply that is not JSON', 0
        except requests.RequestException as e:
            problem, wait = type(e).__name__, 0
            if isinstance(e, requests.ConnectionError) and attempt == 2 and method == 'GET':
                break
        time.sleep(max(min(wait, MAX_WAIT), random.uniform(0, min(MAX_WAIT, 2 ** attempt))))
    raise SystemExit(f'{api["url"]} does not answer ({problem}); is it running, and is the address right?')


def collect_batches(run, ids, body):
    """The same as `collect_live`, by the Batch API of OpenAI and those that copy it, or Mistral's.

    stories.batches.json beside the output says which batches are open, and with which jobs, so that stopping and
    starting again fetches them. A batch is written down before it is begun, and is looked for by its file if its id is missing.
    """
    api, path = run.api, os.path.splitext(run.out)[0] + '.batches.json'
    jobs_path = '/batch/jobs' if api['provider'] == 'mistral' else '/batches'
    state = {'open': [], 'again': []}
    if os.path.exists(path):
        with open(path, encoding='utf-8') as f:
            state = json.load(f)
        over = {row['id'] for row in finished(run.out)}  # of these a kill kept the state from hearing
        for batch in state['open']:
            batch['jobs'] = [job for job in batch['jobs'] if job['id'] not in over]
        state['again'] = [job for job in state['again'] if job['id'] not in over]
    held = {job['id'] for jobs in [state['again'], *(batch['jobs'] for batch in state['open'])] for job in jobs}
    ids = (i for i in ids if i not in held)

    def save():
        with jsonl.replacing(path) as temporary, open(temporary, 'w', encoding='utf-8') as f:
            json.dump(state, f)

    def begin(batch):
        known = request(api, 'GET', jobs_path + '?limit=100').get('data') or []
        found = next((b['id'] for b in known if batch['file'] in (b.get('input_file_id'), *(b.get('input_files') or []))), None)
        if not found:
            order = {'endpoint': '/v1/chat/completions'}
            order |= {'input_files': [batch['file']], 'model': api['model']} if api['provider'] == 'mistral' else {
                'input_file_id': batch['file'], 'completion_window': '24h'}
            found = request(api, 'POST', jobs_path, json=order, tries=1)['id']
        batch['batch'] = found
        save()

    def submit():
        """Upload the next jobs as a batch -> whether there were any that max_cost allows."""
        n_open = sum(len(batch['jobs']) for batch in state['open'])
        jobs = []
        while len(jobs) < BATCH_SIZE and run.affords(n_open + len(jobs) + 1):
            if state['again']:
                jobs.append(state['again'].pop())
            elif (i := next(ids, ids)) is not ids:
                jobs.append(run.job(i))
            else:
                break
        if not jobs:
            return False
        lines = (json.dumps({'custom_id': str(job['id']), 'method': 'POST', 'url': '/v1/chat/completions', 'body': body(job['id'])}) for job in jobs)
        upload = request(api, 'POST', '/files', data={'purpose': 'batch'}, files={'file': ('requests.jsonl', '\n'.join(lines).encode(), 'application/jsonl')})
        state['open'].append({'file': upload['id'], 'batch': None, 'jobs': jobs})
        save()
        begin(state['open'][-1])
        return True

    def fetch(batch, files):
        """Take a batch's replies; what will not do, or never came, is left to a later batch."""
        jobs = {str(job['id']): job for job in batch['jobs']}
        for name in filter(None, files):
            for line in request(api, 'GET', f'/files/{name}/content').splitlines():
                row = json.loads(line) if line.strip() else {}
                job = jobs.pop(row.get('custom_id'), None)
                if job:
                    reply = row.get('response') or {}
                    text = json.dumps(reply.get('body') or row.get('error'), ensure_ascii=False)
                    job['reply'] = run.clean(text)
                    ok = reply.get('status_code') == 200
                    over = run.answered(job, reply.get('body'), text) if ok else run.again(job, f'HTTP {reply.get("status_code")}')
                    state['again'] += [] if over else [job | {'reply': ''}]
                run.show(f'{len(state["open"])} batches open')
        state['again'] += [job for job in jobs.values() if not run.again(job, 'no reply in the batch')]
        state['open'].remove(batch)
        save()

    wait = 1.0
    try:
        for batch in state['open']:
            if not batch['batch']:
                begin(batch)
        while True:
            while len(state['open']) < OPEN_BATCHES and submit():
                pass
            if not state['open']:
                break
            for batch in list(state['open']):
                news = request(api, 'GET', f'{jobs_path}/{batch["batch"]}')
                status = str(news.get('status')).lower()
                files = [news.get(name) for name in ('output_file_id', 'output_file', 'error_file_id', 'error_file')]
                if status in ('completed', 'success', 'expired', 'timeout_exceeded', 'cancelled') and any(files):
                    fetch(batch, files)
                    wait = 1.0
                elif status in ('failed', 'expired', 'timeout_exceeded', 'cancelled', 'completed', 'success'):
                    state['open'].remove(batch)  # its prompts are asked again by the next run
                    save()
                    raise SystemExit(f'{api["provider"]}: batch {batch["batch"]} {status}: {run.clean(json.dumps(news.get("errors")))[:300]}')
            run.show(f'{len(state["open"])} batches open', force=True)
            if state['open']:
                wait = min(POLL, 1.5 * wait)
                time.sleep(wait)
    except KeyboardInterrupt:
        run.say('the batches go on at the provider; the same command fetches them')
        return False
    complete = not state['again'] and next(ids, ids) is ids
    if complete and os.path.exists(path):
        os.remove(path)
    return complete
