"""
Batch APIs: a file of requests is uploaded, processed within a day at half the price, and its results are downloaded.
Speaks OpenAI's API, which Groq has too, and Mistral's. chat.collect uses it with batch=True.

The file stories.batches.json, beside stories.jsonl, lists the open batches and their jobs. It is written before a batch
is created, so a run that was killed finds its batches again and pays for none of them twice.
"""

import itertools
import json
import math
import os
import re
import time

import chat
from chat import Job
from files import check, fail, write_text

PROVIDERS = ('openai', 'groq', 'mistral')
BATCH_SIZE = 10_000  # requests per batch, at first; OpenAI accepts 50,000 and 200 MB
TIMEOUT = 600  # seconds for a file
MAX_OPEN = 10  # batches
POLL_INTERVAL = 10  # seconds
ENDPOINT = '/v1/chat/completions'
chat.MAX_REPLY = 1 << 28  # bytes; a file of results is longer than a reply
ENDED = ('completed', 'success', 'failed', 'expired', 'timeout_exceeded', 'cancelled')  # a batch's status


class Batches:
    """Sends the prompts of all ids in batches, as chat.send_all does one by one.

    A batch is {'file': id of the uploaded file, 'batch': its id or None if not created yet, 'jobs': [Job, …]}.
    """

    def __init__(self, path, api, ids, done):
        """path: of the .batches.json file, which may not exist yet."""
        check(api['provider'] in (*PROVIDERS, api['url']),
              f'{api["provider"]} has no Batch API; these have one: {", ".join(PROVIDERS)}')
        self.path = path
        self.api = api
        self.url = '/batch/jobs' if api['provider'] == 'mistral' else '/batches'
        self.model = f'{api["provider"]} {api["model"]}'
        self.size = BATCH_SIZE  # requests in the next batch
        self.max_open = MAX_OPEN
        self.open = []  # batches
        self.retry = []  # jobs for a later batch
        if os.path.exists(path):
            self.load(done)
        known_ids = {job.id for job in self.jobs()}
        self.new_jobs = (Job(i) for i in ids if i not in known_ids)

    def load(self, done):
        def read_jobs(rows):
            # a run that was killed may have written rows of jobs that are still in the state
            return [Job(**row) for row in rows if row['id'] not in done]

        try:
            with open(self.path, encoding='utf-8') as f:
                state = json.load(f)
            model = state['model']
            self.size = int(state['size'])
            self.retry = read_jobs(state['retry'])
            for batch in state['open']:
                self.open.append({'file': batch['file'], 'batch': batch['batch'], 'jobs': read_jobs(batch['jobs'])})
        except (OSError, ValueError, LookupError, TypeError, RecursionError, OverflowError) as e:
            fail(f'{self.path} is damaged ({type(e).__name__}: {e!s:.100}). It lists batches that are paid for; '
                 'without it, their prompts are sent again')
        check(not self.open or model == self.model,
              f'{self.path} contains open batches of {model}; fetch these first, with that --provider and --model')

    def save(self):
        state = {'open': self.open, 'retry': self.retry, 'model': self.model, 'size': self.size}
        write_text(self.path, json.dumps(state, default=vars))

    def jobs(self):
        """The jobs in open batches, and those for a later one."""
        jobs = list(self.retry)
        for batch in self.open:
            jobs += batch['jobs']
        return jobs

    def collect(self, run):
        """Send the prompts of all ids until each is done, or run.problem says why not."""
        self.run = run
        for job in self.jobs():
            run.spend(job.tokens)
        last_answer = -math.inf  # a server that does not answer at first ends the run
        try:
            while not run.problem:
                try:
                    self.advance()
                    last_answer = time.monotonic()
                    if not self.open:
                        break
                except chat.NoAnswer:
                    if time.monotonic() - last_answer > chat.OUTAGE_TIMEOUT:
                        raise
                run.show(f'{len(self.open)} batches open')
                time.sleep(POLL_INTERVAL)
        except KeyboardInterrupt:
            run.problem = 'stopped; the batches continue at the provider, and the same command fetches them'
        if run.problem:
            return
        if self.retry or next(self.new_jobs, None):
            run.problem = chat.MAX_COST_REACHED
        elif os.path.exists(self.path):
            os.remove(self.path)

    def advance(self):
        """Create and poll the open batches, then upload new ones."""
        for batch in list(self.open):
            if batch['batch']:
                self.poll(batch)
            else:
                self.create(batch)
        while not self.run.problem and len(self.open) < self.max_open and self.upload():
            pass

    def call(self, method, path, key, **options):
        """One call of the API -> the JSON object of its reply, which must have `key`."""
        text = chat.call(self.api, method, path, TIMEOUT, **options)
        reply = chat.parse_json(self.api, text)
        if not isinstance(reply, dict) or key not in reply:
            fail(f'{self.api["url"]}{path}: no {key!r} in the reply; does the server have a Batch API?')
        return reply

    def upload(self):
        """Upload the next jobs for a batch -> whether there are any that max_cost allows."""
        self.retry += itertools.islice(self.new_jobs, max(0, self.size - len(self.retry)))
        n = min(len(self.retry), self.size)
        n_open = sum(len(batch['jobs']) for batch in self.open)
        while n and not self.run.can_afford(n_open + n):
            n = n * 9 // 10
        if n == 0:
            return False
        jobs = self.retry[:n]
        lines = []
        for job in jobs:
            body = chat.request_body(self.api, self.run.prompt(job.id))
            lines.append(json.dumps({'custom_id': str(job.id), 'method': 'POST', 'url': ENDPOINT, 'body': body}))
        file = ('requests.jsonl', '\n'.join(lines).encode(), 'application/jsonl')
        uploaded = self.call('POST', '/files', 'id', data={'purpose': 'batch'}, files={'file': file})
        self.open.append({'file': uploaded['id'], 'batch': None, 'jobs': jobs})
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
            if self.api['provider'] == 'mistral':
                fields = {'endpoint': ENDPOINT, 'input_files': [file_id], 'model': self.api['model']}
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
                results += chat.call(self.api, 'GET', f'/files/{reply[name]}/content', TIMEOUT).split('\n')
        self.open.remove(batch)
        if results:
            self.handle_results(batch['jobs'], results)
        else:
            errors = json.dumps(reply.get('errors'))
            self.handle_failure(batch['jobs'], f'batch {batch["batch"]} {status}: {errors:.300}')
        self.save()

    def handle_failure(self, jobs, message):
        """A batch without results: if it is over a limit, continue with smaller ones, else end the run."""
        self.retry += jobs
        self.max_open = max(1, len(self.open))
        if len(jobs) > 20 and re.search(r'limit|too.?(large|big|many)', message):
            self.size = len(jobs) // 2
            self.run.log(f'{message}; continuing with batches of {self.size:,}')
        else:
            self.run.problem = f'{self.api["provider"]}: {message}; the same command tries again'

    def handle_results(self, jobs, lines):
        """Write the rows of a batch's results; jobs with a rejected or missing result go into a later batch."""
        replies = {}  # id: (status, JSON of the reply)
        for line in lines:
            match chat.parse_json(self.api, line):  # None if the line is broken
                case {'custom_id': str(job_id), 'response': {'status_code': status, 'body': body}}:
                    replies[job_id] = status, body
        if len(replies) >= 20 and all(status != 200 for status, _ in replies.values()):
            self.retry += jobs
            status, body = next(iter(replies.values()))
            self.run.problem = chat.refusal(self.api, status, json.dumps(body))
            return
        for job in jobs:
            status, body = replies.get(str(job.id), (0, None))
            job.reply = json.dumps(body, ensure_ascii=False)
            if status == 200:
                is_done = self.run.handle_answer(job, body, job.reply)
            else:
                is_done = self.run.count_failure(job, f'HTTP {status!s:.20}' if status else 'no reply in the batch')
            if not is_done:
                self.retry.append(job)
        if self.run.n_rows == 0 and len(jobs) >= 20:  # do not pay for a second try of all of them
            self.run.outcomes.extend(self.run.failures.elements())
        self.run.check_success()
