"""The part of the Hugging Face hub that an upload speaks to, on loopback: prints its port, keeps what is committed, GET /files shows it."""

import base64
import http.server
import json

files, repos = {}, []


class Hub(http.server.BaseHTTPRequestHandler):
    def answer(self, status, data):
        body = json.dumps(data).encode()
        self.send_response(status)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        known = self.path == '/'
        self.answer(200 if known else 401, {'files': files, 'repos': repos} if known else {'error': 'Invalid username or password.'})

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get('Content-Length', 0)))
        path = self.path.split('?')[0]
        if self.headers.get('Authorization') != 'Bearer hf_test':
            return self.answer(401, {'error': 'Invalid username or password.'})
        if path == '/api/repos/create':
            repos.append(json.loads(body))
            return self.answer(200, {'url': f'http://{self.headers["Host"]}/datasets/{repos[-1]["organization"]}/{repos[-1]["name"]}'})
        if '/preupload/' in path:
            sent = json.loads(body)['files']
            return self.answer(200, {'files': [{'path': file['path'], 'uploadMode': 'regular', 'shouldIgnore': False} for file in sent]})
        if '/commit/' in path:
            for line in body.splitlines():
                part = json.loads(line)
                if part['key'] == 'file':
                    files[part['value']['path']] = base64.b64decode(part['value']['content']).decode()
            return self.answer(200, {'commitUrl': f'http://{self.headers["Host"]}/datasets/me/x/commit/1', 'commitOid': '1', 'success': True})
        self.answer(200, {'errors': [], 'warnings': []})

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Hub)
print(server.server_address[1], flush=True)
server.serve_forever()
