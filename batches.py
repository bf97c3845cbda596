"""
The Batch API of OpenAI and those that copy it, or Mistral's: a file of requests is uploaded, worked off within a day at half the price, and fetched.

collect.py uses it for `batch=True`.
"""

import json
import os
import re
import time

import chat
import jsonl

PROVIDERS = ('openai', 'groq', 'mistral')
SIZE = 20_000  # requests a batch, at first; OpenAI takes 50,000 and 200 MB
MAX_OPEN = 10
POLL = 30  # seconds between two looks at the batches


def path_of(out):
    return os.path.splitext(out)[0] + '.batches.json'


def read(out):
    """The batches of an output that are not done: `open` ones and jobs to `retry`, of which model they are asked, and how large the next may be."""
    if not os.path.exists(path_of(out)):
        return {'open': [], 'retry': [], 'model': '', 'size': SIZE}
    try:
        with open(path_of(out), encoding='utf-8') as f:
            return json.load(f)
    except (OSError, ValueError) as e:
        raise SystemExit(f'{path_of(out)}, which says what batches are open, could not be read: {e}') from None


class Batches:
    """What collect.Live does, by batches.

    stories.batches.json beside the output says which batches are open, and with which jobs, so that stopping and
    starting again fetches them. A batch is written down before it is begun, and is looked for by its file if its id is missing.
    """

    def __init__(self, run, ids, body, is_done, state):
        self.run, self.body, self.state, self.path = run, body, state, path_of(run.out)
        asked = f'{run.api["provider"]} {run.api["model"]}'
        if state['open'] and state['model'] != asked:
            raise SystemExit(f'{self.path} holds open batches of {state["model"]}; fetch these first, with that --provider and --model')
        state['model'] = asked
        state['retry'] = [job for job in state['retry'] if not is_done(job['id'])]  # a kill may have kept the state from hearing
        for batch in state['open']:
            batch['jobs'] = [job for job in batch['jobs'] if not is_done(job['id'])]
        held = [job for jobs in (state['retry'], *(batch['jobs'] for batch in state['open'])) for job in jobs]
        for job in held:
            run.tokens = [a + b for a, b in zip(run.tokens, job['tokens'])]
        held = {job['id'] for job in held}
        self.ids = (i for i in ids if i not in held)
        self.jobs_path = '/batch/jobs' if run.api['provider'] == 'mistral' else '/batches'
        self.max_open, self.wait = MAX_OPEN, 0.3

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
        upload = self.call('POST', '/files', {'id'}, data={'purpose': 'batch'},
                           files={'file': ('requests.jsonl', '\n'.join(lines).encode(), 'application/jsonl')})
        self.state['open'].append({'file': upload['id'], 'batch': None, 'jobs': jobs[:n]})
        self.state['retry'] = jobs[n:]
        self.save()
        return True

    def call(self, method, path, wanted=frozenset(), **options):
        """A call of the API -> its reply, a dict with the keys that are wanted."""
        reply = chat.request(self.run.api, method, path, **options)
        if not isinstance(reply, dict) or not wanted <= reply.keys():
            raise SystemExit(f'{self.run.api["url"]}{path} answers without {", ".join(wanted) or "an object"}; does it have a Batch API?')
        return reply

    def begin(self, batch):
        api = self.run.api
        known = self.call('GET', self.jobs_path + '?limit=100').get('data') or []
        found = next((b['id'] for b in known if batch['file'] in (b.get('input_file_id'), *(b.get('input_files') or []))), None)
        if not found:
            fields = {'endpoint': '/v1/chat/completions'}
            fields |= {'input_files': [batch['file']], 'model': api['model']} if api['provider'] == 'mistral' else {
                'input_file_id': batch['file'], 'completion_window': '24h'}
            found = self.call('POST', self.jobs_path, {'id'}, json=fields, patience=0)['id']  # tried again after another look whether it is there
        batch['batch'] = found
        self.save()

    def look(self, batch):
        """Ask how a batch fares, and take what it brought."""
        found = self.call('GET', f'{self.jobs_path}/{batch["batch"]}')
        status = str(found.get('status')).lower()
        files = list(filter(None, (found.get(name) for name in ('output_file_id', 'output_file', 'error_file_id', 'error_file'))))
        if status not in ('completed', 'success', 'failed', 'expired', 'timeout_exceeded', 'cancelled'):
            return
        if files:
            self.fetch(batch, files)
            return
        self.state['open'].remove(batch)
        self.state['retry'] += batch['jobs']
        errors = chat.clean(self.run.api, json.dumps(found.get('errors')))
        shrinks = re.search(r'limit|too.?(large|big|many)', errors) and len(batch['jobs']) > 20
        self.state['size'] = len(batch['jobs']) // 2 if shrinks else self.state['size']
        self.max_open = max(1, len(self.state['open']))
        self.save()
        if not shrinks:
            raise SystemExit(f'{self.run.api["provider"]}: batch {batch["batch"]} {status}: {errors[:300]}; the same command tries again')
        self.run.say(f'batch {batch["batch"]} {status}: {errors[:300]}; going on with batches of {self.state["size"]:,}')

    def fetch(self, batch, files):
        """Take a batch's replies; what will not do, or never came, is left to a later batch."""
        contents = [chat.request(self.run.api, 'GET', f'/files/{name}/content') for name in files]  # all of them, before any is worked off
        jobs, replies = {str(job['id']): job for job in batch['jobs']}, []
        for line in b'\n'.join(contents).splitlines():
            row = chat.understood(0, line.decode('utf-8', 'replace'))[1]
            row = row if isinstance(row, dict) else {}
            reply = row.get('response') if isinstance(row.get('response'), dict) else {}
            job = jobs.pop(str(row.get('custom_id')), None)
            if job:
                replies.append((job, str(reply.get('status_code')), reply.get('body'), json.dumps(reply.get('body') or row.get('error'), ensure_ascii=False)))
        self.state['open'].remove(batch)
        if len(replies) >= 20 and not any(status == '200' for _, status, _, _ in replies):
            self.state['retry'] += batch['jobs']
            self.save()
            raise SystemExit(chat.refusal(self.run.api, replies[0][1], replies[0][3]))
        for job, status, body, text in replies:
            job['reply'] = chat.clean(self.run.api, text)
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
                except chat.Unanswered:
                    if time.monotonic() - heard > chat.PATIENCE:
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
