"""The time of jobs: published steps, what a step waits for, padding, and what is written."""

import math
from pathlib import Path
from typing import Any

import pytest

from opd.plan import calibrate, cost, timing
from opd.plan.cost import Facts
from opd.plan.work import Work, work
from opd.stages.artifact import Artifact

pytestmark = pytest.mark.unit
SHIPPED = calibrate.tables(Path(__file__).parents[3] / "config" / "calibration.yaml")
ANCHOR = SHIPPED["anchor"]
# R1-1.5B learning from JustRL, 10 steps of 256 sequences, without what is written and starting.
RUN: dict[str, Any] = {
    "steps": 10,
    "prompts_per_step": 64,
    "rollouts_per_prompt": 4,
    "micro_batch": 4,
    "max_prompt_tokens": 1024,
    "max_new_tokens": 7168,
    "precision": "bfloat16",
    "gradient_checkpointing": True,
    "vllm": {},
    "execution": {"vllm": {"gpu_memory_utilization": 0.4}},
}
FSDP = {"vllm": {"gpu_memory_utilization": 0.4}, "accelerate": "config/accelerate/fsdp2.yaml"}
UNPADDED = {"packing": True, "attention": "flash_attention_2"}


def device(name: str = "H100", **changes: Any) -> timing.Device:
    return calibrate.device(SHIPPED["machines"][name], SHIPPED)._replace(**changes)


def of(stage: str, on: timing.Device, **changes: Any) -> Work:
    inputs = {"student": "s", "prompts": "p"} | ({"teacher": "t"} if stage == "distill" else {})
    cfg = {**RUN, **changes, "inputs": [*inputs]}
    made = {
        "s": Artifact("fetch", "s", {"hub": ANCHOR["student"]}, ()),
        "t": Artifact("fetch", "t", {"hub": ANCHOR["teacher"]}, ()),
        "r": Artifact(stage, "r", cfg, (*inputs.values(),)),
    }
    done = work(Facts(made, SHIPPED), "r", on)
    assert done is not None
    return done


def step(done: Work) -> dict[str, float]:
    """Seconds of one of its ten steps, by part."""
    return {part: took / 10 for part, took in done.parts.items() if part not in ("write", "start")}


# What is published


def test_the_published_step_is_met_by_phase():
    """verl packs its micro-batches. The teacher's phase, which took more than twice as long as
    the same pass of the student, is not."""
    took = step(of("distill", device(ANCHOR["machine"]), micro_batch=8, **UNPADDED))
    measured = ANCHOR["seconds"]
    assert took["sample"] == pytest.approx(measured["sample"], rel=0.02)
    assert took["update"] == pytest.approx(measured["update"], rel=0.05)
    assert took["teacher"] == pytest.approx(measured["score"], rel=0.1)
    reckoned = sum(took.values()) - took["metrics"] + took["teacher"]  # the student's own pass
    assert 0.85 < reckoned / sum(measured.values()) < 1
    assert 0.95 < reckoned / 329 < 1


def test_the_other_published_step_is_met():
    """The same pair on two A100, two rollouts a step: 7,060 steps took about 59 hours."""
    done = of("distill", device("A100"), processes=2, prompts_per_step=1, rollouts_per_prompt=2)
    assert sum(step(done).values()) / 2 == pytest.approx(59 * 3600 / 7060, rel=0.05)


# What a step waits for


def test_more_engines_take_as_many_iterations():
    """An engine has no fewer iterations when it has fewer responses, but for the longest."""
    on = device(bandwidth=math.inf, products=math.inf, token=0.0)
    longest = timing.longest(256, 7168, on.natural)
    for processes in (1, 8):
        took = step(of("distill", on, processes=processes))["sample"]
        assert took == pytest.approx(processes * longest * on.iteration)


def test_a_cache_that_holds_fewer_sequences_takes_more_iterations():
    """At 0.4 of 24 GB weights of 1.777e9 parameters leave 4.75 GB, and 28,672 bytes a token."""
    on = device(bandwidth=math.inf, products=math.inf, token=0.0, memory=24 * 2**30)
    room = 0.4 * 24 * 2**30 - 2e9 - 2 * 1_777_088_000
    under_way = 150 + timing.mean_square(7168, 8000) / timing.mean(7168, 8000) / 2
    slots = room / 28_672 / under_way
    assert 40 < slots < 60
    expected = timing.queued(256, slots, 7168, 8000) * on.iteration
    assert step(of("distill", on))["sample"] == pytest.approx(expected, rel=1e-3)
    fewer = of("distill", on, vllm={"max_num_seqs": 16})
    expected = timing.queued(256, 16, 7168, 8000) * on.iteration
    assert step(fewer)["sample"] == pytest.approx(expected)


def test_a_step_samples_the_students_own_share_of_its_rollouts():
    """Where the queue is longer than an engine has slots, time goes with the tokens."""
    on = device(bandwidth=math.inf, products=math.inf, iteration=0.0)
    half = [{"own": 0.5}, {"generations": "generations:0", "share": 0.5}]
    all_own = step(of("distill", on))
    assert step(of("distill", on, rollouts=half))["sample"] == pytest.approx(all_own["sample"] / 2)
    none = step(of("distill", on, rollouts=[{"generations": "generations:0", "share": 1.0}]))
    assert "sample" not in none and none["update"] == all_own["update"]


@pytest.mark.parametrize("how", [{"scores": "scores"}, {"server": True}])
def test_a_teacher_with_scores_or_behind_a_server_takes_no_time(how):
    live, scored = step(of("distill", device())), step(of("distill", device(), **how))
    assert "teacher" in live and "teacher" not in scored
    assert scored["update"] == live["update"]
    terms = [
        {"teacher": "t", "weight": 1.0, **how},
        {"reference": "student", "weight": 1.0},
    ]
    mixed = of("distill", device(), terms=terms, loss=None)
    student = {**RUN, "terms": terms[1:]}
    assert step(mixed)["teacher"] == pytest.approx(
        step(of("distill", device(), **student))["teacher"]
    )


def test_responses_are_read_once_more_for_their_log_probabilities():
    made = {
        "m": Artifact("fetch", "m", {"hub": "some/model-1B"}, ()),
        "p": Artifact("prompts", "p", {"inputs": []}, ()),
    }
    facts = Facts(made, {**SHIPPED, "prompt_tokens": 50}, {"p": {"prompts": 100}})
    on = device(launch=0.0, natural=math.inf, products=1.0)
    took = {}
    for name, more in (("plain", {}), ("read", {"logprobs": True})):
        cfg = {"samples": 1, "max_new_tokens": 150, "inputs": ["model", "prompts"], **more}
        made["g"] = Artifact("generate", "g", cfg, ("m", "p"))
        took[name] = work(facts, "g", on).parts
    assert took["read"].pop("score") == pytest.approx(100 * 200 * 2e9, rel=0.01)
    assert took["read"] == took["plain"]


def test_transformers_samples_a_step_in_one_batch():
    cfg = {key: value for key, value in RUN.items() if key != "vllm"}
    made = {
        "s": Artifact("fetch", "s", {"hub": ANCHOR["student"]}, ()),
        "r": Artifact("grpo", "r", {**cfg, "group_size": 4, "inputs": ["student"]}, ("s",)),
    }
    on = device(bandwidth=math.inf, products=math.inf)
    done = work(Facts(made, SHIPPED), "r", on)
    expected = timing.longest(256, 7168, 8000) * 28 * on.launch
    assert step(done)["sample"] == pytest.approx(expected)


# What is computed


@pytest.mark.parametrize(
    ("natural", "limit", "share"),
    [(8000, 7168, 0.68), (8000, 15360, 0.55), (1200, 7168, 0.48)],
)
def test_padded_positions_count_as_simulated(natural, limit, share):
    """Shares of positions that count in micro-batches of four, by simulation; without prompts, and
    in products of layers alone."""
    facts = {**SHIPPED, "prompt_tokens": 0}
    made = {
        "m": Artifact("fetch", "m", {"hub": "some/model-1B"}, ()),
        "t": Artifact("fetch", "t", {"hub": "some/model-1B"}, ()),
    }
    took = {}
    for name, more in (("padded", {}), ("packed", {"packing": True})):
        cfg = {**RUN, **more, "max_new_tokens": limit, "inputs": ["student", "teacher"]}
        made["r"] = Artifact("distill", "r", cfg, ("m", "t"))
        done = work(Facts(made, facts), "r", device(natural=natural, launch=0.0))
        took[name] = done.parts["teacher"]
    assert took["packed"] / took["padded"] == pytest.approx(share, abs=0.01)


def test_shards_wait_for_the_longest_of_all_processes():
    on = device(natural=1200, launch=0.0)
    ddp, fsdp = (of("distill", on, processes=8, execution=x) for x in (RUN["execution"], FSDP))
    # Products of layers alone would be in this ratio, and attention adds to it.
    ratio = timing.longest(32, 7168, 1200) / timing.longest(4, 7168, 1200)
    assert ratio**1 < fsdp.parts["teacher"] / ddp.parts["teacher"] < ratio**2


def test_checkpointing_is_one_more_forward_pass():
    plain = of("distill", device(bandwidth=math.inf), gradient_checkpointing=False).parts["update"]
    checkpointed = of("distill", device(bandwidth=math.inf)).parts["update"]
    assert checkpointed / plain == pytest.approx(4 / 3)


def test_measurements_are_taken_every_few_steps():
    every = of("distill", device()).parts["metrics"]
    assert of("distill", device(), metrics_every=5).parts["metrics"] == pytest.approx(every / 5)


def test_reinforcement_reads_its_rollouts_once_more_where_weights_may_differ():
    grpo = {"group_size": 4}
    plain, capped, again = (
        of("grpo", device(launch=0.0), **grpo, **more)
        for more in ({}, {"importance_cap": 2.0}, {"updates_per_batch": 2})
    )
    assert "score" not in plain.parts
    assert capped.parts["score"] == pytest.approx(plain.parts["update"] / 4, rel=1e-3)
    assert again.parts["score"] == pytest.approx(capped.parts["score"])


def test_packed_pairs_fill_their_sequences():
    """100 pairs of 150 + 50 tokens in sequences of 400 are 50, of which a step takes 10."""
    seconds = {}
    for packing in (True, False):
        cfg = {"epochs": 2, "batch_size": 10, "max_tokens": 400, "packing": packing}
        made = {
            "m": Artifact("fetch", "m", {"hub": "some/model-1B"}, ()),
            "g": Artifact("generate", "g", {"max_new_tokens": 50, "inputs": []}, ()),
            "d": Artifact("filter", "d", {"inputs": ["generations"]}, ("g",)),
            "r": Artifact("sft", "r", {**cfg, "inputs": ["student", "data"]}, ("m", "d")),
        }
        facts = Facts(made, SHIPPED, {"d": {"pairs": 100}})
        on = device(natural=math.inf, bandwidth=math.inf, launch=0.0)
        seconds[packing] = work(facts, "r", on).parts["update"]
        tokens = 2 * 100 * 200
        assert seconds[packing] == pytest.approx(3 * 2e9 * tokens / on.products)


# What is written


@pytest.mark.parametrize(
    ("execution", "bytes"),
    [
        ({}, 12 * 1),  # one at the end
        ({"checkpoint_every": 3}, 12 * 3),
        ({**FSDP, "checkpoint_every": 3}, 16 * 3),
        ({"checkpoint_every": 3, "keep_steps": [2, 4]}, 12 * 3 + 4 * 2),
        ({"checkpoint_every": 3, "checkpoint_minutes": 0.1}, 12 * 10),
    ],
)
def test_checkpoints_and_kept_steps_are_written(execution, bytes):
    done = of("distill", device(disk=1e9), processes=8, execution=execution)
    assert done.parts["write"] == pytest.approx(8 * (bytes + 4) * 1_777_088_000 / 1e9)


def test_an_adapter_is_little_to_update_and_to_write():
    """No products for the gradients of weights: 3 of 4 passes where layers are computed again."""
    lora = {"adapter": {"lora": {"r": 8, "alpha": 8, "target_modules": "all-linear"}}}
    on = device(disk=1e9, bandwidth=math.inf, iteration=0.0)
    full, part = (of("distill", on, execution={}, **more) for more in ({}, lora))
    assert part.parts["update"] == pytest.approx(full.parts["update"] * 3 / 4)
    attention = 2 * (1536 + 1536) + 2 * (1536 + 256)
    size = 8 * 28 * (attention + 3 * (1536 + 8960))
    assert part.parts["write"] == pytest.approx((12 * size + 4 * 1_777_088_000) / 1e9)


def test_every_device_of_a_job_starts():
    assert of("distill", device(start=7.0), processes=8).parts["start"] == 56


def test_what_has_nothing_to_read_only_starts():
    made = {
        "m": Artifact("fetch", "m", {"hub": "some/model-1B"}, ()),
        "p": Artifact("prompts", "p", {"inputs": []}, ()),
        "g": Artifact(
            "generate", "g", {"max_new_tokens": 9, "inputs": ["model", "prompts"]}, ("m", "p")
        ),
        "r": Artifact(
            "sft",
            "r",
            {"epochs": 1, "batch_size": 2, "max_tokens": 9, "inputs": ["student", "data"]},
            ("m", "p"),
        ),
    }
    facts = Facts(made, SHIPPED, {"p": {"prompts": 0}})
    assert [work(facts, name, device(start=7.0)).seconds for name in ("g", "r")] == [7, 7]


# Ranges


def test_a_range_is_that_of_inputs_one_at_a_time():
    """Distances of logarithms, of the job where one of two inputs is at its end, as squares."""
    zero = dict.fromkeys(calibrate.BOUNDS, 0)
    held = {
        name: dict.fromkeys(calibrate.BOUNDS, b["middle"]) for name, b in SHIPPED["assumed"].items()
    }
    assumed = held | {
        name: SHIPPED["assumed"][name] for name in ("share_of_products", "token_seconds")
    }
    tables = {**SHIPPED, "assumed": assumed | {"start_seconds": zero}, "measured": []}
    made = {
        "s": Artifact("fetch", "s", {"hub": ANCHOR["student"]}, ()),
        "t": Artifact("fetch", "t", {"hub": ANCHOR["teacher"]}, ()),
        "r": Artifact("distill", "r", {**RUN, "inputs": ["student", "teacher"]}, ("s", "t")),
    }
    facts = Facts(made, tables)
    job = calibrate.estimate(facts, "r", calibrate.machine("H100", False, {}, tables))

    def seconds(**at: str) -> float:
        on = calibrate.device(tables["machines"]["H100"], tables, at=at)
        return work(facts, "r", on).seconds

    assert job.middle == seconds()
    for bound in ("low", "high"):
        both = [seconds(**{name: bound}) for name in ("share_of_products", "token_seconds")]
        distance = math.sqrt(sum(math.log(end / job.middle) ** 2 for end in both))
        assert abs(math.log(getattr(job, bound) / job.middle)) == pytest.approx(distance)
    assert job.low < job.middle < job.high
    assert job.source == "reckoned (H100)"


def test_fewer_devices_sample_at_less_loss():
    """On one device 256 sequences share the iterations that 32 have on each of eight."""
    made = {
        "s": Artifact("fetch", "s", {"hub": ANCHOR["student"]}, ()),
        "t": Artifact("fetch", "t", {"hub": ANCHOR["teacher"]}, ()),
        "r": Artifact(
            "distill", "r", {**RUN, "processes": 8, "inputs": ["student", "teacher"]}, ("s", "t")
        ),
    }
    facts, on = Facts(made, SHIPPED), calibrate.machine("H100", False, {}, SHIPPED)
    alone, all = (calibrate.estimate(facts, "r", on, workers) for workers in (1, None))
    assert (alone.width, all.width) == (1, 8)
    assert all.middle > 1.3 * alone.middle
    assert cost.width(made["r"].cfg, "H100") == 8
