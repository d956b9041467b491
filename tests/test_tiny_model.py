"""The packaged tiny model, with its real weights: what it answers, and that company never changes an answer."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from weaverant.engines.embedded import PACKAGED, EmbeddedEngine
from weaverant.engines.gpt2.blas import threads
from weaverant.engines.gpt2.lanes import Conversation, Lanes
from weaverant.engines.gpt2.model import PAGE, TILE, TinyModel
from weaverant.engines.gpt2.pages import Pages
from weaverant.engines.gpt2.sampling import draw, uniform
from weaverant.errors import StepFailed, UserError
from weaverant.message import ImagePart, Message, OutputSchema, Reply, Request, Sampling, ToolSpec, system, user
from weaverant.protocols import CallContext
from weaverant.sources.arithmetic import PROMPTS, Arithmetic, last_number

TINY = PACKAGED / "tiny"
HERE = CallContext("test")
ROWS = list(Arithmetic("heldout", 300).rows(0))
QUESTION = ROWS[0]["question"]


def asked(text: str = QUESTION, seed: int = 0, **sampling: object) -> Request:
    settings = {"temperature": 1.0, "max_tokens": 40} | sampling
    return Request("test", "tiny", (user(text),), Sampling(**settings), seed=seed)  # type: ignore[arg-type]


def mixed(count: int, **sampling: object) -> list[Request]:
    """Requests of all three roles, so of different lengths."""
    told = {"attempt": "5-5=0 0+3=3 3+1=4 4-1=3 so 3", "critique": "5-5=0 0+3=3 3+1=4 4-1=3, right."}
    roles = list(PROMPTS)
    return [
        asked(PROMPTS[roles[i % 3]].format_map(told | {"question": ROWS[i % 300]["question"]}), i, **sampling)
        for i in range(count)
    ]


async def answered(engine: EmbeddedEngine, requests: list[Request], at_once: int = 10**9) -> list[Reply]:
    gate = asyncio.Semaphore(at_once)

    async def one(request: Request) -> Reply:
        async with gate:
            return await engine.generate(request, HERE)

    return await asyncio.gather(*map(one, requests))


def together(requests: list[Request], at_once: int = 10**9) -> list[Reply]:
    async def main() -> list[Reply]:
        engine = EmbeddedEngine.open("tiny")
        try:
            return await answered(engine, requests, at_once)
        finally:
            await engine.close()

    return asyncio.run(main())


def failure(request: Request) -> StepFailed:
    with pytest.raises(StepFailed) as caught:
        together([request])
    return caught.value


def test_it_works_out_problems_it_has_never_seen():
    replies = together([asked(row["question"], temperature=0.0) for row in ROWS])
    right = sum(last_number(reply.text) == row["answer"] for reply, row in zip(replies, ROWS, strict=True))
    assert right >= 285
    assert all(reply.finish == "stop" and reply.model == "tiny" for reply in replies)


def test_it_slips_at_temperature_one_as_its_card_says():
    replies = together([asked(row["question"], 7) for row in ROWS])
    right = sum(last_number(reply.text) == row["answer"] for reply, row in zip(replies, ROWS, strict=True))
    assert 0.45 <= right / len(ROWS) <= 0.7


def test_a_reply_is_the_same_alone_in_a_crowd_and_in_any_order():
    requests = mixed(300, max_tokens=20)
    alone = together(requests, at_once=1)
    crowd = together(requests, at_once=64)
    order = random.Random(0).sample(range(300), 300)
    shuffled = together([requests[i] for i in order])
    assert [reply.text for reply in alone] == [reply.text for reply in crowd]
    assert [alone[i] for i in order] == shuffled
    assert len({reply.text for reply in alone}) > 150


def test_the_logits_are_the_same_bits_in_any_lane_and_company():
    model = TinyModel.load(TINY)
    prompts = [model.tokenizer.chat([user(row["question"])]) for row in ROWS[:64]]
    known = len(prompts[0]) - 1

    def logits(lanes: list[int], rows: int) -> np.ndarray:
        """Of the first prompt, in the first of the lanes, beside as many others."""
        cache = model.cache(rows)
        tokens, places = np.zeros(rows, np.intp), np.zeros(rows, np.intp)
        for i, lane in enumerate(lanes):
            Pages(model).read(prompts[i][:-1], cache, lane)
            tokens[lane], places[lane] = prompts[i][-1], known
        return model.step(tokens, places, cache)[lanes[0]]

    with threads.one():
        alone = logits([0], TILE)
        for lane in range(TILE):
            np.testing.assert_array_equal(logits([lane], TILE), alone)
        for count in (2, 3, 16, 64):
            lanes = random.Random(count).sample(range(64), count)
            np.testing.assert_array_equal(logits(lanes, 64), alone)


def test_siblings_say_together_what_they_say_alone():
    """Calls of one prompt share a lane until they part, whatever their seeds, temperatures, limits and stops are."""
    settings = [{}, {"temperature": 0.3}, {"max_tokens": 7}, {"stop": (" ",)}, {"top_p": 0.9}, {"temperature": 0.0}]
    requests = [
        asked(row["question"], seed, **sampling) for row in ROWS[:20] for seed in range(2) for sampling in settings
    ]
    assert together(requests) == together(requests, at_once=1)
    assert len({reply.text for reply in together(requests)}) > 60


def test_siblings_share_a_lane_until_they_part():
    model = TinyModel.load(TINY)
    prompt = model.tokenizer.chat([user(QUESTION)])
    lanes = Lanes(model, 32)
    lanes.enter([Conversation(prompt, 40, seed=seed) for seed in range(20)])
    assert (lanes.free, len(lanes.sharing)) == (12, 1)
    used = []
    while lanes.seated:
        lanes.step()
        ways = {tuple(it.reply) for it in lanes.seated.values()}
        assert {len({tuple(lanes.seated[seat].reply) for seat in seats}) for seats in lanes.sharing.values()} <= {1}
        used.append(len(lanes.sharing))
        assert len(ways) == len(lanes.sharing)
    assert used[0] < 20 and max(used) > 3
    assert lanes.free == 32
    lanes.enter([Conversation(prompt, 40, seed=seed) for seed in range(32)])
    lanes.drop([it for it in lanes.seated.values() if it.seed % 4])
    assert (lanes.free, [len(seats) for seats in lanes.sharing.values()]) == (24, [8])
    lanes.clear()
    assert (lanes.free, lanes.sharing) == (32, {})


def test_siblings_enter_together_where_few_seats_are_free():
    class Watched(EmbeddedEngine):
        """Notes the prompts of the calls that enter in each turn."""

        def _admitted(self):
            calls = super()._admitted()
            entered.append({tuple(call.conversation.prompt) for call in calls})
            return calls

    entered: list[set[tuple[int, ...]]] = []

    async def main() -> None:
        engine = Watched(TinyModel.load(TINY), "tiny", "-", lanes=16)
        ends = (3, 11, 23)  # so that seats become free one by one
        await answered(engine, [asked(row["question"], max_tokens=end) for row in ROWS[:80] for end in ends])
        await engine.close()

    asyncio.run(main())
    assert 80 <= sum(map(len, entered)) < 95


def test_more_calls_of_one_prompt_than_there_are_lanes():
    requests = [asked(seed=seed, max_tokens=12) for seed in range(200)]
    assert together(requests) == together(requests, at_once=1)


def test_pages_read_before_have_the_bits_of_pages_read_anew():
    model = TinyModel.load(TINY)
    told = [model.tokenizer.chat(request.messages)[:-1] for request in mixed(30)]
    told += [[*prompt[:cut], 9, *prompt[cut:]] for prompt in told[:6] for cut in (0, 15, 16, 40)] + told[:5]
    kept, cache = Pages(model), model.cache(TILE)
    known = 0
    for prompt in told:
        Pages(model).read(prompt, cache, 0)
        known += kept.read(prompt, cache, 1)
        np.testing.assert_array_equal(cache[:, :, 0, :, : len(prompt)], cache[:, :, 1, :, : len(prompt)])
    assert sum(map(len, told[-5:])) < known < sum(map(len, told))


def test_pages_keep_what_was_used_last_and_no_more_than_they_may():
    model = TinyModel.load(TINY)
    cache = model.cache(TILE)
    page = cache[:, :, 0, :, :PAGE].nbytes
    pages = Pages(model, most_bytes=4 * page)
    first, second, third = ([token] * 2 * PAGE for token in (1, 2, 3))
    assert [pages.read(prompt, cache, 0) for prompt in (first, second, first)] == [0, 0, 2 * PAGE]
    pages.read(third, cache, 0)
    assert len(pages) == 4
    assert [pages.read(prompt, cache, 0) for prompt in (first, second)] == [2 * PAGE, 0]
    assert pages.read([], cache, 0) == 0


def test_seeds_draw_different_replies_and_repeat_them():
    replies = together([asked(seed=seed) for seed in range(40)] * 2)
    texts = [reply.text for reply in replies]
    assert texts[:40] == texts[40:]
    assert len(set(texts)) > 5


def test_a_prompt_is_read_as_if_token_by_token():
    """Reading a prompt at once and feeding its tokens singly must give the same logits."""
    model = TinyModel.load(TINY)
    ids = model.tokenizer.chat([user(QUESTION)])
    whole, single = model.cache(TILE), model.cache(TILE)
    tokens, places = np.zeros(TILE, np.intp), np.zeros(TILE, np.intp)
    Pages(model).read(ids[:-1], whole, 0)
    logits = np.zeros(0)
    for place, token in enumerate(ids):
        tokens[0], places[0] = token, place
        logits = model.step(tokens, places, single)[0]
    np.testing.assert_allclose(model.step(tokens, places, whole)[0], logits, atol=1e-4)


def test_usage_counts_tokens_exactly():
    (reply,) = together([asked(temperature=0.0)])
    assert reply.usage.prompt_tokens == len(QUESTION) + 3
    assert reply.usage.completion_tokens == len(reply.text) + 1
    assert (reply.usage.cached_tokens, reply.usage.cost) == (0, 0.0)


def test_it_stops_at_stop_texts_and_at_the_limit():
    whole, cut, short = together(
        [asked(temperature=0.0), asked(temperature=0.0, stop=("so",)), asked(temperature=0.0, max_tokens=5)]
    )
    assert cut.text == whole.text.partition("so")[0] and cut.finish == "stop"
    assert short.text == whole.text[:5] and short.finish == "length" and short.usage.completion_tokens == 5


def test_a_prompt_too_long_fails_with_the_numbers():
    failed = failure(asked("a" * 500))
    assert failed.kind == "context"
    assert "192" in failed.text and "503" in failed.text


def test_the_last_free_position_is_used():
    room = 192 - 3
    (reply,) = together([asked("a" * (room - 1), max_tokens=None)])
    assert reply.usage.completion_tokens == 1
    assert failure(asked("a" * room)).kind == "context"


def test_anything_can_be_asked():
    odd = ["", "é汉字\U0001f41c\ud800\x00", "<|end|><|assistant|>", "What is the capital of France?"]
    replies = together([asked(text) for text in odd])
    assert all(reply.usage.completion_tokens > 0 for reply in replies)
    (spoken,) = together([Request("test", "tiny", (system("Be brief."), user("Hi"), Message("assistant", "Yes")))])
    assert spoken.finish in ("stop", "length")


@pytest.mark.parametrize(
    ("request_", "word"),
    [
        (Request("a", "tiny", (user("x"),), tools=(ToolSpec("f", "", {}),)), "no tools"),
        (Request("a", "tiny", (user("x"),), output=OutputSchema("o", {})), "no output schema"),
        (Request("a", "tiny", (Message("user", (ImagePart("data:,"),)),)), "texts only"),
        (asked(max_tokens=0), "max_tokens above 0"),
        (asked(temperature=-1.0), "temperature"),
        (asked(top_p=0.0), "top_p"),
        (asked(logprobs=True), "log-probabilities"),
        (asked(top_logprobs=2), "log-probabilities"),
        (asked(n=2), "n=1, not 2"),
        (asked(extra={"top_k": 3}), "top_k"),
    ],
)
def test_what_it_cannot_do_it_refuses(request_: Request, word: str):
    failed = failure(request_)
    assert failed.kind == "request" and word in failed.text


def test_cancelled_calls_leave_and_the_rest_goes_on():
    async def main() -> None:
        engine = EmbeddedEngine.open("tiny")
        calls = [asyncio.create_task(engine.generate(request, HERE)) for request in mixed(200)]
        await asyncio.sleep(0.05)
        for call in calls[::2]:
            call.cancel()
        results = await asyncio.gather(*calls, return_exceptions=True)
        kept = [r for r in results[1::2] if isinstance(r, Reply)]
        assert [r.text for r in kept] == [r.text for r in await answered(engine, mixed(200)[1::2])]
        assert sum(isinstance(r, asyncio.CancelledError) for r in results[::2]) > 50
        await engine.close()

    asyncio.run(main())


def test_older_tasks_go_first():
    async def main() -> list[int]:
        engine = EmbeddedEngine.open("tiny", lanes=32)
        finished: list[int] = []

        async def one(order: int, request: Request) -> None:
            await engine.generate(request, CallContext("task", order=order))
            finished.append(order)

        before = [asyncio.create_task(one(0, request)) for request in mixed(64)]  # all lanes are taken meanwhile
        await asyncio.sleep(0)
        await asyncio.gather(*before, *(one(200 - i, request) for i, request in enumerate(mixed(200))))
        await engine.close()
        return [order for order in finished if order]

    finished = asyncio.run(main())
    assert np.mean(finished[:60]) + 60 < np.mean(finished[-60:])


def test_the_event_loop_stays_free_and_the_thread_sleeps_when_idle():
    async def main() -> None:
        engine = EmbeddedEngine.open("tiny")
        calls = asyncio.gather(*(engine.generate(request, HERE) for request in mixed(200)))
        worst = 0.0
        while not calls.done():
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            worst = max(worst, time.perf_counter() - before)
        assert worst < 0.25
        await calls
        threads = [thread for thread in threading.enumerate() if thread.name == "embedded-tiny"]
        assert len(threads) == 1
        spent = time.process_time()
        await asyncio.sleep(0.2)
        assert time.process_time() - spent < 0.1
        await engine.close()
        assert not threads[0].is_alive()

    asyncio.run(main())


def test_closing_fails_the_calls_in_flight_and_later_ones():
    async def main() -> None:
        engine = EmbeddedEngine.open("tiny")
        calls = [asyncio.create_task(engine.generate(request, HERE)) for request in mixed(300)]
        await asyncio.sleep(0.02)
        await engine.close()
        results = await asyncio.gather(*calls, return_exceptions=True)
        failed = [result for result in results if isinstance(result, StepFailed)]
        assert failed and {each.kind for each in failed} == {"connection"}
        with pytest.raises(StepFailed, match="closed"):
            await engine.generate(asked(), HERE)

    asyncio.run(main())


def test_one_engine_serves_several_event_loops_in_turn():
    engine = EmbeddedEngine.open("tiny")
    first, second = (asyncio.run(answered(engine, [asked()])) for _ in range(2))
    assert first == second
    asyncio.run(engine.close())


def test_identity_names_the_weights_and_not_the_place(tmp_path: Path):
    copy = tmp_path / "tiny"
    shutil.copytree(TINY, copy)
    here, there = EmbeddedEngine.open("tiny"), EmbeddedEngine.open(str(copy))
    assert here.identity == there.identity
    assert here.identity.startswith("embedded:tiny@") and len(here.identity.partition("@")[2]) == 12
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    assert EmbeddedEngine.open(str(copy)).identity != here.identity


def test_any_checkpoint_folder_of_the_family_loads(tmp_path: Path):
    folder = checkpoint(tmp_path / "other", width=24, layers=3, heads=3, positions=70)

    async def main() -> list[Reply]:
        engine = EmbeddedEngine.open(str(folder))
        assert engine.identity.startswith("embedded:other@")
        replies = await answered(engine, [asked("x" * n, max_tokens=8) for n in range(1, 60)])
        await engine.close()
        return replies

    assert all(reply.usage.completion_tokens > 0 for reply in asyncio.run(main()))


def checkpoint(folder: Path, width: int, layers: int, heads: int, positions: int) -> Path:
    """A folder of random float32 weights with the packaged tokenizer, names without `transformer.`."""
    shutil.copytree(TINY, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"n_embd": width, "n_layer": layers, "n_head": heads, "n_positions": positions}
    (folder / "config.json").write_text(json.dumps(config))
    sizes: dict[str, tuple[int, ...]] = {"wte.weight": (config["vocab_size"], width), "wpe.weight": (positions, width)}
    sizes |= {"ln_f.weight": (width,), "ln_f.bias": (width,)}
    for at in (f"h.{layer}." for layer in range(layers)):
        sizes |= {f"{at}{norm}.{part}": (width,) for norm in ("ln_1", "ln_2") for part in ("weight", "bias")}
        for name, rows, columns in (
            ("attn.c_attn", width, 3 * width),
            ("attn.c_proj", width, width),
            ("mlp.c_fc", width, 4 * width),
            ("mlp.c_proj", 4 * width, width),
        ):
            sizes |= {f"{at}{name}.weight": (rows, columns), f"{at}{name}.bias": (columns,)}
    dice, header, body = np.random.default_rng(0), {}, b""
    for name, size in sizes.items():
        tensor = dice.normal(0, 0.1, size).astype("<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": size, "data_offsets": [len(body), len(body) + len(tensor)]}
        body += tensor
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + body)
    return folder


def test_what_is_no_model_is_refused_with_the_way_out(tmp_path: Path):
    with pytest.raises(UserError, match="tiny"):
        EmbeddedEngine.open("no-such-model")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match="llama"):
        EmbeddedEngine.open(str(tmp_path))


def test_the_packaged_model_is_small():
    assert (TINY / "model.safetensors").stat().st_size < 2_000_000
    model = TinyModel.load(TINY)
    assert model.tokens.size + model.places.size + sum(m.weight.size for b in model.blocks for m in b) < 1_000_000


def test_draws_follow_the_distribution():
    count = 20_000
    logits = np.tile(np.log([0.5, 0.3, 0.15, 0.05]).astype(np.float32), (count, 1))
    keys, one = np.arange(count, dtype=np.uint64) * np.uint64(7919), np.ones(count)
    drawn = draw(logits, one, one, keys, np.ones(count, np.uint64))
    np.testing.assert_allclose(np.bincount(drawn) / count, [0.5, 0.3, 0.15, 0.05], atol=0.02)
    nucleus = draw(logits, one, one * 0.75, keys, np.ones(count, np.uint64))
    np.testing.assert_allclose(np.bincount(nucleus) / count, [5 / 8, 3 / 8], atol=0.02)
    sharp = draw(logits, one * 0.5, one, keys, np.ones(count, np.uint64))
    np.testing.assert_allclose(np.bincount(sharp)[0] / count, 0.25 / 0.365, atol=0.02)
    assert (draw(logits, one * 0, one, keys, np.ones(count, np.uint64)) == 0).all()
    numbers = uniform(keys, np.full(count, 3, np.uint64))
    assert numbers.min() >= 0 and numbers.max() < 1 and abs(numbers.mean() - 0.5) < 0.01


def test_lanes_refuse_a_number_that_fills_no_tile():
    with pytest.raises(ValueError, match="multiple of 16"):
        Lanes(TinyModel.load(TINY), 40)


def test_a_conversation_ends_at_the_end_token_or_its_limit():
    it = Conversation([1, 2], limit=2)
    it.add(9, "a", end=0)
    assert it.finish is None
    it.add(9, "b", end=0)
    assert (it.finish, it.text) == ("length", "ab")
