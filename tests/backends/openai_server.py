"""A server of OpenAI's form, friendly or hostile, in a thread."""

import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "sk-a-secret-that-must-be-nowhere"


def error_of(code, message="it is so", **more):
    return {"error": {"code": code, "message": message, **more}}


class Api:
    """Answers with ``write(body)``, a text or a whole choice, unless the ``plan`` says what becomes of a request.

    An entry of the plan is a status with a body (and headers), or the name of a misdeed, in the order of requests.
    """

    def __init__(self, write=None):
        self.write = write or (lambda body: self.answer(self.question(body)))
        self.plan, self.seen, self.asked, self.sent = [], [], Counter(), 0
        self.most = self.now = 0
        self.connections = set()
        self.usage = True
        # Of batches: what is sent, each one's file and how often it was looked at, and lines put into the next output.
        self.files, self.batches, self.lines = {}, {}, []
        # What begins of batches answer although they began.
        self.begins = []
        lock, api = threading.Lock(), self
        self.lock = lock

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                with lock:
                    said = api.looked_at(self.path)
                self.send_response(200)
                self.send_header("content-length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            def do_POST(self):
                if self.path == "/v1/files":
                    sent = self.rfile.read(int(self.headers["content-length"])).decode()
                    with lock:
                        name = f"file-{len(api.files)}"
                        api.files[name] = [json.loads(line) for line in sent.splitlines() if line.startswith("{")]
                    assert 'name="purpose"' in sent
                    self.reply({}, (200, {"id": name}))
                    return
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with lock:
                    api.now += 1
                    api.most = max(api.most, api.now)
                    api.connections.add(self.client_address)
                    api.seen.append((time.monotonic(), self.path, dict(self.headers), body))
                    planned = api.plan.pop(0) if api.plan and self.path != "/v1/batches" else None
                    if self.path == "/v1/batches":
                        name = f"batch-{len(api.batches)}"
                        api.batches[name] = [body["input_file_id"], 0]
                        planned = (200, {"id": name, "status": "validating"})
                        if api.begins:
                            planned = api.begins.pop(0)
                try:
                    self.reply(body, planned)
                finally:
                    with lock:
                        api.now -= 1

            def reply(self, body, planned):
                if planned == "hang":
                    time.sleep(1.5)
                    self.close_connection = True
                    return
                status, payload, headers = 200, None, {}
                if isinstance(planned, tuple):
                    status, payload, *more = planned
                    headers = more[0] if more else {}
                else:
                    payload = api.payload(body, planned) if planned else api.payload_of(self.headers, body)
                    with lock:
                        api.asked[api.question(body)] += bool(planned)
                said = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
                if planned == "endless":
                    said += b" " * (17 << 20)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(said)))
                self.end_headers()
                if planned == "half":
                    said, self.close_connection = said[: len(said) // 2], True
                self.wfile.write(said)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def looked_at(self, path):
        """What a look at a batch, or at the file of its replies, gives."""
        if path.startswith("/v1/batches?"):
            return json.dumps({"data": [{"id": n, "input_file_id": b[0]} for n, b in self.batches.items()]}).encode()
        name = path.split("/")[3]
        if "/batches/" in path:
            self.batches[name][1] += 1
            done = self.batches[name][1] > 1
            total = len(self.files[self.batches[name][0]])
            more = {"request_counts": {"completed": total * done, "total": total, "failed": 0}}
            more |= {"output_file_id": f"out-{name}"} if done else {}
            return json.dumps({"id": name, "status": "completed" if done else "in_progress", **more}).encode()
        rows, lines = self.files[self.batches[name.removeprefix("out-")][0]], []
        for row in rows:
            planned = self.plan.pop(0) if self.plan else None
            assert row["url"] == "/v1/chat/completions"
            if isinstance(planned, tuple):
                answer = {"status_code": planned[0], "body": planned[1]}
            else:
                answer = {"status_code": 200, "body": self.payload(row["body"], planned)}
                self.asked[self.question(row["body"])] += 1
            lines.append(json.dumps({"custom_id": row["custom_id"], "response": answer}))
        mixed = [*self.lines, *lines, *lines[:1]]
        self.lines = []
        return "\n".join(mixed).encode()

    @staticmethod
    def question(body):
        return body["messages"][-1]["content"] if "messages" in body else body["prompt"]

    @staticmethod
    def answer(text):
        return "bad" if len(text) % 2 else "good"

    def payload_of(self, headers, body):
        """The reply to a request, which is counted."""
        payload = self.payload(body)
        with self.lock:
            self.asked[self.question(body)] += 1
        return payload

    def payload(self, body, misdeed=None):
        choice = self.write(body)
        if isinstance(choice, str):
            choice = {"message": {"role": "assistant", "content": choice}} if "messages" in body else {"text": choice}
        choice = {"index": 0, "finish_reason": "stop", **choice}
        payload = {"id": "1", "object": "any", "model": body["model"], "choices": [choice]}
        if self.usage:
            count = len(self.question(body).split())
            details = {"cached_tokens": count // 2}
            payload["usage"] = {"prompt_tokens": count, "completion_tokens": 2, "prompt_tokens_details": details}
        if misdeed == "empty":
            payload = {"choices": []}
        elif misdeed == "charged":
            payload["choices"] = []
        elif misdeed == "null":
            choice["message"] = {"content": None}
        elif misdeed == "tool":
            choice |= {"message": {"content": None, "tool_calls": [{"id": "1"}]}, "finish_reason": "tool_calls"}
        elif misdeed == "thought":
            choice |= {"message": {"content": "", "reasoning_content": "is it good"}, "finish_reason": "length"}
        elif misdeed == "cut":
            choice |= {"message": {"content": None}, "finish_reason": "length"}
        elif misdeed == "parts":
            choice["message"] = {"content": [{"type": "thinking", "thinking": []}, {"type": "text", "text": "good"}]}
        elif misdeed == "error":
            return {"error": {"code": 502, "message": "no provider"}}
        elif misdeed == "broken":
            choice |= {"error": {"message": "oops"}, "finish_reason": "error"}
        elif misdeed == "refusal":
            choice["message"] = {"content": None, "refusal": "I will not."}
        elif misdeed == "filter":
            choice |= {"message": {"content": "go"}, "finish_reason": "content_filter"}
        elif misdeed == "length":
            choice |= {"message": {"content": "well, let me"}, "finish_reason": "length"}
        elif misdeed == "chatter":
            choice["message"] = {"content": "It is good or bad \U0001f600 \u2028 \x00"}
        elif misdeed == "surrogate":
            return json.dumps(payload).replace('"good"', '"\\ud83d"').replace('"bad"', '"\\ud83d"').encode()
        elif misdeed == "other model":
            payload["model"] = "cheap-model"
        elif misdeed == "no json":
            return b"<html>welcome</html>"
        elif misdeed == "not utf-8":
            return b'{"choices": "\xff\xfe"}'
        elif misdeed == "deep":
            return b"[" * 100_000
        elif misdeed == "list":
            return b"[1]"
        elif misdeed == "no usage":
            del payload["usage"]
        return payload

    def close(self):
        self.server.shutdown()
        self.server.server_close()
