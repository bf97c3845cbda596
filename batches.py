"""
Batch APIs: a file of requests is uploaded, processed within a day at half the price, and its results are downloaded.
Speaks OpenAI's API, which Groq has too, and Mistral's. chat.collect uses it with batch=True.

The file stories.batches.json, beside stories.jsonl, lists the open batches and their jobs. It is written before a batch
is created, so a run that was killed finds its batches again and pays for none of them twice.
"""

import json
import os
import re
import time

import chat
from chat import Job
from files import check, fail, write_text

PROVIDERS = ('openai', 'groq', 'mistral')
BATCH_SIZE = 20_000  # requests per batch, at first; OpenAI accepts 50,000 and 200 MB
MAX_OPEN = 10  # batches
POLL_INTERVAL = 10  # seconds
ENDPOINT = '/v1/chat/completions'
ENDED = ('completed', 'success', 'failed', 'expired', 'timeout_exceeded', 'cancelled')  # a batch's status


def read_state(path, api, batch):
    """Read the .batches.json file -> {'open': batches, 'retry': jobs for a later batch, 'model': …, 'size': …}.

    A batch is {'file': id of the uploaded file, 'batch': its id or None if not created yet, 'jobs': [Job, …]}.
    size: the number of requests in the next batch.
    """
    model = f'{api["provider"]} {api["model"]}'
    state = {'open': [], 'retry': [], 'model': model, 'size': BATCH_SIZE}
    if os.path.exists(path):
        try:
            with open(path, encoding='utf-8') as f:
                state = json.load(f)
        except (OSError, ValueError) as e:
            fail(f'{path}, which lists the open batches, could not be read: {e}')
    check(batch or not state['open'],
          f'{path}: {len(state["open"])} batches are open and paid for; --batch=True fetches them')
    check(not batch or api['provider'] in (*PROVIDERS, api['url']),
          f'{api["provider"]} has no Batch API; these have one: {", ".join(PROVIDERS)}')
    check(not state['open'] or state['model'] == model,
          f'{path} contains open batches of {state["model"]}; fetch these first, with that --provider and --model')
    state['model'] = model
    state['retry'] = [Job(**job) for job in state['retry']]
    for entry in state['open']:
        entry['jobs'] = [Job(**job) for job in entry['jobs']]
    return state


class Batches:
    """Sends the prompts of all ids in batches, as chat.send_all does one by one."""

    def __init__(self, run, ids, is_done, state, state_path):
        self.run = run
        self.model = state['model']
        self.size = state['size']
        self.max_open = MAX_OPEN
        self.state_path = state_path
        self.url = '/batch/jobs' if run.api['provider'] == 'mistral' else '/batches'
        # a run that was killed may have written rows of jobs that are still in the state
        self.retry = [job for job in state['retry'] if not is_done(job.id)]
        self.open = state['open']
        known = list(self.retry)
        for batch in self.open:
            batch['jobs'] = [job for job in batch['jobs'] if not is_done(job.id)]
            known += batch['jobs']
        for job in known:
            run.add_cost(job.tokens)
        known_ids = {job.id for job in known}
        self.new_jobs = (Job(i) for i in ids if i not in known_ids)

    def save(self):
        state = {'open': self.open, 'retry': self.retry, 'model': self.model, 'size': self.size}
        write_text(self.state_path, json.dumps(state, default=vars))

    def collect(self):
        """Send every id -> True when all are done, False when stopped before."""
        last_answer = time.monotonic()
        max_silence = chat.START_TIMEOUT
        try:
            while True:
                try:
                    if not self.advance():
                        break
                    last_answer = time.monotonic()
                    max_silence = chat.OUTAGE_TIMEOUT
                except chat.NoAnswer:
                    if time.monotonic() - last_answer > max_silence:
                        raise
                self.run.show(f'{len(self.open)} batches open')
                time.sleep(POLL_INTERVAL)
        except KeyboardInterrupt:
            self.run.log('the batches continue at the provider; the same command fetches them')
            return False
        if self.retry or next(self.new_jobs, None):
            self.run.log_max_cost()
            return False
        if os.path.exists(self.state_path):
            os.remove(self.state_path)
        return True

    def advance(self):
        """Create and poll batches, upload new ones -> whether any is open."""
        for batch in list(self.open):
            if batch['batch']:
                self.poll(batch)
            else:
                self.create(batch)
        while len(self.open) < self.max_open and self.upload():
            pass
        return bool(self.open)

    def call(self, method, path, key, **options):
        """One call of the API -> the JSON object of its reply, which must have `key`."""
        text = chat.call(self.run.api, method, path, **options)
        _, reply = chat.parse_reply(0, text)
        if not isinstance(reply, dict) or key not in reply:
            fail(f'{self.run.api["url"]}{path}: no {key!r} in the reply; does the server have a Batch API?')
        return reply

    def upload(self):
        """Upload the next jobs for a batch -> whether there are any that max_cost allows."""
        while len(self.retry) < self.size:
            job = next(self.new_jobs, None)
            if not job:
                break
            self.retry.append(job)
        n = min(len(self.retry), self.size)
        n_open = sum(len(batch['jobs']) for batch in self.open)
        while n and not self.run.can_afford(n_open + n):
            n = n * 9 // 10
        if not n:
            return False
        lines = []
        for job in self.retry[:n]:
            request = {'custom_id': str(job.id), 'method': 'POST', 'url': ENDPOINT, 'body': self.run.request_body(job)}
            lines.append(json.dumps(request))
        file = ('requests.jsonl', '\n'.join(lines).encode(), 'application/jsonl')
        uploaded = self.call('POST', '/files', 'id', data={'purpose': 'batch'}, files={'file': file})
        self.open.append({'file': uploaded['id'], 'batch': None, 'jobs': self.retry[:n]})
        self.retry = self.retry[n:]
        self.save()
        return True

    def create(self, batch):
        """Create the batch of an uploaded file, unless it exists: a run may be killed just after it created one."""
        file_id = batch['file']
        for other in self.call('GET', f'{self.url}?limit=100', 'data')['data']:
            if file_id == other.get('input_file_id') or file_id in (other.get('input_files') or []):
                batch['batch'] = other['id']
        if not batch['batch']:
            fields = {'endpoint': ENDPOINT, 'input_file_id': file_id, 'completion_window': '24h'}
            if self.run.api['provider'] == 'mistral':
                fields = {'endpoint': ENDPOINT, 'input_files': [file_id], 'model': self.run.api['model']}
            batch['batch'] = self.call('POST', self.url, 'id', json=fields)['id']
        self.save()

    def poll(self, batch):
        """See whether a batch has ended, and handle its results."""
        reply = self.call('GET', f'{self.url}/{batch["batch"]}', 'status')
        status = str(reply['status']).lower()
        if status not in ENDED:
            return
        results = []
        for name in ('output_file_id', 'output_file', 'error_file_id', 'error_file'):
            if reply.get(name):
                results.append(chat.call(self.run.api, 'GET', f'/files/{reply[name]}/content'))
        self.open.remove(batch)
        if results:
            self.handle_results(batch, '\n'.join(results))
        else:
            self.handle_failure(batch, f'batch {batch["batch"]} {status}: {json.dumps(reply.get("errors")):.300}')
        self.save()

    def handle_failure(self, batch, message):
        """A batch without results: if it is over a limit, continue with smaller ones, else end the run."""
        self.retry += batch['jobs']
        self.max_open = max(1, len(self.open))
        if len(batch['jobs']) <= 20 or not re.search(r'limit|too.?(large|big|many)', message):
            self.save()
            fail(f'{self.run.api["provider"]}: {message}; the same command tries again')
        self.size = len(batch['jobs']) // 2
        self.run.log(f'{message}; continuing with batches of {self.size:,}')

    def handle_results(self, batch, results):
        """Write the rows of a batch's results; rejected and missing ones are retried in a later batch."""
        missing = {str(job.id): job for job in batch['jobs']}
        replies = []  # (job, status, JSON of the reply)
        for line in results.split('\n'):
            _, result = chat.parse_reply(0, line)
            try:
                status = result['response']['status_code']
                body = result['response']['body']
                job = missing.pop(result['custom_id'])
            except (KeyError, TypeError):
                continue  # a broken line: its job stays in `missing`
            replies.append((job, status, body))
        if len(replies) >= 20 and all(status != 200 for _, status, _ in replies):
            self.retry += batch['jobs']
            self.save()
            fail(chat.refusal(self.run.api, replies[0][1], json.dumps(replies[0][2])))
        for job, status, body in replies:
            job.reply = json.dumps(body, ensure_ascii=False)
            if status == 200:
                done = self.run.handle_answer(job, body, job.reply)
            else:
                done = self.run.count_try(job, f'HTTP {status}')
            if not done:
                self.retry.append(job)
        for job in missing.values():
            if not self.run.count_try(job, 'no reply in the batch'):
                self.retry.append(job)
