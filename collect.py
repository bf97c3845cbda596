"""
Many requests to a chat API at a time: any number of prompts, each tried until its reply will do, or by the Batch API.

    api = chat.connect('mistral')
    with jsonl.open_append('stories.jsonl') as f:
        collect(api, ids, prompt, accept, f, total=1000)  # one row or more an id, appended as they come

Worker threads send requests and do nothing else. The calling thread hands out the work, reads the replies, writes the
rows and decides what is tried again, so that nothing needs a lock.
"""

import collections
import heapq
import itertools
import json
import os
import queue
import random
import signal
import sys
import threading
import time

import requests
import urllib3
from tqdm import tqdm

import batches
import chat
import jsonl

MAX_REPLY = 1 << 24  # bytes


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
            max_cost=0.0, batch=False, whole=True, is_done=None):
    """Ask for every id and append what comes to a file of jsonl.open_append: an id's rows in one write, each with model, prompt_tokens,
    completion_tokens and cost (of all its tries, in its first row). What is given up goes to failed.jsonl beside it, with the reason.

    ids: iterable of what is still to be asked, taken as needed. total, n_done: how many ids there are, and are done already.
    prompt(id) -> messages. accept(id, text) -> rows (a list of dicts), or raises chat.Rejected.
    spent: what earlier runs took, as `finished` counts it; rows without a cost, of a model whose price was not known, count as free.
    max_cost: US dollars, of all runs on this file, 0: no limit. A reply that does not say its tokens counts as max_tokens.
    timeout: seconds for a reply. max_tries: tries of an id, be it errors or rejected replies.
    batch: by the Batch API, at half the price; is_done(id) then says of the ids in open batches which a kill kept from being crossed off.
    whole: False gives `accept` replies cut off at max_tokens, too.
    -> True when every id is done; False when max_cost or Ctrl-C ended it before. Raises SystemExit, one line, when the
    provider refuses to go on; all that was answered is written first.
    """
    if not (1 <= num_workers <= 10_000 and max_tries >= 1 and 0 < timeout <= 86_400 and max_cost >= 0):
        raise SystemExit('num_workers is from 1 to 10,000, max_tries from 1, timeout more than 0 seconds and at most a day, max_cost from 0')
    if max_cost and not api['prices']:
        raise SystemExit(f'max_cost needs the price of {api["model"]}: --price_in=… --price_out=… in US dollars a million tokens')
    if batch and not (api['provider'] in batches.PROVIDERS or api['provider'] == api['url']):
        raise SystemExit(f'{api["provider"]} has no Batch API that is spoken here; there is: {", ".join(batches.PROVIDERS)}')
    state = batches.read(file.name)
    if state['open'] and not batch:
        raise SystemExit(f'{len(state["open"])} batches for {file.name} are open and paid for; --batch=True fetches them')
    run = Run(api, accept, file, whole, unit, max_tries, max_cost, discount=0.5 if batch else 1.0, spent=spent,
              bar=tqdm(total=total, initial=n_done, desc=file.name, smoothing=0.1, dynamic_ncols=True,
                       bar_format='{desc}: {percentage:3.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]'))

    def body(i):
        return api['fields'] | {'messages': prompt(i)}

    try:
        return (batches.Batches(run, ids, body, is_done, state) if batch else Live(run, ids, body, num_workers, timeout)).collect()
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
        job['reply'] = chat.clean(self.api, text)
        try:
            job['reply'] = chat.clean(self.api, chat.text_of(data, self.whole))
            rows = self.accept(job['id'], job['reply'])
        except chat.Rejected as e:
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
        parts = [f'{60 * self.rows / max(self.shown - self.started, 1e-9):,.0f} {self.unit}/min', what]
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
            with session.send(post, timeout=(chat.CONNECT_TIMEOUT, timeout), allow_redirects=False, **options) as reply:
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
        return None if self.exhausted else self.run.job(i)

    def hand_out(self, now):
        """Send what may go now."""
        while self.flight < int(self.pace.limit) and now >= self.pace.next and not self.stopping:
            job = self.next_job(now)
            if not job:
                break
            if not self.run.affords(self.flight + 1):
                heapq.heappush(self.waiting, (0, next(self.ticket), job))
                if not self.flight:
                    self.stop()
                    self.run.say_max_cost()
                break
            if self.flight >= self.workers:
                threading.Thread(target=send_all, args=(self.run.api, self.timeout, self.inbox, self.outbox), daemon=True).start()
                self.workers += 1
            self.inbox.put({'since': now} | job | {'body': self.body(job['id']), 'sent': now})  # since: of its first try
            self.pace.sent(now)
            self.flight += 1

    def take(self, job, status, headers, text):
        """Decide what becomes of a job that came back."""
        data, wait = None, chat.seconds_to_wait(headers)
        if status:
            status, data = chat.understood(status, text)
        if wait > 0:
            self.pace.pause(min(wait, chat.PATIENCE))
            if wait > chat.PATIENCE:
                self.stop(f'{self.run.api["provider"]} asks to wait {wait / 3600:.1f} hours; the same command goes on then')
        if status == 200:
            self.answer(job, data, text)
        elif chat.is_refused(status, text):
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
        if not (chat.is_filtered(status, text) or others and status not in (401, 402, 404, 429)):
            return self.stop(chat.refusal(self.run.api, status, text))
        job['reply'] = chat.clean(self.run.api, text)
        self.run.rejected[f'HTTP {status}'] += 1
        if not self.run.count_try(job, chat.refusal(self.run.api, status, text)):
            self.retry(job, 0)

    def error(self, job, status, text, wait):
        """Something that another try may not meet. Whether it counts as a try of this prompt depends on how others fare."""
        self.problem = f'HTTP {status}' if status else text
        self.run.errors[self.problem] += 1
        self.streak += 1
        job |= {'errors': job['errors'] + 1, 'reply': chat.clean(self.run.api, text)}
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
        self.retry(job, random.uniform(0, min(chat.MAX_WAIT, 2 ** job['errors'])))  # exponential backoff with full jitter
        if self.streak > self.outage and (not self.answers and status != 429 or time.monotonic() - self.last_answer > chat.PATIENCE):
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
