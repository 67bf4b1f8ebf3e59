"""Configs: what is refused and how, defaults and sweeps, and what an edit can touch."""

import datetime
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from opd.core.errors import UserError
from opd.data import privileged
from opd.plan.artifacts import plan
from opd.plan.outputs import exhibits, released, targets
from opd.recipes.config import Config
from opd.recipes.evaluation import PROTOCOLS
from opd.recipes.probes import PrefixProbe
from opd.recipes.resolve import merge, resolve
from opd.results.claim_spec import read_claims
from opd.stages.artifact import Artifact, closure
from opd.stages.identity import identity

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[3]
FIT = {"fit": {"prompts": "p", "models": ["b", "i"], "max_prompt_tokens": 9}}
ASK = {"model": "a", "prompts": "p"}
CONTINUE = {"generations": "g", "teacher": "b"}
CURVES = {"title": "F", "kind": "curves", "series": [{"label": "x", "model": "x"}]}
JUDGE = {"generations": "g", "judge": "b", "rules": "be kind"}
KEEP = {"models__x__distill__keep_steps": [0, 1, 3]}
SHA = "0123456789" * 4
RELEASED = {"models__x__released": {"hub": "o/x", "revision": SHA[:7]}}


def terms(*parts: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The change that makes the run x one of a sum of terms."""
    return {"models__x__distill": {"student": "a", "terms": [*parts], **more}}


def drawn(*sources: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The change that makes the run x one with these sources of rollouts, 64 x 4 of them a step."""
    return {
        "generations__g": {**ASK, **more},
        "models__x__distill": {"student": "a", "teacher": "b", "rollouts": [*sources]},
    }


def scored(**more: Any) -> dict[str, Any]:
    """The change that makes the run x one from scores of all of its rollouts."""
    run = {"student": "a", "scores": "k", "rollouts": [{"generations": "g"}]}
    return {
        "generations__g": ASK,
        "scores": {"k": {"generations": "g", "teacher": "b", "k": 16}},
        "models__x__distill": {**run, "loss": {"preset": "teacher", "k": 16}, **more},
    }


URL = "http://host:8000"


def served(**more: Any) -> dict[str, Any]:
    """The changes that make the run x one whose teacher is behind a server."""
    run = {"student": "a", "teacher": "b", "server": True, "loss": {"preset": "teacher"}, **more}
    return {"models__x__distill": run, "training": {"servers": {"b": URL}}}


ARMS = {"E1.a": {"label": "an arm", "model": "x", "base": "a", "teacher": "b", "evaluation": "e"}}


def config(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "name": "t",
        "world": {"rl_times": 0.6, "other_times": 0.1},
        "defaults": {"distill": {"steps": 3, "prompts": "p", "loss": {"k": 4}}},
        "prompts": {
            "p": {"world": {"split": "rl", "n": 8}},
            "o": {"world": {"split": "other", "n": 8}},
            "d": {"dedup": {"prompts": "o", "against": "p", "encoder": "hashed"}},
        },
        "sft_data": {"c": {"world": {"n": 8}}},
        "models": {
            "i": {"init": {}},
            "a": {"sft": {"student": "i", "data": "c", "steps": 2}},
            "b": {"grpo": {"student": "a", "prompts": "p", "steps": 2}},
            "x": {"distill": {"student": "a", "teacher": "b"}},
        },
        "benchmarks": {"w": {"task": "opd_world", "prompts": "p"}},
        "protocols": {"short": {"samples": 2, "max_new_tokens": 8}},
        "evaluations": {"e": {"benchmarks": ["w"], "protocol": "short"}},
        "tables": {
            "t1": {
                "title": "T",
                "evaluation": "e",
                "columns": ["avg"],
                "rows": [{"label": "x", "model": "x", "base": "a"}],
            }
        },
    }
    for path, value in changes.items():
        node, (*parts, last) = base, path.split("__")
        for part in parts:
            node = node.setdefault(part, {})
        if value is None:
            del node[last]
        else:
            node[last] = value
    return base


def artifacts(raw: dict[str, Any]) -> dict[str, Artifact]:
    checked = resolve(raw)
    measured = plan(checked, {})
    return measured | exhibits(checked, measured)


def asked(raw: dict[str, Any]) -> list[str]:
    return [f for f in targets(resolve(raw), artifacts(raw)) if f != "report"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sedes": [1]}, ["sedes", "did you mean 'seeds'"]),
        ({"pairs": {}}, ["pairs: no such key; it is called 'sft_data' here"]),
        ({"models__x__distill__lrr": 1.0}, ["models.x.distill.lrr", "did you mean 'lr'"]),
        (
            {"models__x__distill__studnt": "a", "models__x__distill__student": None},
            ["studnt", "'student'"],
        ),
        ({"defaults__distill__stepz": 3}, ["defaults.distill.stepz", "'steps'"]),
        ({"defaults__distil": {}}, ["defaults.distil", "'distill'"]),
        ({"defaults__opd": {}}, ["defaults.opd: no such key; it is called 'distill' here"]),
        ({"models__x": {"opd": {}}}, ["models.x.opd: ", "it is called 'distill' here"]),
        ({"models__x__sweep": {"opd.lr": [1]}}, ["models.x-1.opd: ", "called 'distill' here"]),
        ({"defaults__distill": 3}, ["defaults.distill: expected a mapping, got 3"]),
        ({"models__x__distill__steps": "many"}, ["models.x.distill.steps", "'many'", "integer"]),
        (
            {"models__x__distill__steps": 0},
            ["models.x.distill.steps", "0", "greater than or equal to 1"],
        ),
        ({"models__x__distill__lr": True}, ["models.x.distill.lr", "number"]),
        ({"models__x__distill__loss": {"support": "best"}}, ["'best'", "'sampled', 'student'"]),
        ({"models__x__distill__loss": {"preset": "sampled"}}, ["loss", "takes no k"]),
        ({"models__x__distill__loss": {"preset": "code"}}, ["loss.preset", "'rethinking_code'"]),
        ({"models__x__distill__loss": {"k": 0}}, ["loss.k", "greater than or equal to 1"]),
        (
            {"models__x__distill__loss": {"preset": "jsd", "beta": 1.0}},
            ["loss.beta", "less than 1"],
        ),
        ({"models__x__distill__loss": {"teacher_temperature": 0.0}}, ["greater than 0"]),
        ({"models__x__distill__aggregation": "mean"}, ["aggregation", "'token_mean'"]),
        (
            {"models__x__distill__max_token_len_per_gpu": 9000},
            ["models.x.distill", "max_token_len_per_gpu goes with aggregation: micro_batch_mean"],
        ),
        (
            {
                "models__x__distill__aggregation": "micro_batch_mean",
                "models__x__distill__max_token_len_per_gpu": 8191,
            },
            ["models.x.distill", "8191 has no room", "a response of 8192 tokens"],
        ),
        (
            {
                "models__x__distill__aggregation": "micro_batch_mean",
                "models__x__distill__data_parallel_size": 7,
            },
            ["models.x.distill", "7 does not divide the 256 sequences of a step"],
        ),
        ({"models__x__distill__loss": {"tail": True}}, ["a tail goes with"]),
        ({"models__x__distill__teacher_update": "live"}, ["teacher_update: live needs teacher"]),
        ({"models__x__distill__ema_decay": 0.9}, ["ema_decay goes with teacher_update"]),
        ({"models__x__distill__teacher": None}, ["models.x.distill: needs exactly one of teacher"]),
        ({"models__x__distill__terms": [{"teacher": "b"}]}, ["exactly one of teacher, terms"]),
        (terms(), ["models.x.distill.terms", "at least 1 item"]),
        (
            terms({"teacher": "bb"}),
            ["models.x.distill.terms.0.teacher", "'bb'", "did you mean 'b'"],
        ),
        (terms({"reference": "a"}), ["one of them needs a teacher; without any this is grpo"]),
        (terms({"teacher": "b", "reward": {"grader": "rule"}}), ["terms.0", "teacher and reward"]),
        (terms({"teacher": "b"}, {"reward": {}}), ["terms.1.reward.grader", "Field required"]),
        (
            terms(
                {"teacher": "b", "weight": 0}, {"reference": "a", "weight": {"start": 0, "end": 0}}
            ),
            ["models.x.distill", "all weights are 0"],
        ),
        (
            terms({"teacher": "b", "tokens": {"linear": [0, 0]}}),
            ["linear: the weights sum to nothing"],
        ),
        (
            terms({"teacher": "b", "tokens": {"entropy": {"above_quantile": 1.0}}}),
            ["terms.0.tokens.entropy.above_quantile", "less than 1"],
        ),
        (
            terms({"teacher": "b", "tokens": {"overlap": {}}}),
            ["terms.0.tokens.overlap", "exactly one of above_quantile"],
        ),
        (
            terms({"teacher": "b", "tokens": {"advantage": {"outside_quantiles": [0.9, 0.1]}}}),
            ["terms.0.tokens.advantage", "the first must be below the second"],
        ),
        (
            terms({"teacher": "b"}, {"reward": {"grader": "rule"}, "loss": {"k": 4}}),
            ["terms.1", "loss: a reward has none"],
        ),
        (
            terms({"teacher": "b"}, {"reward": {"grader": "rule"}, "tokens": {"drift": 1}}),
            ["terms.1", "tokens.drift: a reward has no teacher"],
        ),
        (
            terms({"teacher": "b"}, {"reward": {"grader": "rule"}}, rollouts_per_prompt=1),
            ["a reward needs rollouts_per_prompt of 2 or more"],
        ),
        (
            terms({"teacher": "b"}, information="answer"),
            ["information goes with teacher and not with terms: say it in a term"],
        ),
        (
            terms({"teacher": "b"}, prompts=["p", "o"]),
            ["prompts: several sets come one after the other: say shuffle: true"],
        ),
        (terms({"teacher": "b"}, prompts=["p", "p"], shuffle=True), ["a set stands there twice"]),
        (terms({"teacher": "b"}, prompts=["p", "q"], shuffle=True), ["distill.prompts", "'q'"]),
        (terms({"teacher": "a"}, teacher_update="live"), ["teacher_update goes with teacher"]),
        (
            served(loss={"preset": "union"}),
            ["loss.support", "'union' asks the teacher about tokens beyond its own top k"],
        ),
        (served(temperature=0.7), ["loss.teacher_temperature", "at temperature 0.7"]),
        (served(teacher="a", teacher_update="live"), ["a teacher behind a server is frozen"]),
        (
            terms({"teacher": "b"}, {"teacher": "b", "server": True}),
            ["models.x.distill", "terms.1: loss.support", "the support 'student'"],
        ),
        (terms({"reference": "a", "server": True}), ["terms.0", "server goes with teacher"]),
        (
            terms({"teacher": "b", "server": True, "tokens": {"drift": 1}}),
            ["tokens.drift: it needs the teacher itself"],
        ),
        ({**served(), "training": {}}, ["models.x.distill.server", "no address", "servers: {b: h"]),
        ({**served(), "training": {"servers": {"b": f"{URL}/v1"}}}, ["training.servers.b"]),
        (drawn(), ["models.x.distill.rollouts", "at least 1 item"]),
        (drawn({"own": 0.5, "generations": "g"}), ["rollouts.0", "own and generations"]),
        (drawn({"own": 1.5}), ["rollouts.0.own", "less than or equal to 1"]),
        (
            drawn({"own": 0.5}, {"generations": "g", "share": 0.25}),
            ["models.x.distill", "the shares of the sources sum to 0.75; let them sum to 1"],
        ),
        (
            drawn({"own": 0.999}, {"generations": "g", "share": 0.001}),
            ["a share of 0.999 of the 256 rollouts of a step is no whole number", "as 1"],
        ),
        (
            drawn({"own": 0.5}, {"generations": "gg", "share": 0.5}),
            ["rollouts.1.generations", "'gg'", "did you mean 'g'"],
        ),
        (drawn({"own": 0.5}, {"own": 0.5}), ["rollouts: a source stands there twice"]),
        (
            drawn({"own": 0.5, "share": 0.5}, {"generations": "g", "share": 0.5}),
            ["rollouts.0: share goes with generations, and not with own"],
        ),
        (
            drawn({"generations": "g", "importance": {"clip": 2}}),
            ["importance weighs losses of the sampled token alone"],
        ),
        (
            drawn({"generations": "g"}, logprobs=True, temperature=0),
            ["generations.g: logprobs are those of the whole distribution"],
        ),
        (
            {**drawn({"generations": "g"}), "generations__g": {"model": "x", "prompts": "p"}},
            ["refers to itself", "generations.g", "models.x"],
        ),
        (
            scored(teacher="b"),
            ["models.x.distill", "needs exactly one of teacher, terms, scores"],
        ),
        (scored(scores="kk"), ["models.x.distill.scores", "'kk'", "did you mean 'k'"]),
        (scored(information="answer"), ["information goes with teacher and not with scores"]),
        (
            terms({"scores": "k", "tokens": {"drift": 1}}, rollouts=[{"generations": "g"}]),
            ["terms.0", "tokens.drift: it needs the teacher itself, not its scores"],
        ),
        ({"models__x": {}}, ["models.x", "exactly one of init, hub", "none"]),
        ({"models__x__init": {}}, ["models.x", "init and distill"]),
        (
            {"models__x__distill__teacher": "bb"},
            ["models.x.distill.teacher", "'bb'", "did you mean 'b'"],
        ),
        ({"models__a__sft__student": "x"}, ["refers to itself", "models.a -> models.x"]),
        ({"models__a__sft__student": "a"}, ["models.a -> models.a"]),
        ({"prompts__d__dedup__against": "d"}, ["prompts.d -> prompts.d"]),
        ({"prompts__p__template": "no place"}, ["prompts.p", "{question}"]),
        ({"prompts__p__template": "boxedd"}, ["prompts.p", "dapo, boxed, boxed_double_brace"]),
        ({"prompts__p__path": {"file": "x"}}, ["prompts.p", "world and path"]),
        ({"world__grammar": "verse"}, ["world.grammar", "'verse'", "'words'"]),
        (
            {"sft_data__c__world__style": {"infix": 0.5, "prefix": 0.4}},
            ["sft_data.c.world.style", "the weights sum to 0.9", "let them sum to 1"],
        ),
        ({"prompts__d__distinct": "question"}, ["prompts.d", "takes nothing else"]),
        ({"prompts__f": {**FIT, "sample": {"n": 1}}}, ["prompts.f: a fit recipe takes nothing"]),
        ({"prompts__f__fit": {"prompts": "p", "models": []}}, ["prompts.f.fit.models", "at least"]),
        (
            {"prompts__f": {"fit": {**FIT["fit"], "max_teacher_prompt_tokens": 9}}},
            ["prompts.f.fit: max_teacher_prompt_tokens needs information"],
        ),
        ({"prompts__f": {"fit": {"prompts": "p", "models": ["c"]}}}, ["fit.models", "'c'"]),
        (
            {"prompts__f": FIT, "models__b__grpo__prompts": "f"},
            ["refers to itself", "models.b", "prompts.f"],
        ),
        ({"prompts__p__difficulty": {}}, ["prompts.p", "at_least or at_most"]),
        (
            {"prompts__p__sample": {"n": 1, "first": 1}},
            ["prompts.p.sample", "exactly one of n, first, questions", "n and first"],
        ),
        ({"prompts__p__sample": {"seed": 1}}, ["prompts.p.sample", "it has none"]),
        ({"prompts__p__sample": {"first": 0}}, ["prompts.p.sample.first", "0 is not allowed"]),
        (
            {"prompts__p__sample": {"first": 1, "seed": 1}},
            ["prompts.p.sample", "leave the seed out"],
        ),
        ({"prompts__p__apart_from": {"prompts": "q"}}, ["prompts.p.apart_from.prompts", "'q'"]),
        ({"prompts__p__apart_from": {"prompts": "p"}}, ["prompts.p -> prompts.p"]),
        ({"benchmarks__w__task": "opd_wolrd"}, ["benchmarks.w.task", "'opd_wolrd'", "opd_world"]),
        ({"benchmarks__w": {"task": "opd_world", "hub": {"id": "a"}}}, ["benchmarks.w", "prompts"]),
        ({"benchmarks__w__task": "gsm8k"}, ["benchmarks.w", "its own columns"]),
        ({"benchmarks__w": {"task": "gsm8k"}}, ["benchmarks.w", "needs hub"]),
        ({"protocols__short__temperature": 0}, ["protocols.short", "at temperature 0"]),
        (
            {"contamination": {"c": {"prompts": "p", "benchmarks": ["p"], "encoder": "hashed"}}},
            ["contamination.c", "p is compared with itself"],
        ),
        ({"evaluations__e__protocol": "papr"}, ["evaluations.e.protocol", "'papr'"]),
        ({"protocols__short__template": "no place"}, ["protocols.short", "{question}"]),
        ({"targets": ["t2"]}, ["targets", "'t2'", "there are report, t1"]),
        (
            {"figures": {"f": {**CURVES, "metrics": [{"name": "kl_nat"}]}}},
            ["figures.f.metrics: unknown metric 'kl_nat'; did you mean 'kl_nats'?"],
        ),
        (
            {"tables__t1__columns": ["avg", "course:overlap_raito"]},
            ["tables.t1.columns: unknown metric 'overlap_raito'; did you mean 'overlap_ratio'?"],
        ),
        (
            {"tables__t1__columns": [{"column": "last:overlap_raito", "label": "x"}]},
            ["tables.t1.columns: unknown metric 'overlap_raito'"],
        ),
        ({"targets": ["claims"]}, ["targets: there are no claims without a paper", "papers"]),
        ({"experiments": ["E99"]}, ["experiments", "'E99'", "there are none"]),
        ({"seeds": []}, ["seeds", "at least 1"]),
        ({"seeds": [0, 1, 0]}, ["config", "seeds: 0 stands there twice"]),
        ({"models__x__distill__lr": "fast"}, ["models.x.distill.lr", "'fast'", "number"]),
        ({"models__x__distill__steps": "1e3"}, ["models.x.distill.steps", "'1e3'", "integer"]),
        ({"models__a__sft__epochs": 1}, ["models.a.sft", "exactly one of steps, epochs"]),
        ({"models__a__sft__steps": None}, ["models.a.sft", "exactly one of steps, epochs"]),
        ({"models__a__sft__preset": "paper"}, ["sft.preset", "'paper'", "'rethinking_paper'"]),
        (
            {"models__a__sft__preset": "rethinking_yaml", "models__a__sft__lr": 1e-4},
            ["models.a.sft", "lr is 0.0001", "preset 'rethinking_yaml' has 1e-05", "leave one"],
        ),
        (
            {"models__b__grpo__preset": "rethinking", "defaults__grpo": {"group_size": 4}},
            ["models.b.grpo", "group_size is 4", "defaults", "preset 'rethinking' has 8"],
        ),
        ({"models__a__sft__held_out": 1.0}, ["models.a.sft.held_out", "less than 1"]),
        ({"models__a__sft__empty_think": "both"}, ["sft.empty_think", "'response', 'prompt'"]),
        ({"models__b__grpo__grader": "maths"}, ["models.b.grpo.grader", "'maths'"]),
        ({"models__b__grpo__group_size": 1}, ["models.b.grpo.group_size", "equal to 2"]),
        (
            {"models__b__grpo__information": {"message": "{question} {solution} {hint}"}},
            ["models.b.grpo.information", "unknown field {hint}", "{answer}"],
        ),
        (
            {"models__x__distill__information": "hint"},
            ["models.x.distill.information", "'hint'", "'full'"],
        ),
        (
            {"models__x__distill__information": ["answer", {"message": "{answer}"}]},
            ["models.x.distill.information", "the question is not in it", "add {prompt}"],
        ),
        ({"models__b__grpo__information": "hidden"}, ["here it is a message alone"]),
        ({"models__b__grpo__updates_per_batch": 7}, ["updates_per_batch: 7 does not divide 512"]),
        ({"models__b__grpo__length_penalty": {"free": 7168}}, ["free must be below max_new"]),
        (
            {"models__b__grpo__micro_batch": 3},
            ["models.b.grpo.micro_batch: 3 does not divide the 512 sequences of a step; use a d"],
        ),
        (
            {
                "training": {"processes": 8, "accelerate": "config/accelerate/fsdp2.yaml"},
                "models__x__distill__prompts_per_step": 3,
                "models__x__distill__micro_batch": 2,
            },
            ["models.x.distill.micro_batch: 2 does not divide the 12 sequences of a step on 8"],
        ),
        ({"models__a__sft__micro_batch": 7}, ["models.a.sft.micro_batch: 7 does not divide the"]),
        *(
            ({"generations__g": ASK, "probes": {"j": {"judge": {**JUDGE, **more}}}}, [said])
            for more, said in (
                ({"template": "{rules} {rule} {response}"}, "template: unknown field {rule}"),
                ({"template": "{question} {response}"}, "template needs {rules}"),
                ({"template": "{rules} {question}"}, "template needs {response}"),
                ({"rules": None}, "a model that judges needs rules"),
                ({"pattern": "x"}, "judge: pattern and a pattern go together"),
                ({"judge": "pattern"}, "judge: pattern and a pattern go together"),
                ({"judge": "pattern", "pattern": "("}, "pattern: no regular expression (missing"),
            )
        ),
        ({"models__x__sweep": {"distill.lr": 3}}, ["models.x.sweep", "[VALUE"]),
        ({"models__x__sweep": {"distill.lr": []}}, ["models.x.sweep", "[VALUE"]),
        ({"models__x__sweep": {}}, ["models.x.sweep", "[VALUE"]),
        (
            {"models__x__sweep": {"distill.steps": [1, 4]}, "models__x-4": {"init": {}}},
            ["models.x-4: there are two recipes called 'x-4'"],
        ),
        (
            {"models__i-4": {"init": {}}, "models__i": {"init": {}, "sweep": {"init.seed": [4]}}},
            ["two recipes called 'i-4'"],
        ),
        ({"models__x__sweep": {"distill.steps": [1, "1"]}}, ["two recipes called 'x-1'"]),
        ({"tables__t1__rows": [{"arm": "E1.a"}]}, ["tables.t1.rows.0.arm: unknown arm 'E1.a'"]),
        (
            {"arms": ARMS, "tables__t1__rows": [{"arm": "E1.b"}]},
            ["tables.t1.rows.0.arm: unknown arm 'E1.b'", "E1.a"],
        ),
        ({"arms": ARMS, "tables__t1__rows": [{"arm": ["E1.a"]}]}, ["tables.t1.rows.0.arm"]),
        ({"arms": {"E1.a": 3}, "tables__t1__rows": [{"arm": "E1.a"}]}, ["unknown arm 'E1.a'"]),
        ({"generations__g": {**ASK, "attempts": 2}}, ["generations.g", "attempts need rules"]),
        ({"generations__g": {**ASK, "rules": ["answered"]}}, ["generations.g.rules", "'answered'"]),
        (
            {
                "generations__g": ASK,
                "probes": {"e": {"continuation": {**CONTINUE, "prefixes": [6, 2, 2]}}},
            },
            ["probes.e.continuation", "prefixes are [6, 2, 2]", "each longer than the one before"],
        ),
        ({"engine": {"batch_invariant": True}}, ["batch_invariant needs backend: vllm"]),
        (
            {"training": {"vllm": {"max_model_len": 64}}},
            ["training.vllm.max_model_len", "not allowed", "'max_model_length'"],
        ),
        (
            {"training": {"vllm": {"mode": "colocate", "max_model_length": 2000}}},
            ["models.b: vLLM would cut responses", "max_model_length (2000)", "(8192)"],
        ),
        (
            {"training": {"processes": 3, "vllm": {"tensor_parallel_size": 2}}},
            ["vllm.tensor_parallel_size (2) does not divide processes (3)"],
        ),
        (
            {**KEEP, "tables__t1__rows": [{"label": "x", "model": "x@2"}]},
            [
                "tables.t1.rows.0.model",
                "'x@2': step 2 of x is not kept, only 0, 1, 3 are",
                "x.distill",
            ],
        ),
        ({"generations__g": {**ASK, "model": "a@1"}}, ["generations.g.model", "only 0, 2 are"]),
        ({"generations__g": {**ASK, "model": "i@1"}}, ["generations.g.model", "not trained"]),
        ({"generations__g": {**ASK, "model": "y@1"}}, ["generations.g.model", "unknown", "'y'"]),
        ({"generations__g": {**ASK, "model": "x@01"}}, ["generations.g.model", "'x@01'"]),
        (
            {"models__x__distill__keep_steps": [1, 4]},
            ["models.x.distill", "4 is beyond the run's 3 steps"],
        ),
        ({"models__x__distill__keep_steps": [-1]}, ["models.x.distill.keep_steps.0", "-1"]),
        ({**KEEP, "models__b__grpo__student": "x@1"}, ["models.b -> models.x@1 -> models.x"]),
        ({"models__a__sft__student": "a@0"}, ["models.a.sft.student", "refers to itself: a@0"]),
        ({"use_released": ["a"]}, ["use_released", "'a' has no released weights", "models.a.rel"]),
        ({"use_released": ["bb"]}, ["use_released", "unknown model 'bb'", "did you mean 'b'"]),
        (
            {"models__i__released": {"hub": "o/i"}},
            ["models.i", "released goes beside sft, grpo or distill"],
        ),
        ({"models__x__released": {"id": "o/x"}}, ["models.x.released.id: no such key"]),
        ({"models__m": "small"}, ["models.m", "'small' names no model", "ORG/NAME"]),
        ({"models__m": {"hub": "small"}}, ["models.m.hub", "'small' is no id of the hub"]),
        (
            {"models__m": "o/n", "models__x__distill__teacher": "other/m"},
            ["teacher", "'other/m': another model is called 'm'"],
        ),
        (
            {**KEEP, **RELEASED, "use_released": True, "generations__g": {**ASK, "model": "x@1"}},
            ["generations.g.model", "'x@1': x is not trained here"],
        ),
    ],
)
def test_bad_config_gets_one_line_that_names_key_value_and_remedy(changes, words):
    with pytest.raises(UserError) as caught:
        asked(config(**changes))
    line = str(caught.value)
    assert "\n" not in line
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"models__x__distill__learning_rate": 1e-6},
            "models.x.distill.learning_rate: no such key; it is called 'lr' here",
        ),
        (
            {"models__x__distill__batch_size": 8},
            "models.x.distill.batch_size: no such key; it is called 'prompts_per_step' here",
        ),
        (
            {"models__a__sft__num_train_epochs": 1},
            "models.a.sft.num_train_epochs: no such key; it is called 'epochs' here",
        ),
        (
            {"models__x__distill__num_generations": 4},
            "models.x.distill.num_generations: no such key; it is called 'rollouts_per_prompt' "
            "here",
        ),
        # In the wrong place: the nearest place that the file has, by our name for it.
        ({"models__x__lr": 1e-6}, "models.x.lr: no such key; it goes to models.x.distill.lr"),
        (
            {"models__x__max_steps": 2},
            "models.x.max_steps: no such key; it goes to models.x.distill.steps",
        ),
        (
            {"temperature": 0.7},
            "temperature: no such key; it goes to models.b.grpo.temperature or "
            "models.x.distill.temperature or protocols.short.temperature",
        ),
        (
            {"models__x__distill__loss": {"temperature": 1.0}},
            "models.x.distill.loss.temperature: no such key; it goes to "
            "models.x.distill.temperature",
        ),
        # A typing error stays one.
        ({"model": {}}, "model: no such key; did you mean 'models'?"),
    ],
)
def test_keys_of_other_trainers_and_in_the_wrong_place_get_the_right_one(changes, line):
    with pytest.raises(UserError) as caught:
        resolve(config(**changes))
    assert str(caught.value) == line


@pytest.mark.parametrize(
    ("text", "recipe"),
    [
        ("o/m", {"hub": {"id": "o/m"}}),
        ("o/m@v1.0", {"hub": {"id": "o/m", "revision": "v1.0"}}),
        ("/models/m", {"path": "/models/m"}),
        ("~/models/m", {"path": "~/models/m"}),
        ("./m", {"path": "./m"}),
        ("../m", {"path": "../m"}),
        ("results/mini/models/small/s0", {"path": "./results/mini/models/small/s0"}),
    ],
)
def test_a_model_is_named_by_one_text_wherever_it_stands(text, recipe, monkeypatch, tmp_path):
    monkeypatch.setenv("OPD_MODEL_DIR", str(tmp_path))
    written = resolve(config(models__m=recipe))
    named = [config(models__m=text), config(models__m={"path": text})]
    if "hub" in recipe:
        named.append(config(models__m={"hub": text}))
        released = {"hub": recipe["hub"]["id"], **recipe["hub"]}
        del released["id"]
        short = resolve(config(models__x__released=text, use_released=True))
        assert short == resolve(config(models__x__released=released, use_released=True))
    assert [resolve(raw) for raw in named] == [written] * len(named)
    # In the place of a model's name: a recipe of its own, by the last part.
    name = Path(text.partition("@")[0]).name
    short = resolve(config(models__x__distill__teacher=text))
    assert short == resolve(config(models__x__distill__teacher=name, **{f"models__{name}": recipe}))


def test_a_folder_below_that_of_models_goes_before_the_hub(monkeypatch, tmp_path):
    (tmp_path / "o" / "m").mkdir(parents=True)
    monkeypatch.setenv("OPD_MODEL_DIR", str(tmp_path))
    assert resolve(config(models__m={"path": "o/m"})).models["m"].path == "o/m"
    assert resolve(config(models__m="o/m")).models["m"].hub.id == "o/m"


def test_datasets_of_the_hub_are_named_by_a_text_too():
    raw = config(prompts__h={"hub": "o/d@main"}, benchmarks__h={"task": "gsm8k", "hub": "o/d"})
    recipes = resolve(raw)
    assert (recipes.prompts["h"].hub.id, recipes.prompts["h"].hub.revision) == ("o/d", "main")
    assert recipes.benchmarks["h"].hub.id == "o/d"


def test_a_file_may_keep_its_anchors_below_keys_of_its_own():
    plain = config()
    assert artifacts({**plain, "x-common": {"a": [1]}, "x-": None}) == artifacts(plain)
    with pytest.raises(UserError, match="xcommon: no such key"):
        resolve({**plain, "xcommon": 1})


def test_a_path_may_begin_with_the_home_folder_or_be_an_artifact(monkeypatch, tmp_path):
    made = tmp_path / "results" / "n" / "models" / "small" / "s0"
    (made / "payload").mkdir(parents=True)
    (made / "digest.json").touch()
    (tmp_path / "questions.jsonl").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("OPD_DATA_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    raw = config(prompts__p={"path": {"file": "~/questions.jsonl"}})
    for name, text in enumerate(("~/results/n/models/small/s0", "results/n/models/small/s0")):
        raw = merge(raw, {"models": {f"m{name}": text}})
    raw["models"]["m2"] = "results/n/models/small/s0/digest.json"
    made_of = artifacts(raw)
    assert made_of["prompts/p"].inputs == (str(tmp_path / "questions.jsonl"),)
    assert made_of["prompts/p"].cfg["source"]["path"] == "~/questions.jsonl"
    for name in ("m0", "m1", "m2"):
        assert made_of[f"models/{name}"].inputs == (str(made / "payload"),)


def test_a_file_below_or_above_the_working_directory_is_named_as_in_any_clone(
    monkeypatch, tmp_path
):
    made = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        (folder / "own").mkdir(parents=True)
        (folder / "own" / "questions.jsonl").write_text('{"question": "1+1"}\n')
        monkeypatch.delenv("OPD_DATA_DIR", raising=False)
        for place, path in (
            (folder, "./own/questions.jsonl"),
            (folder / "own", "../own/questions.jsonl"),
        ):
            monkeypatch.chdir(place)
            found = artifacts(config(prompts__q={"path": {"file": path}}))["prompts/q"]
            assert [*map(os.path.realpath, found.inputs)] == [f"{folder}/own/questions.jsonl"]
            made.append(found.cfg)
    assert made[:2] == made[2:]
    names = [cfg["source"]["path"] for cfg in made[:2]]
    assert names == ["own/questions.jsonl", "../own/questions.jsonl"]


def test_missing_data_folder_and_missing_file_are_named(monkeypatch, tmp_path):
    monkeypatch.delenv("OPD_DATA_DIR", raising=False)
    given = config(prompts__p={"path": {"file": "x.parquet"}})
    with pytest.raises(UserError, match=r"prompts\.p\.path\.file.*OPD_DATA_DIR"):
        artifacts(given)
    monkeypatch.setenv("OPD_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match=r"prompts\.p\.path\.file: no such file.*x\.parquet"):
        artifacts(given)
    os.mkfifo(tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"prompts\.p\.path\.file: neither a file nor a folder"):
        artifacts(given)
    (tmp_path / "x.parquet").unlink()
    (tmp_path / "x.parquet").write_bytes(b"")
    made = artifacts(given)["prompts/p"]
    assert made.inputs == (str(tmp_path / "x.parquet"),)
    assert str(tmp_path) not in json.dumps(made.cfg)  # a path is no part of identity
    whole = config(prompts__p={"path": {"file": str(tmp_path / "x.parquet")}})
    assert artifacts(whole)["prompts/p"] == made  # nor is how it is written


def test_defaults_are_inherited_and_overridden_key_by_key():
    made = artifacts(
        config(models__x__distill__loss={"support": "student"}, models__x__distill__lr=0.5)
    )
    cfg = made["models/x/s0"].cfg
    assert (cfg["steps"], cfg["loss"]["k"], cfg["lr"]) == (3, 4, 0.5)


def test_what_changes_how_a_model_is_trained_is_apart_from_what_changes_it():
    plain = artifacts(config())["models/x/s0"].cfg
    assert plain["execution"] == {"checkpoint_every": 50, "checkpoint_minutes": 30}
    training = {
        "checkpoint_every": 5,
        "checkpoint_minutes": 7,
        "report_to": "wandb",
        "precision": "bfloat16",
        "attention": "flex_attention",
        "processes": 2,
    }
    made_by = {key: training.pop(key) for key in ("precision", "attention", "processes")}
    cfg = artifacts(config(training=training | made_by))["models/x/s0"].cfg
    tracked = {"tracker": "wandb", "folder": "results/t/logs/wandb/x-s0"}
    assert cfg["execution"] == training | {"report_to": tracked}
    assert made_by.items() <= cfg.items()
    assert not made_by.keys() & plain.keys()
    # A server has devices and a length of its own, which these say nothing of.
    own = {"mode": "server", "max_model_length": 10, "tensor_parallel_size": 2}
    cfg = artifacts(config(training={"vllm": {**own, "server_host": "a"}}))["models/x/s0"].cfg
    assert cfg["vllm"] == own
    assert cfg["execution"]["vllm"] == {"server_host": "a"}
    # What answers benchmarks is another choice.
    assert artifacts(config(backend="vllm"))["models/x/s0"].cfg == plain


@pytest.mark.parametrize(("name", "kind"), [("a", "sft"), ("b", "grpo"), ("x", "distill")])
def test_an_adapter_belongs_to_what_makes_a_model_where_it_is_given(name, kind):
    """With its defaults written out, so that one of them that changes makes another model."""
    plain = artifacts(config())[f"models/{name}/s0"].cfg
    assert "adapter" not in plain
    given = config(**{f"models__{name}__{kind}__adapter": {"lora": {"r": 32, "alpha": 64}}})
    lora = {"r": 32, "alpha": 64, "dropout": 0.0, "target_modules": "all-linear"}
    assert artifacts(given)[f"models/{name}/s0"].cfg == {**plain, "adapter": {"lora": lora}}


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"lora": {"r": 0, "alpha": 1}}, r"lora\.r: 0 is not allowed: .* greater than or equal"),
        ({"lora": {"r": 4, "alpha": 0}}, r"lora\.alpha: 0 is not allowed"),
        ({"lora": {"r": 4}}, r"lora\.alpha: .*[Ff]ield required"),
        ({"lora": {"r": 4, "alpha": 1, "dropout": 1.0}}, r"lora\.dropout: 1.0 is not allowed"),
        ({"prefix_tuning": {"n": 4}}, r"adapter\.prefix_tuning: no such key; .*lora"),
        ({"lora": {"r": 4, "alpha": 1, "target_modules": []}}, r"lora\.target_modules"),
        ({"lora": {"r": 4, "alpha": 1, "target_modules": "q_proj"}}, r"lora\.target_modules"),
    ],
)
def test_adapters_that_are_none(adapter, message):
    with pytest.raises(UserError, match=message) as refused:
        resolve(config(models__x__distill__adapter=adapter))
    assert "\n" not in str(refused.value)


def test_flash_attention_computes_in_bfloat16():
    flash = {"attention": "flash_attention_2"}
    with pytest.raises(UserError, match=r"training: .*flash_attention_2 needs precision: bfloat16"):
        resolve(config(training=flash))
    resolve(config(training=flash | {"precision": "bfloat16"}))
    with pytest.raises(UserError, match=r"training\.attention: .*'flex_attention'"):
        resolve(config(training={"attention": "flash"}))


def test_what_samples_belongs_to_generations_and_evaluations_only():
    asking = {"generations__g": ASK}
    made = [
        artifacts(config(**asking, **more))
        for more in (
            {},
            {"backend": "vllm", "engine": {"dtype": "bfloat16", "batch_invariant": True}},
        )
    ]
    for folder in ("generations/g/s0", "evaluations/e/x/s0"):
        plain, other = (artifact[folder].cfg for artifact in made)
        assert plain["backend"] == "transformers"
        assert not {"dtype", "batch_invariant", "rules", "attempts"} & plain.keys()
        changed = {"backend": "vllm", "dtype": "bfloat16", "batch_invariant": True}
        assert other == plain | changed
    assert not {"dtype", "batch_invariant"} & made[1]["models/x/s0"].cfg.keys()
    again = {**ASK, "rules": ["boxed"], "attempts": 3}
    cfg = artifacts(config(generations__g=again))["generations/g/s0"].cfg
    assert (cfg["rules"], cfg["attempts"]) == (["boxed"], 3)


def test_a_teacher_with_other_chat_template_options_is_asked_with_its_own():
    off = {"enable_thinking": False}
    made = artifacts(config(models__b__chat_template=off))["models/x/s0"].cfg
    assert made["teacher_chat_template_kwargs"] == off and made["chat_template_kwargs"] == {}
    made = artifacts(config(models__b__chat_template=off, models__a__chat_template=off))
    assert "teacher_chat_template_kwargs" not in made["models/x/s0"].cfg


def test_presets_are_the_published_runs():
    """Batch sizes: pairs on a device by accumulation by eight GPUs."""
    made = artifacts(
        config(
            models__a__sft={"student": "i", "data": "c", "preset": "rethinking_card"},
            models__b__grpo={"student": "a", "prompts": "p", "preset": "g_opd", "epochs": 3},
            models__y={"sft": {"student": "i", "data": "c", "preset": "rethinking_yaml"}},
            models__z={
                "sft": {"student": "i", "data": "c", "preset": "rethinking_paper", "steps": 9}
            },
        )
    )
    card, grpo, yaml_file, cut = (made[f"models/{m}/s0"].cfg for m in "abyz")
    assert (card["epochs"], card["batch_size"], card["warmup"]) == (2, 16 * 1 * 8, 0.1)
    assert (card["max_tokens"], card["held_out"], card["empty_think"]) == (20480, 0.01, "prompt")
    assert (yaml_file["epochs"], yaml_file["batch_size"]) == (2, 8 * 1 * 8)
    assert (yaml_file["held_out"], yaml_file["empty_think"]) == (0.05, "response")
    assert yaml_file["weight_decay"] == 0
    assert math.ceil(200_000 * 0.95 / yaml_file["batch_size"]) == 2969
    # A shorter run of the paper's: the rest of its settings, and no epochs.
    assert (cut["steps"], cut["batch_size"], cut["lr"]) == (9, 64, 1e-5)
    assert not {"epochs", "held_out", "empty_think", "preset"} & set(cut)
    assert (grpo["epochs"], grpo["importance_cap"], grpo["max_new_tokens"]) == (3, 5.0, 16384)
    assert not {"steps", "preset", "clip_high"} & set(grpo)


def test_settings_left_out_are_no_part_of_a_training_run():
    made = artifacts(config())
    always = {"inputs", "code", "seed", "threads", "chat_template_kwargs", "execution", "lr"}
    assert set(made["models/a/s0"].cfg) - always == {
        *("steps", "batch_size", "schedule", "warmup", "max_tokens")
    }
    assert set(made["models/b/s0"].cfg) - always == {
        *("grader", "steps", "prompts_per_step", "group_size", "temperature"),
        *("max_prompt_tokens", "max_new_tokens"),
    }


def test_what_is_between_braces_in_latex_is_no_field():
    template = "{question}\nPut it in \\boxed{answer}, not \\text{this} or \\frac{a}{b}."
    made = artifacts(config(models__b__grpo__information={"message": template}))
    assert made["models/b/s0"].cfg["information"] == [{"message": template}]


def test_what_a_teacher_is_told_is_in_its_own_run_alone():
    """Nothing of it in the settings of any evaluation; none is the same as not given."""
    plain = artifacts(config())
    told = artifacts(config(models__x__distill__information="answer"))
    assert {folder for folder in plain if plain[folder] != told[folder]} == {"models/x/s0"}
    assert (
        told["models/x/s0"].cfg["information"][0]["message"].startswith("{prompt}\n\nThe correct")
    )
    assert artifacts(config(models__x__distill__information="none")) == plain
    swept = artifacts(
        config(models__x__sweep={"distill.information": ["none", "full"]}, tables=None)
    )
    assert "information" not in swept["models/x-none/s0"].cfg
    assert "{solution}" in swept["models/x-full/s0"].cfg["information"][0]["message"]


def test_a_row_is_what_its_arm_is_but_for_what_it_says_itself():
    rows = [
        {"arm": "E1.a"},
        {"arm": "E1.a", "base": "i", "label": "own"},
        {"label": "b", "model": "b"},
    ]
    made = resolve(config(arms=ARMS, tables__t1__rows=rows)).tables["t1"].rows
    fields = [(row.label, row.model, row.base, row.teacher, row.probe) for row in made]
    assert fields == [
        ("E1 an arm", "x", "a", "b", None),
        ("own", "x", "i", "b", None),
        ("b", "b", None, None, None),
    ]


def test_sweep_expands_to_named_runs():
    made = artifacts(config(models__x__sweep={"distill.loss.k": [1, 8]}, tables=None))
    assert made["models/x-1/s0"].cfg["loss"]["k"] == 1
    assert made["models/x-8/s0"].cfg["loss"]["k"] == 8
    assert "models/x/s0" not in made


def _changed(before: dict, after: dict) -> set[str]:
    old, new = artifacts(before), artifacts(after)
    assert old.keys() == new.keys()
    return {folder for folder in old if old[folder] != new[folder]}


def test_an_edit_changes_the_settings_of_just_the_stages_it_concerns():
    assert _changed(config(), config(models__x__distill__loss={"k": 8})) == {"models/x/s0"}
    evaluations = {f"evaluations/e/{m}/s0" for m in "iabx"}
    assert _changed(config(), config(protocols__short__max_new_tokens=9)) == evaluations
    assert _changed(config(), config(prompts__d__dedup__threshold=0.7)) == {"prompts/d"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"loss": {"k": 8}}, 8),
        ({"loss": {"k": 8}, "metrics_k": 3}, 3),
        ({"loss": {"preset": "sampled", "k": None}}, 16),
        ({"terms": [{"teacher": "b", "loss": {"k": 5}}, {"teacher": "a"}]}, 5),
        ({"terms": [{"teacher": "b"}, {"reward": {"grader": "world"}}]}, 4),
    ],
)
def test_metrics_are_of_as_many_tokens_as_the_loss(given: dict[str, Any], expected: int) -> None:
    run = {"student": "a", **({} if "terms" in given else {"teacher": "b"}), **given}
    made = artifacts(config(models__x__distill=run))["models/x/s0"]
    assert made.cfg["metrics_k"] == expected


def test_how_a_step_is_cut_belongs_to_the_mean_that_depends_on_it():
    cut = {"max_token_len_per_gpu", "data_parallel_size"}
    for how in ("token_mean", "sequence_mean"):
        made = artifacts(config(models__x__distill__aggregation=how))["models/x/s0"].cfg
        assert made["aggregation"] == how and not cut & made.keys()
    given = {"models__x__distill__aggregation": "micro_batch_mean"}
    made = artifacts(config(**given))["models/x/s0"].cfg
    assert {key: made[key] for key in cut} == {
        "max_token_len_per_gpu": 32768,
        "data_parallel_size": 8,
    }
    smaller = {**given, "models__x__distill__max_token_len_per_gpu": 16384}
    assert _changed(config(**given), config(**smaller)) == {"models/x/s0"}


def test_a_sample_is_written_out_as_it_is_asked_for():
    for asked, settings in (
        ({"n": 4}, {"n": 4, "seed": 0}),
        ({"n": 4, "seed": 2}, {"n": 4, "seed": 2}),
        ({"questions": 4}, {"questions": 4, "seed": 0}),
        ({"first": 4}, {"first": 4, "seed": 0}),
    ):
        made = artifacts(config(prompts__p__sample=asked))["prompts/p"].cfg
        assert made["sample"] == settings


@pytest.mark.parametrize(("sampled", "read"), [(0.0, 1.0), (0.7, 0.7)])
def test_a_student_is_read_at_the_temperature_of_its_rollouts_greedy_ones_at_1(sampled, read):
    probes = {
        "s": {"signal": {**CONTINUE, "grader": "world"}},
        "p": {"pair": CONTINUE},
    }
    made = artifacts(config(generations__g={**ASK, "temperature": sampled}, probes=probes))
    assert {made[f"probes/{name}/s0"].cfg["temperature"] for name in probes} == {read}


def test_an_evaluation_has_its_protocol_and_its_tasks():
    made = artifacts(config(evaluations__e__protocol="paper"))["evaluations/e/x/s0"]
    assert made.cfg["protocol"] == {
        "samples": 16,
        "temperature": 0.7,
        "top_p": 0.95,
        "max_new_tokens": 31744,
        "grader": "rule",
    }
    assert made.inputs == ("models/x/s0", "prompts/p")
    assert made.cfg["inputs"] == ["model", "prompts:w"]
    faces = artifacts(config(evaluations__e__protocol="many_faces"))["evaluations/e/x/s0"].cfg
    assert faces["chat_template_kwargs"] == {"enable_thinking": False}
    assert (faces["protocol"]["samples"], faces["protocol"]["max_new_tokens"]) == (1, 16384)
    assert faces["protocol"]["cut_off"] == "wrong"
    assert faces["protocol"].keys() & {"box", "thinking", "exact"} == set()
    # What takes the name of a published one is laid over it, graders as the papers' included.
    own = config(protocols__many_faces={"temperature": 0.7}, evaluations__e__protocol="many_faces")
    laid_over = artifacts(own)["evaluations/e/x/s0"].cfg
    assert laid_over == {**faces, "protocol": {**faces["protocol"], "temperature": 0.7}}


def _itself() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


def _bomb() -> Any:
    value: list[Any] = [1]
    for _ in range(40):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (datetime.date(2020, 1, 1), "date is not JSON serializable"),
        (b"x", "bytes is not JSON serializable"),
        (_itself(), "nested too deeply"),
        (_bomb(), "too many values"),
    ],
)
def test_what_snakemake_reads_of_a_config_may_be_no_plain_values(value, reason):
    with pytest.raises(UserError, match=f"config: no plain values .*{reason}"):
        resolve(config(seeds=value))


def test_boxes_are_read_strictly_unless_a_protocol_says_otherwise():
    strict = {"box": "last_complete", "thinking": "left_out", "exact": True}
    for name in ("standard", "greedy", "short"):
        made = artifacts(config(evaluations__e__protocol=name))["evaluations/e/x/s0"].cfg
        assert {key: made["protocol"][key] for key in strict} == strict
    one = config(protocols__short__box="last")
    protocol = artifacts(one)["evaluations/e/x/s0"].cfg["protocol"]
    assert "box" not in protocol and protocol["exact"] is True
    papers = {"box": "last", "thinking": "graded", "exact": False}
    asked = artifacts(config(protocols__short=papers))["evaluations/e/x/s0"].cfg["protocol"]
    assert asked.keys() & strict.keys() == set()


@pytest.mark.parametrize("shipped", ["mini", "pilot", "paper", "many-faces", "unmasking"])
def test_shipped_configs_grade_as_the_papers_do(shipped):
    path = Path(__file__).parents[3] / f"config/{shipped}.yaml"
    config = resolve(yaml.safe_load(path.read_text()))
    for evaluation in config.evaluations.values():
        name = evaluation.protocol
        settings = (config.protocols.get(name) or PROTOCOLS[name]).settings()
        assert settings.keys() & {"box", "thinking", "exact"} == set()


@pytest.mark.parametrize("shipped", ["paper", "many-faces", "one-gpu", "unmasking"])
def test_shipped_configs_end_responses_as_the_papers_code_does(shipped):
    """With the student's own tokens, whatever ends those of a teacher."""
    path = Path(__file__).parents[3] / f"config/{shipped}.yaml"
    config = resolve(yaml.safe_load(path.read_text()))
    runs = [model.distill for model in config.models.values() if model.distill]
    assert bool(runs) is (shipped != "unmasking")
    assert {run.end_tokens for run in runs} <= {"student"}


def test_an_edit_of_a_task_file_or_of_what_it_includes_changes_evaluations(tmp_path, monkeypatch):
    from opd.evaluation import tasks

    folder = tmp_path / "benchmarks"
    shutil.copytree(tasks.FOLDER, folder)
    before = artifacts(config())
    monkeypatch.setattr(tasks, "FOLDER", folder)
    assert artifacts(config()) == before
    for name in ("world.yaml", "_boxed.yaml"):
        with (folder / name).open("a") as file:
            file.write("# more\n")
        after = artifacts(config())
        assert {f for f in after if after[f] != before[f]} == {
            f"evaluations/e/{m}/s0" for m in "iabx"
        }
        before = after


def test_a_task_reads_a_dataset_of_the_hub_at_its_locked_commit():
    benchmark = {"task": "gsm8k", "hub": {"id": "openai/gsm8k", "config": "main"}}
    given = config(benchmarks__w=benchmark)
    made = plan(resolve(given), {"datasets/openai/gsm8k": "a" * 40})
    assert made["datasets/w"].cfg["revision"] == "a" * 40
    assert made["datasets/w"].cfg["config"] == "main"
    assert made["evaluations/e/x/s0"].cfg["inputs"] == ["model", "data:w"]
    assert made["evaluations/e/x/s0"].inputs[1] == "datasets/w"


def test_numbers_that_yaml_takes_for_text_are_numbers():
    """As in ``lr: 1e-6``; where text is wanted, as in a name or a revision, it stays one."""
    loss = {"preset": "jsd", "k": None, "beta": "5e-1", "teacher_temperature": "7E-1"}
    made = resolve(
        config(models__x__distill__lr="1e-6", models__x__distill__loss=loss,
               models__h={"hub": {"id": "a/b", "revision": "12345e1"}})
    ).models  # fmt: skip
    assert made["x"].distill.lr == 1e-6 and made["x"].distill.loss.beta == 0.5
    assert made["x"].distill.loss.teacher_temperature == 0.7
    assert made["h"].hub.revision == "12345e1"
    prefix = PrefixProbe(generations="g", teacher="t", shares=["1e-1", 0.9])
    assert prefix.shares == [0.1, 0.9]


def test_seeds_are_derived_and_give_each_model_a_folder_of_its_own():
    made = artifacts(config(seeds=[0, 1]))
    first, second = (made[f"models/a/s{s}"] for s in (0, 1))
    assert first.cfg["seed"] != second.cfg["seed"]
    assert second.inputs == ("models/i/s1", "sft_data/c")
    assert made["tables/t1"].inputs == (
        "evaluations/e/x/s0",
        "evaluations/e/x/s1",
        "evaluations/e/a/s0",
        "evaluations/e/a/s1",
        "models/x/s0",
        "models/x/s1",
    )


def test_targets_are_all_or_those_named_also_where_figure_and_table_share_a_name():
    figure = {
        "title": "F",
        "kind": "bars",
        "evaluation": "e",
        "series": [{"label": "x", "model": "x"}],
    }
    given = config(figures={"t1": figure, "f": figure})
    own = ["tables/t1", "figures/t1", "figures/f"]
    assert asked(given) == [*own, "tables/responses-t1"]
    assert asked({**given, "targets": ["t1"]}) == ["tables/t1", "figures/t1"]
    assert asked({**given, "targets": ["f"]}) == ["figures/f"]


def test_stage_settings_are_plain_and_hold_no_recipe_names():
    made = artifacts(config())
    for artifact in made.values():
        assert json.loads(json.dumps(artifact.cfg)) == artifact.cfg
    cfg = made["models/x/s0"].cfg
    assert "student" not in cfg and "teacher" not in cfg
    assert cfg["inputs"] == ["student", "teacher", "prompts"]


def test_chat_template_options_follow_the_student():
    given = config(models__i={"init": {}, "chat_template": {"enable_thinking": False}})
    made = artifacts(given)
    assert made["models/x/s0"].cfg["chat_template_kwargs"] == {"enable_thinking": False}


def test_schema_file_is_what_the_models_generate():
    path = ROOT / "workflow" / "schemas" / "config.schema.json"
    assert json.loads(path.read_text()) == Config.model_json_schema(), "run: opd schema > " + str(
        path
    )


def shipped(name: str) -> dict[str, Any]:
    """mini, or an overlay on it, as Snakemake lays them."""
    raw: dict[str, Any] = {}
    for file in dict.fromkeys(("mini", name)):
        raw = merge(raw, yaml.safe_load((ROOT / "config" / f"{file}.yaml").read_text()))
    return raw


def behind_targets(raw: dict[str, Any]) -> set[str]:
    made = artifacts(raw)
    return set(closure(targets(resolve(raw), made), made))


@pytest.mark.parametrize("name", ["mini", "mini-all"])
def test_shipped_configs_resolve(name):
    raw = shipped(name)
    config = resolve(raw)
    assert config.name == name
    made = artifacts(raw)
    assert set(targets(config, made)) <= made.keys()
    assert targets(config, made)


def test_every_arm_and_probe_of_the_paper_has_a_miniature():
    claims = ROOT / "config" / "claims"
    declared, second = (read_claims(claims / f"{p}.yaml") for p in ("rethinking_opd", "many_faces"))
    config = resolve(shipped("mini-all"))
    assert declared["arms"].keys() <= config.arms.keys()
    assert config.arms.keys() - declared["arms"].keys() <= second["arms"].keys()
    assert declared["probes"].keys() <= config.probes.keys()
    run = config.models[config.arms["E02.new2"].model].distill
    assert run is not None
    assert (run.student, config.models[run.teacher].grpo.student) == ("large", "huge")
    assert config.arms["E02.student2"].model == config.arms["E02.new2"].base == "large"
    same = config.models[config.arms["E02.same2"].model].distill
    assert (same.student, same.teacher) == ("large", "huge")
    # Lengths grow from arm to arm.
    models = [config.models[config.arms[f"E09.l{i}"].model] for i in range(1, 7)]
    lengths = [model.distill.max_new_tokens for model in models]
    assert lengths == [4, 8, 16, 32, 64, 128]


def test_one_command_trains_no_more_for_what_only_all_of_it_shows():
    mini, whole = behind_targets(shipped("mini")), behind_targets(shipped("mini-all"))
    more = {"huge", "huge-rl", "large-from-huge", "large-from-huge-rl", "length-128"}
    assert {f"models/{name}/s0" for name in more} <= whole - mini
    assert mini - whole == set()


def test_a_set_apart_from_another_has_it_as_an_input():
    apart = {"use": "o", "apart_from": {"prompts": "p", "by": "row"}}
    made = artifacts(config(prompts__q=apart))["prompts/q"]
    assert made.inputs == ("prompts/o", "prompts/p")
    assert made.cfg["inputs"] == ["prompts", "apart_from"]
    assert made.cfg["apart_from"] == "row"


def test_settings_of_a_hub_source():
    hub = {"id": "cais/mmlu", "revision": "0" * 40, "split": "test", "row_id": "subject"}
    made = artifacts(config(prompts__q={"hub": hub}))["prompts/q"]
    wanted = {"hub": "cais/mmlu", "revision": "0" * 40, "split": "test", "row_id": "subject"}
    assert made.cfg["source"] == wanted


def test_neighbours_are_found_once_for_all_thresholds_and_reports():
    encoder = {"prompts": "o", "against": "p", "encoder": "hashed"}
    made = artifacts(
        config(
            prompts__d={"dedup": {**encoder, "threshold": 0.5}},
            prompts__d2={"dedup": encoder},
            prompts__own={"dedup": {**encoder, "against": "o"}},
            contamination={"r": {"prompts": "o", "benchmarks": ["p"], "encoder": "hashed"}},
        )
    )
    found = {a.folder: a.inputs for a in made.values() if a.stage == "neighbours"}
    assert found == {
        "neighbours/hashed/o/p": ("embeddings/hashed/o", "embeddings/hashed/p"),
        "neighbours/hashed/o/o": ("embeddings/hashed/o",),
        "neighbours/hashed/p/o": ("embeddings/hashed/p", "embeddings/hashed/o"),
    }
    assert made["prompts/d"].inputs[2] == made["prompts/d2"].inputs[2] == "neighbours/hashed/o/p"
    assert made["prompts/own"].inputs == ("prompts/o", "neighbours/hashed/o/o")
    assert made["contamination/r"].cfg["inputs"] == ["prompts", "benchmark:p", "neighbours:p"]


def test_a_filter_by_tokens_reads_the_models_that_it_names_with_their_templates():
    given = {"prompts__f": FIT, "models__i__chat_template": {"enable_thinking": False}}
    made = artifacts(config(**given, models__x__distill__prompts="f"))
    assert made["prompts/f"].stage == "fit"
    assert made["prompts/f"].named == {
        "prompts": "prompts/p", "model:b": "models/b/s0", "model:i": "models/i/s0"
    }  # fmt: skip
    thinking = {"enable_thinking": False}
    expected = {"max_prompt_tokens": 9, "chat_templates": {"b": thinking, "i": thinking}}
    assert {k: made["prompts/f"].cfg[k] for k in expected} == expected
    assert made["models/x/s0"].named["prompts"] == "prompts/f"
    told = {"fit": {**FIT["fit"], "information": "answer", "max_teacher_prompt_tokens": 99}}
    cfg = artifacts(config(prompts__f=told))["prompts/f"].cfg
    assert cfg["information"] == [privileged.CONTEXTS["answer"]]
    assert cfg["max_teacher_prompt_tokens"] == 99
    assert not {"information", "max_teacher_prompt_tokens"} & made["prompts/f"].cfg.keys()
    # The step of a model that is its end is the model.
    last = {"fit": {"prompts": "p", "models": ["b@2"]}}
    named = artifacts(config(prompts__f=last))["prompts/f"].named
    assert named["model:b"] == "models/b/s0"


def test_what_repeated_problems_are_is_a_setting_of_the_benchmark():
    before = artifacts(config())["evaluations/e/x/s0"].cfg["benchmarks"]
    assert "repeated" not in before[0]
    made = artifacts(config(benchmarks__w__repeated="samples"))["evaluations/e/x/s0"]
    assert made.cfg["benchmarks"] == [{**before[0], "repeated": "samples"}]


def test_threads_of_an_encoder_are_no_part_of_its_embeddings():
    given = {"models__m": {"hub": {"id": "a/b"}}, "prompts__d__dedup__encoder": "m"}
    cfg = artifacts(config(**given, threads=2))["embeddings/m/o"].cfg
    assert cfg["execution"] == {"threads": 2} and "threads" not in cfg


def test_a_kept_step_is_a_model_that_everything_can_name():
    row = {"label": "x", "model": "x@1", "base": "x@0", "teacher": "x@3"}
    named = {
        "models__y": {"distill": {"student": "x@1", "teacher": "b"}},
        "generations__g": {**ASK, "model": "x@1"},
        "tables__t1__rows": [row],
    }
    made = artifacts(config(**KEEP, **named))
    kept = made["models/x@1/s0"]
    assert (kept.stage, kept.inputs) == ("keep", ("models/x/s0",))
    assert kept.cfg.keys() == {"step", "inputs", "code"}
    assert (kept.cfg["step"], kept.cfg["inputs"]) == (1, ["model"])
    assert made["models/y/s0"].inputs[0] == made["generations/g/s0"].inputs[0] == "models/x@1/s0"
    assert made["evaluations/e/x@1/s0"].inputs[0] == "models/x@1/s0"
    # The first step is the student, the last one the model: they have no artifact of their own.
    folders = [f"evaluations/e/{model}/s0" for model in ("x@1", "a", "x")]
    assert made["tables/t1"].inputs == (*folders,)
    assert not [folder for folder in made if "x@0" in folder or "x@3" in folder]
    # A student's first step may be another run's kept one.
    again = artifacts(config(**KEEP, **{**named, "generations__g": {**ASK, "model": "y@0"}}))
    assert again["generations/g/s0"].inputs[0] == "models/x@1/s0"


def test_keeping_steps_is_no_part_of_what_a_run_makes():
    plain, keeping = artifacts(config()), artifacts(config(**KEEP))
    assert plain.keys() < keeping.keys()
    changed = {folder for folder in plain if plain[folder] != keeping[folder]}
    assert changed == {"models/x/s0"}
    cfg, wanted = keeping["models/x/s0"].cfg, plain["models/x/s0"].cfg
    assert cfg["execution"] == {**wanted["execution"], "keep_steps": [1]}
    assert {**cfg, "execution": 0} == {**wanted, "execution": 0}
    # By the epoch: how many steps there are is known to the run alone.
    epochs = {"sft": {"student": "i", "data": "c", "epochs": 2, "keep_steps": [7]}}
    made = artifacts(config(models__a=epochs))
    assert made["models/a/s0"].cfg["execution"]["keep_steps"] == [7]
    assert "models/a@7/s0" in made


def test_a_kept_step_goes_when_all_that_is_asked_of_it_is_made():
    row = {"label": "x", "model": "x@1"}
    more = {"label": "z", "model": "z"}
    named = {
        "seeds": [0, 1],
        "models__z": {"distill": {"student": "x@1", "teacher": "b", "keep_steps": [1, 2]}},
        # Of what nobody asks for, as of the steps of z, nothing is waited for.
        "evaluations__f": {"benchmarks": ["w"], "protocol": "short"},
        "tables__t1__rows": [row, more],
    }

    def gone(**changes: Any) -> dict[str, list[str]]:
        raw = config(**{**KEEP, **named, **changes})
        made = artifacts(raw)
        return released(resolve(raw), made, targets(resolve(raw), made))

    going = {"models__x__distill__keep": "until_evaluated"}
    assert artifacts(config(**KEEP, **named, **going)) == artifacts(config(**KEEP, **named))
    assert gone() == {}
    assert gone(**going) == {
        f"models/x@1/s{seed}": [f"evaluations/e/x@1/s{seed}", f"models/z/s{seed}"]
        for seed in (0, 1)
    }
    # For all runs but one; without the table, what is read is the student of the other run.
    assert gone(defaults__distill__keep="until_evaluated").keys() == gone(**going).keys()
    always = {"models__x__distill__keep": "always"}
    assert gone(defaults__distill__keep="until_evaluated", **always) == {}
    assert gone(**going, tables__t1__rows=[{"label": "a", "model": "a"}]) == {
        f"models/x@1/s{seed}": [f"models/z/s{seed}"] for seed in (0, 1)
    }


def test_a_kept_step_is_asked_as_its_run_is():
    off = {"enable_thinking": False}
    made = artifacts(config(**KEEP, models__i={"init": {}, "chat_template": off}))
    assert made["evaluations/e/x@1/s0"].cfg["chat_template_kwargs"] == off
    # Options of the run's own count from its first step on, not for its student.
    own = {"distill": {"student": "a", "teacher": "b", "keep_steps": [1]}, "chat_template": off}
    asked = {
        step: artifacts(
            config(models__x=own, models__y={"distill": {"student": f"x@{step}", "teacher": "b"}})
        )["models/y/s0"].cfg["chat_template_kwargs"]
        for step in (0, 1, 3)
    }
    assert asked == {0: {}, 1: off, 3: off}


def test_released_weights_take_the_place_of_training_under_the_same_name():
    off = {"models__i": {"init": {}, "chat_template": {"enable_thinking": False}}}
    lock = {"models/o/x": SHA}
    plain = plan(resolve(config(**off)), lock)
    assert plan(resolve(config(**off, **RELEASED)), lock) == plain
    assert plan(resolve(config(**off, **RELEASED, use_released=[])), lock) == plain
    for switch in (True, ["x"]):
        made = plan(resolve(config(**off, **RELEASED, use_released=switch)), lock)
        fetched = made["models/x"]
        assert (fetched.stage, fetched.inputs) == ("fetch", ())
        assert (fetched.cfg["hub"], fetched.cfg["revision"]) == ("o/x", SHA)
        assert "models/x/s0" not in made
        before, after = (m["evaluations/e/x/s0"] for m in (plain, made))
        assert (before.inputs[0], after.inputs[0]) == ("models/x/s0", "models/x")
        # Asked as the model would be that is trained here.
        assert before.cfg == after.cfg
        assert made["models/b/s0"] == plain["models/b/s0"]
    # What it would have been trained from need not be there any more.
    own = {"student": "y", "teacher": "b"}
    given = config(**RELEASED, use_released=True, models__x__distill=own)
    assert "models/x" in plan(resolve(given), lock)
    with pytest.raises(UserError, match=r"models\.x\.released: .*locked at"):
        plan(resolve(config(**RELEASED, use_released=True)), {"models/o/x": "f" * 40})


def with_paper(**changes: Any) -> dict[str, Any]:
    """The config above with one arm of the first paper, and a probe."""
    return config(
        papers=["rethinking_opd"],
        evaluation="e",
        arms={
            "E04.student": {"label": "a", "model": "a"},
            "E04.success": {"label": "x", "model": "x", "base": "a", "teacher": "b"},
            "E03.student": {"label": "b", "model": "b"},
        },
        generations={"g": {"model": "a", "prompts": "p"}},
        probes={"E11.success": {"pair": {"generations": "g", "teacher": "b"}}},
        **changes,
    )


def test_a_paper_is_shown_by_what_this_config_has_of_it():
    made = artifacts(with_paper())
    figures = {folder for folder in made if folder.startswith("figures/rethinking_opd/")}
    assert "figures/rethinking_opd/fig06" in figures
    assert "figures/rethinking_opd/fig14" in figures  # of the probe
    assert "figures/rethinking_opd/fig05" not in figures  # E03 has a student only
    claims = made["claims"]
    assert set(claims.cfg["arms"]) == {"E03.student", "E04.success"}
    for side in ("evaluations", "base", "teacher", "run"):
        (name,) = claims.cfg["arms"]["E04.success"][side]
        assert name in claims.cfg["inputs"]
    assert {"claims:rethinking_opd", "targets:rethinking_opd"} <= {*claims.cfg["inputs"]}
    # Accuracy over steps: before, at the steps kept, and after.
    scores = made["figures/rethinking_opd/fig06"].cfg["arms"]["E04.success"]["scores"]
    assert scores == {"0": ["evaluation:a:s0"], "3": ["evaluation:x:s0"]}
    report = made["report"]
    assert set(report.inputs) > figures | {"claims", "tables/t1", "models/x/s0"}


def test_experiments_left_out_are_not_run():
    made = artifacts(with_paper(experiments=["E11"]))
    # Arms that are left out keep their labels, and nothing else.
    assert all(arm.keys() == {"label"} for arm in made["claims"].cfg["arms"].values())
    measured = {name for name, one in made["claims"].cfg["probes"].items() if "runs" in one}
    assert measured == {"E11.success"}
    assert "models/x/s0" not in made["claims"].inputs
    with pytest.raises(UserError, match=r"experiments: unknown .*'E4'.*E03, E04, E11|did you mean"):
        artifacts(with_paper(experiments=["E4"]))


def test_targets_name_a_paper_or_one_figure_of_it():
    wanted = asked(with_paper(targets=["fig06", "claims"]))
    assert set(wanted) == {"figures/rethinking_opd/fig06", "claims"}
    whole = asked(with_paper(targets=["rethinking_opd"]))
    assert whole and all(folder.startswith("figures/rethinking_opd/") for folder in whole)
    assert targets(resolve(with_paper(targets=["t1"])), artifacts(with_paper())) == ["tables/t1"]


PAGE = {"contamination": {"r": {"prompts": "o", "benchmarks": ["p"], "encoder": "hashed"}}}


@pytest.mark.parametrize(("more", "shown"), [({}, []), (PAGE, ["contamination/r"])])
def test_without_anything_to_be_in_it_there_is_no_report(more: dict[str, Any], shown: list[str]):
    raw = config(models={"i": {"init": {}}}, tables=None, evaluations=None, **more)
    raw["generations"] = {"g": {"model": "i", "prompts": "p"}}
    assert targets(resolve(raw), artifacts(raw)) == shown and "generations/g/s0" in artifacts(raw)
    with pytest.raises(UserError, match="targets: there is nothing to be in a report; describe"):
        artifacts({**raw, "targets": ["report"]})


def test_a_report_that_is_asked_for_alone_shows_all_there_is():
    raw = config(targets=["report"])
    assert targets(resolve(raw), artifacts(raw)) == ["report"]
    assert {"tables/t1", "models/x/s0"} <= {*artifacts(raw)["report"].inputs}


def test_papers_need_the_evaluation_that_their_claims_are_about():
    with pytest.raises(UserError, match="papers need evaluation"):
        artifacts(config(papers=["rethinking_opd"]))
    with pytest.raises(UserError, match=r"papers: unknown paper 'rethinking'; .*rethinking_opd"):
        artifacts(config(papers=["rethinking"], evaluation="e"))


def test_the_grammar_of_the_world_is_a_setting_only_where_it_is_given() -> None:
    made = {"prompts/p", "sft_data/c", "models/i/s0"}
    for changes, expected in (({}, None), ({"world__grammar": "words"}, "words")):
        planned = artifacts(config(**changes))
        for folder in made:
            world = planned[folder].cfg["world"]
            assert world.get("grammar") == expected and ("grammar" in world) == bool(changes)


def test_reading_a_config_loads_no_table_library():
    """Snakemake parses it again in every job."""
    code = "import sys, opd.plan.artifacts; print(*{'pyarrow', 'jinja2', 'torch'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_a_config_without_papers_shows_its_runs_its_outlooks_and_responses():
    raw = config(
        probes__o={"indicators": {"student": "a", "teacher": "b", "prompts": "p"}},
        tables__t1__rows=[{"label": "x", "model": "x", "base": "a"}, {"label": "b", "model": "b"}],
    )
    shown = artifacts(raw)
    drawn = shown["figures/training-distill"].cfg
    assert [series["label"] for series in drawn["series"]] == ["x"]
    assert {"figures/training-sft", "figures/training-grpo"} <= shown.keys()
    assert shown["tables/outlook-o"].inputs == ("probes/o/s0",)
    responses = shown["tables/responses-t1"]
    assert responses.inputs == ("evaluations/e/x/s0", "evaluations/e/a/s0", "prompts/p")
    assert [row["label"] for row in responses.cfg["rows"]] == ["x"]
    assert {*responses.inputs[:2]} < {*shown["tables/t1"].inputs}
    # What a config says itself goes before.
    own = artifacts(merge(raw, {"figures": {"f": {**CURVES, "metrics": [{"name": "loss"}]}}}))
    assert [folder for folder in own if folder.startswith("figures/")] == ["figures/f"]
    papers = artifacts(merge(raw, {"papers": ["rethinking_opd"], "evaluation": "e"}))
    assert not [f for f in papers if "training-" in f or "outlook-" in f or "responses-" in f]


def test_a_sum_names_its_models_by_their_place() -> None:
    """So that a model of another name is the same run, and the student's start the student."""
    parts = [
        {"teacher": "b", "where": {"language": "en"}, "information": "answer"},
        {"teacher": "i", "weight": 2, "loss": {"preset": "full", "k": None}},
        {"teacher": "b", "tokens": {"prefix": 3}},
        {"reward": {"grader": "rule"}, "weight": {"start": 1, "end": 0}},
        {"reference": "a", "loss": {"preset": "k3"}},
    ]
    made = plan(resolve(config(**terms(*parts))), {})["models/x/s0"]
    assert made.named == {
        "student": "models/a/s0",
        "prompts": "prompts/p",
        "teacher:0": "models/b/s0",
        "teacher:1": "models/i/s0",
    }
    own = made.cfg["terms"]
    assert [term.get("teacher") for term in own] == [
        "teacher:0",
        "teacher:1",
        "teacher:0",
        None,
        None,
    ]
    assert own[4] == {"reference": "student", "loss": {"preset": "k3"}, "weight": 1.0}
    # Of the recipe where a term has none; what a teacher is told is written out.
    assert own[0]["loss"] == own[2]["loss"] == {"preset": "rethinking_code", "k": 4}
    assert own[0]["information"][0]["message"].startswith("{prompt}")
    assert "loss" not in made.cfg and "loss" not in own[3]
    other = [{**part, "teacher": "bee"} if part.get("teacher") == "b" else part for part in parts]
    renamed = config(**terms(*other))
    renamed["models"]["bee"] = renamed["models"]["b"]
    cfg = plan(resolve(renamed), {})["models/x/s0"].cfg
    assert cfg == made.cfg


def test_several_prompt_sets_are_inputs_by_name() -> None:
    parts = [{"teacher": "b", "where": {"prompts": "o"}}]
    raw = config(**terms(*parts, prompts=["p", "o"], shuffle=True))
    made = plan(resolve(raw), {})["models/x/s0"]
    assert "prompts" not in made.named and "prompts" not in made.cfg
    assert made.named["prompts:p"] == "prompts/p" and made.named["prompts:o"] == "prompts/o"
    assert made.cfg["terms"][0]["where"] == {"prompts": "o"}


def test_the_short_form_has_the_settings_that_it_had() -> None:
    cfg = plan(resolve(config()), {})["models/x/s0"].cfg
    assert "terms" not in cfg and cfg["loss"] == {"preset": "rethinking_code", "k": 4}
    assert cfg["inputs"] == ["student", "teacher", "prompts"]


def test_figures_show_what_is_measured_of_terms() -> None:
    from opd.plan.papers import check_shown

    figure = {**CURVES, "metrics": [{"name": "term_1_reward"}]}
    parts = [{"teacher": "b"}, {"reward": {"grader": "rule"}}]
    check_shown(resolve(config(figures={"f": figure}, **terms(*parts))))
    with pytest.raises(UserError, match=r"figures.f.metrics: unknown metric 'term_1_reward'"):
        check_shown(resolve(config(figures={"f": figure}, **terms(parts[0]))))


def test_generations_are_inputs_by_their_place_as_sources() -> None:
    parts = [{"own": 0.5}, {"generations": "h", "share": 0.25}, {"generations": "g", "share": 0.25}]
    raw = config(**drawn(*parts), generations__h={"model": "b", "prompts": "p"}, seeds=[0, 7])
    made = plan(resolve(raw), {})["models/x/s7"]
    assert made.named["generations:0"] == "generations/h/s7"
    assert made.named["generations:1"] == "generations/g/s7"
    assert made.cfg["rollouts"] == [
        {"own": 0.5},
        {"generations": "generations:0", "share": 0.25},
        {"generations": "generations:1", "share": 0.25},
    ]


def test_a_run_that_names_its_own_rollouts_is_the_one_that_names_none() -> None:
    plain, own, other = (
        plan(resolve(config(**{**drawn(*sources), **more})), {})["models/x/s0"]
        for sources, more in (
            ([{"own": 1.0}], {"models__x__distill": {"student": "a", "teacher": "b"}}),
            ([{"own": 1}], {}),
            ([{"own": 0.5}, {"generations": "g", "share": 0.5}], {}),
        )
    )
    assert plain == own and "rollouts" not in plain.cfg
    assert other.cfg == {
        **plain.cfg,
        "rollouts": other.cfg["rollouts"],
        "inputs": [*plain.cfg["inputs"], "generations:0"],
    }


def test_that_a_teacher_is_served_makes_the_result_and_where_it_is_does_not() -> None:
    plain, here, there = (
        plan(resolve(config(**changes)), {})["models/x/s0"]
        for changes in (
            {**served(), "models__x__distill": {**served()["models__x__distill"], "server": None}},
            served(),
            {**served(), "training": {"servers": {"b": "https://other:1", "a": URL}}},
        )
    )
    assert "servers" not in plain.cfg["execution"]
    assert here.cfg == {**plain.cfg, "server": True, "execution": here.cfg["execution"]}
    place = {"url": URL, "names": ["b"]}
    assert here.cfg["execution"] == {**plain.cfg["execution"], "servers": {"teacher": place}}
    assert there.cfg["execution"]["servers"]["teacher"]["url"] == "https://other:1"
    assert here.inputs == there.inputs == plain.inputs
    assert identity("distill", here.cfg, {}) == identity("distill", there.cfg, {})
    assert identity("distill", here.cfg, {}) != identity("distill", plain.cfg, {})


def test_the_server_of_a_term_is_that_of_its_model() -> None:
    """Which may know it by its id on the hub, too."""
    loss = {"preset": "k3"}
    parts = [{"teacher": "b"}, {"teacher": "h", "server": True, "loss": loss, "weight": 0.5}]
    raw = config(
        models__h={"hub": {"id": "org/teacher", "revision": SHA}},
        training={"servers": {"h": URL}},
        **terms(*parts),
    )
    made = plan(resolve(raw), {})["models/x/s0"]
    assert [term.get("server") for term in made.cfg["terms"]] == [None, True]
    assert made.cfg["execution"]["servers"] == {
        "teacher:1": {"url": URL, "names": ["h", "org/teacher"]}
    }


def test_offline_alone_starts_no_engine() -> None:
    """So what it would be is no part of such a run."""
    training = {"vllm": {"mode": "colocate", "gpu_memory_utilization": 0.3}}
    mixed = [{"own": 0.5}, {"generations": "g", "share": 0.5}]
    for sources, samples in ((mixed, True), ([{"generations": "g"}], False)):
        here, there = (
            plan(resolve(config(**drawn(*sources), **more)), {})["models/x/s0"].cfg
            for more in ({"training": training}, {})
        )
        assert ("vllm" in here, "vllm" in here["execution"]) == (samples, samples)
        assert (here == there) is not samples


def test_importance_weights_need_what_the_generation_records() -> None:
    sampled = {"preset": "sampled", "k": None}
    change = drawn({"generations": "g", "importance": {"clip": 2}})
    change["models__x__distill"]["loss"] = sampled
    with pytest.raises(
        UserError, match=r"models.x.distill.rollouts.0.importance: 'g' does not record .*; say logp"
    ):
        plan(resolve(config(**change)), {})
    change["generations__g"] = {**ASK, "logprobs": True}
    made = plan(resolve(config(**change)), {})
    assert made["models/x/s0"].cfg["rollouts"][0]["importance"] == {"clip": 2.0}
    assert made["generations/g/s0"].cfg["logprobs"] is True
    plain = plan(resolve(config(generations__g=ASK)), {})["generations/g/s0"].cfg
    assert "logprobs" not in plain


def test_every_process_has_its_part_of_every_source() -> None:
    sources = [{"own": 0.5}, {"generations": "g", "share": 0.5}]
    change = drawn(*sources)
    change["models__x__distill"] |= {"prompts_per_step": 2, "rollouts_per_prompt": 4}
    plan(resolve(config(**change, training={"processes": 4})), {})
    with pytest.raises(UserError, match=r"rollouts: the 4 and 4 rollouts .* to 8 processes"):
        plan(resolve(config(**change, training={"processes": 8})), {})


def test_a_run_from_scores_reads_them_and_the_small_files_of_their_teacher() -> None:
    made = plan(resolve(config(**scored(), seeds=[0, 7])), {})
    run, kept = made["models/x/s7"], made["scores/k/s7"]
    assert run.named == {
        "student": "models/a/s7",
        "scores": "scores/k/s7",
        "prompts": "prompts/p",
        "teacher": "models/b/s7",
        "generations:0": "generations/g/s7",
    }
    assert run.cfg["scores"] == "scores" and kept.cfg["k"] == 16
    models = {"student": "models/a/s7", "teacher": "models/b/s7"}
    assert kept.named == {"generations": "generations/g/s7", **models}
    # With a named student, whose top k the default loss can have as its support.
    change = scored(loss={"k": 4})
    with pytest.raises(UserError, match=r"loss.support: .* name a student in the scores"):
        plan(resolve(config(**change)), {})
    change["scores"]["k"]["named_student"] = "a"
    named = plan(resolve(config(**change)), {})["scores/k/s0"]
    assert named.named["named_student"] == "models/a/s0" and "named_student" not in named.cfg
    # As a term, beside the teacher itself in another one, and with the loss of the recipe.
    parts = [{"scores": "k", "weight": 2.0}, {"teacher": "b"}]
    change = scored(terms=parts)
    del change["models__x__distill"]["scores"]
    summed = plan(resolve(config(**change)), {})["models/x/s0"]
    assert summed.named["scores:0"] == "scores/k/s0"
    loss = {"preset": "teacher", "k": 16}
    assert summed.cfg["terms"] == [
        {"teacher": "teacher:0", "scores": "scores:0", "weight": 2.0, "loss": loss},
        {"teacher": "teacher:0", "weight": 1.0, "loss": loss},
    ]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"rollouts": [{"own": 0.5}, {"generations": "g", "share": 0.5}]},
            r"distill.scores: 'k' has scores of the responses of 'g' alone; say rollouts: \[",
        ),
        ({"rollouts": None}, r"distill.scores: 'k' has scores of the responses of 'g' alone"),
        ({"loss": {"preset": "union", "k": 4}}, r"x.distill: loss.support: the support 'union'"),
        ({"loss": {"preset": "full", "k": None}}, r"x.distill: loss.support: .*'vocabulary'"),
        ({"loss": {"preset": "teacher", "k": 17}}, r"x.distill: loss.k: .* hold 16 tokens"),
        ({"temperature": 0.7}, r"loss.teacher_temperature: .* at temperature 0.7, and scores"),
        ({"metrics_k": 17}, r"metrics_k is 17, and the scores hold 16 tokens"),
    ],
)
def test_a_loss_that_needs_more_than_scores_ends_the_plan(
    more: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        plan(resolve(config(**scored(**more))), {})
    at_one = {"temperature": 0.7, "loss": {"preset": "k2", "k": None, "teacher_temperature": 1.0}}
    plan(resolve(config(**scored(**at_one))), {})


def test_figures_show_what_is_measured_of_sources() -> None:
    from opd.plan.papers import check_shown

    names = [{"name": "source_1_token_share"}, {"name": "offline_kl_nats"}]
    figure = {**CURVES, "metrics": names}
    parts = [{"own": 0.5}, {"generations": "g", "share": 0.5}]
    check_shown(resolve(config(figures={"f": figure}, **drawn(*parts))))
    with pytest.raises(UserError, match=r"unknown metric 'source_1_token_share'"):
        check_shown(resolve(config(figures={"f": figure})))


def test_a_file_for_accelerate_has_no_precision_of_its_own(tmp_path):
    """It would be computed in, and is no part of an identity."""
    file = tmp_path / "mine.yaml"
    for own, precision, right in (
        ("bf16", None, False),
        ("bf16", "bfloat16", True),
        ("no", None, True),
        ("'no'", "bfloat16", True),
        ("fp16", "bfloat16", False),
    ):
        file.write_text(f"mixed_precision: {own}\n")
        given = {"accelerate": str(file), **({"precision": precision} if precision else {})}
        if right:
            asked(config(training=given))
            continue
        words = r"its mixed_precision is \w+, and training\.precision decides"
        with pytest.raises(UserError, match=words):
            asked(config(training=given))
