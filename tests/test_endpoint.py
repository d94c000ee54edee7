"""The judge behind an endpoint, against a stand-in server on this machine that fails in every way that servers do."""

import contextlib
import http.server
import json
import logging
import socket
import threading
import time
import traceback
from collections import Counter
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rlhf_lib import endpoint
from rlhf_lib.endpoint import VARIABLE, endpoint_judge, verdict
from rlhf_lib.files import RunError
from rlhf_lib.pairwise import compare, summary

KEY = "sk-stand.in/0123456789"


class StandIn:
    """A server whose answers `play` gives: play(handler, question, number), the number counting requests from 0."""

    def __init__(self):
        self.requests, self.lock = [], threading.Lock()
        self.play = lambda handler, question, number: say(handler, "A")
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                question = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or "null")
                with outer.lock:
                    number = len(outer.requests)
                    outer.requests.append((self.path, dict(self.headers), question))
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    outer.play(self, question, number)

            do_GET = do_POST

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


def send(handler, content, status=200, **headers):
    content = content if isinstance(content, bytes) else json.dumps(content).encode()
    handler.send_response(status)
    for name, value in {"Content-Length": len(content), **headers}.items():
        handler.send_header(name.replace("_", "-"), str(value))
    handler.end_headers()
    handler.wfile.write(content)


def say(handler, text):
    send(handler, {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]})


def in_turn(*plays):
    """The first play for the first request, and so on; the last one from there on."""
    return lambda handler, question, number: plays[min(number, len(plays) - 1)](handler)


def says(text):
    return lambda handler: say(handler, text)


def sends(content, status=200, **headers):
    return lambda handler: send(handler, content, status, **headers)


@pytest.fixture
def servers(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    made = []

    def make():
        made.append(StandIn())
        return made[-1]

    yield make
    for each in made:
        each.http.shutdown()
        each.http.server_close()


@pytest.fixture
def server(servers, monkeypatch):
    monkeypatch.setenv(VARIABLE, KEY)
    return servers()


@pytest.fixture
def judge(server, tmp_path):
    """judge(**settings): one that does not wait long, with a cache in tmp_path."""

    def make(**settings):
        made = {"base_url": server.url, "model": "m", "cache": tmp_path / "cache.jsonl", "workers": 1, "timeout": 5}
        return endpoint_judge(**{**made, "wait": 0.001, "patience": 2, "say": lambda sentence: None, **settings})

    return make


def ask(judge, count=1):
    return judge([f"prompt {n}" for n in range(count)], [f"one {n}" for n in range(count)], [f"other {n}" for n in range(count)])


def cached(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ----------------------------------------------------------------------------------------- the question, and its answer


def test_what_is_sent(server, judge):
    assert judge()(["How?"], ["So."], ["Thus."]) == ["first"]
    path, headers, question = server.requests[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert headers["Content-Type"] == "application/json"
    assert (question["model"], question["temperature"], question["max_tokens"]) == ("m", 0, 16)
    system, user = question["messages"]
    assert (system["role"], user["role"]) == ("system", "user")
    for criterion in ("answers what was asked", "true", "kind", "brief", "end", "A", "B", "TIE"):
        assert criterion in system["content"]
    places = [user["content"].index(text) for text in ("How?", "<answer_A>", "So.", "<answer_B>", "Thus.")]
    assert places == sorted(places)
    judge(options={"max_completion_tokens": 9})(["How?"], ["So."], ["Thus."])
    assert set(server.requests[1][2]) == {"model", "messages", "max_completion_tokens"}


def test_without_a_key_nothing_is_sent_in_its_place(server, judge, monkeypatch):
    monkeypatch.delenv(VARIABLE)
    assert ask(judge()) == ["first"]
    assert "Authorization" not in server.requests[0][1]


@pytest.mark.parametrize("reply", ["A", "a", " A\n", "A.", "**A**", "(A)", "“A”", "_A_"])
def test_one_word_is_a_verdict_in_marks_or_not(reply):
    assert verdict(reply) == "first"
    assert verdict(reply.replace("A", "B").replace("a", "b")) == "second"
    assert verdict(reply.replace("A", "TIE").replace("a", "tie")) == "tie"


@pytest.mark.parametrize(
    "reply",
    [
        None,
        "",
        "…",
        "Answer A",
        "A or B",
        "A, B",
        "AB",
        "A B",
        "T I E",
        "C",
        "Answer B is better.",
        "TIE A",
        "I cannot compare these.",
        "А",
        "1",
    ],
)
def test_anything_else_is_a_refusal(reply):
    assert verdict(reply) == "refused"  # the "А" is a Cyrillic one; minChatGPT counts "Answer B is better." as an A


@given(st.text(max_size=8))
@example("TİE")
@example("tıe")
def test_no_text_breaks_the_parsing(reply):
    letters = "".join(letter for letter in reply if letter.isalnum())
    expected = {"A": "first", "B": "second", "TIE": "tie"}.get(letters.upper(), "refused")
    assert verdict(reply) in (expected, "refused")
    assert verdict(f" {reply}x. ") == "refused"


# ----------------------------------------------------------------------------------------- evaluations


def prefers_good(handler, question, number):
    first, second = question["messages"][1]["content"].split("<answer_B>")
    say(handler, "A" if "good" in first else "B" if "good" in second else "TIE")


def test_a_comparison_in_both_orders(server, judge):
    server.play = prefers_good
    records = compare(judge(workers=4), ["p", "q", "r"], ["good", "bad", "bad"], ["bad", "good", "poor"])
    assert [record[3:] for record in records] == [("first", "second"), ("second", "first"), ("tie", "tie")]
    assert summary(records)["win_rate"].rate == 0.5
    assert len(server.requests) == 6


def test_a_few_at_once_and_the_order_stays(server, judge):
    lock, waiting, most = threading.Lock(), 0, 0

    def play(handler, question, number):
        nonlocal waiting, most
        with lock:
            waiting += 1
            most = max(most, waiting)
        time.sleep(0.01 * (number % 3 + 1))  # later questions overtake earlier ones
        place = int(question["messages"][1]["content"].split("prompt ")[1].split("\n")[0])
        with lock:  # before the answer is sent: behind it, the judge may already ask the next question
            waiting -= 1
        say(handler, ("A", "B", "TIE")[place % 3])

    server.play = play
    assert ask(judge(workers=4), 24) == ["first", "second", "tie"] * 8
    assert 2 <= most <= 4


def test_the_number_of_calls_is_said_before_the_first_one(server, judge):
    said = []
    server.play = in_turn(says("A"), says("no"))

    def listen(sentence):
        said.append((sentence, len(server.requests)))

    assert ask(judge(say=listen), 3) == ["first", "refused", "refused"]
    assert ask(judge(say=listen), 4)[:3] == ["first", "refused", "refused"]
    assert "3 questions, of which 0 are answered" in said[0][0]
    assert said[0][0].endswith("; 3 calls")
    assert said[0][1] == 0
    assert said[1] == ("m refused 2 of 3 verdicts; their pairs are left out", 3)
    assert "4 questions, of which 3 are answered" in said[2][0]
    assert said[2][0].endswith("; 1 calls")


def test_no_question_is_paid_twice(server, judge, tmp_path):
    assert judge()(["p"] * 3, ["a"] * 3, ["b"] * 3) == ["first"] * 3
    assert len(server.requests) == 1
    assert judge()(["p"], ["a"], ["b"]) == ["first"]
    assert len(server.requests) == 1
    row = cached(tmp_path / "cache.jsonl")[0]
    assert (row["model"], row["verdict"], row["reply"]) == ("m", "first", "A")
    # another question, order, model or option is another request
    judge()(["p"], ["b"], ["a"])
    judge(model="n")(["p"], ["a"], ["b"])
    judge(options={})(["p"], ["a"], ["b"])
    assert len(server.requests) == 4
    assert len({row["request"] for row in cached(tmp_path / "cache.jsonl")}) == 4


def test_each_verdict_is_in_the_file_before_the_next_question(server, judge, tmp_path):
    """So that a process that is killed loses none."""
    lines = []

    def play(handler, question, number):
        lines.append(len(cached(tmp_path / "cache.jsonl")))
        say(handler, "A")

    server.play = play
    ask(judge(), 5)
    assert lines == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("workers", [1, 4])
def test_a_stopped_evaluation_goes_on_where_it_was(server, judge, tmp_path, monkeypatch, workers):
    def stop(done, **_):
        for number, each in enumerate(done):
            if number == 3:
                raise KeyboardInterrupt
            yield each

    with monkeypatch.context() as patch:
        patch.setattr(endpoint, "tqdm", stop)
        with pytest.raises(KeyboardInterrupt):
            ask(judge(workers=workers), 40)
    before = len(server.requests)
    assert 3 <= before < 40
    assert len(cached(tmp_path / "cache.jsonl")) == before  # what was under way is kept too
    assert ask(judge(workers=workers), 40) == ["first"] * 40
    assert len(server.requests) == 40
    assert max(Counter(json.dumps(question) for _, _, question in server.requests).values()) == 1


def test_a_line_that_was_cut_off_is_asked_again(server, judge, tmp_path):
    path = tmp_path / "cache.jsonl"
    ask(judge(), 3)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert ask(judge(), 3) == ["first"] * 3
    assert len(server.requests) == 4
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "line", [b"{", b"[]", b"\xff", b'{"request": "x"}', b'{"request": "x", "verdict": "A"}', b'{"request": [], "verdict": "tie"}']
)
def test_a_damaged_line_is_named_before_any_call(server, judge, tmp_path, line):
    path = tmp_path / "cache.jsonl"
    ask(judge())
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(RunError, match=r"cache\.jsonl, line 2: not a verdict"):
        ask(judge(), 2)
    assert len(server.requests) == 1


def test_a_cache_that_cannot_be_written_is_named_before_any_call(server, judge, tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "cache.jsonl"):
        with pytest.raises(RunError, match=r"cannot (read|write) "):
            ask(judge(cache=path))
    assert server.requests == []


# ----------------------------------------------------------------------------------------- failures that pass


def breaks_off(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "500")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [{"mess')


def hangs_up(handler):
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


def is_silent(handler):
    time.sleep(0.3)
    say(handler, "A")


def no_http(handler):
    handler.wfile.write(b"hello\r\n\r\n")


PASSING = {
    "429": sends({"error": {"message": "slow down"}}, 429),
    "500": sends(b"", 500),
    "503": sends(b"<html>busy</html>", 503),
    "408": sends(b"", 408),
    "breaks off": breaks_off,
    "hangs up": hangs_up,
    "silent": is_silent,
    "no HTTP": no_http,
    "no JSON": sends(b"<html>hello</html>"),
    "no UTF-8": sends(b"\xff\xfe{}"),
    "no object": sends([1]),
    "no choices": sends({"error": {"message": "overloaded"}}),
    "choices null": sends({"choices": None}),
    "no message": sends({"choices": [{}]}),
    "empty": sends(b""),
}


TOLD = dict.fromkeys(PASSING, "answers what is no chat completion") | {
    "429": 'answers 429 ({"error": {"message": "slow down"}})',
    "500": "answers 500 ()",
    "503": "answers 503 (<html>busy</html>)",
    "408": "answers 408",
    "breaks off": "broke off (IncompleteRead)",
    "hangs up": "broke off (RemoteDisconnected)",
    "silent": "was silent for 0.1 s",
    "no HTTP": "broke off (BadStatusLine)",
}


@pytest.mark.parametrize("name", PASSING)
def test_what_may_pass_is_asked_again_with_growing_waits(server, judge, monkeypatch, name):
    waits = []
    monkeypatch.setattr(threading.Event, "wait", wait_and_note(threading.Event.wait, waits))
    server.play = in_turn(PASSING[name], PASSING[name], says("B"))
    assert ask(judge(timeout=0.1)) == ["second"]
    assert len(server.requests) == 3
    assert waits == [0.001, 0.002]


def wait_and_note(wait, waits):
    def noted(self, timeout=None):
        if timeout is not None and 0 < timeout < 1:
            waits.append(timeout)
        return wait(self, timeout)

    return noted


@pytest.mark.parametrize("name", PASSING)
def test_what_does_not_pass_is_given_up_in_one_sentence(server, judge, tmp_path, name):
    server.play = in_turn(says("A"), PASSING[name])
    with pytest.raises(RunError) as error:
        ask(judge(timeout=0.1, patience=0.01), 3)
    message = str(error.value)
    assert message.startswith(server.url)
    assert TOLD[name] in message
    assert "gave up after waiting 0 of at most 0.01 s; 1 of 3 verdicts are kept in " in message
    assert len(server.requests) == 1 + 4  # waits of .001, .002 and .004
    assert len(cached(tmp_path / "cache.jsonl")) == 1


def test_retry_after_is_kept_to(server, judge):
    times = []

    def play(handler, question, number):
        times.append(time.monotonic())
        send(handler, {}, 429, Retry_After="0.2") if number == 0 else say(handler, "TIE")

    server.play = play
    assert ask(judge()) == ["tie"]
    assert times[1] - times[0] >= 0.2


def test_a_server_that_wants_longer_than_we_have_is_not_waited_for(server, judge):
    server.play = in_turn(sends({}, 429, Retry_After="3600"))
    start = time.monotonic()
    with pytest.raises(RunError, match=r"answers 429 .* asks for 3600 s more; gave up after waiting 0 of at most 120 s"):
        ask(judge(patience=120))
    assert time.monotonic() - start < 2
    assert len(server.requests) == 1


def test_retry_after_may_be_a_date():
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    assert 85 < endpoint.seconds(soon) <= 90
    assert endpoint.seconds("7") == 7
    past = format_datetime(datetime.now(UTC) - timedelta(hours=1), usegmt=True)
    assert [endpoint.seconds(header) for header in (None, "", "soon", "-3", "nan", past)] == [0] * 6


# ----------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("play", "reply"),
    [
        (says("I'm sorry, but I cannot help with that."), "I'm sorry, but I cannot help with that."),
        (says(""), ""),
        (says(None), None),
        (sends({"choices": []}), None),
        (sends({"choices": [{"message": {"content": None, "refusal": "No."}}]}), None),
        (sends({"error": {"code": "content_filter", "message": "filtered"}}, 400), None),
    ],
)
def test_a_refusal_is_counted_and_its_pair_left_out(server, judge, tmp_path, play, reply):
    def answer(handler, question, number):
        asked = question["messages"][1]["content"].split("\n")[1]
        play(handler) if asked == "q" else prefers_good(handler, question, number)

    server.play = answer
    records = compare(judge(), ["p", "q"], ["good", "good"], ["bad", "bad"])
    assert [record[3:] for record in records] == [("first", "second"), ("refused", "refused")]
    figures = summary(records)
    assert (figures["pairs"], figures["refused"], figures["win_rate"].rate) == (1, 1, 1)
    compare(judge(), ["p", "q"], ["good", "good"], ["bad", "bad"])
    assert len(server.requests) == 4  # a refusal is not paid twice either
    assert [row["reply"] for row in cached(tmp_path / "cache.jsonl") if row["verdict"] == "refused"] == [reply] * 2


# ----------------------------------------------------------------------------------------- failures that stay


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "the key is missing or wrong: set RLHF_JUDGE_KEY"),
        (403, "the key may not use this model"),
        (404, "no such model or address: correct the model's name, or base_url"),
        (400, "the request is refused: correct model or options .*no such parameter"),
        (422, "the request is refused"),
    ],
)
def test_what_cannot_pass_is_said_at_once(server, judge, status, said):
    server.play = in_turn(sends({"error": {"message": "no such parameter"}}, status))
    with pytest.raises(RunError, match=rf"answers {status}, {said}"):
        ask(judge(), 5)
    assert len(server.requests) == 1


def takes_only(*fields):
    """A server that refuses every other field, the first in the alphabet by its name, as OpenAI's do."""

    def play(handler, question, number):
        unknown = sorted(question.keys() - {"model", "messages", *fields})
        said = f"Unsupported parameter: '{unknown[0]}' is not supported with this model." if unknown else ""
        send(handler, {"error": {"message": said}}, 400) if unknown else say(handler, "B")

    return play


@pytest.mark.parametrize("workers", [1, 4])
def test_an_option_that_the_server_refuses_by_name_is_left_out_from_then_on(server, judge, tmp_path, workers):
    said = []
    server.play = takes_only()
    made = judge(workers=workers, say=said.append)
    assert ask(made, 8) == ["second"] * 8
    refused = len(server.requests) - 8
    assert 2 <= refused <= 2 * workers  # by each question that was under way
    assert said[1:] == [
        "m does not take max_tokens: it is asked without it",
        "m does not take temperature: it is asked without it",
    ]
    assert ask(made, 10) == ["second"] * 10
    assert len(server.requests) == refused + 10 and len(cached(tmp_path / "cache.jsonl")) == 10
    assert ask(judge(), 10) == ["second"] * 10  # it is the same question, which is paid for
    assert len(server.requests) == refused + 10


def test_only_what_is_named_is_left_out_and_what_is_refused_without_it_too_is_said(server, judge):
    server.play = takes_only("temperature")
    assert ask(judge()) == ["second"]
    assert [set(question) - {"model", "messages"} for _, _, question in server.requests] == [
        {"temperature", "max_tokens"},
        {"temperature"},
    ]
    server.play = in_turn(sends({"error": {"message": "max_tokens and more is wrong"}}, 400))
    with pytest.raises(RunError, match=r"answers 400, the request is refused: correct model or options .*max_tokens and more"):
        ask(judge(), 3)
    assert len(server.requests) == 4


def test_one_failure_ends_the_waits_of_the_others_and_is_the_one_that_is_told(server, judge):
    def play(handler, question, number):
        if number == 3:
            time.sleep(0.05)  # the others wait by then
        send(handler, {}, 401 if number == 3 else 429, Retry_After="60")

    server.play = play
    start = time.monotonic()
    with pytest.raises(RunError, match=r"answers 401, .*; 0 of 40 verdicts are kept"):
        ask(judge(workers=4, patience=120), 40)
    assert time.monotonic() - start < 2
    assert len(server.requests) == 4


def test_nothing_is_sent_on_to_where_a_server_points(server, servers, judge):
    other = servers()
    for status in (301, 302, 307, 308):
        server.play = in_turn(sends(b"", status, Location=f"{other.url}/chat/completions"))
        with pytest.raises(RunError, match=f"answers {status}, it has moved: give the new address as base_url"):
            ask(judge())
    assert other.requests == []


def test_no_server_is_said_at_once(server, judge):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = time.monotonic()
    with pytest.raises(RunError, match=r"cannot be reached .*: start the server, or correct base_url; 0 of 2 verdicts"):
        ask(judge(base_url=f"http://127.0.0.1:{port}/v1"), 2)
    assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    "url",
    ["", "api.example.org/v1", "ftp://example.org", "https://", "https://me:secret@example.org/v1", "https://example.org/v1?key=secret",
     "https://example.org/v1#x", "https://example.org:port/v1", "https://exa mple.org/v1", "http://[::1/v1", "https://exämple.org"],
)  # fmt: skip
def test_an_address_that_is_none_is_refused_without_repeating_it(tmp_path, url):
    with pytest.raises(RunError, match="base_url must be") as error:
        endpoint_judge(url, "m", cache=tmp_path / "cache.jsonl")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("url", ["https://h/v1", "https://h/v1/", "https://h/v1/chat/completions"])
def test_the_address_may_be_written_in_three_ways(url):
    assert endpoint.completions_url(url) == "https://h/v1/chat/completions"


# ----------------------------------------------------------------------------------------- the key


def leaks(tmp_path, *texts):
    found = [str(path) for path in tmp_path.rglob("*") if path.is_file() and b"0123456789" in path.read_bytes()]
    return found + [text for text in texts if "0123456789" in text]


def frames(error):
    """The traceback of the library's frames with all their variables."""
    trace = error.__traceback__
    while trace.tb_frame.f_code.co_filename != endpoint.__file__:
        trace = trace.tb_next
    text = "".join(traceback.TracebackException(type(error), error, trace, capture_locals=True).format())
    assert "prompts = ['prompt 0'" in text
    return text


@pytest.mark.parametrize("status", [200, 201, 400, 401, 403, 404, 418, 429, 500, 302])
def test_the_key_is_nowhere_even_where_the_server_repeats_it(server, tmp_path, capsys, caplog, status):
    """Not in a file, the output, a log, a repr, or an exception with all its frames' variables."""
    caplog.set_level(logging.DEBUG)
    echoed = json.dumps({"error": f"bad key {KEY}", "choices": f"Bearer {KEY}"}).replace("/", "\\/").encode()
    server.play = in_turn(says(f"A, says {KEY}"), sends(echoed, status, X_Key=KEY, Location=f"http://127.0.0.1/{KEY}"))
    made = endpoint_judge(server.url, "m", cache=tmp_path / "cache.jsonl", wait=0.001, patience=0.002, workers=1)
    with pytest.raises(RunError) as error:
        ask(made, 3)
    trace = frames(error.value)
    output = capsys.readouterr()
    assert server.requests[0][1]["Authorization"] == f"Bearer {KEY}"
    assert len(cached(tmp_path / "cache.jsonl")) == 1
    assert leaks(tmp_path, str(error.value), trace, output.out, output.err, caplog.text, repr(made), repr(vars(endpoint))) == []
    assert "***" in cached(tmp_path / "cache.jsonl")[0]["reply"]


@pytest.mark.parametrize("bad", [f"{KEY} x", f"{KEY}\nX: y", f"“{KEY}”", f"{KEY}é", f'"{KEY}"'])
def test_a_key_that_cannot_be_one_is_refused_without_showing_it(server, judge, tmp_path, monkeypatch, bad):
    monkeypatch.setenv(VARIABLE, bad)
    with pytest.raises(RunError, match="RLHF_JUDGE_KEY holds characters that no key has") as error:
        ask(judge())
    trace = frames(error.value)
    assert server.requests == []
    monkeypatch.delenv(VARIABLE)
    assert leaks(tmp_path, str(error.value), trace) == []


def test_blanks_around_the_key_do_no_harm(server, judge, monkeypatch):
    monkeypatch.setenv(VARIABLE, f" {KEY}\n")
    ask(judge())
    assert server.requests[0][1]["Authorization"] == f"Bearer {KEY}"


def test_the_key_is_not_sent_in_the_open(judge):
    with pytest.raises(RunError, match=r"http://example\.org/v1/chat/completions is not encrypted"):
        ask(judge(base_url="http://example.org/v1"))


@pytest.mark.parametrize("answer", [b"[" * 5000, b'{"choices": ' + b"[" * 5000, b'{"id":' * 100_000])
def test_an_answer_nested_deeper_than_python_can_follow_is_garbled_and_no_more(answer):
    with pytest.raises(endpoint.Again, match="answers what is no chat completion"):
        endpoint.text_of(answer)


def test_a_cache_nested_deeper_than_python_can_follow_is_named(tmp_path):
    (tmp_path / "cache.jsonl").write_bytes(b"[" * 5000 + b"\n")
    with pytest.raises(RunError, match=r"cache\.jsonl, line 1: not a verdict"):
        endpoint.read_cache(tmp_path / "cache.jsonl")


def test_an_answer_without_end_is_read_only_so_far(monkeypatch):
    class Endless:
        length, asked = 7, []

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def read(self, most):
            self.asked.append(most)
            return b"x"

    monkeypatch.setattr(endpoint.OPENER, "open", lambda *_, **__: Endless())
    with pytest.raises(endpoint.Again, match=r"^broke off \(IncompleteRead\)$"):
        endpoint.post("http://localhost/v1", b"{}", 1)
    assert Endless.asked == [10_000_000]
