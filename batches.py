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
POLL_INTERVAL = 30  # seconds, at most
ENDED = ('completed', 'success', 'failed', 'expired', 'timeout_exceeded', 'cancelled')  # a batch's status


def read_state(path, api, batch):
    """Read the .batches.json file -> {'open': batches, 'retry': jobs for a later batch, 'model': …, 'size': of a batch}.

    A batch is {'file': id of the uploaded file, 'batch': its id or None if not created yet, 'jobs': [Job, …]}.
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
        self.state = state
        self.state_path = state_path
        self.url = '/batch/jobs' if run.api['provider'] == 'mistral' else '/batches'
        self.max_open = MAX_OPEN
        self.wait = 0.3  # seconds until the next poll, longer while nothing changes
        # a run that was killed may have written rows of jobs that are still in the state
        state['retry'] = [job for job in state['retry'] if not is_done(job.id)]
        known = list(state['retry'])
        for batch in state['open']:
            batch['jobs'] = [job for job in batch['jobs'] if not is_done(job.id)]
            known += batch['jobs']
        for job in known:
            run.spend(job.tokens)
        known_ids = {job.id for job in known}
        self.new_jobs = (Job(i) for i in ids if i not in known_ids)

    def save(self):
        write_text(self.state_path, json.dumps(self.state, default=vars))
        self.wait = 0.3

    def call(self, method, path, **options):
        """One call of the API -> the JSON object of its reply."""
        try:
            reply = json.loads(chat.call(self.run.api, method, path, **options))
        except ValueError:
            reply = None
        if not isinstance(reply, dict):
            fail(f'{self.run.api["url"]}{path}: the reply is not a JSON object; does the server have a Batch API?')
        return reply

    def new_id(self, path, **options):
        """POST something -> its id."""
        reply = self.call('POST', path, **options)
        if 'id' not in reply:
            fail(f'{self.run.api["url"]}{path}: the reply has no id; does the server have a Batch API?')
        return reply['id']

    def collect(self):
        """Send every id -> True when all are done, False when stopped before."""
        last_answer = time.monotonic()
        patience = chat.FIRST_PATIENCE
        try:
            while True:
                try:
                    if not self.advance():
                        break
                    last_answer = time.monotonic()
                    patience = chat.PATIENCE
                except chat.NoAnswer:
                    if time.monotonic() - last_answer > patience:
                        raise
                self.run.show(f'{len(self.state["open"])} batches open')
                time.sleep(self.wait)
                self.wait = min(POLL_INTERVAL, 1.5 * self.wait)
        except KeyboardInterrupt:
            self.run.say('the batches continue at the provider; the same command fetches them')
            return False
        if self.state['retry'] or next(self.new_jobs, None):
            self.run.say_max_cost()
            return False
        if os.path.exists(self.state_path):
            os.remove(self.state_path)
        return True

    def advance(self):
        """Create, poll and submit batches -> whether any is open."""
        for batch in list(self.state['open']):
            if batch['batch']:
                self.poll(batch)
            else:
                self.create(batch)
        while len(self.state['open']) < self.max_open and self.submit():
            pass
        return bool(self.state['open'])

    def submit(self):
        """Upload the next jobs for a batch -> whether there are any that max_cost allows."""
        jobs = self.state['retry']
        while len(jobs) < self.state['size']:
            job = next(self.new_jobs, None)
            if not job:
                break
            jobs.append(job)
        n = min(len(jobs), self.state['size'])
        n_open = sum(len(batch['jobs']) for batch in self.state['open'])
        while n and not self.run.affords(n_open + n):
            n = n * 9 // 10
        if not n:
            return False
        lines = []
        for job in jobs[:n]:
            request = {'custom_id': str(job.id), 'method': 'POST', 'url': '/v1/chat/completions'}
            lines.append(json.dumps(request | {'body': self.run.request_of(job)}))
        file = ('requests.jsonl', '\n'.join(lines).encode(), 'application/jsonl')
        file_id = self.new_id('/files', data={'purpose': 'batch'}, files={'file': file})
        self.state['open'].append({'file': file_id, 'batch': None, 'jobs': jobs[:n]})
        self.state['retry'] = jobs[n:]
        self.save()
        return True

    def create(self, batch):
        """Create the batch of an uploaded file, unless a run that was killed, or whose connection broke, has done so."""
        file_id = batch['file']
        for other in self.call('GET', f'{self.url}?limit=100').get('data') or []:
            if file_id == other.get('input_file_id') or file_id in (other.get('input_files') or []):
                batch['batch'] = other['id']
        if not batch['batch']:
            fields = {'endpoint': '/v1/chat/completions', 'input_file_id': file_id, 'completion_window': '24h'}
            if self.run.api['provider'] == 'mistral':
                fields = {'endpoint': '/v1/chat/completions', 'input_files': [file_id], 'model': self.run.api['model']}
            batch['batch'] = self.new_id(self.url, json=fields)
        self.save()

    def poll(self, batch):
        """See whether a batch has ended, and handle its results."""
        reply = self.call('GET', f'{self.url}/{batch["batch"]}')
        status = str(reply.get('status')).lower()
        if status not in ENDED:
            return
        results = []
        for name in ('output_file_id', 'output_file', 'error_file_id', 'error_file'):
            if reply.get(name):
                results.append(chat.call(self.run.api, 'GET', f'/files/{reply[name]}/content'))
        self.state['open'].remove(batch)
        if results:
            self.handle_results(batch, '\n'.join(results))
        else:
            self.handle_failure(batch, status, json.dumps(reply.get('errors')))

    def handle_failure(self, batch, status, errors):
        """A batch without results is over a limit: continue with smaller ones. For any other reason the run ends."""
        self.state['retry'] += batch['jobs']
        self.max_open = max(1, len(self.state['open']))
        message = f'batch {batch["batch"]} {status}: {errors:.300}'
        too_large = re.search(r'limit|too.?(large|big|many)', errors) and len(batch['jobs']) > 20
        if too_large:
            self.state['size'] = len(batch['jobs']) // 2
        self.save()
        if not too_large:
            fail(f'{self.run.api["provider"]}: {message}; the same command tries again')
        self.run.say(f'{message}; continuing with batches of {self.state["size"]:,}')

    def handle_results(self, batch, results):
        """Write the rows of a batch's results; rejected and missing ones are retried in a later batch."""
        missing = {str(job.id): job for job in batch['jobs']}
        replies = []  # (job, status, JSON of the reply, the same as text)
        for line in results.split('\n'):
            _, result = chat.parse_reply(0, line)
            if not isinstance(result, dict) or result.get('custom_id') not in missing:
                continue
            response = result.get('response')
            if not isinstance(response, dict):
                response = {}
            text = json.dumps(response.get('body') or result.get('error'), ensure_ascii=False)
            replies.append((missing.pop(result['custom_id']), response.get('status_code'), response.get('body'), text))
        if len(replies) >= 20 and all(status != 200 for _, status, _, _ in replies):
            self.state['retry'] += batch['jobs']
            self.save()
            fail(chat.refusal(self.run.api, replies[0][1], replies[0][3]))
        for job, status, body, text in replies:
            if status == 200:
                done = self.run.take_answer(job, body, text)
            else:
                job.reply = text
                done = self.run.count_try(job, f'HTTP {status}')
            if not done:
                self.state['retry'].append(job)
        for job in missing.values():
            if not self.run.count_try(job, 'no reply in the batch'):
                self.state['retry'].append(job)
        self.save()
