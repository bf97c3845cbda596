"""
The part of the Hugging Face hub that an upload speaks to, on loopback: prints its port and keeps what is committed.

GET / shows the repositories and the files: the text of a small one, the number of bytes of one that went by LFS.
"""

import base64
import hashlib
import http.server
import json

files, repos, blobs = {}, [], {}  # blobs: bytes by their SHA-256, until a commit names them


class Hub(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def answer(self, status, data):
        body = json.dumps(data).encode()
        self.send_response(status)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self):
        return self.rfile.read(int(self.headers.get('Content-Length', 0)))

    def do_GET(self):
        known = self.path == '/'
        self.answer(200 if known else 401, {'files': files, 'repos': repos} if known else {'error': 'Invalid username or password.'})

    def do_PUT(self):
        data = self.body()
        blobs[hashlib.sha256(data).hexdigest()] = len(data)
        self.answer(200, {})

    def do_POST(self):
        body, path, here = self.body(), self.path.split('?')[0], f'http://{self.headers["Host"]}'
        if self.headers.get('Authorization') != 'Bearer hf_test':
            return self.answer(401, {'error': 'Invalid username or password.'})
        if path == '/api/repos/create':
            repos.append(json.loads(body))
            kind = 'datasets/' if repos[-1].get('type') == 'dataset' else ''
            return self.answer(200, {'url': f'{here}/{kind}{repos[-1]["organization"]}/{repos[-1]["name"]}'})
        if '/preupload/' in path:
            return self.answer(200, {'files': [{'path': file['path'], 'uploadMode': 'lfs' if file['path'].endswith('.safetensors') else 'regular',
                                                'shouldIgnore': False} for file in json.loads(body)['files']]})
        if path.endswith('/info/lfs/objects/batch'):
            return self.answer(200, {'transfer': 'basic', 'objects': [
                {**wanted, 'actions': {'upload': {'href': f'{here}/blob/{wanted["oid"]}'}}} for wanted in json.loads(body)['objects']]})
        if '/commit/' in path:
            for line in body.splitlines():
                part = json.loads(line)
                if part['key'] == 'file':
                    files[part['value']['path']] = base64.b64decode(part['value']['content']).decode()
                elif part['key'] == 'lfsFile':
                    files[part['value']['path']] = blobs[part['value']['oid']]
            repo = path.removeprefix('/api/').removeprefix('models/').split('/commit/')[0]
            return self.answer(200, {'commitUrl': f'{here}/{repo}/commit/1', 'commitOid': '1', 'success': True})
        self.answer(200, {'errors': [], 'warnings': []})

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Hub)
print(server.server_address[1], flush=True)
server.serve_forever()
